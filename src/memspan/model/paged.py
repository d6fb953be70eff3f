"""K and V of the rows that are decoded, in pages: one call attends for all rows of a layer, whatever their lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memspan.model.buffers import DecodeBuffers, RowKV
from memspan.ops.paged import PAGE, PagedAttention, varlen_attention
from memspan.ops.transfer import to_device


@dataclass(frozen=True, slots=True)
class _Step:
    """What a step's calls need, on the device, and the most columns of a row in each layer."""

    slots_LX: Tensor
    table_LRP: Tensor
    used_LR: Tensor
    first_R1: Tensor
    most_L: list[int]


# A pool that grows at a token grows by this share of itself.
_SPARE = 32


class PagedBuffers(DecodeBuffers):
    """`DecodeBuffers` whose rows share a pool of pages in every layer, on a device.

    Where tokens stand is computed on the CPU and sent once a step, so nothing waits for the device. A row that
    sees its memory under a mask, beside a sliding window or where heads have rows of their own, is gathered and attends
    on its own.

    Args:
        attend: the kernel.
    """

    def __init__(self, attend: PagedAttention = varlen_attention) -> None:
        super().__init__()
        self._attend_pages = attend
        self._pools: list[Tensor] = []  # of each layer `[2, P, PAGE, G, D]`
        self._free: list[list[int]] = []
        self._table_LRP = torch.zeros(0, 0, 0, dtype=torch.long)
        self._num_pages_LR, self._used_LR, self._memory_LR = torch.zeros(3, 0, 0, dtype=torch.long)
        self._heads: list[list[Tensor | None]] = []  # of each row and layer `RowKV.heads_GM`
        self._step: _Step | None = None

    def _open(self, num_rows: int, num_layers: int) -> int:
        if not self._pools:
            self._free = [[] for _ in range(num_layers)]
            self._table_LRP = self._table_LRP.new_zeros(num_layers, 0, 1)
            self._num_pages_LR, self._used_LR, self._memory_LR = self._table_LRP.new_zeros(3, num_layers, 0)
        first = self._used_LR.shape[1]
        self._heads += [[] for _ in range(num_rows)]
        self._table_LRP = _wider(self._table_LRP, 1, num_rows)
        self._num_pages_LR, self._used_LR, self._memory_LR = (
            _wider(counts, 1, num_rows) for counts in (self._num_pages_LR, self._used_LR, self._memory_LR)
        )
        return first

    def _put(self, row: int, layer: int, local: tuple[Tensor, Tensor], memory: RowKV | None) -> None:
        parts = [local] if memory is None else [(memory.keys_GSD, memory.values_GSD), local]
        keys_GSD, values_GSD = (torch.cat(some, dim=1) for some in zip(*parts, strict=True))
        G, S, D = keys_GSD.shape
        if layer == len(self._pools):
            self._pools.append(keys_GSD.new_empty(2, 0, PAGE, G, D))
        self._reserve(layer, row, S)
        pages = to_device(self._table_LRP[layer, row, : _pages_for(S)], keys_GSD.device)
        for pool_PSGD, given_GSD in zip(self._pools[layer], (keys_GSD, values_GSD), strict=True):
            padded_SGD = _wider(given_GSD.transpose(0, 1), 0, len(pages) * PAGE - S)
            pool_PSGD.index_copy_(0, pages, padded_SGD.view(-1, PAGE, G, D))
        self._used_LR[layer, row] = S
        self._memory_LR[layer, row] = 0 if memory is None else memory.memory
        self._heads[row].append(None if memory is None else memory.heads_GM)

    def leave(self, row: int) -> None:
        for layer, free in enumerate(self._free):
            free += self._table_LRP[layer, row, : self._num_pages_LR[layer, row]].tolist()
        self._heads[row] = self._heads[-1]
        self._heads.pop()
        for state in (self._table_LRP, self._num_pages_LR, self._used_LR, self._memory_LR):
            state[:, row] = state[:, -1]
        self._table_LRP = self._table_LRP[:, :-1].clone()
        self._num_pages_LR, self._used_LR, self._memory_LR = (
            counts[:, :-1].clone() for counts in (self._num_pages_LR, self._used_LR, self._memory_LR)
        )

    def drop(self, row: int, count: int) -> None:
        self._used_LR[:, row] -= count
        self._step = None

    def begin(self) -> None:
        super().begin()
        self._step = None

    def attend(
        self,
        layer: int,
        query_RHTD: Tensor,
        key_RGTD: Tensor,
        value_RGTD: Tensor,
        scaling: float | None,
        window: int | None,
    ) -> Tensor:
        R, H, T, D = query_RHTD.shape
        step = self._step = self._step or self._placed(T, query_RHTD.device)
        pool_2PSGD = self._pools[layer]
        for pool_PSGD, new_RGTD in zip(pool_2PSGD, (key_RGTD, value_RGTD), strict=True):
            new_XGD = new_RGTD.transpose(1, 2).flatten(0, 1)
            pool_PSGD.flatten(0, 1).index_copy_(0, step.slots_LX[layer], new_XGD.to(pool_PSGD.dtype))
        has_memory = bool(self._memory_LR[layer].any())
        has_own = any(of_layers[layer] is not None for of_layers in self._heads)
        if has_memory and (has_own or (window is not None and self._exceeds(layer, window))):
            out = [self._attend_row(query_RHTD[row], self._gathered(layer, row), scaling, window) for row in range(R)]
            return torch.cat(out).to(query_RHTD.dtype)
        out_XHD = self._attend_pages(
            query_RHTD.transpose(1, 2).flatten(0, 1).to(pool_2PSGD.dtype),
            pool_2PSGD,
            step.table_LRP[layer],
            step.used_LR[layer],
            step.first_R1,
            step.most_L[layer],
            scaling,
            None if has_memory else window,
        )
        return out_XHD.view(R, T, H, D).to(query_RHTD.dtype)

    def _exceeds(self, layer: int, window: int) -> bool:
        """Whether a row has more tokens of its own than a sliding window holds."""
        return bool((self._used_LR[layer] - self._memory_LR[layer] > window).any())

    def _placed(self, T: int, device: torch.device) -> _Step:
        """Give the T new tokens of every row their places in every layer."""
        position_LRT = self._used_LR[:, :, None] + torch.arange(T)
        self._used_LR += T
        L, R = self._used_LR.shape
        for layer, row in (_pages_for(self._used_LR) > self._num_pages_LR).nonzero().tolist():
            self._reserve(layer, row, int(self._used_LR[layer, row]))
        page_LRT = self._table_LRP.gather(2, position_LRT // PAGE)
        slots_LX = (page_LRT * PAGE + position_LRT % PAGE).flatten(1)
        whole = (slots_LX, self._table_LRP.flatten(1), self._used_LR, (torch.arange(R + 1) * T).expand(L, -1))
        sizes = [part.shape[1] for part in whole]
        slots, table, used, first = to_device(torch.cat(whole, dim=1).int(), device).split(sizes, dim=1)
        table_LRP = table.reshape(L, R, -1)
        return _Step(slots.long(), table_LRP, used.contiguous(), first[0].contiguous(), self._used_LR.amax(1).tolist())

    def _reserve(self, layer: int, row: int, columns: int) -> None:
        """Have a row own the pages of so many columns."""
        has, wants = int(self._num_pages_LR[layer, row]), int(_pages_for(columns))
        free, pool = self._free[layer], self._pools[layer]
        if wants > self._table_LRP.shape[2]:
            self._table_LRP = _wider(self._table_LRP, 2, wants - self._table_LRP.shape[2])
        if wants - has > len(free):
            # A join takes what it needs; tokens that are written one by one some more, so that the pool grows rarely.
            more = wants - has - len(free) + (pool.shape[1] // _SPARE if has else 0)
            free += range(pool.shape[1], pool.shape[1] + more)
            self._pools[layer] = _wider(pool, 1, more)
        for place in range(has, wants):
            self._table_LRP[layer, row, place] = free.pop()
        self._num_pages_LR[layer, row] = wants

    def _gathered(self, layer: int, row: int) -> RowKV:
        """A row's columns side by side, those of the step's new tokens too."""
        used = int(self._used_LR[layer, row])
        pages = to_device(self._table_LRP[layer, row, : _pages_for(used)], self._pools[layer].device)
        keys_GSD, values_GSD = self._pools[layer][:, pages].flatten(1, 2)[:, :used].transpose(1, 2)
        return RowKV(keys_GSD, values_GSD, int(self._memory_LR[layer, row]), self._heads[row][layer])


def _pages_for(columns: Any) -> Any:
    """Pages of so many columns: a number, or a tensor of them."""
    return (columns + PAGE - 1) // PAGE


def _wider(tensor: Tensor, dim: int, count: int) -> Tensor:
    """A tensor with so many places more at the end of a dimension, zeros."""
    shape = list(tensor.shape)
    shape[dim] = count
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=dim)
