"""The frozen values that cross the borders between packages.

Shape letters used in names throughout the project: B sequences, T tokens, S cached plus new tokens, N documents,
C chunks (rows of a bank), M memory rows an attention call sees, H query heads, G key-value heads, D head size,
W = G*D (width of a routing key), L MSA layers, P tokens per chunk, k documents selected.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from memspan.dates import date_key, normal_date

if TYPE_CHECKING:
    import torch

NEVER = "never"
"""What `expires` is of a document that is to have no expiry any more."""

_DEEPEST = 100
"""Objects and arrays within each other: SQLite reads no more than a thousand, and people write fewer than ten."""

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]


@dataclass(frozen=True, slots=True)
class Document:
    """A text to remember, as the caller knows it.

    Attributes:
        external_id: the caller's name for it (a path, a key); one bank holds each at most once.
        text: the original text, kept verbatim. Never empty.
        title: a short name, may be empty. It is encoded with the text.
        metadata: JSON values the caller wants back with the evidence, and may filter by.
        date: ISO 8601 date (a year, a month or a day) or time the text speaks of or was written (see `memspan.dates`).
            None: the time it is added.
        expires: ISO 8601 date (its beginning, in UTC) or time from which on it is not seen, or "never". None: as it is
            in the bank; of a new one never.
        pinned: True: it does not expire, whatever `expires` says. None: as it is in the bank; of a new one False.
    """

    external_id: str
    text: str
    title: str = ""
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    date: str | None = None
    expires: str | None = None
    pinned: bool | None = None

    def __post_init__(self) -> None:
        for name in ("external_id", "text", "title"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(f"the {name} of a Document is a text, not {type(value).__name__} ({str(value)[:80]!r})")
        if not self.external_id:
            raise ValueError("a Document needs an external_id that is not empty")
        if not self.text.strip():
            raise ValueError(f"document {self.external_id!r} has no text")
        for value in (self.external_id, self.title, self.text):
            if "\0" in value or not is_unicode(value):
                raise ValueError(f"document {self.external_id!r} holds NUL characters or lone surrogates")
        self._check_metadata()
        if not isinstance(self.pinned, bool | None):
            raise TypeError(f"document {self.external_id!r}: pinned is True, False or None, not {self.pinned!r}")
        for name in ("date", "expires"):
            value = getattr(self, name)
            if value is not None and (name, value) != ("expires", NEVER):
                try:
                    date = normal_date(value)
                    object.__setattr__(self, name, date if name == "date" else date_key(date))
                except ValueError as error:
                    raise ValueError(f"document {self.external_id!r}: {error}") from error

    def _check_metadata(self) -> None:
        if self.metadata == {}:
            return
        try:
            text = json.dumps(dict(self.metadata), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"the metadata of document {self.external_id!r} are not JSON: {error}") from error
        if text.count("[") + text.count("{") > _DEEPEST and _is_deeper(dict(self.metadata), _DEEPEST):
            raise ValueError(f"the metadata of document {self.external_id!r} are nested more than {_DEEPEST} deep")
        if not is_unicode(text) or "\\u0000" in text:
            raise ValueError(f"the metadata of document {self.external_id!r} hold NUL characters or lone surrogates")

    @property
    def content_hash(self) -> str:
        """sha256 over title, text, metadata and date; equal hashes under one external_id mean nothing changed."""
        return _sha256([self.title, self.text, dict(self.metadata), self.date])

    @property
    def text_hash(self) -> str:
        """sha256 over what is encoded, title and text; with an equal one, latents need not be computed again."""
        return _sha256([self.title, self.text])


def _is_deeper(value: JSON, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deeper(one, levels - 1) for one in inner)


def _sha256(values: JSON) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8 (it has no lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file, or a record of one, that gave no document, or one without its date, which could not be read.

    Attributes:
        source: the file's path; for a record with the line it begins on, `path#line`.
        reason: why, for people.
    """

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Version:
    """A document as it was added once.

    Attributes:
        recorded_at: when the bank got it: UTC, ISO 8601 to the microsecond.
        superseded_at: when another version took its place; None of the one that holds.
    """

    document: Document
    recorded_at: str
    superseded_at: str | None


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier turn of the conversation that a question belongs to.

    Attributes:
        question: the user's message; empty where the model spoke first.
        answer: the model's reply. Empty: the message stands before the next question (instructions, say).
    """

    question: str
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of characters, `text[start:end]`."""

    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class EncodedDocuments:
    """The latent memory of N documents: what is kept of them (paper 3.2), one row per chunk.

    Attributes:
        router_keys_LCW: pooled routing keys, ready to be scored by a dot product (unit length per head for cosine).
        content_LC2GD: pooled K (index 0 of the third dimension, after RoPE) and V (index 1), side by side.
        num_chunks: chunks of each document, in order; sums to C.
    """

    router_keys_LCW: torch.Tensor
    content_LC2GD: torch.Tensor
    num_chunks: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return self.router_keys_LCW.nbytes + self.content_LC2GD.nbytes


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What one MSA layer may attend to besides the local tokens, for a batch of B questions.

    Rows that belong to no document (`mask_BM` False) are zero-filled, never uninitialized: a NaN in a masked row
    would poison the softmax.

    Attributes:
        keys_BGMD, values_BGMD: content of the selected documents' chunks, in bank order.
        mask_BM: True where a row is a chunk of a selected document.
        doc_ids: per question the selected documents, best first.
        scores: per question their routing scores (eq. 2), aligned with `doc_ids`.
    """

    keys_BGMD: torch.Tensor
    values_BGMD: torch.Tensor
    mask_BM: torch.Tensor
    doc_ids: tuple[tuple[int, ...], ...]
    scores: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """A document that stands behind an answer.

    Attributes:
        document_id: the bank's permanent id, the number the model reads.
        external_id, title: as the caller gave them.
        text: the text that was put before the model (a part of the source, where that was split).
        span: where `text` stands in the source's original text.
        score: fit to the question, 0 to 1, independent of the other documents. By routing it is the mean cosine over
            the MSA layers; a layer that saw only other documents counts with its last one. By words it is the BM25
            score bent to 0..1, in `hybrid` the weighted sum of both. Comparable between questions of one bank and
            selector. An untrained router's score means nothing. With another similarity than cosine, and with
            selectors without such a score, it is comparable within one answer only.
        layers: the number of MSA layers that attended to it while answering. In a search without an answer, the number
            that routed to it, or None where the selector does not route.
        metadata: as the caller gave it.
        date: the document's date, or the time it was added.
        pages: numbers, from 1, of the pages (or slides, or sheets) that `text` stands on; empty for a source without
            pages.
    """

    document_id: int
    external_id: str
    title: str
    text: str
    span: Span
    score: float
    layers: int | None
    metadata: Mapping[str, JSON]
    date: str
    pages: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerRouting:
    """What one MSA layer routed one question to: documents, best first, and their scores (eq. 2)."""

    layer: int
    document_ids: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Round:
    """One look into the memory (paper 3.5).

    Attributes:
        number: from 1.
        selector: who chose: router, lexical, hybrid, or generate (the model itself).
        query: what was searched for; for router and generate the question, with which the texts found before route.
        routed: per MSA layer what was routed to when choosing; empty for lexical.
        chosen: the documents whose text went in, best first (for generate: as they were named).
        written: what the model wrote to name them; empty for the other selectors.
        injected: the text that went in.
        num_written_tokens, num_injected_tokens: of those two.
        malformed: runs of characters that are no document id where ids belong.
        unknown: ids named of which there is no document in the question's scope.
        repeated: ids named again, in this round or after their text went in. They are passed over.
        left_out: documents chosen for which there was no room, or that were over a limit.
        reranker: who ranked the first documents anew before the best were chosen; "none": nobody. Scores are those
            of the selector.
        ended: "more" (another round follows), "enough" (the model said so, or what was named is no document),
            "nothing" (nothing new was found), "room" (no text fits any more), "limit" (of rounds, documents, tokens).
        timings: seconds by stage: select, rerank; for generate prefill and decode. Shared by the questions of a batch.
    """

    number: int
    selector: str
    query: str
    routed: tuple[LayerRouting, ...] = ()
    chosen: tuple[Evidence, ...] = ()
    written: str = ""
    injected: str = ""
    num_written_tokens: int = 0
    num_injected_tokens: int = 0
    malformed: int = 0
    unknown: int = 0
    repeated: int = 0
    left_out: int = 0
    reranker: str = "none"
    ended: str = "more"
    timings: Mapping[str, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Citation:
    """A sentence of an answer (or a part of one), and a document it rests on.

    Attributes:
        span: where it stands in the answer's text.
        supported: whether documents hold its words; see `memspan.generate.citing` for the check and its limits.
        support: the share of its words that they hold.
        evidence: the document's place in the answer's evidence, from 1. None, as all that follows, without support.
        document_id, external_id: of the document.
        source: where the source's original text says it.
        page: of the source, where its metadata have one.
    """

    span: Span
    supported: bool
    support: float
    evidence: int | None = None
    document_id: int | None = None
    external_id: str | None = None
    source: Span | None = None
    page: int | str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated text with its evidence.

    Attributes:
        text: what the model wrote, without the end marker and without white space around it. Of another model's text
            (`answerer`), marks that their documents do not support are taken out.
        evidence: the documents put before it, best first.
        selector: who chose them: router, lexical, hybrid or generate.
        finish_reason: "stop" (the model ended), "length" (max_new_tokens reached), "stop_string" or "tool_calls".
        num_prompt_tokens, num_new_tokens: of the active context and of the answer; of another model as its server
            counts them, 0 where it does not say.
        timings: seconds by stage: select, prefill, routing, fetch (of what was routed to), decode. Time to the first
            token is what stands before decode. Stages of a batch are shared by its questions.
        rounds: what was looked up, and how, before the answer.
        routed: per MSA layer the documents whose latents the answer was written with.
        received_bytes: what other ranks sent to this process meanwhile (Memory Parallel), for a batch in all; 0 for one
            process.
        pending: documents that were not encoded yet when it was asked: they were found by their words only.
        answered: False where nothing was found, nothing was written, or the text says that the documents do not say.
        citations: every sentence of the text with a document it rests on, or as one that none supports.
        removed_citations: marks of another model that were taken out, because their documents do not support them.
        answerer: the other model that wrote the text; empty: the memory model.
        tool_calls: what it wants called, as OpenAI writes it, of tools that were passed on to it.
    """

    question: str
    text: str
    evidence: tuple[Evidence, ...]
    selector: str
    finish_reason: str
    num_prompt_tokens: int
    num_new_tokens: int
    timings: Mapping[str, float]
    rounds: tuple[Round, ...] = ()
    routed: tuple[LayerRouting, ...] = ()
    received_bytes: int = 0
    pending: int = 0
    answered: bool = True
    citations: tuple[Citation, ...] = ()
    removed_citations: int = 0
    answerer: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class AddReport:
    """What an `add` (or a `reencode`) did.

    Attributes:
        added: sources new to the bank. updated: sources that replaced an older one, or its metadata alone.
        unchanged: sources that were there already, with the same content.
        documents, tokens, chunks: encoded (a long source is several documents), with those left from before.
        characters: of the texts read; in a `reencode` of those encoded.
        seconds: spent reading, encoding and writing.
        pending: documents of the namespace that are not encoded yet: they are found by words only.
        interrupted: True if it was stopped before the corpus was done.
        skipped: files, and records of them, that gave no document, where files were added (`Memory.add_files`).
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
    skipped: tuple[Skipped, ...] = ()
    pending: int = 0

    def and_then(self, later: AddReport) -> AddReport:
        """The report of both: numbers are summed, but for what is pending at last."""
        summed = ("added", "updated", "unchanged", "documents", "tokens", "chunks", "characters", "seconds", "skipped")
        return replace(later, **{name: getattr(self, name) + getattr(later, name) for name in summed})
