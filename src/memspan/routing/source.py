"""Where documents to choose from come from: scores and content of some shards, held by this process.

`Source` is what choosing needs of a bank. `LocalSource` has all of it; the ranks of Memory Parallel have a part each.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from memspan.bank.segment import SegmentReader
from memspan.bank.shard import Shard
from memspan.bank.tiers import Tiers
from memspan.ops.coarse import coarse_scores, quantize_queries
from memspan.ops.scoring import document_scores, documents_above, exact_chunk_scores, leading_documents

# Coarse scores held at once: of so many questions that they take about 64 MiB.
_MOST_SCORES = 2**24


@dataclass(frozen=True, slots=True)
class Candidates:
    """Some documents of one question in one MSA layer: their ids (int64) and scores (float32)."""

    ids: torch.Tensor
    scores: torch.Tensor

    @classmethod
    def none(cls) -> Candidates:
        return cls(torch.empty(0, dtype=torch.int64), torch.empty(0))


class Source(Protocol):
    """Documents that may be selected, scored in one MSA layer at a time. All ids are those of documents."""

    @property
    def questions_at_once(self) -> int:
        """How many questions may be scored together, so that their scores take bounded memory."""
        ...

    def leading(self, layer: int, query_BTW: torch.Tensor, count: int) -> list[Candidates]:
        """Coarse scores of at least the best `count` documents of every question (all, where there are fewer)."""
        ...

    def above(self, bounds: Sequence[float]) -> list[Candidates]:
        """Coarse scores of every document that scores at least its question's bound in the last call of `leading`."""
        ...

    def exact(self, layer: int, query_BTW: torch.Tensor, ids: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Exact scores of documents that were among the leading or above a bound, for every question."""
        ...

    def content(self, layer: int, ids: Sequence[int]) -> list[torch.Tensor]:
        """K and V of such documents, `[rows, 2, G, D]` each; where one source holds all documents, of any."""
        ...

    def prefetch(self, layer: int, ids: Sequence[int]) -> None:
        """Have the content of documents selected in a layer read ahead for the next, which often selects them too."""
        ...


class LocalSource:
    """The selectable documents of some shards in this process."""

    def __init__(
        self,
        shards: Sequence[Shard],
        layers: Sequence[int],
        selectable_N: torch.Tensor | None = None,
        tiers: Tiers | None = None,
    ) -> None:
        """
        Args:
            shards: in any order.
            layers: MSA layers of the bank.
            selectable_N: for every document of the shards, in order, whether it may be selected. Default: the live.
            tiers: what is kept in memory. Default: all routing keys.

        Raises:
            BudgetError: the budget of `tiers` has no room for a tile.
        """
        self._shards, self._layers = list(shards), tuple(layers)
        self._tiers = tiers or Tiers()
        self._resident = self._tiers.resident([shard.reader for shard in self._shards], len(self._layers))
        self._layout = self._tiers.layout(self._shards)
        if selectable_N is None:
            selectable_N = torch.cat([torch.empty(0, dtype=torch.bool), *(shard.live_N for shard in self._shards)])
        self._barred_C = self._tiers.barred(self._layout, selectable_N)
        self._score_BC = torch.empty(0, 0)
        # Where documents stand that were asked for.
        self._places: dict[int, int] = {}

    @property
    def questions_at_once(self) -> int:
        return max(1, _MOST_SCORES // max(1, len(self._layout.document_C)))

    def leading(self, layer: int, query_BTW: torch.Tensor, count: int) -> list[Candidates]:
        """See `Source.leading`."""
        queries = quantize_queries(query_BTW)
        self._score_BC = torch.empty(len(query_BTW), len(self._layout.document_C))
        parts = self._score_BC.split([len(shard.document_C) for shard in self._shards], dim=1)
        for shard, part_BC, is_resident in zip(self._shards, parts, self._resident, strict=True):
            coarse_scores(queries, shard.reader.coarse_keys(layer), part_BC)
            if not is_resident:
                shard.reader.give_back_coarse(layer)
        if self._barred_C is not None:
            self._score_BC.masked_fill_(self._barred_C, float("-inf"))
        return [self._found(*leading_documents(score_C, self._layout.document_C, count)) for score_C in self._score_BC]

    def above(self, bounds: Sequence[float]) -> list[Candidates]:
        """See `Source.above`."""
        return [
            self._found(*documents_above(score_C, self._layout.document_C, bound))
            for score_C, bound in zip(self._score_BC, bounds, strict=True)
        ]

    def exact(self, layer: int, query_BTW: torch.Tensor, ids: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """See `Source.exact`."""
        return [self._exact(layer, query_TW, ids_K) for query_TW, ids_K in zip(query_BTW, ids, strict=True)]

    def content(self, layer: int, ids: Sequence[int]) -> list[torch.Tensor]:
        """See `Source.content`."""
        found = [self._find(document_id) for document_id in ids]
        cache, keys = self._tiers.content, [(layer, segment.files.name, index) for segment, index in found]
        for key, (segment, index) in zip(keys, found, strict=True):
            if key not in cache:
                segment.prefetch(layer, index)
        return [
            cache.get(key, partial(segment.content, layer, index))
            for key, (segment, index) in zip(keys, found, strict=True)
        ]

    def prefetch(self, layer: int, ids: Sequence[int]) -> None:
        """See `Source.prefetch`."""
        for following in self._layers[self._layers.index(layer) + 1 :][:1]:
            for segment, index in map(self._find, ids):
                if (following, segment.files.name, index) not in self._tiers.content:
                    segment.prefetch(following, index)

    def _exact(self, layer: int, query_TW: torch.Tensor, ids_K: torch.Tensor) -> torch.Tensor:
        if not len(ids_K):
            return torch.empty(0)
        found = [self._find(document_id) for document_id in ids_K.tolist()]
        for segment, index in found:
            segment.prefetch_rows(layer, index)
        keys = [segment.router_rows(layer, index) for segment, index in found]
        owner_C = torch.repeat_interleave(torch.tensor([len(rows_CW) for rows_CW in keys]))
        return document_scores(exact_chunk_scores(query_TW, torch.cat(keys))[None], owner_C, len(keys))[0]

    def _found(self, places_K: torch.Tensor, scores_K: torch.Tensor) -> Candidates:
        ids_K = self._layout.ids_N[places_K]
        self._places.update(zip(ids_K.tolist(), places_K.tolist(), strict=True))
        return Candidates(ids_K, scores_K)

    def _find(self, document_id: int) -> tuple[SegmentReader, int]:
        """The segment of a document, and its index there."""
        if document_id not in self._places:
            self._places[document_id] = int((self._layout.ids_N == document_id).nonzero())
        place = self._places[document_id]
        at = bisect_right(self._layout.first_document, place) - 1
        return self._shards[at].place(place - self._layout.first_document[at])
