"""The committer: segments that were encoded elsewhere begin to exist, in one transaction, however often it is called.

An encoded segment stays in BANK/encoded while a document of it waits for its latents (`compaction.sweep`), so no writer
takes it away before it is committed. A commit gives its files a second name among the bank's segments, and then
changes the catalog. So whatever ends it, the segment is committed, or can be.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memspan.bank import edits
from memspan.bank.compaction import copy_documents, sweep
from memspan.bank.encoded import EncodedSegment, finished, parsed
from memspan.bank.folder import coarse_path, encoded_folder, segment_paths, segments_folder, text_crc32
from memspan.bank.segment import MAX_SEGMENT_BYTES, SegmentReader, SegmentWriter, listed_documents
from memspan.bank.stored import num_pending, still_pending
from memspan.errors import BankError
from memspan.files import link

if TYPE_CHECKING:
    from memspan.bank.bank import MemoryBank

_MISSING = "was encoded and is not here; let all use the same folder, and encode its documents again"
_CHANGED = "changed since it was written; encode its documents again"


@dataclass(frozen=True, slots=True)
class CommitReport:
    """What a commit did.

    Attributes:
        documents: that are encoded now.
        before: of the manifests those that were encoded before.
        gone: of the manifests those that were deleted or replaced since they were to be encoded.
        pending: documents of the bank that are not encoded yet.
    """

    documents: int
    before: int
    gone: int
    pending: int


def commit(bank: MemoryBank, rows: Iterable[EncodedSegment | Mapping[str, Any]], patience: float) -> CommitReport:
    """See `MemoryBank.commit`."""
    bank.check_owned("changed")
    given = [parsed(EncodedSegment, row, "a row of the manifest") for row in rows]
    segments = list({segment.files.name: segment for segment in given}.values())
    for segment in segments:
        segment.origin.check_bank(bank)
    ids = {number for segment in segments for number in segment.ids}
    needed = checked(bank, segments)
    with bank.locked(patience):
        documents = place(bank, needed)
        there = _encoded(bank, ids)
    return CommitReport(documents, there - documents, len(ids) - there, num_pending(bank.catalog))


def checked(bank: MemoryBank, segments: Sequence[EncodedSegment]) -> list[EncodedSegment]:
    """Those segments that hold a document which is still pending, read whole and compared with their rows.

    Raises:
        BankError: one of them is missing or damaged, or its documents have other texts.
    """
    waiting = still_pending(bank.catalog, [number for segment in segments for number in segment.ids])
    needed = [segment for segment in segments if not waiting.isdisjoint(segment.ids)]
    for segment in needed:
        _check(bank, segment, waiting)
    return needed


def place(bank: MemoryBank, segments: Iterable[EncodedSegment]) -> int:
    """Make segments exist, as far as their documents are still pending; returns how many documents those are.

    The caller holds the writer's lock. Segments are among the bank's already, or in its folder of encoded ones.

    Raises:
        BankError: a segment is not there, or the bank cannot be written; nothing is committed.
    """
    segments = list(segments)
    waiting = still_pending(bank.catalog, [number for segment in segments for number in segment.ids])
    placed: list[EncodedSegment] = []
    for segment in segments:
        wanted = waiting.intersection(segment.ids)
        waiting -= wanted
        if len(wanted) == len(segment.ids):
            _adopt(bank, segment)
            placed.append(segment)
        elif wanted:
            placed += _without_others(bank, segment, wanted)
    if placed:
        edits.place_pending(bank.catalog, placed)
    for namespace in sorted({segment.origin.namespace for segment in placed}):
        bank.merge_small(namespace)
    if encoded_folder(bank.folder).is_dir():
        sweep(bank.catalog, bank.folder)
    return sum(len(segment.ids) for segment in placed)


def _check(bank: MemoryBank, segment: EncodedSegment, waiting: set[int]) -> None:
    """See that a segment is what its row says, of the texts that the bank has.

    Raises:
        BankError: it is not.
    """
    folder, namespace = encoded_folder(bank.folder), segment.origin.namespace
    keys, _content = segment_paths(folder, segment.files.name)
    if changed := segment.files.changed(folder):
        raise BankError(f"the file {changed[0]} {_MISSING if not changed[0].is_file() else _CHANGED}")
    SegmentReader(folder, segment.files, bank.manifest, remedy=_CHANGED)
    if listed_documents(keys) != segment.listed:
        raise BankError(f"the row of {keys.name} in the manifest {_CHANGED}")
    wanted = [document for document in segment.documents if document.id in waiting]
    texts = {stored.id: stored for stored in bank.catalog.documents(namespace, [document.id for document in wanted])}
    for document in wanted:
        stored = texts.get(document.id)
        if stored is None or text_crc32(stored.encoded_text) != document.text_crc32:
            raise BankError(
                f"document {document.id} of {namespace!r} has another text than was encoded; encode it again"
            )


def _adopt(bank: MemoryBank, segment: EncodedSegment) -> None:
    """Have the files of a segment among those of the bank."""
    name, source, target = segment.files.name, encoded_folder(bank.folder), segments_folder(bank.folder)
    names = dict(zip(segment_paths(source, name), segment_paths(target, name), strict=True))
    if all(path.is_file() for path in names.values()):
        return
    if (coarse := coarse_path(source, name)).is_file():
        names[coarse] = coarse_path(target, name)
    try:
        link(names)
    except FileNotFoundError as error:
        raise BankError(f"the segment {name} {_MISSING}") from error
    except OSError as error:
        keys = segment_paths(target, name)[0]
        raise BankError(f"cannot write {keys}: {error}; free some space and commit again") from error


def _without_others(bank: MemoryBank, segment: EncodedSegment, wanted: set[int]) -> list[EncodedSegment]:
    """A segment of those documents alone that are still to be encoded; others were deleted, or are encoded already."""
    reader = SegmentReader(encoded_folder(bank.folder), segment.files, bank.manifest, remedy=_CHANGED)
    writer = SegmentWriter(segments_folder(bank.folder), bank.manifest.msa_layers, MAX_SEGMENT_BYTES)
    copy_documents(reader, writer, wanted.__contains__)
    tokens = {document.id: document.tokens for document in segment.documents}
    return finished(writer, segment.origin, tokens)


def _encoded(bank: MemoryBank, ids: Iterable[int]) -> int:
    """How many of some documents the bank has latents of."""
    query = "SELECT count(*) FROM documents WHERE deleted_in IS NULL AND id IN (SELECT value FROM json_each(?))"
    return int(bank.catalog.value(query, (json.dumps(list(ids)),)))
