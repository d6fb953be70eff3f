"""`DocumentStore`: the documents of one namespace of a bank, added, read, changed and deleted."""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, overload

from memspan.bank.add import Existing, add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import Catalog
from memspan.bank.scope import Scope
from memspan.errors import BankClosed, FilterError
from memspan.generate.calls import named_options
from memspan.model.convert import LoadedModel
from memspan.text.corpus import found_documents, read_paths
from memspan.types import JSON, AddReport, Document, Skipped, normal_date

_ADD_OPTIONS = sorted((add_documents.__kwdefaults__ or {}).keys() - {"namespace"})
_Id = int | str


class DocumentStore:
    """One namespace of a bank, with the model that encodes its documents. A document is known by its external id, or by
    the bank's number of it (or of one of its parts).

    Safe from several threads: what changes the bank is done one after the other, and reading waits for nothing.
    """

    def __init__(self, bank: MemoryBank, loaded: LoadedModel, namespace: str) -> None:
        self.bank, self.loaded, self.namespace = bank, loaded, namespace
        self._changing = threading.RLock()
        self._closed = False

    def __len__(self) -> int:
        """How many documents there are."""
        with self._catalog() as catalog:
            return catalog.num_sources(self.namespace)

    def __bool__(self) -> bool:
        """True, also of an empty one: it is there."""
        return True

    def __iter__(self) -> Iterator[Document]:
        """The documents as they were given, in the order they were added, as of now."""
        with self._catalog() as catalog:
            for stored in catalog.sources(self.namespace):
                yield stored.document

    def __contains__(self, id: object) -> bool:
        """Whether there is a document of this id."""
        with self._catalog() as catalog:
            return isinstance(id, _Id) and self.bank.find(id, self.namespace, catalog) is not None

    @named_options(*_ADD_OPTIONS)
    def add(
        self,
        documents: Iterable[str | Document],
        *,
        ids: Iterable[str] | None = None,
        metadatas: Iterable[Mapping[str, JSON] | None] | None = None,
        titles: Iterable[str] | None = None,
        dates: Iterable[str | None] | None = None,
        existing: Existing = "replace",
        **options: Any,
    ) -> AddReport:
        """Remember texts or documents. One whose id is there already replaces the older one (an upsert).

        Args:
            documents: texts, `Document`s, or both. A generator is read as it is encoded.
            ids, metadatas, titles, dates: of texts, one for each; a `Document` has its own. Without an id a text is
                known by its content: the same text added twice is one document, with the metadata given last.
            existing: "replace"; "refuse": an id that is there already, with other content, is an error; "renew":
                encode also what did not change.
            options: see `memspan.bank.add.add_documents`; also for further errors.

        Raises:
            TypeError: a text or a document was given where a list of them is wanted, or something else in the list.
            ValueError: a list has another length, an id stands twice in `ids`, or what was given can be no document.
                Of a list, nothing is added then.
            DuplicateDocument: see `existing`.
        """
        given = documents_of(documents, ids=ids, metadatas=metadatas, titles=titles, dates=dates)
        with self._change():
            return add_documents(self.bank, self.loaded, given, namespace=self.namespace, existing=existing, **options)

    @named_options(*_ADD_OPTIONS)
    def add_files(self, *paths: str | Path, **options: Any) -> AddReport:
        """Remember files and folders, as `memspan add` does. What could not be read is in the report's `skipped`.

        Args:
            paths: of txt, md, rst, html, pdf, csv, tsv and jsonl files, and of folders that hold them. A document's id
                is the path as given, or relative to the folder that was given.
            options: as for `add`.

        Raises:
            CorpusError: a path does not exist; nothing is added then.
        """
        if not paths or not all(isinstance(path, str | Path) for path in paths):
            raise TypeError('name files or folders, each by itself: memory.add_files("notes", "report.pdf")')
        skipped: list[Skipped] = []
        report = self.add(found_documents(skipped, read_paths([Path(path).expanduser() for path in paths])), **options)
        return replace(report, skipped=tuple(skipped))

    @named_options()
    def remember(self, turn: str, *, speaker: str = "", session: str = "", date: str | None = None) -> AddReport:
        """Remember one turn of a conversation. The same turn told twice is remembered once.

        Args:
            turn: what was said, verbatim.
            speaker: who said it; put before the text, and kept as metadata.
            session: the conversation it belongs to; kept as metadata.
            date: when, ISO 8601. Default: now.

        Raises:
            ValueError: the turn is empty, or the date is none.
        """
        return self.add([turn_document(turn, speaker, session, date)])

    @overload
    def get(self, ids: _Id) -> Document: ...

    @overload
    def get(self, ids: Iterable[_Id]) -> list[Document]: ...

    @named_options()
    def get(self, ids: _Id | Iterable[_Id]) -> Document | builtins.list[Document]:
        """A document as it was given, by its id; or several, in the order of a list of ids.

        Raises:
            UnknownDocument: there is none of one of the ids.
        """
        with self._catalog() as catalog:
            if isinstance(ids, _Id):
                return self.bank.get(ids, self.namespace, catalog)
            return [self.bank.get(id, self.namespace, catalog) for id in ids]

    @named_options()
    def list(
        self,
        *,
        where: Mapping[str, Any] | None = None,
        as_of: str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> builtins.list[Document]:
        """Documents as they were given, in the order they were added.

        Args:
            where, as_of: only documents of this scope; see `memspan.bank.scope.Scope.parse`.
            limit: how many, at most; None: all.
            offset: how many to pass over first.

        Raises:
            FilterError: the scope is malformed, or names a field that no document has.
        """
        if offset < 0 or (limit is not None and limit < 0):
            raise ValueError(f"limit and offset must not be negative, not {limit} and {offset}")
        end = None if limit is None else offset + limit
        with self._catalog() as catalog:
            found = islice(self._in_scope(catalog, Scope.parse(where, as_of)), offset, end)
            return builtins.list(found)

    @named_options()
    def update(
        self,
        id: _Id,
        *,
        text: str | None = None,
        title: str | None = None,
        metadata: Mapping[str, JSON] | None = None,
        date: str | None = None,
    ) -> AddReport:
        """Replace what is given of a document; the rest stays. One transaction; the next question sees it.

        A new text or title is encoded, under a new number; metadata and date alone are not.

        Raises:
            UnknownDocument: there is no such document.
        """
        changes = {"text": text, "title": title, "metadata": metadata, "date": date}
        given = {name: value for name, value in changes.items() if value is not None}
        with self._change():
            return self.add([replace(self.bank.get(id, self.namespace), **given)])

    @named_options()
    def delete(self, ids: _Id | Iterable[_Id] | None = None, *, where: Mapping[str, Any] | None = None) -> int:
        """Forget documents, in one transaction. The next question does not see them; `bank.compact` erases them.

        Args:
            ids: an id, or a list of ids.
            where: instead, the documents that match; see `memspan.bank.scope.Scope.parse`.

        Returns:
            How many were deleted.

        Raises:
            TypeError: neither or both were given.
            UnknownDocument: one of the ids is not there; nothing is deleted then.
            FilterError: the filter is empty, is malformed, or names a field that no document has.
        """
        if (ids is None) == (where is None):
            raise TypeError("name what to delete: ids or where=, one of them")
        with self._change():
            if where is not None:
                if not where:
                    raise FilterError("an empty filter would delete every document; name a field, or give ids")
                ids = [document.external_id for document in self._in_scope(self.bank.catalog, Scope.parse(where))]
            return self.bank.delete([ids] if isinstance(ids, _Id) else ids or (), self.namespace)

    def _check_open(self) -> None:
        """
        Raises:
            BankClosed: `close` was called.
        """
        if self._closed:
            raise BankClosed("this memory was closed; open it again: Memory.open(...)")

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """Around a change: one at a time, of a memory that is open."""
        self._check_open()
        with self._changing:
            yield

    @contextlib.contextmanager
    def _catalog(self) -> Iterator[Catalog]:
        """The catalog as it is now, for this thread."""
        self._check_open()
        with self.bank.pinned_catalog() as catalog:
            yield catalog

    def _in_scope(self, catalog: Catalog, scope: Scope) -> Iterator[Document]:
        """The documents of a scope; errors as in `list`."""
        catalog.source_page(self.namespace, 0, 1, scope)  # finds fields that no document has
        return (stored.document for stored in catalog.sources(self.namespace, scope))


def documents_of(documents: Iterable[str | Document], **columns: Iterable[Any] | None) -> Iterable[Document]:
    """Texts and documents as documents; see `DocumentStore.add` for arguments and errors."""
    if isinstance(documents, str | Document | Mapping):
        raise TypeError(f"documents is a list, also of one: memory.add([{type(documents).__name__}])")
    given: dict[str, list[Any]] = {}
    for name, values in columns.items():
        if isinstance(values, str | Mapping):
            raise TypeError(f"{name} is a list with one for each document, not {values!r}")
        if values is not None:
            given[name] = list(values)
    if not given and not isinstance(documents, Sequence):
        return (_document_of(item, {}) for item in documents)
    items = list(documents)
    for name, values in given.items():
        if len(values) != len(items):
            raise ValueError(f"{name} has {len(values)} values for {len(items)} documents; give one for each")
    named = [id for id in given.get("ids", ()) if id is not None]
    if len(set(named)) < len(named):
        twice = next(id for id in named if named.count(id) > 1)
        raise ValueError(f"ids names {twice!r} twice; an id is of one document")
    return [_document_of(item, {name: given[name][place] for name in given}) for place, item in enumerate(items)]


def _document_of(item: Any, values: Mapping[str, Any]) -> Document:
    if isinstance(item, Document):
        if values:
            raise TypeError(f"{', '.join(values)} are for texts; {item.external_id!r} is a Document, and has its own")
        return item
    if not isinstance(item, str):
        raise TypeError(f"a document is a text or a Document, not {type(item).__name__} ({str(item)[:80]!r})")
    id = values.get("ids")
    return Document(
        id if id is not None else _text_id(item),
        item,
        values.get("titles") or "",
        values.get("metadatas") or {},
        values.get("dates"),
    )


def _text_id(text: str) -> str:
    """An id made from a text: the same text is the same document."""
    return f"text-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:24]}"


def turn_document(turn: str, speaker: str = "", session: str = "", date: str | None = None) -> Document:
    """One turn of a conversation as a document; see `DocumentStore.remember`."""
    if not turn.strip():
        raise ValueError("the turn is empty; there is nothing to remember")
    date = normal_date(date or datetime.now(UTC).isoformat(timespec="milliseconds"))
    text = f"{speaker}: {turn}" if speaker else turn
    digest = hashlib.sha256(f"{date}\n{text}".encode()).hexdigest()[:16]
    metadata: dict[str, JSON] = {"speaker": speaker, "session": session}
    return Document(f"{session or 'turn'}/{digest}", text, metadata=metadata, date=date)
