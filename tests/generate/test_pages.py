"""The pages that evidence stands on: found, shown, cited, and kept over export, import and updates."""

from __future__ import annotations

import io
from contextlib import closing
from pathlib import Path

import pytest
from fpdf import FPDF
from helpers import tiny_loaded

from memspan.bank.add import import_documents
from memspan.bank.archive import export_bank, import_bank
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.lines import export_documents
from memspan.cli.render import evidence_line
from memspan.generate.memory import Memory
from memspan.model.convert import LoadedModel
from memspan.types import Document, Evidence

BEASTS = ("otter", "heron", "lynx", "badger")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded(max_document_tokens=64)


def pdf(path: Path, *pages: str) -> Path:
    made = FPDF()
    for text in pages:
        made.add_page()
        made.set_font("Helvetica", size=11)
        for number, line in enumerate(text.split("\n")):
            made.text(20, 50 + 6 * number, line)
    made.output(str(path))
    return path


def on_page(memory: Memory, word: str) -> Evidence:
    (found,) = memory.search(word, selector="lexical", limit=1)
    assert word in found.text
    return found


def test_a_passage_of_a_pdf_names_its_pages(tmp_path: Path, memory: Memory) -> None:
    texts = [f"The {beast} lives here.\nIt is known to all who live around." for beast in BEASTS]
    memory.add_files(pdf(tmp_path / "a.pdf", texts[0], "", *texts[1:]))
    found = {beast: on_page(memory, beast) for beast in BEASTS}
    pages = {beast: one.pages for beast, one in found.items()}
    assert {beast: one[0] if len(one) == 1 else one for beast, one in pages.items()} == {
        "otter": 1,
        "heron": 3,
        "lynx": 4,
        "badger": 5,
    }
    assert ", page 3, " in evidence_line(1, found["heron"])
    assert all(one.metadata["pages"] == 5 for one in found.values())


def test_a_passage_over_several_pages_names_them_all(tmp_path: Path, memory: Memory) -> None:
    memory.add_files(pdf(tmp_path / "a.pdf", "The otter", "and", "the lynx"))
    found = on_page(memory, "otter")
    assert found.pages == (1, 2, 3)
    assert ", pages 1-3, " in evidence_line(1, found)


def test_texts_without_pages_name_none(memory: Memory) -> None:
    memory.add([Document("a", "The otter\f lives here."), Document("b", "The heron", metadata={"pages": 300})])
    for word in ("otter", "heron"):
        assert on_page(memory, word).pages == ()
        assert "page" not in evidence_line(1, on_page(memory, word))


def test_new_metadata_keep_the_pages_and_a_new_text_has_none(tmp_path: Path, memory: Memory) -> None:
    memory.add_files(pdf(tmp_path / "a.pdf", "The otter", "The lynx"))
    (document,) = memory
    id = document.external_id
    memory.update(id, metadata={**document.metadata, "tag": "x"})
    assert on_page(memory, "lynx").pages == (1, 2)
    memory.update(id, text="The lynx alone")
    assert on_page(memory, "lynx").pages == ()


def test_pages_are_the_same_after_export_and_import(tmp_path: Path, memory: Memory, loaded: LoadedModel) -> None:
    memory.add_files(pdf(tmp_path / "a.pdf", "The otter", "The lynx"))
    lines = io.StringIO()
    export_documents(memory.bank, lines)
    export_bank(memory.bank, tmp_path / "bank.zip")
    import_bank(tmp_path / "bank.zip", tmp_path / "whole")
    with closing(MemoryBank.create(tmp_path / "lines", manifest_of(loaded))) as bank:
        lines.seek(0)
        import_documents(bank, loaded, lines)
    for name in ("whole", "lines"):
        with Memory(MemoryBank.open(tmp_path / name), loaded) as other:
            assert on_page(other, "lynx").pages == on_page(memory, "lynx").pages == (1, 2)
