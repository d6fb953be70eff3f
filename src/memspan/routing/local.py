"""`LocalMemory`: a bank in one process as the model's `LayerMemory`.

Routing takes two passes. A coarse one scores every chunk in the keys' own number format and keeps at least 8k
documents per question; an exact one re-scores those by a routine that does not depend on batch, tile or shard. Order
is by score, then by id. Documents that are not live, or filtered out, are never scored into the selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from memspan.bank.manifest import LATENT_DTYPE, Manifest
from memspan.bank.shard import Shard
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
    """Documents of a bank, as a snapshot's shards hold them.

    Attributes:
        candidates: per MSA layer and question what the last `route` considered, for ranking over layers.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        manifest: Manifest,
        top_k: int,
        *,
        selectable_N: torch.Tensor | None = None,
        device: torch.device | None = None,
        tile: int | None = None,
    ) -> None:
        """
        Args:
            shards: of the bank (`Snapshot.shards`), in any order.
            manifest: of the bank.
            top_k: documents attended to per MSA layer; all, where there are no more.
            selectable_N: for every document of the shards, in order, whether it may be selected
                (`Snapshot.selectable_mask`). Default: every live one.
            device: where the selected content goes. Default: CPU. Keys are scored where they lie, on the CPU.
            tile: chunks scored at a time. Default: as many as bound the scratch memory to a few MiB.
        """
        self._manifest, self._top_k, self._tile = manifest, top_k, tile
        self._device = device or torch.device("cpu")
        self._shards = list(shards)
        ids = [shard.ids_N for shard in self._shards]
        self._ids_N = torch.cat(ids) if ids else torch.empty(0, dtype=torch.int64)
        if selectable_N is None:
            live = [shard.live_N for shard in self._shards]
            selectable_N = torch.cat(live) if live else torch.empty(0, dtype=torch.bool)
        self._barred_N = ~selectable_N
        self._num_selectable = int(selectable_N.sum())
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
        scores = [_coarse_scores(shard, layer, query_BTW, tile).float() for shard in self._shards]
        coarse_BN = torch.cat(scores, dim=1) if scores else query_BTW.new_empty(len(query_BTW), 0)
        return coarse_BN.masked_fill_(self._barred_N, float("-inf"))

    def _exact(self, layer: int, query_TW: torch.Tensor, coarse_N: torch.Tensor) -> Candidates:
        """Re-score the best documents of the coarse pass."""
        num_kept = self._num_candidates(coarse_N)
        ids_K, scores_K = top_documents(coarse_N, self._ids_N, num_kept)
        if not len(ids_K):
            return Candidates(ids_K, scores_K)
        keys_CW, document_C = self._keys_of(layer, ids_K)
        exact_K = document_scores(exact_chunk_scores(query_TW, keys_CW)[None], document_C, len(ids_K))[0]
        return Candidates(*top_documents(exact_K, ids_K, num_kept))

    def _keys_of(self, layer: int, ids_K: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Routing keys of some documents, and which of them (0..K-1) each row belongs to."""
        keys, owners = [], []
        for shard in self._shards:
            found_F, documents_F = shard.find(ids_K)
            if len(found_F):
                rows_C, owner_C = shard.rows_of(documents_F)
                keys.append(shard.reader.router_keys(layer)[rows_C])
                owners.append(found_F[owner_C])
        return torch.cat(keys), torch.cat(owners)

    def _num_candidates(self, coarse_N: torch.Tensor) -> int:
        """8k documents, or as many as the coarse pass cannot tell from the k-th best, within reason.

        Limit: rounding is taken to be relative to the best scores; where many large products cancel it is larger.
        """
        least = _CANDIDATES_PER_SELECTED * self._top_k
        if self._num_selectable <= least:
            return least
        best_k = coarse_N.topk(self._top_k).values
        kth_best = float(best_k[-1])
        margin = _COARSE_ERROR * float(best_k.abs().max())
        return min(max(least, int((coarse_N >= kth_best - margin).sum())), max(least, _MOST_CANDIDATES))

    def _find(self, ids_K: torch.Tensor) -> list[tuple[Shard, int]]:
        """The shard of every id, and its index there."""
        found: list[tuple[Shard, int]] = [(self._shards[0], 0)] * len(ids_K)
        for shard in self._shards:
            for place, index in zip(*(tensor.tolist() for tensor in shard.find(ids_K)), strict=True):
                found[place] = shard, index
        return found

    def _gather(self, layer: int, candidates: Sequence[Candidates]) -> Retrieved:
        """Fetch the best documents' content, in the order of their ids (bank order), zero-padded to the longest."""
        chosen = [tuple(found.ids[: self._top_k].tolist()) for found in candidates]
        G, D = self._manifest.num_kv_heads, self._manifest.head_dim
        contents, row_scores = [], []
        for found, ids in zip(candidates, chosen, strict=True):
            score_of = dict(zip(ids, found.scores.tolist(), strict=False))
            places = self._find(torch.tensor(sorted(ids))) if ids else []
            parts = [shard.reader.content(layer, index) for shard, index in places]
            contents.append(torch.cat(parts) if parts else torch.empty(0, 2, G, D, dtype=LATENT_DTYPE))
            of_documents = [torch.full((len(rows),), score_of[i]) for i, rows in zip(sorted(ids), parts, strict=True)]
            row_scores.append(torch.cat(of_documents) if parts else torch.empty(0))
        content_BM2GD = pad_sequence(contents, batch_first=True).to(self._device)
        rows_B1 = torch.tensor([[len(content)] for content in contents])
        key_BMGD, value_BMGD = content_BM2GD.unbind(2)
        return Retrieved(
            keys_BGMD=key_BMGD.transpose(1, 2),
            values_BGMD=value_BMGD.transpose(1, 2),
            mask_BM=(torch.arange(content_BM2GD.shape[1]) < rows_B1).to(self._device),
            doc_ids=tuple(chosen),
            scores=tuple(tuple(found.scores[: self._top_k].tolist()) for found in candidates),
            row_scores_BM=pad_sequence(row_scores, batch_first=True).to(self._device),
        )


def _coarse_scores(shard: Shard, layer: int, query_BTW: torch.Tensor, tile: int) -> torch.Tensor:
    """Score of every document of a shard, `[B, N]`, in the keys' number format."""
    score_BC = chunk_scores(query_BTW, shard.reader.router_keys(layer), tile)
    return document_scores(score_BC, shard.document_C, len(shard.ids_N))
