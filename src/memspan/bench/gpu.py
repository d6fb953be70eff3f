"""All that a machine with a GPU can show of memspan, in minutes and without a network: `memspan bench gpu`.

Every step is a process of its own (`memspan.bench.device`). A step that fails or takes too long does not stop the
others.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from memspan.errors import MemspanError
from memspan.model.runtime import pick_device

MODEL = "gpu-model"
"""Folder of the made-up model."""

SECONDS = {"routing": 90.0, "model": 60.0, "decode": 120.0, "encode": 90.0}
"""What each step may take. They come in this order: `decode` and `encode` need the model."""


@dataclass(frozen=True, slots=True)
class Step:
    """A command, and the seconds it may take. It writes its figures, if any, into gpu-NAME.json of a folder."""

    command: tuple[str, ...]
    seconds: float


def steps(out: Path, device: str, sizes: Sequence[int] = ()) -> dict[str, Step]:
    """All steps, in order.

    Args:
        sizes: tokens of the memories that are routed over; default: 1M, 10M and 100M.
    """
    module = (sys.executable, "-m", "memspan.bench.device")
    given = (device, str(out), *map(str, sizes))
    return {name: Step((*module, name, *given), seconds) for name, seconds in SECONDS.items()}


def check_gpu(device: str) -> None:
    """See that there is what is to be measured.

    Raises:
        MemspanError: torch can use no GPU here, or knows no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise MemspanError("there is no GPU that torch can use here; --device cpu runs the same code, slowly")
    pick_device(device)


def chosen_steps(text: str) -> list[str]:
    """Names of steps, from "all" or their names with commas between.

    Raises:
        MemspanError: one is unknown, or none is named.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return list(SECONDS)
    unknown = [name for name in names if name not in SECONDS]
    if unknown or not names:
        raise MemspanError(f"--steps takes {', '.join(SECONDS)} or all, not {text!r}")
    return names


def run_all(chosen: Mapping[str, Step], names: Sequence[str], out: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """Run some of the steps within so many seconds; gives a report of each when it ends (see `run`)."""
    ends = time.monotonic() + seconds
    for name, step in chosen.items():
        if name in names:
            yield run(name, step, out, ends - time.monotonic())


def run(name: str, step: Step, out: Path, left: float) -> dict[str, Any]:
    """Run a step in at most so many seconds. Gives its name, whether it is well, its seconds, and its figures or the
    end of its output."""
    figures = out / f"gpu-{name}.json"
    figures.unlink(missing_ok=True)
    if name == "model" and (out / MODEL / "config.json").is_file():
        return {"step": name, "ok": True, "seconds": 0.0, "note": "it is there already"}
    started, limit = time.monotonic(), min(step.seconds, left)
    if limit <= 0:
        return {"step": name, "ok": False, "seconds": 0.0, "note": "no time is left"}
    exit_code, output = _ended(step.command, limit)
    report: dict[str, Any] = {"step": name, "ok": exit_code == 0, "seconds": round(time.monotonic() - started, 1)}
    try:
        report["figures"] = json.loads(figures.read_text("utf-8"))
    except (OSError, ValueError):
        report["output"] = output.splitlines()[-1:]
    if exit_code != 0:
        report |= {"exit": exit_code, "output": output.splitlines()[-40:]}
    return report


def _ended(command: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Run a command for so many seconds at most: its exit code (None: it was stopped, or never begun) and output."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        try:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        except OSError as error:
            return None, str(error)
        try:
            exit_code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            own = psutil.Process(process.pid)
            for one in (*own.children(recursive=True), own):  # those of a test run too, which hold memory of the GPU
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()
            exit_code = None
        output.seek(0)
        return exit_code, output.read() + ("" if exit_code is not None else f"\nstopped after {seconds:.0f} s")
