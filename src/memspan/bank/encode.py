"""Text -> latents: a source is split into parts, parts are encoded in batches of like length, counted and reported."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch

from memspan.bank.edits import NewDocument, NewSource
from memspan.bank.folder import text_crc32
from memspan.bank.manifest import Manifest
from memspan.bank.segment import LATENT_DTYPE, SegmentWriter
from memspan.bank.stored import num_pending, pending_ids
from memspan.errors import BankMismatch, MemspanError
from memspan.model.convert import LoadedModel
from memspan.model.decoding import unprepared_alone
from memspan.model.former import is_former_fingerprint
from memspan.model.runtime import encode_tokens
from memspan.ops.transfer import launched, start_to_host
from memspan.places import quoted
from memspan.text.packing import length_batches
from memspan.text.template import PromptTemplate, part_text
from memspan.types import AddReport, Document, EncodedDocuments, Span

if TYPE_CHECKING:
    from memspan.bank.catalog import Catalog
    from memspan.bank.texts import TextBank

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

# Documents are sorted by length within a window of so many batches.
WINDOW_BATCHES = 8
# What a killed process loses of its encoding. A commit takes 20 to 100 ms (more where segments are merged), measured.
COMMIT_SECONDS = 10.0
_PAGE = 256


@dataclass(slots=True)
class Part:
    """A document on its way to being encoded: its tokens, then its latents as well.

    Attributes:
        text_crc32: of the text that is encoded.
        chunks: rows of its latents; 0 until it is encoded.
        encoded: gives its latents, where it is this process that encoded it.
    """

    document: NewDocument
    ids: list[int]
    text_crc32: int
    chunks: int = 0
    encoded: Callable[[], EncodedDocuments] | None = None

    @property
    def latents(self) -> EncodedDocuments | None:
        """Its latents, where it is this process that encoded it; waits until they are on the CPU."""
        return None if self.encoded is None else self.encoded()

    @classmethod
    def of(cls, document_id: int, span: Span, text: str, template: PromptTemplate) -> Part:
        """A document in tokens.

        Args:
            text: its part of the source, with the title where that is encoded (`part_text`).
        """
        ids = template.document(document_id, text)
        return cls(NewDocument(document_id, span, len(ids)), ids, text_crc32(text))

    def write(self, segments: SegmentWriter) -> None:
        """Give the latents to a segment."""
        latents = self.latents
        assert latents is not None, "this process encoded it"
        segments.append(self.document.document_id, self.text_crc32, latents)


@dataclass(slots=True)
class SourceParts:
    """A source on its way, in its parts."""

    document: Document
    parts: list[Part] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(part.document.tokens for part in self.parts)

    @property
    def is_encoded(self) -> bool:
        return all(part.chunks for part in self.parts)

    def as_new(self) -> NewSource:
        return NewSource(self.document, tuple(part.document for part in self.parts))


def manifest_of(loaded: LoadedModel) -> Manifest:
    """The manifest of a bank that a model makes."""
    model = loaded.model
    return Manifest.of_model(model.config, model.encoder_fingerprint(), loaded.content)


def has_former_name(bank: Manifest, loaded: LoadedModel) -> bool:
    """Whether a bank is this model's and names it by the fingerprint that it had in a former version."""
    own = manifest_of(loaded)
    is_alike = replace(bank, encoder_fingerprint=own.encoder_fingerprint, backbone=own.backbone) == own
    return is_alike and is_former_fingerprint(bank.encoder_fingerprint, loaded)


def check_model(bank: Manifest, loaded: LoadedModel) -> Manifest:
    """See that a model is the one that encoded a bank, whatever content the bank keeps of documents.

    Returns:
        The manifest that the model has for this bank: its own, or that of a bank that `has_former_name`.

    Raises:
        BankMismatch: another model encoded it.
    """
    loaded = loaded.keeping(bank.content)
    if has_former_name(bank, loaded):
        return bank
    own = manifest_of(loaded)
    bank.check_same(own)
    return own


def check_content(bank: TextBank, loaded: LoadedModel) -> None:
    """
    Raises:
        BankMismatch: the model was loaded for banks with another content than this one has.
    """
    if loaded.content not in (None, bank.manifest.content):
        now = "means of chunks" if bank.manifest.content is None else f"one of {bank.manifest.content.chunk} tokens"
        raise BankMismatch(
            f"{bank.place} keeps {now}, and content_chunk is {loaded.content.chunk}; leave it out, or encode the bank "
            f"anew: memspan reencode {quoted(bank.place)} --content-chunk {quoted(str(loaded.content.chunk))}"
        )


def tokenise(document: Document, spans: Sequence[Span], ids: Iterable[int], template: PromptTemplate) -> SourceParts:
    """Give the parts of a source their ids, in tokens."""
    pairs = zip(ids, spans, strict=True)
    return SourceParts(document, [Part.of(number, span, part_text(document, span), template) for number, span in pairs])


def batches(parts: Sequence[Part], batch_tokens: int) -> Iterator[list[Part]]:
    """Parts in batches of at most `batch_tokens` with their padding, those of like length together."""
    for indices in length_batches([len(part.ids) for part in parts], batch_tokens):
        yield [parts[index] for index in indices]


def windows(
    catalog: Catalog,
    namespace: str,
    template: PromptTemplate,
    run: EncodingRun,
    after: int = 0,
    wanted: Callable[[str], bool] = lambda external_id: True,
) -> Iterator[list[Part]]:
    """What is pending of a namespace, oldest first, in windows: batches are of like length then.

    Args:
        run: a window ends with the document that reaches its `window_tokens`.
        after: only documents of larger ids.
        wanted: which sources, by their external id.
    """
    window, tokens = list[Part](), 0
    while ids := pending_ids(catalog, namespace, after, _PAGE):
        after = ids[-1]
        for stored in catalog.documents(namespace, ids):
            if not wanted(stored.external_id):
                continue
            window.append(Part.of(stored.id, stored.span, stored.encoded_text, template))
            tokens += window[-1].document.tokens
            if tokens >= run.window_tokens:
                yield window
                window, tokens = [], 0
    if window:
        yield window


@torch.inference_mode()
def encode_batch(loaded: LoadedModel, batch: Sequence[Part]) -> None:
    """Give every part its latents, on the CPU, in the bank's number format.

    A GPU is not waited for: what it computes is copied, and divided among the parts, in a thread meanwhile.
    """
    with unprepared_alone(loaded.model):
        encoded = loaded.encode([part.ids for part in batch])
    latents = (encoded.router_keys_LCW, encoded.content_LC2GD)
    copies = [start_to_host(tensor.to(LATENT_DTYPE)) for tensor in latents]
    divided = in_thread(partial(_divided, launched(latents[0].device), *copies, encoded.num_chunks))
    for place, (part, rows) in enumerate(zip(batch, encoded.num_chunks, strict=True)):
        part.encoded, part.chunks = partial(_one_of, divided, place), rows


def in_thread(do: Callable[[], _T]) -> Future[_T]:
    """Do something in a thread of its own; the future has what it gives or raises."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(do)
    pool.shutdown(wait=False)
    return future


def _one_of(future: Future[list[EncodedDocuments]], place: int) -> EncodedDocuments:
    return future.result()[place]


@torch.inference_mode()
def _divided(
    wait: Callable[[], None], keys_LCW: torch.Tensor, content_LC2GD: torch.Tensor, num_chunks: Sequence[int]
) -> list[EncodedDocuments]:
    """The latents of every document of a batch: copies, so that one does not keep the whole batch alive."""
    wait()
    of_chunk = content_LC2GD.shape[1] // keys_LCW.shape[1]
    keys = keys_LCW.split(list(num_chunks), 1)
    contents = content_LC2GD.split([of_chunk * rows for rows in num_chunks], 1)
    return [
        EncodedDocuments(key_LCW.clone(), content.clone(), (rows,))
        for key_LCW, content, rows in zip(keys, contents, num_chunks, strict=True)
    ]


Progress = Callable[[AddReport], None]


class EncodingRun:
    """Encoding on its way: what is done is counted and reported here."""

    def __init__(
        self,
        loaded: LoadedModel,
        progress: Progress = lambda report: None,
        should_stop: Callable[[], bool] = lambda: False,
        batch_tokens: int | None = None,
    ) -> None:
        """
        Args:
            batch_tokens: padded tokens per forward. Default: what the device encodes fast.

        Raises:
            MemspanError: fewer than one.
        """
        if batch_tokens is not None and batch_tokens < 1:
            raise MemspanError(f"batch_tokens must be at least 1, not {batch_tokens}; leave it out for the default")
        self.report = AddReport()
        self.loaded, self._progress, self.should_stop = loaded, progress, should_stop
        self.batch_tokens = batch_tokens or encode_tokens(loaded.model.device)
        self._before: Sequence[Part] = ()
        self._started = self._last_commit = time.monotonic()

    @property
    def window_tokens(self) -> int:
        """Tokens that are read before batches are made of them."""
        return WINDOW_BATCHES * self.batch_tokens

    @property
    def seconds_since_commit(self) -> float:
        return time.monotonic() - self._last_commit

    def committed(self) -> None:
        self._last_commit = time.monotonic()

    def count(self, **more: int) -> None:
        """Add to the report's numbers."""
        numbers = {name: getattr(self.report, name) + number for name, number in more.items()}
        self.report = replace(self.report, seconds=time.monotonic() - self._started, **numbers)

    def batches(self, parts: Sequence[Part]) -> list[list[Part]]:
        """Parts as they are encoded together."""
        return list(batches(parts, self.batch_tokens))

    def encode(self, batches: Iterable[Sequence[Part]]) -> None:
        """Encode batch by batch, unless asked to stop."""
        for batch in batches:
            if self.report.interrupted:
                return
            self._encode(batch)
            self.count_encoded([(part.document.tokens, part.chunks) for part in batch])
            self.report_progress()

    def _encode(self, batch: Sequence[Part]) -> None:
        """Encode a batch, in halves where the device has no room for it; the one before is copied meanwhile."""
        try:
            encode_batch(self.loaded, batch)
        except torch.OutOfMemoryError:
            halves = self._halves(batch)
        else:
            if self._before:
                _ = self._before[0].latents  # waited for, so that two are on the device at most
            self._before, halves = batch, ()
        for half in halves:
            self._encode(half)

    def _halves(self, batch: Sequence[Part]) -> tuple[Sequence[Part], ...]:
        """A batch in two; those to come are smaller."""
        device, longest = self.loaded.model.device, max(len(part.ids) for part in batch)
        if len(batch) == 1:
            raise MemspanError(f"{device} has no room for a document of {longest} tokens; use --device cpu")
        self.batch_tokens = max(longest, self.batch_tokens // 2)
        _log.warning("%s has no room for a batch; %d tokens are encoded at a time", device, self.batch_tokens)
        return batch[: len(batch) // 2], batch[len(batch) // 2 :]

    def count_encoded(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Add documents that are encoded to the report's numbers, by their tokens and chunks."""
        self.count(
            documents=len(sizes),
            tokens=sum(tokens for tokens, _ in sizes),
            chunks=sum(chunks for _, chunks in sizes),
            pending=-min(len(sizes), self.report.pending),
        )

    def find_pending(self, catalog: Catalog, namespaces: Iterable[str]) -> AddReport:
        """Report how much of some namespaces is not encoded; returns the report."""
        self.report = replace(self.report, pending=sum(num_pending(catalog, name) for name in namespaces))
        return self.report

    def report_progress(self) -> None:
        """Report how far it is, and ask whether to go on."""
        self._progress(self.report)
        if self.should_stop():
            self.interrupt()

    def interrupt(self) -> None:
        """Encode nothing more."""
        self.report = replace(self.report, interrupted=True)
