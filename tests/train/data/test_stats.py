"""Statistics of training data, counted by hand."""

from __future__ import annotations

from made import pair, question

from memspan.text.questions import passage
from memspan.train.data.stats import Lengths, stats


def test_statistics_by_source() -> None:
    shared = passage("t", "one two three")
    given = [
        question(1, question="a b c", positives=(shared,), negatives=(passage("", "four"),)),
        question(2, question="a", positives=(shared, passage("", "five six")), type="multi", hops=2),
        pair(3, source="b", question="a b", hops=None, positives=(shared,)),
    ]
    found = stats(given)
    zoo, other = found["zoo"], found["b"]
    assert list(found) == ["zoo", "b"]
    assert (zoo.lines, zoo.types, zoo.hops) == (2, {"single": 1, "multi": 1}, {1: 1, 2: 1})
    assert (zoo.positives, zoo.negatives, zoo.passages) == ({1: 1, 2: 1}, {0: 1, 1: 1}, 3)
    assert zoo.question_lengths == Lengths(median=1, p95=3, longest=3, total=4)
    assert zoo.passage_lengths == Lengths(median=2, p95=3, longest=3, total=6)
    assert (other.lines, other.types, other.hops) == (1, {"pair": 1}, {None: 1})
    assert stats(given, count_tokens=len)["b"].question_lengths.total == 3


def test_percentiles_are_by_nearest_rank() -> None:
    assert Lengths.of(range(1, 101)) == Lengths(50, 95, 100, 5050)
    assert Lengths.of(range(1, 21)) == Lengths(10, 19, 20, 210)
    assert Lengths.of([7]) == Lengths(7, 7, 7, 7)
    assert Lengths.of([]) == Lengths()
