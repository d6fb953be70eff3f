"""`catalog.sqlite`: which documents a bank holds, their text, where their latents stand, and the full-text index.

A *source* is what the caller added, kept verbatim; a *document* is what is encoded under one permanent id: a whole
source, or a part of a long one (its parent is the source, its place a character span of it). Reading is here, changing
is in `edits`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from memspan.bank import clock
from memspan.bank.database import Database
from memspan.bank.folder import SegmentFiles
from memspan.bank.formats import follow_format
from memspan.bank.schema import NAMESPACE_ID, SCHEMA
from memspan.bank.scope import EFFECTIVE_DATE, EVERYTHING, KEPT, LIVE, NAMED, PAST, Scope
from memspan.bank.stored import Counts, StoredDocument, StoredSource, as_stored, encoded_texts, num_sources, of_both
from memspan.bank.words import WordIndex
from memspan.errors import BankError, FilterError
from memspan.types import Document

if TYPE_CHECKING:
    import numpy as np

DEFAULT_NAMESPACE = "default"
STAGED_MANIFEST = "staged"
"""Key of the manifest of latents that are on their way (`reencode`)."""

_MAX_INTEGER = 2**63 - 1
_SEGMENT_COLUMNS = ", ".join(f"g.{field.name}" for field in dataclasses.fields(SegmentFiles))
_STORED = (
    f"SELECT d.id, d.source_id, s.external_id, s.title, d.span_start, d.span_end, s.metadata, {EFFECTIVE_DATE}, "
    "d.tokens, d.rows"
)


class Catalog(Database):
    """The catalog of a bank, as one connection sees it.

    Raises:
        BankError: the file is not a readable SQLite database with our tables.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        super().__init__(path, schema=SCHEMA if create else None)
        self._snapshot_moment: str | None = None
        try:
            self.connection.create_function("moment", 0, self.moment, deterministic=True)  # while a statement runs
            follow_format(self)
        except BaseException:
            self.close()
            raise

    def moment(self) -> str:
        """What time it is, for what expires: now, or when the snapshot that is open was begun or last looked at."""
        return self._snapshot_moment or clock.moment()

    def begin_snapshot(self) -> None:
        follow_format(self)
        super().begin_snapshot()
        self.look_again()

    def look_again(self) -> None:
        """See what has expired since the open snapshot was begun no more."""
        self._snapshot_moment = clock.moment()

    def end_snapshot(self) -> None:
        self._snapshot_moment = None
        super().end_snapshot()

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
        both = "SELECT document_id FROM staged UNION ALL SELECT document_id FROM pending"
        return max(int(given), int(self.value(f"SELECT max(document_id) FROM ({both})") or 0)) + 1

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

    def past_word_index(self, namespace: str) -> WordIndex | None:
        """The full-text index of former versions; None if there is none."""
        number = self.namespace_id(namespace)
        index = None if number is None else WordIndex(self, number, past=True)
        return index if index is not None and index.exists else None

    def hashes(self, namespace: str, external_id: str) -> tuple[str, str] | None:
        """Content hash and text hash of a live source, or None if there is none of this name."""
        rows = self._of_sources("s.content_hash, s.text_hash", namespace, "s.external_id = ?", (external_id,))
        return next(rows, None)

    def source(self, namespace: str, external_id: str, scope: Scope = EVERYTHING) -> StoredSource | None:
        """A source, or None."""
        return next(self._sources(namespace, "", (), scope, name=external_id), None)

    def sources(self, namespace: str, scope: Scope = EVERYTHING) -> Iterator[StoredSource]:
        """The sources of a scope, in the order they were added."""
        return self._sources(namespace, f"ORDER BY {scope.source_id}", (), scope, by_id=True)

    def source_page(self, namespace: str, after: int, limit: int, scope: Scope = EVERYTHING) -> list[StoredSource]:
        """Sources of a scope in the order they were added, those after a given source's id.

        Raises:
            FilterError: as `ids_in_scope`.
        """
        where = f"AND {scope.source_id} > ? ORDER BY {scope.source_id} LIMIT ?"
        found = list(self._sources(namespace, where, (min(after, _MAX_INTEGER), limit), scope, by_id=True))
        if not found:
            self._check_fields(namespace, scope)
        return found

    def external_ids(self, namespace: str, scope: Scope = EVERYTHING) -> list[str]:
        """The names of live sources, in the order they were added.

        Raises:
            FilterError: as `ids_in_scope`.
        """
        rows = self._of_sources("s.external_id", namespace, "TRUE ORDER BY s.id", (), scope)
        found = [external_id for (external_id,) in rows]
        if not found:
            self._check_fields(namespace, scope)
        return found

    def versions(self, namespace: str, external_id: str) -> list[StoredSource]:
        """All versions of a source that are kept, in the order they were recorded; none of one that has expired."""
        if self.hashes(namespace, external_id) is None:
            return []
        in_order = "ORDER BY s.deleted_in IS NULL, s.deleted_in"
        return list(self._sources(namespace, in_order, (), KEPT, name=external_id))

    def external_id_of(self, namespace: str, document_id: int, scope: Scope = EVERYTHING) -> str | None:
        """The name of the source that a document is, or is a part of."""
        if not 0 <= document_id <= _MAX_INTEGER:
            return None
        query = (
            "SELECT s.external_id FROM {parts} JOIN namespaces n ON n.id = s.namespace_id "
            f"WHERE n.name = ? AND {scope.sql} AND d.id = ?"
        )
        return self.value(of_both(query, scope), (namespace, *scope.values, document_id) * 2)

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
        """Ids of the documents whose rows stand in a segment and that do not live."""
        query = "SELECT id FROM documents WHERE segment_id = ? AND deleted_in IS NOT NULL"
        return [document_id for (document_id,) in self.read(query, (segment_id,))]

    def forgotten_in_segment(self, segment_id: int) -> list[int]:
        """Those of them that are not kept as documents of former versions."""
        kept = f"SELECT d.id FROM {PAST.parts} WHERE d.segment_id = ? AND {PAST.sql}"
        past = {document_id for (document_id,) in self.read(kept, (segment_id,))}
        return [document_id for document_id in self.deleted_in_segment(segment_id) if document_id not in past]

    def deleted_since(self, commit: int) -> list[tuple[int, int]]:
        """(segment, document id) of what was deleted after a commit."""
        return self.read("SELECT segment_id, id FROM documents WHERE deleted_in > ?", (commit,))

    def documents(self, namespace: str, ids: Sequence[int], scope: Scope = EVERYTHING) -> list[StoredDocument]:
        """The given documents, in the given order; ids that are not in the scope are left out."""
        # As one JSON value: SQLite takes a limited number of variables.
        where, given = "AND d.id IN (SELECT value FROM json_each(?))", (json.dumps(list(ids)),)
        found = {stored.id: stored for stored in self._stored(namespace, where, given, scope, by_id=True)}
        return [found[document_id] for document_id in ids if document_id in found]

    def documents_of(self, namespace: str, external_id: str, scope: Scope = EVERYTHING) -> list[StoredDocument]:
        """The documents of a source, in the order of its text."""
        return list(self._stored(namespace, "", (), scope, "ORDER BY 5", name=external_id))

    def documents_in_segment(self, namespace: str, segment_id: int) -> list[StoredDocument]:
        """The documents of a segment, in the order of their rows: of what lives, and of former versions."""
        query = (
            f"{_STORED} FROM {KEPT.parts} JOIN texts t ON t.source_id = d.source_id "
            f"WHERE {_of_namespace(False, '')} AND {KEPT.sql} AND d.segment_id = ? ORDER BY d.first_row"
        )
        return list(as_stored(self, query, (namespace, segment_id)))

    def page(self, namespace: str, after: int, limit: int, scope: Scope = EVERYTHING) -> list[StoredDocument]:
        """Documents of a scope in order of their ids, those after a given id.

        Raises:
            FilterError: as `ids_in_scope`.
        """
        given = (min(after, _MAX_INTEGER),)
        found = list(self._stored(namespace, "AND d.id > ?", given, scope, "ORDER BY 1 LIMIT ?", (limit,), by_id=True))
        if not found:
            self._check_fields(namespace, scope)
        return found

    def texts(self, namespace: str, *, past: bool = False) -> Iterator[tuple[int, str]]:
        """Ids and searched texts of all live documents, or of former versions: what the full-text index is made of."""
        stored = self._stored(namespace, "", (), PAST if past else LIVE, by_id=True)
        return ((one.id, one.encoded_text) for one in stored)

    def texts_of(self, source_id: int) -> list[tuple[int, str]]:
        """Ids and searched texts of the documents of one source, by its number."""
        columns = "d.id, s.id, s.title, d.span_start, d.span_end"
        query = f"SELECT {columns} FROM {{parts}} JOIN texts t ON t.source_id = s.id WHERE s.id = ?"
        return encoded_texts(self, of_both(query, LIVE), (source_id,) * 2)

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

    def unstaged_documents(self, namespace: str, *, past: bool) -> list[StoredDocument]:
        """Live documents, or those of former versions, that have no staged latents under their id."""
        where = "AND d.id NOT IN (SELECT document_id FROM staged)"
        return list(self._stored(namespace, where, (), PAST if past else LIVE))

    def new_staged_texts(self, namespace: str, *, past: bool) -> list[tuple[int, str]]:
        """Ids and texts of staged documents that are no documents yet, of what lives or of former versions."""
        query = (
            "SELECT p.document_id, s.id, s.title, p.span_start, p.span_end FROM staged p "
            "JOIN sources s ON s.id = p.source_id JOIN texts t ON t.source_id = s.id "
            "JOIN namespaces n ON n.id = s.namespace_id "
            "WHERE n.name = ? AND (s.deleted_in IS NOT NULL) = ? AND p.document_id NOT IN "
            "(SELECT id FROM documents UNION ALL SELECT document_id FROM pending) ORDER BY p.document_id"
        )
        return encoded_texts(self, query, (namespace, past))

    def ids_in_scope(self, namespace: str, scope: Scope) -> np.ndarray:
        """Ids of the documents a scope allows, encoded or not, ascending, int64.

        Raises:
            FilterError: nothing matches, and no document has a field that the filter names.
        """
        import numpy as np  # what reads no mask need not wait for it

        # As one text: a million rows as Python's tuples take as long as finding them.
        ids = f"SELECT d.id FROM {{parts}} JOIN namespaces n ON n.id = s.namespace_id WHERE n.name = ? AND {scope.sql}"
        query = f"SELECT group_concat(id, ' ') FROM ({of_both(ids, scope)})"
        packed = self.value(query, (namespace, *scope.values) * 2)
        if packed is None:
            self._check_fields(namespace, scope)
        return np.sort(np.fromstring(packed or "", np.int64, sep=" "))

    def _check_fields(self, namespace: str, scope: Scope) -> None:
        for field in scope.fields:
            has_field = "EXISTS (SELECT 1 FROM json_each(s.metadata) WHERE key = ?)"
            held = KEPT if scope.is_past else EVERYTHING
            if next(self._of_sources("1", namespace, f"{has_field} LIMIT 1", (field,), held), None) is None:
                latest = self._of_sources("s.metadata", namespace, "TRUE ORDER BY s.id DESC LIMIT 100", (), held)
                values = [json.loads(metadata) for (metadata,) in latest]
                keys = (found for found in values if isinstance(found, dict))
                known = sorted({"date", "external_id", "title"}.union(*keys))
                raise FilterError(
                    f"no document has a field {field!r}; there are, among others: {', '.join(known[:20])}"
                )

    def search(self, namespace: str, question: str, limit: int, scope: Scope = EVERYTHING) -> list[tuple[int, float]]:
        """Full-text search of one namespace; see `WordIndex.search`."""
        index, past = self.word_index(namespace), self.past_word_index(namespace) if scope.is_past else None
        if index is None:
            return []
        is_all = not scope and self.last_expiry(namespace) is None
        found = index.search(question, limit, None if is_all else scope)
        if past is not None:
            found += past.search_as_in(index, question, scope)
            found = sorted(found, key=lambda item: (-item[1], item[0]))[:limit]
        return found

    def last_expiry(self, namespace: str) -> str | None:
        """The `expires` of what expired last and is not erased yet, or None. It changes with what is seen."""
        query = (
            f"SELECT max(expires) FROM sources WHERE namespace_id = {NAMESPACE_ID} "
            "AND expires <= moment() AND pinned = 0 AND deleted_in IS NULL"
        )
        return self.value(query, (namespace,))

    def counts(self, namespace: str | None = None) -> Counts:
        """The size of one namespace, or of all."""
        return Counts.of(self, namespace)

    def num_sources(self, namespace: str | None = None) -> int:
        """Sources that a question sees, of one namespace or of all."""
        return num_sources(self, namespace, EVERYTHING)

    def num_characters(self) -> int:
        """Of the texts of all documents that are kept."""
        query = f"SELECT d.span_end - d.span_start AS length FROM {{parts}} WHERE {KEPT.sql}"
        return int(self.value(f"SELECT total(length) FROM ({of_both(query, KEPT)})"))

    def _of_sources(
        self, columns: str, namespace: str, where: str, values: tuple[Any, ...], scope: Scope = EVERYTHING
    ) -> Iterator[Any]:
        query = f"SELECT {columns} FROM sources s JOIN namespaces n ON n.id = s.namespace_id "
        return self.rows(f"{query} WHERE {scope.sql} AND n.name = ? AND {where}", (*scope.values, namespace, *values))

    def _sources(
        self, namespace: str, where: str, values: tuple[Any, ...], scope: Scope, *, by_id: bool = False, name: str = ""
    ) -> Iterator[StoredSource]:
        """Sources of a scope; for `by_id` and `name` see `_stored`."""
        query = (
            "SELECT coalesce(s.version_of, s.id), s.external_id, t.text, s.title, s.metadata, s.date, s.expires, "
            "s.pinned, s.added_at, coalesce(s.recorded_at, s.added_at), s.superseded_at "
            "FROM sources s JOIN texts t ON t.source_id = coalesce(s.version_of, s.id) "
            f"WHERE {_of_namespace(by_id, name)} AND {scope.sql} {where}"
        )
        for row in self.rows(query, (namespace, *([name] if name else ()), *scope.values, *values)):
            source_id, external_id, text, title, metadata, date, expires, pinned, *recorded = row
            try:
                document = Document(external_id, text, title, json.loads(metadata), date, expires, bool(pinned) or None)
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                raise BankError(f"source {source_id} of {self.path} is damaged ({error}); add it again") from error
            yield StoredSource(source_id, document, *recorded)

    def _stored(
        self,
        namespace: str,
        where: str,
        values: tuple[Any, ...],
        scope: Scope,
        ending: str = "ORDER BY 1",
        last: tuple[Any, ...] = (),
        *,
        by_id: bool = False,
        name: str = "",
    ) -> Iterator[StoredDocument]:
        """Documents of a scope, encoded or not.

        Args:
            ending: their order (by the columns of `_STORED`) and number, with its values `last`.
            by_id: they are looked up or sorted by their ids; SQLite must not begin with the sources of the namespace.
            name: of one external id.
        """
        query = (
            f"{_STORED} FROM {{parts}} JOIN texts t ON t.source_id = d.source_id "
            f"WHERE {_of_namespace(by_id, name)} AND {scope.sql} {where}"
        )
        given = (namespace, *([name] if name else ()), *(*scope.values, *values) * 2, *last)
        return as_stored(self, f"{of_both(query, scope)} {ending}", given)


def _of_namespace(by_id: bool, name: str) -> str:
    """The condition on `sources s` of a namespace (the first value), and of a name (the second) if there is one."""
    of_all = f"{'+' if by_id else ''}s.namespace_id = {NAMESPACE_ID}"
    return f"s.id IN ({NAMED.format(NAMESPACE_ID)})" if name else of_all
