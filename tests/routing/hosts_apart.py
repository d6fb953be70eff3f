"""Memory Parallel over hosts that a network joins. `test_hosts.py` runs it as root of a network of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import add_latents, random_latents, read_bank, tiny_loaded, tiny_manifest, tiny_model, tiny_tokenizer
from own_network import SLOW, Host, Link, on_hosts

from memspan.bank import shard
from memspan.bank.add import add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.encoders import encode_for_first
from memspan.bank.synthetic import made_up, write_synthetic
from memspan.bank.verify import verify
from memspan.bench.latency import LatencySettings
from memspan.errors import RankError
from memspan.generate.memory import Memory
from memspan.model.convert import load, save_checkpoint
from memspan.routing.cost import Asked, routing_cost
from memspan.routing.local import LocalMemory
from memspan.routing.ranks import Ranks, outer_interface
from memspan.routing.sharded import ShardedMemory, ShardedSource
from memspan.types import Document

MANIFEST = tiny_manifest()
TIMEOUT = 20.0
SHORT = 3.0


@pytest.fixture(autouse=True)
def _segments_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "_SMALL_KEYS_BYTES", 0)


def _joined(do: Callable[[Ranks, Host], Any], timeout: float = TIMEOUT) -> Callable[[Host], Any]:
    """What a host does once it has met the others, or the error."""

    def on_host(host: Host) -> Any:
        try:
            return do(Ranks.join(torch.device("cpu"), timeout), host)
        except RankError as error:
            return error

    return on_host


@pytest.fixture
def talks(tmp_path: Path) -> tuple[Path, Any]:
    """A bank of four segments, and its model."""
    loaded = tiny_loaded(max_document_tokens=128)
    bank = MemoryBank.create(tmp_path / "bank", manifest_of(loaded))
    for number in range(4):
        add_documents(bank, loaded, [Document(str(number), f"the tower number {number} is older than the river")])
    bank.close()
    return bank.folder, loaded


def _before_scoring(patch: pytest.MonkeyPatch, do: Callable[[], None]) -> None:
    """Have something done in the middle of a question, once: candidates are known, and not yet scored."""
    exact = ShardedSource.exact
    todo = [do]

    def after(*given: Any) -> Any:
        if todo:
            todo.pop()()
        return exact(*given)

    patch.setattr(ShardedSource, "exact", after)


def _bank(folder: Path, sizes: list[int]) -> tuple[Path, torch.Tensor]:
    """A segment per size, of so many documents; and queries."""
    with closing(MemoryBank.create(folder, MANIFEST)) as bank:
        for number, size in enumerate(sizes):
            with bank.writer() as writer:
                for place in range(size):
                    add_latents(writer, Document(f"{number}-{place}", "text"), random_latents(MANIFEST, 1 + place % 3))
                writer.commit()
    return folder, torch.randn(3, 5, 4, MANIFEST.head_dim)


def _ask(folder: Path, loaded: Any, ranks: Ranks | None) -> tuple[Any, ...]:
    with Memory(MemoryBank.open(folder), loaded, ranks=ranks) as memory:
        answer = memory.ask("how old is the tower?", selector="router", max_documents=2)
    return answer.text, answer.evidence, answer.routed


@pytest.mark.parametrize(("count", "link"), [(2, None), (3, None), (2, SLOW), (3, SLOW)])
def test_hosts_answer_as_one_does(talks: tuple[Path, Any], count: int, link: Link | None) -> None:
    def do(ranks: Ranks, _: Host) -> tuple[Any, ...]:
        assert outer_interface() == "eth0"
        began = time.monotonic()
        ranks.largest(torch.tensor([ranks.rank]))
        assert link is None or time.monotonic() - began >= link.seconds, "a slow link is slow"
        return _ask(*talks, ranks)

    assert on_hosts(_joined(do), count, link) == [_ask(*talks, None)] * count


@pytest.mark.parametrize("count", [2, 3])
def test_hosts_route_as_one_does(tmp_path: Path, count: int) -> None:
    """Ids, scores and content, in every layer, for a batch of questions."""
    folder, query_BTHD = _bank(tmp_path / "bank", [50, 3, 20, 9])
    mask_BT = torch.rand(query_BTHD.shape[:2]) < 0.7
    mask_BT[:, 0] = True

    def route(ranks: Ranks | None) -> list[Any]:
        with MemoryBank.open(folder).snapshot() as snapshot:
            memory = ShardedMemory(snapshot, 4, ranks) if ranks else LocalMemory(snapshot.shards, MANIFEST, 4)
            found = [memory.route(layer, query_BTHD, mask_BT) for layer in MANIFEST.msa_layers]
        return [(x.doc_ids, x.scores, x.keys_BGMD.tolist(), x.values_BGMD.tolist()) for x in found]

    assert on_hosts(_joined(lambda ranks, _: route(ranks)), count) == [route(None)] * count


@pytest.mark.parametrize(("count", "lost"), [(2, 1), (3, 0), (3, 2)])
@pytest.mark.parametrize("when", ["before they meet", "before the question", "in the middle"])
def test_a_host_that_is_cut_off_is_an_error_on_all(
    talks: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, count: int, lost: int, when: str
) -> None:
    def do(host: Host) -> Any:
        def cut() -> None:
            if host.rank == lost:
                host.plug(lost, "down")

        def ask(ranks: Ranks, _: Host) -> Any:
            if when == "before the question":
                cut()
            return _ask(*talks, ranks)

        if when == "before they meet":
            cut()
        elif when == "in the middle":
            _before_scoring(monkeypatch, cut)
        return _joined(ask, SHORT)(host)

    for error in on_hosts(do, count):
        assert isinstance(error, RankError) and f"did not answer within {SHORT:.0f} s" in str(error)


def test_a_cable_that_is_back_in_time_changes_nothing(talks: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(ranks: Ranks, host: Host) -> Any:
        def blink() -> None:
            if host.rank == 1:
                host.plug(1, "down")
                time.sleep(0.2)
                host.plug(1, "up")

        _before_scoring(monkeypatch, blink)
        return _ask(*talks, ranks)

    assert on_hosts(_joined(ask), 2) == [_ask(*talks, None)] * 2


@pytest.mark.parametrize("count", [2, 3])
def test_what_goes_over_the_cable_is_what_is_counted(tmp_path: Path, count: int) -> None:
    """The payload of `Ranks.received_bytes`, and beside it headers alone."""
    folder, query_BTHD = _bank(tmp_path / "bank", [800] * count)

    def route(ranks: Ranks, host: Host) -> tuple[int, int]:
        with MemoryBank.open(folder).snapshot() as snapshot:
            memory = ShardedMemory(snapshot, 64, ranks)
            ranks.largest(torch.zeros(1))  # nobody is ahead
            before = host.received_bytes(), ranks.received_bytes
            for layer in MANIFEST.msa_layers:
                memory.route(layer, query_BTHD, torch.ones(query_BTHD.shape[:2], dtype=torch.bool))
            ranks.largest(torch.zeros(1))
            return host.received_bytes() - before[0], ranks.received_bytes - before[1]

    collectives = routing_cost(MANIFEST, [800] * count, count, Asked(3, 5, 64, 2)).collectives
    for on_cable, counted in on_hosts(_joined(route), count):
        # A message has headers of some 100 bytes, and is confirmed; a host sends as many messages as there are steps.
        assert counted <= on_cable <= 1.1 * counted + 1000 * count * collectives
        assert 1000 * count * collectives < counted, "so payload is most of it"


def test_torchrun_starts_the_command_on_every_host(tmp_path: Path) -> None:
    """And where nobody says by which interface the hosts reach each other, it is found."""
    save_checkpoint(tiny_model(max_document_tokens=128), tiny_tokenizer(), tmp_path / "model")
    loaded = load(tmp_path / "model", dtype="float32")
    with closing(MemoryBank.create(tmp_path / "bank", manifest_of(loaded))) as bank:
        for number in range(3):
            add_documents(bank, loaded, [Document(str(number), f"the tower number {number} is older than the river")])
    script = tmp_path / "script.py"
    script.write_text(
        "from memspan.bank import shard\nfrom memspan.cli import app\nshard._SMALL_KEYS_BYTES = 0\napp()\n", "utf-8"
    )
    where = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "10.7.0.1", "--master-port", "29512"]
    options = ["--model", tmp_path / "model", "--dtype", "float32", "--device", "cpu", "--selector", "router", "--json"]
    asked = [str(x) for x in (script, "ask", tmp_path / "bank", "how old is the tower?", *options)]

    def start(host: Host) -> tuple[int, str, str]:
        given = [sys.executable, "-m", "torch.distributed.run", *where, "--node-rank", str(host.rank), *asked]
        done = subprocess.run(given, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    first, second = on_hosts(start, 2)
    assert (first[0], second[0], second[1]) == (0, 0, ""), (first[2], second[2])
    answer = json.loads(first[1])
    with closing(Memory.open(tmp_path / "bank", tmp_path / "model", dtype="float32", device="cpu")) as memory:
        expected = memory.ask("how old is the tower?", selector="router")
    assert (answer["text"], answer["received_bytes"] > 0) == (expected.text, True)
    assert [one["score"] for one in answer["evidence"]] == [one.score for one in expected.evidence]


def test_the_benchmark_measures_one_host_beside_several(tmp_path: Path) -> None:
    import hosts

    loaded = tiny_loaded(max_document_tokens=128)
    manifest = made_up(manifest_of(loaded))
    how = {"chunks_per_document": 2, "max_segment_bytes": 100 * manifest.row_bytes}
    write_synthetic(tmp_path / "bank", manifest, 400, **how).close()
    settings = LatencySettings((400 * loaded.model.config.chunk_size,), questions=2, injected_tokens=16, new_tokens=1)
    one, two = (hosts.measure(loaded, tmp_path / "bank", count, None, settings) for count in (1, 2))
    assert one.keys() == two.keys() and one["received_bytes"] == 0
    assert 0 < two["received_bytes"] < two["on_cable_bytes"]
    assert min(side["first_token"]["least"] for side in (one, two)) > 0


@pytest.mark.parametrize("link", [None, SLOW])
def test_hosts_encode_the_bank_that_one_encodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: Link | None
) -> None:
    monkeypatch.setattr("memspan.bank.encode.WINDOW_BATCHES", 2)
    loaded = tiny_loaded(max_document_tokens=64)
    corpus = [Document(str(number), "the otter of Rome " * (1 + number % 5)) for number in range(20)]

    def add(ranks: Ranks | None, folder: Path) -> int:
        if ranks is not None and ranks.rank:
            return encode_for_first(folder, loaded, ranks).documents
        with closing(MemoryBank.open(folder)) as bank:
            return add_documents(bank, loaded, corpus, batch_tokens=60, group=ranks).documents

    for name in ("one", "two"):
        MemoryBank.create(tmp_path / name, manifest_of(loaded)).close()
    add(None, tmp_path / "one")
    assert None not in on_hosts(_joined(lambda ranks, _: add(ranks, tmp_path / "two")), 2, link)
    contents = []
    for name in ("one", "two"):
        with closing(MemoryBank.open(tmp_path / name)) as bank:
            assert verify(bank) == []
            found = read_bank(bank)
        contents.append([(replace(stored, date="", source_id=0), *latents) for stored, *latents in found])
    assert contents[0] == contents[1] and len(contents[0]) > 20, "long ones are split"
