"""Export and import: the same bank elsewhere, or the same documents; what is damaged or foreign is refused whole."""

from __future__ import annotations

import io
import itertools
import json
import random
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import add_latents, bits, random_latents, read_bank, read_latents, tiny_loaded, tiny_manifest

from memspan.bank import archive, edits
from memspan.bank.add import add_documents, import_documents
from memspan.bank.archive import export_bank, import_bank
from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE
from memspan.bank.encode import manifest_of
from memspan.bank.lines import export_documents
from memspan.bank.reencode import reencode
from memspan.bank.verify import verify
from memspan.errors import BankError, BankMismatch, CorpusError
from memspan.model.convert import LoadedModel
from memspan.types import Document

MANIFEST = tiny_manifest(num_kv_heads=1, head_dim=2)
OTHER = "ötherwise"
LONG = " ".join(f"word number {number} of a text that is cut." for number in range(4))
CORPUS = [
    Document("plain", "alpha beta"),
    Document(
        "päth/to \u2028 it",
        "日本語 \U0001f600 \u2028 line\r\nbreaks\tand\x07 \x85 more",
        "Títle",
        {"ü": "\u2029", "": None},
    ),
    Document(
        "dated", "gamma", "", {"list": [1, 2.5, None, True, {"deep": []}], "big": 10**30}, "2026-03-01T10:00+02:00"
    ),
    Document("long", LONG, metadata={"k": 1}, date="2020-01-01"),
]


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    """Two namespaces, three segments, a text in parts, one replaced, one deleted."""
    bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
    with bank.writer() as writer:
        for document in (*CORPUS[:3], Document("gone", "the secret text of the deleted")):
            add_latents(writer, document, random_latents(MANIFEST, 2))
        writer.commit()
        add_latents(writer, CORPUS[3], random_latents(MANIFEST, 2), random_latents(MANIFEST, 1))
        add_latents(writer, Document("plain", "alpha beta, replaced"), random_latents(MANIFEST, 2))
        writer.commit()
    with bank.writer(OTHER) as writer:
        add_latents(writer, Document("plain", "of another namespace"), random_latents(MANIFEST, 3))
        writer.commit()
    bank.delete(["gone"])
    yield bank
    bank.close()


def _everything(bank: MemoryBank) -> list[Any]:
    """All that can be seen of a bank: sources, documents, latents, what full-text search finds; by namespace."""
    return [
        (
            namespace,
            list(bank.catalog.sources(namespace)),
            read_bank(bank, namespace),
            bank.catalog.search(namespace, "alpha word the of gamma", 50),
        )
        for namespace in bank.catalog.namespaces()
    ]


def _lines(bank: MemoryBank) -> str:
    stream = io.StringIO()
    count = export_documents(bank, stream)
    assert stream.getvalue().count("\n") == count
    return stream.getvalue()


def _left(folder: Path) -> set[str]:
    """What stands in a folder besides what any attempt to make a bank there leaves."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} - {"writer.lock", "writer.pid"}


# --- the whole bank -------------------------------------------------------------------------------------------------


def test_a_moved_bank_is_the_same_bank_bit_for_bit(bank: MemoryBank, tmp_path: Path) -> None:
    export_bank(bank, str(tmp_path / "bank.zip"))
    moved = import_bank(str(tmp_path / "bank.zip"), tmp_path / "deep" / "moved", MANIFEST.check_same)
    assert _everything(moved) == _everything(bank)
    assert (moved.manifest, moved.catalog.commits() > 0, verify(moved)) == (MANIFEST, True, [])
    assert moved.catalog.next_document_id() == bank.catalog.next_document_id(), "ids are not given again there either"
    moved.close()
    assert _everything(MemoryBank.open(moved.folder)) == _everything(bank)


def test_a_moved_bank_is_changed_as_any_other(bank: MemoryBank, tmp_path: Path) -> None:
    before = _everything(bank)
    export_bank(bank, tmp_path / "bank.zip")
    moved = import_bank(tmp_path / "bank.zip", tmp_path / "moved")
    moved.delete(["plain"])
    moved.delete(["plain"], OTHER)
    with moved.writer() as writer:
        add_latents(writer, Document("plain", "again"), random_latents(MANIFEST, 2))
        writer.commit()
    moved.compact(secure=True)
    assert verify(moved) == []
    assert [len(documents) for _, _, documents, _ in _everything(moved)] == [5]
    assert _everything(bank) == before
    export_bank(moved, tmp_path / "again.zip")
    assert _everything(import_bank(tmp_path / "again.zip", tmp_path / "third")) == _everything(moved)


def test_an_empty_bank_can_be_moved(tmp_path: Path) -> None:
    empty = MemoryBank.create(tmp_path / "bank", MANIFEST)
    export_bank(empty, tmp_path / "bank.zip")
    moved = import_bank(tmp_path / "bank.zip", tmp_path / "moved")
    assert (_everything(moved), moved.manifest) == ([], MANIFEST)


def test_nothing_staged_retired_or_left_over_travels(tmp_path: Path, loaded: LoadedModel) -> None:
    bank = MemoryBank.create(tmp_path / "bank", manifest_of(loaded))
    for number in range(3):
        add_documents(bank, loaded, [Document(f"{number}", f"text {number}")])
    told: list[Any] = []
    options = {"batch_tokens": 1, "commit_seconds": 0.0}
    new = tiny_loaded(seed=1, max_document_tokens=64)
    assert reencode(bank, new, progress=told.append, should_stop=lambda: len(told) >= 2, **options).interrupted
    some = next(iter(read_latents(bank).values()))
    with bank.writer(max_segment_bytes=1) as writer:  # ... and never commits
        add_latents(writer, Document("lost", "text"), some, some)
    with MemoryBank.open(bank.folder).snapshot():
        bank.compact()
        assert {state for state, _ in bank.catalog.segment_states().values()} == {"live", "staged", "retired"}
        export_bank(bank, tmp_path / "bank.zip")
    live = {files.name for _, files in bank.catalog.segments()}
    with zipfile.ZipFile(tmp_path / "bank.zip") as packed:
        assert {Path(name).name.partition(".")[0] for name in packed.namelist()} == {"catalog", *live}
    moved = import_bank(tmp_path / "bank.zip", tmp_path / "moved")
    assert _everything(moved) == _everything(bank)
    assert {state for state, _ in moved.catalog.segment_states().values()} == {"live"}
    assert moved.catalog.staged_manifest() is None
    assert len(list((moved.folder / "segments").iterdir())) == 2 * len(live)
    reencode(moved, new)
    assert verify(moved) == []


def test_the_deleted_is_in_no_exported_file_after_a_secure_compaction(bank: MemoryBank, tmp_path: Path) -> None:
    bank.compact(secure=True)
    export_bank(bank, tmp_path / "bank.zip")
    content = (tmp_path / "bank.zip").read_bytes()
    assert b"alpha beta, replaced" in content, "nothing is compressed"
    assert not any(word in content for word in (b"secret", b"gone"))
    assert "secret" not in _lines(bank)


def test_what_was_deleted_is_not_handed_on_with_the_bank(bank: MemoryBank, tmp_path: Path) -> None:
    export_bank(bank, tmp_path / "bank.zip")
    content = (tmp_path / "bank.zip").read_bytes()
    assert not any(word in content for word in (b"secret", b"gone"))


def test_an_export_while_a_writer_commits_is_of_one_moment(
    bank: MemoryBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, numbers = MemoryBank.open(bank.folder), itertools.count()

    def change(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            with writer.writer() as adding:
                add_latents(adding, Document(f"late {next(numbers)}", "text"), random_latents(MANIFEST, 1))
                adding.commit()
            if next(numbers) == 1:
                writer.delete(["long"])
            writer.compact()
            return real(*arguments, **options)

        return step

    before = _everything(bank)
    monkeypatch.setattr(archive, "_link", change(archive._link))
    export_bank(bank, tmp_path / "bank.zip")
    monkeypatch.undo()
    assert next(numbers) > 6, "something was committed before every file was copied"
    moved = import_bank(tmp_path / "bank.zip", tmp_path / "moved")
    assert _everything(moved) == before
    assert verify(moved) == []


def test_an_export_does_not_overwrite_and_leaves_nothing_behind_when_it_fails(
    bank: MemoryBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine.zip").write_text("mine")
    with pytest.raises(BankError, match="exists; name another file"):
        export_bank(bank, folder / "mine.zip")
    assert (folder / "mine.zip").read_text() == "mine"
    with pytest.raises(BankError, match="No such file"):
        export_bank(bank, folder / "not" / "there.zip")
    for owner, name in ((archive.os, "fsync"), (zipfile.ZipFile, "write"), (edits, "forget_unfinished")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, _raise(OSError(28, "No space left on device")))
            with pytest.raises(BankError, match="No space left"):
                export_bank(bank, folder / "bank.zip")
    next((bank.folder / "segments").glob("*.content.safetensors")).unlink()
    with pytest.raises(BankError, match="safetensors"):
        export_bank(bank, folder / "bank.zip")
    assert _left(folder) == {"mine.zip"}


def _raise(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["encoder_fingerprint", "chunk_size", "document_prefix", "max_document_tokens"])
def test_a_bank_of_another_model_is_refused_and_leaves_nothing(bank: MemoryBank, tmp_path: Path, field: str) -> None:
    export_bank(bank, tmp_path / "bank.zip")
    value = getattr(MANIFEST, field)
    other = tiny_manifest(num_kv_heads=1, head_dim=2, **{field: value * 2})
    with pytest.raises(BankMismatch, match=field):
        import_bank(tmp_path / "bank.zip", tmp_path / "moved", other.check_same)
    assert _left(tmp_path / "moved") == set()
    assert not MemoryBank.exists(tmp_path / "moved")
    assert _everything(import_bank(tmp_path / "bank.zip", tmp_path / "moved", MANIFEST.check_same)) == _everything(bank)


def test_an_import_takes_no_folder_that_holds_something(bank: MemoryBank, tmp_path: Path) -> None:
    export_bank(bank, tmp_path / "bank.zip")
    before = _everything(bank)
    with pytest.raises(BankError, match="not an empty folder"):
        import_bank(tmp_path / "bank.zip", bank.folder)
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "thesis.txt").write_text("years of work")
    with pytest.raises(BankError, match="not an empty folder"):
        import_bank(tmp_path / "bank.zip", tmp_path / "occupied")
    (tmp_path / "alike" / "segments").mkdir(parents=True)
    (tmp_path / "alike" / "segments" / "orange").write_text("juicy")
    with pytest.raises(BankError, match="not an empty folder"):
        import_bank(tmp_path / "bank.zip", tmp_path / "alike")
    with pytest.raises(BankError, match="is a file"):
        import_bank(tmp_path / "bank.zip", tmp_path / "occupied" / "thesis.txt")
    assert _everything(bank) == before
    assert (_left(tmp_path / "occupied"), _left(tmp_path / "alike")) == (
        {"thesis.txt"},
        {"segments", "segments/orange"},
    )


@pytest.mark.parametrize("content", [None, b"", b"PK\3\4", b"text\n" * 100], ids=["missing", "empty", "cut", "text"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "bank.zip").write_bytes(content)
    with pytest.raises(BankError, match=r"cannot import .*bank\.zip"):
        import_bank(tmp_path / "bank.zip", tmp_path / "moved")
    assert _left(tmp_path / "moved") == set()


Entries = dict[str, bytes]


def _entries(bank: MemoryBank, tmp_path: Path) -> Entries:
    export_bank(bank, tmp_path / "bank.zip")
    with zipfile.ZipFile(tmp_path / "bank.zip") as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def _pack(path: Path, entries: Entries, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as packed:
        for name, content in entries.items():
            packed.writestr(name, content)
    return path


def _assert_refused(path: Path, tmp_path: Path) -> None:
    around = {str(each) for each in tmp_path.rglob("*")}
    with pytest.raises(BankError):
        import_bank(path, tmp_path / "moved")
    assert _left(tmp_path / "moved") == set()
    assert {str(each) for each in tmp_path.rglob("*")} - around <= {
        str(tmp_path / "moved" / name) for name in ("", ".", "writer.lock", "writer.pid")
    } | {str(tmp_path / "moved")}


def test_an_entry_missing_cut_changed_or_renamed_is_refused(bank: MemoryBank, tmp_path: Path) -> None:
    entries = _entries(bank, tmp_path)
    assert len(entries) == 5
    for name, content in entries.items():
        others = {other: kept for other, kept in entries.items() if other != name}
        changed = bytes(
            [*content[: len(content) // 2], content[len(content) // 2] ^ 1, *content[len(content) // 2 + 1 :]]
        )
        variants: list[Entries] = [others, {**others, name: content[: len(content) // 2]}, {**others, name: b""}]
        variants += [{**others, f"{name}.gz": content}, {**others, name.replace(".", "_"): content}]
        variants += [{**others, name: changed}] if name.startswith("segments/") else []
        for variant in variants:
            _assert_refused(_pack(tmp_path / "damaged.zip", variant), tmp_path)
    swapped = [name for name in entries if name.endswith(".keys.safetensors")]
    _assert_refused(
        _pack(tmp_path / "damaged.zip", {**entries, swapped[0]: entries[swapped[1]], swapped[1]: entries[swapped[0]]}),
        tmp_path,
    )
    assert _everything(import_bank(_pack(tmp_path / "whole.zip", entries), tmp_path / "moved")) == _everything(bank)


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "../evil.keys.safetensors",
        "/tmp/evil.keys.safetensors",
        "segments/../evil.keys.safetensors",
        "segments/../../evil.keys.safetensors",
        "segments/deep/evil.keys.safetensors",
        "segments//evil.keys.safetensors",
        "segments/",
        "segments/evil.pkl",
        "segments/evil.safetensors",
        "..\\evil",
        "catalog.sqlite/evil",
        "CATALOG.SQLITE",
        "writer.lock",
        "readers/1-evil",
        "catalog.sqlite-wal",
        "catalog.sqlite.partial-wal",
        "extra.txt",
        "segments/" + "e" * 300 + ".keys.safetensors",
    ],
)
def test_an_entry_that_does_not_belong_to_a_bank_is_refused_and_written_nowhere(
    bank: MemoryBank, tmp_path: Path, name: str
) -> None:
    entries = _entries(bank, tmp_path)
    for variant in ({name: b"evil", **entries}, {**entries, name: b"evil"}):
        _assert_refused(_pack(tmp_path / "evil.zip", variant), tmp_path)
    assert not list(tmp_path.rglob("*evil*/*"))
    assert not list(tmp_path.parent.glob("evil*"))


def test_a_segment_that_the_catalog_does_not_know_comes_to_nothing(bank: MemoryBank, tmp_path: Path) -> None:
    entries = _entries(bank, tmp_path)
    extra = {f"segments/extra{suffix}": b"evil" for suffix in (".keys.safetensors", ".keys.safetensors.partial")}
    try:
        moved = import_bank(_pack(tmp_path / "more.zip", {**entries, **extra}), tmp_path / "moved")
    except BankError:
        assert _left(tmp_path / "moved") == set()
        return
    assert _everything(moved) == _everything(bank)
    assert verify(moved) == []
    with moved.locked():
        assert len(list((moved.folder / "segments").iterdir())) == 4, "the first writer sweeps it"


def test_the_same_entry_twice_is_refused_or_the_bank_is_whole(bank: MemoryBank, tmp_path: Path) -> None:
    entries = _entries(bank, tmp_path)
    for name in entries:
        with zipfile.ZipFile(tmp_path / "twice.zip", "w") as packed, pytest.warns(UserWarning, match="Duplicate"):
            for each, content in [*entries.items(), (name, b"evil")]:
                packed.writestr(each, content)
        _assert_refused(tmp_path / "twice.zip", tmp_path)


def test_an_archive_that_unpacks_to_far_more_than_it_is_is_refused_before_it_fills_the_disk(
    bank: MemoryBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {**_entries(bank, tmp_path), "segments/bomb.keys.safetensors": bytes(2**24)}
    path = _pack(tmp_path / "bomb.zip", entries, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**17
    written, real = [0], archive.shutil.copyfileobj

    def counted(source: Any, target: Any, size: int) -> None:
        real(source, target, size)
        written[0] += target.tell()

    monkeypatch.setattr(archive.shutil, "copyfileobj", counted)
    with pytest.raises(BankError):
        import_bank(path, tmp_path / "moved")
    assert written[0] <= 2**18


@pytest.mark.parametrize("what", ["text", "metadata", "title"])
def test_a_catalog_that_is_whole_for_the_archive_but_not_for_verify_is_found_by_it(
    bank: MemoryBank, tmp_path: Path, what: str
) -> None:
    entries = _entries(bank, tmp_path)
    (tmp_path / "catalog.sqlite").write_bytes(entries["catalog.sqlite"])
    statement = {"text": "UPDATE texts SET text = upper(text)"}.get(what, f"UPDATE sources SET {what} = '{{\"a\": 1}}'")
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite")) as db:
        db.execute(statement)
        db.commit()
    changed = {**entries, "catalog.sqlite": (tmp_path / "catalog.sqlite").read_bytes()}
    moved = import_bank(_pack(tmp_path / "changed.zip", changed), tmp_path / "moved")
    assert {fault.kind for fault in verify(moved)} >= {"catalog"}


# --- documents as lines of JSON -------------------------------------------------------------------------------------


def test_a_line_holds_all_that_was_given(bank: MemoryBank) -> None:
    lines = [json.loads(line) for line in _lines(bank).split("\n")[:-1]]
    assert [set(line) for line in lines] == [{"namespace", "external_id", "title", "text", "date", "metadata"}] * 5
    found = {
        (line["namespace"], line["external_id"]): (line["title"], line["text"], line["metadata"], line["date"])
        for line in lines
    }
    for document in CORPUS[1:]:
        *same, date = found[DEFAULT_NAMESPACE, document.external_id]
        assert same == [document.title, document.text, dict(document.metadata)]
        assert date == document.date if document.date else date.startswith("20")
    assert found[DEFAULT_NAMESPACE, "plain"][1] == "alpha beta, replaced"
    assert found[OTHER, "plain"][1] == "of another namespace"


def test_documents_come_back_through_a_file_as_they_were(tmp_path: Path, loaded: LoadedModel) -> None:
    bank = MemoryBank.create(tmp_path / "bank", manifest_of(loaded))
    add_documents(bank, loaded, CORPUS)
    add_documents(bank, loaded, CORPUS[::-1], namespace=OTHER)
    with (tmp_path / "documents.jsonl").open("w", encoding="utf-8") as stream:
        assert export_documents(bank, stream) == 8
    copy = MemoryBank.create(tmp_path / "copy", manifest_of(loaded))
    with (tmp_path / "documents.jsonl").open(encoding="utf-8") as stream:
        report = import_documents(copy, loaded, stream)
    assert (report.added, report.interrupted, report.pending) == (8, False, 0)
    assert _lines(copy) == _lines(bank)
    assert verify(copy) == []
    for namespace in (DEFAULT_NAMESPACE, OTHER):
        found, given = read_bank(copy, namespace), read_bank(bank, namespace)
        assert [(d.id, d.external_id, d.span, d.date, d.tokens) for d, *_ in found] == [
            (d.id, d.external_id, d.span, d.date, d.tokens) for d, *_ in given
        ]
        assert [latents for _, *latents in found] == [latents for _, *latents in given]
        question = "alpha word gamma"
        assert copy.catalog.search(namespace, question, 9) == bank.catalog.search(namespace, question, 9)
    with (tmp_path / "documents.jsonl").open(encoding="utf-8") as stream:
        again = import_documents(copy, loaded, stream)
    assert (again.added, again.unchanged, again.documents) == (0, 8, 0)


def test_an_import_that_was_stopped_continues(
    tmp_path: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memspan.bank.encode.batches", lambda parts, tokens: [[part] for part in parts])
    bank = MemoryBank.create(tmp_path / "bank", manifest_of(loaded))
    for namespace in ("a", "b"):
        add_documents(
            bank, loaded, [Document(f"{number}", f"text {number}") for number in range(4)], namespace=namespace
        )
    lines = _lines(bank)
    copy = MemoryBank.create(tmp_path / "copy", manifest_of(loaded))
    added, encoded, runs = 0, 0, 0
    while True:
        told: list[Any] = []
        report = import_documents(
            copy, loaded, io.StringIO(lines), progress=told.append, should_stop=lambda told=told: len(told) >= 3
        )
        runs += 1
        added, encoded = added + report.added, encoded + report.documents
        assert verify(copy) == []
        if not report.interrupted:
            break
        assert runs < 20
    assert (added, encoded, runs > 2) == (8, 8, True)
    assert _lines(copy) == lines


def test_a_stopped_import_begins_no_other_namespace(tmp_path: Path, loaded: LoadedModel) -> None:
    lines = "".join(_line(namespace=name) for name in "ab")
    bank = MemoryBank.create(tmp_path / "bank", manifest_of(loaded))
    report = import_documents(bank, loaded, io.StringIO(lines), should_stop=lambda: True)
    assert report.interrupted
    assert "b" not in bank.catalog.namespaces()


def _line(**changes: Any) -> str:
    values = {"namespace": "a", "external_id": "x", "title": "", "text": "text", "date": None, "metadata": {}} | changes
    return json.dumps({name: value for name, value in values.items() if value is not ...}) + "\n"


BAD_LINES = {
    "no JSON": "{not json}\n",
    "cut": _line()[:-5],
    "a number": "5\n",
    "a list": "[]\n",
    "null": "null\n",
    **{
        f"no {name}": _line(**{name: ...}) for name in ("namespace", "external_id", "title", "text", "date", "metadata")
    },
    "empty text": _line(text=" "),
    "empty name": _line(external_id=""),
    "text is a list": _line(text=["text"]),
    "text is a number": _line(text=5),
    "text is null": '{"namespace": "a", "external_id": "x", "title": "", "text": null, "date": null, "metadata": {}}',
    "name is a number": _line(external_id=5),
    "name is a list": _line(external_id=["x"]),
    "title is a list": _line(title=["x"]),
    "NUL": _line(text="te\0xt"),
    "surrogate": _line(text="\ud800"),
    "date is no date": _line(date="yesterday"),
    "date is a number": _line(date=5),
    "metadata is a list": _line(metadata=[]),
}


@pytest.mark.parametrize("what", BAD_LINES)
def test_a_line_of_another_form_is_named(tmp_path: Path, loaded: LoadedModel, what: str) -> None:
    bank = MemoryBank.create(tmp_path / "bank", manifest_of(loaded))
    with pytest.raises(CorpusError, match="line 3 is not of an exported bank"):
        import_documents(bank, loaded, io.StringIO(_line() + "\n" + BAD_LINES[what]))
    assert verify(bank) == []


@pytest.mark.parametrize(
    "line",
    [_line(namespace=5), _line(namespace=["a"]), "[" * 100_000 + "\n"],
    ids=["namespace is a number", "namespace is a list", "too deep"],
)
def test_a_line_of_a_strange_form_is_named_too(tmp_path: Path, loaded: LoadedModel, line: str) -> None:
    bank = MemoryBank.create(tmp_path / "bank", manifest_of(loaded))
    with pytest.raises(CorpusError, match="line 2 is not of an exported bank"):
        import_documents(bank, loaded, io.StringIO(_line() + line))


@pytest.mark.parametrize("namespace", ["", " ", "a\nb", "x" * 500])
def test_a_name_that_no_namespace_can_have_is_an_error(tmp_path: Path, loaded: LoadedModel, namespace: str) -> None:
    bank = MemoryBank.create(tmp_path / "bank", manifest_of(loaded))
    with pytest.raises(BankError, match="printable name"):
        import_documents(bank, loaded, io.StringIO(_line(namespace=namespace)))


def test_a_file_that_is_not_utf_8_is_an_error(tmp_path: Path, loaded: LoadedModel) -> None:
    bank = MemoryBank.create(tmp_path / "bank", manifest_of(loaded))
    (tmp_path / "documents.jsonl").write_bytes(_line().encode() + b"\xff\xfe\n")
    with (tmp_path / "documents.jsonl").open(encoding="utf-8") as stream, pytest.raises(CorpusError, match="line"):
        import_documents(bank, loaded, stream)


def test_what_came_before_a_bad_line_is_in_the_bank(tmp_path: Path, loaded: LoadedModel) -> None:
    bank = MemoryBank.create(tmp_path / "bank", manifest_of(loaded))
    lines = _line(external_id="before") + _line(external_id="too") + "{bad}\n" + _line(external_id="after")
    with pytest.raises(CorpusError, match="line 3"):
        import_documents(bank, loaded, io.StringIO(lines))
    assert [source.document.external_id for source in bank.catalog.sources("a")] == ["before", "too"]


def test_whatever_a_bank_holds_can_be_exported_into_a_file(bank: MemoryBank, tmp_path: Path) -> None:
    with bank.writer() as writer, pytest.raises(ValueError, match="surrogates"):
        add_latents(writer, Document("odd", "text", metadata={"k": "\ud800"}), random_latents(MANIFEST, 1))
        writer.commit()
    with (tmp_path / "documents.jsonl").open("w", encoding="utf-8") as stream:
        export_documents(bank, stream)


def test_an_export_of_documents_is_of_one_moment(bank: MemoryBank) -> None:
    expected, writer = _lines(bank), MemoryBank.open(bank.folder)

    class Interrupting(io.StringIO):
        def write(self, text: str) -> int:
            with writer.writer(OTHER) as adding:
                add_latents(adding, Document(f"late {self.tell()}", "text"), random_latents(MANIFEST, 1))
                adding.commit()
            return super().write(text)

    stream = Interrupting()
    export_documents(bank, stream)
    assert stream.getvalue() == expected


def test_latents_travel_bit_for_bit_whatever_they_are(tmp_path: Path) -> None:
    bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
    generator = random.Random(0)
    odd = random_latents(MANIFEST, 3)
    for tensor in (odd.router_keys_LCW, odd.content_LC2GD):
        flat = tensor.view(-1)
        flat[:] = torch.tensor([generator.choice([float("nan"), float("inf"), -0.0, 1e-40, 3.0]) for _ in flat])
    with bank.writer() as writer:
        (number,) = add_latents(writer, Document("odd", "text"), odd)
        writer.commit()
    export_bank(bank, tmp_path / "bank.zip")
    assert bits(read_latents(import_bank(tmp_path / "bank.zip", tmp_path / "moved"))[number]) == bits(odd)
