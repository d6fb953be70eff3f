"""What the tests of the command share: a tiny checkpoint, some notes, a bank of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from command import memspan
from helpers import save_backbone

from memspan.model.convert import convert


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "plain"
    save_backbone(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(plain: Path) -> Path:
    folder = plain.parent / "msa"
    convert(str(plain), folder, dtype=torch.float32, chunk_size=4, top_k_docs=2)
    return folder


@pytest.fixture(autouse=True)
def _environment(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MEMSPAN_MODEL", str(checkpoint))
    monkeypatch.setenv("MEMSPAN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A folder of three small notes."""
    return _write_notes(tmp_path / "notes")


def _write_notes(folder: Path) -> Path:
    folder.mkdir()
    for name, text in (
        ("otter.txt", "The otter of Rome lives at number seven."),
        ("heron.md", "# Heron\n\nThe heron of Oslo fishes at dawn."),
        ("lynx.txt", "The lynx of Quito sleeps all day."),
    ):
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def _made_bank(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMSPAN_MODEL", str(checkpoint))
        assert memspan("add", folder / "bank", _write_notes(folder / "notes")).code == 0
    return folder / "bank"


@pytest.fixture
def bank(notes: Path, _made_bank: Path, tmp_path: Path) -> Path:
    """A bank of the notes: what `memspan add` makes of them."""
    return Path(shutil.copytree(_made_bank, tmp_path / "bank"))


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a model is loaded."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    for module in ("generate.memory", "cli.models", "model.convert"):
        monkeypatch.setattr(f"memspan.{module}.load", load)
    monkeypatch.setattr("memspan.cli.choices.ModelChoice.load", load)
