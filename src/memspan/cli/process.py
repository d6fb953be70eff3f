"""How a command ends: exit codes, signals; and whether it is one of several processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from memspan.cli import render
from memspan.errors import MemspanError

SKIPPED = 3
# What a process can be asked to end by; Windows has the first two and the last (its console's Ctrl-Break, and closing).
_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
_CONTINUE = "stopping after this batch; run the same command again to continue"


def started_by_torchrun() -> bool:
    """Whether this is one of several processes that `torchrun` started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def refuse_torchrun(command: str) -> None:
    """
    Raises:
        MemspanError: several processes were started for a command that works in one.
    """
    if started_by_torchrun():
        raise MemspanError(f"memspan {command} runs in one process; start it without torchrun")


class Stop:
    """Whether a signal asked for a clean stop."""

    def __init__(self) -> None:
        self._signal: int | None = None

    def is_set(self) -> bool:
        return self._signal is not None

    @property
    def code(self) -> int:
        """The exit code of a stopped command: 128 and the signal's number; as by Ctrl-C where another rank got it."""
        return 128 + (self._signal or signal.SIGINT)

    def ask(self, number: int) -> None:
        """A signal came. A second Ctrl-C interrupts at once; the first signal gives the exit code."""
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = self._signal or number


@contextmanager
def stop_flag(message: str = _CONTINUE) -> Iterator[Stop]:
    """Every signal that can be caught (Ctrl-C, SIGTERM, SIGHUP, Ctrl-Break) asks for a clean stop.

    A signal that is ignored stays ignored: under `nohup` the command outlives its terminal.

    Args:
        message: shown when a stop is asked for.
    """
    stop = Stop()

    def handle(number: int, _: FrameType | None) -> None:
        is_first = not stop.is_set()
        stop.ask(number)
        if is_first and message:
            render.err.print(message)

    caught = [number for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in caught}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
