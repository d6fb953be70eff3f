"""`DocumentReader`: the documents of one namespace of a bank, read."""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, overload

from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import Catalog
from memspan.bank.changes import ChangeReport, changes_since
from memspan.bank.naming import documents_naming
from memspan.bank.scope import Scope
from memspan.errors import BankClosed
from memspan.generate.calls import in_thread, named_options
from memspan.generate.lexical import check_questions, evidence_of
from memspan.generate.sampling import check_whole
from memspan.types import Document, Evidence, Version

Id = int | str
"""The caller's external id, or the bank's number of a document (or of one of its parts)."""


class DocumentReader:
    """What one namespace of a bank holds. A document is known by its `Id`."""

    def __init__(self, bank: MemoryBank, namespace: str) -> None:
        self.bank, self.namespace = bank, namespace
        self._closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {str(self.bank.place)!r}, namespace {self.namespace!r}>"

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
            return isinstance(id, Id) and self.bank.find(id, self.namespace, catalog) is not None

    @overload
    def get(self, ids: Id, *, as_of: str | None = None, known_at: str | None = None) -> Document: ...

    @overload
    def get(self, ids: Iterable[Id], *, as_of: str | None = None, known_at: str | None = None) -> list[Document]: ...

    @named_options()
    def get(
        self, ids: Id | Iterable[Id], *, as_of: str | None = None, known_at: str | None = None
    ) -> Document | builtins.list[Document]:
        """A document as it was given, by its id; or several, in the order of a list of ids.

        Args:
            as_of, known_at: the version of another time; see `memspan.bank.scope.Scope.parse`.

        Raises:
            UnknownDocument: there is, or was then, none of one of the ids.
            FilterError: a time is malformed.
        """
        scope = Scope.parse(None, as_of, known_at)
        with self._catalog() as catalog:
            if isinstance(ids, Id):
                return self.bank.get(ids, self.namespace, catalog, scope)
            return [self.bank.get(id, self.namespace, catalog, scope) for id in ids]

    @named_options()
    def versions(self, id: Id) -> builtins.list[Version]:
        """All versions of a document that are kept, in the order they were recorded; the last one holds.

        Raises:
            UnknownDocument: there is no such document.
        """
        with self._catalog() as catalog:
            found = catalog.versions(self.namespace, self.bank.resolve(id, self.namespace, catalog))
            return [Version(stored.document, stored.recorded_at, stored.superseded_at) for stored in found]

    @named_options()
    def changes(
        self,
        since: str | None = None,
        *,
        after_commit: int | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> ChangeReport:
        """The documents that were added, changed, deleted or have expired since a time or a commit, by time.

        A document added again after its deletion counts as added; a file that only moved is no change. A document that
        `compact --secure` has erased has no id.

        Args:
            since: a day (from its beginning, UTC), a moment, or how long ago: "7d".
            after_commit: instead, the `commit` of an earlier call; 0: all changes. An expired document is given again
                until the next commit.
            limit: how many, at most; None: all.
            offset: how many to pass over first.

        Raises:
            TypeError: neither or both of the first two are given.
            FilterError: there is no such day, moment, duration or commit.
        """
        cut = _slice(limit, offset)
        with self._catalog() as catalog:
            return changes_since(catalog, catalog.commits(), self.namespace, cut, since, after_commit)

    @named_options()
    def list(
        self,
        *,
        where: Mapping[str, Any] | None = None,
        as_of: str | None = None,
        known_at: str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> builtins.list[Document]:
        """Documents as they were given, in the order they were added.

        Args:
            where, as_of, known_at: only documents of this scope; see `memspan.bank.scope.Scope.parse`.
            limit: how many, at most; None: all.
            offset: how many to pass over first.

        Raises:
            FilterError: the scope is malformed, or names a field that no document has.
        """
        cut = _slice(limit, offset)
        with self._catalog() as catalog:
            found = islice(self._in_scope(catalog, Scope.parse(where, as_of, known_at)), cut.start, cut.stop)
            return builtins.list(found)

    @named_options()
    def about(
        self,
        name: str,
        *,
        where: Mapping[str, Any] | None = None,
        as_of: str | None = None,
        known_at: str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> builtins.list[Evidence]:
        """All documents that name a person or a thing (they hold every word of the name, in one of its forms), the
        newest first. Unlike `search`, this ranks nothing and leaves nothing out.

        Args:
            where, as_of, known_at, limit, offset: as for `list`.

        Raises:
            QuestionError: the name is empty.
            FilterError: as for `list`.
        """
        check_questions([name])
        cut = _slice(limit, offset)
        scope = Scope.parse(where, as_of, known_at)
        with self._catalog() as catalog:
            found = documents_naming(catalog, self.namespace, name, scope)[cut]
            return [evidence_of(stored) for stored in catalog.documents(self.namespace, found, scope)]

    aget = in_thread(get)
    aversions = in_thread(versions)
    achanges = in_thread(changes)
    alist = in_thread(list)
    aabout = in_thread(about)

    def _check_open(self) -> None:
        """
        Raises:
            BankClosed: `close` was called.
        """
        if self._closed:
            raise BankClosed("this memory was closed; open it again: Memory.open(...)")

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


def _slice(limit: int | None, offset: int) -> slice:
    """
    Raises:
        ValueError: one of them is negative.
        TypeError: one of them is no whole number.
    """
    check_whole("offset", offset)
    check_whole("limit", 0 if limit is None else limit)
    if offset < 0 or (limit is not None and limit < 0):
        raise ValueError(f"limit and offset must not be negative, not {limit} and {offset}")
    return slice(offset, None if limit is None else offset + limit)
