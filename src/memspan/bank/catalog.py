"""`catalog.sqlite`: which documents a bank holds, their text, where their latents stand, and the full-text index.

A *source* is what the caller added, kept verbatim; a *document* is what is encoded under one permanent id: a whole
source, or a part of a long one (its parent is the source, its place a character span of it).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memspan.bank.segment import Placed, SegmentFiles
from memspan.errors import BankError
from memspan.text.template import encoded_text
from memspan.text.terms import index_terms, query_terms
from memspan.types import JSON, Document, Span

_SCHEMA = """
CREATE TABLE manifest (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE segments (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    rows INTEGER NOT NULL,
    keys_bytes INTEGER NOT NULL, keys_sha256 TEXT NOT NULL,
    content_bytes INTEGER NOT NULL, content_sha256 TEXT NOT NULL
);
CREATE TABLE sources (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    external_id TEXT NOT NULL,
    title TEXT NOT NULL,
    text TEXT NOT NULL,
    metadata TEXT NOT NULL,
    content_hash TEXT NOT NULL,
    added_at REAL NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('live', 'deleted'))
);
CREATE UNIQUE INDEX live_external_id ON sources (external_id) WHERE state = 'live';
CREATE TABLE documents (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    source_id INTEGER NOT NULL REFERENCES sources (id),
    span_start INTEGER NOT NULL,
    span_end INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    segment_id INTEGER NOT NULL REFERENCES segments (id),
    first_row INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('live', 'deleted'))
);
CREATE INDEX documents_of_source ON documents (source_id);
CREATE VIRTUAL TABLE word_index USING fts5 (words, content = '', tokenize = 'porter unicode61 remove_diacritics 2');
"""

_RESTORE = "restore it from a backup, or build the bank again"
_MAX_INTEGER = 2**63 - 1
_FIRST_READ = "SELECT 1 FROM documents LIMIT 1"
_SEGMENT_COLUMNS = ", ".join(field.name for field in dataclasses.fields(SegmentFiles))

_STORED = """
SELECT d.id, s.external_id, s.title, substr(s.text, d.span_start + 1, d.span_end - d.span_start),
    d.span_start, d.span_end, s.metadata, d.tokens, d.rows
FROM documents d JOIN sources s ON s.id = d.source_id WHERE d.state = 'live'
"""


@dataclass(frozen=True, slots=True)
class NewDocument:
    """A document ready to be committed: its reserved id, its part of the source, its size in tokens."""

    document_id: int
    span: Span
    tokens: int


@dataclass(frozen=True, slots=True)
class NewSource:
    """A source whose documents are all encoded."""

    document: Document
    parts: tuple[NewDocument, ...]


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A live document as the bank knows it. `text` is its own part of the source's text, at `span`."""

    id: int
    external_id: str
    title: str
    text: str
    span: Span
    metadata: dict[str, JSON]
    tokens: int
    chunks: int

    @property
    def encoded_text(self) -> str:
        """What was encoded, is searched, and is put before the model."""
        return encoded_text(self.title, self.text)


@dataclass(frozen=True, slots=True)
class Counts:
    """Size of a bank: live sources, documents, tokens and chunks; files' bytes."""

    sources: int
    documents: int
    tokens: int
    chunks: int
    segments: int
    segment_bytes: int


class Catalog:
    """One connection to a bank's catalog. Every change is one transaction.

    Raises:
        BankError: the file is not a readable SQLite database with our tables.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        try:
            self._db = self._connect(path.absolute().as_uri())
            if create:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
            try:
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.execute(_FIRST_READ)
            except sqlite3.OperationalError:
                # A read-only folder, or a full disk: SQLite cannot make the file that readers of a WAL share. With
                # an empty WAL nothing is in it that the catalog itself does not hold.
                wal = path.with_name(f"{path.name}-wal")
                if create or (wal.exists() and wal.stat().st_size):
                    raise
                self._db.close()
                self._db = self._connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1")
                self._db.execute(_FIRST_READ)
        except sqlite3.Error as error:
            raise BankError(f"{path} is not a readable bank catalog ({error})") from error

    @staticmethod
    def _connect(uri: str) -> sqlite3.Connection:
        db = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None, timeout=30)
        db.execute("PRAGMA foreign_keys = ON")
        return db

    def close(self) -> None:
        self._db.close()

    def read_manifest(self) -> dict[str, Any]:
        try:
            return {key: json.loads(value) for key, value in self._read("SELECT key, value FROM manifest")}
        except ValueError as error:
            raise BankError(f"the manifest in {self.path} is damaged ({error}); {_RESTORE}") from error

    def write_manifest(self, values: dict[str, Any]) -> None:
        with self._transaction():
            rows = [(key, json.dumps(value)) for key, value in values.items()]
            self._db.executemany("INSERT OR REPLACE INTO manifest VALUES (?, ?)", rows)

    def version(self) -> tuple[int, int]:
        """Changes whenever this or another connection commits."""
        ((other,),) = self._read("PRAGMA data_version")
        return other, self._db.total_changes

    def next_document_id(self) -> int:
        """The first id that was never given to a document. Stable while the caller holds the writer's lock."""
        rows = self._read("SELECT seq FROM sqlite_sequence WHERE name = 'documents'")
        return (rows[0][0] if rows else 0) + 1

    def content_hash(self, external_id: str) -> str | None:
        """The content hash of a live source, or None if there is none of this name."""
        query = "SELECT content_hash FROM sources WHERE state = 'live' AND external_id = ?"
        return next((row[0] for row in self._read(query, (external_id,))), None)

    def commit(self, sources: Iterable[NewSource], segments: Iterable[SegmentFiles], places: Iterable[Placed]) -> None:
        """Make encoded sources part of the bank, in one transaction. A live source of the same external id is replaced.

        Raises:
            BankError: the catalog cannot be written; nothing of this call is visible then.
        """
        placed = {place.document_id: place for place in places}
        with self._transaction():
            segment_ids = {files.name: self._insert_segment(files) for files in segments}
            for source in sources:
                self._retire(source.document.external_id)
                source_id = self._insert_source(source.document)
                for part in source.parts:
                    place = placed[part.document_id]
                    self._insert_document(source, source_id, part, segment_ids[place.segment], place)

    def _insert_segment(self, files: SegmentFiles) -> int:
        cursor = self._db.execute(
            f"INSERT INTO segments ({_SEGMENT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", dataclasses.astuple(files)
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _insert_source(self, document: Document) -> int:
        metadata = json.dumps(dict(document.metadata))
        values = (document.external_id, document.title, document.text, metadata, document.content_hash, time.time())
        cursor = self._db.execute(
            "INSERT INTO sources (external_id, title, text, metadata, content_hash, added_at, state) "
            "VALUES (?, ?, ?, ?, ?, ?, 'live')",
            values,
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _insert_document(
        self, source: NewSource, source_id: int, part: NewDocument, segment_id: int, place: Placed
    ) -> None:
        values = (part.document_id, source_id, part.span.start, part.span.end, part.tokens, segment_id)
        self._db.execute(
            "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'live')", (*values, place.first_row, place.rows)
        )
        text = encoded_text(source.document.title, source.document.text[part.span.start : part.span.end])
        self._db.execute("INSERT INTO word_index (rowid, words) VALUES (?, ?)", (part.document_id, _indexed(text)))

    def _retire(self, external_id: str) -> None:
        """Tombstone a live source and its documents, if there is one."""
        for stored in self._stored("AND s.external_id = ?", (external_id,)):
            # A contentless index wants the words back to take them out.
            values = (stored.id, _indexed(stored.encoded_text))
            self._db.execute("INSERT INTO word_index (word_index, rowid, words) VALUES ('delete', ?, ?)", values)
            self._db.execute("UPDATE documents SET state = 'deleted' WHERE id = ?", (stored.id,))
        self._db.execute(
            "UPDATE sources SET state = 'deleted' WHERE state = 'live' AND external_id = ?", (external_id,)
        )

    def segments(self) -> list[SegmentFiles]:
        """All committed segments, oldest first."""
        return [SegmentFiles(*row) for row in self._read(f"SELECT {_SEGMENT_COLUMNS} FROM segments ORDER BY id")]

    def places(self) -> list[tuple[str, int, int, int]]:
        """(segment name, document id, first row, rows) of every live document, by segment and row."""
        return self._read(
            "SELECT g.name, d.id, d.first_row, d.rows FROM documents d JOIN segments g ON g.id = d.segment_id "
            "WHERE d.state = 'live' ORDER BY g.id, d.first_row"
        )

    def documents(self, ids: Sequence[int]) -> list[StoredDocument]:
        """The given live documents, in the given order; ids that are not live are left out."""
        # As one JSON value: SQLite takes a limited number of variables.
        where = "AND d.id IN (SELECT value FROM json_each(?))"
        found = {stored.id: stored for stored in self._stored(where, (json.dumps(list(ids)),))}
        return [found[document_id] for document_id in ids if document_id in found]

    def page(self, after: int, limit: int) -> list[StoredDocument]:
        """Live documents in order of their ids, those after a given id."""
        return list(self._stored("AND d.id > ? ORDER BY d.id LIMIT ?", (min(after, _MAX_INTEGER), limit)))

    def search(self, question: str, limit: int) -> list[tuple[int, float]]:
        """Full-text search (FTS5 BM25): ids and scores, best first; higher is better. Any text is a valid question."""
        terms = query_terms(question)
        if not terms:
            return []
        # Quoted terms cannot be read as query syntax; OR, because hardly any document holds every word of a question.
        match = " OR ".join('"' + term.replace('"', '""') + '"' for term in terms)
        query = "SELECT rowid, -rank FROM word_index WHERE word_index MATCH ? ORDER BY rank, rowid LIMIT ?"
        return [(int(row[0]), float(row[1])) for row in self._read(query, (match, limit))]

    def counts(self) -> Counts:
        ((sources,),) = self._read("SELECT count(*) FROM sources WHERE state = 'live'")
        ((documents, tokens, chunks),) = self._read(
            "SELECT count(*), total(tokens), total(rows) FROM documents WHERE state = 'live'"
        )
        ((segments, size),) = self._read("SELECT count(*), total(keys_bytes + content_bytes) FROM segments")
        return Counts(sources, documents, int(tokens), int(chunks), segments, int(size))

    def _stored(self, where: str, values: tuple[Any, ...]) -> Iterator[StoredDocument]:
        for row in self._read(f"{_STORED} {where}", values):
            document_id, external_id, title, text, start, end, metadata, tokens, rows = row
            yield StoredDocument(
                document_id, external_id, title, text, Span(start, end), json.loads(metadata), tokens, rows
            )

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise BankError(f"cannot read {self.path} ({error}); {_RESTORE}") from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise BankError(
                    f"cannot write {self.path}: {error}. What was committed before is safe; add again to continue"
                ) from error
            raise


def _indexed(text: str) -> str:
    """The words of a text as the index stores them."""
    return " ".join(index_terms(text))
