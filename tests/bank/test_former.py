"""Banks that another number format wrote, and banks from before fingerprints were those of files."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_model, tiny_tokenizer

from memspan import Document, Memory
from memspan.bank import edits
from memspan.bank.add import add_documents
from memspan.bank.archive import export_bank, import_bank
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import check_model, manifest_of
from memspan.bank.manifest import SYNTHETIC
from memspan.bank.reencode import reencode
from memspan.bank.repair import repair
from memspan.bank.verify import verify
from memspan.errors import BankMismatch
from memspan.generate.sampling import Sampling
from memspan.model.adapter import save_adapter
from memspan.model.convert import LoadedModel, load, save_checkpoint
from memspan.model.lora import LoraSpec, add_lora
from memspan.model.modeling import MSAForCausalLM, is_lora

FORMATS = ("float32", "bfloat16")
SHORT = Sampling(max_new_tokens=2)
TEXTS = [Document(name, f"the {name} lives in the {place}") for name, place in (("ant", "tree"), ("hen", "shed"))]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint in bfloat16, and an adapter with LoRA that changes how documents are encoded."""
    folder = tmp_path_factory.mktemp("files")
    save_checkpoint(tiny_model(dtype=torch.bfloat16), tiny_tokenizer(), folder / "model")
    model = load(folder / "model", dtype="float32").model
    add_lora(model, LoraSpec(r"layers\.[123]\.", rank=3, alpha=6))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_lora(name):
                parameter.add_(0.1 * torch.randn_like(parameter))
    save_adapter(model, folder / "adapter", str(model.config.backbone_fingerprint), dtype=torch.bfloat16)
    return {"path": folder / "model", "adapter": folder / "adapter"}


@pytest.fixture
def loaded(files: dict[str, Path]) -> Callable[..., LoadedModel]:
    def do(dtype: str = "float32", **options: Any) -> LoadedModel:
        return load(**{**files, "dtype": dtype, "device": "cpu", **options})

    return do


def _bank(folder: Path, model: LoadedModel, former: str | None = None) -> MemoryBank:
    """A bank of `TEXTS`, which names the model by a former fingerprint, if one is given."""
    bank = MemoryBank.create(folder, manifest_of(model))
    add_documents(bank, model, TEXTS)
    if former is not None:
        edits.write_manifest(bank.catalog, {"encoder_fingerprint": former})
        bank.close()
        bank = MemoryBank.open(folder)
    return bank


def _files(bank: MemoryBank) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (bank.folder / "segments").iterdir()}


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Number formats of models of which all weights are hashed."""
    calls, original = [], MSAForCausalLM.weights_fingerprint

    def counting(self: MSAForCausalLM, *args: Any, **kwargs: Any) -> str:
        calls.append(str(self.dtype))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(MSAForCausalLM, "weights_fingerprint", counting)
    return calls


@pytest.mark.parametrize("writes", FORMATS)
@pytest.mark.parametrize("reads", FORMATS)
def test_a_bank_of_one_number_format_opens_in_the_other(
    loaded: Callable[..., LoadedModel], tmp_path: Path, hashed: list[str], writes: str, reads: str
) -> None:
    bank = _bank(tmp_path / "bank", loaded(writes))
    with Memory(bank, loaded(reads)) as memory:
        assert [found.external_id for found in memory.search("hen", selector="lexical")] == ["hen"]
        assert memory.ask("hen", selector="router", sampling=SHORT).evidence
        assert memory.add([*TEXTS, Document("cow", "the cow lives")]).added == 1
    assert not hashed


@pytest.mark.parametrize("wrote", FORMATS)
@pytest.mark.parametrize("reads", FORMATS)
def test_a_former_fingerprint_is_accepted_and_renewed(
    loaded: Callable[..., LoadedModel], tmp_path: Path, caplog: pytest.LogCaptureFixture, wrote: str, reads: str
) -> None:
    before, model = loaded(wrote), loaded(reads)
    bank = _bank(tmp_path / "bank", before, former=before.model.weights_fingerprint())
    other = MemoryBank.open(bank.folder)
    with Memory(bank, model) as memory:
        [record] = caplog.records
        assert record.levelno == logging.WARNING
        assert f"renew it, which encodes nothing: memspan reencode {bank.folder}" in record.getMessage()
        assert memory.ask("hen", sampling=SHORT).evidence
        assert memory.add([*TEXTS, Document("cow", "the cow lives")]).added == 1
        assert bank.manifest.encoder_fingerprint == before.model.weights_fingerprint()
        kept, commits = _files(bank), bank.catalog.commits()
        report = reencode(bank, model)
        assert (report.documents, _files(bank), bank.catalog.commits()) == (0, kept, commits + 1)
        assert memory.ask("hen", sampling=SHORT).evidence, "a memory that is open goes on"
    with closing(other), pytest.raises(BankMismatch, match="open it again"):
        other.snapshot()
    caplog.clear()
    with Memory.open(tmp_path / "bank", before.path, adapter=before.adapter, dtype=wrote) as memory:
        assert memory.bank.manifest == manifest_of(model)
        assert memory.search("cow") and not caplog.records and verify(memory.bank) == []


def test_weights_are_hashed_once_and_only_for_a_bank_from_before(
    loaded: Callable[..., LoadedModel], files: dict[str, Path], tmp_path: Path, hashed: list[str]
) -> None:
    model, plain = loaded("bfloat16"), load(files["path"], dtype="float32")
    of_half, of_other = model.model.weights_fingerprint(), plain.model.weights_fingerprint()
    banks = {
        "of half": _bank(tmp_path / "of half", model, of_half),
        "of another model": _bank(tmp_path / "of another model", model, of_other),
        "of another chunk size": _bank(tmp_path / "of another chunk size", model, of_half),
        "new": _bank(tmp_path / "new", plain),
    }
    made_up = dataclasses.replace(banks["of half"].manifest, encoder_fingerprint=SYNTHETIC)
    changed = dataclasses.replace(banks["of another chunk size"].manifest, chunk_size=8)
    hashed.clear()
    for _ in range(3):
        assert check_model(banks["of half"].manifest, model) == banks["of half"].manifest
    assert hashed == ["torch.bfloat16"]
    hashed.clear()
    for _ in range(3):
        with pytest.raises(BankMismatch, match="encoder_fingerprint"):
            check_model(banks["of another model"].manifest, model)
    assert hashed[:2] == ["torch.bfloat16", "torch.float32"] and len(hashed) == 4, "as itself, then in every format"
    hashed.clear()
    for manifest in (changed, made_up, banks["new"].manifest):
        with pytest.raises(BankMismatch):
            check_model(manifest, model)
    assert not hashed
    for bank in banks.values():
        bank.close()


def test_a_bank_from_before_can_be_moved_and_mended(loaded: Callable[..., LoadedModel], tmp_path: Path) -> None:
    model = loaded()
    bank = _bank(tmp_path / "bank", model, former=model.model.weights_fingerprint())
    export_bank(bank, tmp_path / "bank.zip")
    with closing(
        import_bank(tmp_path / "bank.zip", tmp_path / "moved", lambda found: check_model(found, model))
    ) as moved:
        assert moved.manifest == bank.manifest
        segment = next((moved.folder / "segments").glob("*.content*"))
        segment.write_bytes(segment.read_bytes()[:-8])
        faults = verify(moved)
        assert faults and repair(moved, model, faults) == []
        assert verify(moved) == [] and moved.manifest == bank.manifest
    bank.close()


def test_a_reencoding_of_a_bank_from_before_to_another_model_encodes(
    loaded: Callable[..., LoadedModel], files: dict[str, Path], tmp_path: Path
) -> None:
    model, other = loaded(), load(files["path"], dtype="float32")
    bank = _bank(tmp_path / "bank", model, former=model.model.weights_fingerprint())
    assert reencode(bank, other).documents == len(TEXTS)
    assert bank.manifest == manifest_of(other)
    with pytest.raises(BankMismatch):
        Memory(bank, model)


def test_a_bank_of_a_plain_checkpoint_from_before_is_accepted(files: dict[str, Path], tmp_path: Path) -> None:
    """It has the fingerprint that such a checkpoint stored: of its weights in the format that they are stored in."""
    for dtype in FORMATS:
        model = load(files["path"], dtype=dtype)
        former = load(files["path"], dtype="bfloat16").model.weights_fingerprint()
        with Memory(_bank(tmp_path / dtype, model, former), model) as memory:
            assert memory.search("hen")
