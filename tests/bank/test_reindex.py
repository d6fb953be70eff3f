"""Full-text indexes from before rules were recorded, and of other rules: searched, verified, made anew."""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
import torch
from helpers import add_latents, fill, make_first_index, random_latents, tiny_manifest

from memspan.bank import edits, words
from memspan.bank.archive import export_bank, import_bank
from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE
from memspan.bank.edits import NewDocument, NewSource
from memspan.bank.folder import WrittenSegments
from memspan.bank.texts import TextBank
from memspan.bank.verify import verify
from memspan.bank.words import outdated_namespaces
from memspan.errors import BankBusy
from memspan.text.terms import rules
from memspan.types import Document, Span

MANIFEST = tiny_manifest(num_kv_heads=1, head_dim=2)
NAMES = ("running", "Résumé", "node.js", "東京タワー", "don't", "snake_case", "O'Brien")


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """A closed bank of two namespaces, each document called by a word in its text."""
    torch.manual_seed(0)
    with closing(MemoryBank.create(tmp_path / "bank", MANIFEST)) as made:
        fill(made, *NAMES)
        fill(made, *NAMES[:2], namespace="other")
    return tmp_path / "bank"


@pytest.fixture
def old(bank: Path) -> Path:
    """The same with the indexes that a bank had before their rules were recorded."""
    with closing(TextBank.open(bank)) as opened:
        for namespace in opened.catalog.namespaces():
            make_first_index(opened.catalog, namespace)
    return bank


def found(bank: TextBank, question: str, namespace: str = DEFAULT_NAMESPACE) -> list[str]:
    ids = [document_id for document_id, _ in bank.catalog.search(namespace, question, 100)]
    return [stored.external_id for stored in bank.catalog.documents(namespace, ids)]


def outdated(folder: Path) -> list[str]:
    with closing(TextBank.open(folder)) as opened:
        return outdated_namespaces(opened.catalog)


def is_sound(folder: Path) -> bool:
    """Whether every index is that of the live documents, by the rules of this process."""
    with closing(TextBank.open(folder)) as opened:
        return all(
            not index.differs(opened.catalog.texts(namespace))
            for namespace in opened.catalog.namespaces()
            if (index := opened.catalog.word_index(namespace)) is not None
        )


QUESTIONS = [
    *((name, name) for name in NAMES),
    ("runs", "running"),
    ("resume", "Résumé"),
    ("What is running?", "running"),
    ("node js", "node.js"),
    ("snake case", "snake_case"),
    ("京タ", "東京タワー"),
    ("DON’T", "don't"),
]


@pytest.mark.parametrize(("question", "name"), QUESTIONS)
def test_an_index_from_before_is_searched(old: Path, question: str, name: str) -> None:
    with closing(TextBank.open(old)) as opened:
        assert found(opened, question) == [name]
    assert outdated(old) == ["default", "other"], "nothing was written"


@pytest.mark.parametrize(("question", "name"), QUESTIONS)
def test_made_anew_it_finds_the_same_and_more(old: Path, question: str, name: str) -> None:
    with closing(TextBank.open(old)) as opened:
        opened.reindex()
        assert found(opened, question) == [name]
        assert found(opened, "nodejs") == ["node.js"] and found(opened, "東") == ["東京タワー"]


@pytest.mark.parametrize(
    "question", ['"', "OR", "NEAR(a b)", "words:x", "\0", "\ud800", "of the", "?!", "'" * 1000, "東"]
)
def test_no_question_to_an_index_from_before_is_an_error(old: Path, question: str) -> None:
    with closing(TextBank.open(old)) as opened:
        found(opened, question)


def test_an_index_from_before_is_searched_where_nothing_can_be_written(old: Path) -> None:
    with closing(sqlite3.connect(old / "catalog.sqlite")) as db:
        db.execute("PRAGMA journal_mode = DELETE")
    before = (old / "catalog.sqlite").read_bytes()
    with closing(TextBank.open(old)) as opened:
        opened.catalog.execute("PRAGMA query_only = ON")
        assert found(opened, "resume") == ["Résumé"]
    assert (old / "catalog.sqlite").read_bytes()[100:] == before[100:]


@pytest.mark.parametrize("change", ["delete", "add", "replace", "compact", "reindex", "nothing"])
def test_the_first_writer_makes_indexes_anew(old: Path, change: str) -> None:
    torch.manual_seed(1)
    with closing(MemoryBank.open(old)) as opened:
        if change == "delete":
            opened.delete(["running"])
        elif change == "add":
            fill(opened, "new one", namespace="other")
        elif change == "replace":
            fill(opened, "running")
        elif change == "compact":
            opened.delete(["running"], namespace="other")
            opened.compact(secure=True)
        elif change == "reindex":
            opened.reindex()
        assert bool(found(opened, "running")) == (change != "delete")
        assert bool(found(opened, "running", "other")) == (change != "compact")
        assert verify(opened) == []
    assert outdated(old) == (["default", "other"] if change == "nothing" else [])
    assert is_sound(old) == (change != "nothing") or change == "nothing"


@pytest.mark.parametrize(
    "rule", ["terms 999, Unicode 99.0.0, Snowball 9.9.9", "terms 1, Unicode 15.1.0, Snowball 3.1.0"]
)
def test_an_index_of_another_version_is_searched_and_made_anew_by_a_writer(
    bank: Path, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = rules()
    with monkeypatch.context() as other, closing(TextBank.open(bank)) as opened:
        other.setattr(words, "rules", lambda: rule)
        opened.reindex()
        assert outdated_namespaces(opened.catalog) == []
    with closing(MemoryBank.open(bank)) as opened:
        assert outdated_namespaces(opened.catalog) == ["default", "other"]
        assert found(opened, "resume") == ["Résumé"] and found(opened, "nodejs") == ["node.js"]
        assert verify(opened) == []
        opened.delete(["running"])
        assert outdated_namespaces(opened.catalog) == []
        assert found(opened, "running") == [] and verify(opened) == []
    with closing(sqlite3.connect(bank / "catalog.sqlite")) as db:
        made = [sql for (sql,) in db.execute("SELECT sql FROM sqlite_schema WHERE sql LIKE '%fts5%'")]
    assert len(made) == 2 and all(present in sql for sql in made)


def test_reindexing_changes_nothing_but_the_index(bank: Path) -> None:
    with closing(MemoryBank.open(bank)) as opened:
        before = (opened.catalog.counts(), list(opened.catalog.sources(DEFAULT_NAMESPACE)), opened.manifest)
        files = {path.name: path.read_bytes() for path in (bank / "segments").iterdir()}
        scores = [opened.catalog.search(DEFAULT_NAMESPACE, question, 10) for question, _ in QUESTIONS]
        opened.reindex()
        opened.reindex()
        assert [opened.catalog.search(DEFAULT_NAMESPACE, question, 10) for question, _ in QUESTIONS] == scores
        assert (opened.catalog.counts(), list(opened.catalog.sources(DEFAULT_NAMESPACE)), opened.manifest) == before
    assert {path.name: path.read_bytes() for path in (bank / "segments").iterdir()} == files
    assert is_sound(bank)


def test_a_reader_goes_on_while_the_index_is_made_anew(old: Path) -> None:
    with closing(TextBank.open(old)) as reader, closing(TextBank.open(old)) as writer:
        with reader.pinned_catalog() as catalog:
            before = catalog.search(DEFAULT_NAMESPACE, "running", 5)
            writer.reindex()
            assert catalog.search(DEFAULT_NAMESPACE, "running", 5) == before
        assert found(reader, "nodejs") == ["node.js"]


def test_who_reindexes_while_another_writes_is_told_so(bank: Path) -> None:
    with closing(TextBank.open(bank)) as one, closing(TextBank.open(bank)) as other, one.writing():
        errors: list[BaseException] = []

        def reindex() -> None:
            try:
                other.reindex()
            except BankBusy as error:
                errors.append(error)

        thread = threading.Thread(target=reindex)
        thread.start()
        thread.join()
        assert len(errors) == 1


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM words_1_docsize WHERE id = (SELECT min(id) FROM words_1_docsize)",
        "INSERT INTO words_1 (rowid, words) VALUES (70, 'alien')",
        "DELETE FROM words_1_data",
        "DROP TABLE words_1",
    ],
)
def test_damage_of_an_index_from_before_is_found(old: Path, damage: str) -> None:
    with closing(sqlite3.connect(old / "catalog.sqlite")) as db:
        db.execute(damage)
        db.commit()
    with closing(MemoryBank.open(old)) as opened:
        assert [(fault.kind, fault.namespace) for fault in verify(opened)] == [("index", "default")]


def test_an_archive_keeps_the_rules_of_its_index(old: Path, tmp_path: Path) -> None:
    with closing(MemoryBank.open(old)) as opened:
        export_bank(opened, tmp_path / "bank.zip")
    with closing(import_bank(tmp_path / "bank.zip", tmp_path / "copy", lambda manifest: None)) as copy:
        assert found(copy, "resume") == ["Résumé"]
        copy.delete(["Résumé"])
        assert found(copy, "resume") == [] and verify(copy) == []
        assert dataclasses.asdict(copy.catalog.counts())["sources"] == len(NAMES) - 1 + 2


def test_the_index_of_former_versions_is_made_anew_with_the_other(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    with closing(MemoryBank.open(bank)) as opened:
        with opened.writer() as writer:
            add_latents(writer, Document("running", "another text"), random_latents(MANIFEST, 2))
            writer.commit()
        with monkeypatch.context() as other:
            other.setattr(words, "rules", lambda: "terms 0")
            opened.reindex()
        assert outdated_namespaces(opened.catalog) == ["default", "other"] and verify(opened) == []
        opened.delete(["node.js"])
        assert outdated_namespaces(opened.catalog) == [] and verify(opened) == []
        opened.delete(["running"])
        assert verify(opened) == []
        past = opened.catalog.past_word_index(DEFAULT_NAMESPACE)
        assert past is not None and not past.differs(opened.catalog.texts(DEFAULT_NAMESPACE, past=True))


def test_documents_that_are_not_encoded_yet_stay_in_an_index_made_anew(old: Path) -> None:
    with closing(TextBank.open(old)) as opened:
        with opened.writing():
            text = "a heron of Oslo"
            source = NewSource(Document("heron", text), (NewDocument(1000, Span(0, len(text)), 4),))
            edits.add_sources(opened.catalog, DEFAULT_NAMESPACE, [source], WrittenSegments((), ()))
        make_first_index(opened.catalog)
        assert found(opened, "herons") == ["heron"]
        opened.reindex()
        assert found(opened, "herons") == ["heron"] and found(opened, "nodejs") == ["node.js"]
    assert is_sound(old)
