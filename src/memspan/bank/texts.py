"""`TextBank`: a bank without its latents. Reading and changing texts needs no torch, which takes seconds to import."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from memspan.bank import edits
from memspan.bank.catalog import DEFAULT_NAMESPACE, Catalog
from memspan.bank.edits import Written
from memspan.bank.folder import CATALOG
from memspan.bank.locks import Registration, writer_lock
from memspan.bank.manifest import Manifest
from memspan.errors import BankError, BankMismatch, UnknownDocument
from memspan.types import Document, is_unicode

_LONGEST_NAMESPACE = 200


class TextBank:
    """A bank's catalog: manifest, texts, metadata, full-text indexes. Use `open`, not the constructor.

    `pinned_catalog`, `delete`, `relabel`, and `find` and `get` of a catalog given, may be called from any thread; the
    rest belongs to one thread at a time.
    """

    def __init__(self, folder: Path, catalog: Catalog, manifest: Manifest) -> None:
        self.folder, self.catalog, self.manifest = folder, catalog, manifest
        self._registration = Registration(folder)
        self._lock = threading.Lock()
        self._idle: list[Catalog] = []

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open an existing bank.

        Raises:
            BankError: there is none, or it is damaged or of a newer format.
        """
        path = Path(folder).expanduser()
        if not cls.exists(path):
            raise BankError(f"there is no bank in {path}; make one with: memspan add {path} FILES...")
        catalog = Catalog(path / CATALOG)
        try:
            return cls(path, catalog, Manifest.from_json(catalog.read_manifest()))
        except BaseException:
            catalog.close()
            raise

    @classmethod
    def exists(cls, folder: str | Path) -> bool:
        return (Path(folder).expanduser() / CATALOG).is_file()

    def close(self) -> None:
        with self._lock:
            for catalog in self._idle:
                catalog.close()
            self._idle.clear()
        self._registration.close()
        self.catalog.close()

    @contextlib.contextmanager
    def pinned_catalog(self) -> Iterator[Catalog]:
        """A connection that sees the bank as it is now; no file that it names is unlinked while it is in use.

        Raises:
            BankClosed: `close` was called.
        """
        with self._lock:
            _ = self.catalog.connection
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

    def resolve(
        self, document_id: int | str, namespace: str = DEFAULT_NAMESPACE, catalog: Catalog | None = None
    ) -> str:
        """The external id of a live source, from it or from the id of one of its documents.

        Raises:
            UnknownDocument: there is none.
        """
        name = self.find(document_id, namespace, catalog or self.catalog)
        if name is None:
            raise UnknownDocument(
                f"there is no document {document_id!r} in namespace {namespace!r} of {self.folder}; "
                f"see: memspan ls {self.folder}"
            )
        return name

    def find(self, document_id: int | str, namespace: str, catalog: Catalog) -> str | None:
        """As `resolve`, in a catalog's snapshot; None if there is none."""
        if isinstance(document_id, str) and not is_unicode(document_id):
            return None  # as a shell hands over a file's name of another encoding
        if isinstance(document_id, int):
            return catalog.external_id_of(namespace, document_id)
        return document_id if catalog.hashes(namespace, document_id) else None

    def get(
        self, document_id: int | str, namespace: str = DEFAULT_NAMESPACE, catalog: Catalog | None = None
    ) -> Document:
        """A document as it was given. Arguments and errors as for `resolve`.

        Args:
            catalog: whose snapshot is read; None: what is there now.
        """
        stored = (catalog or self.catalog).source(namespace, self.resolve(document_id, namespace, catalog))
        if stored is None:
            raise UnknownDocument(f"document {document_id!r} was deleted just now")
        return stored.document

    def relabel(self, document: Document, namespace: str = DEFAULT_NAMESPACE) -> bool:
        """Replace metadata and date of a source whose text and title are the document's, in one transaction.

        Returns:
            Whether anything was to be replaced.

        Raises:
            UnknownDocument: there is no source of this name, or it has another text.
            BankBusy: another process writes.
        """
        with writer_lock(self.folder):
            known = self.catalog.hashes(namespace, document.external_id)
            if known is None or known[1] != document.text_hash:
                raise UnknownDocument(f"{document.external_id!r} in {self.folder} was changed just now; try again")
            if known[0] == document.content_hash:
                return False
            edits.add_sources(self.catalog, namespace, (), Written((), ()), [document])
        return True


def check_namespace(name: str) -> None:
    """
    Raises:
        BankError: not a name a namespace can have.
    """
    if not name.strip() or not name.isprintable() or len(name) > _LONGEST_NAMESPACE:
        raise BankError(f"a namespace needs a printable name of at most {_LONGEST_NAMESPACE} characters, not {name!r}")
