"""The learning rate of a step: a function of the step alone, so that resuming needs no state."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant"]


def lr_share(step: int, steps: int, schedule: Schedule, warmup_steps: int = 0, final: float = 0.0) -> float:
    """Share of the highest learning rate that a step of a phase runs at.

    It rises linearly over the warm-up, reaches 1 in the first step after it, and falls to `final` right behind the
    last step.

    Args:
        step: 0-based, within the phase.
        steps: of the phase.
        schedule: shape of the fall.
        warmup_steps: at most `steps`.
        final: share at the end; not used by `constant`.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    left = 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1 - done
    return final + (1 - final) * left
