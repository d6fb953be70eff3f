"""`MemoryBank`: one folder that holds a memory. Opened by any number of readers and at most one writer.

catalog.sqlite           documents, text, metadata, full-text indexes, manifest (see `catalog`)
segments/                latents, immutable (see `segment`)
writer.lock, readers/    who uses the bank (see `locks`)
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from memspan.bank import compaction, edits
from memspan.bank.catalog import DEFAULT_NAMESPACE, Catalog
from memspan.bank.compaction import segments_folder
from memspan.bank.edits import NewSource, Written
from memspan.bank.locks import HOLDER, LOCK, READERS, Registration, writer_lock
from memspan.bank.manifest import Manifest
from memspan.bank.segment import SegmentReader, SegmentWriter, text_crc32
from memspan.bank.shard import Shard, join_small
from memspan.bank.snapshot import Snapshot
from memspan.bank.tiers import TensorCache, Tiers
from memspan.errors import BankError, BankMismatch, UnknownDocument
from memspan.files import publish, sync_folder
from memspan.text.template import part_text
from memspan.types import Document, EncodedDocuments, is_unicode

_log = logging.getLogger(__name__)

MAX_SEGMENT_BYTES = 256 * 2**20
CATALOG, PARTIAL_CATALOG = "catalog.sqlite", "catalog.sqlite.partial"
_SQLITE_SUFFIXES = ("", "-wal", "-shm", "-journal")
_LONGEST_NAMESPACE = 200
# Of masks of scopes, kept until the next commit: 32 of a million documents.
_MASK_BYTES = 2**25


@dataclass(frozen=True, slots=True)
class _View:
    """The shards of a namespace as of a commit: by segment, and as they are scored, the small ones joined.

    Attributes:
        masks: what may be selected, by scope.
    """

    commit: int
    shards: dict[int, Shard]
    joined: list[Shard]
    masks: TensorCache


class MemoryBank:
    """A memory on disk. Use `create` or `open`, not the constructor.

    `snapshot`, `delete` and `compact` may be called from any thread; the rest belongs to one thread at a time.
    """

    def __init__(self, folder: Path, catalog: Catalog, manifest: Manifest, memory_budget: int | None = None) -> None:
        self.folder = folder
        self.tiers = Tiers(memory_budget)
        self.catalog = catalog
        self.manifest = manifest
        self._registration = Registration(folder)
        self._lock = threading.Lock()
        self._views: dict[str, _View] = {}
        self._idle: list[Catalog] = []

    @classmethod
    def create(cls, folder: str | Path, manifest: Manifest, memory_budget: int | None = None) -> MemoryBank:
        """Make an empty bank. For `memory_budget` see `open`.

        Raises:
            BankError: the folder holds something already, or cannot be written.
        """
        path = Path(folder).expanduser()
        try:
            if path.exists():
                check_empty(path)  # before a lock is left in a folder that is not ours
            make_folder(path)
            with writer_lock(path):
                check_empty(path)
                make_folder(segments_folder(path))
                # The catalog appears under its name only when it is complete: a half-made bank is no bank.
                remove_partial_catalog(path)
                catalog = Catalog(path / PARTIAL_CATALOG, create=True)
                try:
                    edits.write_manifest(catalog, dataclasses.asdict(manifest))
                finally:
                    catalog.close()
                publish_catalog(path)
        except OSError as error:
            raise BankError(f"cannot create a bank in {path}: {error}") from error
        return cls.open(path, memory_budget)

    @classmethod
    def open(cls, folder: str | Path, memory_budget: int | None = None) -> MemoryBank:
        """Open an existing bank.

        Args:
            memory_budget: bytes that the process may hold, what it holds already included; see `Tiers`.

        Raises:
            BankError: there is none, or it is damaged or of a newer format.
        """
        path = Path(folder).expanduser()
        if not cls.exists(path):
            raise BankError(f"there is no bank in {path}; make one with: memspan add {path} FILES...")
        catalog = Catalog(path / CATALOG)
        try:
            return cls(path, catalog, Manifest.from_json(catalog.read_manifest()), memory_budget)
        except BaseException:
            catalog.close()
            raise

    @classmethod
    def exists(cls, folder: str | Path) -> bool:
        return (Path(folder).expanduser() / CATALOG).is_file()

    def close(self) -> None:
        with self._lock:
            self._views.clear()
            for catalog in self._idle:
                catalog.close()
            self._idle.clear()
        self._registration.close()
        self.catalog.close()

    def snapshot(self, namespace: str = DEFAULT_NAMESPACE) -> Snapshot:
        """What a namespace holds now; the work is that of what changed since the last snapshot.

        Raises:
            BankMismatch: the bank was encoded anew by another model since it was opened.
            BankError: a file is missing or damaged.
        """
        seen = -1
        while True:
            held = contextlib.ExitStack()
            catalog = held.enter_context(self.pinned_catalog())
            commit = catalog.commits()
            try:
                view = self._view(catalog, namespace, commit)
                shards, close = view.joined, held.close
                return Snapshot(namespace, commit, self.manifest, shards, catalog, close, self.tiers, view.masks)
            except BaseException as error:
                held.close()
                # A reader that cannot be registered (a read-only folder) may find a file compacted away under it: it
                # looks again. If nothing was committed meanwhile, the file is missing for good.
                if not isinstance(error, BankError) or commit == seen:
                    raise
                seen = commit

    @contextlib.contextmanager
    def pinned_catalog(self) -> Iterator[Catalog]:
        """A connection that sees the bank as it is now; no file that it names is unlinked while it is in use."""
        with self._lock:
            catalog = self._idle.pop() if self._idle else Catalog(self.folder / CATALOG)
        self._registration.announce()
        try:
            catalog.begin_snapshot()
            commit = catalog.commits()
        except BaseException:
            self._registration.withdraw()
            catalog.close()
            raise
        self._registration.hold(commit)
        try:
            yield catalog
        finally:
            catalog.end_snapshot()
            self._registration.release(commit)
            with self._lock:
                self._idle.append(catalog)

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
            shards: dict[int, Shard] = {}
            for segment_id, files in catalog.segments(namespace):
                if segment_id in known:
                    shards[segment_id] = known[segment_id].without(deleted.get(segment_id, ()))
                else:
                    shard = Shard.of(SegmentReader(segments_folder(self.folder), files, self.manifest))
                    shards[segment_id] = shard.without(catalog.deleted_in_segment(segment_id))
            joined = join_small(list(shards.values()), view.joined if view else ())
            made = _View(commit, shards, joined, TensorCache(_MASK_BYTES))
            if view is None or view.commit < commit:
                self._views[namespace] = made
            return made

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
    def locked(self) -> Iterator[None]:
        """Hold the writer's lock, with the leftovers of killed writers swept. Raises as `writer` does."""
        with writer_lock(self.folder):
            if not segments_folder(self.folder).is_dir():
                raise BankError(f"{segments_folder(self.folder)} is missing; mend it: memspan verify BANK --repair")
            self._check_manifest(self.catalog)
            compaction.sweep(self.catalog, self.folder)
            yield

    def _check_manifest(self, catalog: Catalog) -> None:
        if Manifest.from_json(catalog.read_manifest()) != self.manifest:
            raise BankMismatch(f"{self.folder} was encoded anew since it was opened; open it again")

    def delete(self, ids: Iterable[int | str], namespace: str = DEFAULT_NAMESPACE) -> int:
        """Delete documents, in one transaction. The next question does not see them; `compact` frees their space.

        Args:
            ids: the caller's external ids (str), or the bank's document ids (int). A part of a split document stands
                for all of it.

        Returns:
            How many sources were deleted.

        Raises:
            UnknownDocument: one of the ids is not there; nothing is deleted then.
            BankBusy: another process writes.
        """
        if isinstance(ids, str):
            raise TypeError("ids is a list of ids, not one")
        with writer_lock(self.folder):
            names = {self.resolve(document_id, namespace) for document_id in ids}
            edits.delete_sources(self.catalog, namespace, sorted(names))
        return len(names)

    def resolve(self, document_id: int | str, namespace: str = DEFAULT_NAMESPACE) -> str:
        """The external id of a live source, from it or from the id of one of its documents.

        Raises:
            UnknownDocument: there is none.
        """
        if isinstance(document_id, str) and not is_unicode(document_id):
            name = None  # as a shell hands over a file's name of another encoding
        elif isinstance(document_id, int):
            name = self.catalog.external_id_of(namespace, document_id)
        else:
            name = document_id if self.catalog.hashes(namespace, document_id) else None
        if name is None:
            raise UnknownDocument(
                f"there is no document {document_id!r} in namespace {namespace!r} of {self.folder}; "
                f"see: memspan ls {self.folder}"
            )
        return name

    def compact(self, *, secure: bool = False, timeout: float = 30.0) -> None:
        """Rewrite segments so that deleted documents take no space, and small ones are joined. Readers go on.

        Args:
            secure: afterwards no file of the bank holds deleted text or latents. Waits for readers' snapshots.
            timeout: seconds to wait for them.

        Raises:
            BankBusy: another process writes; or, if `secure`, one still reads (its pid is named).
            BankError: a segment is damaged, or the disk is full; nothing is lost.
        """
        with self.locked():
            compaction.compact(self.catalog, self.folder, self.manifest, MAX_SEGMENT_BYTES)
            if secure:
                with self._lock:
                    self._views.clear()  # they may map what is to be erased
                compaction.erase(self.catalog, self.folder, timeout)


class BankWriter:
    """Adds encoded documents to a namespace: collect with `add`, make them exist with `commit`."""

    def __init__(self, bank: MemoryBank, namespace: str, max_segment_bytes: int) -> None:
        self._bank, self._namespace, self._max_bytes = bank, namespace, max_segment_bytes
        self._segments = SegmentWriter(segments_folder(bank.folder), bank.manifest.msa_layers, max_segment_bytes)
        self._pending: dict[str, NewSource] = {}
        self._relabelled: dict[str, Document] = {}
        self._next_id = bank.catalog.next_document_id()

    def reserve_ids(self, count: int) -> Sequence[int]:
        """Ids for documents about to be encoded (the id is part of what is encoded). Unused ones are simply skipped."""
        first = self._next_id
        self._next_id += count
        return range(first, self._next_id)

    @property
    def waiting(self) -> Set[str]:
        """External ids of the sources that the next `commit` makes exist."""
        return self._pending.keys()

    def add(self, source: NewSource, latents: Sequence[EncodedDocuments | None]) -> None:
        """Take a source with the latents of each of its parts. It exists after the next `commit`.

        One of a name that waits for that commit already is replaced: the first is committed now.

        Args:
            latents: None of a part that another process writes: `commit` must be given its place.
        """
        document = source.document
        if document.external_id in self._pending:
            self.commit()
        for part, encoded in zip(source.parts, latents, strict=True):
            if encoded is not None:
                self._segments.append(part.document_id, text_crc32(part_text(document, part.span)), encoded)
        self._pending[document.external_id] = source
        self._relabelled.pop(document.external_id, None)

    def relabel(self, document: Document) -> None:
        """Take new metadata and date for a source whose text is there already."""
        pending = self._pending.get(document.external_id)
        if pending is not None:
            self._pending[document.external_id] = dataclasses.replace(pending, document=document)
        else:
            self._relabelled[document.external_id] = document

    def hashes(self, external_id: str) -> tuple[str, str] | None:
        """Content and text hash of a source of this name, committed or about to be; None if there is none."""
        pending = self._pending.get(external_id)
        document = pending.document if pending else self._relabelled.get(external_id)
        if document is not None:
            return document.content_hash, document.text_hash
        return self._bank.catalog.hashes(self._namespace, external_id)

    def commit(self, elsewhere: Iterable[Written] = ()) -> None:
        """Write what was added: segment files first, then one transaction that makes them exist.

        When many small segments have come together they are merged.

        Args:
            elsewhere: what other processes wrote of it into the bank's folder.
        """
        if not (self._pending or self._relabelled):
            return
        catalog, written = self._bank.catalog, Written.joined([Written(*self._segments.finish()), *elsewhere])
        edits.add_sources(catalog, self._namespace, self._pending.values(), written, self._relabelled.values())
        self._pending, self._relabelled = {}, {}
        try:
            compaction.merge_small(catalog, self._bank.folder, self._bank.manifest, self._namespace, self._max_bytes)
        except BankError as error:  # what was added is in the bank; a damaged old segment must not stop adding
            _log.warning("small segments of %s were not merged: %s", self._bank.folder, error)


def check_namespace(name: str) -> None:
    """
    Raises:
        BankError: not a name a namespace can have.
    """
    if not name.strip() or not name.isprintable() or len(name) > _LONGEST_NAMESPACE:
        raise BankError(f"a namespace needs a printable name of at most {_LONGEST_NAMESPACE} characters, not {name!r}")


def make_folder(path: Path) -> None:
    """Make a folder with its parents, so that it survives a loss of power."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def publish_catalog(folder: Path) -> None:
    """Give a complete, closed catalog its name: from now on the folder is a bank.

    Raises:
        OSError: closing it did not write everything to it (a full disk), or the folder cannot be written.
    """
    partial = folder / PARTIAL_CATALOG
    if any(partial.with_name(f"{PARTIAL_CATALOG}{log}").exists() for log in ("-wal", "-journal")):
        raise OSError("the catalog could not be written completely")
    publish({partial: folder / CATALOG})


def remove_partial_catalog(folder: Path) -> None:
    """Remove what an attempt that failed left of a catalog."""
    for suffix in _SQLITE_SUFFIXES:
        (folder / f"{PARTIAL_CATALOG}{suffix}").unlink(missing_ok=True)


def check_empty(folder: Path) -> None:
    """A new bank's folder holds nothing, or what an attempt that failed left behind.

    Raises:
        BankError: it holds something else.
    """
    ours = {LOCK, HOLDER, READERS, *(f"{PARTIAL_CATALOG}{suffix}" for suffix in _SQLITE_SUFFIXES)}
    if not folder.is_dir():
        raise BankError(f"{folder} is a file; name a folder for the new bank")
    others = [path for path in folder.iterdir() if path.name not in ours]
    if any(path != segments_folder(folder) or any(path.iterdir()) for path in others):
        raise BankError(f"{folder} exists and is not an empty folder; name another one for the new bank")
