"""`MemoryBank`: one folder that holds a memory. Opened by any number of readers and at most one writer.

catalog.sqlite   documents, text, spans, full-text index, manifest (see `catalog`)
segments/        latents, immutable (see `segment`)
writer.lock      held by the one writer
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from memspan.bank.catalog import Catalog, NewSource
from memspan.bank.manifest import Manifest
from memspan.bank.segment import SegmentReader, SegmentWriter, fsync_folder, sweep
from memspan.errors import BankError
from memspan.types import EncodedDocuments

MAX_SEGMENT_BYTES = 256 * 2**20
_CATALOG, _PARTIAL_CATALOG, _SEGMENTS = "catalog.sqlite", "catalog.sqlite.partial", "segments"
_LOCK, _HOLDER = "writer.lock", "writer.pid"


@dataclass(frozen=True, slots=True)
class Shard:
    """The live documents of one segment, as a memory scores and fetches them.

    Attributes:
        reader: the segment's rows.
        document_ids_N: int64, in order of their rows.
        first_row_N, rows_N: where each document stands.
    """

    reader: SegmentReader
    document_ids_N: torch.Tensor
    first_row_N: torch.Tensor
    rows_N: torch.Tensor


class MemoryBank:
    """A memory on disk. Use `create` or `open`, not the constructor."""

    def __init__(self, folder: Path, catalog: Catalog, manifest: Manifest) -> None:
        self.folder = folder
        self.catalog = catalog
        self.manifest = manifest

    @classmethod
    def create(cls, folder: str | Path, manifest: Manifest) -> MemoryBank:
        """Make an empty bank.

        Raises:
            BankError: the folder holds something already, or cannot be written.
        """
        path = Path(folder).expanduser()
        try:
            if path.exists():
                _check_empty(path)  # before a lock is left in a folder that is not ours
            path.mkdir(parents=True, exist_ok=True)
            with _locked(path):
                _check_empty(path)
                (path / _SEGMENTS).mkdir(exist_ok=True)
                # The catalog appears under its name only when it is complete: a half-made bank is no bank.
                partial = path / _PARTIAL_CATALOG
                partial.unlink(missing_ok=True)
                catalog = Catalog(partial, create=True)
                catalog.write_manifest(dataclasses.asdict(manifest))
                catalog.close()
                partial.rename(path / _CATALOG)
                fsync_folder(path)
                fsync_folder(path.parent)
        except OSError as error:
            raise BankError(f"cannot create a bank in {path}: {error}") from error
        return cls.open(path)

    @classmethod
    def open(cls, folder: str | Path) -> MemoryBank:
        """Open an existing bank.

        Raises:
            BankError: there is none, or it is damaged or of a newer format.
        """
        path = Path(folder).expanduser()
        if not (path / _CATALOG).is_file():
            raise BankError(f"there is no bank in {path}; make one with: memspan add {path} FILES...")
        catalog = Catalog(path / _CATALOG)
        return cls(path, catalog, Manifest.from_json(catalog.read_manifest()))

    @classmethod
    def exists(cls, folder: str | Path) -> bool:
        return (Path(folder).expanduser() / _CATALOG).is_file()

    def close(self) -> None:
        self.catalog.close()

    @contextlib.contextmanager
    def writer(self, max_segment_bytes: int = MAX_SEGMENT_BYTES) -> Iterator[BankWriter]:
        """Hold the writer's lock and change the bank.

        Raises:
            BankError: another process writes (its pid is named), or the folder cannot be written.
        """
        with _locked(self.folder):
            segments = self.folder / _SEGMENTS
            if not segments.is_dir():
                raise BankError(f"{segments} is missing; restore it from a backup, or build the bank again")
            sweep(segments, {files.name for files in self.catalog.segments()})
            yield BankWriter(self.catalog, SegmentWriter(segments, self.manifest.msa_layers, max_segment_bytes))

    def shards(self) -> list[Shard]:
        """The live documents of every segment, as they are now."""
        rows_by_segment: dict[str, list[tuple[int, int, int]]] = {}
        for name, document_id, first_row, rows in self.catalog.places():
            rows_by_segment.setdefault(name, []).append((document_id, first_row, rows))
        shards = []
        for files in self.catalog.segments():
            if files.name in rows_by_segment:
                reader = SegmentReader(self.folder / _SEGMENTS, files, self.manifest.msa_layers)
                columns = torch.from_numpy(np.array(rows_by_segment[files.name], dtype=np.int64)).T.contiguous()
                shards.append(Shard(reader, columns[0], columns[1], columns[2]))
        return shards


class BankWriter:
    """Adds encoded documents to a bank: collect with `add`, make them exist with `commit`."""

    def __init__(self, catalog: Catalog, segments: SegmentWriter) -> None:
        self._catalog, self._segments = catalog, segments
        self._pending: dict[str, NewSource] = {}
        self._next_id = catalog.next_document_id()

    def reserve_ids(self, count: int) -> Sequence[int]:
        """Ids for documents about to be encoded (the id is part of what is encoded). Unused ones are simply skipped."""
        first = self._next_id
        self._next_id += count
        return range(first, self._next_id)

    def add(self, source: NewSource, latents: Sequence[EncodedDocuments]) -> None:
        """Take a source with the latents of each of its parts. It exists after the next `commit`."""
        for part, encoded in zip(source.parts, latents, strict=True):
            self._segments.append(part.document_id, encoded)
        self._pending[source.document.external_id] = source

    def content_hash(self, external_id: str) -> str | None:
        """The content hash of a source of this name, committed or about to be; None if there is none."""
        pending = self._pending.get(external_id)
        return pending.document.content_hash if pending else self._catalog.content_hash(external_id)

    def commit(self) -> None:
        """Write what was added: segment files first, then one transaction that makes them exist."""
        if not self._pending:
            return
        segments, places = self._segments.finish()
        self._catalog.commit(self._pending.values(), segments, places)
        self._pending = {}


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the writer's lock of a bank's folder. The operating system lets go of it when a process dies.

    Raises:
        BankError: another process holds it, or the folder cannot be written.
    """
    lock, holder = FileLock(folder / _LOCK, timeout=0), folder / _HOLDER
    try:
        lock.acquire()
    except Timeout as error:
        raise BankError(f"another process ({_holder(holder)}) is writing {folder}; wait for it") from error
    except OSError as error:
        raise BankError(f"{folder} cannot be written: {error}") from error
    try:
        with contextlib.suppress(OSError):  # on a full disk: only a message is poorer without it
            holder.write_text(str(os.getpid()))
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    """Who holds the lock, for the message that a second writer gets."""
    try:
        return f"pid {path.read_text().strip()}"
    except OSError:
        return "its pid is unknown"


def _check_empty(folder: Path) -> None:
    """A new bank's folder holds nothing, or what an attempt that failed left behind.

    Raises:
        BankError: it holds something else.
    """
    ours = {_LOCK, _HOLDER, *(f"{_PARTIAL_CATALOG}{suffix}" for suffix in ("", "-wal", "-shm", "-journal"))}
    if not folder.is_dir():
        raise BankError(f"{folder} is a file; name a folder for the new bank")
    others = [path for path in folder.iterdir() if path.name not in ours]
    if any(path.name != _SEGMENTS or any(path.iterdir()) for path in others):
        raise BankError(f"{folder} exists and is not an empty folder; name another one for the new bank")
