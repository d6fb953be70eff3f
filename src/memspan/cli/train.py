"""The options of `memspan train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memspan.cli.app import JsonOption, commands_of


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file; see recipes/ and docs/training.md.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As phases.warmup.lr=1e-3 or corpus=docs/.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run. Default: runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Load everything, say what would be done, stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train routers, and what else a recipe names, into an adapter. Ctrl-C saves; --resume goes on exactly there."""
    with commands_of("train_commands") as train_commands:
        code = train_commands.train(recipe, changes or [], out, resume, dry_run, as_json)
    raise typer.Exit(code)
