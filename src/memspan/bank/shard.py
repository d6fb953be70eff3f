"""`Shard`: the documents of one segment as routing sees them. Only which of them live ever changes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from memspan.bank.segment import SegmentReader


@dataclass(frozen=True, slots=True)
class Shard:
    """A segment, indexed. Immutable: `without` gives a new one that shares everything but `live_N`.

    Attributes:
        reader: the segment's rows.
        ids_N: document ids in order of their rows.
        document_C: index into `ids_N` of the document of every row.
        live_N: False for the deleted.
        order_N, sorted_N: what sorts `ids_N`, and the ids sorted.
    """

    reader: SegmentReader
    ids_N: torch.Tensor
    document_C: torch.Tensor
    live_N: torch.Tensor
    order_N: torch.Tensor
    sorted_N: torch.Tensor

    @classmethod
    def of(cls, reader: SegmentReader) -> Shard:
        ids_N, _, rows_N = reader.documents_N3.T.contiguous().unbind()
        document_C = torch.repeat_interleave(torch.arange(len(ids_N)), rows_N)
        sorted_N, order_N = torch.sort(ids_N)
        return cls(reader, ids_N, document_C, torch.ones(len(ids_N), dtype=torch.bool), order_N, sorted_N)

    def without(self, document_ids: Collection[int]) -> Shard:
        """The shard after some documents were deleted."""
        if not document_ids:
            return self
        live_N = self.live_N.clone()
        live_N[self.find(torch.tensor(list(document_ids)))[1]] = False
        return replace(self, live_N=live_N)

    def find(self, ids_K: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of some ids are here (places in `ids_K`), and at which index each stands."""
        places_K = torch.searchsorted(self.sorted_N, ids_K).clamp_(max=len(self.sorted_N) - 1)
        found = (self.sorted_N[places_K] == ids_K).nonzero()[:, 0]
        return found, self.order_N[places_K[found]]

    def contains_mask(self, sorted_ids_K: torch.Tensor) -> torch.Tensor:
        """For every document whether its id is among some sorted ones, `[N]` bool."""
        if not len(sorted_ids_K):
            return torch.zeros_like(self.live_N)
        places_N = torch.searchsorted(sorted_ids_K, self.ids_N).clamp_(max=len(sorted_ids_K) - 1)
        return sorted_ids_K[places_N] == self.ids_N

    def rows(self, document: int) -> slice:
        """The rows of a document, by its index."""
        _, first_row, rows = self.reader.documents_N3[document].tolist()
        return slice(first_row, first_row + rows)
