"""Corpus -> bank: texts first, thousands a second, then their latents (`behind`). Run again, it continues."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import IO, Literal

from memspan.bank import edits
from memspan.bank.bank import MemoryBank
from memspan.bank.behind import BackgroundEncoder
from memspan.bank.catalog import DEFAULT_NAMESPACE
from memspan.bank.edits import NewDocument, NewSource
from memspan.bank.encode import COMMIT_SECONDS, EncodingRun, Progress, check_model
from memspan.bank.encoders import Encoders, ProcessGroup
from memspan.bank.folder import WrittenSegments
from memspan.bank.lines import read_exported
from memspan.bank.remembered import remember
from memspan.bank.texts import check_namespace, keeps_retention
from memspan.errors import BankBusy, DuplicateDocument
from memspan.model.convert import LoadedModel
from memspan.text.parts import split_document
from memspan.types import AddReport, Document

# Texts are committed when so many have come together, or so much time is over: a commit takes some milliseconds.
_WINDOW_DOCUMENTS = 1024
_WINDOW_SECONDS = 1.0

Existing = Literal["replace", "refuse", "renew"]


def add_documents(
    bank: MemoryBank,
    loaded: LoadedModel,
    documents: Iterable[Document],
    *,
    namespace: str = DEFAULT_NAMESPACE,
    existing: Existing = "replace",
    later: bool = False,
    progress: Progress = lambda report: None,
    should_stop: Callable[[], bool] = lambda: False,
    batch_tokens: int | None = None,
    commit_seconds: float = COMMIT_SECONDS,
    group: ProcessGroup | None = None,
) -> AddReport:
    """Put documents into a bank. Sources already there with the same content are skipped; others replace the old.

    Their texts come first: they are searched and answered from as soon as they are committed, some thousand documents a
    second. Then those of them that are not encoded yet are encoded, a commit every `commit_seconds`; the router finds
    what is encoded. Where another process encodes the bank already, that is left to it.

    Where only metadata, date or expiry differ, those are replaced and nothing is encoded. Memory is bounded whatever
    the corpus size: a window of documents (or one very long one), one segment's buffer.

    Args:
        namespace: where they go; questions see one namespace.
        existing: what becomes of a document whose external id is there already: other content replaces it, or is
            refused; "renew" replaces it even if nothing changed.
        later: return when the texts are in; `encode_pending` encodes them.
        progress: called with the state so far, after every commit of texts and after every batch.
        should_stop: asked after every document, and after every batch; when True, what was read or encoded so far is
            committed and the call returns.
        batch_tokens: padded tokens per forward. Default: 2,048 on a CPU, 16,384 on a GPU; where they do not fit, fewer.
        commit_seconds: how much encoding a killed process may lose; of texts it loses about a second.
        group: processes that encode together, of which this is rank 0; the others call `encode_for_first`.

    Raises:
        BankMismatch: the bank was made by another model, chunk size or template.
        DuplicateDocument: an external id is there already, and `existing` is "refuse"; or two documents with other
            content have one id. What came before is in the bank.
        BankBusy: another process writes.
        BankError: the bank cannot be written; what was committed stays.
        RankError: another rank failed or was lost; what was committed stays.

    Any other exception (from `documents`, say) ends the run after what was read before is committed.
    """
    check_namespace(namespace)
    loaded = loaded.keeping(bank.manifest.content)
    run = EncodingRun(loaded, progress, should_stop, batch_tokens)
    with Encoders(run, group, bank.folder, loaded) as encoders:
        check_model(bank.manifest, loaded)
        with bank.locked():
            remember(bank.catalog, loaded.names)
            texts = _Texts(bank, namespace, loaded, existing, run, encoders)
            texts.add(documents)
        if not (later or run.report.interrupted):
            BackgroundEncoder(bank, loaded, encoders, run, commit_seconds, texts.was_given, texts.before).encode(
                [namespace]
            )
    return run.find_pending(bank.catalog, [namespace])


def encode_pending(
    bank: MemoryBank,
    loaded: LoadedModel,
    *,
    namespaces: Iterable[str] | None = None,
    progress: Progress = lambda report: None,
    should_stop: Callable[[], bool] = lambda: False,
    batch_tokens: int | None = None,
    commit_seconds: float = COMMIT_SECONDS,
    group: ProcessGroup | None = None,
) -> AddReport:
    """Encode the documents of a bank that are not encoded yet, oldest first. Run again, it continues.

    The bank is locked for the commits alone, so others change it meanwhile; what they delete or replace before its turn
    is never encoded.

    Args:
        namespaces: whose documents; None: all. For the others see `add_documents`.

    Raises:
        BankBusy: another process encodes this bank; or one has been changing it for half a minute.
        BankMismatch, BankError, RankError: as for `add_documents`.
    """
    bank.check_owned("changed")
    loaded = loaded.keeping(bank.manifest.content)
    run = EncodingRun(loaded, progress, should_stop, batch_tokens)
    with Encoders(run, group, bank.folder, loaded) as encoders:
        check_model(bank.manifest, loaded)
        wanted = bank.catalog.namespaces() if namespaces is None else list(namespaces)
        if not BackgroundEncoder(bank, loaded, encoders, run, commit_seconds).encode(wanted):
            raise BankBusy(f"another process encodes {bank.folder}; wait for it, or end it")
    return run.find_pending(bank.catalog, wanted)


def import_documents(
    bank: MemoryBank,
    loaded: LoadedModel,
    stream: IO[str],
    *,
    progress: Progress = lambda report: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> AddReport:
    """Add what `export_documents` wrote, each document to its namespace: all texts, then the latents.

    Raises:
        CorpusError: a line is not of that form, or two lines with other content have one id (named); what came before
            it is in the bank.
    """
    total = AddReport()
    for namespace, group in groupby(read_exported(stream), key=lambda item: item[0]):
        documents = (document for _, document in group)
        options = {"namespace": namespace, "later": True, "should_stop": should_stop}
        total = total.and_then(add_documents(bank, loaded, documents, **options, progress=progress))
        if total.interrupted:
            return total
    return total.and_then(encode_pending(bank, loaded, progress=progress, should_stop=should_stop))


@dataclass(slots=True)
class _Window:
    """Texts that the next commit makes exist, by external id."""

    sources: dict[str, NewSource] = field(default_factory=dict)
    relabelled: dict[str, Document] = field(default_factory=dict)
    replacing: int = 0
    unchanged: int = 0
    characters: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def is_full(self) -> bool:
        seen = len(self.sources) + len(self.relabelled) + self.unchanged
        return seen >= _WINDOW_DOCUMENTS or time.monotonic() >= self.began + _WINDOW_SECONDS


class _Texts:
    """Makes texts part of a bank, a window at a time. The caller holds the writer's lock."""

    def __init__(
        self,
        bank: MemoryBank,
        namespace: str,
        loaded: LoadedModel,
        existing: Existing,
        run: EncodingRun,
        encoders: Encoders,
    ) -> None:
        self._catalog, self._namespace, self._existing = bank.catalog, namespace, existing
        self._loaded, self._run, self._encoders = loaded, run, encoders
        self._next_id = self._first_id = bank.catalog.next_document_id()
        self._window = _Window()
        self._committing = False
        # Hashes of the ids given so far, with the number of the document: a million of them stay small.
        self._given: dict[int, int] = {}

    def add(self, documents: Iterable[Document]) -> None:
        """Commit the documents; whatever ends them, what came before is committed."""
        try:
            for number, document in enumerate(documents, start=1):
                self._place(document, number)
                if self._window.is_full:
                    self._commit()
                elif self._run.should_stop():
                    self._run.interrupt()
                if self._run.report.interrupted:
                    break
        except BaseException:
            if not self._committing:
                self._commit()
            raise
        self._commit()

    def was_given(self, external_id: str) -> bool:
        """Whether a document of this id was added."""
        return hash(external_id) in self._given

    @property
    def before(self) -> int:
        """A number that no document of what was added has, nor any smaller one."""
        report = self._run.report
        return 0 if report.unchanged or report.updated else self._first_id - 1

    def _place(self, document: Document, number: int) -> None:
        """Put a document where it belongs in the window."""
        name, window = document.external_id, self._window
        waiting = window.sources.get(name)
        earlier = window.relabelled.get(name) or (waiting.document if waiting else None)
        known = self._catalog.hashes(self._namespace, name) if earlier is None else _hashes(earlier)
        first = self._given.setdefault(hash(name), number)
        is_same = known is not None and known[0] == document.content_hash
        is_new = known is None or (self._existing == "renew" and first == number)
        if first != number and not is_same:
            raise DuplicateDocument(
                f"the id {name!r} is given twice, to document {first} and with other content to document {number}; "
                "an id is of one document: give one of them another"
            )
        if known is not None and not is_same and self._existing == "refuse":
            raise DuplicateDocument(
                f"a document {name!r} is in the bank already; give it another external id, or update it"
            )
        window.characters += len(document.text)
        if is_same and not is_new and self._keeps(document, earlier):
            window.unchanged += 1
        elif known is not None and known[1] == document.text_hash and not is_new:
            if waiting is None:
                window.relabelled[name] = document
            else:
                window.sources[name] = NewSource(document, waiting.parts)
        else:
            window.replacing += known is not None
            window.sources[name] = self._in_parts(document)

    def _keeps(self, document: Document, earlier: Document | None) -> bool:
        """Whether a document of the same content changes nothing: expiry and pin are no content."""
        if earlier is None and (stored := self._catalog.source(self._namespace, document.external_id)):
            earlier = stored.document
        return earlier is None or keeps_retention(earlier, document)

    def _in_parts(self, document: Document) -> NewSource:
        template = self._loaded.template
        spans = split_document(document, template, self._loaded.model.config.max_document_tokens)
        first = self._next_id
        self._next_id += len(spans)
        return NewSource(document, tuple(map(NewDocument, range(first, self._next_id), spans)))

    def _commit(self) -> None:
        """Make the window exist."""
        window, self._window = self._window, _Window()
        self._committing = True
        if window.sources or window.relabelled:
            sources, relabelled = window.sources.values(), window.relabelled.values()
            edits.add_sources(self._catalog, self._namespace, sources, WrittenSegments((), ()), relabelled)
        self._committing = False
        self._run.count(
            added=len(window.sources) - window.replacing,
            updated=window.replacing + len(window.relabelled),
            unchanged=window.unchanged,
            characters=window.characters,
        )
        self._encoders.hear()


def _hashes(document: Document) -> tuple[str, str]:
    return document.content_hash, document.text_hash
