"""Corpus -> bank: split, encode in batches of like length, commit on the way. Run again, it continues."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch

from memspan.bank.bank import BankWriter, MemoryBank
from memspan.bank.catalog import NewDocument, NewSource
from memspan.bank.manifest import LATENT_DTYPE, Manifest
from memspan.errors import BankError
from memspan.model.convert import LoadedModel
from memspan.text.packing import length_batches
from memspan.text.splitter import split_text
from memspan.text.template import PromptTemplate, encoded_text
from memspan.types import Document, EncodedDocuments, Span

BATCH_TOKENS = 2048
# Documents are sorted by length within a window of so many batches; it bounds what waits in memory, too.
_WINDOW_BATCHES = 8
_WINDOW_DOCUMENTS = 1024
_COMMIT_SECONDS = 60.0
# The longest id that document splitting leaves room for, in its template and on both sides of the text.
_WIDEST_ID = 10**12


@dataclass(frozen=True, slots=True)
class AddReport:
    """What an `add` did.

    Attributes:
        added: sources new to the bank. updated: sources whose content replaced an older one.
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


@dataclass(slots=True)
class _Part:
    """A document of a window on its way to being encoded."""

    document: NewDocument
    ids: list[int]
    latents: EncodedDocuments | None = None


@dataclass(slots=True)
class _Source:
    document: Document
    replaces: bool = False
    parts: list[_Part] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(part.document.tokens for part in self.parts)


def add_documents(
    bank: MemoryBank,
    loaded: LoadedModel,
    documents: Iterable[Document],
    *,
    progress: Callable[[AddReport], None] = lambda report: None,
    should_stop: Callable[[], bool] = lambda: False,
    batch_tokens: int = BATCH_TOKENS,
    commit_seconds: float = _COMMIT_SECONDS,
) -> AddReport:
    """Encode documents into a bank. Sources already there with the same content are skipped; others replace the old.

    Memory is bounded whatever the corpus size: a window of documents (or one very long one), one segment's buffer.
    Writes segments and the catalog (see `MemoryBank`), committing about every `commit_seconds`.

    Args:
        progress: called after every batch (and stretch of unchanged documents) with the state so far.
        should_stop: asked as often; when True, everything encoded so far is committed and the call returns.
        batch_tokens: padded tokens per forward.
        commit_seconds: how much work a killed process may lose.

    Raises:
        BankMismatch: the bank was made by another model, chunk size or template.
        BankError: the bank cannot be written; what was committed stays.

    Any other exception (from `documents`, say) ends the run after what was encoded is committed.
    """
    bank.manifest.check_same(manifest_of(loaded))
    run = _Run(loaded, progress, should_stop)
    last_commit = time.monotonic()
    with bank.writer() as writer:
        try:
            for window, unchanged in _windows(documents, loaded, writer, _WINDOW_BATCHES * batch_tokens):
                run.encode(window, unchanged, batch_tokens)
                _hand_over(window, writer, run)
                if run.report.interrupted:
                    break
                if time.monotonic() - last_commit >= commit_seconds:
                    writer.commit()
                    last_commit = time.monotonic()
        except BankError:
            raise  # the bank itself cannot be written
        except BaseException:
            writer.commit()
            raise
        writer.commit()
    return run.report


class _Run:
    """One `add_documents` on its way: what is done is told and counted here."""

    def __init__(
        self, loaded: LoadedModel, progress: Callable[[AddReport], None], should_stop: Callable[[], bool]
    ) -> None:
        self.report = AddReport()
        self._loaded, self._progress, self._should_stop = loaded, progress, should_stop
        self._started = time.monotonic()

    def count(self, **more: int) -> None:
        """Add to the report's numbers."""
        numbers = {name: getattr(self.report, name) + number for name, number in more.items()}
        self.report = replace(self.report, seconds=time.monotonic() - self._started, **numbers)

    def encode(self, window: list[_Source], unchanged: list[Document], batch_tokens: int) -> None:
        """Encode a window's parts, batch by batch, unless asked to stop."""
        self.count(unchanged=len(unchanged), characters=sum(len(document.text) for document in unchanged))
        if not window:
            self._tell()
        for batch in _batches(window, batch_tokens):
            if self.report.interrupted:
                return
            _encode(self._loaded, batch)
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


def manifest_of(loaded: LoadedModel) -> Manifest:
    """The manifest of a bank that a model makes."""
    model = loaded.model
    return Manifest.of_model(model.config, model.config.encoder_fingerprint or model.encoder_fingerprint())


def split_document(document: Document, template: PromptTemplate, max_document_tokens: int) -> list[Span]:
    """The parts a text is encoded in: each, with title, id and template, at most `max_document_tokens` long.

    At least half of that is left to the text, so a title longer than the other half makes longer documents.
    """
    overhead = len(template.document(_WIDEST_ID, f"{document.title}\n"))
    limit = max(max_document_tokens - overhead, max_document_tokens // 2, 1)
    return split_text(document.text, template.count_tokens, limit)


def _windows(
    documents: Iterable[Document], loaded: LoadedModel, writer: BankWriter, max_tokens: int
) -> Iterator[tuple[list[_Source], list[Document]]]:
    """The corpus in pieces of about `max_tokens` to encode, with the documents that need not be.

    A window ends when it is full: its batches are of like length, and a stop loses at most one. The last text given
    for an external id counts.
    """
    window: dict[str, _Source] = {}
    unchanged: list[Document] = []
    tokens = 0
    for document in documents:
        in_window = window.get(document.external_id)
        known = in_window.document.content_hash if in_window else writer.content_hash(document.external_id)
        if known == document.content_hash:
            unchanged.append(document)
        else:
            source = _split(document, loaded, writer)
            source.replaces = in_window.replaces if in_window else known is not None
            window[document.external_id] = source
            tokens += source.tokens
        if tokens >= max_tokens or len(window) + len(unchanged) >= _WINDOW_DOCUMENTS:
            yield list(window.values()), unchanged
            window, unchanged, tokens = {}, [], 0
    yield list(window.values()), unchanged


def _split(document: Document, loaded: LoadedModel, writer: BankWriter) -> _Source:
    """Give a source its parts, each with its own id, in tokens."""
    template, source = loaded.template, _Source(document)
    spans = split_document(document, template, loaded.model.config.max_document_tokens)
    for document_id, span in zip(writer.reserve_ids(len(spans)), spans, strict=True):
        ids = template.document(document_id, encoded_text(document.title, document.text[span.start : span.end]))
        source.parts.append(_Part(NewDocument(document_id, span, len(ids)), ids))
    return source


def _batches(sources: list[_Source], batch_tokens: int) -> Iterator[list[_Part]]:
    parts = [part for source in sources for part in source.parts]
    for indices in length_batches([len(part.ids) for part in parts], batch_tokens):
        yield [parts[index] for index in indices]


@torch.inference_mode()
def _encode(loaded: LoadedModel, batch: list[_Part]) -> None:
    encoded = loaded.model.encode([part.ids for part in batch])
    router_keys_LCW = encoded.router_keys_LCW.to("cpu", LATENT_DTYPE)
    content_LC2GD = encoded.content_LC2GD.to("cpu", LATENT_DTYPE)
    first = 0
    for part, rows in zip(batch, encoded.num_chunks, strict=True):
        rows_here = slice(first, first + rows)
        # Copies, so that a slice does not keep the whole batch alive.
        part.latents = EncodedDocuments(
            router_keys_LCW[:, rows_here].clone(), content_LC2GD[:, rows_here].clone(), (rows,)
        )
        first += rows


def _hand_over(sources: list[_Source], writer: BankWriter, run: _Run) -> None:
    """Pass on the sources whose parts are all encoded (all of them, unless the run was stopped)."""
    for source in sources:
        latents = [part.latents for part in source.parts if part.latents is not None]
        if len(latents) == len(source.parts):
            writer.add(NewSource(source.document, tuple(part.document for part in source.parts)), latents)
            run.count(updated=int(source.replaces), added=int(not source.replaces))
