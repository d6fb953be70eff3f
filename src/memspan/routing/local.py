"""`LocalMemory`: a bank in one process as the model's `LayerMemory`.

Routing takes two passes. A coarse one scores every chunk in the keys' own number format and keeps at least 8k
documents per question; an exact one re-scores those by a routine that does not depend on batch, tile or shard. Order
is by score, then by id. Documents that are not live, or filtered out, are never scored into the selection.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from memspan.bank.bank import Shard
from memspan.bank.manifest import LATENT_DTYPE, Manifest
from memspan.ops.scoring import (
    chunk_scores,
    document_scores,
    exact_chunk_scores,
    fold_queries,
    routing_queries,
    top_documents,
)
from memspan.types import Retrieved

# Scores held at once in the coarse pass, chunks times query tokens: 2 MiB in bfloat16.
_TILE_SCORES = 2**20
_CANDIDATES_PER_SELECTED = 8
_MOST_CANDIDATES = 4096
# Relative error of a coarse score: the query and the result are each rounded to bfloat16's 8 bits.
_COARSE_ERROR = 2.0**-7


@dataclass(frozen=True, slots=True)
class Candidates:
    """The best documents of one question in one MSA layer, exactly scored, best first; more than are attended to."""

    ids: torch.Tensor
    scores: torch.Tensor


class LocalMemory:
    """Live documents of a bank, as they were when its shards were read.

    Attributes:
        candidates: per MSA layer and question what the last `route` considered, for ranking over layers.
    """

    def __init__(
        self,
        shards: Sequence[RoutedShard],
        manifest: Manifest,
        top_k: int,
        *,
        only: Collection[int] | None = None,
        device: torch.device | None = None,
        tile: int | None = None,
    ) -> None:
        """
        Args:
            shards: of the bank (`MemoryBank.shards`), indexed, in any order.
            manifest: of the bank.
            top_k: documents attended to per MSA layer; all, where the bank holds no more.
            only: ids of the documents that may be selected; None: every live one.
            device: where the selected content goes. Default: CPU. Keys are scored where they lie, on the CPU.
            tile: chunks scored at a time. Default: as many as bound the scratch memory to a few MiB.
        """
        self._manifest, self._top_k, self._tile = manifest, top_k, tile
        self._device = device or torch.device("cpu")
        self._shards = list(shards)
        ids = [shard.ids_N for shard in self._shards]
        self._ids_N = torch.cat(ids) if ids else torch.empty(0, dtype=torch.int64)
        self._barred_N = None
        if only is not None:
            self._barred_N = ~torch.isin(self._ids_N, torch.tensor(sorted(only), dtype=torch.int64))
        self.candidates: dict[int, list[Candidates]] = {}

    def route(self, layer: int, router_query_BTHD: torch.Tensor, query_mask_BT: torch.Tensor) -> Retrieved:
        """See `LayerMemory.route`."""
        routing_T = query_mask_BT.any(0)  # padding, prefix and tail of the template need not be scored
        query_BTW = fold_queries(
            router_query_BTHD[:, routing_T], self._manifest.num_kv_heads, self._manifest.similarity
        )
        query_BTW = routing_queries(query_BTW.cpu(), query_mask_BT[:, routing_T].cpu())
        coarse_BN = self._coarse(layer, query_BTW)
        self.candidates[layer] = [
            self._exact(layer, query_TW, coarse_N) for query_TW, coarse_N in zip(query_BTW, coarse_BN, strict=True)
        ]
        return self._gather(layer, self.candidates[layer])

    def _coarse(self, layer: int, query_BTW: torch.Tensor) -> torch.Tensor:
        """Score of every document, `[B, N]` float32; -inf for the barred."""
        tile = self._tile or max(1, _TILE_SCORES // query_BTW.shape[:2].numel())
        scores = [shard.coarse_scores(layer, query_BTW, tile).float() for shard in self._shards]
        coarse_BN = torch.cat(scores, dim=1) if scores else query_BTW.new_empty(len(query_BTW), 0)
        return coarse_BN if self._barred_N is None else coarse_BN.masked_fill(self._barred_N, float("-inf"))

    def _exact(self, layer: int, query_TW: torch.Tensor, coarse_N: torch.Tensor) -> Candidates:
        """Re-score the best documents of the coarse pass."""
        num_kept = self._num_candidates(coarse_N)
        ids_K, scores_K = top_documents(coarse_N, self._ids_N, num_kept)
        if not len(ids_K):
            return Candidates(ids_K, scores_K)
        keys = [self._find(document_id).keys(layer, document_id) for document_id in ids_K.tolist()]
        document_C = torch.repeat_interleave(torch.tensor([len(rows) for rows in keys]))
        scores_C = exact_chunk_scores(query_TW, torch.cat(keys))
        exact_K = document_scores(scores_C[None], document_C, len(keys))[0]
        return Candidates(*top_documents(exact_K, ids_K, num_kept))

    def _num_candidates(self, coarse_N: torch.Tensor) -> int:
        """8k documents, or as many as the coarse pass cannot tell from the k-th best, within reason.

        Limit: rounding is taken to be relative to the best scores; where many large products cancel it is larger.
        """
        least = _CANDIDATES_PER_SELECTED * self._top_k
        if len(coarse_N) <= least:
            return least
        best_k = coarse_N.topk(self._top_k).values
        kth_best = float(best_k[-1])
        margin = _COARSE_ERROR * float(best_k.abs().max())
        return min(max(least, int((coarse_N >= kth_best - margin).sum())), max(least, _MOST_CANDIDATES))

    def _find(self, document_id: int) -> RoutedShard:
        return next(shard for shard in self._shards if document_id in shard)

    def _gather(self, layer: int, candidates: Sequence[Candidates]) -> Retrieved:
        """Fetch the best documents' content, in the order of their ids (bank order), zero-padded to the longest."""
        chosen = [tuple(found.ids[: self._top_k].tolist()) for found in candidates]
        G, D = self._manifest.num_kv_heads, self._manifest.head_dim
        contents = [
            torch.cat([self._find(id_).content(layer, id_) for id_ in sorted(ids)])
            if ids
            else torch.empty(0, 2, G, D, dtype=LATENT_DTYPE)
            for ids in chosen
        ]
        content_BM2GD = pad_sequence(contents, batch_first=True).to(self._device)
        rows_B1 = torch.tensor([[len(content)] for content in contents])
        key_BMGD, value_BMGD = content_BM2GD.unbind(2)
        return Retrieved(
            keys_BGMD=key_BMGD.transpose(1, 2),
            values_BGMD=value_BMGD.transpose(1, 2),
            mask_BM=(torch.arange(content_BM2GD.shape[1]) < rows_B1).to(self._device),
            doc_ids=tuple(chosen),
            scores=tuple(tuple(found.scores[: self._top_k].tolist()) for found in candidates),
        )


class RoutedShard:
    """A shard with what routing needs to know of its rows, computed once."""

    def __init__(self, shard: Shard) -> None:
        self.ids_N = shard.document_ids_N
        self._reader = shard.reader
        self._rows = {
            document_id: (first, rows)
            for document_id, first, rows in zip(
                self.ids_N.tolist(), shard.first_row_N.tolist(), shard.rows_N.tolist(), strict=True
            )
        }
        # Document (its index here) of every row. Rows of deleted documents fall into a last bin that is dropped.
        self._document_C = torch.full((shard.reader.files.rows,), len(self.ids_N), dtype=torch.int64)
        rows_C = torch.repeat_interleave(shard.first_row_N, shard.rows_N) + _arange_within(shard.rows_N)
        self._document_C[rows_C] = torch.repeat_interleave(shard.rows_N)

    def __contains__(self, document_id: int) -> bool:
        return document_id in self._rows

    def coarse_scores(self, layer: int, query_BTW: torch.Tensor, tile: int) -> torch.Tensor:
        """Score of every live document, `[B, N]`, in the keys' number format."""
        score_BC = chunk_scores(query_BTW, self._reader.router_keys(layer), tile)
        return document_scores(score_BC, self._document_C, len(self.ids_N) + 1)[:, :-1]

    def keys(self, layer: int, document_id: int) -> torch.Tensor:
        first, rows = self._rows[document_id]
        return self._reader.router_keys(layer)[first : first + rows]

    def content(self, layer: int, document_id: int) -> torch.Tensor:
        return self._reader.content(layer, *self._rows[document_id])


def _arange_within(rows_N: torch.Tensor) -> torch.Tensor:
    """0, 1, ... within each document: `[3, 2]` gives `[0, 1, 2, 0, 1]`."""
    starts_N = rows_N.cumsum(0) - rows_N
    return torch.arange(int(rows_N.sum())) - torch.repeat_interleave(starts_N, rows_N)
