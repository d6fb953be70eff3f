"""Metrics against values worked out by hand, and against a second, independent computation."""

from __future__ import annotations

import itertools
import math

import pytest

from memspan.eval import metrics


@pytest.mark.parametrize(
    ("text", "answers", "em", "f1", "substring"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1, 1, 1),
        ("It is in Paris, France.", ["Paris", "Lyon"], 0, 2 * (1 / 5) * 1 / (1 / 5 + 1), 1),
        ("in 1989", ["1889"], 0, 0, 0),
        ("Parisian cafes", ["Paris"], 0, 0, 0),  # a word, not a piece of one
        ("new york new york", ["New York"], 0, 2 * (2 / 4) * (2 / 2) / (2 / 4 + 2 / 2), 1),
        ("York New", ["New York"], 0, 1, 0),
        ("", ["x"], 0, 0, 0),
        ("the", ["a"], 1, 1, 0),  # both are nothing once normalised, as SQuAD's script has it
        ("u.s.", ["US"], 1, 1, 1),
        ("Lyon", ["Paris", "Lyon in France"], 0, 2 * 1 * (1 / 3) / (1 + 1 / 3), 0),
        ("在北京大学。", ["北京"], 0, 2 * (2 / 5) * 1 / (2 / 5 + 1), 1),
    ],
)
def test_answers_score_what_is_worked_out_by_hand(
    text: str, answers: list[str], em: float, f1: float, substring: float
) -> None:
    assert metrics.exact_match(text, answers) == em
    assert metrics.f1(text, answers) == pytest.approx(f1)
    assert metrics.substring_match(text, answers) == substring


def test_articles_are_words_not_letters() -> None:
    assert metrics.normalise("An  anthem, the\nTHEME a-b") == "anthem theme ab"


def test_ruler_counts_the_strings_that_are_found() -> None:
    assert metrics.string_match("they are 1234567 and ABC", ["1234567", "7654321", "abc", "x"]) == 0.5
    assert metrics.string_match("", ["1"]) == 0


def test_recall_counts_gold_documents_once() -> None:
    ranked = ["a", "a", "x", "b"]
    gold = {"a", "b"}
    assert [metrics.recall_at(ranked, gold, k) for k in (1, 2, 3, 4, 9)] == [0.5, 0.5, 0.5, 1, 1]
    assert [metrics.all_found_at(ranked, gold, k) for k in (1, 3, 4)] == [0, 0, 1]
    assert [metrics.any_found_at(ranked, {"x", "q"}, k) for k in (2, 3)] == [0, 1]


def test_abstention_by_hand() -> None:
    found = metrics.abstention([True, True, False, False, True], [True, False, True, False, True])
    assert found.precision and found.recall and (found.precision.mean, found.recall.mean) == (2 / 3, 2 / 3)
    assert found.precision.low < 2 / 3 < found.precision.high and found.recall.count == 3
    assert metrics.abstention([False], [False]) == metrics.Abstention(None, None)
    never, missed = metrics.abstention([True, False], [False, False]), metrics.abstention([False, False], [True, False])
    assert never.precision and never.precision.mean == 0 and never.recall is None
    assert missed.recall and missed.recall.mean == 0 and missed.precision is None


@pytest.mark.parametrize(
    ("text", "malformed"),
    [
        ("", False),  # counted apart
        ("Paris", False),
        ("...", True),
        ("[1][2]<|object_ref_end|>", True),
        ("caf\ufffd", True),
        ("a b c a b c a b c a b c", True),
        ("a b c a b c a b c", False),
        ("no no no no", True),
        ("bye no no no no yes", False),
        ("one two three four five six seven eight nine " * 4, False),
    ],
)
def test_what_counts_as_malformed(text: str, malformed: bool) -> None:
    assert metrics.is_malformed(text) is malformed


def test_the_interval_of_coin_flips_is_the_binomial_one() -> None:
    """For a mean of n zeros and ones the bootstrap distribution is binomial; its quantiles are summed here exactly."""
    ones, n = 12, 40
    found = metrics.bootstrap([1.0] * ones + [0.0] * (n - ones), resamples=20_000)
    weights = [math.comb(n, k) * (ones / n) ** k * (1 - ones / n) ** (n - k) for k in range(n + 1)]
    below = list(itertools.accumulate(weights))
    low = next(k for k in range(n + 1) if below[k] >= 0.025) / n
    high = next(k for k in range(n + 1) if below[k] >= 0.975) / n
    assert found.mean == ones / n and found.count == n
    assert found.low == pytest.approx(low, abs=1 / n) and found.high == pytest.approx(high, abs=1 / n)
    assert found.low < found.mean < found.high


def test_intervals_are_seeded() -> None:
    values = [0.1, 0.53, 0.97, 0.21, 0.72, 0.41, 0.38]
    assert metrics.bootstrap(values, seed=3) == metrics.bootstrap(values, seed=3)
    assert metrics.bootstrap(values, seed=3) != metrics.bootstrap(values, seed=4)


def test_pairing_sees_what_two_intervals_do_not() -> None:
    first = [float(k % 10) for k in range(60)]
    second = [value - 0.5 + 0.1 * (k % 3 - 1) for k, value in enumerate(first)]
    interval, p = metrics.paired_bootstrap(first, second)
    assert interval.mean == pytest.approx(0.5) and 0.4 < interval.low < interval.high < 0.6
    assert p < 0.01
    assert metrics.bootstrap(first).low < metrics.bootstrap(second).high, "apart, the two overlap"
    same, p = metrics.paired_bootstrap(first, first)
    assert (same.mean, same.low, same.high, p) == (0, 0, 0, 1)


def test_the_p_value_is_that_of_the_enumeration() -> None:
    """Every resample of four differences, all equally likely, gives the exact value the bootstrap estimates."""
    differences = [1.0, 0.5, -0.25, 0.75]
    mean = sum(differences) / 4
    means = [sum(draw) / 4 for draw in itertools.product(differences, repeat=4)]
    exact = sum(abs(value - mean) >= mean - 1e-12 for value in means) / len(means)
    _, p = metrics.paired_bootstrap(differences, [0.0] * 4, resamples=20_000)
    assert p == pytest.approx(exact, abs=0.01)


def test_nothing_to_average_is_named() -> None:
    with pytest.raises(ValueError, match="at least one question"):
        metrics.bootstrap([])
    with pytest.raises(ValueError, match="same questions"):
        metrics.paired_bootstrap([1.0], [])


def test_degradation_by_hand() -> None:
    found = metrics.degradation([1, 1, 0, 1], [1, 0, 0, 1])
    assert found and found.mean == pytest.approx((0.75 - 0.5) / 0.75) and found.low <= found.mean <= found.high
    same, better = metrics.degradation([1, 0], [1, 0]), metrics.degradation([1, 0], [1, 1])
    assert same and (same.mean, same.low, same.high) == (0, 0, 0), "questions are resampled for both scores alike"
    assert better and better.mean == -1
    assert metrics.degradation([0, 0], [1, 0]) is None
    with pytest.raises(ValueError, match="same questions"):
        metrics.degradation([1], [1, 0])


def test_the_mean_of_independent_means_by_hand() -> None:
    found = metrics.mean_of([metrics.Interval(0.2, 0.1, 0.6, 10), metrics.Interval(0.6, 0.6, 0.9, 5)])
    assert (found.mean, found.low, found.high) == pytest.approx((0.4, 0.4 - 0.05, 0.4 + 0.25))
    assert found.count == 15
