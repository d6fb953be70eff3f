"""What remembering a corpus will take, before it is done: hours and bytes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from memspan.bank.encode import manifest_of
from memspan.model.convert import LoadedModel
from memspan.model.runtime import encode_tokens
from memspan.ops.pooling import num_chunks
from memspan.text.packing import BATCH_TOKENS, length_batches
from memspan.text.parts import split_document
from memspan.text.template import part_text
from memspan.types import Document

_SAMPLE_TOKENS = 4 * BATCH_TOKENS
# Catalog bytes per byte of text: the text itself and its full-text index (measured, docs/LOG.md).
CATALOG_FACTOR = 2.4


@dataclass(frozen=True, slots=True)
class Estimate:
    """Cost of encoding a corpus with one model on this machine.

    Attributes:
        sources, documents, tokens, chunks: counted, all of the corpus.
        tokens_per_second: measured on a sample of it.
        seconds: of encoding, tokens over that rate.
        latent_bytes: exact size of routing keys and content. catalog_bytes: text and index, estimated.
        routing_key_bytes: the part of `latent_bytes` that every question reads.
    """

    sources: int
    documents: int
    tokens: int
    chunks: int
    tokens_per_second: float
    seconds: float
    latent_bytes: int
    routing_key_bytes: int
    catalog_bytes: int


def estimate(loaded: LoadedModel, documents: Iterable[Document]) -> Estimate:
    """Count a corpus in the model's tokens and time the encoding of a sample of it (its first few thousand tokens)."""
    config, template = loaded.model.config, loaded.template
    sources = parts = tokens = chunks = text_bytes = 0
    sample: list[list[int]] = []
    for document in documents:
        sources += 1
        text_bytes += len(document.text.encode())
        for span in split_document(document, template, config.max_document_tokens):
            parts += 1  # also the id it would get in a new bank
            ids = template.document(parts, part_text(document, span))
            tokens += len(ids)
            chunks += num_chunks(len(ids), config.chunk_size)
            if sum(map(len, sample)) < _SAMPLE_TOKENS:
                sample.append(ids)
    rate = _tokens_per_second(loaded, sample)
    manifest = manifest_of(loaded)
    return Estimate(
        sources=sources,
        documents=parts,
        tokens=tokens,
        chunks=chunks,
        tokens_per_second=rate,
        seconds=tokens / rate if rate else 0.0,
        latent_bytes=chunks * manifest.row_bytes,
        routing_key_bytes=chunks * manifest.key_bytes,
        catalog_bytes=int(text_bytes * CATALOG_FACTOR),
    )


@torch.inference_mode()
def _tokens_per_second(loaded: LoadedModel, sample: list[list[int]]) -> float:
    if not sample:
        return 0.0
    at_once = encode_tokens(loaded.model.device)
    batches = [[sample[index] for index in batch] for batch in length_batches(list(map(len, sample)), at_once)]
    loaded.encode(batches[-1])  # the first forward also warms up
    started = time.perf_counter()
    for batch in batches:
        loaded.encode(batch)
    return sum(map(len, sample)) / (time.perf_counter() - started)
