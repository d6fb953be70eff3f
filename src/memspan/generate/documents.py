"""`DocumentStore`: the documents of one namespace of a bank, added, changed and deleted."""

from __future__ import annotations

import builtins
import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from memspan.bank.add import Existing, add_documents, encode_pending
from memspan.bank.bank import MemoryBank
from memspan.bank.clock import expiry_of
from memspan.bank.commit import CommitReport
from memspan.bank.ledger import FileReader
from memspan.bank.scope import Scope
from memspan.bank.sync import Sync, SyncReport
from memspan.bank.texts import PATIENCE, DocumentUpdate
from memspan.errors import BankBusy, FilterError
from memspan.generate.calls import in_thread, named_options
from memspan.generate.given import documents_of, exchange_documents, turn_document
from memspan.generate.reading import DocumentReader, Id
from memspan.model.convert import LoadedModel
from memspan.text.corpus import ReadProgress, found_documents, found_files
from memspan.text.readers import ReadOptions
from memspan.types import JSON, AddReport, Document, Skipped

_ADD_OPTIONS = sorted((add_documents.__kwdefaults__ or {}).keys() - {"namespace"})
_READ_OPTIONS = tuple(field.name for field in fields(ReadOptions))


class DocumentStore(DocumentReader):
    """One namespace of a bank, with the model that encodes its documents. A document is known by its external id, or by
    the bank's number of it (or of one of its parts).

    Attributes:
        later: whether `add` and `update` leave it to others to encode, as their option `later` says for one call.

    Safe from several threads: what changes the bank is done one after the other, and reading waits for nothing.
    """

    def __init__(self, bank: MemoryBank, loaded: LoadedModel, namespace: str) -> None:
        super().__init__(bank, namespace)
        self.loaded, self.later = loaded, False
        self._changing = threading.RLock()

    @named_options(*_ADD_OPTIONS)
    def add(
        self,
        documents: Iterable[str | Document],
        *,
        ids: Iterable[str] | None = None,
        metadatas: Iterable[Mapping[str, JSON] | None] | None = None,
        titles: Iterable[str] | None = None,
        dates: Iterable[str | None] | None = None,
        expires: str | None = None,
        ttl: str | timedelta | None = None,
        existing: Existing = "replace",
        **options: Any,
    ) -> AddReport:
        """Remember texts or documents. A document with a known id replaces the older one (an upsert), which stays as a
        former version: `as_of` and `known_at` find it.

        Args:
            documents: texts, `Document`s, or both. Of a generator some thousand documents are held at a time.
            ids, metadatas, titles, dates: of texts, one for each; a `Document` has its own. Without an id a text is
                known by its content: the same text added twice is one document, with the metadata given last.
            expires, ttl: the end of documents without their own expiry. `expires` is a day (its beginning, in UTC), a
                moment, or "never"; `ttl` is a duration, as "30d", "12h" or a timedelta. Without either, a known
                document keeps its expiry.
            existing: "replace"; "refuse": a known id with other content is an error; "renew": encode also unchanged
                documents.
            options: see `memspan.bank.add.add_documents`; also for further errors.

        Raises:
            TypeError: a text or a document stands in the place of a list, or another type in the list.
            ValueError: a list has another length, an id stands twice in `ids`, a value can be no document, or there is
                no such moment or duration. Of a list, nothing is added then.
            DuplicateDocument: see `existing`; or two documents that differ have one id. Of a list, nothing is added.
        """
        given = documents_of(documents, ids=ids, metadatas=metadatas, titles=titles, dates=dates)
        expiry = expiry_of(expires, ttl)
        if expiry is not None:
            given = (document if document.expires else replace(document, expires=expiry) for document in given)
        with self._change():
            options = {"namespace": self.namespace, "existing": existing, "later": self.later, **options}
            return add_documents(self.bank, self.loaded, given, **options)

    @named_options(*_ADD_OPTIONS, *_READ_OPTIONS)
    def add_files(self, *paths: str | Path, **options: Any) -> AddReport:
        """Remember files and folders, as `memspan add` does. The report's `skipped` lists unreadable files.

        Args:
            paths: of files (docs/files.md lists the types), and of folders that hold them. A document's id is the name
                of the given folder (of a file, its own folder) and the path from there.
            options: as for `add`; and for reading `format`, `encoding`, `text_column`, `title_column`, `ocr` and
                `ocr_language` (see `memspan.text.readers.formats.ReadOptions`).

        Raises:
            CorpusError: a path does not exist, an encoding is unknown, or tesseract is not there; nothing is added
                then.
            UnknownName: there is no such format.
        """
        given = _given_paths(paths, 'memory.add_files("notes", "report.pdf")')
        how = _read_options(options)
        files, skipped = found_files(given), builtins.list[Skipped]()
        with self._change():
            reader = FileReader(self.bank.catalog, self.namespace, ReadProgress(given), options=how)
            report = self.add(found_documents(skipped, reader.read(files)), **options)
            if not report.interrupted:
                reader.mark_read()
        return replace(report, skipped=tuple(skipped))

    @named_options(*_ADD_OPTIONS, *_READ_OPTIONS)
    def sync(
        self,
        *paths: str | Path,
        root: str | None = None,
        force: bool = False,
        dry_run: bool = False,
        **options: Any,
    ) -> SyncReport:
        """Bring the memory in step with folders: add new and changed files, give moved files their new ids, and forget
        files that are gone. Documents added in another way, or from another folder, stay.

        Args:
            paths: folders, files, and patterns of files as `docs/**/*.md`.
            root: the name of the one folder in the bank, where it moved, or the bank came from another machine.
            force: forget also all files of a folder, or more than half of more than ten.
            dry_run: return the plan, and do nothing.
            options: as for `add_files`; they do not make an unchanged file be read again.

        Raises:
            CorpusError: a path does not exist, and the bank knows nothing of it; or a folder needs its `root`.
            SyncRefused: see `force`; nothing was changed.
        """
        given = _given_paths(paths, 'memory.sync("notes", "reports")')
        how = _read_options(options)
        with self._change():
            with self._catalog() as catalog:
                found = Sync(self.bank, self.namespace, given, catalog, root, how)
            if dry_run:
                return SyncReport(found.plan)
            later = options.pop("later", self.later)
            report = found.apply(partial(self.add, later=True, **options), force=force)
            return report if later or report.done.interrupted else self._encoded(report, options)

    def _encoded(self, report: SyncReport, options: Mapping[str, Any]) -> SyncReport:
        """Encode what a sync has added; another process that encodes this bank does it instead."""
        how = {name: options[name] for name in encode_pending.__kwdefaults__ or {} if name in options}
        try:
            encoded = encode_pending(self.bank, self.loaded, **{**how, "namespaces": [self.namespace]})
        except BankBusy:
            return report
        return replace(report, done=replace(report.done.and_then(encoded), skipped=report.done.skipped))

    @named_options()
    def remember(
        self, turn: str | Iterable[Mapping[str, Any]], *, speaker: str = "", session: str = "", date: str | None = None
    ) -> AddReport:
        """Remember one turn of a conversation, or all messages of one.

        Messages are lists as OpenAI's, Anthropic's and Gemini's APIs take and give them; their roles or names are the
        speakers. Each message of a user and all its answers are one document. Calls and results of tools are kept as
        texts; instructions ("system") and thoughts are not. The same messages with the same date are remembered once.

        Args:
            turn: the words of the turn, verbatim; or a list of messages.
            speaker: of the turn; put before the text, and kept as metadata.
            session: the conversation of the turn; kept as metadata.
            date: ISO 8601; of messages without a date (`date`, `timestamp`, `created_at`). Default: now.

        Raises:
            TypeError: messages and a `speaker` are given.
            ValueError: there is no text, or a message or the date is malformed. Nothing is remembered then.
        """
        if isinstance(turn, str):
            return self.add([turn_document(turn, speaker, session, date)])
        if speaker:
            raise TypeError("messages say themselves who spoke; leave speaker out")
        return self.add(exchange_documents(turn, session, date))

    @named_options()
    def update(
        self,
        id: Id,
        *,
        text: str | None = None,
        title: str | None = None,
        metadata: Mapping[str, JSON] | None = None,
        date: str | None = None,
        expires: str | None = None,
        ttl: str | timedelta | None = None,
        pinned: bool | None = None,
    ) -> AddReport:
        """Change the given fields of a document; the rest stays. No other change comes between reading and writing, and
        the next question sees the change. The document as it was stays as a former version.

        A new text or title is encoded, under a new number; metadata, date and expiry alone are not.

        Args:
            metadata: merged into the present metadata, as JSON Merge Patch does (RFC 7396): a field with None is
                removed. To replace all metadata, `add` the document again.
            date: "" removes it.
            expires, ttl: as for `add`; "never" removes it.
            pinned: True: it does not expire, in spite of its expiry.

        Raises:
            UnknownDocument: there is no such document.
            TypeError, ValueError: with these changes it would be no document.
            BankBusy: another process writes, and has for some seconds.
        """
        changes = DocumentUpdate(text, title, metadata, date, expiry_of(expires, ttl), pinned)
        with self._change(), self.bank.writing(PATIENCE, is_shared=True):
            return self.add([changes.of(self.bank.get(id, self.namespace))])

    @named_options()
    def delete(self, ids: Id | Iterable[Id] | None = None, *, where: Mapping[str, Any] | None = None) -> int:
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
            return self.bank.delete([ids] if isinstance(ids, Id) else ids or (), self.namespace)

    @named_options()
    def commit(self, rows: Iterable[Mapping[str, Any]]) -> CommitReport:
        """Make documents exist that other processes encoded, of any namespace of the bank. The next question sees them.

        Args:
            rows: what `memspan.bank.encoder.Encoder` gave for tasks of this bank. See `MemoryBank.commit`; also for
                errors.
        """
        with self._change():
            return self.bank.commit(rows)

    aadd = in_thread(add)
    aadd_files = in_thread(add_files)
    aremember = in_thread(remember)
    aupdate = in_thread(update)
    adelete = in_thread(delete)
    acommit = in_thread(commit)

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """Around a change: one at a time, of a memory that is open."""
        self._check_open()
        with self._changing:
            yield


def _read_options(options: dict[str, Any]) -> ReadOptions:
    """How files are read, taken out of the options of a call."""
    return ReadOptions(**{name: options.pop(name) for name in _READ_OPTIONS if name in options})


def _given_paths(paths: tuple[str | Path, ...], example: str) -> list[Path]:
    """
    Raises:
        TypeError: there is none, or one is no path: a list, or an empty text, which `Path` makes the present folder.
    """
    if not paths or not all(isinstance(path, str | Path) and path != "" for path in paths):
        raise TypeError(f"name files or folders, each by itself and none empty: {example}")
    return [Path(path).expanduser() for path in paths]
