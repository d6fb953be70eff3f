"""The options of `memspan bench`: measuring a size before there is a bank of that size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memspan.cli.app import (
    AdapterOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    RouteAnswerOption,
    WeightsOption,
    commands_of,
)

bench = typer.Typer(
    help="Measure sizes before there are documents; more figures come from benchmarks/ (docs/performance.md).",
    no_args_is_help=True,
)


@bench.command()
def synth(
    bank: Annotated[Path, typer.Argument(help="Folder of the new bank.")],
    shape: Annotated[str, typer.Option(help="smollm2-135m or qwen3-4b.")] = "smollm2-135m",
    chunks: Annotated[int, typer.Option(help="Rows; 1562500 of 64 tokens are 100M tokens.")] = 100_000,
    chunks_per_document: Annotated[int, typer.Option(help="Rows of every document.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the latents.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Make a bank of made-up latents at a model's shapes, to measure routing with. `ask` refuses it."""
    with commands_of("bench_commands") as bench_commands:
        bench_commands.synth(bank, shape, chunks, chunks_per_document, seed, as_json)


@bench.command()
def latency(
    tokens: Annotated[str, typer.Option(help="Sizes of the memory; K is 1,000.")] = "16k,128k,1m,10m,100m",
    questions: Annotated[int, typer.Option(help="Asked of every size.")] = 5,
    folder: Annotated[Path, typer.Option(help="Where the made-up banks are kept.")] = Path("latency-banks"),
    injected_tokens: Annotated[int, typer.Option(help="Of the text put before the question.")] = 256,
    new_tokens: Annotated[int, typer.Option(help="Decoded behind the first, at most.")] = 32,
    route_answer: RouteAnswerOption = False,
    png: Annotated[Path | None, typer.Option(help="Draw the curve into this file.")] = None,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    weights: WeightsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the time to the first token while the memory grows, over made-up latents of the model's shapes."""
    with commands_of("bench_commands") as bench_commands:
        choice = bench_commands.ModelChoice(model, adapter, dtype, device, weights)
        bench_commands.latency(
            choice, tokens, questions, folder, injected_tokens, new_tokens, route_answer, png, as_json
        )
