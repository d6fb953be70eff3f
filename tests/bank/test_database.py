from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    add_latents,
    become_nobody,
    bits,
    child_process,
    commit_texts,
    enterable_folder,
    file_size_limit,
    fill,
    latents_in,
    random_latents,
    read_bank,
    receive,
    tiny_manifest,
)

from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE, Catalog
from memspan.bank.database import Database
from memspan.errors import BankClosed, BankError
from memspan.types import Document

DEFAULT = DEFAULT_NAMESPACE
MANIFEST = tiny_manifest()
SCHEMA = "CREATE TABLE t (x UNIQUE); INSERT INTO t VALUES (1);"


@pytest.fixture
def database(tmp_path: Path) -> Iterable[Database]:
    database = Database(tmp_path / "file.sqlite", schema=SCHEMA)
    yield database
    database.close()


def _rows(database: Database) -> list[int]:
    return [x for (x,) in database.read("SELECT x FROM t ORDER BY x")]


def _insert(database: Database, *values: object) -> None:
    with database.transaction():
        database.execute_many("INSERT INTO t VALUES (?)", [(value,) for value in values])


def test_threads_that_read_at_once_never_wait_for_each_other_for_good(database: Database) -> None:
    """While a statement calls a function of ours, another thread takes rows: each could hold what the other wants."""
    _insert(database, *range(2, 1000))

    def read(pipe: Connection) -> None:
        database.connection.create_function("slow", 1, lambda x: time.sleep(0.0005) or x)
        queries = [f"SELECT {x} FROM t" for x in ("slow(x)", "x", "slow(x)", "x")] * 4
        with ThreadPoolExecutor(4) as threads:
            pipe.send([len(rows) for rows in threads.map(database.read, queries)])

    with child_process(read) as (_, pipe):
        assert receive(pipe) == [999] * 16


# --- transactions ---------------------------------------------------------------------------------------------------


def test_what_is_committed_is_seen_by_every_connection_and_only_then(database: Database) -> None:
    other = Database(database.path)
    with database.transaction():
        database.execute("INSERT INTO t VALUES (2)")
        assert (_rows(database), _rows(other)) == ([1, 2], [1])
    assert _rows(other) == [1, 2]
    other.close()


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt(), sqlite3.OperationalError("disk is full")])
def test_nothing_is_left_of_a_transaction_that_fails(database: Database, error: BaseException) -> None:
    is_sqlite = isinstance(error, sqlite3.Error)
    with pytest.raises(BankError if is_sqlite else type(error)) as raised, database.transaction():
        database.execute("INSERT INTO t VALUES (2)")
        raise error
    if is_sqlite:
        assert str(database.path) in str(raised.value) and "disk is full" in str(raised.value)
    assert _rows(database) == _rows(Database(database.path)) == [1]
    _insert(database, 3)
    assert _rows(database) == [1, 3], "the same connection goes on"


def test_a_broken_constraint_is_a_named_error(database: Database) -> None:
    with pytest.raises(BankError, match=rf"cannot write {database.path}: UNIQUE"):
        _insert(database, 2, 1)
    assert _rows(database) == [1]


def test_a_row_inserted_has_an_id(database: Database) -> None:
    with database.transaction():
        assert [database.execute("INSERT INTO t VALUES (?)", (x,)) for x in (5, 6)] == [2, 3]


def test_a_locked_file_is_a_named_error_and_readers_go_on(database: Database) -> None:
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    database.connection.execute("PRAGMA busy_timeout = 0")
    with pytest.raises(BankError, match="locked"):
        _insert(database, 2)
    assert _rows(database) == [1]
    other.execute("ROLLBACK")
    other.close()
    _insert(database, 2)
    assert _rows(database) == [1, 2]


def test_a_transaction_shuts_others_out_from_its_beginning(database: Database) -> None:
    other = Database(database.path)
    other.connection.execute("PRAGMA busy_timeout = 0")
    with database.transaction():
        assert _rows(database) == [1]
        with pytest.raises(BankError, match="locked"):
            _insert(other, 2)
        database.execute("INSERT INTO t VALUES (3)")
    _insert(other, 2)
    assert _rows(database) == [1, 2, 3]


def test_a_writer_waits_for_another_one(database: Database) -> None:
    def write(pipe: Connection) -> None:
        other = Database(database.path)
        with other.transaction():
            other.execute("INSERT INTO t VALUES (2)")
            pipe.send("begun")
        other.close()

    with child_process(write) as (_, pipe):
        assert receive(pipe) == "begun"
        _insert(database, 3)
    assert _rows(database) == [1, 2, 3]


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "values"),
    [("SELECT nothing FROM t", ()), ("SELECT ?", (2**70,)), ("SELECT ?", (object(),)), ("SELEC", ())],
)
def test_a_question_that_cannot_be_answered_is_a_named_error(
    database: Database, query: str, values: tuple[Any, ...]
) -> None:
    for ask in (database.read, database.value, lambda *arguments: list(database.rows(*arguments))):
        with pytest.raises(BankError, match=f"cannot read {database.path}.*memspan verify BANK"):
            ask(query, values)
    assert _rows(database) == [1]


def test_a_text_that_is_no_utf_8_is_a_named_error(database: Database) -> None:
    _insert(database, "damaged")
    with database.transaction():
        database.execute("UPDATE t SET x = CAST(x'ff' AS TEXT) WHERE x = 'damaged'")
    with pytest.raises(BankError, match="cannot read"):
        database.read("SELECT x FROM t")


def test_a_question_that_is_no_unicode_is_a_named_error(database: Database) -> None:
    with pytest.raises(BankError, match="cannot read"):
        database.read("SELECT ?", ("\ud800",))


def test_the_first_value_or_none(database: Database) -> None:
    assert database.value("SELECT x FROM t") == 1
    assert database.value("SELECT x FROM t WHERE x > 1") is None


def test_a_snapshot_sees_nothing_later_until_it_ends(database: Database) -> None:
    reader = Database(database.path)
    reader.begin_snapshot()
    _insert(database, 2)
    assert _rows(reader) == [1]
    reader.end_snapshot()
    assert _rows(reader) == [1, 2]
    reader.end_snapshot()  # once more is no harm
    reader.begin_snapshot()
    _insert(database, 3)
    assert _rows(reader) == [1, 2]
    reader.close()


def test_a_foreign_key_must_refer_to_something(tmp_path: Path) -> None:
    schema = "CREATE TABLE a (id INTEGER PRIMARY KEY); CREATE TABLE b (a REFERENCES a (id));"
    database = Database(tmp_path / "file", schema=schema)
    for handle in (database, Database(tmp_path / "file")):
        with pytest.raises(BankError, match="FOREIGN KEY"), handle.transaction():
            handle.execute("INSERT INTO b VALUES (1)")


def test_every_connection_syncs_what_it_commits(database: Database) -> None:
    for handle in (database, Database(database.path)):
        assert handle.value("PRAGMA synchronous") == 3, "EXTRA"
        assert handle.value("PRAGMA journal_mode") == "wal"


# --- opening --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"garbage" * 3000, b"SQLite format 3\0" + b"\xff" * 8176])
def test_a_file_that_is_no_database_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.sqlite"
    path.write_bytes(content)
    with pytest.raises(BankError, match=f"{path} is not a readable bank catalog"):
        Database(path)
    assert path.read_bytes() == content


def test_a_file_that_is_not_there_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(BankError, match=r"file\.sqlite"):
        Database(tmp_path / "file.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_a_schema_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(BankError, match=r"file\.sqlite"):
        Database(tmp_path / "file.sqlite", schema="CREATE TABLE t (x); CREATE NONSENSE;")


@pytest.mark.parametrize("name", ["a b", "a%20b", "a?b#c", "ä日", "a&mode=memory"])
def test_any_path_is_a_path(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    Database(tmp_path / name / "file", schema=SCHEMA).close()
    assert _rows(Database(tmp_path / name / "file")) == [1]


def test_closing_twice_is_closing_once(database: Database) -> None:
    database.close()
    database.close()
    with pytest.raises(BankClosed, match="was closed; open it again"):
        database.read("SELECT 1")


# --- vacuum ---------------------------------------------------------------------------------------------------------


def test_a_vacuumed_file_holds_nothing_that_was_deleted_and_has_no_log(database: Database) -> None:
    _insert(database, "a secret word")
    with database.transaction():
        database.execute("DELETE FROM t WHERE x = 'a secret word'")
    files = [database.path, database.path.with_name("file.sqlite-wal")]
    assert any(b"a secret word" in path.read_bytes() for path in files)
    database.vacuum()
    assert database.empty_log()
    assert not any(b"a secret word" in path.read_bytes() for path in files)
    assert files[1].stat().st_size == 0
    assert _rows(database) == [1]


def test_a_log_that_a_reader_needs_is_not_emptied_and_nothing_is_lost(database: Database) -> None:
    reader = Database(database.path)
    reader.begin_snapshot()
    _insert(database, 2)
    database.vacuum()
    assert not database.empty_log()
    assert (_rows(reader), _rows(database)) == ([1], [1, 2])
    reader.end_snapshot()
    assert database.empty_log()
    reader.close()


def test_a_vacuum_without_space_is_a_named_error(database: Database) -> None:
    _insert(database, *(f"{number} " * 500 for number in range(200)))
    before = _rows(database)
    message = f"cannot rewrite {database.path}.*free space of its own size"
    with file_size_limit(database.path.stat().st_size), pytest.raises(BankError, match=message):
        database.vacuum()
    assert _rows(database) == before
    database.vacuum()


# --- what may only be read ------------------------------------------------------------------------------------------


@pytest.fixture
def enterable() -> Iterable[Path]:
    with enterable_folder() as folder:
        yield folder


def _as_nobody(do: Callable[[], Any]) -> Any:
    """What a function returns in a process that may not write everywhere; errors as (type, message)."""

    def child(pipe: Connection) -> None:
        become_nobody()
        try:
            pipe.send(do())
        except Exception as error:
            pipe.send((type(error), str(error)))

    with child_process(child) as (process, pipe):
        answer = receive(pipe)
        process.join(60)
        assert process.exitcode == 0
    return answer


def _filled_bank(folder: Path) -> None:
    """A bank of two documents in two namespaces, one of them updated."""
    bank = MemoryBank.create(folder, MANIFEST)
    fill(bank, "zebra", "giraffe")
    with bank.writer() as writer:
        add_latents(writer, Document("zebra", "a new zebra"), random_latents(MANIFEST, 2))
        writer.commit()
    fill(bank, "gnu", namespace="other")
    bank.close()


def _look_at(folder: Path) -> tuple[Any, ...]:
    """Everything a reader sees of a bank."""
    bank = MemoryBank.open(folder)
    try:
        with bank.snapshot() as snapshot:
            found = snapshot.search("zebra", 9)
            texts = [document.text for document in snapshot.documents([number for number, _ in found])]
        return bank.manifest, read_bank(bank), read_bank(bank, "other"), found, texts, bank.catalog.counts()
    finally:
        bank.close()


def _read_only(folder: Path) -> None:
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        path.chmod(0o555)


def test_a_bank_in_a_folder_that_may_not_be_written_opens_for_reading(enterable: Path) -> None:
    folder = enterable / "bank"
    _filled_bank(folder)
    expected, before = _look_at(folder), sorted(folder.rglob("*"))
    assert expected[4] == ["a new zebra"]
    _read_only(folder)
    assert _as_nobody(lambda: os.access(folder, os.W_OK)) is False, "else this test tests nothing"
    assert _as_nobody(lambda: _look_at(folder)) == expected
    assert sorted(folder.rglob("*")) == before
    assert _look_at(folder) == expected


CHANGES: dict[str, Callable[[MemoryBank], object]] = {
    "add": lambda bank: fill(bank, "c"),
    "delete": lambda bank: bank.delete(["zebra"]),
    "compact": lambda bank: bank.compact(),
    "erase": lambda bank: bank.compact(secure=True),
    "catalog": lambda bank: commit_texts(bank.catalog, Document("c", "text")),
}


@pytest.mark.parametrize("locked_before", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_writing_where_nothing_may_be_written_is_a_named_error(
    enterable: Path, change: str, locked_before: bool
) -> None:
    folder = enterable / "bank"
    _filled_bank(folder)
    if not locked_before:
        for name in ("writer.lock", "writer.pid"):
            (folder / name).unlink(missing_ok=True)
    expected = _look_at(folder)
    _read_only(folder)
    kind, message = _as_nobody(lambda: CHANGES[change](MemoryBank.open(folder)))
    assert kind is BankError, message
    assert str(folder) in message and ("cannot be written" in message or "readonly" in message)
    assert _look_at(folder) == expected


def test_many_snapshots_of_a_read_only_bank_are_alike(enterable: Path) -> None:
    folder = enterable / "bank"
    _filled_bank(folder)
    _read_only(folder)

    def look() -> tuple[list[Any], bool]:
        bank = MemoryBank.open(folder)
        with bank.snapshot() as one, bank.snapshot() as two, bank.snapshot("other") as other:
            seen = [
                [bits(latents_in(shard, n)) for shard in snapshot.shards for n in range(len(shard.ids_N))]
                for snapshot in (one, two, other)
            ]
            return [*seen[:2], len(seen[2])], bank.catalog.read_only

    (one, two, other), read_only = _as_nobody(look)
    assert (one == two, len(one), other, read_only) == (True, 3, 1, True)


def test_a_bank_whose_shared_file_cannot_be_made_opens_for_reading(tmp_path: Path) -> None:
    _filled_bank(tmp_path / "bank")
    expected = _look_at(tmp_path / "bank")
    (tmp_path / "bank" / "catalog.sqlite-shm").mkdir()
    assert _look_at(tmp_path / "bank") == expected


def test_what_stands_in_the_log_only_is_not_passed_over_silently(enterable: Path) -> None:
    """A copy of a bank made while it was written, where no reader may make the file it needs to read the log."""
    folder, copy = enterable / "bank", enterable / "copy"
    _filled_bank(folder)
    catalog = Catalog(folder / "catalog.sqlite")
    commit_texts(catalog, Document("a", "newest"))
    copy.mkdir()
    for name in ("catalog.sqlite", "catalog.sqlite-wal"):
        shutil.copy(folder / name, copy / name)
    catalog.close()
    assert (copy / "catalog.sqlite-wal").stat().st_size
    copy.chmod(0o555)
    kind, message = _as_nobody(lambda: _look_at(copy))
    assert kind is BankError and str(copy / "catalog.sqlite") in message


def test_a_file_to_which_a_writer_is_connected_can_be_read_where_nothing_may_be_written(enterable: Path) -> None:
    folder = enterable / "bank"
    _filled_bank(folder)
    writer = MemoryBank.open(folder)
    fill(writer, "newest")
    expected = _look_at(folder)
    _read_only(folder)
    assert _as_nobody(lambda: _look_at(folder)) == expected
    assert "newest" in {document.external_id for document, *_ in expected[1]}
    writer.close()
