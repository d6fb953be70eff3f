"""Doing something in a child, so that a fault ends the child alone and no SQLite connection is open across a fork."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenarios import Scenario
from shim import Mode, Shim

from memspan.bank.bank import MemoryBank
from memspan.errors import BankError

_CHILD_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a child ended: its exit status (negative: the signal that killed it), and what it returned or raised."""

    status: int
    result: Any = None
    error: str = ""

    def __str__(self) -> str:
        return self.error or str(self.result or f"ended with status {self.status}")


def forked(work: Callable[[], Any]) -> Outcome:
    """Do something in a child."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        signal.alarm(_CHILD_SECONDS)
        try:
            answer = (work(), "")
        except BaseException:
            answer = (None, traceback.format_exc())
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(1 if answer[1] else 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        raw = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Outcome(status, *(pickle.loads(raw) if raw else ()))


def must(outcome: Outcome) -> None:
    """What no fault struck goes well."""
    if outcome.status or (isinstance(outcome.result, dict) and outcome.result["problem"]):
        raise RuntimeError(str(outcome))


def operate(shim: Shim, scenario: Scenario, root: Path, trace: Path, mode: Mode, nth: int) -> dict[str, Any]:
    """In a child: do the operation under a fault. What it opened stays open when it ends, as it does when killed."""
    folder, problem, kept = root / scenario.bank, "", None
    shim.arm(root, mode, nth, trace)
    try:
        scenario.operate(folder, shim.mark)
    except BankError as error:
        kept = error  # the bank that failed stays open: the traceback holds it
        if not shim.fired():
            problem = traceback.format_exc()
    except Exception:
        problem = f"not a BankError:\n{traceback.format_exc()}"
    fired = shim.fired()
    shim.relent()
    if kept and MemoryBank.exists(folder):
        try:
            with MemoryBank.open(folder).writer():
                pass
        except Exception as error:
            problem = f"after {kept!r}, no writer can be opened: {error!r}"
    shim.disarm()
    return {"fired": fired, "problem": problem}
