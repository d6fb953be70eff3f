"""Where documents to choose from come from: scores and content of some shards, held by this process.

`DocumentSource` is what choosing needs of a bank. `LocalSource` has all of it; the ranks of Memory Parallel have parts.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch

from memspan.bank.moved import MovedRows, Run
from memspan.bank.segment import SegmentReader
from memspan.bank.shard import Shard
from memspan.bank.tiers import Tiers
from memspan.ops.coarse import coarse_scores, quantize_queries
from memspan.ops.scoring import (
    document_scores,
    documents_above,
    exact_chunk_scores,
    exact_document_scores,
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
        """Have the content of such documents in a layer read from disk, without waiting for it."""
        ...


class _Found(NamedTuple):
    """Documents of one question, by their places in a layout: coarse and exact scores, NaN where not known."""

    places_K: torch.Tensor
    scores_K: torch.Tensor
    exact_K: torch.Tensor

    @classmethod
    def on_host(cls, places_K: torch.Tensor, scores_K: torch.Tensor) -> _Found:
        return cls(places_K, scores_K, torch.full_like(scores_K, math.nan))


class _Part(Protocol):
    """Coarse scores of the rows of some shards for some questions."""

    def leading(self, count: int) -> list[_Found]:
        """The leading documents of every question."""
        ...

    def above(self, bounds: Sequence[float]) -> list[_Found]:
        """The documents of every question that reach its bound."""
        ...


@dataclass(frozen=True, slots=True)
class _OnHost:
    """A `_Part` on the CPU."""

    score_BC: torch.Tensor
    document_C: torch.Tensor

    def leading(self, count: int) -> list[_Found]:
        return [_Found.on_host(*leading_documents(score_C, self.document_C, count)) for score_C in self.score_BC]

    def above(self, bounds: Sequence[float]) -> list[_Found]:
        parts = zip(self.score_BC, bounds, strict=True)
        return [_Found.on_host(*documents_above(score_C, self.document_C, bound)) for score_C, bound in parts]


@dataclass(frozen=True, slots=True)
class _OnDevice:
    """A `_Part` on an accelerator, which scores the documents that it finds exactly, where it has the stored keys."""

    score_BC: torch.Tensor
    query_BTW: torch.Tensor
    rows: MovedRows
    runs: Sequence[Run]
    layer: int

    @classmethod
    def of(cls, query_BTW: torch.Tensor, rows: MovedRows, runs: Sequence[Run], layer: int) -> _OnDevice:
        """Score all rows."""
        queries = quantize_queries(query_BTW)
        score_BC = torch.empty(len(query_BTW), len(rows.document_C), device=query_BTW.device)
        for run in runs:
            coarse_scores(queries, run.coarse(layer), score_BC[:, run.first : run.last])
        if rows.barred_C is not None:
            score_BC.masked_fill_(rows.barred_C, float("-inf"))
        return cls(score_BC, query_BTW, rows, runs, layer)

    def leading(self, count: int) -> list[_Found]:
        exact = partial(self._exact, self.query_BTW)
        return [_Found(*found) for found in leading_of_batch(self.score_BC, self.rows.document_C, count, exact)]

    def above(self, bounds: Sequence[float]) -> list[_Found]:
        found = list[_Found]()
        for query_TW, score_C, bound in zip(self.query_BTW, self.score_BC, bounds, strict=True):
            places_K, scores_K = documents_above(score_C, self.rows.document_C, bound)
            exact_K = self._exact(query_TW[None], places_K[None])[0]
            found.append(_Found(places_K.long().cpu(), scores_K.cpu(), exact_K.cpu()))
        return found

    def _exact(self, query_BTW: torch.Tensor, document_BK: torch.Tensor) -> torch.Tensor:
        """Exact scores of documents, NaN where the stored keys are elsewhere, `[B, K]`."""
        rows = self.rows
        first_BK, rows_BK = rows.first_N[document_BK], rows.rows_N[document_BK]
        score_BK = torch.full(document_BK.shape, math.nan, device=document_BK.device)
        for run in self.runs:
            if run.has_stored:
                keys_CW, start_BK = run.stored(self.layer), first_BK - run.first
                here_BK = exact_document_scores(query_BTW, keys_CW, start_BK, rows_BK, rows.most_rows)
                score_BK = torch.where((first_BK >= run.first) & (first_BK < run.last), here_BK, score_BK)
        return score_BK


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
        self._runs, self._stay = self._tiers.runs(readers[:num_moved]), self._shards[num_moved:]
        self._num_moved = self._runs[-1].last if self._runs else 0
        self._resident = self._tiers.resident(readers[num_moved:], len(self._layers))
        self._parts: list[_Part] = []
        self._query_BTW = torch.empty(0)  # on the CPU, if anything is scored there
        # Exact scores of every question's documents, as far as they are known.
        self._known: list[dict[int, float]] = []
        # Where documents stand that were asked for.
        self._places: dict[int, int] = {}

    @property
    def questions_at_once(self) -> int:
        return max(1, _MOST_SCORES // max(1, len(self._layout.document_C)))

    def leading(self, layer: int, query_BTW: torch.Tensor, count: int) -> list[Candidates]:
        """See `DocumentSource.leading`."""
        self._parts, self._known = [], [{} for _ in query_BTW]
        if self._stay:
            self._query_BTW = query_BTW.cpu()
            self._parts.append(self._on_host(layer))
        elif not all(run.has_stored for run in self._runs):  # not waited for: what leads is copied behind it
            self._query_BTW = start_to_host(query_BTW)
        if self._runs:
            rows = self._tiers.moved_rows(self._layout, self._barred_C, self._num_moved, self._keys_on)
            self._parts.append(_OnDevice.of(to_device(query_BTW, self._keys_on), rows, self._runs, layer))
        return self._joined([part.leading(count) for part in self._parts])

    def above(self, bounds: Sequence[float]) -> list[Candidates]:
        """See `DocumentSource.above`."""
        return self._joined([part.above(bounds) for part in self._parts])

    def exact(self, layer: int, ids: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """See `DocumentSource.exact`. What the accelerator scored is not scored again: on the CPU it would be equal."""
        scores = list[torch.Tensor]()
        for question, (known, ids_K) in enumerate(zip(self._known, ids, strict=True)):
            wanted = ids_K.tolist()
            unknown = [document_id for document_id in wanted if document_id not in known]
            if unknown:
                known.update(zip(unknown, self._exact(layer, self._query_BTW[question], unknown).tolist(), strict=True))
            scores.append(torch.tensor([known[document_id] for document_id in wanted], dtype=torch.float32))
        return scores

    def _on_host(self, layer: int) -> _OnHost:
        """Score the keys that are on the CPU."""
        queries, document_C = quantize_queries(self._query_BTW), self._layout.document_C[self._num_moved :]
        score_BC = torch.empty(len(self._query_BTW), len(document_C))
        parts = score_BC.split([len(shard.document_C) for shard in self._stay], dim=1)
        for shard, part_BC, is_resident in zip(self._stay, parts, self._resident, strict=True):
            coarse_scores(queries, shard.reader.coarse_keys(layer), part_BC)
            if not is_resident:
                shard.reader.give_back_coarse(layer)
        if self._barred_C is not None:
            score_BC.masked_fill_(self._barred_C[self._num_moved :], float("-inf"))
        return _OnHost(score_BC, document_C)

    def _joined(self, parts: Sequence[Sequence[_Found]]) -> list[Candidates]:
        """What the parts found for every question."""
        found = []
        for known, *of_parts in zip(self._known, *parts, strict=True):
            places_K = torch.cat([torch.empty(0, dtype=torch.int64), *(part.places_K for part in of_parts)])
            scores_K, exact_K = (
                torch.cat([torch.empty(0), *x]) for x in ([p.scores_K for p in of_parts], [p.exact_K for p in of_parts])
            )
            ids_K = self._layout.ids_N[places_K]
            ids = ids_K.tolist()
            self._places.update(zip(ids, places_K.tolist(), strict=True))
            known.update((i, score) for i, score in zip(ids, exact_K.tolist(), strict=True) if not math.isnan(score))
            found.append(Candidates(ids_K, scores_K))
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

    def holds(self, document_id: int) -> bool:
        """Whether a document is here."""
        return document_id in self._places or bool((self._layout.ids_N == document_id).any())

    def prefetch(self, layer: int, ids: Sequence[int]) -> None:
        """See `DocumentSource.prefetch`."""
        for segment, index in map(self._find, ids):
            if (layer, segment.files.name, index) not in self._tiers.content:
                segment.prefetch(layer, index)

    def _exact(self, layer: int, query_TW: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
        """Exact scores of documents whose stored keys are read for it."""
        found = [self._find(document_id) for document_id in ids]
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
