"""Rows of `sources` as documents are added, replaced, relabelled and deleted; former versions and expiry.

A document that another of its name replaces stays as a former version, with its documents and latents; its words go
to an index of their own. Where only metadata or date change, a copy of the row keeps the former ones, and refers to
the row that has the text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memspan.bank import changes
from memspan.bank.catalog import Catalog
from memspan.bank.schema import SEALED, seal
from memspan.bank.scope import NAMED
from memspan.bank.words import WordIndex
from memspan.types import JSON, NEVER, Document, Span


class SourceRows:
    """The sources of one namespace, in one transaction. The caller has made the namespace.

    Attributes:
        words: the full-text index of what lives.
    """

    def __init__(self, catalog: Catalog, namespace_id: int, commit: int) -> None:
        self._db, self._namespace_id, self._commit = catalog, namespace_id, commit
        self._now = changes.note_commit(catalog, commit)
        self._ended: list[int] = []
        self.words = WordIndex(catalog, namespace_id)
        self._past_words = WordIndex(catalog, namespace_id, past=True)

    def put(self, document: Document) -> int:
        """Insert a source; one of its name that lives becomes a former version. Returns its number.

        What has expired is forgotten with its versions, as is one that differs in nothing (it is encoded anew).
        """
        old = self._live(document.external_id)
        if old is not None and old.has_expired:
            self.delete(document.external_id)
            old = None
        is_same = old is not None and old.content_hash == document.content_hash
        if old is not None:
            self._end(old.id, not is_same)
        source_id = self._insert(document, old if is_same else None)
        if old is not None:
            if is_same:
                self._refer(old.id, source_id)
            expires, pinned = old.retention_with(document)
            self._retain(document.external_id, expires, pinned)
        return source_id

    def relabel(self, document: Document) -> None:
        """Give a live source of the same text new metadata, date and expiry; the former ones stay as a version."""
        old = self._live(document.external_id)
        if old is None:
            return
        if old.content_hash != document.content_hash:
            self._copy(old.id)
            values = (_json(document.metadata), document.date, document.content_hash, self._now, old.id)
            self._db.execute(
                "UPDATE sources SET metadata = ?, date = ?, content_hash = ?, recorded_at = ? WHERE id = ?", values
            )
            reseal(self._db, "sources", old.id)
        self._retain(document.external_id, *old.retention_with(document))

    def rename(self, old: str, document: Document) -> None:
        """Give a source, with its former versions, the external id of a document, and what lives its metadata."""
        if document.external_id != old:
            self.delete(document.external_id)
        values = (_json(document.metadata), document.content_hash, self._namespace_id, old)
        live = "WHERE deleted_in IS NULL AND namespace_id = ? AND external_id = ?"
        self._db.execute(f"UPDATE sources SET metadata = ?, content_hash = ? {live}", values)
        for (source_id,) in self._db.read(f"SELECT id FROM sources WHERE id IN ({NAMED.format('?1')})", values[2:]):
            self._db.execute("UPDATE sources SET external_id = ? WHERE id = ?", (document.external_id, source_id))
            reseal(self._db, "sources", source_id)

    def delete(self, external_id: str) -> None:
        """Delete a source with all its versions, if there is one."""
        old = self._live(external_id)
        if old is not None:
            self._end(old.id, False)
            self.forget("external_id = ?", external_id)
            expired = bool(old.has_expired)
            changes.note_deletion(self._db, self._namespace_id, external_id, self._commit, expired=expired)

    def delete_expired(self) -> None:
        """Delete what has expired."""
        of_expired = (
            "SELECT external_id FROM sources WHERE namespace_id = ? AND expires <= moment() AND pinned = 0 "
            "AND deleted_in IS NULL"
        )
        for (external_id,) in self._db.read(of_expired, (self._namespace_id,)):
            self.delete(external_id)

    def forget(self, condition: str, value: str | int) -> None:
        """Delete those former versions of the namespace for which a condition on `sources` holds."""
        query = f"superseded_at IS NOT NULL AND namespace_id = ? AND {condition}"
        values = (self._namespace_id, value)
        self._db.execute(f"DELETE FROM sources WHERE version_of IS NOT NULL AND {query}", values)
        for (source_id,) in self._db.read(f"SELECT id FROM sources WHERE {query}", values):
            for document_id, text in self._db.texts_of(source_id):
                self._past_words.remove(document_id, text)
            self._db.execute("UPDATE sources SET superseded_at = NULL WHERE id = ?", (source_id,))
            reseal(self._db, "sources", source_id)
            self._db.execute("DELETE FROM pending WHERE source_id = ?", (source_id,))
            self._ended.append(source_id)

    def set_aside(self, source_id: int, parts: Sequence[tuple[int, Span]]) -> None:
        """Give a former version up to its text, and have parts of that (by new ids) wait to be encoded.

        The words of former versions must be made anew afterwards.
        """
        columns = [name for (name,) in self._db.read("SELECT name FROM pragma_table_info('sources')") if name != "id"]
        same = ", ".join(columns)
        new_id = self._db.execute(f"INSERT INTO sources ({same}) SELECT {same} FROM sources WHERE id = ?", (source_id,))
        reseal(self._db, "sources", new_id)
        self._db.execute("INSERT INTO texts SELECT ?, text FROM texts WHERE source_id = ?", (new_id, source_id))
        self._refer(source_id, new_id)
        self.forget("id = ?", source_id)
        rows = [(number, new_id, span.start, span.end) for number, span in parts]
        self._db.execute_many("INSERT INTO pending VALUES (?, ?, ?, ?)", rows)

    def _live(self, external_id: str) -> _Live | None:
        query = (
            "SELECT id, content_hash, expires, pinned, expires <= moment() AND pinned = 0, added_at, recorded_at "
            "FROM sources WHERE deleted_in IS NULL AND namespace_id = ? AND external_id = ?"
        )
        rows = self._db.read(query, (self._namespace_id, external_id))
        return _Live(*rows[0]) if rows else None

    def _insert(self, document: Document, same: _Live | None) -> int:
        """
        Args:
            same: what it takes the place of and differs in nothing from.
        """
        values = {
            "namespace_id": self._namespace_id,
            "external_id": document.external_id,
            "title": document.title,
            "metadata": _json(document.metadata),
            "date": document.date,
            "added_at": self._now.partition(".")[0] if same is None else same.added_at,
            "content_hash": document.content_hash,
            "text_hash": document.text_hash,
            "recorded_at": self._now if same is None else same.recorded_at,
            "expires": None if document.expires == NEVER else document.expires,
            "pinned": int(bool(document.pinned)),
            "seal": 0,
        }
        statement = f"INSERT INTO sources ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})"
        source_id = self._db.execute(statement, tuple(values.values()))
        reseal(self._db, "sources", source_id)
        self._db.execute("INSERT INTO texts VALUES (?, ?)", (source_id, document.text))
        return source_id

    def _copy(self, source_id: int) -> None:
        """Keep the present label of a source as a former version."""
        same = "namespace_id, external_id, title, metadata, date, added_at, content_hash, text_hash, expires, pinned"
        copy_id = self._db.execute(
            f"INSERT INTO sources ({same}, recorded_at, deleted_in, superseded_at, version_of, seal) "
            f"SELECT {same}, recorded_at, ?, ?, id, 0 FROM sources WHERE id = ?",
            (self._commit, self._now, source_id),
        )
        reseal(self._db, "sources", copy_id)

    def _end(self, source_id: int, is_kept: bool) -> None:
        """A live source lives no more; it is kept as a former version or not."""
        texts = self._db.texts_of(source_id)
        if is_kept and texts and not self._past_words.exists:
            self._past_words.create()
        for document_id, text in texts:
            self.words.remove(document_id, text)
            if is_kept:
                self._past_words.insert(document_id, text)
        for (document_id,) in self._db.read("SELECT id FROM documents WHERE source_id = ?", (source_id,)):
            self._db.execute("UPDATE documents SET deleted_in = ? WHERE id = ?", (self._commit, document_id))
            reseal(self._db, "documents", document_id)
        values = (self._commit, self._now if is_kept else None, source_id)
        self._db.execute("UPDATE sources SET deleted_in = ?, superseded_at = ? WHERE id = ?", values)
        reseal(self._db, "sources", source_id)
        self._db.execute("DELETE FROM staged WHERE source_id = ?", (source_id,))
        if not is_kept:
            self._db.execute("DELETE FROM pending WHERE source_id = ?", (source_id,))
            self._ended.append(source_id)

    def forget_unused(self) -> None:
        """Forget what was deleted and has no documents whose rows are still in a segment."""
        for source_id in self._ended:
            forget_unused(self._db, source_id)
        self._ended = []

    def _refer(self, old_id: int, new_id: int) -> None:
        """Former labels of a text are those of another row that has the same."""
        for (copy_id,) in self._db.read("SELECT id FROM sources WHERE version_of = ?", (old_id,)):
            self._db.execute("UPDATE sources SET version_of = ? WHERE id = ?", (new_id, copy_id))
            reseal(self._db, "sources", copy_id)

    def _retain(self, external_id: str, expires: str | None, pinned: int) -> None:
        """Set when a source expires, with all its versions: they go together."""
        query = f"SELECT id, expires, pinned FROM sources WHERE id IN ({NAMED.format('?1')})"
        for source_id, *found in self._db.read(query, (self._namespace_id, external_id)):
            if found != [expires, pinned]:
                values = (expires, pinned, source_id)
                self._db.execute("UPDATE sources SET expires = ?, pinned = ? WHERE id = ?", values)
                reseal(self._db, "sources", source_id)


@dataclass(frozen=True, slots=True)
class _Live:
    """What lives under a name."""

    id: int
    content_hash: str
    expires: str | None
    pinned: int
    has_expired: int | None
    added_at: str
    recorded_at: str | None

    def retention_with(self, document: Document) -> tuple[str | None, int]:
        """Expiry and pin after a document is added: what it does not say stays."""
        expires = self.expires if document.expires is None else document.expires
        pinned = self.pinned if document.pinned is None else document.pinned
        return None if expires == NEVER else expires, int(pinned)


def forget_unused(catalog: Catalog, source_id: int) -> None:
    """Forget a source that has no documents any more; one with documents goes with the segment of the last of them."""
    of_it = "SELECT 1 FROM documents WHERE source_id = ? UNION ALL SELECT 1 FROM pending WHERE source_id = ? LIMIT 1"
    if catalog.value(of_it, (source_id, source_id)) is None:
        catalog.execute("DELETE FROM texts WHERE source_id = ?", (source_id,))
        catalog.execute("DELETE FROM sources WHERE id = ?", (source_id,))


def reseal(catalog: Catalog, table: str, number: int) -> None:
    """Bring a row's seal up to date."""
    ((*values,),) = catalog.read(f"SELECT {', '.join(SEALED[table])} FROM {table} WHERE id = ?", (number,))
    catalog.execute(f"UPDATE {table} SET seal = ? WHERE id = ?", (seal(table, *values), number))


def _json(metadata: Mapping[str, JSON]) -> str:
    """As text that SQLite finds keys in: without escapes where there need be none."""
    return json.dumps(dict(metadata), ensure_ascii=False)
