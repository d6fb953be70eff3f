from __future__ import annotations

import dataclasses
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import commit_texts

from memspan.bank import edits
from memspan.bank.catalog import DEFAULT_NAMESPACE, Catalog
from memspan.bank.edits import NewDocument, NewSource
from memspan.bank.folder import WrittenSegments
from memspan.bank.scope import Scope
from memspan.bank.segment import RowLocation, SegmentFiles
from memspan.bank.versions import SourceRows
from memspan.bank.words import WordIndex
from memspan.errors import BankError
from memspan.types import Document, Span

DEFAULT = DEFAULT_NAMESPACE
NEW, ONE, TWO, STAGED = "a" * 32, "b" * 32, "c" * 32, {"a": "d" * 32, "b": "e" * 32}
FILES = SegmentFiles(NEW, 1, 2, 0, 10, "a", 20, "b")


def _documents(texts: dict[str, str]) -> list[Document]:
    return [Document(external_id, text) for external_id, text in texts.items()]


def _found(catalog: Catalog, question: str, namespace: str = DEFAULT) -> list[int]:
    return [document_id for document_id, _ in catalog.search(namespace, question, 100)]


def _ids(catalog: Catalog, namespace: str = DEFAULT) -> list[int]:
    return [found.id for found in catalog.page(namespace, 0, 10_000)]


def _dump(path: Path) -> dict[str, list[Any]]:
    """Every row of the file, read by a connection of its own."""
    db = sqlite3.connect(path)
    tables = db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'")
    rows = {table: list(db.execute(f"SELECT * FROM {table}")) for (table,) in tables.fetchall()}
    db.close()
    return rows


# --- ids ------------------------------------------------------------------------------------------------------------


def test_ids_are_never_given_twice(catalog: Catalog) -> None:
    assert catalog.next_document_id() == 1
    seen: list[int] = []
    for round_ in range(5):
        # Every round replaces everything, so that no id is in use that was.
        ids = commit_texts(catalog, *_documents({"a": f"text {round_}", "b": f"other {round_}"}), parts=round_ + 1)
        assert not set(ids) & set(seen)
        seen += ids
        assert catalog.next_document_id() > max(seen)
        assert _ids(catalog) == ids
    path = catalog.path
    catalog.close()
    assert Catalog(path).next_document_id() == max(seen) + 1


def test_ids_that_were_skipped_stay_skipped(catalog: Catalog) -> None:
    commit_texts(catalog, Document("a", "text"), first_id=10)
    commit_texts(catalog, Document("b", "text"), first_id=7)  # reserved earlier, committed later
    assert catalog.next_document_id() == 11


def test_an_id_cannot_be_committed_twice(catalog: Catalog) -> None:
    commit_texts(catalog, Document("a", "text"))
    before = _dump(catalog.path)
    with pytest.raises(BankError, match="UNIQUE"):
        commit_texts(catalog, Document("b", "text"), first_id=1)
    assert _dump(catalog.path) == before


# --- updates --------------------------------------------------------------------------------------------------------


def test_an_update_hides_every_part_of_the_old_source(catalog: Catalog) -> None:
    old = commit_texts(catalog, Document("a", "zebra zebra zebra zebra", "Stripes"), parts=3)
    (bystander,) = commit_texts(catalog, Document("b", "zebra crossing"))
    new = commit_texts(catalog, Document("a", "giraffe giraffe", "Spots"), parts=2)
    assert _found(catalog, "zebra") == [bystander]
    assert _found(catalog, "stripes") == []
    assert _found(catalog, "giraffe spots") == new
    assert _ids(catalog) == [bystander, *new]
    assert [found.id for found in catalog.documents(DEFAULT, [*old, bystander, *new])] == [bystander, *new]


def test_a_source_replaced_within_one_commit_is_there_once_as_it_was_last(catalog: Catalog) -> None:
    first, second = commit_texts(catalog, Document("a", "zebra"), Document("a", "giraffe"))
    assert (_found(catalog, "zebra"), _found(catalog, "giraffe")) == ([], [second])
    assert [found.id for found in catalog.documents(DEFAULT, [first, second])] == [second]
    assert catalog.counts().sources == 1


def test_searching_after_updates_is_searching_a_bank_that_never_held_the_old_texts(tmp_path: Path) -> None:
    # The statistics behind the scores (documents, lengths, frequencies) must forget the old texts as well.
    generator = random.Random(0)
    words = [f"w{number}" for number in range(30)] + ["日本語", "don't", "Ümläut", "dogs"]

    def text() -> str:
        return " ".join(generator.choices(words, k=generator.randint(1, 25)))

    updated, fresh = (Catalog(tmp_path / name, create=True) for name in ("updated", "fresh"))
    for round_ in range(4):
        documents = [Document(f"d{number}", text(), text()) for number in range(round_, 40, round_ + 1)]
        commit_texts(updated, *documents, parts=1 + round_ % 3)
    for found in updated.page(DEFAULT, 0, 1000):
        commit_texts(fresh, Document(f"{found.id}", found.text, found.title), first_id=found.id)
    for word in words:
        for question in (word, f"{word} {generator.choice(words)}"):
            assert updated.search(DEFAULT, question, 100) == fresh.search(DEFAULT, question, 100), question
    assert updated.search(DEFAULT, "w0", 100)


# --- transactions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("database or disk is full"), MemoryError(), KeyboardInterrupt()]
)
@pytest.mark.parametrize("step", ["_insert_segments", "_insert", "_end", "insert", "remove"])
def test_a_commit_that_fails_leaves_nothing(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    commit_texts(catalog, *_documents({"a": "zebra one", "b": "zebra two"}))
    before, next_id = _dump(catalog.path), catalog.next_document_id()
    owner = next(owner for owner in (WordIndex, SourceRows, edits) if hasattr(owner, step))
    real, calls = getattr(owner, step), []

    def fail_late(*arguments: Any) -> Any:
        result = real(*arguments)
        calls.append(step)
        if len(calls) == {"_insert_segments": 1, "remove": 2, "_end": 2}.get(step, 3):
            raise error
        return result

    changes = _documents({"a": "giraffe one", "c": "giraffe three", "b": "giraffe two"})
    with monkeypatch.context() as patched:
        patched.setattr(owner, step, fail_late)
        with pytest.raises(BankError if isinstance(error, sqlite3.Error) else type(error)) as raised:
            commit_texts(catalog, *changes)
    if isinstance(error, sqlite3.Error):
        assert str(catalog.path) in str(raised.value)
        assert "disk is full" in str(raised.value)
    assert _dump(catalog.path) == before
    assert catalog.next_document_id() == next_id
    assert (_found(catalog, "zebra"), _found(catalog, "giraffe")) == ([1, 2], [])
    ids = commit_texts(catalog, *changes)  # the same connection goes on
    assert (_found(catalog, "zebra"), _found(catalog, "giraffe")) == ([], ids)


def test_a_locked_catalog_is_a_named_error(catalog: Catalog) -> None:
    commit_texts(catalog, Document("a", "zebra"))
    other = sqlite3.connect(catalog.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    catalog.connection.execute("PRAGMA busy_timeout = 0")
    with pytest.raises(BankError, match="locked"):
        commit_texts(catalog, Document("b", "zebra"))
    assert _found(catalog, "zebra") == [1], "readers go on"
    other.execute("ROLLBACK")
    other.close()
    assert commit_texts(catalog, Document("b", "zebra")) == [2]


# --- metadata and dates ---------------------------------------------------------------------------------------------


def test_relabelling_replaces_metadata_and_date_and_nothing_else(catalog: Catalog) -> None:
    (number,) = commit_texts(catalog, Document("a", "zebra", "Title", {"old": 1}, "2026-01-01"))
    (before,) = catalog.documents(DEFAULT, [number])
    changed = Document("a", "zebra", "Title", {"new": 2}, "2026-02-02")
    edits.add_sources(catalog, DEFAULT, [], WrittenSegments([], []), [changed])
    (after,) = catalog.documents(DEFAULT, [number])
    assert after == dataclasses.replace(before, metadata={"new": 2}, date="2026-02-02")
    assert catalog.hashes(DEFAULT, "a") == (changed.content_hash, changed.text_hash)
    assert catalog.ids_in_scope(DEFAULT, Scope.parse({"new": 2})).tolist() == [number]


def test_relabelling_reaches_neither_other_namespaces_nor_what_was_deleted(catalog: Catalog) -> None:
    commit_texts(catalog, Document("a", "text", metadata={"n": 1}))
    commit_texts(catalog, Document("a", "text", metadata={"n": 1}), namespace="other")
    edits.delete_sources(catalog, DEFAULT, ["a"])
    (kept,) = catalog.page("other", 0, 9)
    edits.add_sources(catalog, DEFAULT, [], WrittenSegments([], []), [Document("a", "text", metadata={"n": 2})])
    assert (catalog.page("other", 0, 9), catalog.page(DEFAULT, 0, 9)) == ([kept], [])


# --- deleting -------------------------------------------------------------------------------------------------------


def test_deleting_hides_every_part_of_a_source_and_nothing_else(catalog: Catalog) -> None:
    deleted = commit_texts(catalog, Document("a", "zebra zebra zebra", "Stripes"), parts=3)
    kept = commit_texts(catalog, Document("b", "zebra crossing"), Document("c", "a giraffe"))
    before = catalog.documents(DEFAULT, kept)
    edits.delete_sources(catalog, DEFAULT, ["a"])
    assert (_found(catalog, "zebra"), _found(catalog, "stripes")) == (kept[:1], [])
    assert catalog.documents(DEFAULT, [*deleted, *kept]) == catalog.page(DEFAULT, 0, 9) == before
    assert catalog.source(DEFAULT, "a") is catalog.hashes(DEFAULT, "a") is None


def test_deleting_in_one_namespace_leaves_the_same_name_in_another(catalog: Catalog) -> None:
    commit_texts(catalog, Document("a", "zebra"))
    (kept,) = commit_texts(catalog, Document("a", "zebra"), namespace="other")
    scores = catalog.search("other", "zebra", 9)
    edits.delete_sources(catalog, DEFAULT, ["a"])
    assert (_ids(catalog), _ids(catalog, "other")) == ([], [kept])
    assert catalog.search("other", "zebra", 9) == scores != []


def test_several_are_deleted_in_one_commit_and_unknown_names_passed_over(catalog: Catalog) -> None:
    commit_texts(catalog, *_documents({name: f"text {name}" for name in "abcd"}))
    before = catalog.commits()
    edits.delete_sources(catalog, DEFAULT, ["a", "unknown", "c"])
    assert [found.external_id for found in catalog.page(DEFAULT, 0, 9)] == ["b", "d"]
    assert catalog.commits() == before + 1
    edits.delete_sources(catalog, "no such namespace", ["a"])
    assert catalog.commits() == before + 1


def test_what_was_deleted_is_listed_by_segment_and_by_commit(catalog: Catalog) -> None:
    one = commit_texts(catalog, Document("a", "one two"), Document("b", "three"), parts=2)
    two = commit_texts(catalog, Document("c", "four"))
    start = catalog.commits()
    edits.delete_sources(catalog, DEFAULT, ["a"])
    middle = catalog.commits()
    edits.delete_sources(catalog, DEFAULT, ["c"])
    (first, _), (second, _) = catalog.segments(DEFAULT)
    assert (catalog.deleted_in_segment(first), catalog.deleted_in_segment(second)) == (one[:2], two)
    assert sorted(catalog.deleted_since(start)) == [(first, one[0]), (first, one[1]), (second, two[0])]
    assert catalog.deleted_since(middle) == [(second, two[0])]
    assert catalog.deleted_since(catalog.commits()) == []


def test_a_name_is_free_again_after_deleting(catalog: Catalog) -> None:
    (old,) = commit_texts(catalog, Document("a", "zebra"))
    edits.delete_sources(catalog, DEFAULT, ["a"])
    (new,) = commit_texts(catalog, Document("a", "zebra"))
    assert (_found(catalog, "zebra"), new > old) == ([new], True)


def test_searching_after_any_edits_is_searching_a_bank_that_never_held_what_is_gone(tmp_path: Path) -> None:
    generator = random.Random(1)
    words = [f"w{number}" for number in range(25)] + ["日本語", "don't", "Ümläut", "dogs"]

    def text() -> str:
        return " ".join(generator.choices(words, k=generator.randint(1, 25)))

    edited, fresh = (Catalog(tmp_path / name, create=True) for name in ("edited", "fresh"))
    for round_ in range(6):
        names = [f"d{number}" for number in generator.sample(range(30), 10)]
        commit_texts(edited, *(Document(name, text(), text()) for name in names), parts=1 + round_ % 3)
        edits.delete_sources(edited, DEFAULT, [f"d{number}" for number in generator.sample(range(30), 6)])
    for found in edited.page(DEFAULT, 0, 1000):
        commit_texts(fresh, Document(f"{found.id}", found.text, found.title), first_id=found.id)
    for word in words:
        for question in (word, f"{word} {generator.choice(words)}"):
            assert edited.search(DEFAULT, question, 100) == fresh.search(DEFAULT, question, 100), question
    assert edited.search(DEFAULT, "w0", 100)


def _steps(catalog: Catalog, do: Callable[[], object]) -> int:
    """Instructions that SQLite runs for something, those of the full-text index among them."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    catalog.connection.set_progress_handler(count, 1)
    do()
    catalog.connection.set_progress_handler(None, 0)
    return steps


@pytest.mark.parametrize("edit", ["delete", "update", "relabel"])
def test_an_edit_is_no_more_work_in_a_large_bank(tmp_path: Path, edit: str) -> None:
    steps: list[int] = []
    for size in (20, 2000):
        catalog = Catalog(tmp_path / str(size), create=True)
        commit_texts(catalog, *(Document(str(number), f"text number{number}") for number in range(size)))
        edits.rebuild_words(catalog, DEFAULT)
        do: dict[str, Callable[[], object]] = {
            "delete": lambda catalog=catalog: edits.delete_sources(catalog, DEFAULT, ["7"]),
            "update": lambda catalog=catalog: commit_texts(catalog, Document("7", "another text")),
            "relabel": lambda catalog=catalog: edits.add_sources(
                catalog, DEFAULT, [], WrittenSegments([], []), [Document("7", "text number7", metadata={"n": 1})]
            ),
        }
        steps.append(_steps(catalog, do[edit]))
        assert catalog.hashes(DEFAULT, "7") != (Document("7", "text number7").content_hash,) * 2
        catalog.close()
    assert 50 < steps[1] <= 1.2 * steps[0]


def test_looking_for_what_changed_is_no_more_work_in_a_large_bank(tmp_path: Path) -> None:
    steps: list[int] = []
    for size in (20, 2000):
        catalog = Catalog(tmp_path / str(size), create=True)
        commit_texts(catalog, *(Document(str(number), "text") for number in range(size)))
        edits.delete_sources(catalog, DEFAULT, ["5"])
        commit = catalog.commits()
        edits.delete_sources(catalog, DEFAULT, ["7"])
        steps.append(_steps(catalog, lambda c=catalog, commit=commit: (c.deleted_since(commit), c.segments(DEFAULT))))
        assert [number for _, number in catalog.deleted_since(commit)] == [8]
        catalog.close()
    assert 0 < steps[1] <= steps[0]


# --- segments -------------------------------------------------------------------------------------------------------


def test_replaced_segments_take_what_was_deleted_with_them(catalog: Catalog) -> None:
    gone, kept = commit_texts(catalog, *_documents({"a": "zebra", "b": "giraffe"}))
    edits.delete_sources(catalog, DEFAULT, ["a"])
    ((old, _),) = catalog.segments()
    (before,) = catalog.documents(DEFAULT, [kept])
    edits.replace_segments(catalog, DEFAULT, [old], WrittenSegments([FILES], [RowLocation(kept, NEW, 0, 2, 0)]))
    ((new, files),) = catalog.segments()
    assert (files, new > old) == (FILES, True)
    assert catalog.documents_in_segment(DEFAULT, new) == [before]
    assert {name: state for name, (state, _) in catalog.segment_states().items()} == {
        f"{gone:032x}": "retired",
        NEW: "live",
    }
    rows = _dump(catalog.path)
    assert [len(rows[table]) for table in ("sources", "texts", "documents")] == [1, 1, 1]
    assert gone not in [row[0] for row in rows["documents"]]


def test_a_deleted_source_is_forgotten_with_the_last_of_its_segments(catalog: Catalog) -> None:
    files = [dataclasses.replace(FILES, name=name) for name in (ONE, TWO)]
    parts = (NewDocument(1, Span(0, 2), 1), NewDocument(2, Span(2, 4), 1))
    places = [RowLocation(1, ONE, 0, 2, 0), RowLocation(2, TWO, 0, 2, 0)]
    edits.add_sources(catalog, DEFAULT, [NewSource(Document("a", "text"), parts)], WrittenSegments(files, places))
    edits.delete_sources(catalog, DEFAULT, ["a"])
    (first, _), (second, _) = catalog.segments()
    left: list[int] = []
    for segment in (first, second):
        edits.replace_segments(catalog, DEFAULT, [segment], WrittenSegments([], []))
        left.append(len(_dump(catalog.path)["texts"]))
    assert left == [1, 0]


def test_a_segment_is_not_taken_from_under_live_documents(catalog: Catalog) -> None:
    commit_texts(catalog, Document("a", "zebra"))
    ((number, _),) = catalog.segments()
    before = _dump(catalog.path)
    with pytest.raises(BankError, match="verify BANK --repair"):
        edits.replace_segments(catalog, DEFAULT, [number], WrittenSegments([], []))
    assert _dump(catalog.path) == before


def test_only_retired_segments_are_forgotten(catalog: Catalog) -> None:
    (number,) = commit_texts(catalog, Document("a", "zebra"))
    ((old, files),) = catalog.segments()
    edits.forget_segments(catalog, [files.name])
    assert [name for name in catalog.segment_states()] == [files.name]
    edits.replace_segments(catalog, DEFAULT, [old], WrittenSegments([FILES], [RowLocation(number, NEW, 0, 2, 0)]))
    edits.forget_segments(catalog, [files.name, NEW])
    assert list(catalog.segment_states()) == [NEW]


def test_rebuilding_the_full_text_index_changes_no_score(catalog: Catalog) -> None:
    commit_texts(catalog, *_documents({"a": "zebra zebra", "b": "zebra and giraffe", "c": "gnu gnu"}), parts=2)
    edits.delete_sources(catalog, DEFAULT, ["a"])
    before = [catalog.search(DEFAULT, word, 9) for word in ("zebra", "giraffe", "gnu")]
    edits.rebuild_words(catalog, DEFAULT)
    assert [catalog.search(DEFAULT, word, 9) for word in ("zebra", "giraffe", "gnu")] == before
    assert before[1] and before[2]


def test_a_namespace_is_forgotten_when_nothing_is_left_of_it(catalog: Catalog) -> None:
    for name in ("emptied", "full"):
        commit_texts(catalog, Document("a", "zebra"), namespace=name)
    edits.delete_sources(catalog, "emptied", ["a"])
    edits.drop_empty_namespaces(catalog)
    assert catalog.namespaces() == ["emptied", "full"], "its deleted document still has its rows"
    ((segment, files),) = catalog.segments("emptied")
    edits.replace_segments(catalog, "emptied", [segment], WrittenSegments([], []))
    edits.drop_empty_namespaces(catalog)
    assert catalog.namespaces() == ["emptied", "full"], "its segment still has its files"
    edits.forget_segments(catalog, [files.name])
    edits.drop_empty_namespaces(catalog)
    assert catalog.namespaces() == ["full"]
    assert _found(catalog, "zebra", "full") == [2]
    assert not [table for table in _dump(catalog.path) if table.startswith("words_1")]


# --- latents on their way -------------------------------------------------------------------------------------------


def _stage(catalog: Catalog, external_id: str, *ids: int) -> None:
    """Stage new latents of a source, cut into as many parts as there are ids."""
    source = catalog.source(DEFAULT, external_id)
    assert source is not None
    bounds = [len(source.document.text) * part // len(ids) for part in range(len(ids) + 1)]
    spans = [Span(bounds[part], bounds[part + 1]) for part in range(len(ids))]
    name = STAGED[external_id]
    places = [RowLocation(number, name, 5 * row, 5, 0) for row, number in enumerate(ids)]
    parts = tuple(NewDocument(number, span, 50) for number, span in zip(ids, spans, strict=True))
    files = dataclasses.replace(FILES, name=name)
    edits.stage(catalog, DEFAULT, [(source.id, NewSource(source.document, parts))], WrittenSegments([files], places))


def test_what_is_staged_is_seen_by_nobody_until_it_is_swapped_in(catalog: Catalog) -> None:
    kept, cut = commit_texts(catalog, *_documents({"a": "zebra", "b": "elephant gnu"}))
    edits.write_manifest(catalog, {"chunk_size": 1})
    before = (catalog.page(DEFAULT, 0, 9), catalog.segments(), catalog.counts(), _found(catalog, "gnu"))
    edits.stage_manifest(catalog, {"chunk_size": 2})
    _stage(catalog, "a", kept)
    _stage(catalog, "b", 7, 8)
    assert (catalog.page(DEFAULT, 0, 9), catalog.segments(), catalog.counts(), _found(catalog, "gnu")) == before
    assert (catalog.read_manifest(), catalog.staged_manifest()) == ({"chunk_size": 1}, {"chunk_size": 2})
    assert catalog.next_document_id() == 9, "ids that are staged are not given again"
    edits.publish_staged(catalog, {"chunk_size": 2})
    assert (catalog.read_manifest(), catalog.staged_manifest()) == ({"chunk_size": 2}, None)
    assert [(d.id, d.external_id, d.text, d.chunks) for d in catalog.page(DEFAULT, 0, 9)] == [
        (kept, "a", "zebra", 5),
        (7, "b", "elepha", 5),
        (8, "b", "nt gnu", 5),
    ]
    assert [files.name for _, files in catalog.segments()] == [STAGED["a"], STAGED["b"]]
    assert (_found(catalog, "zebra"), _found(catalog, "gnu"), _found(catalog, "elephant")) == ([kept], [8], [])
    assert catalog.documents(DEFAULT, [cut]) == []


def test_deleting_a_source_drops_what_is_staged_of_it(catalog: Catalog) -> None:
    one, two = commit_texts(catalog, *_documents({"a": "zebra", "b": "giraffe"}))
    edits.stage_manifest(catalog, {})
    _stage(catalog, "a", one)
    _stage(catalog, "b", two)
    edits.delete_sources(catalog, DEFAULT, ["a"])
    assert [wanted for *_, wanted in catalog.staged_segments(DEFAULT)] == [set(), {two}]
    edits.publish_staged(catalog, {})
    assert _ids(catalog) == [two]


def test_giving_up_retires_what_is_staged(catalog: Catalog) -> None:
    (number,) = commit_texts(catalog, Document("a", "zebra"))
    edits.stage_manifest(catalog, {"x": 1})
    _stage(catalog, "a", number)
    edits.stage_manifest(catalog, None)
    assert (catalog.staged_manifest(), catalog.staged_segments(DEFAULT)) == (None, [])
    assert catalog.segment_states()[STAGED["a"]] == ("retired", catalog.commits())
    assert _ids(catalog) == [number]
