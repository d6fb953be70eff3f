"""What the commands of `memspan bench` do."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from memspan.bank.synthetic import CHUNK_SIZE, synthetic_manifest, write_synthetic
from memspan.cli import render
from memspan.cli.commands import show


def synth(bank: Path, shape: str, chunks: int, chunks_per_document: int, seed: int, as_json: bool) -> None:
    started = time.monotonic()

    def progress(done: int) -> None:
        render.err.print(f"{done:,} of {chunks:,} chunks, {time.monotonic() - started:.0f} s", highlight=False)

    written = write_synthetic(
        bank,
        synthetic_manifest(shape),
        chunks,
        chunks_per_document=chunks_per_document,
        seed=seed,
        progress=progress,
    )
    with closing(written):
        counts = written.catalog.counts()
    values = {
        "bank": str(bank),
        "made_up": True,
        "shape": shape,
        "documents": counts.documents,
        "chunks": counts.chunks,
        "tokens_stood_for": chunks * CHUNK_SIZE,
        "segments": counts.segments,
    }
    show(values, as_json)
