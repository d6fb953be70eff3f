"""What `memspan train` does. Imported when it runs, as `commands` is."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from memspan.cli import render
from memspan.cli.process import INTERRUPTED
from memspan.train.loop import RunEvent, RunResult, Trainer
from memspan.train.recipe import load_recipe
from memspan.train.settings import Recipe
from memspan.train.setup import Run, build_run, first_batch, write_product
from memspan.train.trackers import check_trackers

_SHOWN = ("recall@1", "recall@5", "recall@16", "precision", "all_gold@16")
_LINE_EVERY = 20


def train(path: Path, changes: Sequence[str], out: Path | None, resume: bool, dry_run: bool, as_json: bool) -> int:
    """Returns the exit code: 0, or INTERRUPTED."""
    recipe = load_recipe(path, changes)
    check_trackers(recipe.trackers)
    folder = out or Path("runs") / recipe.name
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    tell: Callable[[str], None] = render.err.print if rank == 0 else lambda _: None
    run = build_run(recipe, folder, rank=rank, world=world, tell=tell)
    if dry_run:
        _show_plan(recipe, run, as_json)
        return 0
    with _stop_signals(rank == 0) as stop, TrainingProgress(recipe.steps) as progress:
        result = Trainer(recipe, run.parts, folder, should_stop=stop.is_set, tell=progress).run(resume)
    if rank:
        return INTERRUPTED if result.ended == "interrupted" else 0
    product = None if result.ended == "interrupted" else write_product(recipe, folder, result.best_step)
    _show_result(result, product, folder, as_json)
    return INTERRUPTED if result.ended == "interrupted" else 0


@contextmanager
def _stop_signals(tell: bool) -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM ask for a clean stop; pressed again, Ctrl-C interrupts at once."""
    flag = threading.Event()

    def ask_to_stop(number: int, _: object) -> None:
        if flag.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.set()
        if tell:
            render.err.print("stopping after this step; run the same command with --resume to go on")

    before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def _show_plan(recipe: Recipe, run: Run, as_json: bool) -> None:
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
