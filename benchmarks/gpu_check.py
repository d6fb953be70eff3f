"""All that a machine with a GPU can show of this repository, in minutes and without a network: `make gpu-check`.

    python benchmarks/gpu_check.py [--device cuda] [--seconds 480] [--out .memspan] [--steps tests routing ...]

Every step is a process of its own. A line of JSON is printed when a step ends: its name, whether it is well, its
seconds, its figures or the end of its output. A step that fails or takes too long does not stop the others. The exit
code is the sum of the numbers of the steps that failed:

    1 tests     what runs on a GPU equals what runs on a CPU
    2 routing   1M, 10M and 100M tokens with Qwen3-4B's shapes, keys in GPU memory
    4 model     a made-up checkpoint of Qwen3-4B's shapes, a third of its layers, for the steps below
    8 decode    1, 8 and 32 rows behind 4,096 tokens, beside `generate`; the first token; the most memory taken
    16 encode   documents into latents, beside the plain forward
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Step:
    """A command, and the seconds it may take. It writes its figures, if any, into NAME.json of the folder `out`."""

    command: tuple[str, ...]
    seconds: float


def steps(out: Path, device: str) -> dict[str, Step]:
    """All steps, in order."""
    model, python = str(out / "gpu-model"), sys.executable
    tests = ("tests/ops", "tests/routing/test_waits.py", "tests/routing/test_ahead.py", "tests/generate/test_gpu.py")
    pytest = ("-m", "pytest", "-q", "-n", "4", "--benchmark-disable", "-m", "not slow")

    def script(name: str, figures: str, *options: str) -> tuple[str, ...]:
        return python, str(HERE / name), *options, "--json", str(out / f"gpu-{figures}.json")

    return {
        "tests": Step((python, *pytest, *tests), 120),
        "routing": Step(script("gpu.py", "routing", "--device", device), 90),
        "model": Step((python, str(HERE / "gpu.py"), "--device", device, "--model-out", model), 60),
        "decode": Step(script("gpu.py", "decode", "--device", device, "--decode", model), 120),
        "encode": Step(script("encode.py", "encode", "--model", model, "--documents", "2048", "--repeats", "3"), 90),
    }


def run_all(chosen: Mapping[str, Step], names: Sequence[str], out: Path, seconds: float) -> int:
    """Run some of the steps within so many seconds; prints a line for each. Returns the exit code."""
    ends, code = time.monotonic() + seconds, 0
    for place, (name, step) in enumerate(chosen.items()):
        if name not in names:
            continue
        report = run(name, step, out, ends - time.monotonic())
        print(json.dumps(report), flush=True)
        code += 0 if report["ok"] else 2**place
    return code


def run(name: str, step: Step, out: Path, left: float) -> dict[str, Any]:
    """Run a step; what there is to say of it."""
    figures = out / f"gpu-{name}.json"
    figures.unlink(missing_ok=True)
    if name == "model" and (out / "gpu-model" / "config.json").is_file():
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
            process = subprocess.Popen(command, cwd=HERE.parent, stdout=output, stderr=subprocess.STDOUT)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=480, help="for all steps together")
    parser.add_argument("--out", type=Path, default=Path(".memspan"), help="where the figures and the model go")
    parser.add_argument("--steps", nargs="+", choices=list(steps(Path(), "")), help="default: all")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    chosen = steps(out, options.device)
    raise SystemExit(run_all(chosen, options.steps or list(chosen), out, options.seconds))


if __name__ == "__main__":
    main()
