"""What training data look like, by source: lines, types, evidence, hops, lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from memspan.text.questions import Question
from memspan.train.data.clean import CountTokens, count_words
from memspan.train.data.stream import by_source


@dataclass(frozen=True, slots=True)
class Lengths:
    """Median, 95th percentile (both by nearest rank), longest and sum."""

    median: int = 0
    p95: int = 0
    longest: int = 0
    total: int = 0

    @classmethod
    def of(cls, lengths: Iterable[int]) -> Lengths:
        """Of no lengths, all are 0."""
        found = sorted(lengths)
        if not found:
            return cls()
        return cls(found[(len(found) - 1) // 2], found[-(-95 * len(found) // 100) - 1], found[-1], sum(found))


@dataclass(frozen=True, slots=True)
class SourceStats:
    """One source.

    Attributes:
        lines: questions.
        types, hops: lines of each; hops that are not known are None.
        positives, negatives: lines by how many of them they have.
        passages: distinct ones.
        question_lengths, passage_lengths: of questions, and of distinct passages (their text).
    """

    lines: int
    types: dict[str, int] = field(default_factory=dict[str, int])
    hops: dict[int | None, int] = field(default_factory=dict[int | None, int])
    positives: dict[int | None, int] = field(default_factory=dict[int | None, int])
    negatives: dict[int | None, int] = field(default_factory=dict[int | None, int])
    passages: int = 0
    question_lengths: Lengths = field(default_factory=Lengths)
    passage_lengths: Lengths = field(default_factory=Lengths)


def stats(questions: Sequence[Question], count_tokens: CountTokens | None = None) -> dict[str, SourceStats]:
    """Statistics by source, in the order the sources appear.

    Args:
        count_tokens: of a model. Default: words, between white space.
    """
    return {name: _source(found, count_tokens or count_words) for name, found in by_source(questions).items()}


def _source(questions: Sequence[Question], count: CountTokens) -> SourceStats:
    passages = {d.external_id: d.text for q in questions for d in (*q.positives, *q.negatives)}
    return SourceStats(
        lines=len(questions),
        types=dict(Counter(str(question.type) for question in questions).most_common()),
        hops=_by_number(question.hops for question in questions),
        positives=_by_number(len(question.positives) for question in questions),
        negatives=_by_number(len(question.negatives) for question in questions),
        passages=len(passages),
        question_lengths=Lengths.of(count(question.question) for question in questions),
        passage_lengths=Lengths.of(map(count, passages.values())),
    )


def _by_number(values: Iterable[int | None]) -> dict[int | None, int]:
    counts = Counter(values)
    return dict(sorted(counts.items(), key=lambda item: -1 if item[0] is None else item[0]))
