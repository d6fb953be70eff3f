"""`memspan bench gpu` and the tests of this repository that need a GPU: `make gpu-check`.

    python benchmarks/gpu_check.py [--device cuda] [--seconds 480] [--out .memspan] [--steps tests routing ...]

A line of JSON is printed when a step ends: its name, whether it is well, its seconds, its figures or the end of its
output. The exit code is the sum of the numbers of the steps that failed:

    1 tests     what runs on a GPU equals what runs on a CPU
    2 routing   1M, 10M and 100M tokens with Qwen3-4B's shapes, keys in GPU memory
    4 model     a made-up checkpoint of Qwen3-4B's shapes, a third of its layers, for the steps below
    8 decode    1, 8 and 32 rows behind 4,096 tokens, beside `generate`; the first token; the most memory taken
    16 encode   documents into latents, beside the plain forward
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from memspan.bench.gpu import Step, run_all, steps

HERE = Path(__file__).resolve().parent
TESTS = ("tests/ops", "tests/routing/test_waits.py", "tests/routing/test_ahead.py", "tests/generate/test_gpu.py")


def all_steps(out: Path, device: str) -> dict[str, Step]:
    """The tests, then the steps of the package."""
    pytest = (sys.executable, *["-m", "pytest", "-q", "-n", "4", "--benchmark-disable", "-m"], "not slow")
    tests = Step((*pytest, *(str(HERE.parent / path) for path in TESTS)), 120)
    return {"tests": tests, **steps(out, device)}


def report_all(chosen: Mapping[str, Step], names: Sequence[str], out: Path, seconds: float) -> int:
    """Run some of the steps within so many seconds; prints a line for each. Returns the exit code."""
    code = 0
    for report in run_all(chosen, names, out, seconds):
        print(json.dumps(report), flush=True)
        code += 0 if report["ok"] else 2 ** list(chosen).index(report["step"])
    return code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=480, help="for all steps together")
    parser.add_argument("--out", type=Path, default=Path(".memspan"), help="where the figures and the model go")
    parser.add_argument("--steps", nargs="+", choices=list(all_steps(Path(), "")), help="default: all")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    chosen = all_steps(out, options.device)
    raise SystemExit(report_all(chosen, options.steps or list(chosen), out, options.seconds))


if __name__ == "__main__":
    main()
