"""How a command ends: exit codes, Ctrl-C; and whether it is one of several processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from memspan.cli import render
from memspan.errors import MemspanError

SKIPPED, INTERRUPTED = 3, 130


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


@contextmanager
def stop_flag() -> Iterator[threading.Event]:
    """Ctrl-C asks for a clean stop; pressed again, it interrupts at once."""
    flag = threading.Event()

    def ask_to_stop(*_: object) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()
        render.err.print("stopping after this batch; run the same command again to continue")

    before = signal.signal(signal.SIGINT, ask_to_stop)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
