"""How soon the command begins: seconds of commands in processes of their own, and of a process's first questions.

    python benchmarks/start.py [--model DIR] [--repeats 5] [--tokens 1000000] [--questions 5] [--folder DIR]
                               [--json FILE] [--png FILE]

Commands run over a bank of `examples/notes`, each in turn, after one run of each that is not counted (file caches are
warm then). Told is the time from the start of the process to its end, or, for `ask`, to the first letter of the answer;
and the process's own CPU seconds to its end. `python` does nothing, `imports` imports torch and transformers' loader of
models: what a command takes beside them is its own.

Then one process, this one, asks a bank of made-up latents (`memspan bench latency`'s) that stands for `--tokens`
tokens: the first question of all, and those after it, to their first tokens.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plots import parse_options, write_figures

from memspan.bank.encode import manifest_of
from memspan.bank.synthetic import made_up
from memspan.bench.latency import Latency, LatencySettings, made_up_bank
from memspan.eval.plots import Spread, draw_bars, spread
from memspan.eval.runner import machine
from memspan.model.convert import LoadedModel, load

NOTES = Path(__file__).resolve().parents[1] / "examples" / "notes"
QUESTION = "Who keeps the lighthouse?"
MEMSPAN = ("-m", "memspan")


@dataclass(frozen=True, slots=True)
class Run:
    """A process's seconds: to the first letter that it wrote, to its end, and of the CPU."""

    first: float
    whole: float
    cpu: float


def run(arguments: Sequence[str]) -> Run:
    """Run Python once.

    Raises:
        SystemExit: it failed.
    """
    before, started = os.times(), time.perf_counter()
    # As for whoever installed it: the run that is not counted leaves compiled modules.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, env=environment)
    assert process.stdout is not None
    process.stdout.read(1)
    first = time.perf_counter() - started
    _, errors = process.communicate()
    whole, after = time.perf_counter() - started, os.times()
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed: {errors.decode(errors='replace')}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(first, whole, cpu)


def commands(bank: Path, model: Sequence[str]) -> dict[str, Sequence[str]]:
    """What is run, by name."""
    where = str(bank)
    return {
        "python": ("-c", ""),
        "imports": ("-c", "import torch, transformers.modeling_utils"),
        "--help": (*MEMSPAN, "--help"),
        "ls": (*MEMSPAN, "ls", where),
        "info": (*MEMSPAN, "info", where),
        "search lexical": (*MEMSPAN, "search", where, QUESTION, "--selector", "lexical"),
        "verify": (*MEMSPAN, "verify", where),
        "ask": (*MEMSPAN, "ask", where, QUESTION, "--max-new-tokens", "4", *model),
    }


def time_commands(model: Sequence[str], repeats: int) -> dict[str, list[Run]]:
    """Every command's runs."""
    with tempfile.TemporaryDirectory() as folder:
        bank = Path(folder) / "bank"
        run((*MEMSPAN, "add", str(bank), str(NOTES), *model))
        wanted = commands(bank, model)
        runs: dict[str, list[Run]] = {name: [] for name in wanted}
        for repeat in range(repeats + 1):
            for name, arguments in wanted.items():
                done = run(arguments)
                if repeat:
                    runs[name].append(done)
    return runs


def time_questions(loaded: LoadedModel, folder: Path, tokens: int, questions: int) -> list[tuple[float, float]]:
    """Seconds of every question to its first token, by the wall and of the process; the first stands first."""
    latency = Latency(loaded, LatencySettings((tokens,), questions))
    with closing(made_up_bank(folder, made_up(manifest_of(loaded)), tokens, lambda line: None)) as bank:
        asked = [latency.ask(bank, number) for number in range(questions + 1)]
    return [(waited.first_token, waited.first_token_cpu) for waited in asked]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="MSA checkpoint folder. Default: the embedded one with its adapter")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--questions", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("latency-banks"), help="where the made-up bank is kept")
    options = parse_options(parser)

    runs = time_commands(("--model", str(options.model)) if options.model else (), options.repeats)
    started = time.perf_counter()
    loaded = load(options.model)
    loading = time.perf_counter() - started
    options.folder.mkdir(parents=True, exist_ok=True)
    first, *later = time_questions(loaded, options.folder, options.tokens, options.questions)
    wall = {name: [one.first if name == "ask" else one.whole for one in found] for name, found in runs.items()}
    figures: dict[str, Any] = {
        "machine": machine(loaded),
        "seconds": {name: spread(values, 3) for name, values in wall.items()},
        "cpu_seconds": {name: spread([one.cpu for one in found], 3) for name, found in runs.items()},
        "load": round(loading, 3),
        "tokens": options.tokens,
        "first_question": {"seconds": round(first[0], 3), "cpu_seconds": round(first[1], 3)},
        "later_questions": {
            name: spread([one[place] for one in later], 3) for place, name in enumerate(("seconds", "cpu_seconds"))
        },
    }
    figures["first_over_later"] = round(first[0] - figures["later_questions"]["seconds"]["median"], 3)
    bars = {name: Spread.of(values) for name, values in wall.items()}
    write_figures(options, figures, lambda path: draw_bars(path, bars, up="seconds", title="start of a command"))


if __name__ == "__main__":
    main()
