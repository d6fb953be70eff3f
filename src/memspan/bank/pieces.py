"""Parts of published files that were fetched, in one SQLite file of at most so many bytes: those used last.

It is a cache: what it loses is fetched again, so nothing is synced, and a damaged file is made anew. Several processes
may use it at once.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from memspan.files import remove

_log = logging.getLogger(__name__)

Result = TypeVar("Result")
Part = tuple[str, int, int]
"""Bytes of a file: its name, the first, the one after the last."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS pieces (
    file TEXT NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL, used INTEGER NOT NULL, data BLOB NOT NULL,
    UNIQUE (file, start, stop)
) STRICT;
CREATE INDEX IF NOT EXISTS by_use ON pieces (used);
"""
_BUSY_SECONDS = 5.0
# Uses are written down once in so many seconds.
_USED_SECONDS = 60
# What is left when some had to go, so that not every new piece has others removed.
_LEFT = 0.9


class Pieces:
    """The file; for any number of threads."""

    def __init__(self, path: Path, budget: Callable[[], int | None]) -> None:
        """
        Args:
            budget: how many bytes the file may take now; None: any number.
        """
        self._path, self._budget = path, budget
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    def get(self, parts: Iterable[Part]) -> dict[Part, bytes]:
        """Those of some parts that are kept."""

        def found(db: sqlite3.Connection) -> dict[Part, bytes]:
            query = "SELECT data, used, rowid FROM pieces WHERE file = ? AND start = ? AND stop = ?"
            rows = {part: row for part in parts if (row := db.execute(query, part).fetchone()) is not None}
            now = int(time.time())
            stale = [(now, rowid) for _, used, rowid in rows.values() if used < now - _USED_SECONDS]
            db.executemany("UPDATE pieces SET used = ? WHERE rowid = ?", stale)
            return {part: data for part, (data, _, _) in rows.items()}

        return self._try(found, {})

    def put(self, pieces: Mapping[Part, bytes]) -> None:
        """Keep parts, as far as the budget goes."""

        def kept(db: sqlite3.Connection) -> None:
            now = int(time.time())
            rows = [(*part, now, data) for part, data in pieces.items()]
            db.executemany("INSERT OR REPLACE INTO pieces VALUES (?, ?, ?, ?, ?)", rows)

        self._try(kept, None)
        self.shrink()

    def drop(self, parts: Sequence[Part]) -> None:
        """Forget parts that turned out to be damaged."""
        query = "DELETE FROM pieces WHERE file = ? AND start = ? AND stop = ?"
        self._try(lambda db: db.executemany(query, parts), None)

    def keep_files(self, names: Collection[str]) -> None:
        """Forget the parts of all other files."""

        def kept(db: sqlite3.Connection) -> None:
            held = [name for (name,) in db.execute("SELECT DISTINCT file FROM pieces")]
            db.executemany("DELETE FROM pieces WHERE file = ?", [(name,) for name in held if name not in names])

        self._try(kept, None)

    def shrink(self) -> None:
        """Forget what was not used for longest, where the file is larger than it may be."""
        most = self._budget()
        if most is None:
            return

        def shrunk(db: sqlite3.Connection) -> None:
            while (size := _bytes(db)) > most:
                (held,) = db.execute("SELECT total(length(data)) FROM pieces").fetchone()
                if not held:
                    return
                surplus = size - int(most * _LEFT)
                oldest = db.execute("SELECT rowid, length(data) FROM pieces ORDER BY used, rowid")
                gone = []
                for rowid, length in oldest:
                    gone.append((rowid,))
                    surplus -= length
                    if surplus <= 0:
                        break
                db.executemany("DELETE FROM pieces WHERE rowid = ?", gone)
                db.commit()

        self._try(shrunk, None)

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def _try(self, use: Callable[[sqlite3.Connection], Result], otherwise: Result) -> Result:
        """What a use of the file gives, in one transaction; `otherwise` where the file cannot be used now."""
        with self._lock:
            try:
                if self._db is None:
                    self._db = _opened(self._path)
                with self._db:
                    return use(self._db)
            except sqlite3.Error as error:
                _log.warning("%s cannot be used (%s); what was in it is fetched again", self._path, error)
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                    if self._db is not None:
                        self._db.close()
                        self._db = None
                    remove(self._path)
                return otherwise


def _opened(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False)
    try:
        db.execute("PRAGMA auto_vacuum = FULL")  # so that what was forgotten frees its space
        db.execute("PRAGMA synchronous = OFF")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db


def _bytes(db: sqlite3.Connection) -> int:
    return db.execute("PRAGMA page_count").fetchone()[0] * db.execute("PRAGMA page_size").fetchone()[0]
