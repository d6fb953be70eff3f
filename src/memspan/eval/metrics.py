"""Scores of answers and rankings, and how sure they are. Plain numbers in, plain numbers out; shares are 0..1.

Answers are compared as SQuAD's official script does (Rajpurkar et al. 2016): lower case, punctuation and the English
articles off, white space joined. One thing is added: each Chinese or Japanese character is a word of its own, where
that script would take a whole sentence as one word.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}。，、！？；：“”‘’（）《》「」]")
_CJK = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")

_MARKER = re.compile(r"<\|[^|<>]*\|>|<End-of-Retrieve>|\ufffd")
_LONGEST_LOOP = 8
_LOOP_REPEATS = 4


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the bounds of its 95% bootstrap interval, of `count` values."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class Abstention:
    """How well a system knows that it cannot answer.

    Attributes:
        precision: of its abstentions, the share that were questions without an answer; None if it never abstained.
        recall: of the questions without an answer, the share it abstained from; None if there were none.
    """

    precision: Interval | None
    recall: Interval | None


def normalise(text: str) -> str:
    """An answer as SQuAD compares it."""
    spaced = _CJK.sub(r" \1 ", _PUNCTUATION.sub("", text.lower()))
    return " ".join(_ARTICLES.sub(" ", spaced).split())


def exact_match(text: str, answers: Sequence[str]) -> float:
    """1 if the text equals one of the answers, normalized."""
    return float(any(normalise(text) == normalise(answer) for answer in answers))


def f1(text: str, answers: Sequence[str]) -> float:
    """Overlap in words with the answer it overlaps most with (SQuAD's F1)."""
    return max((_f1(normalise(text).split(), normalise(answer).split()) for answer in answers), default=0.0)


def _f1(words: Sequence[str], wanted: Sequence[str]) -> float:
    if not words or not wanted:
        return float(words == wanted)
    common = (Counter(words) & Counter(wanted)).total()
    return 2 * common / (len(words) + len(wanted))


def substring_match(text: str, answers: Sequence[str]) -> float:
    """1 if the text holds one of the answers as consecutive words, normalized. An answer of no words never counts."""
    padded = f" {normalise(text)} "
    return float(any((wanted := normalise(answer)) and f" {wanted} " in padded for answer in answers))


def string_match(text: str, expected: Sequence[str]) -> float:
    """Share of the expected strings that the text holds, case ignored (RULER's `string_match_all`, over 100)."""
    return sum(wanted.lower() in text.lower() for wanted in expected) / len(expected)


def is_malformed(text: str) -> bool:
    """Whether a text that is not empty is no answer: no word in it, markers of the protocol, or an endless loop.

    A loop is a phrase of at most 8 words, four times in a row at the end.
    """
    if not text.strip():
        return False
    words = text.split()
    loops = (
        words[-_LOOP_REPEATS * size :] == words[-size:] * _LOOP_REPEATS
        for size in range(1, min(_LONGEST_LOOP, len(words) // _LOOP_REPEATS) + 1)
    )
    return not any(char.isalnum() for char in text) or bool(_MARKER.search(text)) or any(loops)


def abstention(said_none: Sequence[bool], has_none: Sequence[bool], *, seed: int = 0) -> Abstention:
    """Precision and recall of abstaining.

    Args:
        said_none: per question, whether the system abstained.
        has_none: per question, whether it has no answer.
    """
    pairs = list(zip(said_none, has_none, strict=True))
    said = [float(has) for said, has in pairs if said]
    unanswerable = [float(said) for said, has in pairs if has]
    return Abstention(
        bootstrap(said, seed=seed) if said else None, bootstrap(unanswerable, seed=seed) if unanswerable else None
    )


def recall_at(ranked: Sequence[str], gold: Set[str], k: int) -> float:
    """Share of the gold documents among the first k; a document that is ranked twice counts once."""
    return len(gold & set(ranked[:k])) / len(gold)


def all_found_at(ranked: Sequence[str], gold: Set[str], k: int) -> float:
    """1 if every gold document is among the first k."""
    return float(gold <= set(ranked[:k]))


def any_found_at(ranked: Sequence[str], gold: Set[str], k: int) -> float:
    """1 if some gold document is among the first k (where any one of them suffices)."""
    return float(not gold.isdisjoint(ranked[:k]))


def bootstrap(values: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean and its 95% percentile interval, resampling questions with replacement.

    Limit: it covers the choice of questions, not of seeds, prompts or models; with fewer than about 20 values, or all
    equal ones, it is too narrow.

    Raises:
        ValueError: there are no values.
    """
    means = _resampled_means(np.asarray(values, dtype=float), resamples, seed)
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(float(np.mean(values)), float(low), float(high), len(values))


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> tuple[Interval, float]:
    """The mean difference first - second on the same questions with its interval, and a two-sided p-value.

    The p-value is the share of resamples, moved to a mean difference of 0, that are as far from 0 as what was seen.

    Raises:
        ValueError: the two differ in length, or are empty.
    """
    _check_paired(first, second)
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    interval = bootstrap(differences.tolist(), resamples=resamples, seed=seed)
    centred = _resampled_means(differences, resamples, seed) - interval.mean
    extreme = np.count_nonzero(np.abs(centred) >= abs(interval.mean) - 1e-12)
    return interval, (float(extreme) + 1) / (resamples + 1)


def degradation(
    smallest: Sequence[float], larger: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> Interval | None:
    """How much of a score is lost on the way to a larger memory: (mean smallest - mean larger) / mean smallest.

    Its interval resamples questions, which both scores share. None where the smallest memory's score is 0.

    Raises:
        ValueError: the two differ in length, or are empty.
    """
    _check_paired(smallest, larger)
    first = _resampled_means(np.asarray(smallest, dtype=float), resamples, seed)
    second = _resampled_means(np.asarray(larger, dtype=float), resamples, seed)
    if not any(smallest):
        return None
    some = first != 0
    low, high = np.percentile((first[some] - second[some]) / first[some], (2.5, 97.5))
    base, now = float(np.mean(smallest)), float(np.mean(larger))
    return Interval((base - now) / base, float(low), float(high), len(smallest))


def mean_of(intervals: Sequence[Interval]) -> Interval:
    """The mean of several independent means; half-widths add up as independent errors do, in squares."""
    average = float(np.mean([one.mean for one in intervals]))
    below = float(np.sqrt(np.sum([(one.mean - one.low) ** 2 for one in intervals]))) / len(intervals)
    above = float(np.sqrt(np.sum([(one.high - one.mean) ** 2 for one in intervals]))) / len(intervals)
    return Interval(average, average - below, average + above, sum(one.count for one in intervals))


def _check_paired(first: Sequence[float], second: Sequence[float]) -> None:
    if len(first) != len(second):
        raise ValueError(f"paired values needed, not {len(first)} and {len(second)}; score the same questions")


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    if not len(values):
        raise ValueError("nothing to average; score at least one question")
    generator = np.random.default_rng(seed)
    return np.array([values[generator.integers(len(values), size=len(values))].mean() for _ in range(resamples)])


ANSWER_METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "em": exact_match,
    "f1": f1,
    "substring": substring_match,
}
