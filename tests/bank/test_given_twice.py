"""An id that is given twice in one call: the same document again is one; one that differs is an error, or is named."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memspan.bank import add
from memspan.bank.add import add_documents, import_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.verify import verify
from memspan.errors import CorpusError, DuplicateDocument
from memspan.generate.memory import Memory
from memspan.model.convert import LoadedModel
from memspan.text.corpus import found_documents, read_paths, read_stream
from memspan.types import Document, Skipped

OTTER = Document("a", "The otter lives in Rome.", "Otter", {"n": 1}, "2026-01-01")
DIFFERENT = {
    "text": {"text": "The otter lives in Oslo."},
    "title": {"title": "Lutra"},
    "metadata": {"metadata": {"n": 2}},
    "type of a value": {"metadata": {"n": "1"}},
    "date": {"date": "2026-01-02"},
}


def _fillers(count: int) -> list[Document]:
    return [Document(f"filler {number}", f"number {number}") for number in range(count)]


def _held(bank: MemoryBank) -> list[Document]:
    return [stored.document for stored in bank.catalog.sources("default")]


@pytest.mark.parametrize("was_there", [False, True])
@pytest.mark.parametrize("between", [0, 3, 40])
@pytest.mark.parametrize("what", DIFFERENT)
def test_a_document_that_differs_is_an_error_however_far_behind_and_the_first_stays(
    bank: MemoryBank, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, what: str, between: int, was_there: bool
) -> None:
    monkeypatch.setattr(add, "_WINDOW_DOCUMENTS", 5)
    if was_there:
        add_documents(bank, loaded, [replace(OTTER, text="What was there before.")])
    given = [OTTER, *_fillers(between), replace(OTTER, **DIFFERENT[what]), Document("later", "never read")]
    with pytest.raises(DuplicateDocument, match=f"'a' is given twice, to document 1 and .* to document {between + 2}"):
        add_documents(bank, loaded, iter(given), later=True)
    assert {document.external_id for document in _held(bank)} == {"a", *(one.external_id for one in given[1:-2])}
    assert OTTER in _held(bank) and verify(bank) == []


@pytest.mark.parametrize("existing", ["replace", "refuse", "renew"])
@pytest.mark.parametrize("between", [0, 3, 40])
def test_the_same_document_again_is_one(
    bank: MemoryBank, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, between: int, existing: Any
) -> None:
    monkeypatch.setattr(add, "_WINDOW_DOCUMENTS", 5)
    given = [OTTER, *_fillers(between), OTTER, OTTER]
    report = add_documents(bank, loaded, iter(given), existing=existing)
    assert (report.added, report.unchanged, report.documents) == (between + 1, 2, between + 1)
    assert len(_held(bank)) == between + 1


def test_a_later_call_replaces_and_may_repeat(bank: MemoryBank, loaded: LoadedModel) -> None:
    add_documents(bank, loaded, [OTTER])
    newer = replace(OTTER, text="It moved.")
    assert add_documents(bank, loaded, [newer, newer]).updated == 1
    assert _held(bank) == [newer]


def test_ten_thousand_documents_later(bank: MemoryBank, loaded: LoadedModel) -> None:
    def stream() -> Iterator[Document]:
        yield OTTER
        for number in range(10_000):
            yield Document(f"filler {number % 50}", f"the same again {number % 50}")
        yield replace(OTTER, text="another")

    with pytest.raises(DuplicateDocument, match=r"document 1 and .* document 10002"):
        add_documents(bank, loaded, stream(), later=True)


# --- Python's lists -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", DIFFERENT)
def test_of_a_list_nothing_is_added_where_two_differ(memory: Memory, what: str) -> None:
    given = [Document("b", "text"), OTTER, replace(OTTER, **DIFFERENT[what])]
    with pytest.raises(DuplicateDocument, match="documents 1 and 2 of the list differ and have one id, 'a'"):
        memory.add(given)
    assert len(memory) == 0


def test_of_a_list_the_same_is_one_and_texts_by_themselves_have_the_last_metadata(memory: Memory) -> None:
    assert memory.add([OTTER, OTTER]).added == 1
    memory.add(["one text", "one text"], metadatas=[{"n": 1}, {"n": 2}])
    assert [document.metadata for document in memory.list()] == [{"n": 1}, {"n": 2}]


def test_a_generator_is_an_error_where_it_gets_there(memory: Memory) -> None:
    with pytest.raises(DuplicateDocument, match="'a' is given twice"):
        memory.add(document for document in (OTTER, replace(OTTER, text="x")))
    assert memory.list() == [OTTER]


# --- files ----------------------------------------------------------------------------------------------------------


def _records(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def _read(*paths: Path) -> tuple[list[Document], list[Skipped]]:
    skipped: list[Skipped] = []
    return list(found_documents(skipped, read_paths(paths))), skipped


@pytest.mark.parametrize("change", [{"text": "two"}, {"title": "T"}, {"tag": "x"}, {"date": "2026-01-02"}])
def test_a_record_that_differs_is_skipped_by_name(tmp_path: Path, change: dict[str, Any]) -> None:
    record, other = {"id": "a", "text": "one", "date": "2026-01-01"}, tmp_path / "three.jsonl"
    for paths in (
        [_records(tmp_path / "one.jsonl", record, {"id": "b", "text": "x"}, record | change)],
        [_records(tmp_path / "two.jsonl", record, {"id": "b", "text": "x"}), _records(other, record | change)],
    ):
        documents, (skipped,) = _read(*paths)
        assert [document.external_id for document in documents] == ["a", "b"]
        assert "document 3 has the id 'a' as document 1, and differs" in skipped.reason
        assert documents[0].text == "one"


def test_a_record_that_is_the_same_in_another_file_is_one(tmp_path: Path) -> None:
    record = {"id": "a", "text": "one", "tags": ["x", {"y": None}]}
    one, two = _records(tmp_path / "one.jsonl", record, record), _records(tmp_path / "two.jsonl", record)
    documents, skipped = _read(one, two, one)
    assert (len(documents), skipped) == (1, [])


def test_rows_of_a_table_and_standard_input_have_the_same_rule(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("id,text\na,one\nb,two\na,one\na,three\n", "utf-8")
    documents, (skipped,) = _read(table)
    assert [document.text for document in documents] == ["one", "two"] and "document 4" in skipped.reason
    lines = '{"id": "a", "text": "one"}\n{"id": "a", "text": "two"}\n'
    skipped_lines: list[Skipped] = []
    assert len(list(found_documents(skipped_lines, read_stream(io.StringIO(lines))))) == 1 and len(skipped_lines) == 1


# --- exported lines -------------------------------------------------------------------------------------------------


def _line(**changes: Any) -> str:
    values = {"namespace": "x", "external_id": "a", "title": "", "text": "one", "date": None, "metadata": {}}
    return json.dumps(values | changes) + "\n"


def test_lines_that_differ_and_have_one_id_are_named_also_with_other_namespaces_between(
    bank: MemoryBank, loaded: LoadedModel
) -> None:
    lines = _line() + _line(namespace="y", text="two") + _line() + _line(external_id="b") + _line(text="three")
    with pytest.raises(CorpusError, match="lines 1 and 5 have one id, 'a', and differ"):
        import_documents(bank, loaded, io.StringIO(lines))
    assert [stored.document.text for stored in bank.catalog.sources("x")] == ["one", "one"]
    assert import_documents(bank, loaded, io.StringIO(_line() + _line() + _line(namespace="y"))).unchanged == 2
