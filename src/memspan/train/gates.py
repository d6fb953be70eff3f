"""Whether a run learns: gates that stop one that does not, early stopping, and the recall a curriculum waits for.

All of them look at the hold-out of the training data, never at an evaluation set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memspan.errors import NotLearning
from memspan.train.settings import GateSettings, PhaseSettings, StoppingSettings

UNTRAINED = "untrained/"
"""Prefix of the figures of the same backbone with freshly initialized routers."""


@dataclass
class History:
    """What a run has shown so far. Part of its checkpoint.

    Attributes:
        evaluations: metrics of every evaluation, with their `step` and the number of their `phase`, in order.
        references: figures that stay: the untrained router's, BM25's.
        losses: per training metric its values, step by step.
    """

    evaluations: list[dict[str, float]] = field(default_factory=list)
    references: dict[str, float] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)

    def add_losses(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.losses.setdefault(name, []).append(value)

    def best(self, metric: str, min_delta: float = 0.0) -> int:
        """Place of the last phase's best evaluation: the first that no later one exceeds by more than `min_delta`.

        Earlier phases do not count: a later one learns something else, which the metric need not show.
        """
        phases = [metrics.get("phase") for metrics in self.evaluations]
        best = first = phases.index(phases[-1])
        for place, metrics in enumerate(self.evaluations[first:], start=first):
            if figure(metrics, metric) > figure(self.evaluations[best], metric) + min_delta:
                best = place
        return best


def figure(metrics: Mapping[str, float], name: str) -> float:
    """A metric by its name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in metrics:
        raise ValueError(f"there is no metric {name!r}; this run has {', '.join(sorted(metrics))}")
    return metrics[name]


def check_gates(gates: Sequence[GateSettings], history: History) -> None:
    """Look at every gate after an evaluation.

    Raises:
        NotLearning: one is shut.
    """
    metrics = history.evaluations[-1]
    for gate in gates:
        if metrics["step"] >= gate.after:
            reason = _shut(gate, metrics, history)
            if reason:
                raise NotLearning(f"stopped at step {metrics['step']:.0f}, the run is not learning: {reason}")


def _shut(gate: GateSettings, metrics: Mapping[str, float], history: History) -> str:
    """Why a gate is shut; empty where it is open."""
    if gate.kind == "falling":
        name = gate.metric or "loss/routing"
        values = history.losses.get(name, [])
        if len(values) < 2 * gate.window:
            return ""
        first, last = (sum(part) / gate.window for part in (values[: gate.window], values[-gate.window :]))
        limit = gate.value * first
        return "" if last < limit else f"{name} is {last:.4f}, began at {first:.4f}, and should be below {limit:.4f}"
    name = gate.metric or "fused/recall@16"
    value = figure(metrics, name)
    if gate.kind == "floor":
        return "" if value >= gate.value else f"{name} is {value:.3f}, and should be at least {gate.value:.3f}"
    untrained = figure(history.references, UNTRAINED + name)
    limit = untrained + gate.value
    wanted = f"should be above {limit:.3f} (the untrained router's is {untrained:.3f})"
    return "" if value > limit else f"{name} is {value:.3f}, and {wanted}"


def out_of_patience(settings: StoppingSettings, history: History) -> str:
    """Why the run should stop early, or an empty text."""
    if not settings.patience or not history.evaluations:
        return ""
    best = history.best(settings.metric, settings.min_delta)
    waited = len(history.evaluations) - 1 - best
    if waited < settings.patience:
        return ""
    metrics = history.evaluations[best]
    value = figure(metrics, settings.metric)
    return f"{settings.metric} has not risen for {waited} evaluations; its best is {value:.3f} at {metrics['step']:.0f}"


def phase_reached(phase: PhaseSettings, steps_done: int, history: History) -> bool:
    """Whether the newest evaluation shows the recall that a phase waits for.

    Args:
        steps_done: of the phase, when that evaluation was made.
    """
    until = phase.until
    if until is None or steps_done < max(1, until.min_steps):
        return False
    return figure(history.evaluations[-1], until.metric) >= until.value


def check_phase(phase: PhaseSettings, history: History) -> None:
    """See that a phase which has used up its steps has reached its recall.

    Raises:
        NotLearning: it has not.
    """
    until = phase.until
    if until is None:
        return
    value = figure(history.evaluations[-1], until.metric)
    if value < until.value:
        raise NotLearning(
            f"phase {phase.name!r} has used its {phase.steps} steps: {until.metric} is {value:.3f}, and the next phase "
            f"begins at {until.value:.3f}; give it more steps, or lower phases.{phase.name}.until.value"
        )
