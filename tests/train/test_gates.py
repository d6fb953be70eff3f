"""Gates stop a run that does not learn and say why; early stopping; the recall a phase waits for."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from memspan.errors import NotLearning
from memspan.train.gates import History, check_gates, check_phase, out_of_patience, phase_reached
from memspan.train.settings import GateSettings, PhaseSettings, StoppingSettings, UntilSettings

RECALL = "fused/recall@16"


def shown(*recalls: float, untrained: float = 0.1, losses: tuple[float, ...] = ()) -> History:
    """A run evaluated every 10 steps."""
    evaluations = [{"step": 10.0 * place, RECALL: recall} for place, recall in enumerate(recalls)]
    return History(evaluations, {f"untrained/{RECALL}": untrained}, {"loss/routing": list(losses)})


@pytest.mark.parametrize(
    ("gate", "history", "message"),
    [
        (GateSettings("floor", 10, value=0.5), shown(0.1, 0.4), "0.400, and should be at least 0.500"),
        (GateSettings("untrained", 10, value=0.1), shown(0.1, 0.15), r"above 0.200 .the untrained router's is 0.100"),
        (GateSettings("untrained", 10), shown(0.1, 0.1), "above 0.100"),
        (
            GateSettings("falling", 10, value=0.9, window=2),
            shown(0.1, 0.9, losses=(4.0, 2.0, 9.0, 3.0, 2.5)),
            "loss/routing is 2.7500, began at 3.0000, and should be below 2.7000",
        ),
    ],
)
def test_a_gate_stops_a_run_and_says_why(gate: GateSettings, history: History, message: str) -> None:
    with pytest.raises(NotLearning, match=f"stopped at step 10, .*{message}"):
        check_gates([gate], history)


@pytest.mark.parametrize(
    ("gate", "history"),
    [
        (GateSettings("floor", 11, value=0.5), shown(0.1, 0.4)),
        (GateSettings("floor", 10, value=0.5), shown(0.1, 0.5)),
        (GateSettings("untrained", 10, value=0.1), shown(0.1, 0.21)),
        (GateSettings("falling", 10, value=0.9, window=2), shown(0.1, 0.1, losses=(4.0, 2.0, 9.0, 2.5, 2.5))),
        (GateSettings("falling", 6, value=0.9, window=3), shown(0.1, 0.1, losses=(4.0, 4.0, 4.0, 4.0))),
    ],
)
def test_a_gate_lets_a_run_through(gate: GateSettings, history: History) -> None:
    check_gates([gate], history)


def test_a_gate_on_a_metric_that_is_not_measured_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no metric 'recall'; this run has fused/recall@16, step"):
        check_gates([GateSettings("floor", 1, metric="recall", value=0.5)], shown(0.1, 0.2))


def test_early_stopping_waits_for_its_patience() -> None:
    two = StoppingSettings(patience=2)
    assert not out_of_patience(two, shown())
    assert not out_of_patience(two, shown(0.1, 0.5, 0.4))
    assert "0.500 at 10" in out_of_patience(two, shown(0.1, 0.5, 0.4, 0.5))
    assert not out_of_patience(two, shown(0.1, 0.5, 0.4, 0.51))
    assert not out_of_patience(StoppingSettings(), shown(0.5, 0.4, 0.3, 0.2))
    assert out_of_patience(StoppingSettings(patience=2, min_delta=0.05), shown(0.5, 0.54, 0.55))
    # Small steps that add up to more than min_delta are progress.
    assert not out_of_patience(StoppingSettings(patience=2, min_delta=0.05), shown(0.5, 0.54, 0.56))


def test_a_phase_ends_when_its_recall_is_reached() -> None:
    phase = PhaseSettings("one", 100, 1.0, until=UntilSettings(0.6, min_steps=20))
    assert not phase_reached(phase, 30, shown(0.1, 0.59))
    assert not phase_reached(phase, 10, shown(0.1, 0.7))
    assert phase_reached(phase, 20, shown(0.1, 0.6))
    assert not phase_reached(PhaseSettings("one", 100, 1.0), 100, shown(0.9))


def test_a_phase_that_does_not_reach_its_recall_stops_the_run() -> None:
    phase = PhaseSettings("one", 100, 1.0, until=UntilSettings(0.6))
    check_phase(phase, shown(0.1, 0.6))
    with pytest.raises(NotLearning, match=r"'one' has used its 100 steps: .* is 0.590, .* begins at 0.600"):
        check_phase(phase, shown(0.7, 0.59))


def test_the_history_is_json() -> None:
    history = shown(0.1, 0.3, losses=(1.0, 0.1 + 0.2))
    history.add_losses({"loss/lm": 2.0})
    assert History(**json.loads(json.dumps(asdict(history)))) == history
