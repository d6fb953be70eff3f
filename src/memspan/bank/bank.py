"""`MemoryBank`: one folder that holds a memory. Opened by any number of readers and at most one writer."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memspan.bank import clock, compaction, edits
from memspan.bank.catalog import DEFAULT_NAMESPACE, Catalog
from memspan.bank.changes import erase_names
from memspan.bank.edits import NewSource
from memspan.bank.fetched import Ranges, open_segments
from memspan.bank.folder import (
    PARTIAL_CATALOG,
    SegmentFiles,
    WrittenSegments,
    new_bank,
    segments_folder,
    text_crc32,
)
from memspan.bank.manifest import Manifest
from memspan.bank.segment import MAX_SEGMENT_BYTES, SegmentReader, SegmentWriter
from memspan.bank.shard import Shard, join_small
from memspan.bank.snapshot import Snapshot
from memspan.bank.stored import num_pending
from memspan.bank.texts import PATIENCE, TextBank, check_namespace
from memspan.bank.tiers import TensorCache, Tiers
from memspan.errors import BankBusy, BankError
from memspan.places import BankPlace
from memspan.text.template import part_text
from memspan.types import EncodedDocuments

if TYPE_CHECKING:
    from memspan.bank.commit import CommitReport
    from memspan.bank.encoded import EncodedSegment
    from memspan.bank.mirror import Mirror

_log = logging.getLogger(__name__)

# Of masks of scopes, kept until the next commit: 32 of a million documents.
_MASK_BYTES = 2**25
# How long another process may take to make an empty bank, and how often it is looked for.
_MAKING_SECONDS, _MAKING_PAUSE = 10.0, 0.02


@dataclass(frozen=True, slots=True)
class _View:
    """The shards of a namespace as of a commit: by segment, and as they are scored, the small ones joined.

    Attributes:
        masks: what may be selected, by scope.
        pending: documents that are not encoded yet.
    """

    commit: int
    shards: dict[int, Shard]
    joined: list[Shard]
    masks: TensorCache
    pending: int


class MemoryBank(TextBank):
    """A memory on disk. Use `create` or `open`, not the constructor.

    `snapshot` and `compact` may be called from any thread, and what may be of a `TextBank`; the rest belongs to one
    thread at a time.
    """

    def __init__(self, folder: Path, catalog: Catalog, manifest: Manifest, mirror: Mirror | None = None) -> None:
        super().__init__(folder, catalog, manifest, mirror)
        self.tiers = Tiers()
        self._ranges = None if mirror is None else Ranges(mirror)
        self._views: dict[str, _View] = {}

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        manifest: Manifest,
        memory_budget: int | None = None,
        gpu_memory_budget: int | None = None,
    ) -> MemoryBank:
        """Make an empty bank. For the budgets see `open`.

        Raises:
            BankError: the folder holds something already, or cannot be written.
        """
        path = BankPlace.of(folder).new_folder
        try:
            with new_bank(path), contextlib.closing(Catalog(path / PARTIAL_CATALOG, create=True)) as catalog:
                edits.write_manifest(catalog, manifest.as_json())
        except OSError as error:
            raise BankError(f"cannot create a bank in {path}: {error}") from error
        return cls.open(path, memory_budget, gpu_memory_budget)

    @classmethod
    def open_or_create(
        cls,
        folder: str | os.PathLike[str],
        manifest: Manifest,
        memory_budget: int | None = None,
        gpu_memory_budget: int | None = None,
    ) -> MemoryBank:
        """Open a bank, which is made where there is none; of several processes that begin at once, by one of them.

        Raises:
            BankBusy: another process has been making it for a while.
            BankError: as `open` and `create`.
        """
        deadline = time.monotonic() + _MAKING_SECONDS
        while not cls.exists(folder):
            try:
                return cls.create(folder, manifest, memory_budget, gpu_memory_budget)
            except BankError as error:
                is_being_made = isinstance(error, BankBusy) and time.monotonic() < deadline
                if not (is_being_made or cls.exists(folder)):
                    raise
                time.sleep(_MAKING_PAUSE)
        return cls.open(folder, memory_budget, gpu_memory_budget)

    @classmethod
    def open(
        cls, place: str | os.PathLike[str], memory_budget: int | None = None, gpu_memory_budget: int | None = None
    ) -> MemoryBank:
        """Open an existing bank: its folder, or the URL where it was published, which is only read.

        Args:
            memory_budget: bytes that the process may hold, its present memory included; see `Tiers`.
            gpu_memory_budget: bytes of routing keys that a GPU keeps, where the model is on one.

        Raises:
            BankError: there is none, or it is damaged or of a newer format.
            StoreError: the URL cannot be read.
        """
        bank = super().open(place)
        bank.tiers = Tiers(memory_budget, gpu_memory_budget)
        return bank

    def close(self) -> None:
        with self._lock:
            self._views.clear()
        super().close()

    def snapshot(self, namespace: str = DEFAULT_NAMESPACE) -> Snapshot:
        """The present content of a namespace; the work grows with the changes since the last snapshot.

        Raises:
            BankMismatch: the bank was encoded anew by another model since it was opened.
            BankError: a file is missing or damaged.
        """
        seen = -1
        while True:
            stack = contextlib.ExitStack()
            catalog = stack.enter_context(self.pinned_catalog())
            commit = catalog.commits()
            try:
                view = self._view(catalog, namespace, commit)
                seen_of = (namespace, commit, self.manifest, view.joined, catalog, stack.close)
                return Snapshot(*seen_of, self.tiers, view.masks, view.pending)
            except BaseException as error:
                stack.close()
                # A reader that cannot be registered (a read-only folder) may find a file compacted away under it: it
                # looks again. If nothing was committed meanwhile, the file is missing for good.
                if not isinstance(error, BankError) or commit == seen:
                    raise
                seen = commit

    def _view(self, catalog: Catalog, namespace: str, commit: int) -> _View:
        with self._lock:
            view = self._views.get(namespace)
            if view is not None and view.commit == commit:
                return view
            self._check_manifest(catalog)
            known = view.shards if view is not None and view.commit < commit else {}
            deleted: dict[int, list[int]] = {}
            for segment_id, document_id in catalog.deleted_since(view.commit) if known and view else ():
                deleted.setdefault(segment_id, []).append(document_id)
            segments = dict(catalog.segments(namespace))
            readers = iter(self._readers([files for number, files in segments.items() if number not in known]))
            shards: dict[int, Shard] = {}
            for segment_id in segments:
                if segment_id in known:
                    shards[segment_id] = known[segment_id].without(deleted.get(segment_id, ()))
                else:
                    shards[segment_id] = Shard.of(next(readers)).without(catalog.deleted_in_segment(segment_id))
            joined = join_small(list(shards.values()), view.joined if view else ())
            made = _View(commit, shards, joined, TensorCache(_MASK_BYTES), num_pending(catalog, namespace))
            if view is None or view.commit < commit:
                self._views[namespace] = made
            return made

    def _readers(self, segments: list[SegmentFiles]) -> list[SegmentReader]:
        if self._ranges is not None:
            return open_segments(self._ranges, segments, self.manifest)
        return [SegmentReader(segments_folder(self.folder), files, self.manifest) for files in segments]

    @contextlib.contextmanager
    def writer(
        self, namespace: str = DEFAULT_NAMESPACE, max_segment_bytes: int = MAX_SEGMENT_BYTES
    ) -> Iterator[BankWriter]:
        """Hold the writer's lock and add to a namespace, which is made when something is.

        Raises:
            BankBusy: another process writes (its pid is named).
            BankError: the folder cannot be written.
        """
        check_namespace(namespace)
        with self.locked():
            yield BankWriter(self, namespace, max_segment_bytes)

    @contextlib.contextmanager
    def locked(self, patience: float = 0.0) -> Iterator[None]:
        """Hold the writer's lock, with the leftovers of killed writers swept. Raises as `writer` does.

        Args:
            patience: seconds to wait for another writer.
        """
        with self.writing(patience):
            if not segments_folder(self.folder).is_dir():
                raise BankError(f"{segments_folder(self.folder)} is missing; mend it: memspan verify BANK --repair")
            self._check_manifest(self.catalog)
            compaction.sweep(self.catalog, self.folder)
            yield

    def merge_small(self, namespace: str, max_bytes: int = MAX_SEGMENT_BYTES) -> None:
        """Merge small segments where many have come together. The caller holds the writer's lock."""
        try:
            compaction.merge_small(self.catalog, self.folder, self.manifest, namespace, max_bytes)
        except BankError as error:  # what was added is in the bank; a damaged old segment must not stop adding
            _log.warning("small segments of %s were not merged: %s", self.folder, error)

    def commit(self, rows: Iterable[EncodedSegment | Mapping[str, Any]], patience: float = PATIENCE) -> CommitReport:
        """Make encoded documents exist, in one transaction: the rows that an `Encoder` gave, or their JSON.

        Files and rows are checked first. Documents that were committed before, or deleted or replaced since, are passed
        over, and the report counts them.

        Args:
            patience: seconds to wait for another process that changes the bank.

        Raises:
            BankMismatch: a row is of another bank, model or version of memspan; nothing is committed.
            BankError: a row is none, or a file is missing or damaged; nothing is committed.
            BankBusy: another process changes the bank.
        """
        from memspan.bank.commit import commit

        return commit(self, rows, patience)

    def compact(
        self, *, secure: bool = False, forget_versions: str | timedelta | None = None, timeout: float = 30.0
    ) -> None:
        """Rewrite segments so that deleted documents take no space, and small ones are joined. Readers go on.

        Expired documents are deleted. Former versions are kept, unless one of the first two arguments says otherwise.

        Args:
            secure: afterwards no file of the bank holds deleted text or latents, nor any former version. Waits for
                readers' snapshots.
            forget_versions: delete former versions that were replaced longer ago than this, as "30d"; "0d": all.
            timeout: seconds to wait for readers.

        Raises:
            ValueError: that is no duration.
            BankBusy: another process writes; or, if `secure`, one still reads (its pid is named).
            BankError: a segment is damaged, or the disk is full; nothing is lost.
        """
        before = None if forget_versions is None else clock.moment_before(forget_versions)
        with self.locked():
            edits.forget(self.catalog, clock.END_OF_TIME if secure else before)
            self.free_space(secure=secure, timeout=timeout)

    def free_space(self, *, secure: bool, timeout: float) -> None:
        """`compact`, of what is deleted already. The caller holds the writer's lock."""
        if secure:
            erase_names(self.catalog)
        compaction.compact(self.catalog, self.folder, self.manifest, MAX_SEGMENT_BYTES)
        if secure:
            with self._lock:
                self._views.clear()  # they may map what is to be erased
            compaction.erase(self.catalog, self.folder, timeout)


class BankWriter:
    """Adds encoded documents to a namespace: collect with `add`, make them exist with `commit`."""

    def __init__(self, bank: MemoryBank, namespace: str, max_segment_bytes: int) -> None:
        self._bank, self._namespace, self._max_bytes = bank, namespace, max_segment_bytes
        self._segments = SegmentWriter(segments_folder(bank.folder), bank.manifest, max_segment_bytes)
        self._sources: dict[str, NewSource] = {}
        self._next_id = bank.catalog.next_document_id()

    def reserve_ids(self, count: int) -> Sequence[int]:
        """Ids for documents about to be encoded (the id is part of what is encoded). Unused ones are simply skipped."""
        first = self._next_id
        self._next_id += count
        return range(first, self._next_id)

    def add(self, source: NewSource, latents: Sequence[EncodedDocuments]) -> None:
        """Take a source with the latents of each of its parts. It exists after the next `commit`.

        One of a name that waits for that commit already is replaced: the first is committed now.
        """
        document = source.document
        if document.external_id in self._sources:
            self.commit()
        for part, encoded in zip(source.parts, latents, strict=True):
            self._segments.append(part.document_id, text_crc32(part_text(document, part.span)), encoded)
        self._sources[document.external_id] = source

    def commit(self) -> None:
        """Write what was added: segment files first, then one transaction that makes them exist.

        When many small segments have come together they are merged.
        """
        if self._sources:
            written = WrittenSegments(*self._segments.finish())
            edits.add_sources(self._bank.catalog, self._namespace, self._sources.values(), written)
            self._sources = {}
            self._bank.merge_small(self._namespace, self._max_bytes)
