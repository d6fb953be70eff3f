"""Rows and summaries: what is computed for a question in an arm, and over all questions of an arm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

from pydantic_core import to_jsonable_python as as_json

from memspan.eval import metrics
from memspan.eval.answering import GeneratedAnswer
from memspan.eval.arms import Arm
from memspan.eval.metrics import Interval
from memspan.eval.ranking import RANKED_DEPTH, Ranking
from memspan.generate.citing import abstains
from memspan.text.questions import Question

__all__ = ["ArmSummary", "Row", "as_json", "compare", "main_score", "score", "summarise"]

DEPTHS = (1, 5, RANKED_DEPTH)
_HOP_DEPTH = 5
SHOWN = (
    "string_match",
    *metrics.ANSWER_METRICS,
    *(f"{name}@{k}" for name in ("recall", "all_found") for k in DEPTHS),
    "empty",
    "malformed",
)
"""All scores there are, in the order they are shown in."""


@dataclass(frozen=True, slots=True)
class Row:
    """One question in one arm.

    Attributes:
        ranked: external ids as the retriever ranked them, to the depth of `RANKED_DEPTH`.
        gold_ranks: per positive, in hop order, its place in the ranking from 1; None where it is not in it.
        scores: what can be averaged, by name; which ones depends on the question's type.
        layers: per MSA layer, by its index, the recall of the documents it routed to; empty where nothing was routed.
        unanswerable, abstained: see `metrics.abstention`.
        seconds: by stage: select, prefill, decode.
    """

    arm: str
    id: str
    type: str
    question: str
    answers: tuple[str, ...]
    text: str
    ranked: tuple[str, ...]
    gold_ranks: tuple[int | None, ...]
    used: tuple[str, ...]
    scores: Mapping[str, float]
    unanswerable: bool
    abstained: bool
    finish_reason: str
    num_prompt_tokens: int
    num_new_tokens: int
    seconds: Mapping[str, float]
    layers: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Row:
        """The row that was written as JSON; lists become tuples again."""
        tuples: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **tuples})


def score(question: Question, arm: Arm, ranking: Ranking, answered: GeneratedAnswer) -> Row:
    """The row of one answered question."""
    ranked = tuple(item.external_id for item in ranking.documents[:RANKED_DEPTH]) if arm.ranks else ()
    names = [document.external_id for document in question.positives]
    places = tuple(ranked.index(name) + 1 if name in ranked else None for name in names)
    scores = _answer_scores(question, answered.text)
    layers: dict[str, float] = {}
    if arm.ranks and names:
        scores |= _retrieval_scores(question, ranked)
        recall = _recall_of(question)
        layers = {str(layer): recall(sorted(found), set(names), len(found)) for layer, found in ranking.layers.items()}
    scores |= {"empty": float(not answered.text.strip()), "malformed": float(metrics.is_malformed(answered.text))}
    return Row(
        arm=arm.name,
        id=question.id,
        type=question.type,
        question=question.question,
        answers=question.answers,
        text=answered.text,
        ranked=ranked,
        gold_ranks=places if arm.ranks else (),
        used=answered.used,
        scores=scores,
        unanswerable=question.type == "unanswerable",
        abstained=answered.said_none or abstains(answered.text),
        finish_reason=answered.finish_reason,
        num_prompt_tokens=answered.num_prompt_tokens,
        num_new_tokens=answered.num_new_tokens,
        seconds={"select": ranking.seconds, "prefill": answered.prefill, "decode": answered.decode},
        layers=layers,
    )


def _answer_scores(question: Question, text: str) -> dict[str, float]:
    if question.type == "all":
        return {"string_match": metrics.string_match(text, question.answers)}
    if not question.answers:
        return {}
    return {name: measure(text, question.answers) for name, measure in metrics.ANSWER_METRICS.items()}


def _retrieval_scores(question: Question, ranked: Sequence[str]) -> dict[str, float]:
    gold, recall = {document.external_id for document in question.positives}, _recall_of(question)
    complete = metrics.all_found_at if question.needs_all else metrics.any_found_at
    found = {f"recall@{k}": recall(ranked, gold, k) for k in DEPTHS}
    return found | {f"all_found@{k}": complete(ranked, gold, k) for k in DEPTHS}


def _recall_of(question: Question) -> Callable[[Sequence[str], set[str], int], float]:
    """Recall; where any one positive does, whether one is there."""
    return metrics.recall_at if question.needs_all else metrics.any_found_at


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """An arm over all its questions.

    Attributes:
        scores: means with intervals, by the names of `Row.scores`; each over the questions that have it.
        hops: of questions that need every positive, by hop: the share whose positive was among the first five.
        abstention: precision and recall, None where there is nothing to take a share of.
        layers: recall of the documents that each MSA layer routed to, by the layer's index.
        documents: number put before the question.
        prompt_tokens, new_tokens: means. seconds: medians, by stage.
    """

    arm: str
    questions: int
    scores: Mapping[str, Interval]
    hops: Mapping[str, Interval]
    layers: Mapping[str, Interval]
    abstention: metrics.Abstention
    documents: Interval
    prompt_tokens: float
    new_tokens: float
    seconds: Mapping[str, float]


def summarise(arm: str, rows: Sequence[Row], seed: int = 0) -> ArmSummary:
    """Average an arm's rows; the order of the rows does not matter.

    Raises:
        ValueError: there are none.
    """
    rows = sorted(rows, key=lambda row: row.id)
    if not rows:
        raise ValueError(f"the arm {arm} has no rows; answer at least one question")
    names = sorted({name for row in rows for name in row.scores}, key=SHOWN.index)
    by_name = {name: [row.scores[name] for row in rows if name in row.scores] for name in names}
    return ArmSummary(
        arm=arm,
        questions=len(rows),
        scores={name: metrics.bootstrap(values, seed=seed) for name, values in by_name.items()},
        hops=_hops(rows, seed),
        layers=_layers(rows, seed),
        abstention=metrics.abstention([row.abstained for row in rows], [row.unanswerable for row in rows], seed=seed),
        documents=metrics.bootstrap([len(row.used) for row in rows], seed=seed),
        prompt_tokens=mean(row.num_prompt_tokens for row in rows),
        new_tokens=mean(row.num_new_tokens for row in rows),
        seconds={stage: median(row.seconds[stage] for row in rows) for stage in rows[0].seconds},
    )


def _hops(rows: Iterable[Row], seed: int) -> dict[str, Interval]:
    by_hop: dict[int, list[float]] = {}
    for row in rows:
        if row.type == "multi":
            for hop, place in enumerate(row.gold_ranks, start=1):
                by_hop.setdefault(hop, []).append(float(place is not None and place <= _HOP_DEPTH))
    return {f"hop {hop}": metrics.bootstrap(values, seed=seed) for hop, values in sorted(by_hop.items())}


def _layers(rows: Iterable[Row], seed: int) -> dict[str, Interval]:
    by_layer: dict[str, list[float]] = {}
    for row in rows:
        for layer, recall in row.layers.items():
            by_layer.setdefault(layer, []).append(recall)
    return {layer: metrics.bootstrap(by_layer[layer], seed=seed) for layer in sorted(by_layer, key=int)}


def main_score(rows: Iterable[Row]) -> str:
    """The score an arm is compared by: RULER's match, F1, or for pairs recall@5."""
    present = {name for row in rows for name in row.scores}
    return next((name for name in ("string_match", "f1", "recall@5") if name in present), "empty")


def compare(first: Sequence[Row], second: Sequence[Row], name: str, seed: int = 0) -> tuple[Interval, float] | None:
    """The difference of two arms in a score, first - second, on the questions both have; None if there are none."""
    others = {row.id: row.scores[name] for row in second if name in row.scores}
    pairs = sorted(
        (row.id, row.scores[name], others[row.id]) for row in first if name in row.scores and row.id in others
    )
    if not pairs:
        return None
    return metrics.paired_bootstrap([a for _, a, _ in pairs], [b for _, _, b in pairs], seed=seed)
