"""Leakage: questions that stand in the training data and in an evaluation set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from memspan.text.questions import Question
from memspan.train.data.matching import passage_hash, text_hash

_LONG_ENOUGH = 12
"""Characters from which a source's own id is taken to be unique in the world (a hash, not a number)."""


class EvaluationQuestions:
    """The questions of evaluation sets, by the hash of their normalized text and by id."""

    def __init__(self, questions: Iterable[Question]) -> None:
        self._texts: dict[str, str] = {}
        self._ids: dict[str, str] = {}
        self._passages: set[str] = set()
        for question in questions:
            self._texts.setdefault(text_hash(question.question), question.id)
            for name in _names(question):
                self._ids.setdefault(name, question.id)
            self._passages.update(passage_hash(document) for document in question.positives)

    def same_question(self, question: Question) -> str | None:
        """The id of the evaluation question with the same text."""
        return self._texts.get(text_hash(question.question))

    def same_id(self, question: Question) -> str | None:
        """The id of the evaluation question with the same id, the name of the source before it apart."""
        return next((self._ids[name] for name in _names(question) if name in self._ids), None)

    def leaks(self, question: Question) -> bool:
        """Whether a training question must not be trained on."""
        return self.same_question(question) is not None or self.same_id(question) is not None

    def holds_passage(self, digest: str) -> bool:
        """Whether a passage of this hash is evidence for an evaluation question."""
        return digest in self._passages


@dataclass(frozen=True, slots=True)
class Leakage:
    """What training and evaluation data have in common.

    Attributes:
        questions, ids: pairs (id in training, id in evaluation) of the same question and of the same id.
        passages: distinct positives of both. Not a fault: a passage can be evidence for questions of both, and in a
            closed memory it is; say so beside figures that depend on it.
    """

    questions: tuple[tuple[str, str], ...]
    ids: tuple[tuple[str, str], ...]
    passages: int

    @property
    def found(self) -> bool:
        """Whether there is a leak: the same question or the same id."""
        return bool(self.questions or self.ids)


def find_leakage(training: Iterable[Question], evaluation: Iterable[Question]) -> Leakage:
    """Compare the two by hashes; no question is compared with every other."""
    held = EvaluationQuestions(evaluation)
    questions: list[tuple[str, str]] = []
    ids: list[tuple[str, str]] = []
    passages: set[str] = set()
    for question in training:
        if (other := held.same_question(question)) is not None:
            questions.append((question.id, other))
        if (other := held.same_id(question)) is not None:
            ids.append((question.id, other))
        passages.update(map(passage_hash, question.positives))
    return Leakage(tuple(questions), tuple(ids), sum(map(held.holds_passage, passages)))


def _names(question: Question) -> list[str]:
    """What a question is called: its id, and what follows the first dash of it (`squad-5733be28...`), if long."""
    own = question.id.partition("-")[2]
    return [question.id, own] if len(own) >= _LONG_ENOUGH else [question.id]
