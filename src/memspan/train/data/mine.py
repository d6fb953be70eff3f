"""Hard negatives: passages that share words with a question and do not answer it, found by BM25."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from memspan.errors import DataError
from memspan.text.questions import Question
from memspan.text.template import encoded_text
from memspan.text.terms import plain_words
from memspan.train.bm25 import Bm25
from memspan.train.data.matching import AnswerFinder, passage_hash
from memspan.train.structure import STRICT, Count, Positive
from memspan.types import Document


@settings(frozen=True, slots=True, config=STRICT)
class MineSettings:
    """What counts as a hard negative.

    Attributes:
        count: negatives a question has afterwards, at most; its own count and stay.
        depth: how many of the best passages by BM25 are looked at.
        max_overlap: a passage that shares more than this share of words with a positive (Jaccard) is taken for
            another wording of it, and passed over.
    """

    count: Count = 4
    depth: Positive = 30
    max_overlap: Annotated[float, Field(gt=0, le=1)] = 0.6


@dataclass(frozen=True, slots=True)
class Mined:
    """The questions with their negatives, how many were added, and how many passages were passed over for what."""

    questions: tuple[Question, ...]
    added: int
    answering: int
    overlapping: int


class Miner:
    """Finds hard negatives in one corpus.

    A passage is passed over where it is a positive or a negative of the question already (by the hash of its text),
    holds an answer of it, or repeats a positive. A question without answers (a pair) has only the last guard: what
    is mined for it may well answer it, so keep `count` small there.

    Raises:
        DataError: the corpus is empty.
    """

    def __init__(self, corpus: Iterable[Document], settings: MineSettings | None = None) -> None:
        self.settings = settings or MineSettings()
        distinct = {passage_hash(document): document for document in corpus}
        if not distinct:
            raise DataError("there are no passages to mine negatives from")
        self._hashes, self._corpus = list(distinct), list(distinct.values())
        self._index = Bm25([encoded_text(document.title, document.text) for document in self._corpus])
        self._words: dict[str, frozenset[str]] = {}

    def mine(self, questions: Sequence[Question], progress: Callable[[int], None] | None = None) -> Mined:
        """Add negatives to questions that have fewer than `count`, best first by BM25."""
        mined: list[Question] = []
        added = answering = overlapping = 0
        for place, question in enumerate(questions):
            more, answers, repeats = self._negatives_of(question)
            mined.append(replace(question, negatives=(*question.negatives, *more)) if more else question)
            added, answering, overlapping = added + len(more), answering + answers, overlapping + repeats
            if progress is not None:
                progress(place + 1)
        return Mined(tuple(mined), added, answering, overlapping)

    def _negatives_of(self, question: Question) -> tuple[list[Document], int, int]:
        """New negatives; how many passages were left out for an answer, and for repeating a positive."""
        wanted = self.settings.count - len(question.negatives)
        found: list[Document] = []
        answering = overlapping = 0
        if wanted <= 0:
            return found, answering, overlapping
        known = {passage_hash(document) for document in (*question.positives, *question.negatives)}
        finder = AnswerFinder(question.answers)
        for place, _ in self._index.search(question.question, self.settings.depth):
            document = self._corpus[place]
            if self._hashes[place] in known:
                continue
            if finder.holds(document):
                answering += 1
            elif any(self._overlap(document, other) > self.settings.max_overlap for other in question.positives):
                overlapping += 1
            else:
                found.append(document)
                if len(found) == wanted:
                    break
        return found, answering, overlapping

    def _overlap(self, one: Document, other: Document) -> float:
        first, second = self._words_of(one), self._words_of(other)
        return len(first & second) / max(1, len(first | second))

    def _words_of(self, document: Document) -> frozenset[str]:
        found = self._words.get(document.external_id)
        if found is None:
            found = self._words[document.external_id] = frozenset(plain_words(document.text))
        return found


def passages_of(questions: Iterable[Question]) -> list[Document]:
    """Every passage of the questions once, positives first, in order."""
    known: dict[str, Document] = {}
    kept = list(questions)
    for question in kept:
        known.update((document.external_id, document) for document in question.positives)
    for question in kept:
        for document in question.negatives:
            known.setdefault(document.external_id, document)
    return list(known.values())
