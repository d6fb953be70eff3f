"""Questions whose documents say something else than the world: the model is to believe what it reads.

A model that knows an answer learns nothing from reading it. With another question's answer in its place, in the
document and as what is to be answered, only reading helps (entity substitution: Longpre et al. 2021, "Entity-Based
Knowledge Conflicts in Question Answering").
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from memspan.text.questions import Question, passage
from memspan.types import Document

MAX_WORDS = 6
"""Longer answers are sentences, and fit nowhere else."""


def with_other_answers(questions: Sequence[Question], share: float, rng: random.Random) -> list[Question]:
    """The questions of a batch, a share of them with another's answer, in their documents as well.

    Questions that one document answers are altered where it holds the answer word for word and no other question of
    the batch has it; what takes its place is the answer of another question that looks like it (a number for a
    number, a name for a name) and that neither question nor document hold. Others are left as they are.

    Args:
        share: of the questions that can be altered, the probability that one is.
    """
    used = Counter(found.external_id for question in questions for found in question.positives + question.negatives)
    answers = [question.answers[0] for question in questions if question.answers and question.type == "single"]
    altered = []
    for question in questions:
        # Drawn for every question, so that what is drawn does not depend on which of them can be altered.
        wanted, candidates = rng.random() < share, rng.sample(answers, len(answers))
        shared = any(used[document.external_id] > 1 for document in question.positives)
        other = None if shared or not wanted else _other_answer(question, candidates)
        altered.append(question if other is None else _altered(question, other))
    return altered


def replaced_documents(before: Sequence[Question], after: Sequence[Question]) -> dict[str, Document]:
    """What stands in the place of the documents that `with_other_answers` altered, by their former names."""
    pairs = [
        pair for old, new in zip(before, after, strict=True) for pair in zip(old.positives, new.positives, strict=True)
    ]
    return {old.external_id: new for old, new in pairs if old is not new}


def _other_answer(question: Question, candidates: Sequence[str]) -> str | None:
    """The first answer that can stand in the place of the question's own."""
    if question.type != "single" or not question.positives or not question.answers:
        return None
    own = _pattern(question.answers)
    if any(len(answer.split()) > MAX_WORDS for answer in question.answers) or own.search(question.question):
        return None
    if not all(own.search(document.text) for document in question.positives):
        return None
    said = " ".join((question.question, *(f"{found.title} {found.text}" for found in question.positives))).casefold()
    for other in candidates:
        short = len(other.split()) <= MAX_WORDS
        if short and other.casefold() not in said and _form(other) == _form(question.answers[0]):
            return other
    return None


def _altered(question: Question, answer: str) -> Question:
    own = _pattern(question.answers)
    positives = tuple(
        replace(passage(own.sub(lambda _: answer, found.title), own.sub(lambda _: answer, found.text)), date=found.date)
        for found in question.positives
    )
    return replace(question, answers=(answer,), positives=positives)


def _pattern(answers: Sequence[str]) -> re.Pattern[str]:
    """Any of the accepted forms, the longest first, as whole words."""
    forms = sorted(answers, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, forms))})(?!\w)", re.IGNORECASE)


def _form(answer: str) -> tuple[bool, bool, bool]:
    """What an answer looks like: with digits, with a capital, of more than three words."""
    return any(map(str.isdigit, answer)), answer[:1].isupper(), len(answer.split()) > 3
