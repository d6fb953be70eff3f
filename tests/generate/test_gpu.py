"""Encoding, routing and asking on a GPU give what they give on the CPU; skipped where there is none.

The CPU is in the list of devices so that the comparison itself runs everywhere.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch
from helpers import tiny_loaded

from memspan.bank.add import add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.scope import EVERYTHING
from memspan.generate.finder import Finder
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.model.convert import LoadedModel
from memspan.types import Answer, Document

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]
TEXTS = [f"the {animal} of {city} sleeps at number {len(city)}" for animal in ("otter", "mole") for city in ("Rome",)]
TEXTS += [f"a longer note, number {number}, about rivers, towers and the sea between them" for number in range(9)]
QUESTIONS = ["where does the otter sleep?", "which note is about towers?"]


def _model(device: str) -> LoadedModel:
    loaded = tiny_loaded(max_document_tokens=128)
    loaded.model.to(device)  # type: ignore[arg-type]
    return loaded


def _bank(folder: Path, loaded: LoadedModel) -> MemoryBank:
    bank = MemoryBank.create(folder, manifest_of(loaded))
    add_documents(bank, loaded, [Document(str(number), text) for number, text in enumerate(TEXTS)])
    return bank


def _answers(folder: Path, loaded: LoadedModel, sampling: Sampling) -> list[Answer]:
    """Of questions that are asked alone, from latents and text, and of both together."""
    with Memory(MemoryBank.open(folder), loaded) as memory:
        alone = [memory.ask(QUESTIONS[0], selector="router", max_documents=n, sampling=sampling) for n in (0, 2)]
        return alone + memory.ask_batch(QUESTIONS, selector="hybrid", max_documents=1, sampling=sampling)


@pytest.mark.parametrize("device", DEVICES)
def test_latents_of_a_device_are_those_of_the_cpu(device: str) -> None:
    here, there = (_model(one).model for one in ("cpu", device))
    documents = [list(range(1, 2 + 5 * number)) for number in range(4)]  # with a tail of a chunk, and of one token
    expected, found = here.encode(documents), there.encode(documents)
    assert found.num_chunks == expected.num_chunks and found.content_LC2GD.device.type == device
    for one, other in (
        (found.router_keys_LCW, expected.router_keys_LCW),
        (found.content_LC2GD, expected.content_LC2GD),
    ):
        torch.testing.assert_close(one.cpu(), other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_routes_as_the_cpu_does_and_gets_the_content(device: str, tmp_path: Path) -> None:
    here, there = _model("cpu"), _model(device)
    with closing(_bank(tmp_path / "bank", here)) as bank, bank.snapshot() as snapshot:
        config = here.model.config
        shape = 2, 5, config.num_heads, config.head_dim
        query_BTHD, mask_BT = torch.randn(shape), torch.tensor([[True] * 5, [False, True, True, False, False]])
        for layer in config.layers:
            expected = Finder(here, snapshot, EVERYTHING).memory.route(layer, query_BTHD, mask_BT)
            memory = Finder(there, snapshot, EVERYTHING).memory
            found = memory.route(layer, query_BTHD.to(device), mask_BT.to(device))
            assert found.doc_ids == expected.doc_ids
            torch.testing.assert_close(torch.tensor(found.scores), torch.tensor(expected.scores), atol=1e-6, rtol=0)
            for name in ("keys_BGMD", "values_BGMD", "mask_BM"):
                assert getattr(found, name).device.type == device
                assert torch.equal(getattr(found, name).cpu(), getattr(expected, name))


DRAWN = Sampling(max_new_tokens=8, temperature=0.7, top_p=0.9, seed=3)


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=8), DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("device", DEVICES)
def test_answers_of_a_device_are_those_of_the_cpu(device: str, sampling: Sampling, tmp_path: Path) -> None:
    """From one bank, word by word; from one that the device encoded itself, the same documents."""
    here, there = _model("cpu"), _model(device)
    _bank(tmp_path / "bank", here).close()
    _bank(tmp_path / "own", there).close()
    expected = _answers(tmp_path / "bank", here, sampling)
    for folder in (tmp_path / "bank", tmp_path / "own"):
        for found, wanted in zip(_answers(folder, there, sampling), expected, strict=True):
            assert [x.document_id for x in found.evidence] == [x.document_id for x in wanted.evidence]
            assert [x.document_ids for x in found.routed] == [x.document_ids for x in wanted.routed]
            assert found.text == wanted.text or folder.name == "own"  # latents are rounded to bfloat16
