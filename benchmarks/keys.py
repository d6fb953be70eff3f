"""Routing keys of a bank's MSA layer as any searcher may read them, questions about them, and the exact answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from memspan.bank.bank import MemoryBank
from memspan.bank.mapping import open_mapped
from memspan.bank.segment import segment_paths
from memspan.bank.snapshot import Snapshot
from memspan.ops.scoring import document_scores, top_documents

TOP_K = 16
_TILE = 4096


@dataclass(frozen=True, slots=True)
class LayerKeys:
    """Folded keys `[C, W]` in bfloat16, the place (0..N-1) of every chunk's document, and the documents' ids."""

    key_CW: torch.Tensor
    document_C: torch.Tensor
    ids_N: torch.Tensor

    @classmethod
    def joined(cls, parts: Iterable[LayerKeys]) -> LayerKeys:
        """One after the other, copied; the keys of a part are read before the next part is taken."""
        keys, documents, ids, first = [], [], [], 0
        for part in parts:
            keys.append(part.key_CW.clone())
            documents.append(part.document_C + first)
            ids.append(part.ids_N)
            first += len(part.ids_N)
        return cls(torch.cat(keys), torch.cat(documents), torch.cat(ids))

    @property
    def most_rows(self) -> int:
        """Chunks of the document that has most."""
        return int(torch.bincount(self.document_C).max())

    def best(self, score_C: torch.Tensor) -> list[int]:
        """The best TOP_K documents by the scores of all chunks."""
        return top_documents(self.scored(score_C), self.ids_N, TOP_K)[0].tolist()

    def scored(self, score_C: torch.Tensor) -> torch.Tensor:
        """Every document's score: that of its best chunk."""
        return document_scores(score_C[None], self.document_C, len(self.ids_N))[0]

    def exact(self, query_TW: torch.Tensor) -> torch.Tensor:
        """Score of every chunk, accumulated in float32."""
        return torch.cat([(tile_CW.float() @ query_TW.T).amax(1) for tile_CW in self.key_CW.split(_TILE)])


def layer_keys(bank: MemoryBank, layer: int) -> Iterator[LayerKeys]:
    """The keys of every segment, read from its file apart from any reader, and given back after each."""
    for _, files in bank.catalog.segments():
        mapped = open_mapped(segment_paths(bank.folder / "segments", files.name)[0])
        key_CW, documents_N4 = mapped[f"layer_{layer}"], mapped["documents"].tensor
        yield LayerKeys(key_CW.tensor, torch.repeat_interleave(documents_N4[:, 2]), documents_N4[:, 0].clone())
        key_CW.give_back()


def true_top(bank: MemoryBank, layer: int, query_TW: torch.Tensor) -> list[int]:
    """The best TOP_K documents by exact scores of every chunk, a segment at a time."""
    ids, scores = [], []
    for keys in layer_keys(bank, layer):
        ids.append(keys.ids_N)
        scores.append(keys.scored(keys.exact(query_TW)))
    return top_documents(torch.cat(scores), torch.cat(ids), TOP_K)[0].tolist()


def questions(snapshot: Snapshot, num_heads: int, tokens: int, count: int) -> torch.Tensor:
    """Router queries `[L, count, 1, T, H, D]`, each about the key of some document."""
    manifest = snapshot.manifest
    L, G, D = len(manifest.msa_layers), manifest.num_kv_heads, manifest.head_dim
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(L, count, 1, tokens, num_heads, D, generator=generator)
    for number in range(count):
        shard = snapshot.shards[number % len(snapshot.shards)]
        for place, layer in enumerate(manifest.msa_layers):
            segment, index = shard.place(7 * number % len(shard.ids_N))
            key_GD = segment.router_rows(layer, index)[0].float().view(G, D)
            query[place, number, 0] += 0.7 * D**0.5 * key_GD.repeat_interleave(num_heads // G, 0)
    return query
