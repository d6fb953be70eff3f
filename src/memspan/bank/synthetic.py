"""Banks of made-up latents at a model's shapes, to measure what a bank of that size costs before there is one.

Routing keys are drawn by lot around a direction that all share and centers that some share, as keys of real text
are; content is zeros in files with holes, which take no space. Such a bank's encoder fingerprint is `synthetic`: no
model fits it, so that no question is answered from it.
"""

from __future__ import annotations

import dataclasses
import shutil
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path

import torch

from memspan.bank import edits
from memspan.bank.bank import MAX_SEGMENT_BYTES, MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE
from memspan.bank.edits import NewDocument, NewSource
from memspan.bank.files import write_zeros_synced
from memspan.bank.folder import RowLocation, WrittenSegments, segment_paths, segments_folder, text_crc32
from memspan.bank.manifest import FORMAT_VERSION, SYNTHETIC, Manifest
from memspan.bank.segment import LATENT_DTYPE, publish_segment
from memspan.errors import BankError
from memspan.files import publish
from memspan.ops.scoring import fold_keys
from memspan.text.template import part_text
from memspan.types import Document, Span

# MSA layers (the latter half), key heads and their size, and query heads of two models.
SHAPES = {"smollm2-135m": (range(15, 30), 3, 64, 9), "qwen3-4b": (range(18, 36), 8, 128, 32)}
CHUNK_SIZE = 64
_CENTRES = 1024
# Lengths of what a key is a sum of: what all share, what a center's share, its own.
_SHARED, _CENTRE, _OWN = 0.5, 0.6, 1.0
# What of a manifest decides what the rows of a bank are.
_SHAPE = ("msa_layers", "chunk_size", "num_kv_heads", "head_dim", "similarity", "dtype")


def synthetic_manifest(shape: str) -> Manifest:
    """
    Raises:
        BankError: there is no such shape.
    """
    if shape not in SHAPES:
        raise BankError(f"the shape must be one of {', '.join(SHAPES)}, not {shape!r}")
    layers, num_kv_heads, head_dim, _ = SHAPES[shape]
    return Manifest(
        format_version=FORMAT_VERSION,
        encoder_fingerprint=SYNTHETIC,
        msa_layers=tuple(layers),
        chunk_size=CHUNK_SIZE,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        similarity="cosine",
        document_prefix="",
        document_suffix="",
        max_document_tokens=512,
        dtype=str(LATENT_DTYPE).removeprefix("torch."),
        backbone=f"nothing: made-up latents at the shapes of {shape}",
    )


def made_up(manifest: Manifest) -> Manifest:
    """The manifest of a bank of made-up latents at the shapes of a real one."""
    backbone = f"nothing: made-up latents at the shapes of {manifest.backbone}"
    return dataclasses.replace(manifest, encoder_fingerprint=SYNTHETIC, backbone=backbone)


def disk_bytes(manifest: Manifest, num_chunks: int) -> int:
    """What such a bank takes on disk at most, without its catalog: routing keys in bfloat16 and in 8 bits."""
    layers, width = len(manifest.msa_layers), manifest.key_width
    return num_chunks * layers * (LATENT_DTYPE.itemsize * width + width + torch.float32.itemsize)


def open_or_write_synthetic(
    folder: Path, manifest: Manifest, num_chunks: int, *, progress: Callable[[int], None] = lambda chunks: None
) -> MemoryBank:
    """Open the bank of made-up latents in a folder, or make it there; what was not finished is made again.

    Writes `folder/`, and until that is whole `folder.partial/`, which it removes if there is one.

    Args:
        manifest: of `synthetic_manifest` or `made_up`.

    Raises:
        BankError: the folder holds another bank, or as `write_synthetic`.
    """
    if not MemoryBank.exists(folder):
        partial = folder.with_name(f"{folder.name}.partial")
        if partial.exists():
            shutil.rmtree(partial)
        write_synthetic(partial, manifest, num_chunks, progress=progress).close()
        publish({partial: folder})
    bank = MemoryBank.open(folder)
    try:
        _check_fits(bank, manifest, num_chunks)
    except BankError:
        bank.close()
        raise
    return bank


def _check_fits(bank: MemoryBank, manifest: Manifest, num_chunks: int) -> None:
    found, remedy = bank.manifest, "name another folder, or remove it"
    if found.encoder_fingerprint != SYNTHETIC:
        raise BankError(f"{bank.folder} holds a bank of documents, not one of made-up latents; {remedy}")
    chunks = bank.catalog.counts().chunks
    if chunks != num_chunks:
        raise BankError(f"{bank.folder} has {chunks:,} made-up chunks, not {num_chunks:,}; {remedy}")
    for name in _SHAPE:
        has, wanted = getattr(found, name), getattr(manifest, name)
        if has != wanted:
            raise BankError(f"the made-up latents of {bank.folder} have {name} {has}, the model {wanted}; {remedy}")


def write_synthetic(
    folder: str | Path,
    manifest: Manifest,
    num_chunks: int,
    *,
    chunks_per_document: int = 2,
    seed: int = 0,
    max_segment_bytes: int = MAX_SEGMENT_BYTES,
    progress: Callable[[int], None] = lambda chunks: None,
) -> MemoryBank:
    """Make a bank of `num_chunks` made-up rows.

    Writes what `MemoryBank.create` and `SegmentWriter` write. A segment is committed at a time; one is in memory.

    Args:
        manifest: of `synthetic_manifest` or `made_up`.
        progress: called with the number of chunks written so far.

    Raises:
        BankError: a number is not positive, or as `MemoryBank.create`.
    """
    if min(num_chunks, chunks_per_document) < 1:
        raise BankError(f"a bank needs chunks and documents of chunks, not {num_chunks} and {chunks_per_document}")
    bank = MemoryBank.create(folder, manifest)
    keys = _Keys(manifest, seed)
    per_segment = max(1, max_segment_bytes // manifest.row_bytes // chunks_per_document) * chunks_per_document
    with bank.locked():
        for first in range(0, num_chunks, per_segment):
            count = min(per_segment, num_chunks - first)
            _write_segment(bank, keys.draw(count), chunks_per_document)
            progress(first + count)
    return bank


class _Keys:
    """Draws routing keys, `[L, rows, W]`, of unit length per head."""

    def __init__(self, manifest: Manifest, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._shape = manifest.num_kv_heads, manifest.head_dim
        of_layers = (len(manifest.msa_layers), _CENTRES, *self._shape)
        shared = _SHARED * torch.randn((of_layers[0], 1, *self._shape), generator=self._generator)
        self._centres = shared + _CENTRE * torch.randn(of_layers, generator=self._generator)

    def draw(self, rows: int) -> torch.Tensor:
        parts = []
        for centres_NGD in self._centres:
            which = torch.randint(_CENTRES, (rows,), generator=self._generator)
            own_CGD = torch.randn((rows, *self._shape), generator=self._generator)
            parts.append(fold_keys(own_CGD.mul_(_OWN).add_(centres_NGD[which]), "cosine").to(LATENT_DTYPE))
        return torch.stack(parts)


def _write_segment(bank: MemoryBank, keys_LCW: torch.Tensor, chunks_per_document: int) -> None:
    """Write rows as documents that follow one another, all of one source, and commit them."""
    manifest, folder, name = bank.manifest, segments_folder(bank.folder), uuid.uuid4().hex
    num_rows, first_id = keys_LCW.shape[1], bank.catalog.next_document_id()
    firsts = list(range(0, num_rows, chunks_per_document))
    source = Document(f"synthetic-{first_id}", "s" * len(firsts))
    text_crc = text_crc32(part_text(source, Span(0, 1)))
    places = [
        RowLocation(first_id + place, name, first, min(chunks_per_document, num_rows - first), text_crc)
        for place, first in enumerate(firsts)
    ]
    documents_N4 = torch.tensor([(place.document_id, place.first_row, place.rows, text_crc) for place in places])
    row_shape = (2, manifest.num_kv_heads, manifest.head_dim)
    row_bytes = manifest.row_bytes // 3 // len(manifest.msa_layers) * 2
    content = write_zeros_synced(
        segment_paths(folder, name)[1], {f"layer_{layer}": (num_rows, *row_shape) for layer in manifest.msa_layers}
    )
    crc_of = {rows: zlib.crc32(bytes(rows * row_bytes)) for rows in {place.rows for place in places}}
    content_crc32 = [[crc_of[place.rows] for place in places]] * len(manifest.msa_layers)
    files = publish_segment(folder, name, manifest.msa_layers, documents_N4, keys_LCW, content, content_crc32)
    tokens = manifest.chunk_size * chunks_per_document
    parts = tuple(
        NewDocument(place.document_id, Span(number, number + 1), tokens) for number, place in enumerate(places)
    )
    edits.add_sources(bank.catalog, DEFAULT_NAMESPACE, [NewSource(source, parts)], WrittenSegments([files], places), [])
