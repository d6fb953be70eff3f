"""Is every byte of a bank what it was? Checksums are computed again, catalog and segments compared; faults named."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Literal

from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import Catalog
from memspan.bank.folder import SegmentFiles, segments_folder, text_crc32
from memspan.bank.schema import SEALED, seal
from memspan.bank.scope import KEPT
from memspan.bank.segment import SegmentReader
from memspan.errors import BankError
from memspan.types import Document

_MOST_REPORTED = 20

Kind = Literal["catalog", "segment", "coarse", "document", "index"]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something in a bank that is not what it should be.

    Attributes:
        kind: "segment" (latents), "coarse" (keys in 8 bits), "index" (full text), "document" (a source without all its
            parts) can be repaired from what is stored; "catalog" (the text itself, or what ties it together) cannot.
        where: the file, or the document's external id.
        message: what is wrong, for people.
        namespace: whose documents it concerns, if of one.
        segment_id: the segment's number in the catalog, for "segment".
    """

    kind: Kind
    where: str
    message: str
    namespace: str | None = None
    segment_id: int | None = None

    @property
    def repairable(self) -> bool:
        return self.kind != "catalog"

    def described(self) -> dict[str, object]:
        """The fault as JSON."""
        return {**dataclasses.asdict(self), "repairable": self.repairable}


def verify(bank: MemoryBank) -> list[Fault]:
    """Check everything a bank holds, as of now; writers may go on. Reads every file whole.

    Covers the structure of the catalog, the sha256 of every segment, where documents stand in it and of which text,
    every text against its hash and every row against its seal, that every live document and every one of a former
    version has its latents and its words, and nothing else has. Files that a killed writer left are no fault (the next
    writer sweeps them).

    Raises:
        ReadOnlyBank: the bank was opened by its URL.
    """
    bank.check_owned("verified")
    with bank.pinned_catalog() as catalog:
        try:
            faults = list(_catalog_faults(catalog))
            for namespace in catalog.namespaces():
                of_sources = list(_source_faults(catalog, namespace))
                faults += of_sources
                damaged = {fault.where for fault in of_sources}
                for number, files in catalog.segments(namespace):
                    faults += _segment_faults(bank, catalog, namespace, number, files, damaged)
                for index, past in ((catalog.word_index(namespace), False), (catalog.past_word_index(namespace), True)):
                    if index is not None and index.differs(catalog.texts(namespace, past=past)):
                        message = "the full-text index is not that of the texts"
                        faults.append(Fault("index", str(catalog.path), message, namespace))
            return faults
        except (BankError, sqlite3.Error, ValueError, TypeError) as error:
            return [Fault("catalog", str(catalog.path), f"it cannot be read: {error}")]


def _catalog_faults(catalog: Catalog) -> Iterator[Fault]:
    where = str(catalog.path)
    for (message,) in catalog.read(f"PRAGMA integrity_check({_MOST_REPORTED})"):
        if message != "ok":
            yield Fault("catalog", where, message)
    broken = catalog.read("PRAGMA foreign_key_check")
    for table, row, parent, _ in broken[:_MOST_REPORTED]:
        yield Fault("catalog", where, f"row {row} of {table} refers to a row that {parent} does not have")
    for (external_id,) in catalog.read(
        "SELECT external_id FROM sources s WHERE coalesce(version_of, id) NOT IN (SELECT source_id FROM texts) "
        f"AND {KEPT.sql}"
    ):
        yield Fault("catalog", where, f"the text of {external_id!r} is missing")
    for table in ("documents", "sources", "segments", "namespaces"):
        query = "SELECT seq FROM sqlite_sequence WHERE name = ? AND typeof(seq) = 'integer'"
        given = catalog.value(query, (table,)) or 0
        if given < (catalog.value(f"SELECT max(id) FROM {table}") or 0):
            yield Fault("catalog", where, f"the counter of {table} was set back")
    sealed = ", ".join(f"d.{column}" for column in SEALED["documents"])
    of_the_dead = (  # those of live sources are reported with their source
        f"SELECT s.external_id, d.seal, {sealed} FROM documents d JOIN sources s ON s.id = d.source_id "
        "WHERE (d.deleted_in IS NOT NULL OR s.deleted_in IS NOT NULL) AND s.superseded_at IS NULL"
    )
    for name, number, *values in catalog.rows(of_the_dead):
        if number != seal("documents", *values):
            yield Fault("document", name, f"document {values[0]} is deleted, and not what was written")
    for table in ("namespaces", "sources"):
        for number, *values in catalog.rows(f"SELECT seal, {', '.join(SEALED[table])} FROM {table}"):
            if number != seal(table, *values):
                yield Fault("catalog", where, f"row {values[0]} of {table} is not what was written")
    for (external_id,) in catalog.read(
        "SELECT DISTINCT s.external_id FROM pending p JOIN sources s ON s.id = p.source_id "
        "WHERE (s.deleted_in IS NOT NULL AND s.superseded_at IS NULL) OR p.document_id IN (SELECT id FROM documents)"
    ):
        yield Fault("document", external_id, "a part of it waits to be encoded, and is deleted or encoded already")
    if catalog.value("SELECT count(*) FROM clock") != 1:
        yield Fault("catalog", where, "the counter of commits is missing")


def _segment_faults(
    bank: MemoryBank, catalog: Catalog, namespace: str, number: int, files: SegmentFiles, damaged: set[str]
) -> Iterator[Fault]:
    """
    Args:
        damaged: external ids of sources whose text is not to be relied on.
    """

    def fault(message: str) -> Fault:
        return Fault("segment", f"segments/{files.name}", message, namespace, number)

    try:
        reader = SegmentReader(segments_folder(bank.folder), files, bank.manifest)
        changed = files.changed(segments_folder(bank.folder))
    except (BankError, OSError) as error:
        yield fault(str(error))
        return
    for path in changed:
        yield fault(f"{path.name} has another sha256 than the catalog says")
    if reader.coarse_path.exists() and not reader.has_coarse():
        message = f"{reader.coarse_path.name} is damaged; routing does without it, and is slower"
        yield Fault("coarse", f"segments/{files.name}", message, namespace)
    query = "SELECT id, first_row, rows FROM documents WHERE segment_id = ? ORDER BY first_row"
    known = [tuple(row) for row in catalog.read(query, (number,))]
    found = [tuple(row) for row in reader.documents_N4[:, :3].tolist()]
    if known != found:
        odd = sorted({row[0] for row in set(known) ^ set(found)})[:_MOST_REPORTED]
        yield fault(f"catalog and segment differ in where documents {', '.join(map(str, odd))} stand")
    crc32_by_id = dict(reader.documents_N4[:, [0, 3]].tolist())
    for stored in catalog.documents_in_segment(namespace, number):
        is_other = crc32_by_id.get(stored.id) != text_crc32(stored.encoded_text)
        if is_other and stored.external_id not in damaged:
            yield fault(f"the latents of document {stored.id} are those of another text")


def _source_faults(catalog: Catalog, namespace: str) -> Iterator[Fault]:
    sealed = [f"s.{column}" for column in SEALED["sources"]]
    parts = _parts_by_source(catalog, namespace)
    number_of_parts, current = next(parts, (None, []))
    query = (
        f"SELECT t.text, s.title, m.metadata, s.date, s.content_hash, s.text_hash, s.seal, {', '.join(sealed)} "
        ", s.version_of IS NULL FROM sources s JOIN main.sources m ON m.id = s.id "
        "JOIN texts t ON t.source_id = coalesce(s.version_of, s.id) "
        f"WHERE s.namespace_id = ? AND {KEPT.sql} ORDER BY s.id"
    )
    rows = catalog.rows(query, (catalog.namespace_id(namespace),))
    for text, title, metadata, date, content_hash, text_hash, found_seal, *values, has_parts in rows:
        number, _, name, *_ = values
        if found_seal != seal("sources", *values):
            continue  # reported with the catalog; it may have been deleted, and must not come back by a repair
        while number_of_parts is not None and number_of_parts < number:
            number_of_parts, current = next(parts, (None, []))
        try:
            document = Document(name, text, title, json.loads(metadata), date)
            is_same = (content_hash, text_hash) == (document.content_hash, document.text_hash)
        except (ValueError, TypeError, AttributeError, RecursionError):
            is_same = False
        if not is_same:
            message = "title, text, metadata or date are not what was added; restore a backup, or update it"
            yield Fault("catalog", str(name), message, namespace)
            continue
        if not has_parts:
            continue  # a former label of another source's text
        found = current if number_of_parts == number else []
        bounds = [0, *(bound for part in found for bound in (part.start, part.end)), len(text)]
        if not found or any(start != end for start, end in zip(bounds[::2], bounds[1::2], strict=True)):
            yield Fault("document", name, "some parts of its text are missing", namespace)
        elif not all(part.is_sealed for part in found):
            yield Fault("document", name, "what is known of its parts is not what was written", namespace)
        elif not all(part.has_latents for part in found):
            yield Fault("document", name, "its latents are in no live segment of its namespace", namespace)


@dataclass(frozen=True, slots=True)
class _Part:
    start: int
    end: int
    has_latents: bool
    is_sealed: bool


def _parts_by_source(catalog: Catalog, namespace: str) -> Iterator[tuple[int | None, list[_Part]]]:
    """Per source, in order of their numbers: its live parts in order."""
    sealed = ", ".join(f"d.{column}" for column in SEALED["documents"])
    number = catalog.namespace_id(namespace)
    query = (
        "SELECT s.id, d.span_start, d.span_end, g.state IS 'live' AND g.namespace_id IS s.namespace_id, d.seal, "
        f"{sealed} FROM {KEPT.parts} LEFT JOIN segments g ON g.id = d.segment_id "
        f"WHERE s.namespace_id = ? AND {KEPT.sql} UNION ALL "
        f"SELECT s.id, d.span_start, d.span_end, TRUE, NULL{', NULL' * len(SEALED['documents'])} "
        f"FROM {KEPT.pending_parts} WHERE s.namespace_id = ? AND {KEPT.sql} ORDER BY 1, 2"
    )
    rows = catalog.rows(query, (number, number))
    for number, group in groupby(rows, key=itemgetter(0)):
        yield (
            number,
            [
                # A pending one has no seal: its span fits in with those of the others, or is found to be missing.
                _Part(start, end, bool(has_latents), found_seal in (None, seal("documents", *values)))
                for _, start, end, has_latents, found_seal, *values in group
            ],
        )
