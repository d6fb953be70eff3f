"""Corpus -> bank: in windows of documents, committed on the way. Run again, it continues."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from memspan.bank.bank import BankWriter, MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE
from memspan.bank.encode import (
    Part,
    SourceParts,
    batches,
    encode_batch,
    manifest_of,
    tokenise,
)
from memspan.errors import BankError, DuplicateDocument
from memspan.model.convert import LoadedModel
from memspan.text.packing import BATCH_TOKENS
from memspan.text.parts import split_document
from memspan.types import Document

# Documents are sorted by length within a window of so many batches; it bounds what waits in memory, too.
WINDOW_BATCHES = 8
_WINDOW_DOCUMENTS = 1024
COMMIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class AddReport:
    """What an `add` (or a `reencode`) did.

    Attributes:
        added: sources new to the bank. updated: sources that replaced an older one, or its metadata alone.
        unchanged: sources that were there already, with the same content.
        documents, tokens, chunks: encoded for them (a long source is several documents).
        characters: of text dealt with, encoded or unchanged; for telling how far along a run is.
        seconds: spent encoding and writing.
        interrupted: True if it was stopped before the corpus was done.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    documents: int = 0
    tokens: int = 0
    chunks: int = 0
    characters: int = 0
    seconds: float = 0.0
    interrupted: bool = False


Existing = Literal["replace", "refuse", "renew"]
Progress = Callable[[AddReport], None]


@dataclass(slots=True)
class _Window:
    """A piece of the corpus: what to encode, by external id, and what need not be."""

    sources: dict[str, SourceParts] = field(default_factory=dict)
    replacing: set[str] = field(default_factory=set)
    relabelled: dict[str, Document] = field(default_factory=dict)
    unchanged: list[Document] = field(default_factory=list)
    tokens: int = 0

    def is_full(self, max_tokens: int) -> bool:
        seen = len(self.sources) + len(self.relabelled) + len(self.unchanged)
        return self.tokens >= max_tokens or seen >= _WINDOW_DOCUMENTS


def add_documents(
    bank: MemoryBank,
    loaded: LoadedModel,
    documents: Iterable[Document],
    *,
    namespace: str = DEFAULT_NAMESPACE,
    existing: Existing = "replace",
    progress: Progress = lambda report: None,
    should_stop: Callable[[], bool] = lambda: False,
    batch_tokens: int = BATCH_TOKENS,
    commit_seconds: float = COMMIT_SECONDS,
) -> AddReport:
    """Encode documents into a bank. Sources already there with the same content are skipped; others replace the old.

    Where only metadata or date differ, those are replaced and nothing is encoded. Memory is bounded whatever the corpus
    size: a window of documents (or one very long one), one segment's buffer. Writes segments and the catalog (see
    `MemoryBank`), committing about every `commit_seconds`.

    Args:
        namespace: where they go; questions see one namespace.
        existing: what becomes of a document whose external id is there already: other content replaces it, or is
            refused; "renew" replaces it even if nothing changed.
        progress: called after every batch (and stretch of unchanged documents) with the state so far.
        should_stop: asked as often; when True, everything encoded so far is committed and the call returns.
        batch_tokens: padded tokens per forward.
        commit_seconds: how much work a killed process may lose.

    Raises:
        BankMismatch: the bank was made by another model, chunk size or template.
        DuplicateDocument: an external id is there already, and `existing` is "refuse".
        BankBusy: another process writes.
        BankError: the bank cannot be written; what was committed stays.

    Any other exception (from `documents`, say) ends the run after what was encoded is committed.
    """
    bank.manifest.check_same(manifest_of(loaded))
    run = Run(loaded, progress, should_stop, batch_tokens)
    with bank.writer(namespace) as writer:
        try:
            for window in _windows(documents, loaded, writer, WINDOW_BATCHES * batch_tokens, existing):
                characters = sum(len(document.text) for document in window.unchanged)
                run.count(unchanged=len(window.unchanged), characters=characters)
                run.encode([part for source in window.sources.values() for part in source.parts])
                _hand_over(window, writer, run)
                if run.report.interrupted:
                    break
                if run.seconds_since_commit >= commit_seconds:
                    writer.commit()
                    run.committed()
        except BankError as error:
            if isinstance(error, DuplicateDocument):
                writer.commit()
            raise  # otherwise the bank itself cannot be written
        except BaseException:
            writer.commit()
            raise
        writer.commit()
    return run.report


class Run:
    """Encoding on its way: what is done is told and counted here."""

    def __init__(
        self, loaded: LoadedModel, progress: Progress, should_stop: Callable[[], bool], batch_tokens: int
    ) -> None:
        self.report = AddReport()
        self._loaded, self._progress, self._should_stop = loaded, progress, should_stop
        self._batch_tokens = batch_tokens
        self._started = self._last_commit = time.monotonic()

    @property
    def seconds_since_commit(self) -> float:
        return time.monotonic() - self._last_commit

    def committed(self) -> None:
        self._last_commit = time.monotonic()

    def count(self, **more: int) -> None:
        """Add to the report's numbers."""
        numbers = {name: getattr(self.report, name) + number for name, number in more.items()}
        self.report = replace(self.report, seconds=time.monotonic() - self._started, **numbers)

    def encode(self, parts: Sequence[Part]) -> None:
        """Encode some parts, batch by batch, unless asked to stop."""
        if not parts:
            self._tell()
        for batch in batches(parts, self._batch_tokens):
            if self.report.interrupted:
                return
            encode_batch(self._loaded, batch)
            self.count(
                documents=len(batch),
                tokens=sum(part.document.tokens for part in batch),
                characters=sum(part.document.span.length for part in batch),
                chunks=sum(sum(part.latents.num_chunks) for part in batch if part.latents),
            )
            self._tell()

    def _tell(self) -> None:
        self._progress(self.report)
        if self._should_stop():
            self.report = replace(self.report, interrupted=True)


def _windows(
    documents: Iterable[Document], loaded: LoadedModel, writer: BankWriter, max_tokens: int, existing: Existing
) -> Iterator[_Window]:
    """The corpus in pieces of about `max_tokens` to encode.

    A window ends when it is full: its batches are of like length, and a stop loses at most one. The last text given
    for an external id counts.
    """
    window = _Window()
    failure: Exception | None = None
    stream = iter(documents)
    while failure is None:
        try:
            _place(next(stream), window, loaded, writer, existing)
        except StopIteration:
            break
        except Exception as error:  # of the corpus, whatever it is: what came before is kept
            failure = error
        if failure is None and window.is_full(max_tokens):
            yield window
            window = _Window()
    yield window
    if failure is not None:
        raise failure


def _place(document: Document, window: _Window, loaded: LoadedModel, writer: BankWriter, existing: Existing) -> None:
    """Put a document where it belongs in a window."""
    name = document.external_id
    earlier = window.sources.get(name)
    in_window = window.relabelled.get(name) or (earlier.document if earlier else None)
    known = (in_window.content_hash, in_window.text_hash) if in_window else writer.hashes(name)
    if known is not None and known[0] == document.content_hash and existing != "renew":
        window.unchanged.append(document)
        return
    if known is not None and existing == "refuse":
        raise DuplicateDocument(
            f"a document {name!r} is in the bank already; give it another external id, or update it"
        )
    if known is not None and known[1] == document.text_hash and existing != "renew":
        if earlier is not None:
            earlier.document = document
        else:
            window.relabelled[name] = document
        return
    template, config = loaded.template, loaded.model.config
    spans = split_document(document, template, config.max_document_tokens)
    if known is not None and (earlier is None or name in window.replacing):
        window.replacing.add(name)
    window.relabelled.pop(name, None)
    source = window.sources[name] = tokenise(document, spans, writer.reserve_ids(len(spans)), template)
    window.tokens += source.tokens


def _hand_over(window: _Window, writer: BankWriter, run: Run) -> None:
    """Pass on the sources whose parts are all encoded (all of them, unless the run was stopped)."""
    for name, source in window.sources.items():
        if source.is_encoded:
            writer.add(source.as_new(), source.latents)
            run.count(updated=int(name in window.replacing), added=int(name not in window.replacing))
    for document in window.relabelled.values():
        writer.relabel(document)
        run.count(updated=1, characters=len(document.text))
