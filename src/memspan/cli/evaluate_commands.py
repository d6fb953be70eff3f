"""What `memspan eval`, `judge` and `report` do. Imported when they run, as `commands` is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from memspan.bank.tiers import parse_bytes
from memspan.cli import render
from memspan.cli.choices import ModelChoice
from memspan.cli.process import INTERRUPTED, refuse_torchrun, stop_flag
from memspan.eval.judge import JUDGE_TABLE, JUDGED, Endpoint, judge
from memspan.eval.runner import RESULT, TABLE, RunSettings, run
from memspan.eval.scale import SCALE, SCALE_TASK, parse_sizes, run_scale
from memspan.eval.sidebyside import write_report
from memspan.eval.tasks import TaskSettings
from memspan.generate.selectors import check_packages

__all__ = ["SCALE_TASK", "Endpoint", "ModelChoice", "RunSettings", "TaskSettings", "evaluate", "parse_sizes"]


def evaluate(
    settings: RunSettings, model: ModelChoice, out: Path, as_json: bool, sizes: Sequence[int] | None = None
) -> int:
    """Returns the exit code: 0, or INTERRUPTED.

    Args:
        sizes: of a scale curve; None: one run.
    """
    refuse_torchrun("eval")
    budget = parse_bytes(model.memory_budget) if model.memory_budget else None
    for arm in settings.parsed_arms():
        if arm.ranks:  # a package that is missing is an error before anything is loaded
            check_packages(arm.selector)
    with stop_flag() as stop:
        loaded = model.load()
        how = {"memory_budget": budget, "tell": render.err.print, "should_stop": stop.is_set}
        outcome = run_scale(loaded, settings, sizes, out, **how) if sizes else run(loaded, settings, out, **how)
    if as_json:
        written = out / (SCALE if sizes else RESULT)
        render.as_json({**dataclasses.asdict(outcome), "result": str(written)})
    elif outcome.interrupted:
        render.err.print(f"stopped; run the same command again to continue {out}")
    else:
        render.out.print((out / TABLE).read_text("utf-8"))
    return INTERRUPTED if outcome.interrupted else 0


def grade(folder: Path, endpoint: Endpoint, parallel: int, as_json: bool) -> int:
    """Returns the exit code: 0, or INTERRUPTED."""
    with stop_flag() as stop:
        finished = judge(folder, endpoint, parallel=parallel, tell=render.err.print, should_stop=stop.is_set)
    if as_json:
        render.as_json({"interrupted": not finished, "result": str(folder / JUDGED)})
    else:
        render.out.print((folder / JUDGE_TABLE).read_text("utf-8"))
    return 0 if finished else INTERRUPTED


def side_by_side(runs: Sequence[Path], out: Path, as_json: bool) -> None:
    """Write the report, and print it or, for JSON, where it is."""
    written = write_report(runs, out)
    if as_json:
        render.as_json({"report": str(written)})
    else:
        render.out.print(written.read_text("utf-8"))
