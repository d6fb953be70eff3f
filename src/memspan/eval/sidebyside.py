"""Several runs side by side, in the layout of the paper's tables 2 to 4 and figures 1 and 4 (arXiv 2603.23516).

report.md                   everything; figures 1 and 4 as tables, too
figure1.png, figure4.png    where matplotlib is installed and a run has what they show
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from memspan.errors import EvaluationError
from memspan.eval import metrics
from memspan.eval.arms import Arm, parse_arm
from memspan.eval.judge import JUDGED
from memspan.eval.metrics import Interval
from memspan.eval.niah import NIAH_TASKS
from memspan.eval.report import line, plot_curves, share, size_name
from memspan.eval.runfiles import read_result
from memspan.eval.scale import SCALE
from memspan.eval.scoring import as_json
from memspan.eval.tasks import DEFAULT_NEEDLE_TOKENS
from memspan.files import write_text

REPORT, FIGURE_1, FIGURE_4 = "report.md", "figure1.png", "figure4.png"
_PERCENT = 100

# What the paper states, to stand beside: its own backbone (4B), data and judge.
_PAPER_2 = (
    "The paper, average of 9 sets, graded 0 to 5, a 4B backbone trained on 159 billion tokens: MSA 3.76; retrieval "
    "with the same backbone 3.24, reranked 3.37; HippoRAG2 3.28; retrieval with a large backbone up to 3.58."
)
_PAPER_4 = (
    "The paper, average of 4 sets, graded 0 to 5: whole method 3.98; without its second stage of fine-tuning 3.69; of "
    "that without interleave 3.50, without continual pre-training 2.54, without the original text 2.33."
)
_PAPER_FIGURE_1 = "The paper: less than 9% degradation on MS MARCO from 16K to 100M tokens."
_PAPER_FIGURE_4 = "The paper, mean of the 8 subtasks: 98.8 at 32K, 94.8 at 1M; its bare backbone 24.7 at 1M."


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished run: its name, what it measured, and the grades of a judge where it has some."""

    name: str
    result: Mapping[str, Any]
    judged: Mapping[str, Any] | None

    @property
    def task(self) -> str:
        """The needle task, or the name of the question set's file."""
        settings = self.result["config"]["settings"]["task"]
        return settings["name"] if settings["data"] is None else Path(settings["data"]).name.partition(".")[0]

    @property
    def is_needle(self) -> bool:
        return self.result["config"]["settings"]["task"]["data"] is None

    @property
    def model(self) -> str:
        """The backbone with its size; two models are told apart by this."""
        model = self.result["config"]["model"]
        router = "trained" if model["router_trained"] else "untrained"
        return f"{model['backbone']} {model['parameters'] / 1e6:,.0f}M, router {router}"

    @property
    def memory_tokens(self) -> int:
        return sum(memory["memory_tokens"] for memory in self.result["memories"] if memory["complete"])

    @property
    def needle_tokens(self) -> int:
        """Size of each haystack."""
        return self.result["config"]["settings"]["task"]["memory_tokens"] or DEFAULT_NEEDLE_TOKENS

    def scores(self, name: str) -> dict[str, Interval]:
        """A score by arm; `judge` are the grades."""
        if name == "judge":
            arms = self.judged["arms"] if self.judged else {}
            return {arm: Interval(**found["score"]) for arm, found in arms.items() if found["score"]}
        summaries = {summary["arm"]: summary["scores"] for summary in self.result["summaries"]}
        return {arm: Interval(**scores[name]) for arm, scores in summaries.items() if name in scores}


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Read runs and write their report into a folder; returns the Markdown file.

    Raises:
        EvaluationError: a folder holds no finished run.
    """
    runs: list[Finished] = []
    scales: list[tuple[str, Mapping[str, Any]]] = []
    for folder in folders:
        if (folder / SCALE).is_file():
            scales.append((folder.name, json.loads((folder / SCALE).read_text("utf-8"))))
        else:
            judged = folder / JUDGED
            grades = json.loads(judged.read_text("utf-8")) if judged.is_file() else None
            runs.append(Finished(folder.name, read_result(folder), grades))
    out.mkdir(parents=True, exist_ok=True)
    sets, needles = [run for run in runs if not run.is_needle], [run for run in runs if run.is_needle]
    parts = [
        *_opening(runs, scales),
        *_questions(sets),
        *_ablation(sets),
        *_scale(scales, out),
        *_needles(needles, out),
    ]
    write_text(out / REPORT, "\n".join(parts) + "\n")
    return out / REPORT


def _opening(runs: Sequence[Finished], scales: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    sizes = {run.result["config"]["model"]["parameters"] for run in runs}
    sizes |= {scale["config"]["model"]["parameters"] for _, scale in scales}
    if not sizes:
        raise EvaluationError("nothing to report; name folders of finished runs")
    shown = " and ".join(f"{size / 1e6:,.0f}M" for size in sorted(sizes))
    lines = [
        "# Runs side by side",
        "",
        f"The models here have {shown} parameters; the paper's has 4,000M and was trained for it on 159 billion tokens."
        " The layout is the paper's, so that arms can be compared with each other here as there; the level of the "
        "figures says nothing about the method. Percent with 95% bootstrap intervals unless said otherwise.",
    ]
    if runs:
        lines += ["", line(["run", "task", "questions", "memory", "model", "tokens"]), line(["---"] * 6)]
    for run in runs:
        questions = run.result["summaries"][0]["questions"] if run.result["summaries"] else 0
        new = run.result["config"]["sampling"]["max_new_tokens"]
        memory = f"{run.memory_tokens:,} tokens"
        lines.append(line([run.name, run.task, str(questions), memory, run.model, f"{new} new"]))
    return lines


def _questions(runs: Sequence[Finished]) -> list[str]:
    """Tables 2 and 3: retrieval against MSA, a row per set; with several models, a block of rows for each."""
    if not runs:
        return []
    models = list(dict.fromkeys(run.model for run in runs))
    lines = ["", "## Question sets (tables 2 and 3)", "", _PAPER_2]
    if len(models) == 1:
        lines += ["Table 3 sets larger generators beside: give runs of other models to this command."]
    for name in ("judge", "f1", "substring", "recall@5"):
        lines += _sets_table(runs, models, name)
    return lines


def _sets_table(runs: Sequence[Finished], models: Sequence[str], name: str) -> list[str]:
    found = {run.name: run.scores(name) for run in runs}
    arms = list(dict.fromkeys(arm for scores in found.values() for arm in scores))
    if not arms:
        return []
    lines = ["", f"### {_title(name)}", "", line(["set", "model", *(f"`{arm}`" for arm in arms)])]
    lines.append(line(["---"] * (len(arms) + 2)))
    for model in models:
        mine = [run for run in runs if run.model == model and found[run.name]]
        for run in mine:
            lines.append(line([run.task, model, *(_cell(found[run.name].get(arm), name) for arm in arms)]))
        if len(mine) > 1:
            cells = [_mean([found[run.name].get(arm) for run in mine], name) for arm in arms]
            lines.append(line(["**mean of the sets**", model, *cells]))
    return lines


def _title(name: str) -> str:
    return "Grades of the judge, 0 to 5" if name == "judge" else name


def _cell(interval: Interval | None, name: str) -> str:
    if interval is None or name != "judge":
        return share(interval, plain=False)
    return f"{interval.mean:.2f} ({interval.low:.2f}–{interval.high:.2f})"


def _mean(intervals: Sequence[Interval | None], name: str) -> str:
    """The mean of an arm over sets; none where it was not run on all of them."""
    means = [interval.mean for interval in intervals if interval is not None]
    if len(means) < len(intervals):
        return "–"
    return f"{mean(means):.2f}" if name == "judge" else f"{_PERCENT * mean(means):.1f}"


def _ablation(runs: Sequence[Finished]) -> list[str]:
    """Table 4: the arms with memory latents, and what the score loses without each of their parts."""
    rows: list[str] = []
    for run in runs:
        name = "judge" if run.scores("judge") else run.result["main_score"]
        scores = run.scores(name)
        arms = {arm: parse_arm(arm) for arm in scores}
        whole = _whole(arm for arm in arms.values() if arm.routes)
        for arm, interval in scores.items():
            if whole is not None and arms[arm].retriever == whole.retriever:
                change = interval.mean - scores[whole.name].mean
                shown = f"{change:+.2f}" if name == "judge" else f"{_PERCENT * change:+.1f}"
                rows.append(line([run.task, _title(name), f"`{arm}`", _cell(interval, name), shown]))
    if not rows:
        return []
    head = [line(["set", "score", "arm", "mean", "beside the whole"]), line(["---"] * 5)]
    return ["", "## Ablations (table 4)", "", _PAPER_4, "", *head, *rows]


def _whole(arms: Iterable[Arm]) -> Arm | None:
    """The arm with most of the method in it: rounds, latents, text."""
    return max(arms, key=lambda arm: (arm.latents, bool(arm.documents), arm.rounds), default=None)


def _scale(scales: Sequence[tuple[str, Mapping[str, Any]]], out: Path) -> list[str]:
    """Figure 1: a score over the memory's size."""
    if not scales:
        return []
    curves = {f"{run} {arm}": points for run, scale in scales for arm, points in scale["curve"].items()}
    score = scales[0][1]["main_score"]
    lines = ["", "## Growing memory (figure 1)", "", _PAPER_FIGURE_1, "", *_curve_table(curves, score)]
    return lines + (["", f"![Figure 1]({FIGURE_1})"] if plot_curves(out / FIGURE_1, curves, score) else [])


def _curve_table(curves: Mapping[str, Sequence[Mapping[str, Any]]], score: str) -> list[str]:
    sizes = sorted({point["size"] for points in curves.values() for point in points})
    lost = any(points[-1]["degradation"] for points in curves.values())
    head = [score, *map(size_name, sizes), *(["degradation"] if lost else [])]
    lines = [line(head), line(["---"] * len(head))]
    for name, points in curves.items():
        cells = {point["size"]: share(Interval(**point["scores"][score]), plain=False) for point in points}
        row = [f"`{name}`", *(cells.get(size, "–") for size in sizes)]
        if lost:
            last = points[-1]["degradation"]
            row.append(share(Interval(**last) if last else None, plain=False))
        lines.append(line(row))
    return lines


def _needles(runs: Sequence[Finished], out: Path) -> list[str]:
    """Figure 4: the mean of RULER's eight subtasks over the memory's length; variable tracking stands apart."""
    if not runs:
        return []
    by_arm: dict[str, dict[int, list[tuple[str, Interval]]]] = {}
    for run in runs:
        if run.task in NIAH_TASKS:
            size = run.needle_tokens
            for arm, interval in run.scores("string_match").items():
                by_arm.setdefault(arm, {}).setdefault(size, []).append((run.task, interval))
    curves = {arm: [_needle_point(size, sizes[size]) for size in sorted(sizes)] for arm, sizes in by_arm.items()}
    lines = ["", "## Needles (figure 4)", "", _PAPER_FIGURE_4]
    if curves:
        lines += ["", *_curve_table(curves, "string_match")]
        covered = {run.task for run in runs if run.task in NIAH_TASKS}
        if len(covered) < len(NIAH_TASKS):
            lines += ["", f"Of {len(covered)} of the {len(NIAH_TASKS)} subtasks: {', '.join(sorted(covered))}."]
        if plot_curves(out / FIGURE_4, curves, "string_match"):
            lines += ["", f"![Figure 4]({FIGURE_4})"]
    lines += ["", line(["task", "memory", "arm", "string_match"]), line(["---"] * 4)]
    for run in runs:
        size = size_name(run.needle_tokens)
        lines += [
            line([run.task, size, f"`{arm}`", share(found, plain=False)])
            for arm, found in run.scores("string_match").items()
        ]
    return lines


def _needle_point(size: int, found: Iterable[tuple[str, Interval]]) -> dict[str, Any]:
    """The mean over subtasks; its interval is that of the subtasks' means added up as independent ones."""
    intervals = [interval for _, interval in found]
    return {"size": size, "scores": {"string_match": as_json(metrics.mean_of(intervals))}, "degradation": None}
