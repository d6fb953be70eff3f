"""`catalog.sqlite`: which documents a bank holds, their text, where their latents stand, and the full-text index.

A *source* is what the caller added, kept verbatim; a *document* is what is encoded under one permanent id: a whole
source, or a part of a long one (its parent is the source, its place a character span of it). Reading is here, changing
is in `edits`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from memspan.bank.database import Database
from memspan.bank.folder import SegmentFiles
from memspan.bank.schema import SCHEMA
from memspan.bank.scope import EFFECTIVE_DATE, EVERYTHING, Scope
from memspan.bank.words import WordIndex
from memspan.errors import BankError, FilterError
from memspan.text.paging import pages_of
from memspan.text.template import encoded_text
from memspan.types import JSON, Document, Span

if TYPE_CHECKING:
    import numpy as np

DEFAULT_NAMESPACE = "default"
STAGED_MANIFEST = "staged"
"""Key of the manifest of latents that are on their way (`reencode`)."""

_MAX_INTEGER = 2**63 - 1
_SEGMENT_COLUMNS = ", ".join(f"g.{field.name}" for field in dataclasses.fields(SegmentFiles))
_LIVE = "d.deleted_in IS NULL"
_PARTS = "documents d JOIN sources s ON s.id = d.source_id"
_STORED = f"""
SELECT d.id, d.source_id, s.external_id, s.title, d.span_start, d.span_end, s.metadata, {EFFECTIVE_DATE}, d.tokens,
    d.rows
FROM {_PARTS} JOIN texts t ON t.source_id = d.source_id WHERE {_LIVE} AND s.deleted_in IS NULL
"""


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A live document as the bank knows it. `text` is its own part of the source's text, at `span`.

    Attributes:
        date: the document's own date, or the time it was added (UTC).
        pages: those of the source that `text` stands on, from 1.
    """

    id: int
    source_id: int
    external_id: str
    title: str
    text: str
    span: Span
    metadata: dict[str, JSON]
    date: str
    tokens: int
    chunks: int
    pages: tuple[int, ...] = ()

    @property
    def encoded_text(self) -> str:
        """What was encoded, is searched, and is put before the model."""
        return encoded_text(self.title, self.text)


@dataclass(frozen=True, slots=True)
class StoredSource:
    """A live source: the document as it was given, and when."""

    id: int
    document: Document
    added_at: str


@dataclass(frozen=True, slots=True)
class Counts:
    """Size of a bank, or of one of its namespaces: live sources, documents, tokens and chunks; bytes of segments.

    Attributes:
        deleted_documents: gone, but their rows still take space until the bank is compacted.
    """

    sources: int
    documents: int
    tokens: int
    chunks: int
    deleted_documents: int
    segments: int
    segment_bytes: int


class Catalog(Database):
    """The catalog of a bank, as one connection sees it.

    Raises:
        BankError: the file is not a readable SQLite database with our tables.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        super().__init__(path, schema=SCHEMA if create else None)

    def read_manifest(self) -> dict[str, Any]:
        try:
            rows = self.read("SELECT key, value FROM manifest WHERE key <> ?", (STAGED_MANIFEST,))
            return {key: json.loads(value) for key, value in rows}
        except (ValueError, TypeError, RecursionError) as error:
            raise BankError(f"the manifest in {self.path} is damaged ({error}); restore it from a backup") from error

    def commits(self) -> int:
        """How often the bank was changed. Two snapshots of one number are the same."""
        commits = self.value("SELECT commits FROM clock")
        if commits is None:
            raise BankError(f"the counter of commits in {self.path} is missing; restore it from a backup")
        return int(commits)

    def next_document_id(self) -> int:
        """The first id that was never given to a document. Stable while the caller holds the writer's lock."""
        given = self.value("SELECT seq FROM sqlite_sequence WHERE name = 'documents'") or 0
        return max(int(given), int(self.value("SELECT max(document_id) FROM staged") or 0)) + 1

    def namespaces(self) -> list[str]:
        """Names of all namespaces that hold or held documents."""
        return [name for (name,) in self.read("SELECT name FROM namespaces ORDER BY name")]

    def namespace_id(self, namespace: str) -> int | None:
        """The number of a namespace; None if nothing was ever added to it."""
        return self.value("SELECT id FROM namespaces WHERE name = ?", (namespace,))

    def word_index(self, namespace: str) -> WordIndex | None:
        """The full-text index of a namespace; None if nothing was ever added to it."""
        number = self.namespace_id(namespace)
        return None if number is None else WordIndex(self, number)

    def hashes(self, namespace: str, external_id: str) -> tuple[str, str] | None:
        """Content hash and text hash of a live source, or None if there is none of this name."""
        rows = self._of_sources("s.content_hash, s.text_hash", namespace, "s.external_id = ?", (external_id,))
        return next(rows, None)

    def source(self, namespace: str, external_id: str) -> StoredSource | None:
        """A live source, or None."""
        return next(self._sources(namespace, "s.external_id = ?", (external_id,)), None)

    def sources(self, namespace: str, scope: Scope = EVERYTHING) -> Iterator[StoredSource]:
        """The live sources of a namespace, in the order they were added."""
        return self._sources(namespace, f"{scope.sql} ORDER BY s.id", scope.values, by_id=True)

    def source_page(self, namespace: str, after: int, limit: int, scope: Scope = EVERYTHING) -> list[StoredSource]:
        """Live sources in the order they were added, those after a given source's id.

        Raises:
            FilterError: as `ids_in_scope`.
        """
        where = f"s.id > ? AND {scope.sql} ORDER BY s.id LIMIT ?"
        values = (min(after, _MAX_INTEGER), *scope.values, limit)
        found = list(self._sources(namespace, where, values, by_id=True))
        if not found:
            self._check_fields(namespace, scope)
        return found

    def external_id_of(self, namespace: str, document_id: int) -> str | None:
        """The name of the live source that a live document is, or is a part of."""
        if not 0 <= document_id <= _MAX_INTEGER:
            return None
        return self.value(
            f"SELECT s.external_id FROM {_PARTS} JOIN namespaces n ON n.id = s.namespace_id "
            f"WHERE {_LIVE} AND n.name = ? AND d.id = ?",
            (namespace, document_id),
        )

    def segments(
        self, namespace: str | None = None, state: Literal["live", "staged"] = "live"
    ) -> list[tuple[int, SegmentFiles]]:
        """Numbers and files of the segments in a state, oldest first; of one namespace, or of all."""
        within = "" if namespace is None else "AND n.name = ?"
        query = (
            f"SELECT g.id, {_SEGMENT_COLUMNS} FROM segments g JOIN namespaces n ON n.id = g.namespace_id "
            f"WHERE g.state = '{state}' {within} ORDER BY g.id"
        )
        values = () if namespace is None else (namespace,)
        return [(row[0], SegmentFiles(*row[1:])) for row in self.read(query, values)]

    def segment_states(self) -> dict[str, tuple[str, int | None]]:
        """Every segment the catalog knows: live, staged, or retired (and in which commit)."""
        return {
            name: (state, commit) for name, state, commit in self.read("SELECT name, state, retired_in FROM segments")
        }

    def unused_segments(self) -> dict[str, int]:
        """Names of retired segments that no document refers to, with the commits that retired them."""
        query = (
            "SELECT name, retired_in FROM segments g WHERE state = 'retired' "
            "AND NOT EXISTS (SELECT 1 FROM documents WHERE segment_id = g.id)"
        )
        return dict(self.read(query))

    def deleted_in_segment(self, segment_id: int) -> list[int]:
        """Ids of the deleted documents whose rows stand in a segment."""
        query = "SELECT id FROM documents WHERE segment_id = ? AND deleted_in IS NOT NULL"
        return [document_id for (document_id,) in self.read(query, (segment_id,))]

    def deleted_since(self, commit: int) -> list[tuple[int, int]]:
        """(segment, document id) of what was deleted after a commit."""
        return self.read("SELECT segment_id, id FROM documents WHERE deleted_in > ?", (commit,))

    def documents(self, namespace: str, ids: Sequence[int]) -> list[StoredDocument]:
        """The given live documents, in the given order; ids that are not live in this namespace are left out."""
        # As one JSON value: SQLite takes a limited number of variables.
        where = "AND d.id IN (SELECT value FROM json_each(?)) ORDER BY d.id"
        found = {stored.id: stored for stored in self._stored(namespace, where, (json.dumps(list(ids)),), by_id=True)}
        return [found[document_id] for document_id in ids if document_id in found]

    def documents_of(self, namespace: str, external_id: str) -> list[StoredDocument]:
        """The live documents of a source, in the order of its text."""
        return list(self._stored(namespace, "AND s.external_id = ? ORDER BY d.span_start", (external_id,)))

    def documents_in_segment(self, namespace: str, segment_id: int) -> list[StoredDocument]:
        """The live documents of a segment, in the order of their rows."""
        return list(self._stored(namespace, "AND d.segment_id = ? ORDER BY d.first_row", (segment_id,)))

    def page(self, namespace: str, after: int, limit: int, scope: Scope = EVERYTHING) -> list[StoredDocument]:
        """Live documents in order of their ids, those after a given id.

        Raises:
            FilterError: as `ids_in_scope`.
        """
        where = f"AND d.id > ? AND {scope.sql} ORDER BY d.id LIMIT ?"
        found = list(self._stored(namespace, where, (min(after, _MAX_INTEGER), *scope.values, limit), by_id=True))
        if not found:
            self._check_fields(namespace, scope)
        return found

    def texts(self, namespace: str) -> Iterator[tuple[int, str]]:
        """Ids and searched texts of all live documents: what the full-text index is made of."""
        return ((stored.id, stored.encoded_text) for stored in self._stored(namespace, "ORDER BY d.id", (), by_id=True))

    def texts_of(self, source_id: int) -> list[tuple[int, str]]:
        """Ids and searched texts of the live documents of one source, by its number."""
        columns = "d.id, s.id, s.title, d.span_start, d.span_end"
        query = f"SELECT {columns} FROM {_PARTS} JOIN texts t ON t.source_id = s.id WHERE {_LIVE} AND s.id = ?"
        return self._encoded_texts(query, (source_id,))

    def staged_manifest(self) -> dict[str, Any] | None:
        """The manifest of the latents that are staged, if any are."""
        value = self.value("SELECT value FROM manifest WHERE key = ?", (STAGED_MANIFEST,))
        return None if value is None else json.loads(value)

    def is_staged(self, source_id: int) -> bool:
        return self.value("SELECT 1 FROM staged WHERE source_id = ? LIMIT 1", (source_id,)) is not None

    def staged_segments(self, namespace: str) -> list[tuple[int, SegmentFiles, set[int]]]:
        """Numbers and files of the staged segments of a namespace, with the ids that are still wanted of each."""
        wanted = "SELECT document_id FROM staged WHERE segment_id = ?"
        return [
            (segment_id, files, {number for (number,) in self.read(wanted, (segment_id,))})
            for segment_id, files in self.segments(namespace, "staged")
        ]

    def unstaged_documents(self, namespace: str) -> list[StoredDocument]:
        """Live documents that have no staged latents under their id."""
        return list(self._stored(namespace, "AND d.id NOT IN (SELECT document_id FROM staged) ORDER BY d.id", ()))

    def new_staged_texts(self, namespace: str) -> list[tuple[int, str]]:
        """Ids and texts of staged documents that are no documents yet."""
        query = (
            "SELECT p.document_id, s.id, s.title, p.span_start, p.span_end FROM staged p "
            "JOIN sources s ON s.id = p.source_id JOIN texts t ON t.source_id = s.id "
            "JOIN namespaces n ON n.id = s.namespace_id "
            "WHERE n.name = ? AND p.document_id NOT IN (SELECT id FROM documents) ORDER BY p.document_id"
        )
        return self._encoded_texts(query, (namespace,))

    def ids_in_scope(self, namespace: str, scope: Scope) -> np.ndarray:
        """Ids of the live documents a scope allows, ascending, int64.

        Raises:
            FilterError: nothing matches, and no document has a field that the filter names.
        """
        import numpy as np  # what reads no mask need not wait for it

        # As one text: a million rows as Python's tuples take as long as finding them.
        ids = (
            f"SELECT d.id FROM {_PARTS} JOIN namespaces n ON n.id = s.namespace_id "
            f"WHERE {_LIVE} AND n.name = ? AND {scope.sql}"
        )
        packed = self.value(f"SELECT group_concat(id, ' ') FROM ({ids})", (namespace, *scope.values))
        if packed is None:
            self._check_fields(namespace, scope)
        return np.sort(np.fromstring(packed or "", np.int64, sep=" "))

    def _check_fields(self, namespace: str, scope: Scope) -> None:
        for field in scope.fields:
            has_field = "EXISTS (SELECT 1 FROM json_each(s.metadata) WHERE key = ?)"
            if next(self._of_sources("1", namespace, f"{has_field} LIMIT 1", (field,)), None) is None:
                latest = self._of_sources("s.metadata", namespace, "TRUE ORDER BY s.id DESC LIMIT 100", ())
                values = [json.loads(metadata) for (metadata,) in latest]
                keys = (found for found in values if isinstance(found, dict))
                known = sorted({"date", "external_id", "title"}.union(*keys))
                raise FilterError(
                    f"no document has a field {field!r}; there are, among others: {', '.join(known[:20])}"
                )

    def search(self, namespace: str, question: str, limit: int, scope: Scope = EVERYTHING) -> list[tuple[int, float]]:
        """Full-text search of one namespace; see `WordIndex.search`."""
        index = self.word_index(namespace)
        return [] if index is None else index.search(question, limit, scope)

    def counts(self, namespace: str | None = None) -> Counts:
        within, values = ("", ()) if namespace is None else ("AND n.name = ?", (namespace,))
        from_segments = f"FROM segments g JOIN namespaces n ON n.id = g.namespace_id WHERE g.state = 'live' {within}"
        ((segments, size),) = self.read(f"SELECT count(*), total(keys_bytes + content_bytes) {from_segments}", values)
        live = f"{_LIVE} AND d.segment_id IN (SELECT g.id {from_segments})"
        query = f"SELECT count(*), total(tokens), total(rows) FROM documents d WHERE {live}"
        ((documents, tokens, chunks),) = self.read(query, values)
        dead = f"d.deleted_in IS NOT NULL AND d.segment_id IN (SELECT g.id {from_segments})"
        ((deleted,),) = self.read(f"SELECT count(*) FROM documents d WHERE {dead}", values)
        return Counts(self.num_sources(namespace), documents, int(tokens), int(chunks), deleted, segments, int(size))

    def num_sources(self, namespace: str | None = None) -> int:
        """Live sources, of one namespace or of all."""
        of_one = "" if namespace is None else "AND namespace_id = (SELECT id FROM namespaces WHERE name = ?)"
        query = f"SELECT count(*) FROM sources WHERE deleted_in IS NULL {of_one}"
        return int(self.value(query, () if namespace is None else (namespace,)))

    def num_characters(self) -> int:
        """Of the texts of all live documents."""
        return int(self.value(f"SELECT total(d.span_end - d.span_start) FROM documents d WHERE {_LIVE}"))

    def _of_sources(self, columns: str, namespace: str, where: str, values: tuple[Any, ...]) -> Iterator[Any]:
        query = f"SELECT {columns} FROM sources s JOIN namespaces n ON n.id = s.namespace_id "
        return self.rows(f"{query} WHERE s.deleted_in IS NULL AND n.name = ? AND {where}", (namespace, *values))

    def _sources(
        self, namespace: str, where: str, values: tuple[Any, ...], *, by_id: bool = False
    ) -> Iterator[StoredSource]:
        """Live sources; for `by_id` see `_stored`."""
        query = (
            "SELECT s.id, s.external_id, t.text, s.title, s.metadata, s.date, s.added_at "
            "FROM sources s JOIN texts t ON t.source_id = s.id WHERE s.deleted_in IS NULL "
            f"AND {'+' if by_id else ''}s.namespace_id = (SELECT id FROM namespaces WHERE name = ?) AND {where}"
        )
        for source_id, external_id, text, title, metadata, date, added_at in self.rows(query, (namespace, *values)):
            try:
                document = Document(external_id, text, title, json.loads(metadata), date)
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                raise BankError(f"source {source_id} of {self.path} is damaged ({error}); add it again") from error
            yield StoredSource(source_id, document, added_at)

    def _stored(
        self, namespace: str, where: str, values: tuple[Any, ...], *, by_id: bool = False
    ) -> Iterator[StoredDocument]:
        """Live documents.

        Args:
            by_id: they are looked up or sorted by their ids; SQLite must not begin with the sources of the namespace.
        """
        within = f"AND {'+' if by_id else ''}s.namespace_id = (SELECT id FROM namespaces WHERE name = ?)"
        texts = _PartTexts(self)
        for row in self.rows(f"{_STORED} {within} {where}", (namespace, *values)):
            number, source_id, external_id, title, start, end, metadata, date, tokens, chunks = row
            try:
                values_of = dict(json.loads(metadata))
            except (ValueError, TypeError, RecursionError) as error:
                raise BankError(f"the metadata of {external_id!r} is damaged ({error}); add it again") from error
            text, span = texts.of(source_id, start, end), Span(start, end)
            pages = pages_of(texts.of(source_id), span, values_of)
            yield StoredDocument(
                number, source_id, external_id, title, text, span, values_of, date, tokens, chunks, pages
            )

    def _encoded_texts(self, query: str, values: tuple[Any, ...]) -> list[tuple[int, str]]:
        """Ids and searched texts of the parts that a query gives: id, source's number and title, start and end."""
        texts = _PartTexts(self)
        return [
            (number, encoded_text(title, texts.of(source_id, start, end)))
            for number, source_id, title, start, end in self.read(query, values)
        ]


class _PartTexts:
    """The texts of parts. That of a source is read once for its parts, where these come one after the other.

    `substr` in a query would read the whole text for every part: quadratic work.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        self._source_id, self._text = 0, ""

    def of(self, source_id: int, start: int = 0, end: int | None = None) -> str:
        if source_id != self._source_id:
            self._text = self._db.value("SELECT text FROM texts WHERE source_id = ?", (source_id,))
            self._source_id = source_id
        return self._text[start:end]
