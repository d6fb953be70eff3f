"""Publishing a bank at a URL, for readers on other machines; see `publication` for what stands there, and `mirror`."""

from __future__ import annotations

import hashlib
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from memspan.bank import clock
from memspan.bank.catalog import Catalog
from memspan.bank.folder import COARSE_SUFFIX, CONTENT_SUFFIX, KEYS_SUFFIX, SegmentFiles, coarse_path, segments_folder
from memspan.bank.formats import is_of_format_2
from memspan.bank.ledger import forget_disk
from memspan.bank.locks import publish_lock
from memspan.bank.publication import (
    BLOCK_BYTES,
    Edition,
    Latest,
    Pointer,
    PublishedFile,
    block_name,
    edition_number,
    is_ours,
    read_latest,
)
from memspan.bank.remembered import bank_id
from memspan.bank.store import Store
from memspan.bank.texts import PATIENCE, TextBank
from memspan.errors import BankError, BankMismatch, StoreError
from memspan.files import CATALOG, LATEST, file_sha256

KEPT_EDITIONS = 5
"""Editions that stay at a URL: a reader may be in the middle of one."""


@dataclass(frozen=True, slots=True)
class Publication:
    """What publishing did.

    Attributes:
        url: where.
        edition, commit: what is the present edition there now, and the bank's commit that it is.
        is_new: False where the same was published before.
        uploaded_files, uploaded_bytes: what was not there.
        removed_files: of editions that are not kept, and of attempts that were interrupted.
    """

    url: str
    edition: int
    commit: int
    is_new: bool
    uploaded_files: int
    uploaded_bytes: int
    removed_files: int


def publish(
    bank: TextBank, url: str, keep: int = KEPT_EDITIONS, progress: Callable[[int, int], None] = lambda done, total: None
) -> Publication:
    """Make what a bank holds now the present edition at a URL. Writers may go on meanwhile.

    Only what is not there is uploaded. Readers see this edition or the one before, whenever this ends. What is deleted
    and not erased is published as it is stored; `compact --secure` erases it.

    Args:
        url: a folder, or whatever fsspec knows: file://, s3://, gs://, ...
        keep: editions that stay there.
        progress: given the bytes that are uploaded, and those that have to be.

    Raises:
        ValueError: `keep` is less than 1.
        BankMismatch: another bank, or a later state of this one, is published there.
        BankBusy: another process publishes this bank.
        StoreError: the URL cannot be reached or written. What was there is there still; publishing again goes on.
        BankError: a file of the bank is damaged, or a folder of this machine holds something else.
    """
    if keep < 1:
        raise ValueError(f"at least one edition is kept, not {keep}")
    bank.check_owned("published")
    with publish_lock(bank.folder, PATIENCE), tempfile.TemporaryDirectory() as scratch:
        store, latest = published_before(bank, url)
        before, identity = None if latest is None else latest.edition, bank_id(bank.catalog)
        with bank.pinned_catalog() as catalog:  # no file that it names is unlinked meanwhile
            copy = _copied(catalog, Path(scratch))
            edition = _edition(bank, catalog, copy, identity, before)
            is_new = before is None or not edition.same_content(before)
            edition = edition if is_new or before is None else before
            uploader = _Uploader(store, bank.folder, copy, edition, progress)
            uploader.run()
        if is_new:
            pointer = _write_edition(store, edition, identity)
        else:
            assert latest is not None
            pointer = latest.pointer
        removed = _prune(store, pointer, keep)
    done = (uploader.num_files, uploader.num_bytes, removed)
    return Publication(store.url, edition.number, edition.commit, is_new, *done)


def published_before(bank: TextBank, url: str) -> tuple[Store, Latest | None]:
    """Where a bank is to be published, and what of it stands there now.

    Raises:
        BankMismatch, StoreError, BankError: as for `publish`; nothing is changed at the URL.
    """
    store = Store(url)
    if store.is_in(bank.folder):
        raise BankError(f"{url} is in the bank's own folder; publish it elsewhere")
    latest = read_latest(store)
    if latest is None and store.is_local:
        _check_free(store)
    if is_of_format_2(bank.catalog):
        with bank.writing(PATIENCE):
            pass  # it is of the present format then
    with bank.pinned_catalog() as catalog:
        before = None if latest is None else latest.edition
        check_follows(before, bank_id(bank.catalog), catalog.commits(), store.url)
    return store, latest


def _check_free(store: Store) -> None:
    """
    Raises:
        BankError: something else than what publishing writes is there: the folder may be mistyped.
    """
    others = sorted(name for name in store.sizes() if not (is_ours(name) or name.rpartition("/")[2].startswith(".")))
    if others:
        raise BankError(f"{store.url} holds other files ({others[0]}); name a new folder, or an empty one")


def check_follows(before: Edition | None, identity: str, commit: int, url: str) -> None:
    """
    Raises:
        BankMismatch: this bank cannot take the place of what is published.
    """
    if before is not None and before.bank != identity:
        raise BankMismatch(f"{url} holds another bank ({before.origin}); publish this one at a URL of its own")
    if before is not None and before.commit > commit:
        raise BankMismatch(
            f"{url} holds a later state of this bank (commit {before.commit}, from {before.origin}; here {commit}), so "
            "this is a copy from before; publish it at a URL of its own"
        )


def _copied(catalog: Catalog, folder: Path) -> Path:
    """A copy of the catalog without the folders of this machine; of the same catalog always the same bytes."""
    path = folder / CATALOG
    catalog.copy_to(path)
    with closing(Catalog(path)) as copy:
        copy.execute("PRAGMA secure_delete = ON")
        forget_disk(copy)
    return path


def _edition(bank: TextBank, catalog: Catalog, copy: Path, identity: str, before: Edition | None) -> Edition:
    return Edition(
        number=1 if before is None else before.number + 1,
        bank=identity,
        commit=catalog.commits(),
        origin=f"{bank.folder.absolute().name} on {platform.node()}",
        published_at=clock.moment(),
        catalog_bytes=copy.stat().st_size,
        blocks=tuple(hashlib.sha256(block).hexdigest() for block in _blocks(copy)),
        segments={
            files.name: _published_files(segments_folder(bank.folder), files, before) for _, files in catalog.segments()
        },
    )


def _published_files(folder: Path, files: SegmentFiles, before: Edition | None) -> tuple[PublishedFile, ...]:
    """What is published of a segment. Its keys in 8 bits, which the catalog does not know, are read for their sha256
    unless they were published before."""
    found = [
        PublishedFile(KEYS_SUFFIX, files.keys_bytes, files.keys_sha256),
        PublishedFile(CONTENT_SUFFIX, files.content_bytes, files.content_sha256),
    ]
    known = {} if before is None else {file.suffix: file for file in before.segments.get(files.name, ())}
    coarse = coarse_path(folder, files.name)
    if COARSE_SUFFIX in known:
        found.append(known[COARSE_SUFFIX])
    elif coarse.is_file():
        found.append(PublishedFile(COARSE_SUFFIX, coarse.stat().st_size, file_sha256(coarse)))
    return tuple(found)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


class _Uploader:
    """Uploads what a edition needs and the store does not have."""

    def __init__(
        self, store: Store, folder: Path, catalog: Path, edition: Edition, progress: Callable[[int, int], None]
    ) -> None:
        self._store, self._folder, self._catalog, self._edition = store, folder, catalog, edition
        self._progress = progress
        self.num_files = self.num_bytes = 0

    def run(self) -> None:
        there = self._store.sizes()
        missing = {name: size for name, size in self._edition.sizes().items() if there.get(name) != size}
        total = sum(missing.values())
        for name, data in self._files(missing):
            self._store.write(name, data)
            self.num_files += 1
            self.num_bytes += missing[name]
            self._progress(self.num_bytes, total)

    def _files(self, missing: Mapping[str, int]) -> Iterator[tuple[str, bytes | Path]]:
        left = set(missing)
        for segment, file in self._edition.files():
            if file.name in left:
                left.remove(file.name)
                yield file.name, self._sound(segments_folder(self._folder) / f"{segment}{file.suffix}", file.sha256)
        for block, sha256 in zip(_blocks(self._catalog), self._edition.blocks, strict=True):
            if block_name(sha256) in left:
                left.remove(block_name(sha256))
                yield block_name(sha256), block

    def _sound(self, path: Path, sha256: str) -> Path:
        """
        Raises:
            BankError: the file is not what it was when it was written.
        """
        try:
            if file_sha256(path) == sha256:
                return path
            problem = "changed since it was written"
        except OSError as error:
            problem = f"cannot be read ({error})"
        raise BankError(f"the bank's file {path} {problem}; mend the bank with: memspan verify BANK --repair")


def _write_edition(store: Store, edition: Edition, identity: str) -> Pointer:
    """Write the edition, and have `latest.json` name it.

    Raises:
        BankMismatch: another machine has published meanwhile what this may not replace.
        StoreError: something that it names was removed meanwhile.
    """
    data = edition.encoded()
    pointer = Pointer.to(edition.number, data)
    store.write(pointer.edition, data)
    there = store.sizes()
    gone = [name for name, size in edition.sizes().items() if there.get(name) != size]
    if gone:
        store.remove([pointer.edition])
        raise StoreError(f"{store.url}/{gone[0]} was removed while the bank was published; publish it again")
    latest = read_latest(store)
    check_follows(None if latest is None else latest.edition, identity, edition.commit, store.url)
    store.write(LATEST, pointer.encoded())
    return pointer


def _prune(store: Store, latest: Pointer, keep: int) -> int:
    """Remove all but the last editions and what they need. A edition goes before what it names."""
    there = store.sizes()
    names = sorted((number, name) for name in there if (number := edition_number(name)) is not None)
    kept = {latest.edition, *(name for _, name in names[-keep:])}
    needed = set(kept)
    for name, data in zip(sorted(kept), store.read(sorted(kept)), strict=True):
        try:
            needed |= Edition.parse(data or b"", f"{store.url}/{name}").sizes().keys()
        except StoreError:  # it did not come whole, and nobody can read it
            needed.discard(name)
    unneeded = [name for name in there if is_ours(name) and name not in needed]
    store.remove(sorted(unneeded, key=lambda name: (edition_number(name) is None, name)))
    return len(unneeded)
