"""The frozen values that cross the borders between packages.

Shape letters used in names throughout the project: B sequences, T tokens, S cached plus new tokens, N documents,
C chunks (rows of a bank), M memory rows an attention call sees, H query heads, G key-value heads, D head size,
W = G*D (width of a routing key), L MSA layers, P tokens per chunk, k documents selected.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]


@dataclass(frozen=True, slots=True)
class Document:
    """A text to remember, as the caller knows it.

    Attributes:
        external_id: the caller's name for it (a path, a key); one bank holds each at most once.
        text: the original text, kept verbatim. Never empty.
        title: a short name, may be empty. It is encoded with the text.
        metadata: JSON values the caller wants back with the evidence.
    """

    external_id: str
    text: str
    title: str = ""
    metadata: Mapping[str, JSON] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.external_id:
            raise ValueError("a Document needs an external_id that is not empty")
        if not self.text.strip():
            raise ValueError(f"document {self.external_id!r} has no text")
        for value in (self.external_id, self.title, self.text):
            if "\0" in value or not is_unicode(value):
                raise ValueError(f"document {self.external_id!r} holds NUL characters or lone surrogates")

    @property
    def content_hash(self) -> str:
        """sha256 over title, text and metadata; equal hashes under one external_id mean nothing changed."""
        content = json.dumps([self.title, self.text, dict(self.metadata)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8 (it has no lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What one MSA layer may attend to besides the local tokens, for a batch of B questions.

    Rows that belong to no document (`mask_BM` False) are zero-filled, never uninitialised: a NaN in a masked row
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
        score: of the selector that chose it; comparable within one answer only.
        layers: how many MSA layers attended to it while answering; in a search without an answer, how many routed to
            it, or None where the selector does not route.
        metadata: as the caller gave it.
    """

    document_id: int
    external_id: str
    title: str
    text: str
    span: Span
    score: float
    layers: int | None
    metadata: Mapping[str, JSON]


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated text with its evidence.

    Attributes:
        text: what the model wrote, without the end marker and without white space around it.
        evidence: the documents put before it, best first.
        selector: who chose them: router, lexical or hybrid.
        finish_reason: "stop" (the model ended), "length" (max_new_tokens reached) or "stop_string".
        num_prompt_tokens, num_new_tokens: of the active context and of the answer.
        timings: seconds by stage: select, prefill, decode. Stages of a batch are shared by its questions.
    """

    question: str
    text: str
    evidence: tuple[Evidence, ...]
    selector: str
    finish_reason: str
    num_prompt_tokens: int
    num_new_tokens: int
    timings: Mapping[str, float]
