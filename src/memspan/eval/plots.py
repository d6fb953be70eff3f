"""Plots of measured numbers, all that there are: medians or means, with the least and the most beside them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memspan.errors import EvaluationError

_MARGIN = 0.03  # of shares, so that points at their ends are seen whole


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


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median, least and most, rounded."""
    return {name: round(value, digits) for name, value in asdict(Spread.of(values)).items()}


def check_plots() -> None:
    """See, before anything is measured, that what was measured can be drawn.

    Raises:
        EvaluationError: matplotlib is missing.
    """
    _figure()


def draw_curves(
    path: Path,
    curves: Mapping[str, Sequence[tuple[float, Spread]]],
    *,
    across: str,
    up: str,
    title: str = "",
    ticks: Mapping[float, str] | None = None,
) -> None:
    """Write a PNG of a line per curve over its points, the first axis logarithmic; whiskers from the least to the most.

    Args:
        curves: places on the first axis, growing, with what was measured there.
        across, up: what the axes are called.
        ticks: names of places on the first axis; with them the second axis is one of shares, else it is logarithmic.

    Raises:
        EvaluationError: matplotlib is missing.
    """
    with _axes(path, (8, 5), up, title) as axes:
        for name, points in curves.items():
            places, shown = [place for place, _ in points], [spread for _, spread in points]
            axes.errorbar(places, *_medians(shown), marker="o", capsize=3, label=name)
        axes.set_xscale("log")
        axes.set_xlabel(across)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        if ticks is None:
            axes.set_yscale("log")
        else:
            axes.set_xticks(list(ticks), list(ticks.values()))
            axes.minorticks_off()
            axes.set_ylim(-_MARGIN, 1 + _MARGIN)


def draw_bars(path: Path, bars: Mapping[str, Spread], *, up: str, title: str = "", shares: bool = False) -> None:
    """Write a PNG of a bar per row; whiskers from the least to the most.

    Args:
        shares: the axis goes from 0 to 1.

    Raises:
        EvaluationError: matplotlib is missing.
    """
    with _axes(path, (2 + len(bars), 4.5), up, title) as axes:
        medians, whiskers = _medians(list(bars.values()))
        axes.bar(list(bars), medians, yerr=whiskers, capsize=4)
        axes.tick_params(axis="x", rotation=20)
        if shares:
            axes.set_ylim(0, 1)


@contextmanager
def _axes(path: Path, size: tuple[float, float], up: str, title: str) -> Iterator[Any]:
    """Axes to draw on, without a window, written as a PNG at the end."""
    figure = _figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_ylabel(up)
    axes.set_title(title, fontsize="medium")
    yield axes
    figure.savefig(path, dpi=150, format="png")


def _figure(**options: Any) -> Any:
    try:
        from matplotlib.figure import Figure  # type: ignore[import-not-found]
    except ImportError as error:
        raise EvaluationError("a plot needs matplotlib: pip install 'memspan[eval]', or leave out --png") from error
    return Figure(**options)


def _medians(spreads: Sequence[Spread]) -> tuple[list[float], list[list[float]]]:
    """Medians, and the whiskers beside them."""
    return [x.median for x in spreads], [[x.median - x.least for x in spreads], [x.most - x.median for x in spreads]]
