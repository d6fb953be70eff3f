"""One SQLite connection: how it is opened, read, changed in transactions, and held at a snapshot. Named errors.

A file on this machine has a write-ahead log: readers and the writer do not wait for each other. On a network folder it
has a rollback journal instead: the writer's commits wait for snapshots to end, and new snapshots for a commit.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from memspan.bank.network import network_type_with_warning
from memspan.errors import BankBusy, BankClosed, BankError

_BUSY_SECONDS = 30
_ROWS_AT_ONCE = 256
_REMEDY = "run: memspan verify BANK, or restore it from a backup"


class Database:
    """A connection to a bank's catalog. Threads may read it at once; one changes it.

    Two threads are never inside SQLite with it: where a function of ours is called by a statement, the one would hold
    SQLite's lock and wait for Python's, and the other the reverse.

    Attributes:
        read_only: the file may only be read, and is taken to be unchanging: nothing is locked.

    Raises:
        BankError: the file is not a readable SQLite database.
    """

    def __init__(self, path: Path, *, schema: str | None = None) -> None:
        """Open the file, or make it where a `schema` is given."""
        self.path = path
        self.read_only = False
        self._inside = threading.RLock()
        self._db: sqlite3.Connection | None = None
        try:
            on_network = network_type_with_warning(path.absolute().parent)
            self._db = _connect(f"{path.absolute().as_uri()}?mode={'rw' if schema is None else 'rwc'}")
            if schema is not None:
                self._db.execute(f"PRAGMA journal_mode = {'DELETE' if on_network else 'WAL'}")
                self._db.executescript(f"BEGIN; {schema} COMMIT;")
            try:
                if on_network:
                    _leave_log(self._db)  # before all that reads the file, and would open its log
                self._db.execute("PRAGMA fullfsync = ON")  # on macOS an fsync reaches the drive's cache only
                self._db.execute("PRAGMA synchronous = EXTRA")  # syncs the folder when a journal's end is the commit
                self._db.execute("SELECT 1 FROM sqlite_schema LIMIT 1")
            except sqlite3.OperationalError as error:
                # A read-only folder, or a full disk: SQLite cannot make the file that readers of a WAL share. With
                # an empty log the catalog itself holds everything.
                if schema is not None or _is_busy(error) or _log_holds_something(path):
                    raise
                self._db.close()
                self._db = _connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1")
                self._db.execute("SELECT 1 FROM sqlite_schema LIMIT 1")
                self.read_only = True
        except (sqlite3.Error, UnicodeError, OSError) as error:
            self.close()
            raise self._bank_error(error, f"{path} is not a readable bank catalog ({error}); {_REMEDY}") from error

    def close(self) -> None:
        """Let go of the file. A closed connection is of no use."""
        if self._db is not None:
            self._db.close()
            self._db = None

    @property
    def connection(self) -> sqlite3.Connection:
        """
        Raises:
            BankClosed: `close` was called.
        """
        if self._db is None:
            raise BankClosed("this bank was closed; open it again")
        return self._db

    def read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows of a query.

        Raises:
            BankError: the file is damaged, or cannot be read.
        """
        return list(self.rows(query, values))

    def rows(self, query: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        """The rows of a query as they come; errors as in `read`."""
        try:
            with self._inside:
                cursor = self.connection.execute(query, values)
            while found := self._some(cursor):
                yield from found
        except (sqlite3.Error, OverflowError, UnicodeError) as error:
            raise self._bank_error(error, f"cannot read {self.path} ({error}); {_REMEDY}") from error

    def _some(self, cursor: sqlite3.Cursor) -> list[Any]:
        with self._inside:
            return cursor.fetchmany(_ROWS_AT_ONCE)

    def value(self, query: str, values: Sequence[Any] = ()) -> Any:
        """The first column of the first row, or None."""
        rows = self.read(query, values)
        return rows[0][0] if rows else None

    def execute(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Change something inside a transaction; returns the id of the last row inserted."""
        with self._inside:
            return self.connection.execute(statement, values).lastrowid or 0

    def execute_many(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        with self._inside:
            self.connection.executemany(statement, values)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is changed inside becomes visible and durable at its end, or nothing of it.

        Raises:
            BankError: the file cannot be written.
        """
        try:
            self.execute("BEGIN IMMEDIATE")
            yield
            self.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                self.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error | UnicodeError):
                message = (
                    f"cannot write {self.path}: {error}. What was committed before is safe; free some space if the "
                    "disk is full, and do it again"
                )
                raise self._bank_error(error, message) from error
            raise

    def begin_snapshot(self) -> None:
        """See the file as it is now until `end_snapshot`, whatever is committed meanwhile."""
        self.read("BEGIN")
        self.read("SELECT 1 FROM sqlite_schema LIMIT 1")  # a deferred transaction begins with its first read

    def end_snapshot(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.execute("ROLLBACK")

    def copy_to(self, path: Path) -> None:
        """Write a copy, as of now, page by page: a file of its own, without a log.

        Raises:
            BankError: it cannot be written.
        """
        try:
            with contextlib.closing(_connect(path.absolute().as_uri())) as copy:
                self.connection.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")
        except (sqlite3.Error, OSError) as error:
            raise self._bank_error(error, f"cannot copy {self.path} to {path}: {error}") from error

    def become(self, path: Path) -> None:
        """Become a copy of another file, in one transaction: a snapshot that is open sees what was there before.

        Raises:
            BankError: it cannot be written.
        """
        try:
            with contextlib.closing(_connect(path.absolute().as_uri())) as other:
                other.backup(self.connection)
        except (sqlite3.Error, OSError) as error:
            raise self._bank_error(error, f"cannot write {self.path}: {error}; free some space") from error
        self.empty_log()

    def vacuum(self) -> None:
        """Rewrite the file without anything that was deleted; the old content may stay in the log until `empty_log`.

        Raises:
            BankError: the file cannot be written (it needs free space of its own size).
        """
        try:
            self.execute("VACUUM")
        except (sqlite3.Error, UnicodeError) as error:
            message = f"cannot rewrite {self.path}: {error}; it needs free space of its own size"
            raise self._bank_error(error, message) from error

    def empty_log(self) -> bool:
        """Write the log into the file and truncate it; False if a reader needs it now.

        Raises:
            BankError: the file cannot be written.
        """
        try:
            self.execute("PRAGMA busy_timeout = 0")
            ((busy, *_),) = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return not busy
        except (sqlite3.Error, UnicodeError) as error:
            raise BankError(f"cannot write {self.path}: {error}") from error
        finally:
            self.execute(f"PRAGMA busy_timeout = {1000 * _BUSY_SECONDS}")

    def _bank_error(self, error: Exception, message: str) -> BankError:
        """The error that the caller gets: of this message, or that the file is in use."""
        if _is_busy(error):
            return BankBusy(
                f"{self.path} is in use ({error}) and nothing was changed; wait for the processes that use it, or end "
                "them, and do it again"
            )
        return BankError(message)


def _connect(uri: str) -> sqlite3.Connection:
    db = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None, timeout=_BUSY_SECONDS)
    db.execute("PRAGMA foreign_keys = ON")
    return db


def _leave_log(db: sqlite3.Connection) -> None:
    """Give a file that has a write-ahead log (it was made on a disk) a journal, without the memory a log shares."""
    try:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = DELETE")
    finally:
        db.execute("PRAGMA locking_mode = NORMAL")  # holds until the next read


def _log_holds_something(path: Path) -> bool:
    logs = [path.with_name(f"{path.name}{suffix}") for suffix in ("-wal", "-journal")]
    return any(log.exists() and log.stat().st_size for log in logs)


def _is_busy(error: BaseException) -> bool:
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
