"""Plots of measured numbers: medians, with the least and the most beside them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memspan.errors import EvaluationError


@dataclass(frozen=True, slots=True)
class Spread:
    """What was measured several times."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


def check_plots() -> None:
    """See, before anything is measured, that what was measured can be drawn.

    Raises:
        EvaluationError: matplotlib is missing.
    """
    figure_class()


def draw_curves(
    path: Path, curves: Mapping[str, Sequence[tuple[float, Spread]]], *, across: str, up: str, title: str = ""
) -> None:
    """Write a PNG of a line per curve over its points, both axes logarithmic; whiskers from the least to the most.

    Args:
        curves: places on the first axis, growing, with what was measured there.
        across, up: what the axes are called.

    Raises:
        EvaluationError: matplotlib is missing.
    """
    figure = figure_class()(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        shown = [spread for _, spread in points]
        axes.errorbar(
            [place for place, _ in points],
            [spread.median for spread in shown],
            yerr=_whiskers(shown),
            marker="o",
            capsize=3,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150, format="png")


def draw_bars(path: Path, bars: Mapping[str, Spread], *, up: str, title: str = "") -> None:
    """Write a PNG of a bar per row; whiskers from the least to the most.

    Raises:
        EvaluationError: matplotlib is missing.
    """
    figure = figure_class()(figsize=(2 + len(bars), 4.5), layout="constrained")
    axes = figure.subplots()
    axes.bar(list(bars), [bar.median for bar in bars.values()], yerr=_whiskers(list(bars.values())), capsize=4)
    axes.set_ylabel(up)
    axes.set_title(title, fontsize="medium")
    axes.tick_params(axis="x", rotation=20)
    figure.savefig(path, dpi=150, format="png")


def _whiskers(spreads: Sequence[Spread]) -> list[list[float]]:
    return [[x.median - x.least for x in spreads], [x.most - x.median for x in spreads]]


def figure_class() -> Any:
    """Matplotlib's `Figure`, which draws without a window.

    Raises:
        EvaluationError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure  # type: ignore[import-not-found]
    except ImportError as error:
        raise EvaluationError("a plot needs matplotlib: pip install 'memspan[eval]', or leave out --png") from error
    return Figure
