"""A hold-out of the training data: questions for gates and early stopping, and the bank they are asked of."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from memspan.text.questions import Question
from memspan.train.data.matching import normal_text, passage_hash
from memspan.train.structure import STRICT, Count
from memspan.types import Document


@settings(frozen=True, slots=True, config=STRICT)
class HoldoutSettings:
    """How much is held out.

    Attributes:
        questions: of every source; a source may say otherwise.
        bank: passages of the bank, at least; more where the questions' own positives are more.
        max_share: of a source's questions that is held out at most, so that a small source stays one to train on.
    """

    questions: Count = 64
    bank: Count = 2500
    max_share: Annotated[float, Field(ge=0, lt=1)] = 0.1


@dataclass(frozen=True, slots=True)
class Split:
    """A source cut in two.

    Attributes:
        train: without the hold-out's questions, and without questions about a passage that answers one of them.
        holdout: by the hash of the question, so that the same ones are held out when the source grows.
        left_out: questions in neither, because they share a positive with the hold-out.
    """

    train: tuple[Question, ...]
    holdout: tuple[Question, ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class BankPassage:
    """A passage of the hold-out's bank, and the source it came from."""

    document: Document
    source: str


def split_holdout(questions: Sequence[Question], count: int, seed: int, max_share: float = 0.1) -> Split:
    """Hold out the `count` questions whose hash (of the seed and the normalized question) is least.

    Questions with positives come into it only: without evidence there is nothing to find.
    """
    able = [question for question in questions if question.positives]
    order = sorted(able, key=lambda question: (_draw(seed, normal_text(question.question)), question.id))
    held = order[: min(count, int(max_share * len(questions)))]
    ids = {question.id for question in held}
    texts = {normal_text(question.question) for question in held}
    passages = {passage_hash(document) for question in held for document in question.positives}
    others = [q for q in questions if q.id not in ids and normal_text(q.question) not in texts]
    train = [q for q in others if not any(passage_hash(document) in passages for document in q.positives)]
    return Split(tuple(train), tuple(held), len(questions) - len(held) - len(train))


def holdout_bank(
    holdout: Sequence[Question], train: Mapping[str, Sequence[Question]], size: int, seed: int
) -> list[BankPassage]:
    """The passages the hold-out is asked of: all its positives; then, up to `size`, half of the room for its own
    negatives and the rest for positives of the training data, the same number of every source; shuffled.

    A text stands in it once. What is not covered: a passage of the training data that happens to answer a hold-out
    question counts as wrong.
    """
    rng = random.Random(f"{seed}:bank")
    chosen: dict[str, BankPassage] = {}
    _take(chosen, (BankPassage(d, q.source) for q in holdout for d in q.positives), None)
    own = [BankPassage(document, question.source) for question in holdout for document in question.negatives]
    rng.shuffle(own)
    _take(chosen, own, len(chosen) + max(0, size - len(chosen)) // 2)
    pools = {name: [BankPassage(d, name) for q in questions for d in q.positives] for name, questions in train.items()}
    for pool in pools.values():
        rng.shuffle(pool)
    rounds = max(map(len, pools.values()), default=0)
    _take(chosen, (pool[turn] for turn in range(rounds) for pool in pools.values() if turn < len(pool)), size)
    passages = list(chosen.values())
    rng.shuffle(passages)
    return passages


def _take(chosen: dict[str, BankPassage], passages: Iterable[BankPassage], limit: int | None) -> None:
    for item in passages:
        if limit is not None and len(chosen) >= limit:
            return
        chosen.setdefault(passage_hash(item.document), item)


def _draw(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}\0{text}".encode()).hexdigest()
