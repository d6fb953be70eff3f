"""What the tests of all frameworks do with the page about them and with the examples."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from helpers import tiny_loaded

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.generate.memory import Memory
from memspan.types import Document

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "frameworks.md"


def run_docs(module: str, memory: Memory, note: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the one block of the page that imports a module, over a namespace that holds one note."""
    notes = memory.in_namespace("notes")
    notes.add([note])
    monkeypatch.setattr(Memory, "open", lambda folder: notes)
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    (code,) = [code for code in blocks if module in code]
    exec(compile(code, DOCS.name, "exec"), {})


def run_example(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run an example with a tiny model that has room for its notes."""
    loaded = tiny_loaded()
    loaded.model.config.text_config.max_position_embeddings = 8192
    monkeypatch.setattr(
        Memory, "open", lambda folder, create: Memory(MemoryBank.create(folder, manifest_of(loaded)), loaded)
    )
    monkeypatch.setattr("sys.argv", [name])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
