"""`memspan train`: a recipe becomes trained weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from memspan.cli import render
from memspan.cli.app import JsonOption, command
from memspan.cli.importing import importing
from memspan.cli.process import stop_flag

if TYPE_CHECKING:
    from memspan.train.loop import RunEvent, RunResult
    from memspan.train.settings import Recipe
    from memspan.train.setup import PreparedRun

_SHOWN = ("recall@1", "recall@5", "recall@16", "precision", "all_gold@16")
_LINE_EVERY = 20
_CONTINUE = "stopping after this step; run the same command with --resume to go on"


@command
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file; see recipes/ and docs/training.md.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes, as phases.warmup.lr=1e-3 or corpus=docs/."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run. Default: runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Load everything, print the plan, stop.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Train routers, and other weights that a recipe names, into an adapter. Ctrl-C saves; --resume goes on there."""
    with importing():
        from memspan.train.loop import Trainer
        from memspan.train.recipe import load_recipe
        from memspan.train.setup import build_run, write_product
        from memspan.train.trackers import check_trackers
    read = load_recipe(recipe, changes or [])
    check_trackers(read.trackers)
    folder = out or Path("runs") / read.name
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    tell: Callable[[str], None] = render.err.print if rank == 0 else lambda _: None
    run = build_run(read, folder, rank=rank, world=world, tell=tell)
    if dry_run:
        _show_plan(read, run, as_json)
        return 0
    with stop_flag(_CONTINUE if rank == 0 else "") as stop, TrainingProgress(read.steps) as progress:
        result = Trainer(read, run.parts, folder, should_stop=stop.is_set, tell=progress).run(resume)
    code = stop.code if result.ended == "interrupted" else 0
    if not rank:
        product = None if code else write_product(read, folder, result.best_step)
        _show_result(result, product, folder, as_json)
    return code


class TrainingProgress:
    """Steps, loss and recall: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._bar: Progress | None = None
        self._recall = ""

    def __enter__(self) -> TrainingProgress:
        if render.err.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=render.err)
            self._task = self._bar.add_task("step 0", total=self._steps)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, event: RunEvent) -> None:
        if event.kind == "evaluation":
            figures = [
                f"{name} {event.values[f'fused/{name}']:.3f}" for name in _SHOWN if f"fused/{name}" in event.values
            ]
            self._recall = f", recall@16 {event.values['fused/recall@16']:.3f}"
            render.err.print(f"step {event.step}: {', '.join(figures)}")
            return
        losses = ", ".join(
            f"{name.removeprefix('loss/')} {value:.3f}"
            for name, value in event.values.items()
            if name.startswith("loss/") and name.count("/") == 1
        )
        text = f"{event.phase} {event.step}/{event.steps}: {losses}{self._recall}"
        if self._bar:
            self._bar.update(self._task, completed=event.step, description=text)
        elif event.step % _LINE_EVERY == 0:
            render.err.print(text)


def _show_plan(recipe: Recipe, run: PreparedRun, as_json: bool) -> None:
    from memspan.train.setup import first_batch

    batch, model = first_batch(recipe, run), run.loaded.model
    parameters = dict(model.named_parameters())
    groups = {group.name: sum(parameters[n].numel() for n in group.parameters) for group in run.parts.groups}
    values: dict[str, Any] = {
        "recipe": recipe.name,
        "model": str(run.loaded.path),
        "msa_layers": list(model.config.layers),
        "trained_parameters": groups,
        "frozen_parameters": sum(p.numel() for p in parameters.values()) - sum(groups.values()),
        "questions": len(run.data.train),
        "held_out_questions": len(run.data.holdout.questions),
        "held_out_bank": len(run.data.holdout.documents),
        "phases": {phase.name: phase.steps for phase in recipe.phases},
        "questions_per_step": recipe.step.questions * recipe.step.micro_batches,
        "documents_per_batch": len(batch.documents),
        "tokens_per_batch": sum(map(len, batch.documents)) + int(batch.contexts.valid.sum()),
    }
    render.as_json(values) if as_json else render.fields(values)


def _show_result(result: RunResult, product: Path | None, out: Path, as_json: bool) -> None:
    best = next((e for e in result.evaluations if e["step"] == result.best_step), {})
    if as_json:
        values = {"ended": result.ended, "reason": result.reason, "steps": result.steps, "best_step": result.best_step}
        render.as_json({**values, "best": best, "references": result.references, "product": product and str(product)})
        return
    reason = f" ({result.reason})" if result.reason else ""
    render.out.print(f"{result.ended} after {result.steps} steps{reason}; best at step {result.best_step}")
    for name in _SHOWN:
        if f"fused/{name}" in best and result.references:
            untrained, bm25 = result.references[f"untrained/fused/{name}"], result.references[f"bm25/{name}"]
            render.out.print(f"{name:<12} {best[f'fused/{name}']:.3f}   untrained {untrained:.3f}   BM25 {bm25:.3f}")
    render.out.print(f"{product} holds the trained weights" if product else f"{out} can be resumed")
