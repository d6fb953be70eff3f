"""How long the stages of a question take: each second counts for one stage, the innermost that is running."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class StageClock:
    """Seconds by stage. A stage inside another stops the other's time meanwhile.

    Attributes:
        seconds: of every stage that was entered.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what runs inside for a stage, and let `stage` reach this clock from anywhere below."""
        self._switch()
        self._running.append(name)
        token = _clock.set(self)
        try:
            yield
        finally:
            _clock.reset(token)
            self._switch()
            self._running.pop()

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._running:
            name = self._running[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


_clock: ContextVar[StageClock | None] = ContextVar("memspan_stage_clock", default=None)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count what runs inside for a stage of the clock that is running; without one nothing is counted."""
    clock = _clock.get()
    if clock is None:
        yield
        return
    with clock.stage(name):
        yield
