"""`memspan bench`: measuring a size before there is a bank of that size."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
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


@bench.command()
@command
def gpu(
    device: Annotated[str, typer.Option(help="Torch device; with cpu the same code runs, slowly.")] = "cuda",
    tokens: Annotated[str, typer.Option(help="Sizes of the memory; K is 1,000.")] = "1m,10m,100m",
    steps: Annotated[str, typer.Option(help="Which are run: routing, model, decode, encode.")] = "all",
    seconds: Annotated[float, typer.Option(help="For all steps together.")] = 480,
    out: Annotated[Path, typer.Option(help="Where the figures and the made-up model go.")] = Path("gpu-check"),
    as_json: JsonOption = False,
) -> int:
    """Measure a GPU: routing over made-up keys, then decoding and encoding with a random model of Qwen3-4B's shapes."""
    with importing():
        from memspan.bench.gpu import check_gpu, chosen_steps, run_all
        from memspan.bench.gpu import steps as all_steps
        from memspan.eval.scale import parse_sizes
    refuse_torchrun("bench gpu")
    sizes = parse_sizes(tokens, kilo=1000, least=1, option="--tokens")
    names = chosen_steps(steps)
    check_gpu(device)
    out.mkdir(parents=True, exist_ok=True)
    reports = list[dict[str, Any]]()
    for report in run_all(all_steps(out.resolve(), device, sizes), names, out.resolve(), seconds):
        reports.append(report)
        render.err.print(f"{report['step']}: {'well' if report['ok'] else 'failed'}, {report['seconds']} s")
    values = {"device": device, "steps": reports}
    render.as_json(values) if as_json else _show_steps(reports)
    return int(not all(report["ok"] for report in reports))


def _show_steps(reports: Sequence[Mapping[str, Any]]) -> None:
    """What every step has found, or its last words."""
    for report in reports:
        found = report.get("figures") or report.get("note") or "\n".join(report["output"])
        render.out.print(f"{report['step']} ({report['seconds']} s):", highlight=False)
        text = found if isinstance(found, str) else json.dumps(found, indent=2)
        render.out.print(text, markup=False, highlight=False, soft_wrap=True)


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
