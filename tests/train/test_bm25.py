"""BM25 against the formula written out, on awkward texts."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from memspan.text.terms import content_words, plain_words
from memspan.train.bm25 import K1, B, Bm25

WORDS = ["otter", "heron", "lynx", "river", "moon", "stone", "the", "of", "apple", "Rome", "東京塔", "dog's", "seven"]


def drawn(count: int, seed: int = 0, longest: int = 30) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(0, longest))) for _ in range(count)]


def naive(texts: list[str], query: str, place: int) -> float:
    """The formula of the docstring, word by word."""
    words = [plain_words(text) for text in texts]
    mean = max(sum(map(len, words)) / len(words), 1.0)
    total = 0.0
    for term in content_words(query):
        holding = sum(term in found for found in words)
        tf = words[place].count(term)
        if tf:
            idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
            total += idf * tf / (tf + K1 * (1 - B + B * len(words[place]) / mean))
    return total


@pytest.mark.parametrize("query", ["otter of Rome", "the", "heron heron lynx", "東京塔", "nothing known", "dogs", ""])
def test_scores_are_the_formula(query: str) -> None:
    texts = drawn(40)
    index = Bm25(texts)
    wanted = [naive(texts, query, place) for place in range(len(texts))]
    assert np.allclose(index.scores(query), wanted, rtol=1e-5, atol=1e-6)
    assert np.allclose([index.score(query, text) for text in texts], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [0, 1, 3, 39, 40, 100])
def test_search_is_the_sorted_scores_of_texts_that_hold_a_word(k: int) -> None:
    texts = drawn(40, seed=1)
    texts[7] = texts[3]  # equal scores
    index = Bm25(texts)
    for query in ("otter moon", "the", "seven stone apple", "absent"):
        scores = index.scores(query)
        wanted = sorted((place for place in range(40) if scores[place] > 0), key=lambda place: (-scores[place], place))
        assert index.search(query, k) == [(place, float(scores[place])) for place in wanted[:k]]


def test_of_many_equal_texts_the_earliest_are_found() -> None:
    index = Bm25(["moon river"] * 9 + ["stone"])
    assert [place for place, _ in index.search("moon", 4)] == [0, 1, 2, 3]


def test_a_text_outside_the_index_is_scored_by_its_statistics() -> None:
    index = Bm25(["otter otter river", "heron river", "river"])
    assert index.score("otter", "an otter swims") > index.score("river", "a river runs") > 0
    assert index.score("walrus", "a walrus") > index.score("otter", "an otter")
    assert index.score("walrus", "an otter") == 0


def test_texts_without_words_are_found_by_nothing() -> None:
    index = Bm25(["", "...", "otter"])
    assert index.search("otter", 3) == [(2, pytest.approx(float(index.scores("otter")[2])))]
    assert Bm25(["", "?"]).search("otter", 2) == []


def test_no_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one text"):
        Bm25([])
