"""Summaries for people: a Markdown table, and a plot where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memspan.eval.metrics import Interval
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
    return ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]


def _cells(
    summary: Summary, names: Sequence[str], hops: Sequence[str], difference: tuple[Interval, float] | None
) -> list[str]:
    shares = [_share(summary.scores.get(name), plain=name in _PLAIN) for name in names]
    shares += [_share(summary.hops.get(hop), plain=True) for hop in hops]
    known = (summary.abstention.precision, summary.abstention.recall)
    return [
        f"`{summary.arm}`",
        *shares,
        " / ".join("–" if value is None else f"{100 * value.mean:.0f}" for value in known),
        f"{summary.documents.mean:.1f}",
        f"{summary.prompt_tokens:.0f}",
        f"{summary.new_tokens:.0f}",
        f"{sum(summary.seconds.values()):.2f}",
        "–" if difference is None else f"{100 * difference[0].mean:+.1f} ({difference[1]:.3f})",
    ]


def _share(interval: Interval | None, *, plain: bool) -> str:
    if interval is None:
        return "–"
    mean = f"{100 * interval.mean:.1f}"
    return mean if plain else f"{mean} ({100 * interval.low:.1f}–{100 * interval.high:.1f})"


def plot(path: Path, summaries: Sequence[Summary], name: str) -> bool:
    """Draw an arm's main score with its interval as a bar each; False (and no file) without matplotlib."""
    try:
        from matplotlib.figure import Figure  # type: ignore[import-not-found]
    except ImportError:
        return False
    shown = [(summary.arm, summary.scores[name]) for summary in summaries if name in summary.scores]
    figure = Figure(figsize=(1.5 + len(shown), 4), layout="constrained")
    axes = figure.subplots()
    means = [interval.mean for _, interval in shown]
    errors = [[i.mean - i.low for _, i in shown], [i.high - i.mean for _, i in shown]]
    axes.bar([arm for arm, _ in shown], means, yerr=errors, capsize=4)
    axes.set_ylabel(name)
    axes.set_ylim(0, 1)
    axes.tick_params(axis="x", rotation=30)
    figure.savefig(path, dpi=150)
    return True
