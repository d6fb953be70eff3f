"""Summaries for people: a Markdown table, and a plot where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memspan.errors import EvaluationError
from memspan.eval.metrics import Interval
from memspan.eval.plots import Spread, draw_bars, draw_curves
from memspan.eval.scoring import SHOWN, Summary

_PLAIN = ("empty", "malformed")


def markdown(
    result: Mapping[str, Any],
    summaries: Sequence[Summary],
    differences: Mapping[str, tuple[Interval, float] | None],
) -> str:
    """The table of a run, with what is needed to read it. Shares are in percent, in brackets their 95% intervals."""
    config, settings = result["config"], result["config"]["settings"]
    memories = [line for line in result["memories"] if line["complete"]]
    tokens = sum(line["memory_tokens"] for line in memories)
    encoding, asking = _cost(result["memories"]), _cost(result["asked"].values())
    model = config["model"]
    lines = [
        f"# {settings['task']['name']}",
        "",
        f"{summaries[0].questions if summaries else 0} questions; {len(memories)} memories with {tokens:,} tokens "
        f"(encoded in {encoding}, asked in {asking}); {model['backbone']} of {model['parameters'] / 1e6:,.0f}M "
        f"parameters, router {'trained' if model['router_trained'] else 'untrained'}; at most "
        f"{config['sampling']['max_new_tokens']} new tokens; {len(result['malformed'])} malformed records left out.",
        "",
        *_table(summaries, differences, result["main_score"]),
        *_layers_table(summaries, config["model"]["top_k_docs"]),
    ]
    lines += [f"\n`{arm}` was not run: {reason}." for arm, reason in result["refused"].items()]
    return "\n".join(lines) + "\n"


def _cost(lines: Iterable[Mapping[str, Any]]) -> str:
    """What something took. The machine's load counts into the seconds, not into those of the CPU."""
    taken = [(line["seconds"], line["cpu_seconds"]) for line in lines]
    return f"{sum(s for s, _ in taken):,.0f} s ({sum(cpu for _, cpu in taken):,.0f} s of CPU)"


def _table(
    summaries: Sequence[Summary], differences: Mapping[str, tuple[Interval, float] | None], main: str
) -> list[str]:
    names = [name for name in SHOWN if any(name in summary.scores for summary in summaries)]
    hops = list(dict.fromkeys(hop for summary in summaries for hop in summary.hops))
    columns = ["arm", *names, *(f"{hop} @5" for hop in hops), "abstention P/R", "documents", "prompt", "new", "s"]
    columns.append(f"{main} over {summaries[0].arm if summaries else '-'} (p)")
    rows = [_cells(summary, names, hops, differences.get(summary.arm)) for summary in summaries]
    return [line(cells) for cells in (columns, ["---"] * len(columns), *rows)]


def _layers_table(summaries: Sequence[Summary], top_k: int) -> list[str]:
    """What each MSA layer found by itself, for the arms that route."""
    layers = list(dict.fromkeys(layer for summary in summaries for layer in summary.layers))
    if not layers:
        return []
    rows = [
        [f"`{summary.arm}`", *(share(summary.layers.get(layer), plain=True) for layer in layers)]
        for summary in summaries
        if summary.layers
    ]
    return [
        "",
        f"Recall of the {top_k} documents that each MSA layer routed to, by the layer's index:",
        "",
        *(line(cells) for cells in (["arm", *layers], ["---"] * (len(layers) + 1), *rows)),
    ]


def _cells(
    summary: Summary, names: Sequence[str], hops: Sequence[str], difference: tuple[Interval, float] | None
) -> list[str]:
    shares = [share(summary.scores.get(name), plain=name in _PLAIN) for name in names]
    shares += [share(summary.hops.get(hop), plain=True) for hop in hops]
    known = (summary.abstention.precision, summary.abstention.recall)
    return [
        f"`{summary.arm}`",
        *shares,
        " / ".join("–" if value is None else f"{100 * value.mean:.0f}" for value in known),
        _number(summary.documents),
        f"{summary.prompt_tokens:.0f}",
        f"{summary.new_tokens:.0f}",
        f"{sum(summary.seconds.values()):.2f}",
        "–" if difference is None else f"{100 * difference[0].mean:+.1f} ({_p_value(difference[1])})",
    ]


def _p_value(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _number(interval: Interval) -> str:
    """A mean number, with its interval where it is not the same for all questions."""
    mean = f"{interval.mean:.1f}"
    return mean if interval.low == interval.high else f"{mean} ({interval.low:.1f}–{interval.high:.1f})"


def share(interval: Interval | None, *, plain: bool) -> str:
    """A share in percent, unless `plain` with its interval."""
    if interval is None:
        return "–"
    mean = f"{100 * interval.mean:.1f}"
    return mean if plain else f"{mean} ({100 * interval.low:.1f}–{100 * interval.high:.1f})"


def plot(path: Path, summaries: Sequence[Summary], name: str) -> bool:
    """Draw an arm's main score with its interval as a bar each; False (and no file) without matplotlib."""
    bars = {summary.arm: _spread(summary.scores[name]) for summary in summaries if name in summary.scores}
    return _drawn(lambda: draw_bars(path, bars, up=name, shares=True))


def _spread(interval: Interval) -> Spread:
    return Spread(interval.mean, interval.low, interval.high)


def _drawn(draw: Callable[[], None]) -> bool:
    """Whether something was drawn: it is, where matplotlib is installed."""
    try:
        draw()
    except EvaluationError:
        return False
    return True


# The scale curve ------------------------------------------------------------------------------------------------------


def curve_markdown(scale: Mapping[str, Any]) -> str:
    """The scores of a scale run by arm and size; in square brackets what is lost since the smallest size."""
    sizes = sorted({point["size"] for points in scale["curve"].values() for point in points})
    names = [scale["main_score"], *(name for name in ("recall@5", "recall@16") if name != scale["main_score"])]
    lines = ["# Scale curve", "", "Percent with 95% intervals; in square brackets the degradation from the first size."]
    for name in names:
        arms = {arm: points for arm, points in scale["curve"].items() if name in points[0]["scores"]}
        if not arms:
            continue
        lines += ["", f"## {name}", "", line(["arm", *map(size_name, sizes)]), line(["---"] * (len(sizes) + 1))]
        for arm, points in arms.items():
            cells = {point["size"]: _point(point, name, lost=name == scale["main_score"]) for point in points}
            lines.append(line([f"`{arm}`", *(cells.get(size, "–") for size in sizes)]))
    return "\n".join(lines) + "\n"


def _point(point: Mapping[str, Any], name: str, *, lost: bool) -> str:
    shown = share(Interval(**point["scores"][name]), plain=False)
    return shown + (f" [{100 * point['degradation']['mean']:.0f}]" if lost and point["degradation"] else "")


def line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def size_name(tokens: int) -> str:
    """A number of tokens as it is said: 16K, 1M."""
    for unit, value in (("M", 2**20), ("K", 2**10)):
        if tokens >= value:
            return f"{tokens / value:.4g}{unit}"
    return str(tokens)


def plot_curves(path: Path, curves: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> bool:
    """Draw a score over the memory's size, a line with its intervals per curve; False without matplotlib.

    Args:
        curves: points with `size` and `scores`, by what the line is called.
    """
    shown = {
        label: [(p["size"], _spread(Interval(**p["scores"][name]))) for p in points if name in p["scores"]]
        for label, points in curves.items()
    }
    shown = {label: points for label, points in shown.items() if points}
    ticks = {size: size_name(size) for size in sorted({p["size"] for points in curves.values() for p in points})}
    return _drawn(lambda: draw_curves(path, shown, across="tokens of memory", up=name, ticks=ticks))
