"""How often routing waits for an accelerator that keeps the keys: counted on one that is only pretended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers import add_latents, random_latents, tiny_manifest
from pretended import DEVICE, Pretended, PretendedDevice

from memspan.bank import moved, shard
from memspan.bank.bank import MemoryBank
from memspan.bank.shard import Shard
from memspan.bank.tiers import Tiers
from memspan.routing import local, source
from memspan.routing.local import LocalMemory
from memspan.routing.source import LocalSource
from memspan.types import Document, Retrieved

MANIFEST = tiny_manifest()


@pytest.fixture
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryBank:
    """Of four segments, each a shard of its own."""
    monkeypatch.setattr(shard, "_SMALL_KEYS_BYTES", 0)
    torch.manual_seed(0)
    bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
    for part in range(4):
        with bank.writer() as writer:
            for number in range(75 * part, 75 * (part + 1)):
                add_latents(writer, Document(str(number), f"text {number}"), random_latents(MANIFEST, 1 + number % 3))
            writer.commit()
    return bank


def _held(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.held if isinstance(tensor, Pretended) else tensor


def _route(memory: LocalMemory, query_BTHD: torch.Tensor, mask_BT: torch.Tensor) -> list[Retrieved]:
    return [memory.route(layer, query_BTHD, mask_BT) for layer in MANIFEST.msa_layers]


def _questions(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    query_BTHD, mask_BT = torch.randn(count, 6, 6, MANIFEST.head_dim), torch.ones(count, 6, dtype=torch.bool)
    mask_BT[:, 4:] = False
    return query_BTHD, mask_BT


def _check_same(found: Sequence[Retrieved], expected: Sequence[Retrieved]) -> None:
    for one, wanted in zip(found, expected, strict=True):
        assert (one.doc_ids, one.scores) == (wanted.doc_ids, wanted.scores)
        assert isinstance(one.keys_BGMD, Pretended) and torch.equal(_held(one.keys_BGMD), wanted.keys_BGMD)


def _coarse_bytes(shards: Sequence[Shard]) -> int:
    sizes = [(one.reader.keys_bytes // 2, len(one.document_C)) for one in shards]
    return sum(size + 4 * rows * len(MANIFEST.msa_layers) for size, rows in sizes)


@pytest.mark.parametrize("stored", [0, 2, 4])
@pytest.mark.parametrize("questions", [1, 3])
@pytest.mark.parametrize("scoped", [False, True])
def test_a_layer_waits_once_for_the_device_and_finds_what_the_cpu_finds(
    bank: MemoryBank, questions: int, scoped: bool, stored: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether stored keys are there, those of some segments, or none; queries leave the device only for the others."""
    query_BTHD, mask_BT = _questions(questions)
    left: list[torch.Tensor] = []

    def start(tensor: torch.Tensor) -> torch.Tensor:
        left.append(tensor)
        return _held(tensor)  # a copy that is only begun

    monkeypatch.setattr(source, "start_to_host", start)
    with bank.snapshot() as snapshot:
        shards, selectable_N = snapshot.shards, snapshot.selectable_mask()
        if scoped:
            selectable_N = selectable_N & (torch.arange(len(selectable_N)) % 2 == 0)
        here = LocalMemory(shards, MANIFEST, 3, selectable_N=selectable_N, tiers=snapshot.tiers)
        expected = _route(here, query_BTHD, mask_BT)
        budget = _coarse_bytes(shards) + sum(one.reader.keys_bytes for one in shards[:stored])
        with PretendedDevice() as device:
            tiers = Tiers(device_budget=budget)
            memory = LocalMemory(shards, MANIFEST, 3, selectable_N=selectable_N, device=DEVICE, tiers=tiers)
            on_device = query_BTHD.to(DEVICE), mask_BT.to(DEVICE)
            first = _route(memory, *on_device)  # keys are moved, and ways tried
            device.waits.clear(), left.clear()
            again = _route(memory, *on_device)
    layers = len(MANIFEST.msa_layers)
    assert len(shards) == 4 and sum(run.has_stored for run in tiers.runs([one.reader for one in shards])) == bool(
        stored
    )
    assert dict(device.waits) == {"copy": layers}, "what leads is copied once a layer, and nothing else is waited for"
    assert len(left) == (0 if stored == 4 else layers)
    _check_same(first, expected), _check_same(again, expected)
    for layer in MANIFEST.msa_layers:  # of all that was considered, too
        for one, wanted in zip(memory.candidates[layer], here.candidates[layer], strict=True):
            assert torch.equal(one.ids, wanted.ids) and torch.equal(one.scores, wanted.scores)


def test_candidates_beyond_the_first_are_scored_on_the_device_too(
    bank: MemoryBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where coarse scores tell too little apart: the queries stay there still."""
    query_BTHD, mask_BT = _questions(2)
    monkeypatch.setattr(local, "_ERROR_MARGIN", 1e6)  # so that all documents are looked at
    with bank.snapshot() as snapshot:
        expected = _route(LocalMemory(snapshot.shards, MANIFEST, 3, tiers=Tiers()), query_BTHD, mask_BT)
        monkeypatch.setattr(source, "start_to_host", None)
        monkeypatch.setattr(LocalSource, "_exact", None)
        with PretendedDevice():
            memory = LocalMemory(snapshot.shards, MANIFEST, 3, device=DEVICE, tiers=Tiers())
            found = _route(memory, query_BTHD.to(DEVICE), mask_BT.to(DEVICE))
    _check_same(found, expected)
    assert len(memory.candidates[MANIFEST.msa_layers[0]][0].ids) == 300


def test_a_device_without_float64_has_candidates_scored_exactly_on_the_cpu(
    bank: MemoryBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    query_BTHD, mask_BT = _questions(1)
    monkeypatch.setattr(source, "start_to_host", _held)
    monkeypatch.setattr(moved, "has_float64", lambda device: False)
    with bank.snapshot() as snapshot:
        expected = _route(LocalMemory(snapshot.shards, MANIFEST, 3, tiers=Tiers()), query_BTHD, mask_BT)
        with PretendedDevice():
            tiers = Tiers()
            memory = LocalMemory(snapshot.shards, MANIFEST, 3, device=DEVICE, tiers=tiers)
            _check_same(_route(memory, query_BTHD.to(DEVICE), mask_BT.to(DEVICE)), expected)
        assert not any(run.has_stored for run in tiers.runs([one.reader for one in snapshot.shards]))
