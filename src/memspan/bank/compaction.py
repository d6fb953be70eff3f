"""Rewriting segments: small ones are merged as they pile up, deleted documents dropped, and, when asked, erased.

Readers go on meanwhile: old files are unlinked when no snapshot can see them any more. The caller holds the writer's
lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from memspan.bank import edits, ledger
from memspan.bank.catalog import Catalog
from memspan.bank.folder import (
    SegmentFiles,
    WrittenSegments,
    encoded_folder,
    is_partial,
    segment_of,
    segment_paths,
    segments_folder,
)
from memspan.bank.locks import holders, pids
from memspan.bank.manifest import Manifest
from memspan.bank.segment import SegmentReader, SegmentWriter, listed_documents
from memspan.bank.stored import may_be_encoded
from memspan.errors import BankBusy, BankError
from memspan.files import remove, sync_folder

# Segments are merged when so many of a like size have come together: a document is rewritten once per power of 8.
FAN_OUT = 8
_SMALLEST_TIER_BYTES = 2**16
_POLL_SECONDS = 0.05

Numbered = tuple[int, SegmentFiles]


def merge_small(catalog: Catalog, folder: Path, manifest: Manifest, namespace: str, max_bytes: int) -> None:
    """Merge segments of like size until there are fewer than FAN_OUT of each size (but for those near `max_bytes`).

    Writes segments and the catalog; each merge is a transaction of its own.
    """
    merged = False
    while group := _full_tier(catalog.segments(namespace), max_bytes):
        rewrite(catalog, folder, manifest, namespace, group, max_bytes)
        merged = True
    if merged:
        sweep(catalog, folder)


def compact(catalog: Catalog, folder: Path, manifest: Manifest, max_bytes: int) -> None:
    """Rewrite every segment that holds deleted documents, and join small neighbors, in every namespace.

    A large segment that has no file of keys in 8 bits is given one.
    """
    for namespace in catalog.namespaces():
        group: list[Numbered] = []
        for numbered in [*catalog.segments(namespace), None]:
            if group and (numbered is None or sum(files.bytes for _, files in [*group, numbered]) > max_bytes):
                if len(group) > 1 or catalog.forgotten_in_segment(group[0][0]):
                    rewrite(catalog, folder, manifest, namespace, group, max_bytes)
                group = []
            if numbered is not None:
                group.append(numbered)
        write_missing_coarse(catalog, folder, manifest, namespace)
    drop_unwanted_staged(catalog, folder)
    sweep(catalog, folder)
    ledger.prune(catalog)
    edits.drop_empty_namespaces(catalog)


def write_missing_coarse(catalog: Catalog, folder: Path, manifest: Manifest, namespace: str) -> None:
    """Give every large segment that lacks a sound file of keys in 8 bits a new one.

    Raises:
        BankError: the keys of a segment are damaged, or the disk is full.
    """
    for _, files in catalog.segments(namespace):
        reader = SegmentReader(segments_folder(folder), files, manifest)
        if reader.is_large and not reader.has_coarse():
            reader.write_coarse()


def erase(catalog: Catalog, folder: Path, timeout: float) -> None:
    """After `compact`: see to it that no file of the bank holds deleted text or latents any more.

    Full-text indexes are made anew, the catalog is rewritten (it needs free space of its own size) and its log emptied,
    retired segments are gone. What a file system or a disk keeps of unlinked files is not covered.

    Raises:
        BankBusy: a reader still held a snapshot after `timeout` seconds; its pid is named. Nothing is lost; the rest of
            the work is done by the next call.
    """
    deadline = time.monotonic() + timeout
    for namespace in catalog.namespaces():
        edits.rebuild_words(catalog, namespace)
    # They may hold what was deleted; their documents are encoded again.
    for path in _encoded_files(encoded_folder(folder)):
        remove(path)
    commit = catalog.commits()
    while readers := [name for name, seen in holders(folder).items() if seen < commit]:
        _wait(deadline, folder, pids(readers))
    while not sweep(catalog, folder):
        _wait(deadline, folder, "unknown")
    edits.drop_empty_namespaces(catalog)
    catalog.vacuum()
    while not catalog.empty_log():
        _wait(deadline, folder, pids(holders(folder)))


def _wait(deadline: float, folder: Path, readers: str) -> None:
    """Wait a moment for some readers, named by their pids.

    Raises:
        BankBusy: the time is over; names them.
    """
    if time.monotonic() >= deadline:
        raise BankBusy(
            f"a process reads {folder} (pid {readers}) and may see what is to be erased; "
            "end it, or try again when it is done"
        )
    time.sleep(_POLL_SECONDS)


def rewrite(
    catalog: Catalog, folder: Path, manifest: Manifest, namespace: str, group: Sequence[Numbered], max_bytes: int
) -> None:
    """Copy the live documents of some segments into new ones, which take their place in one transaction.

    Raises:
        BankError: an old segment is damaged, or the new ones cannot be written; nothing changed then.
    """
    writer = SegmentWriter(segments_folder(folder), manifest, max_bytes)
    for segment_id, files in group:
        reader = SegmentReader(segments_folder(folder), files, manifest)
        deleted = set(catalog.forgotten_in_segment(segment_id))
        copy_documents(reader, writer, lambda document_id, deleted=deleted: document_id not in deleted)
    edits.replace_segments(catalog, namespace, [number for number, _ in group], WrittenSegments(*writer.finish()))


def copy_documents(reader: SegmentReader, writer: SegmentWriter, keep: Callable[[int], bool]) -> None:
    """Copy the latents of those documents whose id is to be kept."""
    for index, (document_id, _, _, crc32) in enumerate(reader.documents_N4.tolist()):
        if keep(document_id):
            writer.append(document_id, crc32, reader.latents(index))


def drop_unwanted_staged(catalog: Catalog, folder: Path) -> None:
    """Rewrite staged segments that hold documents deleted since they were staged."""
    values = catalog.staged_manifest()
    if values is None:
        return
    manifest = Manifest.from_json(values)
    for namespace in catalog.namespaces():
        for number, files, wanted in catalog.staged_segments(namespace):
            if len(wanted) < files.documents:
                reader = SegmentReader(segments_folder(folder), files, manifest)
                writer = SegmentWriter(segments_folder(folder), manifest, files.bytes)
                copy_documents(reader, writer, wanted.__contains__)
                edits.replace_staged(catalog, namespace, number, WrittenSegments(*writer.finish()))


def sweep(catalog: Catalog, folder: Path) -> bool:
    """Remove the files of segments that were never committed, and of retired ones that no snapshot sees.

    Of those that were encoded without a lock, what may still be committed stays.

    Returns:
        Whether none was in use. Windows does not remove a file that is mapped; the next sweep tries again.

    Raises:
        BankError: the folder or the catalog cannot be written.
    """
    states = catalog.segment_states()
    oldest = min(holders(folder).values(), default=None)
    unused = catalog.unused_segments()
    gone = {name for name, retired_in in unused.items() if oldest is None or oldest >= retired_in}
    try:
        files = list(segments_folder(folder).iterdir())
        unknown = [path for path in files if is_partial(path) or segment_of(path) not in {None, *states}]
        if unknown:
            # A commit that failed may still lie in the log and come back after a crash, unless another overwrites it.
            edits.overwrite_log(catalog)
        obsolete = [path for path in files if segment_of(path) in gone]
        unwanted = _unwanted_encoded(catalog, encoded_folder(folder))
        in_use = [path for path in (*unknown, *obsolete, *unwanted) if not remove(path)]
        if obsolete:
            sync_folder(segments_folder(folder))
    except OSError as error:
        raise BankError(f"cannot remove what {folder} no longer needs: {error}") from error
    edits.forget_segments(catalog, sorted(gone.difference(map(segment_of, in_use))))
    return not in_use


def _unwanted_encoded(catalog: Catalog, folder: Path) -> list[Path]:
    """Files of encoded segments none of whose documents is pending, so that they cannot be committed any more.

    An incomplete segment may become whole while any document is pending.
    """
    files = _encoded_files(folder)
    if not files or not may_be_encoded(catalog):
        return files
    names = {segment_of(path) or "" for path in files if not is_partial(path)}
    whole = {name for name in names if all(path.is_file() for path in segment_paths(folder, name))}
    unwanted = {name for name in whole if not may_be_encoded(catalog, _listed(segment_paths(folder, name)[0]))}
    return [path for path in files if not is_partial(path) and segment_of(path) in unwanted]


def _encoded_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if is_partial(path) or segment_of(path) is not None]


def _listed(keys: Path) -> list[int]:
    """The documents of an encoded segment; none of a damaged one, which cannot be committed."""
    try:
        return [number for number, *_ in listed_documents(keys)]
    except BankError:
        return []


def _full_tier(segments: Sequence[Numbered], max_bytes: int) -> list[Numbered]:
    """The oldest segments of the smallest size of which there are too many, as many as fit into one; or none."""
    tiers: dict[int, list[Numbered]] = {}
    for numbered in segments:
        tiers.setdefault(_tier(numbered[1].bytes), []).append(numbered)
    for _, group in sorted(tiers.items()):
        while len(group) >= FAN_OUT:
            chosen = group[:FAN_OUT]
            while sum(files.bytes for _, files in chosen) > max_bytes:
                chosen.pop()
            if len(chosen) > 1:
                return chosen
            group = group[1:]
    return []


def _tier(size: int) -> int:
    tier, bound = 0, _SMALLEST_TIER_BYTES
    while size >= bound:
        tier, bound = tier + 1, bound * FAN_OUT
    return tier
