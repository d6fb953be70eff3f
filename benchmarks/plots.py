"""What benchmarks share: their outputs (JSON on standard output, --json, --png), and spreads of what was measured."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memspan.errors import EvaluationError
from memspan.eval.plots import Spread, check_plots


def parse_options(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """A benchmark's options, with --json and --png; ends with a message where a plot is wished and cannot be drawn."""
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--png", type=Path, help="draw them into this file")
    options = parser.parse_args(arguments)
    if options.png:
        try:
            check_plots()
        except EvaluationError as error:
            parser.error(str(error))
    return options


def write_figures(options: argparse.Namespace, figures: Mapping[str, Any], draw: Callable[[Path], None]) -> None:
    """Print the figures, and write what the options name.

    Args:
        draw: writes the plot into a file.
    """
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    if options.png:
        draw(options.png)


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median, least and most, rounded."""
    return {name: round(value, digits) for name, value in asdict(Spread.of(values)).items()}
