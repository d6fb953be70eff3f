"""`Shard`: the documents of a segment (or of several small ones) as routing sees them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Protocol, cast

import torch

from memspan.bank.coarse import LEAST_KEYS_BYTES
from memspan.bank.segment import SegmentReader
from memspan.ops.coarse import CoarseKeys, join_keys, quantize_keys

# Segments whose keys take less are scored together, from a copy in memory of at most so many bytes.
_SMALL_KEYS_BYTES = LEAST_KEYS_BYTES
_MOST_JOINED_BYTES = 2**26


class Reader(Protocol):
    """The rows of a segment; see `SegmentReader`."""

    @property
    def documents_N4(self) -> torch.Tensor: ...
    @property
    def keys_bytes(self) -> int: ...
    @property
    def mapped_coarse_bytes(self) -> int: ...
    def coarse_keys(self, layer: int) -> CoarseKeys: ...
    def give_back_coarse(self, layer: int) -> None: ...
    @property
    def has_stored(self) -> bool: ...
    def stored_keys(self, layer: int) -> Iterable[torch.Tensor]: ...
    def place(self, document: int) -> tuple[SegmentReader, int]: ...


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows, indexed. Immutable: `without` gives a new one that shares everything but `live_N`.

    Attributes:
        reader: the rows.
        ids_N: document ids in order of their rows.
        document_C: index into `ids_N` of the document of every row.
        live_N: False for the deleted.
        order_N, sorted_N: what sorts `ids_N`, and the ids sorted.
    """

    reader: Reader
    ids_N: torch.Tensor
    document_C: torch.Tensor
    live_N: torch.Tensor
    order_N: torch.Tensor
    sorted_N: torch.Tensor

    @classmethod
    def of(cls, reader: Reader) -> Shard:
        ids_N, _, rows_N, _ = reader.documents_N4.T.contiguous().unbind()
        document_C = torch.repeat_interleave(torch.arange(len(ids_N)), rows_N)
        sorted_N, order_N = torch.sort(ids_N)
        return cls(reader, ids_N, document_C, torch.ones(len(ids_N), dtype=torch.bool), order_N, sorted_N)

    def place(self, index: int) -> tuple[SegmentReader, int]:
        """The segment that holds a document (by its index here), and its index there."""
        return self.reader.place(index)

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


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the rows and documents of some shards stand when the shards are put one after another.

    Attributes:
        first_document: of every shard, and the number of documents at last.
        ids_N: document ids.
        document_C: index into `ids_N` of the document of every row.
    """

    first_document: tuple[int, ...]
    ids_N: torch.Tensor
    document_C: torch.Tensor

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> Layout:
        firsts = tuple(accumulate((len(shard.ids_N) for shard in shards), initial=0))
        none = torch.empty(0, dtype=torch.int64)
        documents = [shard.document_C + first for shard, first in zip(shards, firsts, strict=False)]
        return cls(firsts, torch.cat([none, *(shard.ids_N for shard in shards)]), torch.cat([none, *documents]))


class JoinedReader:
    """Several small segments as one: routing keys are joined, in 8 bits, when a layer is first scored."""

    def __init__(self, parts: Sequence[SegmentReader]) -> None:
        self.parts = tuple(parts)
        self._first_documents = [0, *accumulate(len(part.documents_N4) for part in self.parts)]
        tables = [part.documents_N4.clone() for part in self.parts]
        first_row = 0
        for table_N4 in tables:
            rows = int(table_N4[:, 2].sum())
            table_N4[:, 1] += first_row
            first_row += rows
        self._documents_N4 = torch.cat(tables)
        self._coarse: dict[int, CoarseKeys] = {}

    @property
    def documents_N4(self) -> torch.Tensor:
        return self._documents_N4

    @property
    def keys_bytes(self) -> int:
        return sum(part.keys_bytes for part in self.parts)

    def coarse_keys(self, layer: int) -> CoarseKeys:
        if layer not in self._coarse:
            self._coarse[layer] = join_keys([quantize_keys(part.router_keys(layer)) for part in self.parts])
        return self._coarse[layer]

    @property
    def mapped_coarse_bytes(self) -> int:
        return 0

    def give_back_coarse(self, layer: int) -> None:
        """Nothing is mapped: small segments stay in memory."""

    @property
    def has_stored(self) -> bool:
        return all(part.has_stored for part in self.parts)

    def stored_keys(self, layer: int) -> Iterator[torch.Tensor]:
        return chain.from_iterable(part.stored_keys(layer) for part in self.parts)

    def place(self, document: int) -> tuple[SegmentReader, int]:
        place = bisect_right(self._first_documents, document) - 1
        return self.parts[place], document - self._first_documents[place]


def join_small(shards: Sequence[Shard], before: Sequence[Shard] = ()) -> list[Shard]:
    """Shards with the small ones joined: what is scored per question is few tensors, however many small adds.

    Args:
        before: what this returned last; readers of the same parts are used again.
    """
    large = [shard for shard in shards if shard.reader.keys_bytes >= _SMALL_KEYS_BYTES]
    known = {shard.reader.parts: shard for shard in before if isinstance(shard.reader, JoinedReader)}
    groups: list[list[Shard]] = []
    room = 0
    for shard in shards:
        size = shard.reader.keys_bytes
        if size >= _SMALL_KEYS_BYTES:
            continue
        if size > room:
            groups.append([])
            room = _MOST_JOINED_BYTES
        groups[-1].append(shard)
        room -= size
    return large + [_join(group, known) for group in groups]


def _join(group: Sequence[Shard], known: dict[tuple[SegmentReader, ...], Shard]) -> Shard:
    if len(group) == 1:
        return group[0]
    parts = cast(tuple[SegmentReader, ...], tuple(shard.reader for shard in group))  # only segments are joined
    joined = known.get(parts) or Shard.of(JoinedReader(parts))
    return replace(joined, live_N=torch.cat([shard.live_N for shard in group]))
