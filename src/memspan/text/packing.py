"""Token sequences of different length: contexts as one left-padded batch, batches of like length, even shares."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import torch

from memspan.text.template import Context

# Padded tokens run at a time: larger activations are paged in anew at every operation (measured, docs/LOG.md).
BATCH_TOKENS = 2048
_MOST_PADDING = 0.05


@dataclass(frozen=True, slots=True)
class PackedContexts:
    """A left-padded batch of active contexts, `[B, T]` each.

    Attributes:
        ids: token ids; padding holds 0, which means nothing.
        positions: the prefix from 0, the rest from prefix length + offset (paper 3.2, global RoPE).
        valid: True for tokens. Padding is known by length alone.
        sees_memory: True but for the template prefix and padding.
        routes: True for the tokens that route.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    valid: torch.Tensor
    sees_memory: torch.Tensor
    routes: torch.Tensor

    @property
    def padding_mask(self) -> torch.Tensor | None:
        """`valid`, or None where nothing is padded and no mask is needed."""
        return None if bool(self.valid.all()) else self.valid

    @property
    def lengths(self) -> list[int]:
        """Tokens of each context."""
        return self.valid.sum(1).tolist()

    def take(self, rows: Sequence[int]) -> PackedContexts:
        """Some of the contexts, at least one, padded to the longest of these."""
        rows_R = torch.tensor(rows).to(self.valid.device)
        start = int((~self.valid[rows_R]).sum(1).min())
        return self._each(lambda tensor_BT: tensor_BT[rows_R, start:])

    def to(self, device: torch.device) -> PackedContexts:
        return self._each(lambda tensor_BT: tensor_BT.to(device))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> PackedContexts:
        return PackedContexts(*(change(getattr(self, field.name)) for field in fields(self)))


def pack_contexts(contexts: Sequence[Context], position_offset: int) -> PackedContexts:
    """Left-pad contexts to the longest.

    Args:
        contexts: at least one.
        position_offset: `MSAConfig.position_offset`.
    """
    B, T = len(contexts), max(len(context.ids) for context in contexts)
    ids = torch.zeros(B, T, dtype=torch.long)
    positions = torch.zeros_like(ids)
    valid, sees_memory, routes = (torch.zeros(B, T, dtype=torch.bool) for _ in range(3))
    for row, context in enumerate(contexts):
        length, prefix = len(context.ids), context.routes.start
        pad = T - length
        ids[row, pad:] = torch.tensor(context.ids)
        place = torch.arange(length)
        positions[row, pad:] = torch.where(place < prefix, place, place + position_offset)
        valid[row, pad:] = True
        sees_memory[row, pad + prefix :] = True
        routes[row, pad + prefix : pad + context.routes.end] = True
        for span in context.silent:
            routes[row, pad + span.start : pad + span.end] = False
    return PackedContexts(ids, positions, valid, sees_memory, routes)


def length_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices grouped into batches of like length, longest first, at most `max_tokens` padded tokens a batch.

    A batch ends early where more than a twentieth of it would be padding, once it has a quarter of `max_tokens` of its
    own. A sequence longer than `max_tokens` is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batch: list[int] = []
    own = 0
    for index in order:
        padded = (len(batch) + 1) * lengths[batch[0]] if batch else 0
        wasteful = padded - own - lengths[index] > _MOST_PADDING * padded
        if padded > max_tokens or (wasteful and own >= max_tokens // 4):
            yield batch
            batch, own = [], 0
        batch.append(index)
        own += lengths[index]
    if batch:
        yield batch


def even_shares(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Things of some sizes (their places) in `count` shares: the next largest goes to the smallest share."""
    shares: list[list[int]] = [[] for _ in range(count)]
    load = [(0, share) for share in range(count)]
    for place in sorted(range(len(sizes)), key=lambda place: (-sizes[place], place)):
        size, share = heapq.heappop(load)
        shares[share].append(place)
        heapq.heappush(load, (size + sizes[place], share))
    return [sorted(places) for places in shares]
