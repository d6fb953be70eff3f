"""`TextBank`: a bank without its latents. Reading and changing texts needs no torch, which takes seconds to import."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from memspan.bank import edits
from memspan.bank.catalog import DEFAULT_NAMESPACE, Catalog
from memspan.bank.folder import WrittenSegments, check_empty
from memspan.bank.locks import Registration, writer_lock
from memspan.bank.manifest import Manifest
from memspan.bank.scope import EVERYTHING, Scope
from memspan.bank.words import outdated_namespaces
from memspan.errors import BankError, BankMismatch, UnknownDocument
from memspan.files import CATALOG
from memspan.places import BankPlace, quoted
from memspan.types import JSON, NEVER, Document, is_unicode

if TYPE_CHECKING:
    from memspan.bank.mirror import Mirror

_LONGEST_NAMESPACE = 200
PATIENCE = 10.0
"""Seconds that a change of one document waits for another writer."""


@dataclass(frozen=True, slots=True)
class DocumentUpdate:
    """What is to be changed of a document; None: it stays.

    Attributes:
        text, title: the new ones.
        metadata: merged into what there is, as JSON Merge Patch does (RFC 7396): None removes a key, an object is
            merged into the object there, any other value replaces what was there.
        date: the new one; an empty text removes it.
        expires: the new one; "never" removes it.
        pinned: whether it never expires.
    """

    text: str | None = None
    title: str | None = None
    metadata: Mapping[str, JSON] | None = None
    date: str | None = None
    expires: str | None = None
    pinned: bool | None = None

    def of(self, before: Document) -> Document:
        """The document after them.

        Raises:
            TypeError, ValueError: it would be none.
        """
        if not isinstance(self.metadata, Mapping | None):
            raise TypeError(f"metadata is an object of fields to change, not {self.metadata!r}")
        names = ("text", "title", "date", "expires", "pinned")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.date == "":
            given["date"] = None
        try:
            metadata = _merged(before.metadata, self.metadata or {})
        except RecursionError as error:
            raise ValueError("the metadata are nested too deep") from error
        return dataclasses.replace(before, **given, metadata=metadata)


def _merged(target: Mapping[str, JSON], patch: Mapping[str, JSON]) -> dict[str, JSON]:
    merged = dict(target)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            there = merged.get(key)
            merged[key] = _merged(there if isinstance(there, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def keeps_retention(before: Document, given: Document) -> bool:
    """Whether expiry and pin stay as they are where a document is given: they are no content, and None keeps them."""
    expires = NEVER if before.expires is None else before.expires
    return given.expires in (None, expires) and given.pinned in (None, bool(before.pinned))


class TextBank:
    """A bank's catalog: manifest, texts, metadata, full-text indexes. Use `open`, not the constructor.

    `pinned_catalog`, `delete`, `relabel`, and `find` and `get` of a catalog given, may be called from any thread; the
    rest belongs to one thread at a time.
    """

    def __init__(self, folder: Path, catalog: Catalog, manifest: Manifest, mirror: Mirror | None = None) -> None:
        self.folder, self.catalog, self.manifest, self._mirror = folder, catalog, manifest, mirror
        self._registration = Registration(folder)
        self._lock = threading.Lock()
        self._shared = threading.local()
        self._idle: list[Catalog] = []

    @classmethod
    def open(cls, place: str | os.PathLike[str]) -> Self:
        """Open an existing bank: its folder, or the URL where it was published, which is only read.

        Raises:
            BankError: there is none, or it is damaged or of a newer format.
            StoreError: the URL cannot be read.
        """
        found, mirror = BankPlace.of(place), None
        if found.is_published:
            from memspan.bank.mirror import Mirror

            mirror = Mirror(found)
        path = found.folder if mirror is None else mirror.folder
        if not (path / CATALOG).is_file():
            raise BankError(f"there is no bank in {path}; make one with: memspan add {quoted(path)} FILES...")
        with contextlib.ExitStack() as opened:
            if mirror is not None:
                opened.callback(mirror.close)
            catalog = opened.enter_context(contextlib.closing(Catalog(path / CATALOG)))
            bank = cls(path, catalog, Manifest.from_json(catalog.read_manifest()), mirror)
            opened.pop_all()
        return bank

    @classmethod
    def exists(cls, place: str | os.PathLike[str]) -> bool:
        """Whether there is a bank to be opened; of a URL it is taken for granted."""
        found = BankPlace.of(place)
        return found.is_published or (found.folder / CATALOG).is_file()

    @classmethod
    def exists_or_fits(cls, place: str | os.PathLike[str]) -> bool:
        """Whether there is a bank at a folder or a URL. Where there is none, a new one can be made.

        Raises:
            BankError: neither; something else is there.
        """
        if cls.exists(place):
            return True
        folder = BankPlace.of(place).new_folder
        try:
            check_empty(folder)
        except BankError:
            if not cls.exists(place):  # another process may have made it meanwhile
                raise
            return True
        return False

    @property
    def place(self) -> str:
        """The bank's folder or URL, for messages and commands."""
        return str(self.folder) if self._mirror is None else self._mirror.store.url

    @property
    def is_published(self) -> bool:
        """Whether it was opened by its URL: it is read, and not changed."""
        return self._mirror is not None

    def check_owned(self, what: str) -> None:
        """
        Args:
            what: is about to be done to the bank: "changed", "verified".

        Raises:
            ReadOnlyBank: the bank was opened by its URL; where it is written is named.
        """
        if self._mirror is not None:
            raise self._mirror.read_only(what)

    def close(self) -> None:
        with self._lock:
            for catalog in self._idle:
                catalog.close()
            self._idle.clear()
        self._registration.close()
        self.catalog.close()
        if self._mirror is not None:
            self._mirror.close()

    @contextlib.contextmanager
    def pinned_catalog(self) -> Iterator[Catalog]:
        """A connection that sees the bank as it is now; no file that it names is unlinked while it is in use.

        A bank that was opened by its URL is first brought to what is published there now.

        Raises:
            BankClosed: `close` was called.
        """
        if self._mirror is not None:
            _ = self.catalog.connection  # of one that was closed nothing is fetched
            self._mirror.follow()
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

    @contextlib.contextmanager
    def writing(self, patience: float = 0.0, *, is_shared: bool = False) -> Iterator[None]:
        """Hold the writer's lock. A bank of an older format has become one of the present format.

        Args:
            patience: seconds to wait for another writer.
            is_shared: what this thread calls inside may hold it, too.

        Raises:
            ReadOnlyBank: the bank was opened by its URL.
            BankBusy: another process writes (its pid is named).
            BankError: the folder or the catalog cannot be written.
        """
        self.check_owned("changed")
        if getattr(self._shared, "is_held", False):
            yield
            return
        with writer_lock(self.folder, patience):
            edits.upgrade(self.catalog)
            self._shared.is_held = is_shared
            try:
                yield
            finally:
                self._shared.is_held = False

    def reindex(self) -> None:
        """Make the full-text indexes anew from the stored texts, a transaction for each namespace. Latents stay.

        Raises:
            BankBusy: another process writes.
        """
        outdated = outdated_namespaces(self.catalog)
        with self.writing():  # which makes those anew
            for namespace in self.catalog.namespaces():
                if namespace not in outdated:
                    edits.rebuild_words(self.catalog, namespace)

    def _check_manifest(self, catalog: Catalog) -> None:
        if Manifest.from_json(catalog.read_manifest()) != self.manifest:
            raise BankMismatch(f"{self.place} was encoded anew since it was opened; open it again")

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
        with self.writing():
            names = {self.resolve(document_id, namespace) for document_id in ids}
            edits.delete_sources(self.catalog, namespace, sorted(names))
        return len(names)

    def resolve(
        self,
        document_id: int | str,
        namespace: str = DEFAULT_NAMESPACE,
        catalog: Catalog | None = None,
        scope: Scope = EVERYTHING,
    ) -> str:
        """The external id of a source, from it or from the id of one of its documents.

        Raises:
            UnknownDocument: there is none.
        """
        name = self.find(document_id, namespace, catalog or self.catalog, scope)
        if name is None:
            then = " at that time" if scope.is_past else ""
            raise UnknownDocument(
                f"there is no document {document_id!r} in namespace {namespace!r} of {self.place}{then}; "
                f"see: memspan ls {quoted(self.place)}"
            )
        return name

    def find(self, document_id: int | str, namespace: str, catalog: Catalog, scope: Scope = EVERYTHING) -> str | None:
        """As `resolve`, in a catalog's snapshot; None if there is none."""
        if isinstance(document_id, str) and not is_unicode(document_id):
            return None  # as a shell hands over a file's name of another encoding
        if isinstance(document_id, int):
            return catalog.external_id_of(namespace, document_id, scope)
        found = catalog.source(namespace, document_id, scope) if scope else catalog.hashes(namespace, document_id)
        return document_id if found else None

    def get(
        self,
        document_id: int | str,
        namespace: str = DEFAULT_NAMESPACE,
        catalog: Catalog | None = None,
        scope: Scope = EVERYTHING,
    ) -> Document:
        """A document as it was given. Arguments and errors as for `resolve`.

        Args:
            catalog: whose snapshot is read; None: what is there now.
            scope: at another time, say.
        """
        name = self.resolve(document_id, namespace, catalog, scope)
        stored = (catalog or self.catalog).source(namespace, name, scope)
        if stored is None:
            raise UnknownDocument(f"document {document_id!r} was deleted just now")
        return stored.document

    def update(
        self, document_id: int | str, changes: DocumentUpdate, namespace: str = DEFAULT_NAMESPACE
    ) -> tuple[Document, bool] | None:
        """Change metadata, date or expiry of a document, read and written in one transaction.

        Returns:
            The document, and whether anything changed; None, with nothing changed, where its text or title would: that
            takes a model.

        Raises:
            UnknownDocument: there is none.
            ValueError: the changes make no document of it.
            BankBusy: another process has written for `PATIENCE` seconds.
        """
        with self.writing(PATIENCE, is_shared=True):
            before = self.get(document_id, namespace)
            after = changes.of(before)
            if after.text_hash != before.text_hash:
                return None
            return after, self.relabel(after, namespace)

    def relabel(self, document: Document, namespace: str = DEFAULT_NAMESPACE) -> bool:
        """Replace metadata, date and expiry of a source whose text and title are the document's, in one transaction.

        Returns:
            Whether anything was to be replaced.

        Raises:
            UnknownDocument: there is no source of this name, or it has another text.
            BankBusy: another process writes.
        """
        with self.writing():
            known = self.catalog.hashes(namespace, document.external_id)
            if known is None or known[1] != document.text_hash:
                raise UnknownDocument(f"{document.external_id!r} in {self.folder} was changed just now; try again")
            before = self.get(document.external_id, namespace)
            if known[0] == document.content_hash and keeps_retention(before, document):
                return False
            edits.add_sources(self.catalog, namespace, (), WrittenSegments((), ()), [document])
        return True


def check_namespace(name: str) -> None:
    """
    Raises:
        BankError: not a name a namespace can have.
        TypeError: no text.
    """
    if not isinstance(name, str):
        raise TypeError(f"a namespace is named by a text, not {name!r}")
    if not name.strip() or not name.isprintable() or len(name) > _LONGEST_NAMESPACE:
        raise BankError(f"a namespace needs a printable name of at most {_LONGEST_NAMESPACE} characters, not {name!r}")
