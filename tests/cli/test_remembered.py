"""A bank remembers the model and adapter it was made with, and every command opens that one unless told otherwise."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from command import failed, memspan
from helpers import save_backbone

from memspan import Memory
from memspan.bank.remembered import remembered
from memspan.bank.texts import TextBank
from memspan.cli.choices import ModelChoice
from memspan.errors import BankMismatch, CheckpointError
from memspan.model.adapter import save_adapter
from memspan.model.convert import LoadedModel, convert, load
from memspan.model.shipped import BACKBONES, SHIPPED, ModelNames

QUESTION = "Where does the otter live?"


@pytest.fixture(autouse=True)
def _no_model_in_the_environment(_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMSPAN_MODEL")


@pytest.fixture
def model(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of the test's own, to be moved."""
    return shutil.copytree(checkpoint, tmp_path / "model")


@pytest.fixture
def bank(model: Path, notes: Path, tmp_path: Path) -> Path:
    """A bank of three notes."""
    assert memspan("add", tmp_path / "bank", notes, "--model", model).code == 0
    return tmp_path / "bank"


def names(bank: Path) -> ModelNames | None:
    with closing(TextBank.open(bank)) as opened:
        return remembered(opened.catalog)


def trained(model: Path, folder: Path) -> Path:
    """An adapter for a checkpoint: other routers, so other latents."""
    loaded = load(model, dtype="float32", device="cpu")
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():
            if "router_" in name:
                weight.mul_(2)
    save_adapter(loaded.model, folder, str(loaded.model.config.backbone_fingerprint))
    return folder


def test_every_command_opens_the_model_of_the_bank(bank: Path, model: Path, tmp_path: Path) -> None:
    assert names(bank) == ModelNames(str(model), "none")
    assert memspan("ask", bank, QUESTION, "--max-new-tokens", 4).code == 0
    assert memspan("search", bank, "otter", "--selector", "router", "--json").json
    assert memspan("summarize", bank, "--max-new-tokens", 4).code == 0
    (tmp_path / "newt.txt").write_text("The newt of Bern swims at night.")
    assert memspan("add", bank, tmp_path / "newt.txt").code == 0
    assert memspan("update", bank, "notes/lynx.txt", tmp_path / "newt.txt").code == 0
    assert memspan("verify", bank, "--repair").code == 0
    assert memspan("reencode", bank, "--json").json["documents"] == 0, "it is its own model"
    info = memspan("info", bank, "--json").json
    assert (info["model"], info["adapter"]) == (str(model), "none")
    assert ModelChoice(None, None, None, None).load(tmp_path / "no-bank-yet", bank).path == model


def test_servers_open_it_too(bank: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi", reason="needs the extra 'serve'")
    pytest.importorskip("mcp", reason="needs the extra 'mcp'")
    opened: list[Path] = []

    class Tools:
        def __init__(self, loading: Any, *_: object) -> None:
            self.loading = loading

        def run(self, transport: str) -> None:
            assert transport == "stdio"
            served, _ = asyncio.run(self.loading.served())
            opened.append(served.memory("default").loaded.path)

    monkeypatch.setattr("memspan.serve.run.make_server", lambda loaded, *_: opened.append(loaded.path))
    monkeypatch.setattr("memspan.serve.run.run_server", lambda *_: None)
    monkeypatch.setattr("memspan.serve.mcp.loading_mcp", Tools)
    assert memspan("serve", f"notes={bank}").code == memspan("mcp", bank).code == 0
    assert opened == [model, model]


def test_an_empty_bank_remembers_the_model_that_made_it(model: Path, tmp_path: Path) -> None:
    Memory.open(tmp_path / "new", model, create=True).close()
    with Memory.open(tmp_path / "new") as memory:
        assert memory.loaded.path == model and memory.loaded.adapter is None


def test_the_adapter_is_remembered_too(bank: Path, model: Path, tmp_path: Path) -> None:
    adapter = trained(model, tmp_path / "adapter")
    assert memspan("reencode", bank, "--model", model, "--adapter", adapter, "--json").json["documents"] == 3
    assert names(bank) == ModelNames(str(model), str(adapter))
    with Memory.open(bank) as memory:
        assert memory.loaded.adapter == adapter and memory.ask(QUESTION).evidence
    with pytest.raises(BankMismatch):
        Memory.open(bank, adapter="none")
    shutil.rmtree(adapter)
    message = failed("ask", bank, QUESTION)
    assert f"was made with the adapter in {adapter}, which is not there" in message and "--adapter DIR" in message


def test_what_was_told_counts(bank: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_backbone(tmp_path / "plain", seed=5)
    other = tmp_path / "other"
    convert(str(tmp_path / "plain"), other, dtype=torch.float32, chunk_size=4, top_k_docs=2)
    assert "another model" in failed("ask", bank, QUESTION, "--model", other)
    monkeypatch.setenv("MEMSPAN_MODEL", str(other))
    assert "another model" in failed("ask", bank, QUESTION)
    assert memspan("reencode", bank, "--json").json["documents"] == 3
    monkeypatch.delenv("MEMSPAN_MODEL")
    assert names(bank) == ModelNames(str(other), "none"), "and the bank is that model's now"
    assert memspan("ask", bank, QUESTION, "--max-new-tokens", 4).code == 0


def test_a_model_that_moved_is_named_with_the_remedy(bank: Path, model: Path, notes: Path, tmp_path: Path) -> None:
    moved = model.rename(tmp_path / "moved")
    for command in (("ask", bank, QUESTION), ("reencode", bank), ("add", bank, notes)):
        message = failed(*command)
        assert f"was made with the model in {model}, which is not there any more" in message
        assert "--model DIR --adapter none" in message and f"memspan reencode {bank}" in message
    with pytest.raises(CheckpointError, match="model= and adapter="):
        Memory.open(bank)
    assert memspan("ask", bank, QUESTION, "--model", moved, "--max-new-tokens", 4).code == 0
    assert names(bank) == ModelNames(str(model), "none"), "asking changes nothing"
    assert memspan("add", bank, notes, "--model", moved).code == 0
    assert names(bank) == ModelNames(str(moved), "none")
    assert memspan("search", bank, "otter", "--selector", "router", "--json").json


def test_a_bank_of_before_opens_as_before(
    bank: Path, model: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(bank / "catalog.sqlite")) as catalog, catalog:
        catalog.execute("DROP TABLE model")
    assert names(bank) is None and "model" not in memspan("info", bank, "--json").json
    opened: list[object] = []
    monkeypatch.setattr("memspan.generate.memory.load", lambda path, **_: opened.append(path) or load(model))
    with Memory.open(bank) as memory:
        assert opened == [None] and memory.search("otter"), "the default model, which fits here"
    assert memspan("add", bank, notes, "--model", model).code == 0
    assert names(bank) == ModelNames(str(model), "none")


def test_a_reader_of_before_passes_the_table_over(bank: Path) -> None:
    with closing(TextBank.open(bank)) as opened:
        assert not opened.catalog.read_manifest().keys() & {"model", "adapter"}, "it would be called damaged"
    assert memspan("verify", bank, "--json").json == {"faults": []}


def test_an_exported_bank_keeps_the_name_of_its_model(bank: Path, tmp_path: Path) -> None:
    assert memspan("export", bank, tmp_path / "whole").code == 0
    assert memspan("import", tmp_path / "whole", tmp_path / "copy").code == 0
    assert names(tmp_path / "copy") == names(bank) is not None
    assert memspan("ask", tmp_path / "copy", QUESTION, "--max-new-tokens", 4).code == 0


@pytest.mark.parametrize("name", BACKBONES)
def test_a_known_model_is_remembered_by_name(name: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, adapter = load(checkpoint, device="cpu"), BACKBONES[name].adapter
    for module in ("convert", "loaded"):
        found = f"memspan.model.{module}.known_folder"
        monkeypatch.setattr(found, lambda of: checkpoint if of == name else Path(of))
    named = LoadedModel(plain.model, plain.template, checkpoint, SHIPPED / adapter).names
    assert named == ModelNames(name, adapter)
    again = load(name, adapter="none", device="cpu")
    assert again.path == checkpoint and again.names == ModelNames(name, "none")
    assert LoadedModel(plain.model, plain.template, Path("nowhere")).names is None
