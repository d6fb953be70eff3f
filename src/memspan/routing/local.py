"""`LocalMemory`: a bank in one process as the model's `LayerMemory`.

Routing takes two passes. A coarse one scores every chunk in the keys' own number format and keeps at least 8k
documents per question; an exact one re-scores those by a routine that does not depend on batch, tile or shard. Order
is by score, then by id. Documents that are not live, or filtered out, are never scored into the selection.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from memspan.bank.bank import Shard
from memspan.bank.manifest import Manifest
from memspan.ops.scoring import (
    chunk_scores,
    document_scores,
    exact_chunk_scores,
    fold_queries,
    routing_queries,
    top_documents,
)
from memspan.types import Retrieved

# Chunks scored at once: bounds the scratch of a question of 32 tokens to 2 MiB in bfloat16.
TILE = 32_768
_CANDIDATES_PER_SELECTED = 8


@dataclass(frozen=True, slots=True)
class Candidates:
    """The best documents of one question in one MSA layer, exactly scored, best first; more than are attended to."""

    ids: torch.Tensor
    scores: torch.Tensor


class LocalMemory:
    """Live documents of a bank, as they were when this was made.

    Attributes:
        candidates: per MSA layer and question what the last `route` considered, for ranking over layers.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        manifest: Manifest,
        top_k: int,
        *,
        only: Collection[int] | None = None,
        device: torch.device | None = None,
        tile: int = TILE,
    ) -> None:
        """
        Args:
            shards: of the bank (`MemoryBank.shards`), in any order.
            manifest: of the bank.
            top_k: documents attended to per MSA layer; all, where the bank holds no more.
            only: ids of the documents that may be selected; None: every live one.
            device: where scoring and the selected content go. Default: CPU.
            tile: chunks scored at a time.
        """
        self._manifest, self._top_k, self._tile = manifest, top_k, tile
        self._device = device or torch.device("cpu")
        self._parts = [_ScoredShard(shard, only) for shard in shards]
        self._parts = [part for part in self._parts if len(part.ids_N)]
        self._ids_N = torch.cat([part.ids_N for part in self._parts]) if self._parts else torch.empty(0).long()
        self.candidates: dict[int, list[Candidates]] = {}

    def __len__(self) -> int:
        """Number of documents that can be selected."""
        return len(self._ids_N)

    def route(self, layer: int, router_query_BTHD: torch.Tensor, query_mask_BT: torch.Tensor) -> Retrieved:
        """See `LayerMemory.route`."""
        if not self._parts:
            return self._gather(layer, [torch.empty(0).long()] * len(router_query_BTHD), [()] * len(router_query_BTHD))
        query_BTW = fold_queries(router_query_BTHD, self._manifest.num_kv_heads, self._manifest.similarity)
        query_BTW = routing_queries(query_BTW.cpu(), query_mask_BT.cpu())
        coarse_BN = torch.cat([part.coarse_scores(layer, query_BTW, self._tile) for part in self._parts], dim=1)
        self.candidates[layer] = [
            self._exact(layer, query_TW, coarse_N) for query_TW, coarse_N in zip(query_BTW, coarse_BN, strict=True)
        ]
        chosen = [found.ids[: self._top_k] for found in self.candidates[layer]]
        scores = [tuple(found.scores[: self._top_k].tolist()) for found in self.candidates[layer]]
        return self._gather(layer, chosen, scores)

    def _exact(self, layer: int, query_TW: torch.Tensor, coarse_N: torch.Tensor) -> Candidates:
        """Re-score the best documents of the coarse pass."""
        num_kept = min(len(coarse_N), _CANDIDATES_PER_SELECTED * self._top_k)
        ids_K, _ = top_documents(coarse_N.float(), self._ids_N, num_kept)
        places = [self._locate(document_id) for document_id in ids_K.tolist()]
        keys_CW = torch.cat([part.keys(layer, index) for part, index in places])
        document_C = torch.repeat_interleave(torch.tensor([int(part.rows_N[index]) for part, index in places]))
        scores_C = exact_chunk_scores(query_TW, keys_CW)
        scores_K = document_scores(scores_C[None], document_C, len(places))[0]
        return Candidates(*top_documents(scores_K, ids_K, num_kept))

    def _locate(self, document_id: int) -> tuple[_ScoredShard, int]:
        for part in self._parts:
            index = part.index.get(document_id)
            if index is not None:
                return part, index
        raise KeyError(document_id)

    def _gather(
        self, layer: int, chosen: Sequence[torch.Tensor], scores: Sequence[tuple[float, ...]]
    ) -> Retrieved:
        """Fetch the selected documents' content, in the order of their ids (bank order), zero-padded to the longest."""
        contents = []
        for ids in chosen:
            rows = [part.content(layer, index) for part, index in map(self._locate, sorted(ids.tolist()))]
            contents.append(torch.cat(rows) if rows else None)
        G, D = self._manifest.num_kv_heads, self._manifest.head_dim
        M = max((len(content) for content in contents if content is not None), default=0)
        content_BM2GD = torch.zeros(len(contents), M, 2, G, D, dtype=torch.bfloat16)
        mask_BM = torch.zeros(len(contents), M, dtype=torch.bool)
        for row, content in enumerate(contents):
            if content is not None:
                content_BM2GD[row, : len(content)] = content
                mask_BM[row, : len(content)] = True
        key_BMGD, value_BMGD = content_BM2GD.to(self._device).unbind(2)
        return Retrieved(
            keys_BGMD=key_BMGD.transpose(1, 2),
            values_BGMD=value_BMGD.transpose(1, 2),
            mask_BM=mask_BM.to(self._device),
            doc_ids=tuple(tuple(ids.tolist()) for ids in chosen),
            scores=tuple(scores),
        )


class _ScoredShard:
    """A shard's selectable documents."""

    def __init__(self, shard: Shard, only: Collection[int] | None) -> None:
        keep_N = torch.ones(len(shard.document_ids_N), dtype=torch.bool)
        if only is not None:
            keep_N = torch.isin(shard.document_ids_N, torch.tensor(sorted(only), dtype=torch.int64))
        self.ids_N = shard.document_ids_N[keep_N]
        self.first_N = shard.first_row_N[keep_N]
        self.rows_N = shard.rows_N[keep_N]
        self.index = {document_id: index for index, document_id in enumerate(self.ids_N.tolist())}
        self._reader = shard.reader
        self._sparse = len(self.ids_N) * 4 < len(keep_N)
        # Document of every row; rows of no selectable document fall into a last bin that is dropped.
        document_C = torch.full((shard.reader.files.rows,), len(self.ids_N), dtype=torch.int64)
        rows_C = torch.repeat_interleave(self.first_N, self.rows_N) + _arange_within(self.rows_N)
        document_C[rows_C] = torch.repeat_interleave(self.rows_N)
        self._document_C, self._rows_C = document_C, rows_C

    def coarse_scores(self, layer: int, query_BTW: torch.Tensor, tile: int) -> torch.Tensor:
        """Score of every selectable document, `[B, N]`, in the keys' number format."""
        keys_CW, document_C = self._reader.router_keys(layer), self._document_C
        if self._sparse:  # few rows wanted: take them out instead of scoring all
            keys_CW, document_C = keys_CW[self._rows_C], document_C[self._rows_C]
        score_BC = chunk_scores(query_BTW, keys_CW, tile)
        return document_scores(score_BC, document_C, len(self.ids_N) + 1)[:, :-1]

    def keys(self, layer: int, index: int) -> torch.Tensor:
        first, rows = int(self.first_N[index]), int(self.rows_N[index])
        return self._reader.router_keys(layer)[first : first + rows]

    def content(self, layer: int, index: int) -> torch.Tensor:
        return self._reader.content(layer, int(self.first_N[index]), int(self.rows_N[index]))


def _arange_within(rows_N: torch.Tensor) -> torch.Tensor:
    """0, 1, ... within each document: `[3, 2]` gives `[0, 1, 2, 0, 1]`."""
    starts_N = rows_N.cumsum(0) - rows_N
    return torch.arange(int(rows_N.sum())) - torch.repeat_interleave(starts_N, rows_N)
