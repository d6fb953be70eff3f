"""The scale curve: the same questions asked again and again while their memory grows.

One bank grows from size to size, so every distractor is encoded once, and a point is asked before the next growth:
what the smaller points saw is never more than their own documents. First come the documents with the answers, then the
questions' own distractors, then those of the files. Stopped, the command goes on where it was.

Writes into its folder, beside config.json, bank/ and encoding.jsonl (see `runner`):

    points/SIZE/   rows.jsonl, result.json, table.md, plot.png of that size, as of any run
    scale.json     per arm and size the scores with their intervals, and the degradation from the smallest size
    table.md       the curve for people; plot.png, where matplotlib is installed
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from memspan.errors import EvaluationError
from memspan.eval import metrics, report
from memspan.eval.asking import Evaluation
from memspan.eval.machine import machine
from memspan.eval.runfiles import ENCODING, TABLE, append_lines, keep_config, read_lines
from memspan.eval.runner import (
    BANK,
    RunOptions,
    RunOutcome,
    RunSettings,
    config_of,
    encode,
    open_memory,
    ranker_of,
    tell_hours,
    write_results,
)
from memspan.eval.scoring import as_json
from memspan.eval.sets import MemoryPlan, each_once
from memspan.eval.tasks import question_set, texts_of
from memspan.files import write_text
from memspan.generate.memory import Memory
from memspan.model.convert import LoadedModel
from memspan.text.questions import QuestionSet
from memspan.types import Document

SCALE_TASK = "scale"
SCALE = "scale.json"
_NEARLY_ALL = 0.99
"""A size counts as reached from this share on, where the documents end there."""
_UNITS = {"": 0, "K": 1, "M": 2}


@dataclass(frozen=True, slots=True)
class ScaleStep:
    """What is added to reach a size.

    Attributes:
        tokens: of the whole memory then.
    """

    size: int
    documents: tuple[Document, ...]
    tokens: int


def parse_sizes(text: str, *, kilo: int = 1024, least: int = 2, option: str = "--sizes") -> tuple[int, ...]:
    """Sizes as `16K,256K,1M`, growing.

    Args:
        kilo: what K stands for; M is its square.
        least: how many sizes there must be.
        option: that gave the text, for the message.

    Raises:
        EvaluationError: they are not sizes, or do not grow.
    """
    sizes = []
    for name in text.split(","):
        size = name.strip().upper()
        number = size.rstrip("KM")
        if not number.isdigit() or size[len(number) :] not in _UNITS:
            raise EvaluationError(f"no size {name.strip()!r}; write sizes as 16K,64K,256K,1M")
        sizes.append(int(number) * kilo ** _UNITS[size[len(number) :]])
    if sizes != sorted(set(sizes)) or len(sizes) < least or sizes[0] < 1:
        count = "one or more" if least == 1 else "at least two"
        raise EvaluationError(f"{option} must be {count} that grow, not {text}")
    return tuple(sizes)


def run_scale(
    loaded: LoadedModel, settings: RunSettings, sizes: Sequence[int], out: Path, how: RunOptions
) -> RunOutcome:
    """Measure the curve. For the other arguments and errors see `runner.run`.

    Args:
        sizes: tokens of the memory, growing.

    Raises:
        EvaluationError: the smallest size is too small for the documents with the answers, or the distractors have not
            enough tokens for the largest.
    """
    config = config_of(loaded, settings, how.answerer) | {"sizes": list(sizes)}
    keep_config(out, config)
    found = question_set(settings.task)
    steps = plan_steps(found, texts_of(settings.task.texts), loaded.template.count_tokens, sizes)
    encoded = max((line["memory_tokens"] for line in read_lines(out / ENCODING) if line["complete"]), default=0)
    tell_hours(loaded, (one for step in steps for one in step.documents), steps[-1].tokens - encoded, how.tell)
    refused: dict[str, str] = {}
    results: dict[int, dict[str, Any]] = {}
    with open_memory(out / BANK, loaded, how) as memory:
        for step in steps:
            folder = out / "points" / str(step.size)
            folder.mkdir(parents=True, exist_ok=True)
            if not _grow(memory, step, out / ENCODING, how):
                return RunOutcome(True, refused, len(found.malformed))
            how.tell(f"{step.size:,} tokens")
            ranker = ranker_of(settings)  # a new one: rankings of a smaller memory are no longer true
            evaluation = Evaluation(memory, found.questions, ranker, settings.budget, folder, how.tell)
            if not evaluation.run(settings.parsed_arms(), how.should_stop):
                return RunOutcome(True, refused, len(found.malformed))
            refused |= evaluation.refused
            memories = [_encoded(read_lines(out / ENCODING), step.size)]
            results[step.size] = write_results(folder, config, found.malformed, memories, evaluation, machine(loaded))
    _write_curve(out, config, steps, results)
    return RunOutcome(False, refused, len(found.malformed))


def plan_steps(
    found: QuestionSet, distractors: Iterable[Document], count_tokens: Callable[[str], int], sizes: Sequence[int]
) -> list[ScaleStep]:
    """Which documents are added for each size: evidence, then the questions' own distractors, then others.

    Raises:
        EvaluationError: the sizes do not fit the documents, or the questions have several memories.
    """
    if found.documents or len({question.namespace for question in found.questions}) > 1:
        raise EvaluationError("every conversation has a memory of its own, which cannot grow; use a question set")
    evidence = [document for question in found.questions for document in question.positives]
    own = (document for question in found.questions for document in question.negatives)
    lacking = sum(1 for _ in each_once(evidence, count_tokens))
    rest = each_once(chain(evidence, own, distractors), count_tokens)
    waiting = next(rest, None)
    steps: list[ScaleStep] = []
    tokens = 0
    for size in sizes:
        documents: list[Document] = []
        while waiting is not None and tokens + waiting[1] <= size:
            documents.append(waiting[0])
            tokens += waiting[1]
            waiting = next(rest, None)
        lacking -= len(documents)
        if lacking > 0:
            raise EvaluationError(
                f"the documents with the answers alone have more than {size:,} tokens; ask fewer --questions, or begin "
                "with a larger size"
            )
        if waiting is None and tokens < _NEARLY_ALL * size:
            raise EvaluationError(
                f"all documents together have {tokens:,} tokens, which does not fill {size:,}; give more "
                "--distractors, or leave out the larger sizes"
            )
        steps.append(ScaleStep(size, tuple(documents), tokens))
    return steps


def _grow(memory: Memory, step: ScaleStep, log: Path, how: RunOptions) -> bool:
    """Add a step's documents, unless they are there; False if it was stopped before that."""
    if any(line["size"] == step.size and line["complete"] for line in read_lines(log)):
        return True
    line = encode(memory, memory.namespace, MemoryPlan(step.documents, step.tokens), how)
    append_lines(log, [{"size": step.size, **line}])
    return line["complete"]


def _encoded(log: Sequence[Mapping[str, Any]], size: int) -> dict[str, Any]:
    """The memory at a size, with what encoding it took from the first size on."""
    lines = [line for line in log if line["size"] <= size]
    summed = ("sources", "documents", "encoded_tokens", "seconds", "cpu_seconds")
    return {**lines[-1], **{name: sum(line[name] for line in lines) for name in summed}}


def _write_curve(
    out: Path, config: Mapping[str, Any], steps: Sequence[ScaleStep], results: Mapping[int, Mapping[str, Any]]
) -> None:
    seed = config["settings"]["seed"]
    score = results[steps[0].size]["main_score"]
    curve: dict[str, list[dict[str, Any]]] = {}
    for arm in config["arms"]:
        first: list[float] = []
        for step in steps:
            rows = sorted((row for row in results[step.size]["rows"] if row["arm"] == arm), key=lambda row: row["id"])
            values = [row["scores"][score] for row in rows if score in row["scores"]]
            first = first or values
            if not values or len(values) != len(first):
                continue  # the arm was refused at this size: `context` where it does not fit
            summary = next(found for found in results[step.size]["summaries"] if found["arm"] == arm)
            point = {
                "size": step.size,
                "tokens": step.tokens,
                "scores": summary["scores"],
                "degradation": as_json(metrics.degradation(first, values, seed=seed)),
            }
            curve.setdefault(arm, []).append(point)
    scale = {"config": config, "main_score": score, "curve": curve}
    write_text(out / SCALE, json.dumps(scale, ensure_ascii=False, indent=1))
    write_text(out / TABLE, report.curve_markdown(scale))
    report.plot_curves(out / "plot.png", {arm: points for arm, points in curve.items()}, score)
