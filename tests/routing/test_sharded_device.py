"""Ranks that keep their keys on an accelerator each: ids and scores of one process that scores all on its CPU.

The accelerator is the CPU, or one that is only pretended, on which waits are counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import add_latents, random_latents, tiny_loaded, tiny_manifest
from pretended import DEVICE, Pretended, PretendedDevice
from ranked import in_processes

from memspan.bank import shard
from memspan.bank.add import add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.scope import Scope
from memspan.bank.tiers import Tiers
from memspan.generate.memory import Memory
from memspan.routing import local, sharded, source
from memspan.routing.local import LocalMemory
from memspan.routing.ranks import Ranks
from memspan.routing.sharded import ShardedMemory
from memspan.routing.source import LocalSource
from memspan.types import Document, Retrieved

MANIFEST = tiny_manifest()
LAYERS = len(MANIFEST.msa_layers)
ALL = 10**9


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every segment is a shard."""
    monkeypatch.setattr(shard, "_SMALL_KEYS_BYTES", 0)


def _bank(folder: Path, sizes: list[int]) -> Path:
    """A segment per size, of so many documents; some of them are deleted."""
    torch.manual_seed(1)
    bank = MemoryBank.create(folder, MANIFEST)
    for number, size in enumerate(sizes):
        with bank.writer() as writer:
            for place in range(size):
                document = Document(f"{number}-{place}", "text", metadata={"group": place % 3})
                add_latents(writer, document, random_latents(MANIFEST, 1 + place % 3))
            writer.commit()
    bank.delete([f"0-{place}" for place in range(0, sizes[0], 7)])
    bank.close()
    return folder


def _plain(retrieved: Retrieved) -> tuple[Any, ...]:
    tensors = retrieved.keys_BGMD, retrieved.values_BGMD, retrieved.mask_BM
    held = (x.held if isinstance(x, Pretended) else x for x in tensors)
    return retrieved.doc_ids, retrieved.scores, *(x.float().tolist() for x in held)


def _questions(rank: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries that count are those of rank 0."""
    generator = torch.Generator().manual_seed(rank)
    mask_BT = torch.rand(3, 5, generator=torch.Generator().manual_seed(7)) < 0.7
    mask_BT[:, 0] = True
    return torch.randn(3, 5, 4, MANIFEST.head_dim, generator=generator), mask_BT


def _budget(folder: Path, kind: str, rank: int) -> int:
    """Bytes of keys: of all, in 8 bits alone, of a rank's first segment alone, or of one rank alone."""
    with MemoryBank.open(folder).snapshot() as snapshot:
        coarse = [one.reader.keys_bytes // 2 + 4 * len(one.document_C) * LAYERS for one in snapshot.shards]
    return {
        "all": ALL,
        "in 8 bits": sum(coarse),
        "the first": max(coarse),
        "of one rank": ALL if rank else max(coarse),
    }[kind]


@pytest.mark.parametrize("kind", ["all", "in 8 bits", "the first", "of one rank"])
@pytest.mark.parametrize(("ranks", "sizes"), [(2, [30, 5, 40, 8]), (3, [50, 3, 20, 9, 30])])
def test_ranks_with_keys_on_a_device_find_what_one_process_finds(
    tmp_path: Path, ranks: int, sizes: list[int], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _bank(tmp_path / "bank", sizes)

    def route(joined: Ranks | None) -> list[Any]:
        found, (query_BTHD, mask_BT) = [], _questions(joined.rank if joined else 0)
        bank = MemoryBank.open(folder)
        if joined is not None:
            monkeypatch.setattr(sharded, "accelerator", lambda device: torch.device("cpu"))
            bank.tiers = Tiers(device_budget=_budget(folder, kind, joined.rank))
        with bank.snapshot() as snapshot:
            for scope in ({}, {"group": 1}):
                selectable_N = snapshot.selectable_mask(Scope.parse(scope))
                for k in (1, 4, 100):
                    if joined is None:
                        memory: Any = LocalMemory(snapshot.shards, MANIFEST, k, selectable_N=selectable_N)
                    else:
                        memory = ShardedMemory(snapshot, k, joined, selectable_N=selectable_N)
                        assert snapshot.tiers._moved._used > 0
                    for layer in MANIFEST.msa_layers:
                        found.append(_plain(memory.route(layer, query_BTHD, mask_BT)))
                        found.append([(x.ids.tolist(), x.scores.tolist()) for x in memory.candidates[layer]])
        return found

    expected = route(None)
    for found in in_processes(route, ranks, 60):
        assert found == expected


@pytest.mark.parametrize("beyond", [False, True], ids=["the leading", "beyond them"])
def test_a_rank_keeps_its_own_segments_and_waits_once_a_layer_rank_0_twice(
    tmp_path: Path, beyond: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 also copies the queries, which gloo sends from the CPU; the others have theirs from it."""
    folder = _bank(tmp_path / "bank", [75, 75, 75, 75])
    monkeypatch.setattr(source, "start_to_host", lambda tensor: pytest.fail("stored keys are on the device"))
    if beyond:
        monkeypatch.setattr(local, "_ERROR_MARGIN", 1e6)

    def route(joined: Ranks | None) -> tuple[Any, ...]:
        query_BTHD, mask_BT = _questions(joined.rank if joined else 0)
        with MemoryBank.open(folder).snapshot() as snapshot:
            if joined is None:
                memory: Any = LocalMemory(snapshot.shards, MANIFEST, 3)
                return [_plain(memory.route(layer, query_BTHD, mask_BT)) for layer in MANIFEST.msa_layers], 0, {}
            with PretendedDevice() as device:
                memory = ShardedMemory(snapshot, 3, joined, device=DEVICE)
                on_device = query_BTHD.to(DEVICE), mask_BT.to(DEVICE)
                for _ in range(2):  # keys are moved, and ways tried
                    device.waits.clear(), device.copied.clear()
                    found = [memory.route(layer, *on_device) for layer in MANIFEST.msa_layers]
            return [_plain(one) for one in found], snapshot.tiers._moved._used, dict(device.waits)

    expected, _, _ = route(None)
    both = in_processes(route, 2, 60)
    with MemoryBank.open(folder).snapshot() as snapshot:
        LocalSource(snapshot.shards, MANIFEST.msa_layers, tiers=snapshot.tiers, keys_on=torch.device("cpu"))
        whole = snapshot.tiers._moved._used
    assert [used for _, used, _ in both] == [whole // 2] * 2
    for rank, (found, _, waits) in enumerate(both):
        assert found == expected
        if not beyond:
            assert waits == {"copy": LAYERS * (1 if rank else 2)}


def test_an_answer_over_ranks_with_devices_is_that_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded(max_document_tokens=128)
    bank = MemoryBank.create(tmp_path / "bank", manifest_of(loaded))
    for number in range(4):
        add_documents(bank, loaded, [Document(str(number), f"the tower number {number} is older than the river")])
    bank.close()

    def ask(joined: Ranks | None) -> tuple[Any, ...]:
        if joined is not None:
            monkeypatch.setattr(sharded, "accelerator", lambda device: torch.device("cpu"))
        opened = MemoryBank.open(bank.folder)
        with Memory(opened, loaded, ranks=joined) as memory:
            answer = memory.ask("how old is the tower?", selector="router", max_documents=2)
            assert (opened.tiers._moved._used > 0) == (joined is not None)
        return answer.text, answer.evidence

    expected = ask(None)
    assert in_processes(ask, 2, 60) == [expected] * 2


def test_what_is_sent_is_on_the_device_of_what_was_given() -> None:
    def send(joined: Ranks) -> tuple[Any, ...]:
        given = torch.full((2, 3), float(joined.rank + 1))
        with PretendedDevice() as device:
            there = joined.broadcast(given.to(DEVICE), 1)
            sent = there.held if isinstance(there, Pretended) else None
        here = joined.broadcast(given, 1)
        return str(there.device), sent.tolist() if sent is not None else None, here.tolist(), dict(device.waits)

    wanted = [[2.0] * 3] * 2
    for rank, found in enumerate(in_processes(send, 2)):
        assert found == (str(DEVICE), wanted, wanted, {"copy": 1} if rank == 1 else {})
