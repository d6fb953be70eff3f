"""`reencode`: the bank that a new model would have made of the same texts; resumable, the old one serving meanwhile."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from helpers import FORK, bits, read_bank, read_latents, tiny_loaded, watch_encoding

from memspan.bank import edits
from memspan.bank.add import AddReport, add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE, StoredDocument
from memspan.bank.edits import NewDocument
from memspan.bank.encode import Part, encode_batch, manifest_of
from memspan.bank.reencode import reencode
from memspan.bank.verify import verify
from memspan.config import TEMPLATES
from memspan.errors import BankBusy, BankError, BankMismatch
from memspan.generate.memory import Memory
from memspan.model.convert import LoadedModel
from memspan.text.parts import split_document
from memspan.types import Document

OTHER = "other"
MAX_TOKENS = 64
LONG = " ".join(f"word number {number} of a text that is cut." for number in range(5))
CORPUS = [
    Document("titled", "alpha beta", "Title", {"project": "x"}, "2026-03-01"),
    Document("long", LONG, metadata={"k": [1, None, "ü"]}),
    Document("gone", "gamma delta"),
    Document("short", "the text"),
    Document("middling", LONG[:60]),
]
THEIRS = [Document("long", LONG[20:]), Document("private", "epsilon")]
# Forked, not spawned: a new interpreter takes seconds to import torch.

Stop = dict[str, Any]


@pytest.fixture(autouse=True)
def _encoded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every document is encoded in a batch of its own: in another batch its last bits may be others."""
    monkeypatch.setattr("memspan.bank.encode.batches", lambda parts, tokens: [[part] for part in parts])


@pytest.fixture(scope="module")
def old() -> LoadedModel:
    return tiny_loaded(max_document_tokens=MAX_TOKENS)


@pytest.fixture(scope="module")
def new() -> LoadedModel:
    return tiny_loaded(seed=1, max_document_tokens=MAX_TOKENS)


@pytest.fixture
def bank(tmp_path: Path, old: LoadedModel) -> Iterator[MemoryBank]:
    """Two namespaces; texts in parts; one deleted."""
    bank = MemoryBank.create(tmp_path / "bank", manifest_of(old))
    add_documents(bank, old, CORPUS)
    add_documents(bank, old, THEIRS, namespace=OTHER)
    bank.delete(["gone"])
    yield bank
    bank.close()


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch, new: LoadedModel) -> list[str]:
    """What `new` encodes from here on, in its template."""
    return watch_encoding(monkeypatch, new)


def _stop_after(batches: int) -> Stop:
    """Options that let a run commit after every window of one source, and end it after some batches."""
    told: list[AddReport] = []
    return {
        "batch_tokens": 1,
        "commit_seconds": 0.0,
        "progress": told.append,
        "should_stop": lambda: len(told) >= batches,
    }


def _assert_is_of(bank: MemoryBank, loaded: LoadedModel) -> None:
    """A healthy bank, whose every document is cut and encoded as the model does it now."""
    assert bank.manifest == manifest_of(loaded)
    assert verify(bank) == []
    for namespace in bank.catalog.namespaces():
        for stored, *latents in read_bank(bank, namespace):
            assert tuple(latents) == _fresh(loaded, stored), stored.external_id
            assert stored.tokens == len(loaded.template.document(stored.id, stored.encoded_text))
        for source in bank.catalog.sources(namespace):
            spans = split_document(source.document, loaded.template, loaded.model.config.max_document_tokens)
            parts = bank.catalog.documents_of(namespace, source.document.external_id)
            assert [part.span for part in parts] == spans
    assert bank.catalog.value("SELECT count(*) FROM staged") == 0
    assert bank.catalog.staged_manifest() is None


def _fresh(loaded: LoadedModel, stored: StoredDocument) -> tuple[bytes, bytes]:
    """The latents that the model computes for a document now."""
    tokens = loaded.template.document(stored.id, stored.encoded_text)
    part = Part(NewDocument(stored.id, stored.span, len(tokens)), tokens, 0)
    encode_batch(loaded, [part])
    assert part.latents is not None
    return bits(part.latents)


def _documents(bank: MemoryBank) -> dict[str, list[Document]]:
    return {
        namespace: [source.document for source in bank.catalog.sources(namespace)]
        for namespace in bank.catalog.namespaces()
    }


def _ids(bank: MemoryBank, namespace: str = DEFAULT_NAMESPACE) -> dict[str, list[int]]:
    return {
        source.document.external_id: [
            part.id for part in bank.catalog.documents_of(namespace, source.document.external_id)
        ]
        for source in bank.catalog.sources(namespace)
    }


def _everything(bank: MemoryBank) -> list[Any]:
    return [
        (read_bank(bank, namespace), bank.catalog.search(namespace, "the text alpha word of cut", 50))
        for namespace in bank.catalog.namespaces()
    ]


def _segment_files(bank: MemoryBank) -> set[str]:
    return {path.name for path in (bank.folder / "segments").iterdir()}


def _sweep(bank: MemoryBank) -> None:
    with bank.locked():
        pass


# --- the result -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"chunk_size": 8},
        {"similarity": "dot"},
        {"msa_layers": [3]},
        {"template": "other"},
        {"max_document_tokens": 40},
        {"max_document_tokens": 400},
        {"seed": 2, "chunk_size": 3, "max_document_tokens": 50},
    ],
    ids=str,
)
def test_the_bank_becomes_the_one_that_the_new_model_would_have_made(
    bank: MemoryBank, tmp_path: Path, changes: dict[str, Any]
) -> None:
    if "template" in changes:
        spec = dataclasses.replace(TEMPLATES["chatml"], document_prefix="Document {id}: ", document_suffix=" ({id})")
        changes = {"template": dataclasses.asdict(spec)}
    new = tiny_loaded(**{"max_document_tokens": MAX_TOKENS, **changes})
    documents, ids = _documents(bank), _ids(bank)
    spans = {name: [part.span for part in bank.catalog.documents_of(DEFAULT_NAMESPACE, name)] for name in ids}
    highest = bank.catalog.next_document_id() - 1
    reencode(bank, new)
    for handle in (bank, MemoryBank.open(bank.folder)):
        _assert_is_of(handle, new)
        assert _documents(handle) == documents
    for name, parts in _ids(bank).items():
        cut = [part.span for part in bank.catalog.documents_of(DEFAULT_NAMESPACE, name)]
        assert parts == ids[name] if cut == spans[name] else min(parts) > highest
    built = MemoryBank.create(tmp_path / "built", manifest_of(new))
    for namespace, given in documents.items():
        add_documents(built, new, given, namespace=namespace)
        found, expected = (
            [
                (d.external_id, d.span, d.text, d.title, d.metadata)
                for name in sorted(_ids(each, namespace))
                for d in each.catalog.documents_of(namespace, name)
            ]
            for each in (bank, built)
        )
        assert found == expected
        for question in ("the text", "alpha", "word number 3 of a text", "epsilon private"):
            scores = [
                sorted(round(score, 9) for _, score in each.catalog.search(namespace, question, 99))
                for each in (bank, built)
            ]
            assert scores[0] == scores[1]
    assert len(_segment_files(bank)) == 2 * len(bank.catalog.segments())


def test_a_reencoded_bank_goes_on_as_any_other(bank: MemoryBank, new: LoadedModel, old: LoadedModel) -> None:
    reencode(bank, new)
    with pytest.raises(BankMismatch):
        add_documents(bank, old, [Document("late", "text")])
    report = add_documents(bank, new, [*CORPUS[:2], Document("late", "text")])
    assert (report.added, report.unchanged) == (1, 2)
    add_documents(bank, new, [Document("long", LONG + " more")])
    bank.delete(["short"])
    bank.compact(secure=True)
    _assert_is_of(bank, new)
    reencode(bank, old)
    _assert_is_of(bank, old)


def test_a_bank_that_fits_already_is_left_alone(bank: MemoryBank, old: LoadedModel) -> None:
    bank.catalog.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = {path: path.read_bytes() for path in bank.folder.rglob("*.s*") if not path.name.endswith("-shm")}
    commits = bank.catalog.commits()
    report = reencode(bank, old)
    assert (report.documents, report.updated, report.interrupted) == (0, 0, False)
    assert bank.catalog.commits() == commits
    assert {path: path.read_bytes() for path in before} == before
    assert len(before) == 6


def test_an_empty_bank_takes_the_new_manifest(tmp_path: Path, old: LoadedModel, new: LoadedModel) -> None:
    bank = MemoryBank.create(tmp_path / "bank", manifest_of(old))
    reencode(bank, new)
    _assert_is_of(bank, new)
    add_documents(bank, new, CORPUS)
    _assert_is_of(bank, new)


def test_the_report_counts_what_was_encoded(bank: MemoryBank, new: LoadedModel, encoded: list[str]) -> None:
    report = reencode(bank, new)
    counts = bank.catalog.counts()
    assert (report.updated, report.documents) == (counts.sources, counts.documents) == (6, len(encoded))
    assert (report.tokens, report.chunks) == (counts.tokens, counts.chunks)
    assert not any("gamma" in text for text in encoded), "what was deleted is not encoded"


def test_only_the_writer_reencodes(bank: MemoryBank, new: LoadedModel) -> None:
    with MemoryBank.open(bank.folder).locked(), pytest.raises(BankBusy, match=f"pid {os.getpid()}"):
        reencode(bank, new)


# --- the old bank serves meanwhile ----------------------------------------------------------------------------------


def test_the_old_bank_answers_until_the_swap_and_says_so_afterwards(
    bank: MemoryBank, old: LoadedModel, new: LoadedModel
) -> None:
    memory = Memory(MemoryBank.open(bank.folder), old)
    pinned = Memory(MemoryBank.open(bank.folder), old, snapshot=True)
    question = "what of the alpha text?"
    before = (_everything(memory.bank), memory.search(question, selector="router"), memory.ask(question).text)
    seen: list[bool] = []

    def look(report: AddReport) -> None:
        now = (_everything(memory.bank), memory.search(question, selector="router"), memory.ask(question).text)
        seen.append(now == before)

    reencode(bank, new, batch_tokens=1, commit_seconds=0.0, progress=look)
    assert seen
    assert all(seen)
    for _ in range(2):
        with pytest.raises(BankMismatch, match="open it again"):
            memory.ask(question)
    with pytest.raises(BankMismatch):
        memory.add([Document("late", "text")])
    assert pinned.search(question, selector="router") == before[1]
    assert pinned.ask(question).text == before[2]
    pinned.close()
    _sweep(bank)
    assert len(_segment_files(bank)) == 2 * len(bank.catalog.segments()), "what the snapshot held is gone with it"
    with pytest.raises(BankMismatch, match="encoder_fingerprint"):
        Memory(MemoryBank.open(bank.folder), old)
    assert Memory(MemoryBank.open(bank.folder), new).ask(question).evidence


# --- interrupted and continued --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [1, 4, 7])
def test_a_stopped_run_changes_nothing_that_is_seen_and_continues_with_what_it_has(
    bank: MemoryBank, old: LoadedModel, new: LoadedModel, encoded: list[str], batches: int
) -> None:
    before, documents = _everything(bank), _documents(bank)
    first = reencode(bank, new, **_stop_after(batches))
    assert first.interrupted
    assert (_everything(bank), verify(bank), bank.manifest) == (before, [], manifest_of(old))
    with closing(MemoryBank.open(bank.folder)) as reopened:
        second = reencode(reopened, new)
        assert not second.interrupted
        lost = len(encoded) - reopened.catalog.counts().documents
        _assert_is_of(reopened, new)
        assert _documents(reopened) == documents
    assert first.updated + second.updated == 6, "nothing is staged twice"
    assert lost == (3 if batches == 4 else 0), "only the parts of the source that it was stopped in are encoded again"


def test_every_source_that_was_staged_is_encoded_once_however_often_it_is_stopped(
    bank: MemoryBank, new: LoadedModel, encoded: list[str]
) -> None:
    short = [Document(f"short {number}", f"text {number}") for number in range(5)]
    bank.delete([source.document.external_id for source in bank.catalog.sources(DEFAULT_NAMESPACE)])
    bank.delete([source.document.external_id for source in bank.catalog.sources(OTHER)], OTHER)
    add_documents(bank, tiny_loaded(max_document_tokens=MAX_TOKENS), short)
    runs = 0
    while reencode(bank, new, **_stop_after(1)).interrupted:
        runs += 1
        assert runs < 20
    assert runs >= 4
    assert len(encoded) == len(set(encoded)) == 5
    _assert_is_of(bank, new)


@pytest.mark.parametrize("after", [1, 3, 6])
def test_an_error_of_the_model_loses_nothing_that_was_staged(
    bank: MemoryBank, new: LoadedModel, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    before, calls, real = _everything(bank), [0], new.model.encode

    def failing(documents: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise RuntimeError("out of memory")
        return real(documents)

    with monkeypatch.context() as patched:
        patched.setattr(new.model, "encode", failing)
        with pytest.raises(RuntimeError):
            reencode(bank, new, batch_tokens=1, commit_seconds=0.0)
    assert (_everything(bank), verify(bank)) == (before, [])
    encoded = watch_encoding(monkeypatch, new)
    reencode(bank, new)
    assert len(encoded) == bank.catalog.counts().documents - {1: 1, 3: 1, 6: 6}[after], "whole sources are kept"
    _assert_is_of(bank, new)


def _reencode_and_die(folder: Path, loaded: LoadedModel, at: int) -> None:
    calls = [0]

    def progress(report: AddReport) -> None:
        calls[0] += 1
        if calls[0] == at:
            os._exit(9)

    reencode(MemoryBank.open(folder), loaded, batch_tokens=1, commit_seconds=0.0, progress=progress)


@pytest.mark.parametrize("at", [2, 8])
def test_a_killed_run_is_continued(bank: MemoryBank, new: LoadedModel, encoded: list[str], at: int) -> None:
    before = _everything(bank)
    child = FORK.Process(target=_reencode_and_die, args=(bank.folder, new, at))
    child.start()
    child.join(60)
    assert child.exitcode == 9
    assert (_everything(bank), verify(bank)) == (before, [])
    reencode(bank, new)
    assert len(encoded) == bank.catalog.counts().documents - {2: 1, 8: 7}[at], "it began with what the other had done"
    _assert_is_of(bank, new)


def test_what_changed_between_two_runs_is_in_the_result_as_it_is_now(
    bank: MemoryBank, old: LoadedModel, new: LoadedModel, encoded: list[str]
) -> None:
    reencode(bank, new, **_stop_after(7))
    staged = {
        name
        for (name,) in bank.catalog.read("SELECT external_id FROM sources WHERE id IN (SELECT source_id FROM staged)")
    }
    assert {"titled", "long"} <= staged
    assert "middling" not in staged
    add_documents(bank, old, [Document("late", "a new one"), Document("titled", "alpha beta gamma", "Title")])
    add_documents(bank, old, [Document("short", "the text", metadata={"only": "metadata"}, date="2020-01-01")])
    add_documents(bank, old, [Document("middling", LONG[:70])])
    add_documents(bank, old, [Document("elsewhere", "in a new namespace")], namespace="third")
    bank.delete(["long"])
    bank.delete(["long"], OTHER)
    documents, ids = _documents(bank), _ids(bank)
    assert verify(bank) == []
    encoded.clear()
    reencode(bank, new)
    counts = bank.catalog.counts()
    assert len(encoded) == counts.documents + counts.past_documents - 1, "`short` was staged, and has the same text"
    assert counts.past_documents > 1
    _assert_is_of(bank, new)
    assert _documents(bank) == documents
    assert _ids(bank) == ids
    assert bank.catalog.counts(OTHER).sources == bank.catalog.counts("third").sources == 1


@pytest.mark.parametrize("secure", [False, True])
def test_compacting_between_two_runs_keeps_what_is_staged(
    bank: MemoryBank, new: LoadedModel, encoded: list[str], secure: bool
) -> None:
    reencode(bank, new, **_stop_after(7))
    staged = bank.catalog.value("SELECT count(*) FROM staged")
    bank.delete(["titled"])
    bank.compact(secure=secure)
    assert verify(bank) == []
    encoded.clear()
    reencode(bank, new)
    assert len(encoded) == bank.catalog.counts().documents - (staged - 1)
    _assert_is_of(bank, new)


def test_a_secure_compaction_erases_what_was_deleted_from_staged_latents_too(
    bank: MemoryBank, new: LoadedModel
) -> None:
    reencode(bank, new, **_stop_after(7))
    ((number, name),) = bank.catalog.read(
        "SELECT p.document_id, g.name FROM staged p JOIN segments g ON g.id = p.segment_id "
        "JOIN sources s ON s.id = p.source_id WHERE s.external_id = 'titled'"
    )
    stored = next(stored for stored in bank.catalog.page(DEFAULT_NAMESPACE, 0, 99) if stored.id == number)
    keys, _ = _fresh(new, stored)
    row = len(keys) // len(new.model.config.layers)
    assert keys[:row] in (bank.folder / "segments" / f"{name}.keys.safetensors").read_bytes()
    bank.delete(["titled"])
    bank.compact(secure=True)
    remaining = b"".join(path.read_bytes() for path in (bank.folder / "segments").iterdir())
    assert keys[:row] not in remaining


def test_ids_given_to_staged_parts_are_given_to_nothing_else(bank: MemoryBank, old: LoadedModel) -> None:
    cut = tiny_loaded(max_document_tokens=40)
    reencode(bank, cut, **_stop_after(13))
    staged = {number for (number,) in bank.catalog.read("SELECT document_id FROM staged")}
    known = {number for ids in _ids(bank).values() for number in ids}
    assert staged - known, "some have new ids"
    add_documents(bank, old, [Document("late", LONG)])
    assert not set(_ids(bank)["late"]) & staged
    reencode(bank, cut)
    _assert_is_of(bank, cut)
    ids = [
        number for namespace in bank.catalog.namespaces() for part in _ids(bank, namespace).values() for number in part
    ]
    assert len(ids) == len(set(ids))
    highest = max(ids)
    add_documents(bank, cut, [Document("latest", "text")])
    assert min(_ids(bank)["latest"]) > highest


# --- another model, or none ------------------------------------------------------------------------------------------


def test_changing_ones_mind_drops_what_was_staged(
    bank: MemoryBank, new: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reencode(bank, new, **_stop_after(7))
    staged = _staged_files(bank)
    assert staged
    third = tiny_loaded(seed=2, chunk_size=8, max_document_tokens=40)
    encoded = watch_encoding(monkeypatch, third)
    before = _everything(bank)
    assert reencode(bank, third, **_stop_after(1)).interrupted
    assert _everything(bank) == before
    _sweep(bank)
    assert not staged & _segment_files(bank), "the abandoned run takes no space"
    reencode(bank, third)
    assert len(encoded) >= bank.catalog.counts().documents
    _assert_is_of(bank, third)
    reencode(bank, new)
    _assert_is_of(bank, new)


def test_what_an_abandoned_run_wrote_is_swept_as_soon_as_the_next_begins(bank: MemoryBank, new: LoadedModel) -> None:
    reencode(bank, new, **_stop_after(7))
    staged = _staged_files(bank)
    left: list[set[str]] = []
    third = tiny_loaded(seed=2, max_document_tokens=MAX_TOKENS)
    reencode(bank, third, progress=lambda report: left.append(staged & _segment_files(bank)))
    assert not left[-1], "both sets of latents were on disk at once, and the abandoned third"


def test_a_run_back_to_the_model_the_bank_has_drops_what_was_staged(
    bank: MemoryBank, old: LoadedModel, new: LoadedModel
) -> None:
    reencode(bank, new, **_stop_after(7))
    staged = _staged_files(bank)
    reencode(bank, old)
    _sweep(bank)
    assert not staged & _segment_files(bank)


def _staged_files(bank: MemoryBank) -> set[str]:
    names = {name for (name,) in bank.catalog.read("SELECT name FROM segments WHERE state = 'staged'")}
    return {path for path in _segment_files(bank) if path.partition(".")[0] in names}


def test_a_full_disk_leaves_the_old_bank_and_what_was_staged(
    bank: MemoryBank, new: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _everything(bank)

    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(edits, "_retire", full)
        with pytest.raises(BankError, match="disk is full"):
            reencode(bank, new, batch_tokens=1, commit_seconds=0.0)
    assert (_everything(bank), verify(bank)) == (before, [])
    encoded = watch_encoding(monkeypatch, new)
    reencode(bank, new)
    assert encoded == [], "all of it was staged"
    _assert_is_of(bank, new)
    assert read_latents(bank)
