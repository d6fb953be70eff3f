"""`verify`: nothing found in a healthy bank, every kind of damage found in a damaged one. Reading: right or refused."""

from __future__ import annotations

import itertools
import random
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import add_latents, bits, random_latents, read_bank, read_latents, tiny_manifest

from memspan.bank import edits
from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE
from memspan.bank.verify import Fault, verify
from memspan.errors import BankError
from memspan.types import Document

MANIFEST = tiny_manifest(num_kv_heads=1, head_dim=2)
OTHER = "other"
SECRET = "whose bytes stand in the catalog"

Damage = Callable[[Path], None]


def _fill(bank: MemoryBank, *documents: Document, parts: int = 1, rows: int = 2, **options: Any) -> None:
    with bank.writer(**options) as writer:
        for document in documents:
            add_latents(writer, document, *(random_latents(MANIFEST, rows) for _ in range(parts)))
        writer.commit()


def _build(folder: Path) -> MemoryBank:
    """Two namespaces, three segments; a text in two parts, one in another segment, one replaced and one deleted."""
    bank = MemoryBank.create(folder, MANIFEST)
    described = Document("described", f"alpha {SECRET}", "Title", {"project": "x"}, "2026-03-01")
    _fill(bank, described, Document("gone", "gamma"), Document("replaced", "the old text"))
    _fill(bank, Document("long", "one two three four five six"), parts=2)
    _fill(bank, Document("replaced", "the new text"), namespace=OTHER)
    _fill(bank, Document("described", "of another namespace"), namespace=OTHER)
    with bank.writer() as writer:
        add_latents(writer, Document("replaced", "the new text"), random_latents(MANIFEST, 1))
        writer.commit()
    bank.relabel(Document("described", described.text, "Title", {"project": "y"}, "2026-03-02"))
    bank.delete(["gone"])
    return bank


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "bank"
    torch.manual_seed(0)
    _build(folder).close()
    assert not (folder / "catalog.sqlite-wal").exists(), "all of it is in the files that are copied and damaged"
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    """A healthy bank's folder, to be damaged."""
    shutil.copytree(template, tmp_path / "bank")
    return tmp_path / "bank"


def _faults(folder: Path) -> list[Fault]:
    with closing(MemoryBank.open(folder)) as bank:
        return verify(bank)


def _change(folder: Path, *statements: str) -> None:
    """Change the catalog behind the bank's back."""
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        before = db.total_changes
        for statement in statements:
            db.execute(statement)
        assert db.total_changes > before, "something was changed"
        db.commit()


def _ask(folder: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as db:
        return db.execute(query).fetchall()


def _segment_files(folder: Path) -> list[Path]:
    return sorted((folder / "segments").iterdir())


def _segment_of(folder: Path, name: str, namespace: str = DEFAULT_NAMESPACE) -> tuple[int, str]:
    """Number and name of the segment of (the first part of) a live source."""
    ((number, segment),) = _ask(
        folder,
        "SELECT g.id, g.name FROM segments g JOIN documents d ON d.segment_id = g.id JOIN sources s "
        "ON s.id = d.source_id JOIN namespaces n ON n.id = s.namespace_id WHERE d.deleted_in IS NULL "
        f"AND s.external_id = '{name}' AND n.name = '{namespace}' ORDER BY d.id LIMIT 1",
    )
    return number, segment


def _flip(path: Path, position: int, mask: int = 1) -> None:
    with path.open("rb+") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ mask]))


# --- a healthy bank -------------------------------------------------------------------------------------------------


def test_nothing_is_found_in_a_bank_however_it_was_changed(tmp_path: Path) -> None:
    bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
    assert verify(bank) == []
    bank.close()
    bank = _build(tmp_path / "changed")
    assert verify(bank) == []
    for number in range(20):
        _fill(bank, Document(f"single {number}", f"text {number}"))
        assert verify(bank) == [], "also while small segments are merged"
    bank.delete(["single 3", "long"])
    bank.delete(["described", "replaced"], OTHER)
    assert verify(bank) == []
    for secure in (False, True):
        bank.compact(secure=secure)
        assert verify(bank) == []
    bank.delete([document.external_id for document, *_ in read_bank(bank)])
    assert verify(bank) == []
    bank.compact(secure=True)
    assert verify(bank) == []


def test_a_handle_that_stays_open_verifies_again_and_again_and_leaves_nothing_behind(folder: Path) -> None:
    bank = MemoryBank.open(folder)
    before = read_bank(bank)
    with bank.snapshot():
        assert verify(bank) == verify(bank) == []
    _fill(bank, Document("another", "one"))
    assert verify(bank) == []
    assert read_bank(bank)[: len(before)] == before
    (table,) = _ask(folder, "SELECT count(*) FROM sqlite_schema WHERE name LIKE '%expected%' OR name LIKE '%found%'")
    assert table == (0,)
    bank.compact(secure=True, timeout=0)


def test_a_bank_is_verified_as_of_one_moment_while_a_writer_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = MemoryBank.open(folder)
    names = itertools.count()

    def interrupting(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            _fill(writer, Document(f"meanwhile {next(names)}", "text"))
            writer.delete(["described"] if next(names) == 1 else [])
            writer.compact()
            return real(*arguments)

        return step

    monkeypatch.setattr("memspan.bank.verify._source_faults", interrupting(verify.__globals__["_source_faults"]))
    monkeypatch.setattr("memspan.bank.verify._segment_faults", interrupting(verify.__globals__["_segment_faults"]))
    assert _faults(folder) == []
    assert next(names) > 4


def test_what_killed_writers_left_is_no_fault(folder: Path) -> None:
    bank = MemoryBank.open(folder)
    before = set(_segment_files(folder))
    with bank.writer(max_segment_bytes=1) as writer:  # ... and never commits
        add_latents(writer, Document("lost", "text"), random_latents(MANIFEST, 2), random_latents(MANIFEST, 2))
    left = set(_segment_files(folder)) - before
    assert len(left) == 2
    (folder / "segments" / f"{0:032}.keys.safetensors.partial").write_bytes(b"half")
    (folder / "readers").mkdir(exist_ok=True)
    (folder / "readers" / "1-dead").write_bytes(b"5")
    (folder / "writer.pid").write_bytes(b"999999")
    assert verify(bank) == []
    _fill(bank, Document("next", "text"))
    assert verify(bank) == []
    assert not left & set(_segment_files(folder)), "the next writer swept them"
    assert not (folder / "segments" / f"{0:032}.keys.safetensors.partial").exists()


def test_staged_latents_are_no_fault(folder: Path) -> None:
    bank = MemoryBank.open(folder)
    edits.stage_manifest(bank.catalog, {"any": "thing"})
    assert verify(bank) == []


# --- segments -------------------------------------------------------------------------------------------------------


def _positions(path: Path) -> list[int]:
    """Places of a segment file: its header's length, header, and all kinds of tensors."""
    size = path.stat().st_size
    header = int.from_bytes(path.read_bytes()[:8], "little")
    fixed = [0, 7, 8, 8 + header // 2, 8 + header - 1, 8 + header, size - 1]
    return sorted({*fixed, *random.Random(size).sample(range(size), 8)})


def test_a_flipped_byte_anywhere_in_a_segment_is_found_and_its_file_named(folder: Path) -> None:
    with closing(MemoryBank.open(folder)) as bank:
        owners = {
            files.name: (namespace, number)
            for namespace in bank.catalog.namespaces()
            for number, files in bank.catalog.segments(namespace)
        }
        assert len(owners) == len(_segment_files(folder)) / 2 == 5
        for path in _segment_files(folder):
            name = path.name.partition(".")[0]
            for position in _positions(path):
                _flip(path, position, 1 << position % 8)
                faults = verify(bank)
                _flip(path, position, 1 << position % 8)
                assert faults, f"byte {position} of {path.name}"
                assert {(f.kind, f.where, f.namespace, f.segment_id) for f in faults} == {
                    ("segment", f"segments/{name}", *owners[name])
                }
                assert any(path.name in fault.message for fault in faults)
                assert all(fault.repairable for fault in faults)
        assert verify(bank) == []


def _remove(path: Path) -> None:
    path.unlink()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _fill_with_zeros(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("suffix", [".keys.safetensors", ".content.safetensors"])
@pytest.mark.parametrize("damage", [_remove, _truncate, _empty, _lengthen, _fill_with_zeros, _make_folder])
def test_a_segment_file_lost_or_cut_is_found_and_named_and_is_not_read(
    folder: Path, damage: Damage, suffix: str
) -> None:
    number, name = _segment_of(folder, "long")
    damage(folder / "segments" / (name + suffix))
    (fault,) = _faults(folder)
    assert (fault.kind, fault.where, fault.segment_id) == ("segment", f"segments/{name}", number)
    assert (fault.namespace, fault.repairable) == (DEFAULT_NAMESPACE, True)
    assert name + suffix in fault.message
    with closing(MemoryBank.open(folder)) as bank:
        with pytest.raises(BankError, match=name):
            read_latents(bank)
        assert len(read_latents(bank, OTHER)) == 2, "the other namespace is none the worse"


def _swap(one: Path, other: Path) -> None:
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


@pytest.mark.parametrize("suffix", [".keys.safetensors", ".content.safetensors"])
def test_swapped_segment_files_are_found_although_each_is_whole(folder: Path, suffix: str) -> None:
    pairs = [_segment_of(folder, "replaced", OTHER), _segment_of(folder, "described", OTHER)]
    paths = [folder / "segments" / (name + suffix) for _, name in pairs]
    assert paths[0].stat().st_size == paths[1].stat().st_size, "only their bytes tell them apart"
    _swap(*paths)
    faults = _faults(folder)
    assert {(fault.kind, fault.namespace, fault.segment_id) for fault in faults} == {
        ("segment", OTHER, number) for number, _ in pairs
    }
    with closing(MemoryBank.open(folder)) as bank, pytest.raises(BankError, match="changed since it was written"):
        read_latents(bank, OTHER)


def test_both_files_of_two_segments_swapped_are_found(folder: Path) -> None:
    pairs = [_segment_of(folder, "replaced", OTHER), _segment_of(folder, "described", OTHER)]
    for suffix in (".keys.safetensors", ".content.safetensors"):
        _swap(*(folder / "segments" / (name + suffix) for _, name in pairs))
    assert {fault.segment_id for fault in _faults(folder)} == {number for number, _ in pairs}
    with closing(MemoryBank.open(folder)) as bank, pytest.raises(BankError, match="list of documents"):
        read_latents(bank, OTHER)


def test_a_missing_folder_of_segments_is_every_segment_missing(folder: Path) -> None:
    numbers = {number for (number,) in _ask(folder, "SELECT id FROM segments WHERE state = 'live'")}
    shutil.rmtree(folder / "segments")
    faults = _faults(folder)
    assert {fault.segment_id for fault in faults if fault.kind == "segment"} == numbers
    assert {fault.kind for fault in faults} == {"segment"}


def test_no_flipped_byte_of_a_segment_is_ever_read_as_a_latent(tmp_path: Path) -> None:
    # Every byte, and for each another bit: the smallest segment there is, so that all of them can be tried.
    bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
    _fill(bank, Document("a", "text"), Document("b", "more"), rows=2)
    original = {document_id: bits(latents) for document_id, latents in read_latents(bank).items()}
    bank.close()
    outcomes = {"refused": 0, "the same": 0}
    for path in _segment_files(bank.folder):
        for position in range(path.stat().st_size):
            _flip(path, position, 1 << position % 8)
            with closing(MemoryBank.open(bank.folder)) as damaged:
                try:
                    found = {document_id: bits(latents) for document_id, latents in read_latents(damaged).items()}
                except BankError:
                    outcomes["refused"] += 1
                else:
                    assert found == original, f"byte {position} of {path.name}"
                    outcomes["the same"] += 1
            _flip(path, position, 1 << position % 8)
    assert outcomes["refused"] > 10 * outcomes["the same"], "what is not refused is white space of the header"


# --- the catalog ----------------------------------------------------------------------------------------------------


def _id(name: str, table: str = "documents", namespace: int = 1) -> str:
    """SQL that picks the row of (the first part of) a live source in one of the tables."""
    source = (
        f"SELECT id FROM sources WHERE external_id = '{name}' AND namespace_id = {namespace} AND deleted_in IS NULL"
    )
    column = {"sources": "id", "texts": "source_id", "documents": "id"}[table]
    wanted = f"SELECT min(id) FROM documents WHERE source_id = ({source})" if table == "documents" else source
    return f"{column} = ({wanted})"


# What is done, the kinds of the faults, and a text that one of them names.
CATALOG_DAMAGE = {
    "row of namespaces deleted": ("DELETE FROM namespaces WHERE name = 'other'", {"catalog"}, "namespaces"),
    "row of segments deleted": (
        f"DELETE FROM segments WHERE id = (SELECT segment_id FROM documents WHERE {_id('long')})",
        {"catalog", "document"},
        "long",
    ),
    "row of sources deleted": (f"DELETE FROM sources WHERE {_id('long', 'sources')}", {"catalog", "index"}, "sources"),
    "row of texts deleted": (f"DELETE FROM texts WHERE {_id('long', 'texts')}", {"catalog", "index"}, "'long'"),
    "row of documents deleted": (
        f"DELETE FROM documents WHERE {_id('long')}",
        {"segment", "document", "index"},
        "long",
    ),
    "last row of documents deleted": (
        f"DELETE FROM documents WHERE {_id('replaced')}",
        {"segment", "document", "index"},
        "replaced",
    ),
    "dead row of documents deleted": (
        "DELETE FROM documents WHERE id = (SELECT min(id) FROM documents WHERE deleted_in IS NOT NULL)",
        {"segment"},
        "differ in where documents 2 stand",
    ),
    "text": (f"UPDATE texts SET text = 'one 2 three four five six' WHERE {_id('long', 'texts')}", None, "long"),
    "case of a text": (f"UPDATE texts SET text = upper(text) WHERE {_id('long', 'texts')}", {"catalog"}, "long"),
    "shorter text": (f"UPDATE texts SET text = 'one two' WHERE {_id('long', 'texts')}", None, "long"),
    "title": (f"UPDATE sources SET title = 'TITLE' WHERE {_id('described', 'sources')}", {"catalog"}, "described"),
    "metadata": (
        f'UPDATE sources SET metadata = \'{{"project": "z"}}\' WHERE {_id("described", "sources")}',
        {"catalog"},
        "described",
    ),
    "metadata that are no JSON": (
        f"UPDATE sources SET metadata = 'project' WHERE {_id('described', 'sources')}",
        {"catalog"},
        "described",
    ),
    "date": (f"UPDATE sources SET date = '2026-03-03' WHERE {_id('described', 'sources')}", {"catalog"}, "described"),
    "date taken away": (
        f"UPDATE sources SET date = NULL WHERE {_id('described', 'sources')}",
        {"catalog"},
        "described",
    ),
    "content hash": (f"UPDATE sources SET content_hash = '' WHERE {_id('long', 'sources')}", {"catalog"}, "long"),
    "text hash": (f"UPDATE sources SET text_hash = '' WHERE {_id('long', 'sources')}", {"catalog"}, "long"),
    "start of a span": (f"UPDATE documents SET span_start = 1 WHERE {_id('long')}", None, "long"),
    "end of a span": (f"UPDATE documents SET span_end = span_end + 1 WHERE {_id('long')}", None, "long"),
    "first row": (f"UPDATE documents SET first_row = 1 WHERE {_id('long')}", {"segment"}, "differ in where documents"),
    "rows": (f"UPDATE documents SET rows = 1 WHERE {_id('long')}", {"segment"}, "differ in where documents"),
    "segment of a document": (
        f"UPDATE documents SET segment_id = (SELECT segment_id FROM documents WHERE {_id('described')}) "
        f"WHERE {_id('long')}",
        {"segment"},
        "differ in where documents",
    ),
    "segment of another namespace": (
        "UPDATE documents SET segment_id = (SELECT segment_id FROM documents WHERE "
        f"{_id('described', namespace=2)}) WHERE {_id('long')}",
        {"segment", "document"},
        "long",
    ),
    "id of a document": (
        f"UPDATE documents SET id = 70 WHERE {_id('long')}",
        {"segment", "index", "catalog"},
        "differ in where documents",
    ),
    "source of a document": (
        f"UPDATE documents SET source_id = (SELECT source_id FROM documents WHERE {_id('described')}) "
        f"WHERE {_id('long')}",
        None,
        "long",
    ),
    "document taken for deleted": (
        f"UPDATE documents SET deleted_in = 3 WHERE {_id('long')}",
        {"document", "index"},
        "long",
    ),
    "source taken for alive": (
        "UPDATE sources SET deleted_in = NULL WHERE external_id = 'gone'",
        {"catalog"},
        "of sources is not what was written",
    ),
    "retired segment": (
        f"UPDATE segments SET state = 'retired', retired_in = 3 WHERE id = "
        f"(SELECT segment_id FROM documents WHERE {_id('long')})",
        {"document"},
        "long",
    ),
    "staged segment": (
        f"UPDATE segments SET state = 'staged' WHERE id = (SELECT segment_id FROM documents WHERE {_id('long')})",
        {"document"},
        "long",
    ),
    "namespace of a segment": (
        f"UPDATE segments SET namespace_id = 2 WHERE id = (SELECT segment_id FROM documents WHERE {_id('long')})",
        {"document"},
        "long",
    ),
    "counter of ids set back": ("UPDATE sqlite_sequence SET seq = 2 WHERE name = 'documents'", {"catalog"}, "set back"),
    "counter of ids lost": ("DELETE FROM sqlite_sequence WHERE name = 'documents'", {"catalog"}, "set back"),
    "an entry of the full-text index added": (
        "INSERT INTO words_1 (rowid, words) VALUES (70, 'alien')",
        {"index"},
        "full-text",
    ),
    "an entry of the full-text index removed": (
        f"INSERT INTO words_1 (words_1, rowid, words) SELECT 'delete', id, 'the new text' FROM documents "
        f"WHERE {_id('replaced')}",
        {"index"},
        "full-text",
    ),
    "size of a document in the full-text index": ("UPDATE words_1_docsize SET sz = x'7f'", {"index"}, "full-text"),
    "a row of words_docsize deleted": (
        "DELETE FROM words_1_docsize WHERE id = (SELECT min(id) FROM words_1_docsize)",
        {"index"},
        "full-text",
    ),
    "a row of words_data deleted": (
        "DELETE FROM words_1_data WHERE id = (SELECT max(id) FROM words_1_data)",
        {"index"},
        "full-text",
    ),
    "version of the full-text index": ("DELETE FROM words_1_config", {"index"}, "full-text"),
    "full-text index dropped": ("DROP TABLE words_1", {"index"}, "full-text"),
}
for _column in ("documents", "rows", "index_crc32", "keys_bytes", "content_bytes"):
    CATALOG_DAMAGE[f"{_column} of a segment"] = (
        f"UPDATE segments SET {_column} = {_column} + 1 "
        f"WHERE id = (SELECT segment_id FROM documents WHERE {_id('long')})",
        {"segment"},
        "safetensors",
    )
for _column in ("keys_sha256", "content_sha256", "name"):
    CATALOG_DAMAGE[f"{_column} of a segment"] = (
        f"UPDATE segments SET {_column} = 'abc' WHERE id = (SELECT segment_id FROM documents WHERE {_id('long')})",
        {"segment"},
        "safetensors",
    )


UNHASHED = {
    "source taken for deleted": f"UPDATE sources SET deleted_in = 3 WHERE {_id('long', 'sources')}",
    "external id": f"UPDATE sources SET external_id = 'alias' WHERE {_id('long', 'sources')}",
    "time of adding": f"UPDATE sources SET added_at = '1970-01-01T00:00:00' WHERE {_id('long', 'sources')}",
    "name of a namespace": "UPDATE namespaces SET name = 'theirs' WHERE name = 'other'",
    "tokens of a document": f"UPDATE documents SET tokens = tokens + 1 WHERE {_id('long')}",
    "averages of the full-text index": "UPDATE words_1_data SET block = x'0a64' WHERE id = 1",
    "averages of the full-text index deleted": "DELETE FROM words_1_data WHERE id = 1",
}


@pytest.mark.parametrize("what", UNHASHED)
def test_a_change_of_what_no_hash_of_a_document_covers_is_found(folder: Path, what: str) -> None:
    _change(folder, UNHASHED[what])
    assert _faults(folder)


@pytest.mark.parametrize("what", CATALOG_DAMAGE)
def test_a_changed_catalog_is_found_and_what_is_wrong_is_named(folder: Path, what: str) -> None:
    statement, kinds, named = CATALOG_DAMAGE[what]
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        before = list(db.iterdump())
        db.execute(statement)
        db.commit()
        assert list(db.iterdump()) != before
    faults = _faults(folder)
    assert faults, "nothing was found"
    assert kinds is None or {fault.kind for fault in faults} >= kinds, faults
    assert any(named in f"{fault.where} {fault.message}" for fault in faults), faults
    assert all(fault.repairable == (fault.kind != "catalog") for fault in faults)
    assert all(fault.described()["message"] == fault.message for fault in faults)


def test_a_deleted_document_that_was_taken_for_alive_is_found(folder: Path) -> None:
    _change(
        folder, "UPDATE documents SET deleted_in = NULL WHERE id = (SELECT min(id) FROM documents WHERE deleted_in > 0)"
    )
    assert _faults(folder)


@pytest.mark.parametrize("table", ["manifest", "clock"])
def test_a_bank_without_its_manifest_or_its_clock_is_refused_by_name(folder: Path, table: str) -> None:
    _change(folder, f"DELETE FROM {table} WHERE TRUE")
    with pytest.raises(BankError, match={"manifest": "manifest is damaged|format version", "clock": "counter"}[table]):
        _faults(folder)


@pytest.mark.parametrize("key", tiny_manifest().as_json())
def test_any_row_missing_from_the_manifest_is_named(folder: Path, key: str) -> None:
    _change(folder, f"DELETE FROM manifest WHERE key = '{key}'")
    with pytest.raises(BankError, match=key.replace("_", "[_ ]")):
        MemoryBank.open(folder)


def test_two_texts_that_changed_places_are_found(folder: Path) -> None:
    _change(
        folder,
        f"UPDATE texts SET source_id = -1 WHERE {_id('long', 'texts')}",
        f"UPDATE texts SET source_id = (SELECT id FROM sources WHERE {_id('described', 'sources')}) - 100 "
        f"WHERE {_id('described', 'texts')}",
        "UPDATE texts SET source_id = (SELECT id FROM sources WHERE external_id = 'described' AND namespace_id = 1 "
        "AND deleted_in IS NULL) WHERE source_id = -1",
        f"UPDATE texts SET source_id = (SELECT id FROM sources WHERE {_id('long', 'sources')}) WHERE source_id < 0",
    )
    assert {"long", "described"} <= {fault.where for fault in _faults(folder) if fault.kind == "catalog"}


def test_a_text_that_changed_with_its_hashes_is_found_by_what_its_latents_were_made_of(folder: Path) -> None:
    changed = Document("long", "ONE two three four five six")  # with the same words, so the index is right
    _change(
        folder,
        f"UPDATE texts SET text = '{changed.text}' WHERE {_id('long', 'texts')}",
        f"UPDATE sources SET content_hash = '{changed.content_hash}', text_hash = '{changed.text_hash}' "
        f"WHERE {_id('long', 'sources')}",
    )
    (fault,) = _faults(folder)
    assert fault.kind == "segment" and "those of another text" in fault.message


def test_two_documents_that_changed_their_ids_are_found(folder: Path) -> None:
    # Of equal size, and both rows are whole: only who is who is wrong.
    _fill(bank := MemoryBank.open(folder), Document("one", "of two"), Document("two", "of two."))
    bank.close()
    (one, _), (two, _) = (
        _ask(folder, f"SELECT id, rows FROM documents WHERE {_id(name)}")[0] for name in ("one", "two")
    )
    _change(
        folder,
        *(f"UPDATE documents SET id = {new} WHERE id = {old}" for old, new in ((one, -1), (two, one), (-1, two))),
    )
    (fault,) = [fault for fault in _faults(folder) if fault.kind == "segment"]
    assert f"documents {one}, {two} stand" in fault.message


def test_a_flipped_bit_of_a_text_inside_the_catalog_is_found_and_the_document_named(folder: Path) -> None:
    path = folder / "catalog.sqlite"
    content = path.read_bytes()
    place = content.index(SECRET.encode())
    assert content.count(SECRET.encode()) == 1, "the text is stored once"
    for position in range(place, place + len(SECRET)):
        _flip(path, position)
        faults = _faults(folder)
        _flip(path, position)
        assert "described" in {fault.where for fault in faults if fault.kind == "catalog"}, f"byte {position - place}"
        assert DEFAULT_NAMESPACE in {fault.namespace for fault in faults}
    assert _faults(folder) == []


def _everything(folder: Path) -> list[Any]:
    """What can be read of a bank: documents, latents and what full-text search finds, by namespace."""
    with closing(MemoryBank.open(folder)) as bank:
        return [
            (read_bank(bank, namespace), bank.catalog.search(namespace, "the alpha text one two of", 10))
            for namespace in (DEFAULT_NAMESPACE, OTHER)
        ]


def test_a_flipped_bit_of_the_catalog_is_found_or_changes_nothing_that_can_be_read(folder: Path) -> None:
    path = folder / "catalog.sqlite"
    content = path.read_bytes()
    generator = random.Random(0)
    expected = _everything(folder)
    ((added_at,),) = _ask(folder, f"SELECT added_at FROM sources WHERE {_id('long', 'sources')}")
    dates = [found.start() for found in re.finditer(added_at.encode(), content)]
    for position in dates + generator.sample([place for place, byte in enumerate(content) if byte], 250):
        bit = 1 << generator.randrange(8)
        _flip(path, position, bit)
        try:
            found = _faults(folder)
        except BankError:
            found = [None]
        assert found or _everything(folder) == expected, f"bit {bit} of byte {position}"
        path.write_bytes(content)
