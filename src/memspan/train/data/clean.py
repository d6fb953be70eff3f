"""Cleaning (stage 2 of the paper's SFT): what is dropped, why, and by which source it came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from pydantic.dataclasses import dataclass as settings

from memspan.text.questions import Question
from memspan.train.data.matching import AnswerFinder, normal_text, passage_hash
from memspan.train.structure import STRICT, Names, Positive, Share
from memspan.types import Document

CountTokens = Callable[[str], int]

NO_POSITIVES = "no positives"
SAME_QUESTION = "question seen before"
SAME_PASSAGE = "pair of a passage seen before"
NO_ANSWER = "answer not in any positive"
TOO_LONG = "too long"
OTHER_LANGUAGE = "other language"
LEAKED = "question of an evaluation set"
REASONS = (NO_POSITIVES, LEAKED, SAME_QUESTION, SAME_PASSAGE, TOO_LONG, OTHER_LANGUAGE, NO_ANSWER)

NEGATIVE_IS_POSITIVE = "negative equal to a positive"
REPEATED_PASSAGE = "passage repeated in a question"


@settings(frozen=True, slots=True, config=STRICT)
class CleanSettings:
    """What is kept.

    Attributes:
        max_question, max_passage: longest question and positive, in words, or in tokens of `count_tokens`.
        min_latin: least share of Latin letters among the letters of question and positives. 0 keeps every language.
            A simple rule: it tells scripts apart, not English from French.
        extractive: types whose answer must stand in a positive, word for word.
        abstractive: sources that are free of that (answers in the annotator's own words).
        one_pair_per_passage: of pairs (a title and its text) whose positives are the same, keep the first.
    """

    max_question: Positive = 256
    max_passage: Positive = 512
    min_latin: Share = 0.5
    extractive: Names = ("single", "multi")
    abstractive: Names = ()
    one_pair_per_passage: bool = True


@dataclass(frozen=True, slots=True)
class DroppedExample:
    """An example of what was dropped."""

    id: str
    question: str


@dataclass(slots=True)
class SourceReport:
    """What cleaning did to one source: lines by reason, passages mended by reason, the first lines dropped."""

    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict[str, int])
    mended: dict[str, int] = field(default_factory=dict[str, int])
    examples: dict[str, list[DroppedExample]] = field(default_factory=dict[str, list[DroppedExample]])


class Cleaner:
    """Takes questions one after the other and remembers what it saw: of duplicates, the first is kept.

    Attributes:
        report: by source.
    """

    _NUM_EXAMPLES = 3

    def __init__(
        self,
        settings: CleanSettings | None = None,
        count_tokens: CountTokens | None = None,
        leaks: Callable[[Question], bool] | None = None,
    ) -> None:
        """
        Args:
            count_tokens: of the model that will read the texts. Default: words, between white space.
            leaks: whether a question stands in an evaluation set (see `leakage.EvaluationQuestions`).
        """
        self.settings = settings or CleanSettings()
        self.report: dict[str, SourceReport] = {}
        self._count = count_tokens or count_words
        self._leaks = leaks or (lambda _: False)
        self._questions: set[str] = set()
        self._pairs: set[frozenset[str]] = set()
        self._lengths: dict[str, int] = {}

    def clean(self, questions: Iterable[Question]) -> list[Question]:
        """The questions that are kept, in order, with their negatives mended."""
        return [mended for question in questions if (mended := self._clean_one(question)) is not None]

    def _clean_one(self, question: Question) -> Question | None:
        report = self.report.setdefault(question.source, SourceReport())
        report.read += 1
        mended = self._mend(question, report)
        reason = self._reason(mended)
        if reason is None:
            report.kept += 1
            self._remember(mended)
            return mended
        _count(report.dropped, reason, 1)
        examples = report.examples.setdefault(reason, [])
        if len(examples) < self._NUM_EXAMPLES:
            examples.append(DroppedExample(question.id, question.question[:200]))
        return None

    def _mend(self, question: Question, report: SourceReport) -> Question:
        """Every passage once, and none on both sides, by the hash of its text."""
        positives = self._distinct(question.positives, report)
        gold = {passage_hash(document) for document in positives}
        others = [document for document in question.negatives if passage_hash(document) not in gold]
        _count(report.mended, NEGATIVE_IS_POSITIVE, len(question.negatives) - len(others))
        return replace(question, positives=positives, negatives=self._distinct(others, report))

    def _distinct(self, documents: Sequence[Document], report: SourceReport) -> tuple[Document, ...]:
        kept: dict[str, Document] = {}
        for document in documents:
            kept.setdefault(passage_hash(document), document)
        _count(report.mended, REPEATED_PASSAGE, len(documents) - len(kept))
        return tuple(kept.values())

    def _reason(self, question: Question) -> str | None:
        """Why a question is dropped, by the order of `REASONS`; None: it is kept."""
        settings = self.settings
        checks: dict[str, Callable[[], bool]] = {
            NO_POSITIVES: lambda: not question.positives and question.type != "unanswerable",
            LEAKED: lambda: self._leaks(question),
            SAME_QUESTION: lambda: normal_text(question.question) in self._questions,
            SAME_PASSAGE: lambda: settings.one_pair_per_passage and self._is_second_pair(question),
            TOO_LONG: lambda: self._is_long(question),
            OTHER_LANGUAGE: lambda: latin_share(_all_text(question)) < settings.min_latin,
            NO_ANSWER: lambda: self._lacks_answer(question),
        }
        return next((reason for reason in REASONS if checks[reason]()), None)

    def _remember(self, question: Question) -> None:
        self._questions.add(normal_text(question.question))
        if question.type == "pair":
            self._pairs.add(self._evidence(question))

    def _is_second_pair(self, question: Question) -> bool:
        return question.type == "pair" and self._evidence(question) in self._pairs

    def _evidence(self, question: Question) -> frozenset[str]:
        return frozenset(passage_hash(document) for document in question.positives)

    def _is_long(self, question: Question) -> bool:
        if self._count(question.question) > self.settings.max_question:
            return True
        return any(self._length(document) > self.settings.max_passage for document in question.positives)

    def _lacks_answer(self, question: Question) -> bool:
        settings = self.settings
        if question.type not in settings.extractive or question.source in settings.abstractive:
            return False
        finder = AnswerFinder(question.answers)
        return not any(finder.holds(document) for document in question.positives)

    def _length(self, document: Document) -> int:
        found = self._lengths.get(document.external_id)
        return found or self._lengths.setdefault(document.external_id, self._count(document.text))


def _count(counts: dict[str, int], name: str, number: int) -> None:
    if number:
        counts[name] = counts.get(name, 0) + number


def count_words(text: str) -> int:
    """Words between white space."""
    return len(text.split())


def latin_share(text: str) -> float:
    """Share of Latin letters, those with accents included, among the letters of a text; 1 where there are none."""
    if text.isascii():
        return 1.0
    letters = [char for char in text if char.isalpha()]
    return sum(char <= "\u024f" or "\u1e00" <= char <= "\u1eff" for char in letters) / len(letters) if letters else 1.0


def _all_text(question: Question) -> str:
    return "\n".join([question.question, *(document.text for document in question.positives)])
