"""A published bank on the machine of a reader: a bank's folder in a cache, which follows what is published.

    CACHE/URL/BANK/            names are hashes
        catalog.sqlite         the catalog of the edition that was followed last
        edition.json           that edition, as it was published
        segments/              files of segments that are read whole: keys in 8 bits, keys of small segments
        pieces.sqlite          parts of the other files
        fetch.lock, readers/   who uses it

A new edition becomes the catalog in one transaction, so that snapshots hold, in this process and in others.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from memspan.bank.database import Database
from memspan.bank.folder import (
    COARSE_SUFFIX,
    KEYS_SUFFIX,
    PARTIAL_CATALOG,
    SegmentFiles,
    make_folder,
    remove_partial_catalog,
    segment_of,
    segments_folder,
)
from memspan.bank.locks import fetch_lock
from memspan.bank.pieces import Pieces
from memspan.bank.publication import (
    BLOCK_BYTES,
    TRIES,
    Edition,
    Latest,
    PublishedFile,
    read_blocks,
    read_latest,
    read_pointer,
)
from memspan.bank.store import Store
from memspan.errors import BankBusy, BankError, BankMismatch, BudgetError, ReadOnlyBank, StoreError
from memspan.files import CATALOG, PARTIAL_SUFFIX, file_sha256, publish, remove, whole_file
from memspan.places import BankPlace, gigabytes, quoted

_log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""How long a edition that was published may go unnoticed."""
EDITION_FILE = "edition.json"
_INCOMING = "incoming"
_BLOCKS_AT_ONCE = 32


class Mirror:
    """One published bank, as this machine has it.

    Attributes:
        folder: of the bank in the cache.
        store: where it was published.
        pieces: parts of its files.
        edition: what was followed last.
    """

    def __init__(self, place: BankPlace) -> None:
        """Fetch the catalog of the present edition, where it is not in the cache.

        Raises:
            StoreError: nothing was published there, or it cannot be read and is not in the cache.
            BudgetError: the catalog does not fit into the cache's budget.
            BankError: it was published by a newer memspan, or the cache cannot be written.
        """
        self.store, self._budget = Store(place.name), place.most_bytes
        root = place.cache_root / hashlib.sha256(self.store.url.encode()).hexdigest()[:16]
        self._looking, self._next_look, self._problem = threading.Lock(), 0.0, ""
        self._seen = ""  # sha256 of the edition that was followed last
        try:
            found = read_latest(self.store)
            if found is None:
                url = self.store.url
                raise StoreError(f"no bank was published at {url}; publish one: memspan publish BANK {quoted(url)}")
            self.edition, self.folder = found.edition, root / found.edition.bank
        except StoreError as error:
            found = None
            self.edition, self.folder = _cached(root, error)
        self.pieces = Pieces(self.folder / "pieces.sqlite", lambda: self._room)
        try:
            if not self.folder.exists():
                make_folder(segments_folder(self.folder))
                self.folder.chmod(0o700)
            if found is not None:
                self._follow(found, patience=-1.0)
            self.pieces.shrink()
        except OSError as error:
            raise BankError(f"the cache {self.folder} cannot be written: {error}") from error

    def close(self) -> None:
        self.pieces.close()

    def read_only(self, what: str = "changed") -> ReadOnlyBank:
        """The error of who would change it."""
        return ReadOnlyBank(
            f"{self.store.url} is a published bank, which is read and not {what}; that is done where it is written "
            f"({self.edition.origin}), and then: memspan publish BANK {quoted(self.store.url)}"
        )

    def follow(self) -> None:
        """Look for a new edition, unless somebody looked just now, and make it the bank's catalog.

        What cannot be read is logged; the bank stays as it is.

        Raises:
            BankMismatch: another bank was published there.
        """
        if time.monotonic() < self._next_look or not self._looking.acquire(blocking=False):
            return
        try:
            found = read_pointer(self.store)
            if found is None or found.sha256 != self._seen:
                latest = read_latest(self.store)
                if latest is None:
                    raise StoreError(f"the published bank is gone from {self.store.url}")
                self._follow(latest, patience=0.0)
            self._problem = ""
        except BankMismatch:
            raise
        except (BankError, BudgetError, OSError) as error:
            if not isinstance(error, BankBusy) and str(error) != self._problem:
                self._problem = str(error)
                _log.warning("a newer edition is not read: %s", error)
        finally:
            self._next_look = time.monotonic() + POLL_SECONDS
            self._looking.release()

    def _follow(self, latest: Latest, patience: float) -> None:
        edition, file = latest.edition, self.folder / EDITION_FILE
        if edition.bank != self.folder.name:
            raise BankMismatch(f"another bank was published at {self.store.url} ({edition.origin}); open it again")
        self._check_fits(edition.catalog_bytes)
        with fetch_lock(self.folder, patience):
            is_there = (self.folder / CATALOG).is_file() and file.is_file()
            is_new = not is_there or file.read_bytes() != latest.data  # else another process has fetched it
            if is_new:
                self._take(edition)
                with whole_file(file) as partial:
                    partial.write_bytes(latest.data)
            self.edition, self._seen = edition, latest.pointer.sha256
            if is_new:
                self._forget_others()

    def _take(self, edition: Edition) -> None:
        """Make the catalog that of a edition."""
        catalog, scratch = self.folder / CATALOG, self.folder / _INCOMING
        shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
        scratch.mkdir()
        incoming, partial = scratch / CATALOG, self.folder / PARTIAL_CATALOG
        try:
            is_first = not catalog.is_file()
            if is_first:
                incoming.touch()
                remove_partial_catalog(self.folder)
            else:
                with closing(Database(catalog)) as present:
                    present.copy_to(incoming)
            self._patch(incoming, edition)
            # A new one has a log, where there can be one.
            with closing(Database(partial, schema=" ") if is_first else Database(catalog)) as mirrored:
                mirrored.become(incoming)
            if is_first:
                publish({partial: catalog})
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _patch(self, path: Path, edition: Edition) -> None:
        """Make a file the catalog of a edition; blocks that it has are not fetched."""
        with path.open("r+b") as file:
            file.truncate(edition.catalog_bytes)
            missing = []
            for at, sha256 in enumerate(edition.blocks):
                if hashlib.sha256(file.read(BLOCK_BYTES)).hexdigest() != sha256:
                    missing.append(at)
            for first in range(0, len(missing), _BLOCKS_AT_ONCE):
                some = missing[first : first + _BLOCKS_AT_ONCE]
                for at, data in zip(some, read_blocks(self.store, [edition.blocks[at] for at in some]), strict=True):
                    file.seek(at * BLOCK_BYTES)
                    file.write(data)

    def fetch(self, segments: Sequence[SegmentFiles]) -> None:
        """Fetch the files of segments that are read whole, where they are not in the cache.

        Raises:
            StoreError: one is missing or damaged, however often it is read.
            BudgetError: together they do not fit into the cache's budget.
        """
        if any(files.name not in self.edition.segments for files in segments):  # another process has followed
            file = self.folder / EDITION_FILE
            self.edition = Edition.parse(file.read_bytes(), str(file))
        wanted = {}
        for files in segments:
            whole = self.whole_file(files)
            path = segments_folder(self.folder) / f"{files.name}{whole.suffix}"
            if not path.is_file() or path.stat().st_size != whole.bytes:
                wanted[path] = whole
        if not wanted:
            return
        self._check_fits(self._whole_bytes() + sum(whole.bytes for whole in wanted.values()))
        with fetch_lock(self.folder):
            for path, whole in wanted.items():
                if not path.is_file() or path.stat().st_size != whole.bytes:  # else another process has fetched it
                    self._download(whole, path)
        self.pieces.shrink()

    def whole_file(self, files: SegmentFiles) -> PublishedFile:
        """What of a segment is read whole: its keys in 8 bits, or else its keys."""
        known = {file.suffix: file for file in self.edition.segments.get(files.name, ())}
        return known.get(COARSE_SUFFIX) or PublishedFile(KEYS_SUFFIX, files.keys_bytes, files.keys_sha256)

    def _download(self, file: PublishedFile, path: Path) -> None:
        problem = ""
        for _ in range(TRIES):
            try:
                with whole_file(path) as partial:
                    self.store.download(file.name, file.bytes, partial)
                    if file_sha256(partial) != file.sha256:
                        raise StoreError(f"{self.store.url}/{file.name} is damaged")
                return
            except StoreError as error:
                problem = str(error)
        raise StoreError(f"{problem}; remove that file if it is there, and publish the bank again")

    def forget(self, files: SegmentFiles) -> None:
        """Forget what is kept of a segment that turned out to be damaged."""
        whole = self.whole_file(files)
        remove(segments_folder(self.folder) / f"{files.name}{whole.suffix}")
        others = {file.name for name, file in self.edition.files() if name != files.name}
        self.pieces.keep_files(others)

    def _forget_others(self) -> None:
        """Remove what is kept of segments that are no more, and what a killed process left."""
        for path in segments_folder(self.folder).iterdir():
            if segment_of(path) not in self.edition.segments or path.name.endswith(PARTIAL_SUFFIX):
                remove(path)  # on Windows, unless it is in use
        self.pieces.keep_files({file.name for _, file in self.edition.files()})

    def _whole_bytes(self) -> int:
        """What the catalog and the whole files take."""
        paths = [*self.folder.glob(f"{CATALOG}*"), *segments_folder(self.folder).iterdir()]
        return sum(path.stat().st_size for path in paths if path.is_file())

    @property
    def _room(self) -> int | None:
        """What pieces may take."""
        return None if self._budget is None else max(0, self._budget - self._whole_bytes())

    def _check_fits(self, size: int) -> None:
        if self._budget is not None and size > self._budget:
            raise BudgetError(
                f"a cache budget of {gigabytes(self._budget)} is too small for {self.store.url}: its catalog and "
                f"routing keys take {gigabytes(size, up=True)}"
            )


def _cached(root: Path, error: StoreError) -> tuple[Edition, Path]:
    """The edition in the cache that was followed last, where the store cannot be read now.

    Raises:
        StoreError: there is none.
    """
    files = [path for path in root.glob(f"*/{EDITION_FILE}") if (path.parent / CATALOG).is_file()]
    if not files:
        raise error
    newest = max(files, key=lambda path: path.stat().st_mtime_ns)
    _log.warning("%s; the edition that was read last is opened", error)
    return Edition.parse(newest.read_bytes(), str(newest)), newest.parent
