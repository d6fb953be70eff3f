"""Banks of format 2: read as they are, on a read-only disk too; made format 3 by the first that writes."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from helpers import add_latents, fill, make_format_2, random_latents, tiny_manifest

from memspan.bank import formats
from memspan.bank.archive import export_bank, import_bank
from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE, Catalog
from memspan.bank.formats import is_of_format_2
from memspan.bank.lines import export_documents
from memspan.bank.schema import FORMAT_2, SCHEMA
from memspan.bank.scope import Scope
from memspan.bank.texts import DocumentUpdate, TextBank
from memspan.bank.verify import verify
from memspan.errors import BankError
from memspan.types import Document

MANIFEST = tiny_manifest(num_kv_heads=1, head_dim=2)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The folder of a closed bank of format 2: two namespaces, one document deleted, one replaced."""
    torch.manual_seed(0)
    with closing(MemoryBank.create(tmp_path / "bank", MANIFEST)) as bank:
        fill(bank, "a", "b", "gone")
        fill(bank, "c", namespace="other")
        with bank.writer() as writer:
            document = Document("b", "another text", "Title", {"project": "x"}, "2026-03-01")
            add_latents(writer, document, random_latents(MANIFEST, 2))
            writer.commit()
        bank.delete(["gone"])
    make_format_2(tmp_path / "bank")
    return tmp_path / "bank"


def _version(folder: Path) -> str:
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as db:
        return db.execute("SELECT value FROM manifest WHERE key = 'format_version'").fetchone()[0]


def _objects(db: sqlite3.Connection) -> dict[str, object]:
    """Tables with their columns, and all else by its SQL."""
    found = db.execute("SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'words%'").fetchall()
    return {
        name: [tuple(row) for row in db.execute(f"PRAGMA table_xinfo({name})")] if kind == "table" else sql
        for kind, name, sql in found
    }


def test_a_bank_of_format_2_is_read_and_stays_what_it_is(old: Path) -> None:
    with closing(MemoryBank.open(old)) as bank:
        assert verify(bank) == []
        assert bank.get("b").metadata == {"project": "x"}
        assert [stored.document.external_id for stored in bank.catalog.sources(DEFAULT_NAMESPACE)] == ["a", "b"]
        with bank.snapshot() as snapshot:
            assert snapshot.num_documents == 2
            assert [number for number, _ in snapshot.search("another", 5)] == [5]
    assert _version(old) == "2"


def test_a_bank_of_format_2_is_read_without_writing_a_byte(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file() and path.name.startswith("catalog")}
    real = sqlite3.connect

    def read_only(place: str, **options: object) -> sqlite3.Connection:
        return real(f"{place.partition('?')[0]}?mode=ro&immutable=1", **options)  # type: ignore[call-overload]

    monkeypatch.setattr("memspan.bank.database.sqlite3.connect", read_only)
    with closing(TextBank.open(old)) as bank, bank.pinned_catalog() as catalog:
        assert catalog.counts().sources == 3
        assert catalog.page(DEFAULT_NAMESPACE, 0, 10)[0].external_id == "a"
        assert catalog.value("SELECT count(*) FROM pending") == 0
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("write", ["delete", "relabel", "add", "compact"])
def test_the_first_that_writes_makes_it_format_3(old: Path, write: str) -> None:
    with closing(MemoryBank.open(old)) as bank:
        if write == "delete":
            bank.delete(["a"])
        elif write == "relabel":
            assert bank.relabel(dataclasses.replace(bank.get("b"), metadata={"project": "y"}))
        elif write == "compact":
            bank.compact()
        else:
            fill(bank, "new")
        assert verify(bank) == []
    assert _version(old) == "3"
    with closing(MemoryBank.open(old)) as bank:
        assert verify(bank) == []
        assert "b" in [stored.document.external_id for stored in bank.catalog.sources(DEFAULT_NAMESPACE)]


def test_versions_and_expiry_work_in_a_bank_that_was_upgraded(old: Path) -> None:
    with closing(MemoryBank.open(old)) as bank:
        past = Scope.parse(None, "2026-03-02")
        assert [one.document.text for one in bank.catalog.sources(DEFAULT_NAMESPACE, past)] == ["another text"]
        assert bank.update("b", DocumentUpdate(metadata={"project": None, "n": 1}, expires="2999-01-01")) is not None
        with bank.writer() as writer:
            add_latents(writer, Document("b", "a third text"), random_latents(MANIFEST, 2))
            writer.commit()
        versions = [one.document for one in bank.catalog.versions(DEFAULT_NAMESPACE, "b")]
        assert [(one.text, one.metadata) for one in versions] == [
            ("another text", {"project": "x"}),
            ("another text", {"n": 1}),
            ("a third text", {}),
        ]
        assert {one.expires for one in versions} == {"2999-01-01"}
        assert [one.document.text for one in bank.catalog.sources(DEFAULT_NAMESPACE, past)] == ["another text"]
        assert verify(bank) == []
        bank.compact(secure=True)
        assert verify(bank) == []
        assert len(bank.catalog.versions(DEFAULT_NAMESPACE, "b")) == 1


def test_an_upgraded_bank_has_the_schema_of_a_new_one(old: Path) -> None:
    with closing(MemoryBank.open(old)) as bank:
        bank.delete(["a"])
    with closing(sqlite3.connect(":memory:")) as new, closing(sqlite3.connect(old / "catalog.sqlite")) as upgraded:
        new.executescript(SCHEMA)
        assert _objects(upgraded) == _objects(new)


def test_the_shown_tables_have_the_columns_of_format_3(old: Path) -> None:
    with closing(sqlite3.connect(":memory:")) as new, closing(Catalog(old / "catalog.sqlite")) as catalog:
        new.executescript(SCHEMA)
        tables = [name for (name,) in new.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        for table in tables:
            expected = [column[0] for column in new.execute(f"SELECT * FROM {table}").description]
            cursor = catalog.connection.execute(f"SELECT * FROM {table}")
            assert [column[0] for column in cursor.description] == expected


def test_a_reader_follows_the_upgrade_of_another(old: Path) -> None:
    with closing(TextBank.open(old)) as reader, closing(MemoryBank.open(old)) as writer:
        with reader.pinned_catalog() as catalog:
            fill(writer, "new")  # the snapshot stays as it was
            assert is_of_format_2(catalog)
            assert catalog.source(DEFAULT_NAMESPACE, "new") is None
        with reader.pinned_catalog() as catalog:
            assert not is_of_format_2(catalog)
            found = catalog.source(DEFAULT_NAMESPACE, "new")
            assert found is not None
            assert catalog.value("SELECT recorded_at FROM sources WHERE id = ?", (found.id,)) is not None
        reader.delete(["new"])  # whose own connection has seen format 2


def test_an_upgrade_that_is_killed_leaves_format_2(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statements = [*formats.FORMAT_3.split(";")[:-1], "SELECT none_such", ""]
    for end in (1, 3, 6, len(statements)):
        monkeypatch.setattr(formats, "FORMAT_3", ";".join([*statements[:end], "SELECT none_such", ""]))
        with closing(TextBank.open(old)) as bank, pytest.raises(BankError):
            bank.delete(["a"])
        assert _version(old) == "2"
    child = (
        "import os; from memspan.bank import edits; from memspan.bank.texts import TextBank\n"
        "edits.FORMAT_VERSION = type('Dying', (), {'__str__': lambda self: os._exit(9)})()\n"
        f"TextBank.open({str(old)!r}).delete(['a'])"
    )
    assert subprocess.run([sys.executable, "-c", child], check=False).returncode == 9
    monkeypatch.undo()
    with closing(MemoryBank.open(old)) as bank:
        assert is_of_format_2(bank.catalog)
        assert verify(bank) == []
        bank.delete(["a"])
        assert verify(bank) == []
    assert _version(old) == "3"


def test_a_bank_of_format_2_is_exported_and_an_archive_of_one_imported(old: Path, tmp_path: Path) -> None:
    with closing(MemoryBank.open(old)) as bank:
        export_bank(bank, tmp_path / "one.bank")
        with (tmp_path / "lines.jsonl").open("w", encoding="utf-8") as stream:
            assert export_documents(bank, stream) == 3
    assert _version(old) == "2"
    shutil.rmtree(old)
    with closing(import_bank(tmp_path / "one.bank", tmp_path / "again")) as bank:
        assert verify(bank) == []
        assert bank.catalog.counts().sources == 3


def test_what_an_interrupted_reencoding_staged_is_kept(old: Path) -> None:
    with closing(sqlite3.connect(old / "catalog.sqlite")) as db:
        db.execute("INSERT INTO manifest VALUES ('staged', json_object('format_version', 2, 'chunk_size', 8))")
        db.commit()
    with closing(TextBank.open(old)) as bank:
        bank.delete(["a"])
        assert bank.catalog.staged_manifest() == {"format_version": 3, "chunk_size": 8}


def test_format_2_is_what_it_was() -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(FORMAT_2)
        columns = [row[1] for row in db.execute("PRAGMA table_info(sources)")]
    assert columns[-2:] == ["deleted_in", "seal"]
    assert len(columns) == 11
