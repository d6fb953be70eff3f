"""BM25 over texts in memory: mining of hard negatives, a teacher without a model, the baseline beside the router."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from memspan.text.terms import index_terms, query_terms

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

K1, B = 1.5, 0.75


class Bm25:
    """An immutable index: `score = sum over the question's terms of idf * tf / (tf + k1 * (1 - b + b * words / mean))`.

    `idf = ln(1 + (N - n + 0.5) / (n + 0.5))` for a term that n of the N texts hold. This is Lucene's variant, with the
    constants of the bm25s package; words are those of `memspan.text.terms`, so a question has no stop words unless it
    has nothing else. Every posting's share of the score is computed when the index is built.

    A million postings take 8 MB. What is not covered: adding and deleting (build anew).

    Raises:
        ValueError: there are no texts.
    """

    def __init__(self, texts: Sequence[str], k1: float = K1, b: float = B) -> None:
        if not texts:
            raise ValueError("BM25 needs at least one text to search")
        self.num_texts, self._k1, self._b = len(texts), k1, b
        self._numbers: dict[str, int] = {}
        places, terms, counts, lengths = self._postings(texts)
        self._mean_length = max(float(lengths.mean()), 1.0)
        num_holding = np.bincount(terms, minlength=len(self._numbers))
        self._idf = np.log1p((self.num_texts - num_holding + 0.5) / (num_holding + 0.5)).astype(np.float32)
        order = np.argsort(terms, kind="stable")  # within a term, texts stay in order
        self._places: Ints = places[order]
        self._starts = np.concatenate([[0], np.cumsum(num_holding)])
        norm = k1 * (1 - b + b * lengths[self._places] / self._mean_length)
        tf = counts[order].astype(np.float64)
        self._shares: Floats = (self._idf[terms[order]] * (tf / (tf + norm))).astype(np.float32)

    def _postings(self, texts: Sequence[str]) -> tuple[Ints, Ints, Ints, NDArray[np.int64]]:
        """Text, term and count of every posting, and the words of every text; numbers the terms."""
        numbers = self._numbers
        places: list[Ints] = []
        terms: list[Ints] = []
        counts: list[Ints] = []
        lengths = np.zeros(len(texts), np.int64)
        for place, text in enumerate(texts):
            words = index_terms(text)
            found = Counter(words)
            lengths[place] = len(words)
            terms.append(np.fromiter((numbers.setdefault(word, len(numbers)) for word in found), np.int32, len(found)))
            counts.append(np.fromiter(found.values(), np.int32, len(found)))
            places.append(np.full(len(found), place, np.int32))
        return np.concatenate(places), np.concatenate(terms), np.concatenate(counts), lengths

    def scores(self, query: str) -> Floats:
        """The score of every text, in order; 0 where none of the words is."""
        total = np.zeros(self.num_texts, np.float32)
        for term in query_terms(query):
            number = self._numbers.get(term)
            if number is not None:
                found = slice(self._starts[number], self._starts[number + 1])
                total[self._places[found]] += self._shares[found]  # a text stands once in a term's list
        return total

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        """The `k` best texts as (place, score): best first, of equals the earlier one; only texts that hold a word."""
        scores = self.scores(query)
        if k < self.num_texts:
            edge = np.partition(scores, -k)[-k] if k > 0 else np.inf
            places = np.flatnonzero((scores >= edge) & (scores > 0))  # all that tie at the edge
        else:
            places = np.flatnonzero(scores > 0)
        best = places[np.lexsort((places, -scores[places]))][: max(k, 0)]
        return [(int(place), float(scores[place])) for place in best]

    def score(self, query: str, text: str) -> float:
        """The score of any text, by the index's word statistics: the same as its own where it is in the index."""
        return self.score_counts(query, Counter(index_terms(text)))

    def score_counts(self, query: str, counts: Mapping[str, int]) -> float:
        """As `score`, of a text whose words were counted before. A word no indexed text holds counts as the rarest."""
        norm = self._k1 * (1 - self._b + self._b * sum(counts.values()) / self._mean_length)
        rarest = math.log1p((self.num_texts + 0.5) / 0.5)
        total = 0.0
        for term in query_terms(query):
            tf = counts.get(term, 0)
            if tf:
                number = self._numbers.get(term)
                total += (rarest if number is None else float(self._idf[number])) * tf / (tf + norm)
        return total
