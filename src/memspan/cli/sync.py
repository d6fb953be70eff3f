"""`memspan sync`: a bank in step with folders, once or as long as it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memspan.cli import render
from memspan.cli.app import BankArgument, JsonOption, Model, NamespaceOption, command
from memspan.cli.importing import importing
from memspan.cli.process import INTERRUPTED, SKIPPED, refuse_torchrun, stop_flag
from memspan.errors import MemspanError

if TYPE_CHECKING:
    from memspan.bank.sync import SyncPlan, SyncReport
    from memspan.generate.memory import Memory

_MOST_SHOWN = 20


@command
def sync(
    bank: BankArgument,
    paths: Annotated[list[Path], typer.Argument(help="Folders, files, and patterns of files: 'docs/**/*.md'.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, whenever something changes, until Ctrl-C.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Forget also all files of a folder, or more than half of more than ten.")
    ] = False,
    root: Annotated[
        str | None,
        typer.Option("--root", help="What the folder is called in the bank, where it moved or the bank was moved."),
    ] = None,
    namespace: NamespaceOption = "default",
    *,
    model: Model,
    as_json: JsonOption = False,
) -> int:
    """Bring a bank in step with folders: what is new or changed is remembered, what moved is renamed, what is gone is
    forgotten. Only what these folders gave is forgotten. A .memspanignore names what is left out, as a .gitignore does.
    """
    refuse_torchrun("sync")
    if dry_run:
        return _show_plan(bank, paths, root, namespace, as_json)
    with importing():
        from memspan.text.watching import changes
    with model.open(bank, namespace, create=True) as memory, stop_flag() as stop:
        if not watch:
            return _once(memory, paths, force, root, stop, as_json)
        for _ in changes(paths, stop):
            _again(memory, paths, force, root, stop, as_json)
    return INTERRUPTED
