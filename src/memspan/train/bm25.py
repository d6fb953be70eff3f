"""BM25 over texts in memory: mining of hard negatives, a teacher without a model, the baseline beside the router."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import bm25s
import numpy as np
from numpy.typing import NDArray

from memspan.text.terms import content_words, plain_words

K1, B = 1.5, 0.75


class Bm25:
    """An immutable index: `score = sum over the question's terms of idf * tf / (tf + k1 * (1 - b + b * words / mean))`.

    `idf = ln(1 + (N - n + 0.5) / (n + 0.5))` for a term that n of the N texts hold: bm25s, Lucene's variant. Words are
    those of `memspan.text.terms`, so a question has no stop words unless it has nothing else.

    What is not covered: adding and deleting (build anew).

    Raises:
        ValueError: there are no texts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        if not texts:
            raise ValueError("BM25 needs at least one text to search")
        numbers = {"": 0}  # bm25s cannot number no words at all; this one is in no text
        words = [[numbers.setdefault(word, len(numbers)) for word in plain_words(text)] for text in texts]
        self.num_texts, self._mean_length = len(texts), max(sum(map(len, words)) / len(texts), 1.0)
        self._index = bm25s.BM25(k1=K1, b=B, method="lucene", csc_backend="numpy")
        with np.errstate(invalid="ignore"):  # texts without any words
            self._index.index((words, numbers), show_progress=False)
        self._holding = np.diff(self._index.scores["indptr"])

    def scores(self, query: str) -> NDArray[np.float32]:
        """The score of every text, in order; 0 where none of the words is."""
        return self._index.get_scores_from_ids(self._index.get_tokens_ids(list(content_words(query))))

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        """The `k` best texts as (place, score): best first, of equals the earlier one; only texts that hold a word."""
        scores = self.scores(query)
        places = np.flatnonzero(scores > 0)
        if 0 < k < len(places):
            places = places[scores[places] >= np.partition(scores, -k)[-k]]  # all that tie at the edge
        best = places[np.lexsort((places, -scores[places]))][: max(k, 0)]
        return [(int(place), float(scores[place])) for place in best]

    def score(self, query: str, text: str) -> float:
        """The score of any text, by the index's word statistics: the same as its own where it is in the index."""
        return self.score_counts(query, Counter(plain_words(text)))

    def score_counts(self, query: str, counts: Mapping[str, int]) -> float:
        """As `score`, of a text whose words were counted before. A word no indexed text holds counts as the rarest."""
        norm = K1 * (1 - B + B * sum(counts.values()) / self._mean_length)
        total = 0.0
        for term in content_words(query):
            if tf := counts.get(term, 0):
                number = self._index.vocab_dict.get(term)
                holding = 0 if number is None else int(self._holding[number])
                total += math.log1p((self.num_texts - holding + 0.5) / (holding + 0.5)) * tf / (tf + norm)
        return total
