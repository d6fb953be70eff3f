"""The options of `memspan bench`: what is needed to measure a size before there is a bank of that size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memspan.cli.app import JsonOption, errors_told

bench = typer.Typer(
    help="Make what measurements need; the figures come from benchmarks/ (docs/performance.md).", no_args_is_help=True
)


@bench.callback()
def _of_bench() -> None:
    """Keeps `synth` a command of its own, though it is the only one."""


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
    with errors_told():
        from memspan.cli import bench_commands

        bench_commands.synth(bank, shape, chunks, chunks_per_document, seed, as_json)
