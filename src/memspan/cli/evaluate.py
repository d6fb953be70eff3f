"""What `memspan eval` does. Imported when it runs, as `commands` is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from memspan.cli import render
from memspan.cli.commands import INTERRUPTED, ModelChoice, stop_flag
from memspan.eval.dense import SentenceRetriever
from memspan.eval.runner import RESULT, TABLE, RunSettings, run
from memspan.eval.tasks import TaskSettings

__all__ = ["ModelChoice", "RunSettings", "TaskSettings", "evaluate"]


def evaluate(settings: RunSettings, model: ModelChoice, out: Path, as_json: bool) -> int:
    """Returns the exit code: 0, or INTERRUPTED."""
    uses_dense = any(arm.retriever == "dense" for arm in settings.parsed_arms())
    dense = SentenceRetriever.of_package() if uses_dense else None  # missing, it is an error before anything is loaded
    with stop_flag() as stop:
        outcome = run(model.load(), settings, out, dense=dense, tell=render.err.print, should_stop=stop.is_set)
    if as_json:
        render.as_json({**dataclasses.asdict(outcome), "result": str(out / RESULT)})
    elif outcome.interrupted:
        render.err.print(f"stopped; run the same command again to continue {out}")
    else:
        render.out.print((out / TABLE).read_text("utf-8"))
    return INTERRUPTED if outcome.interrupted else 0
