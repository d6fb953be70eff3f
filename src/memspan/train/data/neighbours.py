"""Questions in groups of neighbors: the documents of one are hard negatives for the others, at no cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import torch
from pydantic.dataclasses import dataclass

from memspan.text.embedding import Embed
from memspan.text.questions import Question
from memspan.train.structure import STRICT, Positive

_ROWS = 2048


@dataclass(frozen=True, slots=True, config=STRICT)
class NeighbourSettings:
    """How questions are grouped.

    Attributes:
        model: a sentence-transformers model, by name or folder, that says which questions are alike. Empty: no groups.
        size: questions of a group.
        depth: nearest questions looked at for the others of a group.
    """

    model: str = ""
    size: Positive = 8
    depth: Positive = 64

    def __post_init__(self) -> None:
        if self.size > self.depth:
            raise ValueError(f"groups of {self.size} out of {self.depth} neighbors: make the depth the larger one")


def in_groups(questions: Sequence[Question], embed: Embed, settings: NeighbourSettings, seed: str) -> list[Question]:
    """The same questions in another order: groups of `size` alike ones, then what is left over.

    A group begins with a question drawn at random and takes the nearest that are still free; no two share a positive.

    Args:
        embed: their texts to rows of unit length.
    """
    rows_NF = embed([question.question for question in questions])
    near = _nearest(rows_NF, min(settings.depth, len(questions)))
    positives = [{document.external_id for document in question.positives} for question in questions]
    free = [True] * len(questions)
    order = list(range(len(questions)))
    Random(seed).shuffle(order)
    neighbours = list(near)
    full: list[int] = []
    left: list[int] = []
    for first in order:
        if not free[first]:
            continue
        group, taken = [first], set(positives[first])
        free[first] = False
        for other in neighbours[first]:
            if len(group) == settings.size:
                break
            if free[other] and not positives[other] & taken:
                group.append(other)
                taken |= positives[other]
                free[other] = False
        (full if len(group) == settings.size else left).extend(group)
    return [questions[place] for place in (*full, *left)]


def _nearest(rows_NF: torch.Tensor, count: int) -> Iterator[list[int]]:
    """Of every row the nearest rows, itself among them, best first."""
    for some in rows_NF.split(_ROWS):
        yield from (some @ rows_NF.T).topk(count).indices.tolist()
