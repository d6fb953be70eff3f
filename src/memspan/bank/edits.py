"""Changes of the catalog. Each function is one transaction: all of it is there afterwards, or nothing.

The caller holds the writer's lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memspan.bank import changes
from memspan.bank.catalog import STAGED_MANIFEST, Catalog
from memspan.bank.folder import RowLocation, SegmentFiles, WrittenSegments
from memspan.bank.formats import add_format_3, follow_format, is_of_format_2, show_as_stored
from memspan.bank.manifest import FORMAT_VERSION
from memspan.bank.schema import seal
from memspan.bank.scope import KEPT
from memspan.bank.versions import SourceRows, forget_unused, reseal
from memspan.bank.words import WordIndex, outdated_namespaces
from memspan.errors import BankError
from memspan.text.template import part_text
from memspan.types import Document, Span

if TYPE_CHECKING:
    from memspan.bank.encoded import EncodedSegment

_SEGMENT_FIELDS = tuple(field.name for field in dataclasses.fields(SegmentFiles))


@dataclass(frozen=True, slots=True)
class NewDocument:
    """A document ready to be committed: its reserved id, its part of the source, its size in tokens once encoded."""

    document_id: int
    span: Span
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class NewSource:
    """A source in its documents."""

    document: Document
    parts: tuple[NewDocument, ...]


@contextlib.contextmanager
def _change(catalog: Catalog) -> Iterator[int]:
    """A transaction; gives the number of the commit it will be."""
    with catalog.transaction():
        catalog.execute("UPDATE clock SET commits = commits + 1")
        yield catalog.commits()


def upgrade(catalog: Catalog) -> None:
    """Make a bank of format 2 one of this format, and full-text indexes of other rules anew; else nothing happens."""
    follow_format(catalog)
    if is_of_format_2(catalog):
        show_as_stored(catalog)
        with _change(catalog):
            add_format_3(catalog)
            catalog.execute("UPDATE manifest SET value = ? WHERE key = 'format_version'", (str(FORMAT_VERSION),))
            catalog.execute(
                "UPDATE manifest SET value = json_set(value, '$.format_version', ?) WHERE key = ?",
                (FORMAT_VERSION, STAGED_MANIFEST),
            )
    for namespace in outdated_namespaces(catalog):
        rebuild_words(catalog, namespace)


def write_manifest(catalog: Catalog, values: dict[str, Any]) -> None:
    """Store what the bank is encoded with."""
    with _change(catalog):
        _put_manifest(catalog, values)


def _put_manifest(catalog: Catalog, values: dict[str, Any]) -> None:
    rows = [(key, json.dumps(value)) for key, value in values.items()]
    catalog.execute_many("INSERT OR REPLACE INTO manifest VALUES (?, ?)", rows)


def add_sources(
    catalog: Catalog,
    namespace: str,
    sources: Collection[NewSource],
    written: WrittenSegments,
    relabelled: Iterable[Document] = (),
) -> None:
    """Make sources part of the bank. A live source of the same external id becomes a former version.

    Args:
        written: latents of their documents. Those without any are pending.
        relabelled: documents whose text is there already: only their metadata, date and expiry are replaced.
    """
    placed = {place.document_id: place for place in written.places}
    with _change(catalog) as commit:
        namespace_id = open_namespace(catalog, namespace)
        rows = SourceRows(catalog, namespace_id, commit)
        segment_ids = _insert_segments(catalog, namespace_id, written.segments, "live")
        for source in sources:
            source_id = rows.put(source.document)
            for part in source.parts:
                values = (part.document_id, source_id, part.span.start, part.span.end, part.tokens)
                if (place := placed.get(part.document_id)) is None:
                    catalog.execute("INSERT INTO pending VALUES (?, ?, ?, ?)", values[:-1])
                else:
                    where = (segment_ids[place.segment], place.first_row, place.rows)
                    catalog.execute(
                        "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, ?)",
                        (*values, *where, seal("documents", *values, None)),
                    )
                rows.words.insert(part.document_id, part_text(source.document, part.span))
        for document in relabelled:
            rows.relabel(document)
        rows.forget_unused()
        _give_ids(catalog, (part.document_id for source in sources for part in source.parts))


def place_pending(catalog: Catalog, segments: Iterable[EncodedSegment]) -> None:
    """Make pending documents encoded ones, all of some segments."""
    with _change(catalog):
        for segment in segments:
            number = catalog.namespace_id(segment.origin.namespace)
            assert number is not None, "pending documents belong to a namespace"
            (segment_id,) = _insert_segments(catalog, number, [segment.files], "live").values()
            for document in segment.documents:
                catalog.execute(
                    "INSERT INTO documents SELECT document_id, source_id, span_start, span_end, ?, ?, ?, ?, NULL, 0 "
                    "FROM pending WHERE document_id = ?",
                    (document.tokens, segment_id, document.first_row, document.rows, document.id),
                )
                catalog.execute("DELETE FROM pending WHERE document_id = ?", (document.id,))
                reseal(catalog, "documents", document.id)


def delete_sources(catalog: Catalog, namespace: str, external_ids: Iterable[str]) -> None:
    """Delete sources with all their parts and versions. The work is that of their texts, whatever the bank's size."""
    number = catalog.namespace_id(namespace)
    if number is None:
        return
    with _change(catalog) as commit:
        rows = SourceRows(catalog, number, commit)
        for external_id in external_ids:
            rows.delete(external_id)
        rows.forget_unused()


def forget(catalog: Catalog, superseded_before: str | None) -> None:
    """Delete what has expired, and former versions that others replaced before a moment (None: no version)."""
    with _change(catalog) as commit:
        for namespace in catalog.namespaces():
            number = catalog.namespace_id(namespace)
            assert number is not None
            rows = SourceRows(catalog, number, commit)
            rows.delete_expired()
            if superseded_before is not None:
                rows.forget("superseded_at < ?", superseded_before)
            rows.forget_unused()


def set_aside(catalog: Catalog, namespace: str, versions: Iterable[tuple[int, Sequence[Span]]]) -> None:
    """Give former versions up to their texts, of which the given parts get new ids and are found by words."""
    with _change(catalog) as commit:
        rows = SourceRows(catalog, open_namespace(catalog, namespace), commit)
        next_id = catalog.next_document_id()
        for source_id, spans in versions:
            ids = range(next_id, next_id + len(spans))
            rows.set_aside(source_id, list(zip(ids, spans, strict=True)))
            _give_ids(catalog, ids)
            next_id = ids.stop
        rows.forget_unused()
    rebuild_words(catalog, namespace)


def rename_sources(catalog: Catalog, namespace: str, renamed: Iterable[tuple[str, Document]]) -> None:
    """Give live sources, by their external ids, the ids and metadata of documents of the same text.

    Nothing is encoded. A source that has a new id already is deleted.
    """
    with _change(catalog) as commit:
        number = open_namespace(catalog, namespace)
        rows = SourceRows(catalog, number, commit)
        for old, document in renamed:
            rows.rename(old, document)
        rows.forget_unused()


def replace_segments(
    catalog: Catalog, namespace: str, old: Sequence[int], written: WrittenSegments, *, losing: bool = False
) -> None:
    """Put rewritten segments in the place of old ones. What was deleted in those is gone from the catalog, too.

    Args:
        losing: whether live documents that the new segments do not hold are given up; otherwise there must be none.
    """
    with _change(catalog) as commit:
        number = catalog.namespace_id(namespace)
        assert number is not None, "segments belong to a namespace"
        _move(catalog, _insert_segments(catalog, number, written.segments, "live"), written.places)
        if losing:
            catalog.execute_many("DELETE FROM documents WHERE segment_id = ?", [(segment_id,) for segment_id in old])
        _retire(catalog, old, commit)


def stage_manifest(catalog: Catalog, values: dict[str, Any] | None) -> None:
    """Begin to collect latents of another model (or, with None, give up): what was staged before is dropped."""
    with _change(catalog) as commit:
        catalog.execute("DELETE FROM staged")
        catalog.execute("UPDATE segments SET state = 'retired', retired_in = ? WHERE state = 'staged'", (commit,))
        catalog.execute("DELETE FROM manifest WHERE key = ?", (STAGED_MANIFEST,))
        if values is not None:
            _put_manifest(catalog, {STAGED_MANIFEST: values})


def forget_unfinished(catalog: Catalog) -> None:
    """Of a copy of a catalog: forget staged latents and retired segments, whose files were not copied."""
    with _change(catalog):
        catalog.execute("DELETE FROM staged")
        catalog.execute("DELETE FROM segments WHERE state <> 'live'")
        catalog.execute("DELETE FROM manifest WHERE key = ?", (STAGED_MANIFEST,))


def stage(catalog: Catalog, namespace: str, sources: Iterable[tuple[int, NewSource]], written: WrittenSegments) -> None:
    """Keep the new latents of some sources (by their numbers) until `publish_staged`. Readers do not see them."""
    placed = {place.document_id: place for place in written.places}
    with _change(catalog):
        number = catalog.namespace_id(namespace)
        assert number is not None, "its sources are being encoded"
        segment_ids = _insert_segments(catalog, number, written.segments, "staged")
        for source_id, source in sources:
            for part in source.parts:
                place = placed[part.document_id]
                catalog.execute(
                    "INSERT INTO staged VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        *(part.document_id, source_id, part.span.start, part.span.end, part.tokens),
                        *(segment_ids[place.segment], place.first_row, place.rows),
                    ),
                )


def publish_staged(catalog: Catalog, manifest: dict[str, Any]) -> None:
    """Put everything staged in the place of what there is, and a new manifest in the place of the old."""
    columns = "p.document_id, p.source_id, p.span_start, p.span_end, p.tokens, p.segment_id, p.first_row, p.rows"
    with _change(catalog) as commit:
        catalog.execute("DELETE FROM manifest")  # the staged one, too
        _put_manifest(catalog, manifest)
        old = [number for number, _ in catalog.segments()]
        for namespace in catalog.namespaces():
            for words, past in ((catalog.word_index(namespace), False), (catalog.past_word_index(namespace), True)):
                if words is None:
                    continue
                # Documents whose parts are cut differently now have new ids.
                for stored in catalog.unstaged_documents(namespace, past=past):
                    words.remove(stored.id, stored.encoded_text)
                for document_id, text in catalog.new_staged_texts(namespace, past=past):
                    words.insert(document_id, text)
        kept = f"SELECT d.id FROM {KEPT.parts} WHERE {KEPT.sql}"
        catalog.execute(f"DELETE FROM documents WHERE id IN ({kept}) AND id NOT IN (SELECT document_id FROM staged)")
        catalog.execute(
            f"INSERT INTO documents SELECT {columns}, s.deleted_in, 0 FROM staged p "
            "JOIN sources s ON s.id = p.source_id WHERE TRUE ON CONFLICT (id) DO UPDATE SET "
            "span_start = excluded.span_start, span_end = excluded.span_end, tokens = excluded.tokens, "
            "segment_id = excluded.segment_id, first_row = excluded.first_row, rows = excluded.rows"
        )
        for (document_id,) in catalog.read("SELECT document_id FROM staged"):
            reseal(catalog, "documents", document_id)
        catalog.execute("DELETE FROM staged")
        catalog.execute("DELETE FROM pending")
        _retire(catalog, old, commit)
        catalog.execute("UPDATE segments SET state = 'live' WHERE state = 'staged'")


def replace_staged(catalog: Catalog, namespace: str, old: int, written: WrittenSegments) -> None:
    """Put a rewritten staged segment in the place of one."""
    with _change(catalog) as commit:
        number = catalog.namespace_id(namespace)
        assert number is not None, "segments belong to a namespace"
        segment_ids = _insert_segments(catalog, number, written.segments, "staged")
        catalog.execute_many(
            "UPDATE staged SET segment_id = ?, first_row = ? WHERE document_id = ?",
            ((segment_ids[place.segment], place.first_row, place.document_id) for place in written.places),
        )
        catalog.execute("UPDATE segments SET state = 'retired', retired_in = ? WHERE id = ?", (commit, old))


def rebuild_words(catalog: Catalog, namespace: str) -> None:
    """Make the full-text index of a namespace anew from the texts."""
    with _change(catalog):
        index, past = catalog.word_index(namespace), catalog.past_word_index(namespace)
        if index is not None:
            index.rebuild(catalog.texts(namespace))
        if past is not None:
            past.rebuild(catalog.texts(namespace, past=True))


def delete_orphans(catalog: Catalog) -> None:
    """See to it that no document lives whose source does not; seal the deleted, forget those without a segment."""
    with _change(catalog) as commit:
        dead = (
            "SELECT d.id FROM documents d JOIN sources s ON s.id = d.source_id "
            "WHERE d.deleted_in IS NULL AND s.deleted_in IS NOT NULL"
        )
        for (document_id,) in catalog.read(dead):
            catalog.execute("UPDATE documents SET deleted_in = ? WHERE id = ?", (commit, document_id))
        of_the_gone = "SELECT id FROM sources WHERE deleted_in IS NOT NULL AND superseded_at IS NULL"
        catalog.execute(f"DELETE FROM pending WHERE source_id IN ({of_the_gone})")
        for (document_id,) in catalog.read("SELECT id FROM documents WHERE deleted_in IS NOT NULL"):
            reseal(catalog, "documents", document_id)
        catalog.execute(
            "DELETE FROM documents WHERE deleted_in IS NOT NULL AND segment_id NOT IN (SELECT id FROM segments)"
        )


def drop_empty_namespaces(catalog: Catalog) -> None:
    """Forget the names of namespaces that hold nothing, not even deleted documents or files."""
    unused = (
        "SELECT id FROM namespaces n WHERE NOT EXISTS (SELECT 1 FROM sources WHERE namespace_id = n.id) "
        "AND NOT EXISTS (SELECT 1 FROM segments WHERE namespace_id = n.id)"
    )
    if catalog.value(unused) is None:
        return
    with _change(catalog):
        for (number,) in catalog.read(unused):
            WordIndex(catalog, number).drop()
            WordIndex(catalog, number, past=True).drop()
            changes.drop_namespace(catalog, number)
            catalog.execute("DELETE FROM namespaces WHERE id = ?", (number,))


def overwrite_log(catalog: Catalog) -> None:
    """Commit nothing, durably: what the log may hold of a commit that failed is overwritten."""
    with _change(catalog):
        pass


def forget_segments(catalog: Catalog, names: Sequence[str]) -> None:
    """Take segments whose files are gone, and that no document refers to, out of the catalog."""
    if names:
        with _change(catalog):
            catalog.execute_many(
                "DELETE FROM segments WHERE name = ? AND state = 'retired'", [(name,) for name in names]
            )


def open_namespace(catalog: Catalog, namespace: str) -> int:
    number = catalog.namespace_id(namespace)
    if number is None:
        number = catalog.execute("INSERT INTO namespaces (name, seal) VALUES (?, 0)", (namespace,))
        catalog.execute("UPDATE namespaces SET seal = ? WHERE id = ?", (seal("namespaces", number, namespace), number))
        WordIndex(catalog, number).create()
    return number


def _insert_segments(
    catalog: Catalog, namespace_id: int, segments: Iterable[SegmentFiles], state: str
) -> dict[str, int]:
    columns, places = ", ".join(_SEGMENT_FIELDS), ", ".join("?" * len(_SEGMENT_FIELDS))
    statement = f"INSERT INTO segments (namespace_id, state, {columns}) VALUES (?, ?, {places})"
    return {
        files.name: catalog.execute(statement, (namespace_id, state, *dataclasses.astuple(files))) for files in segments
    }


def _give_ids(catalog: Catalog, document_ids: Iterable[int]) -> None:
    """See to it that no later document gets one of these ids, even if they never become rows of `documents`."""
    given = catalog.value("SELECT seq FROM sqlite_sequence WHERE name = 'documents'") or 0
    if (last := max(document_ids, default=0)) > given:
        catalog.execute("DELETE FROM sqlite_sequence WHERE name = 'documents'")
        catalog.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('documents', ?)", (last,))


def _move(catalog: Catalog, segment_ids: dict[str, int], places: Iterable[RowLocation]) -> None:
    catalog.execute_many(
        "UPDATE documents SET segment_id = ?, first_row = ?, rows = ? WHERE id = ?",
        ((segment_ids[place.segment], place.first_row, place.rows, place.document_id) for place in places),
    )


def _retire(catalog: Catalog, segment_ids: Sequence[int], commit: int) -> None:
    """Take segments out of use, with the documents that were deleted in them."""
    for segment_id in segment_ids:
        left = catalog.value(
            "SELECT 1 FROM documents WHERE segment_id = ? AND deleted_in IS NULL LIMIT 1", (segment_id,)
        )
        if left is not None:
            raise BankError(
                "catalog and segments differ in which documents there are; run: memspan verify BANK --repair"
            )
        sources = catalog.read("SELECT DISTINCT source_id FROM documents WHERE segment_id = ?", (segment_id,))
        catalog.execute("DELETE FROM documents WHERE segment_id = ? AND deleted_in IS NOT NULL", (segment_id,))
        for (source_id,) in sources:
            forget_unused(catalog, source_id)
        catalog.execute("UPDATE segments SET state = 'retired', retired_in = ? WHERE id = ?", (commit, segment_id))
