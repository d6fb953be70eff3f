"""What the commands of `memspan bench` do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from memspan.bank.synthetic import CHUNK_SIZE, synthetic_manifest, write_synthetic
from memspan.bench.latency import STAGES, LatencySettings, draw_latency, measure_latency
from memspan.cli import render
from memspan.cli.choices import ModelChoice
from memspan.cli.process import refuse_torchrun
from memspan.eval.plots import check_plots
from memspan.eval.scale import parse_sizes

__all__ = ["ModelChoice", "latency", "synth"]


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
    render.show(values, as_json)


def latency(
    model: ModelChoice,
    tokens: str,
    questions: int,
    folder: Path,
    injected_tokens: int,
    new_tokens: int,
    route_answer: bool,
    png: Path | None,
    as_json: bool,
) -> None:
    refuse_torchrun("bench latency")
    sizes = parse_sizes(tokens, kilo=1000, least=1, option="--tokens")
    settings = LatencySettings(sizes, questions, injected_tokens, new_tokens, route_answer)
    if png is not None:
        check_plots()
    figures = measure_latency(model.load(), settings, folder, tell=lambda line: render.err.print(line, highlight=False))
    if png is not None:
        draw_latency(png, figures)
    if as_json:
        render.as_json(figures)
    else:
        _show_latency(figures)


def _show_latency(figures: Mapping[str, Any]) -> None:
    """Medians, a line for every size; then the ratio."""
    columns = ("tokens", "first token (s)", "least", "most", *STAGES, "other", "CPU s", "then tokens/s")
    rows = []
    for point in figures["points"]:
        waited, pace = point["first_token"], point["decode_tokens_per_second"]
        stages = [point["stages"][stage]["median"] for stage in (*STAGES, "other")]
        seconds = [waited["median"], waited["least"], waited["most"], *stages, point["first_token_cpu"]["median"]]
        shown = (f"{value:.3f}" for value in seconds)
        rows.append((f"{point['tokens']:,}", *shown, f"{pace['median']:.1f}" if pace else "-"))
    render.table(columns, [columns, *rows] if not render.out.is_terminal else rows)
    if found := figures["ratio"]:
        render.out.print(
            f"first token at {found['to']:,} tokens over {found['from']:,}: {found['first_token']:.2f} "
            f"(wanted: at most {found['at_most']:g})"
        )
