"""How often routing waits for an accelerator that keeps the keys: counted on one that is only pretended."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import add_latents, random_latents, tiny_manifest
from pretended import DEVICE, Pretended, PretendedDevice

from memspan.bank.bank import MemoryBank
from memspan.routing import source
from memspan.routing.local import LocalMemory
from memspan.types import Document, Retrieved

MANIFEST = tiny_manifest()


@pytest.fixture
def bank(tmp_path: Path) -> MemoryBank:
    torch.manual_seed(0)
    bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
    with bank.writer() as writer:
        for number in range(300):
            add_latents(writer, Document(str(number), f"text {number}"), random_latents(MANIFEST, 1 + number % 3))
        writer.commit()
    return bank


def _held(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.held if isinstance(tensor, Pretended) else tensor


def _route(memory: LocalMemory, query_BTHD: torch.Tensor, mask_BT: torch.Tensor) -> list[Retrieved]:
    return [memory.route(layer, query_BTHD, mask_BT) for layer in MANIFEST.msa_layers]


@pytest.mark.parametrize("questions", [1, 3])
@pytest.mark.parametrize("scoped", [False, True])
def test_a_layer_waits_once_for_the_device_and_finds_what_the_cpu_finds(
    bank: MemoryBank, questions: int, scoped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    query_BTHD, mask_BT = torch.randn(questions, 6, 6, MANIFEST.head_dim), torch.ones(questions, 6, dtype=torch.bool)
    mask_BT[:, 4:] = False
    monkeypatch.setattr(source, "start_to_host", _held)  # a copy that is only begun
    with bank.snapshot() as snapshot:
        selectable_N = snapshot.selectable_mask()
        if scoped:
            selectable_N = selectable_N & (torch.arange(len(selectable_N)) % 2 == 0)
        expected = _route(
            LocalMemory(snapshot.shards, MANIFEST, 3, selectable_N=selectable_N, tiers=snapshot.tiers),
            query_BTHD,
            mask_BT,
        )
        with PretendedDevice() as device:
            memory = LocalMemory(
                snapshot.shards, MANIFEST, 3, selectable_N=selectable_N, device=DEVICE, tiers=snapshot.tiers
            )
            on_device = query_BTHD.to(DEVICE), mask_BT.to(DEVICE)
            first = _route(memory, *on_device)  # keys are moved, and ways tried
            device.waits.clear()
            again = _route(memory, *on_device)
    layers = len(MANIFEST.msa_layers)
    assert dict(device.waits) == {"copy": layers}, "what leads is copied once a layer, and nothing else is waited for"
    for wanted, *found in zip(expected, first, again, strict=True):
        for one in found:
            assert (one.doc_ids, one.scores) == (wanted.doc_ids, wanted.scores)
            assert isinstance(one.keys_BGMD, Pretended) and torch.equal(_held(one.keys_BGMD), wanted.keys_BGMD)
