"""Where documents to choose from come from: scores and content of some shards, held by this process.

`DocumentSource` is what choosing needs of a bank. `LocalSource` has all of it; the ranks of Memory Parallel have parts.
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
from memspan.ops.scoring import (
    document_scores,
    documents_above,
    exact_chunk_scores,
    leading_documents,
    leading_of_batch,
)
from memspan.ops.transfer import start_to_host, to_device

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


class DocumentSource(Protocol):
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

    def exact(self, layer: int, ids: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Exact scores, with the queries of the last `leading`, of documents that it or `above` found, by question."""
        ...

    def content(self, layer: int, ids: Sequence[int]) -> list[torch.Tensor]:
        """K and V of such documents, `[rows, 2, G, D]` each; where one source holds all documents, of any."""
        ...

    def prefetch(self, layer: int, ids: Sequence[int]) -> None:
        """Have the content of documents selected in a layer read ahead for the next, which often selects them too."""
        ...


@dataclass(frozen=True, slots=True)
class _Part:
    """Coarse scores of the rows of some shards, `[B, C]`, and the document of every row."""

    score_BC: torch.Tensor
    document_C: torch.Tensor
    on_device: bool

    @classmethod
    def unscored(cls, num_questions: int, document_C: torch.Tensor, *, on_device: bool) -> _Part:
        return cls(torch.empty(num_questions, len(document_C), device=document_C.device), document_C, on_device)

    def split(self, shards: Sequence[Shard]) -> Sequence[torch.Tensor]:
        """Where the scores of each shard stand."""
        return self.score_BC.split([len(shard.document_C) for shard in shards], dim=1)

    def without(self, barred_C: torch.Tensor | None) -> _Part:
        """Itself, with the rows that must not be selected scored so."""
        if barred_C is not None:
            self.score_BC.masked_fill_(barred_C, float("-inf"))
        return self

    def leading(self, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Indices and scores of the leading documents of every question."""
        if self.on_device:
            return leading_of_batch(self.score_BC, self.document_C, count)
        return [leading_documents(score_C, self.document_C, count) for score_C in self.score_BC]

    def above(self, bounds: Sequence[float]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Indices and scores of the documents of every question that reach its bound."""
        found = (
            documents_above(score_C, self.document_C, bound)
            for score_C, bound in zip(self.score_BC, bounds, strict=True)
        )
        return [(documents_K.long().cpu(), scores_K.cpu()) for documents_K, scores_K in found]


class LocalSource:
    """The selectable documents of some shards in this process."""

    def __init__(
        self,
        shards: Sequence[Shard],
        layers: Sequence[int],
        selectable_N: torch.Tensor | None = None,
        tiers: Tiers | None = None,
        *,
        keys_on: torch.device | None = None,
    ) -> None:
        """
        Args:
            shards: in any order.
            layers: MSA layers of the bank.
            selectable_N: for every document of the shards, in order, whether it may be selected. Default: the live.
            tiers: what is kept in memory. Default: all routing keys.
            keys_on: an accelerator that keeps and scores the keys of the first shards, as many as `tiers` allows. The
                ids and scores found are the same. Default: none, all are scored on the CPU.

        Raises:
            BudgetError: the budget of `tiers` has no room for a tile.
        """
        self._shards, self._layers = list(shards), tuple(layers)
        self._tiers = tiers or Tiers()
        self._layout = self._tiers.layout(self._shards)
        if selectable_N is None:
            selectable_N = torch.cat([torch.empty(0, dtype=torch.bool), *(shard.live_N for shard in self._shards)])
        self._barred_C = self._tiers.barred(self._layout, selectable_N)
        self._keys_on = keys_on or torch.device("cpu")
        readers = [shard.reader for shard in self._shards]
        num_moved = 0 if keys_on is None else self._tiers.move(readers, self._layers, keys_on)
        self._moved, self._stay = self._shards[:num_moved], self._shards[num_moved:]
        self._resident = self._tiers.resident(readers[num_moved:], len(self._layers))
        self._parts: list[_Part] = []
        self._query_BTW = torch.empty(0)
        # Where documents stand that were asked for.
        self._places: dict[int, int] = {}

    @property
    def questions_at_once(self) -> int:
        return max(1, _MOST_SCORES // max(1, len(self._layout.document_C)))

    def leading(self, layer: int, query_BTW: torch.Tensor, count: int) -> list[Candidates]:
        """See `DocumentSource.leading`."""
        self._parts = []
        if self._stay:
            self._query_BTW = query_BTW.cpu()
            self._parts.append(self._on_host(layer))
        else:  # not waited for: what leads is copied behind it
            self._query_BTW = start_to_host(query_BTW)
        if self._moved:
            self._parts.append(self._on_device(layer, to_device(query_BTW, self._keys_on)))
        return self._joined([part.leading(count) for part in self._parts])

    def above(self, bounds: Sequence[float]) -> list[Candidates]:
        """See `DocumentSource.above`."""
        return self._joined([part.above(bounds) for part in self._parts])

    def exact(self, layer: int, ids: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """See `DocumentSource.exact`."""
        return [self._exact(layer, query_TW, ids_K) for query_TW, ids_K in zip(self._query_BTW, ids, strict=True)]

    def _on_host(self, layer: int) -> _Part:
        """Score the keys that are on the CPU."""
        queries, first = quantize_queries(self._query_BTW), sum(len(shard.document_C) for shard in self._moved)
        part = _Part.unscored(len(self._query_BTW), self._layout.document_C[first:], on_device=False)
        for shard, score_BC, is_resident in zip(self._stay, part.split(self._stay), self._resident, strict=True):
            coarse_scores(queries, shard.reader.coarse_keys(layer), score_BC)
            if not is_resident:
                shard.reader.give_back_coarse(layer)
        return part.without(None if self._barred_C is None else self._barred_C[first:])

    def _on_device(self, layer: int, query_BTW: torch.Tensor) -> _Part:
        """Score the keys that are on the accelerator, as the query is."""
        queries = quantize_queries(query_BTW)
        document_C, barred_C = self._tiers.moved_rows(self._layout, self._barred_C, self._moved, self._keys_on)
        part = _Part.unscored(len(query_BTW), document_C, on_device=True)
        for shard, score_BC in zip(self._moved, part.split(self._moved), strict=True):
            coarse_scores(queries, self._tiers.moved_keys(shard.reader, layer), score_BC)
        return part.without(barred_C)

    def _joined(self, parts: Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]]) -> list[Candidates]:
        """What the parts found for every question."""
        found = []
        for question in range(len(self._query_BTW)):
            places = [part[question][0] for part in parts]
            scores = [part[question][1] for part in parts]
            places_K = torch.cat([torch.empty(0, dtype=torch.int64), *places])
            ids_K = self._layout.ids_N[places_K]
            self._places.update(zip(ids_K.tolist(), places_K.tolist(), strict=True))
            found.append(Candidates(ids_K, torch.cat([torch.empty(0), *scores])))
        return found

    def content(self, layer: int, ids: Sequence[int]) -> list[torch.Tensor]:
        """See `DocumentSource.content`."""
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
        """See `DocumentSource.prefetch`."""
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

    def _find(self, document_id: int) -> tuple[SegmentReader, int]:
        """The segment of a document, and its index there."""
        if document_id not in self._places:
            self._places[document_id] = int((self._layout.ids_N == document_id).nonzero())
        place = self._places[document_id]
        at = bisect_right(self._layout.first_document, place) - 1
        return self._shards[at].place(place - self._layout.first_document[at])


def accelerator(device: torch.device | None) -> torch.device | None:
    """The device, if it has memory of its own to keep keys in."""
    return None if device is None or device.type == "cpu" else device
