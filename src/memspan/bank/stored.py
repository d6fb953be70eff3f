"""What the catalog gives: documents and sources as the bank holds them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from memspan.bank.database import Database
from memspan.bank.schema import NAMESPACE_ID
from memspan.bank.scope import EVERYTHING, EXPIRED, KEPT, LIVE, PAST, Scope
from memspan.errors import BankError
from memspan.text.paging import pages_of
from memspan.text.template import encoded_text
from memspan.types import JSON, Document, Span

_PENDING = f"SELECT {{0}} FROM pending p JOIN sources s ON s.id = p.source_id WHERE {EVERYTHING.sql} {{1}}"


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document as the bank knows it. `text` is its own part of the source's text, at `span`.

    Attributes:
        tokens, chunks: 0 of one that is not encoded yet.
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
    """A version of a source: the document as it was given, and when.

    Attributes:
        id: of the source that has the text.
        added_at: when the text was added (UTC, to the second).
        recorded_at: when this version was recorded (UTC, to the microsecond).
        superseded_at: when another version took its place; None: none did.
    """

    id: int
    document: Document
    added_at: str
    recorded_at: str
    superseded_at: str | None


@dataclass(frozen=True, slots=True)
class Counts:
    """Size of a bank, or of one of its namespaces: what a question sees (sources, documents, tokens and chunks of those
    that are encoded), former versions, and bytes of segments.

    Attributes:
        pending: of the documents those that are not encoded yet: they are found by words only.
        deleted_documents: gone or expired, but their rows still take space until the bank is compacted.
        expired: sources that have expired and are not erased yet.
        versions: former versions of sources, which are kept.
        past_documents: documents of former versions, whose rows take space.
    """

    sources: int
    documents: int
    tokens: int
    chunks: int
    deleted_documents: int
    segments: int
    segment_bytes: int
    expired: int = 0
    versions: int = 0
    past_documents: int = 0
    pending: int = 0

    @classmethod
    def of(cls, database: Database, namespace: str | None) -> Counts:
        """Counted in a catalog: of one namespace, or of all."""
        within, values = ("", ()) if namespace is None else ("AND n.name = ?", (namespace,))
        from_segments = f"FROM segments g JOIN namespaces n ON n.id = g.namespace_id WHERE g.state = 'live' {within}"
        size = f"SELECT count(*), total(keys_bytes + content_bytes) {from_segments}"
        ((segments, segment_bytes),) = database.read(size, values)

        def sums(condition: str) -> list[int]:
            query = f"SELECT count(*), total(tokens), total(rows) FROM documents d WHERE {condition}"
            inside = f"AND d.segment_id IN (SELECT g.id {from_segments})"
            ((count, *totals),) = database.read(f"{query} {inside}", values)
            return [count, *map(int, totals)]

        def of_sources(scope: Scope) -> list[int]:
            return sums(f"d.id IN (SELECT d.id FROM {scope.parts} WHERE {scope.sql})")

        expired, past, gone = of_sources(EXPIRED), of_sources(PAST), sums("d.deleted_in IS NOT NULL")
        documents, tokens, chunks = (
            live - one for live, one in zip(sums("d.deleted_in IS NULL"), expired, strict=True)
        )
        pending = num_pending(database, namespace)
        return cls(
            sources=num_sources(database, namespace, EVERYTHING),
            documents=documents + pending,
            tokens=tokens,
            chunks=chunks,
            deleted_documents=gone[0] - past[0] + expired[0],
            segments=segments,
            segment_bytes=int(segment_bytes),
            expired=num_sources(database, namespace, EXPIRED),
            versions=num_sources(database, namespace, KEPT) - num_sources(database, namespace, LIVE),
            past_documents=past[0],
            pending=pending,
        )


class PartTexts:
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


def as_stored(database: Database, query: str, values: tuple[Any, ...]) -> Iterator[StoredDocument]:
    """The documents that a query of the catalog gives."""
    texts = PartTexts(database)
    for row in database.rows(query, values):
        number, source_id, external_id, title, start, end, metadata, date, tokens, chunks = row
        try:
            values_of = dict(json.loads(metadata))
        except (ValueError, TypeError, RecursionError) as error:
            raise BankError(f"the metadata of {external_id!r} is damaged ({error}); add it again") from error
        text, span = texts.of(source_id, start, end), Span(start, end)
        pages = pages_of(texts.of(source_id), span, values_of)
        yield StoredDocument(number, source_id, external_id, title, text, span, values_of, date, tokens, chunks, pages)


def encoded_texts(database: Database, query: str, values: tuple[Any, ...]) -> list[tuple[int, str]]:
    """Ids and searched texts of the parts that a query gives: id, source's number and title, start and end."""
    texts = PartTexts(database)
    return [
        (number, encoded_text(title, texts.of(source_id, start, end)))
        for number, source_id, title, start, end in database.read(query, values)
    ]


def num_sources(database: Database, namespace: str | None, scope: Scope) -> int:
    """Rows of sources in a scope without conditions, of one namespace or of all."""
    of_one = "" if namespace is None else f"AND namespace_id = {NAMESPACE_ID}"
    query = f"SELECT count(*) FROM sources s WHERE {scope.sql} {of_one}"
    return int(database.value(query, () if namespace is None else (namespace,)))


def of_both(select: str, scope: Scope) -> str:
    """A query over the documents that are encoded, `{parts}` in it, and over those that are not.

    In SQL a union of both tables to select from would be made whole for every query.
    """
    return " UNION ALL ".join(select.replace("{parts}", parts) for parts in (scope.parts, scope.pending_parts))


def num_pending(database: Database, namespace: str | None = None) -> int:
    """Documents that a question sees and that are not encoded yet, of one namespace or of all."""
    of_one = "" if namespace is None else f"AND s.namespace_id = {NAMESPACE_ID}"
    return int(database.value(_PENDING.format("count(*)", of_one), () if namespace is None else (namespace,)))


def still_pending(database: Database, ids: Iterable[int]) -> set[int]:
    """Those of some ids that are of documents that a question sees and that are not encoded yet."""
    query = _PENDING.format("p.document_id", "AND p.document_id IN (SELECT value FROM json_each(?))")
    return {number for (number,) in database.read(query, (json.dumps(list(ids)),))}


def may_be_encoded(database: Database, ids: Iterable[int] | None = None) -> bool:
    """Whether any document (of some ids) waits for its latents; of a source that has expired, too."""
    query = f"SELECT 1 FROM pending p JOIN sources s ON s.id = p.source_id WHERE {LIVE.sql}"
    if ids is None:
        return database.value(f"{query} LIMIT 1") is not None
    where = "AND p.document_id IN (SELECT value FROM json_each(?)) LIMIT 1"
    return database.value(f"{query} {where}", (json.dumps(list(ids)),)) is not None


def pending_ids(database: Database, namespace: str, after: int, limit: int) -> list[int]:
    """Ids of documents that are not encoded yet, in order, those after a given one."""
    where = f"AND s.namespace_id = {NAMESPACE_ID} AND p.document_id > ?"
    query = f"{_PENDING.format('p.document_id', where)} ORDER BY p.document_id LIMIT ?"
    return [number for (number,) in database.read(query, (namespace, after, limit))]
