"""N processes (gloo on loopback) select, score and attend to exactly what one does."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import add_latents, random_latents, tiny_loaded, tiny_manifest, tiny_model, tiny_tokenizer
from ranked import in_processes

from memspan.bank import shard
from memspan.bank.add import add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.scope import Scope
from memspan.errors import RankError
from memspan.generate.memory import Memory
from memspan.model.convert import load, save_checkpoint
from memspan.routing.local import LocalMemory
from memspan.routing.ranks import Ranks
from memspan.routing.sharded import ShardedMemory, ShardedSource
from memspan.types import Document, Retrieved

MANIFEST = tiny_manifest()


def _bank(folder: Path, sizes: list[int]) -> MemoryBank:
    """A segment per size, of so many documents; those of the last are deleted, and every seventh."""
    bank = MemoryBank.create(folder, MANIFEST)
    for number, size in enumerate(sizes):
        with bank.writer() as writer:
            for place in range(size):
                document = Document(f"{number}-{place}", "text", metadata={"group": place % 3})
                add_latents(writer, document, random_latents(MANIFEST, 1 + place % 3))
            writer.commit()
    bank.delete([f"{len(sizes) - 1}-{place}" for place in range(sizes[-1])])
    bank.delete([f"0-{place}" for place in range(0, sizes[0], 7)])
    return bank


def _plain(retrieved: Retrieved) -> tuple[Any, ...]:
    tensors = retrieved.keys_BGMD, retrieved.values_BGMD, retrieved.mask_BM
    return retrieved.doc_ids, retrieved.scores, *(x.float().tolist() for x in tensors)


@pytest.mark.parametrize(("ranks", "sizes"), [(2, [30, 5, 40]), (3, [50, 3, 20, 9]), (3, [4, 1, 60])])
def test_some_ranks_select_exactly_what_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, sizes: list[int]
) -> None:
    monkeypatch.setattr(shard, "_SMALL_KEYS_BYTES", 0)
    folder = _bank(tmp_path / "bank", sizes).folder
    query_BTHD = torch.randn(3, 5, 4, MANIFEST.head_dim)
    mask_BT = torch.rand(3, 5) < 0.7
    mask_BT[:, 0] = True

    def route(joined: Ranks | None) -> list[Any]:
        found = []
        bank = MemoryBank.open(folder)
        with bank.snapshot() as snapshot:
            for scope in ({}, {"group": 1}, {"group": {"in": [0, 2]}}):
                selectable_N = snapshot.selectable_mask(Scope.parse(scope))
                for k in (1, 4, 100):
                    if joined is None:
                        memory: Any = LocalMemory(snapshot.shards, MANIFEST, k, selectable_N=selectable_N)
                    else:
                        memory = ShardedMemory(snapshot, k, joined, selectable_N=selectable_N)
                    for layer in MANIFEST.msa_layers:
                        found.append(_plain(memory.route(layer, query_BTHD, mask_BT)))
                        found.append([(x.ids.tolist(), x.scores.tolist()) for x in memory.candidates[layer]])
        assert joined is None or joined.received_bytes > 0
        return found

    expected = route(None)
    for found in in_processes(route, ranks):
        assert found == expected


def test_what_a_rank_receives_is_what_the_docs_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula of docs/performance.md, section Memory Parallel."""
    monkeypatch.setattr(shard, "_SMALL_KEYS_BYTES", 0)
    monkeypatch.setattr(ShardedSource, "above", lambda *_: pytest.fail("the first pass is enough here"))
    R, B, T, k, place = 3, 2, 5, 3, 5
    G, D = MANIFEST.num_kv_heads, MANIFEST.head_dim
    rows = 1 + place % 3
    bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
    wanted_GD = torch.nn.functional.normalize(torch.randn(G, D), dim=-1)
    for number in range(R):  # a segment and a rank each, with more documents than candidates
        with bank.writer() as writer:
            for at in range(8 * k + 7):
                latents = random_latents(MANIFEST, 1 + at % 3)
                if at == place:  # far better than all others
                    latents.router_keys_LCW[:] = wanted_GD.flatten().bfloat16()
                add_latents(writer, Document(f"{number}-{at}", "text"), latents)
            writer.commit()
    bank.close()
    query_BTHD = wanted_GD.repeat_interleave(2, 0).expand(B, T, 2 * G, D)

    def route(joined: Ranks) -> tuple[int, tuple[tuple[int, ...], ...]]:
        with MemoryBank.open(bank.folder).snapshot() as snapshot:
            memory = ShardedMemory(snapshot, k, joined)
            before = joined.received_bytes
            found = memory.route(MANIFEST.msa_layers[0], query_BTHD, torch.ones(B, T, dtype=torch.bool))
            return joined.received_bytes - before, found.doc_ids

    for rank, (received, doc_ids) in enumerate(in_processes(route, R)):
        assert len(set(doc_ids[0])) == k and set(doc_ids[0]) == set(doc_ids[1])
        query = 4 * B * T * G * D if rank else 0
        candidates = (R - 1) * B * 8 * k * (12 + 4)
        content = (R - 1) * rows * 2 * G * D * 2
        most_selected_of_a_rank = 1
        counts = (R - 1) * (32 + 8 * B + 8 * most_selected_of_a_rank)
        assert received == query + candidates + content + counts


def test_an_answer_over_two_ranks_is_that_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "_SMALL_KEYS_BYTES", 0)
    loaded = tiny_loaded(max_document_tokens=128)
    bank = MemoryBank.create(tmp_path / "bank", manifest_of(loaded))
    for number in range(4):
        add_documents(bank, loaded, [Document(str(number), f"the tower number {number} is older than the river")])
    bank.close()

    def ask(joined: Ranks | None) -> tuple[Any, ...]:
        with Memory(MemoryBank.open(bank.folder), loaded, ranks=joined) as memory:
            before = joined.received_bytes if joined else 0
            answer = memory.ask("how old is the tower?", selector="router", max_documents=2)
        assert answer.received_bytes == (joined.received_bytes - before if joined else 0)
        return answer.text, answer.evidence

    expected = ask(None)
    assert in_processes(ask, 2) == [expected] * 2


def test_more_ranks_than_segments_are_refused(tmp_path: Path) -> None:
    folder = _bank(tmp_path / "bank", [5, 5, 5]).folder  # small: they count as one

    def route(joined: Ranks) -> None:
        with MemoryBank.open(folder).snapshot() as snapshot:
            ShardedMemory(snapshot, 2, joined)

    for error in in_processes(route, 2):
        assert isinstance(error, RankError) and "2 ranks for 1 segments" in str(error)


def test_ranks_with_different_banks_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "_SMALL_KEYS_BYTES", 0)
    folders = [_bank(tmp_path / str(number), [3] * (number + 2)).folder for number in range(2)]

    def route(joined: Ranks) -> None:
        with MemoryBank.open(folders[joined.rank]).snapshot() as snapshot:
            ShardedMemory(snapshot, 2, joined)

    for error in in_processes(route, 2):
        assert isinstance(error, RankError) and "the ranks differ in what the bank holds: rank 0 has" in str(error)


def test_ranks_with_different_models_are_told_apart(tmp_path: Path) -> None:
    def ask(joined: Ranks) -> None:
        loaded = tiny_loaded(seed=joined.rank)
        bank = MemoryBank.create(tmp_path / str(joined.rank), manifest_of(loaded))
        Memory(bank, loaded, ranks=joined)

    found = in_processes(ask, 2)
    own = [tiny_loaded(seed=rank).model.encoder_fingerprint() for rank in range(2)]
    for error in found:
        assert isinstance(error, RankError)
        assert f"the ranks differ in their models: rank 0 has {own[0]}, rank 1 has {own[1]}" in str(error)


def test_ranks_with_different_number_formats_are_told_apart(tmp_path: Path) -> None:
    """They have one bank and one fingerprint, but would not write the same tokens."""
    save_checkpoint(tiny_model(), tiny_tokenizer(), tmp_path / "model")
    MemoryBank.create(tmp_path / "bank", manifest_of(load(tmp_path / "model"))).close()

    def ask(joined: Ranks) -> None:
        Memory.open(tmp_path / "bank", tmp_path / "model", dtype=("float32", "bfloat16")[joined.rank], ranks=joined)

    for error in in_processes(ask, 2):
        assert isinstance(error, RankError)
        assert "differ in their models: rank 0 has torch.float32, rank 1 has torch.bfloat16" in str(error)


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(dist, "is_backend_available", {"nccl", "xccl"}.__contains__)
    for kind in ("cuda", "xpu"):
        with pytest.raises(RankError, match=r"process 1 .* there are 1; start at most 1 processes on it, or .* cpu"):
            Ranks.join(torch.device(kind))


def test_values_of_any_size_are_dealt_and_collected() -> None:
    values = [None, {"a": [1, 2]}, "x" * 10_000]

    def do(joined: Ranks) -> tuple[Any, list[Any]]:
        own = joined.deal(values if joined.rank == 0 else None)
        return own, joined.collect(own)

    assert in_processes(do, 3) == [(own, values) for own in values]


@pytest.mark.parametrize("how", ["gone", pytest.param("silent", marks=pytest.mark.slow)])
def test_a_lost_rank_ends_in_an_error(how: str) -> None:
    def do(joined: Ranks) -> str:
        joined.largest(torch.tensor([joined.rank]))
        if joined.rank == 1:
            if how == "gone":
                os._exit(1)
            time.sleep(8)
            return "slept"
        joined.largest(torch.tensor([joined.rank]))
        return "went on"

    found = in_processes(do, 2, timeout=2.0)
    assert isinstance(found[0], RankError) and "another rank was lost" in str(found[0])
