"""What benchmarks share: their outputs (JSON on standard output, --json, --png), the machine and the bars in them.

A bar is a ratio that must be reached. It stands in the figures; with --bars, which `make bench` gives, a missed one is
the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memspan.errors import EvaluationError
from memspan.eval.machine import is_isa, machine
from memspan.eval.plots import check_plots
from memspan.model.convert import LoadedModel


@dataclass(frozen=True, slots=True)
class Bar:
    """A ratio that was measured, and the least or the most it may be."""

    measured: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def reached(self) -> bool:
        too_low = self.at_least is not None and self.measured < self.at_least
        return not too_low and (self.at_most is None or self.measured <= self.at_most)


def parse_options(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """A benchmark's options, with --json and --png; ends with a message where a plot is wished and cannot be drawn."""
    add_json(parser)
    parser.add_argument("--png", type=Path, help="draw them into this file")
    options = parser.parse_args(arguments)
    if options.png:
        try:
            check_plots()
        except EvaluationError as error:
            parser.error(str(error))
    return options


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json; say if this run cannot be what it is meant to be."""
    parser.add_argument("--json", type=Path, help="write the figures here")
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    if limit is not None and not is_isa(limit):
        print(f"ONEDNN_MAX_CPU_ISA={limit} is unknown, and ignored; it takes AVX2, for example", file=sys.stderr)


def write_figures(
    options: argparse.Namespace,
    figures: Mapping[str, Any],
    draw: Callable[[Path], None],
    loaded: LoadedModel | None = None,
) -> None:
    """Print the figures, with the machine, and write what the options name.

    Args:
        draw: writes the plot into a file.
        loaded: the model that was measured.
    """
    print(write_json(options.json, figures, loaded))
    if options.png:
        draw(options.png)


def write_json(path: Path | None, figures: Mapping[str, Any], loaded: LoadedModel | None = None) -> str:
    """The figures as JSON, with the machine; written, where there is a path."""
    text = json.dumps({"machine": machine(loaded), **figures}, indent=2)
    if path:
        path.write_text(text + "\n", encoding="utf-8")
    return text


def add_bars(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bars", action="store_true", help="exit with 1 where a bar is missed")


def bar_figures(bars: Mapping[str, Bar]) -> dict[str, Any]:
    return {name: {**asdict(bar), "reached": bar.reached} for name, bar in bars.items()}


def check_bars(options: argparse.Namespace, bars: Mapping[str, Bar]) -> None:
    """End with the missed bars and the exit code 1, if --bars asks for it."""
    missed = [f"{name} is {bar.measured}, wanted: {_wanted(bar)}" for name, bar in bars.items() if not bar.reached]
    if missed and options.bars:
        sys.exit("\n".join(missed))


def _wanted(bar: Bar) -> str:
    return f"at least {bar.at_least}" if bar.at_most is None else f"at most {bar.at_most}"
