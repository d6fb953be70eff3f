"""Teachers: who scores documents for questions, so that routers learn from unlabeled text (distillation).

A score is only compared with the others of its question; a temperature (in the loss) brings it to a useful range:
cosines lie between -1 and 1, BM25 scores between 0 and about 30.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch

from memspan.text.embedding import Embed, sentence_embedder
from memspan.text.terms import plain_words
from memspan.train.bm25 import Bm25

BM25 = "bm25"
_CACHED_TEXTS = 2**16


class Teacher(Protocol):
    """Scores every document for every question."""

    def scores(self, queries: Sequence[str], documents: Sequence[str]) -> torch.Tensor:
        """`[B, N]` in float32, on the CPU; the more the better."""
        ...


class Bm25Teacher:
    """BM25 by the word statistics of a corpus: no model, no download.

    Args:
        corpus: the texts whose words are counted; documents need not be among them.
    """

    def __init__(self, corpus: Sequence[str]) -> None:
        self._index = Bm25(corpus)
        self._counts = lru_cache(maxsize=_CACHED_TEXTS)(_word_counts)

    def scores(self, queries: Sequence[str], documents: Sequence[str]) -> torch.Tensor:
        """See `Teacher`."""
        counts = [self._counts(document) for document in documents]
        rows = [[self._index.score_counts(query, count) for count in counts] for query in queries]
        return torch.tensor(rows, dtype=torch.float32).reshape(len(queries), len(documents))


def _word_counts(text: str) -> Counter[str]:
    return Counter(plain_words(text))


class SentenceTeacher:
    """Cosine similarity of sentence embeddings; texts seen lately are not embedded again.

    Args:
        embed: texts to rows of unit length.
    """

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._known: dict[str, torch.Tensor] = {}

    @classmethod
    def load(cls, name: str) -> SentenceTeacher:
        """A sentence-transformers model by name or folder.

        Raises:
            DataError: sentence-transformers is not installed, or there is no such model.
        """
        return cls(sentence_embedder(name))

    def scores(self, queries: Sequence[str], documents: Sequence[str]) -> torch.Tensor:
        """See `Teacher`."""
        if not queries or not documents:
            return torch.zeros(len(queries), len(documents))
        embedded = self.embed([*queries, *documents])
        return embedded[: len(queries)] @ embedded[len(queries) :].T

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Rows of unit length, in order, `[N, F]` in float32."""
        if len(self._known) > _CACHED_TEXTS:
            self._known.clear()
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        if missing:
            self._known.update(zip(missing, self._embed(missing).unbind(), strict=True))
        return torch.stack([self._known[text] for text in texts])


def load_teacher(name: str, corpus: Sequence[str]) -> Teacher:
    """The teacher of a recipe: `bm25` over the corpus' words, or a sentence-transformers model by name or folder."""
    return Bm25Teacher(corpus) if name == BM25 else SentenceTeacher.load(name)
