from __future__ import annotations

import threading

import pytest

from memspan import stages
from memspan.stages import StageClock, stage


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A time that moves only when it is told to: its only entry."""
    now = [100.0]
    monkeypatch.setattr(stages.time, "perf_counter", lambda: now[0])
    return now


def test_each_second_counts_for_the_innermost_stage(ticks: list[float]) -> None:
    clock = StageClock()
    with clock.stage("prefill"):
        ticks[0] += 1
        for _ in range(2):
            with stage("routing"):
                ticks[0] += 10
                with stage("fetch"):
                    ticks[0] += 100
                ticks[0] += 10
        ticks[0] += 1
    ticks[0] += 1000
    assert clock.seconds == {"prefill": 2, "routing": 40, "fetch": 200}


def test_a_stage_that_fails_is_counted_and_ends(ticks: list[float]) -> None:
    clock = StageClock()
    with pytest.raises(KeyError), clock.stage("prefill"), stage("routing"):
        ticks[0] += 5
        raise KeyError
    with stage("routing"):
        ticks[0] += 7
    assert clock.seconds == {"prefill": 0, "routing": 5}


def test_without_a_clock_and_in_another_thread_nothing_is_counted(ticks: list[float]) -> None:
    def other() -> None:
        with stage("routing"):
            ticks[0] += 1

    other()
    clock = StageClock()
    with clock.stage("prefill"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert list(clock.seconds) == ["prefill"]
