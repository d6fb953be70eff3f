"""`memspan bench`: measuring a size before there is a bank of that size."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from memspan.cli import render
from memspan.cli.app import JsonOption, Model, OptionGroup, RouteAnswerOption, WeightsOption, command
from memspan.cli.importing import importing
from memspan.cli.process import refuse_torchrun

bench = typer.Typer(
    help="Measure sizes before there are documents; more figures come from benchmarks/ (docs/performance.md).",
    no_args_is_help=True,
)


@bench.command()
@command
def synth(
    bank: Annotated[Path, typer.Argument(help="Folder of the new bank.")],
    shape: Annotated[str, typer.Option(help="smollm2-135m or qwen3-4b.")] = "smollm2-135m",
    chunks: Annotated[int, typer.Option(help="Rows; 1562500 of 64 tokens are 100M tokens.")] = 100_000,
    chunks_per_document: Annotated[int, typer.Option(help="Rows of every document.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the latents.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Make a bank of made-up latents at a model's shapes, to measure routing with. `ask` refuses it."""
    with importing():
        from memspan.bank.synthetic import CHUNK_SIZE, synthetic_manifest, write_synthetic
    started = time.monotonic()

    def progress(done: int) -> None:
        render.err.print(f"{done:,} of {chunks:,} chunks, {time.monotonic() - started:.0f} s", highlight=False)

    how = {"chunks_per_document": chunks_per_document, "seed": seed}
    with closing(write_synthetic(bank, synthetic_manifest(shape), chunks, progress=progress, **how)) as written:
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


def _settings(
    tokens: Annotated[str, typer.Option(help="Sizes of the memory; K is 1,000.")] = "16k,128k,1m,10m,100m",
    questions: Annotated[int, typer.Option(help="Asked of every size.")] = 5,
    injected_tokens: Annotated[int, typer.Option(help="Of the text put before the question.")] = 256,
    new_tokens: Annotated[int, typer.Option(help="Decoded behind the first, at most.")] = 32,
    route_answer: RouteAnswerOption = False,
) -> Any:
    with importing():
        from memspan.bench.latency import LatencySettings
        from memspan.eval.scale import parse_sizes
    refuse_torchrun("bench latency")
    sizes = parse_sizes(tokens, kilo=1000, least=1, option="--tokens")
    return LatencySettings(sizes, questions, injected_tokens, new_tokens, route_answer)


@bench.command()
@command
def latency(
    settings: Annotated[Any, OptionGroup(_settings)],
    folder: Annotated[Path, typer.Option(help="Where the made-up banks are kept.")] = Path("latency-banks"),
    png: Annotated[Path | None, typer.Option(help="Draw the curve into this file.")] = None,
    *,
    model: Model,
    weights: WeightsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the time to the first token while the memory grows, over made-up latents of the model's shapes."""
    with importing():
        from memspan.bench.latency import draw_latency, measure_latency
        from memspan.eval.plots import check_plots
    if png is not None:
        check_plots()
    loaded = replace(model, weights=weights).load()
    figures = measure_latency(loaded, settings, folder, tell=lambda line: render.err.print(line, highlight=False))
    if png is not None:
        draw_latency(png, figures)
    if as_json:
        render.as_json(figures)
    else:
        _show_latency(figures)


def _show_latency(figures: Mapping[str, Any]) -> None:
    """Medians, a line for every size; then the ratio."""
    from memspan.bench.latency import STAGES

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
