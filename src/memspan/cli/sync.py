"""`memspan sync`: a bank in step with folders, once or as long as it runs."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memspan.cli import render
from memspan.cli.app import BankArgument, JsonOption, Model, NamespaceOption, ReadingOptions, command
from memspan.cli.process import SKIPPED, refuse_torchrun, stop_flag
from memspan.cli.stored import open_texts
from memspan.errors import MemspanError
from memspan.places import BankPlace

if TYPE_CHECKING:
    from memspan.bank.sync import SyncPlan, SyncReport
    from memspan.generate.memory import Memory
    from memspan.text.readers import ReadOptions
    from memspan.types import AddReport


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
        typer.Option("--root", help="Name of the folder in the bank, where the folder or the bank was moved."),
    ] = None,
    namespace: NamespaceOption = "default",
    *,
    later: Annotated[
        bool, typer.Option("--later", help="End when the texts can be found; `memspan encode` does the rest.")
    ] = False,
    model: Model,
    how: ReadingOptions,
    as_json: JsonOption = False,
) -> int:
    """Bring a bank in step with folders: remember new and changed files, forget files that are gone.

    A moved file gets its new id, and is not encoded again. Only documents of these folders are forgotten. A file
    .memspanignore names files to leave out of its folder, as a .gitignore does.
    """
    refuse_torchrun("sync")
    plan = _plan(bank, paths, namespace, root, how.options)  # its errors come before anything is loaded
    if dry_run:
        return _show_plan(plan, as_json, force)
    from memspan.text.watching import changes

    with model.open(bank, namespace, create=True) as memory, stop_flag() as stop:
        options = {"root": root, "force": force, "later": later, "should_stop": stop.is_set}
        options |= dataclasses.asdict(how.options)
        if not watch:
            done = _once(memory, paths, options, as_json)
            return stop.code if done.interrupted else SKIPPED if done.skipped else 0
        for count, _ in enumerate(changes(paths, stop.is_set, [bank.folder])):
            try:
                _once(memory, paths, options, as_json, quiet=count > 0)
            except MemspanError as error:  # the folder may come back, the other writer end
                render.err.print(f"error: {error}")
    return stop.code


def _plan(bank: BankPlace, paths: list[Path], namespace: str, root: str | None, options: ReadOptions) -> SyncPlan:
    """What differs from a bank; from an empty one where there is none."""
    from memspan.bank.sync import Sync
    from memspan.bank.texts import TextBank

    with ExitStack() as stack:
        opened = stack.enter_context(open_texts(bank)) if TextBank.exists_or_fits(bank) else None
        if opened is not None:
            opened.check_owned("changed")
        catalog = None if opened is None else stack.enter_context(opened.pinned_catalog())
        return Sync(opened, namespace, paths, catalog, root, options).plan


def _show_plan(plan: SyncPlan, as_json: bool, force: bool) -> int:
    is_refused = bool(plan.refused) and not force
    if as_json:
        render.as_json(plan)
        return 1 if is_refused else SKIPPED if plan.skipped else 0
    for mark, names in (("+", plan.added), ("~", plan.changed), ("-", plan.removed)):
        for name in names:
            render.out.print(f"{mark} {render.one_line(name)}")
    for old, new in plan.moved:
        render.out.print(f"> {render.one_line(old)} -> {render.one_line(new)}")
    render.name_skipped(plan.skipped)
    for reason in plan.refused:
        render.err.print(render.one_line(f"refused without --force: {reason}"))
    render.out.print(_counts(plan))
    return 1 if is_refused else SKIPPED if plan.skipped else 0


def _counts(plan: SyncPlan) -> str:
    counts = {"new": plan.added, "changed": plan.changed, "moved": plan.moved, "gone": plan.removed}
    return f"{', '.join(f'{len(files)} {kind}' for kind, files in counts.items())}, {plan.unchanged} unchanged files"


def _once(memory: Memory, paths: list[Path], options: dict[str, Any], as_json: bool, quiet: bool = False) -> AddReport:
    """Sync once; `quiet` says nothing where nothing was to be done."""
    with render.AddProgress() as progress:
        done = memory.sync(*paths, progress=progress, **options)
    if not (quiet and done.plan.is_empty):
        _report(done, memory, as_json)
    return done.done


def _report(done: SyncReport, memory: Memory, as_json: bool) -> None:
    if as_json:
        render.as_json({**dataclasses.asdict(done), "bank": memory.bank.catalog.counts()})
        return
    render.out.print(f"{_counts(done.plan)}; {render.counted(done.forgotten, 'document')} forgotten")
    render.report(done.done, done.done.skipped, memory.bank, as_json)
