"""Where a run's figures go: always `metrics.jsonl`, and trackers by name through Accelerate."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memspan.errors import TrainingError
from memspan.files import write_text

PACKAGES = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}
"""Trackers by name, with the package that each needs."""


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, with its `step`; training steps and evaluations in order."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep_until(self, step: int) -> None:
        """Drop the lines of later steps: a run that resumes at `step` writes them again. Also a torn last line."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue
        write_text(self.path, "".join(f"{line}\n" for line in kept))

    def write(self, values: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(json.dumps(values) + "\n")


def check_trackers(names: Sequence[str]) -> None:
    """See that trackers are known and their packages installed, before a run begins.

    Raises:
        TrainingError: one is not.
    """
    for name in names:
        if name not in PACKAGES:
            raise TrainingError(f"unknown tracker {name!r}; known are {', '.join(PACKAGES)}")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise TrainingError(f"the tracker {name} is not installed; run: pip install {PACKAGES[name]}")
