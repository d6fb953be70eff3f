"""K and V of the rows that are decoded: of every row and layer its memory and its local tokens, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from memspan.ops.attention import attend
from memspan.types import Retrieved

# Columns made at a time for tokens still to be written, at most; of a short row an eighth of its own.
_ROOM = 256


class DecodeBuffers:
    """What the new tokens of a batch attend to. Rows join after their prefill, and each may leave at any time.

    Every row has tensors of its own, as long as itself: a short row takes no memory for a long one, a row that grows or
    leaves moves no other, and one token needs no mask but for a window. Nothing is joined or copied anew at a token.
    Tokens come a few at a time, and the newest can be taken back (`drop`), whatever a layer's window. All new tokens
    see the whole memory of their row.
    """

    def __init__(self) -> None:
        self._rows: list[list[_RowCache]] = []
        self._masks: dict[object, Tensor] = {}

    def join(
        self,
        cache: DynamicCache,
        retrieved: dict[int, Retrieved],
        rows: Sequence[int],
        lengths: Sequence[int],
        keep_layers: int = 0,
    ) -> None:
        """Take what a prefill computed of some of its contexts, as the last rows.

        Layer by layer K and V are given up where they came from, so that they are never held twice: the cache and
        `retrieved` are left without them.

        Args:
            cache: filled by the prefill, padded on the left.
            retrieved: what the prefill routed to, per MSA layer.
            rows: the contexts' in that prefill.
            lengths: their tokens.
            keep_layers: how many of the first layers the cache keeps.
        """
        first = self._open(len(rows), len(cache.layers))
        for place, layer in enumerate(cast("list[Any]", cache.layers)):
            keys, values, found = cast(Tensor, layer.keys), cast(Tensor, layer.values), retrieved.get(place)
            for number, (row, length) in enumerate(zip(rows, lengths, strict=True), first):
                # A layer with a sliding window has kept its newest tokens only.
                newest = slice(max(0, keys.shape[2] - length), None)
                local = keys[row, :, newest], values[row, :, newest]
                self._put(number, place, local, None if found is None else _memory_of(found, row))
            if place >= keep_layers:
                layer.keys = layer.values = keys.new_empty(0)
            if found is not None:
                retrieved[place] = replace(found, keys_BGMD=keys.new_empty(0), values_BGMD=keys.new_empty(0))

    def _open(self, num_rows: int, num_layers: int) -> int:
        """Make rows, as the last ones, whose layers are put next in order; returns the place of the first."""
        self._rows += [[] for _ in range(num_rows)]
        return len(self._rows) - num_rows

    def _put(self, row: int, layer: int, local: tuple[Tensor, Tensor], memory: RowKV | None) -> None:
        self._rows[row].append(_RowCache(local, memory))

    def leave(self, row: int) -> None:
        """Free a row: the last one takes its place."""
        self._rows[row] = self._rows[-1]
        self._rows.pop()

    def drop(self, row: int, count: int) -> None:
        """Take a row's newest tokens back, in every layer."""
        for held in self._rows[row]:
            held.used -= count

    def begin(self) -> None:
        """A step begins: masks are those of its tokens."""
        self._masks.clear()

    def attend(
        self,
        layer: int,
        query_RHTD: Tensor,
        key_RGTD: Tensor,
        value_RGTD: Tensor,
        scaling: float | None,
        window: int | None,
    ) -> Tensor:
        """Add a layer's K and V of the T newest tokens of every row, and attend to all there are: `[R, T, H, D]`.

        Args:
            window: sliding window over the local tokens.
        """
        out = []
        for row, (query_HTD, key_GTD, value_GTD) in enumerate(zip(query_RHTD, key_RGTD, value_RGTD, strict=True)):
            held = self._rows[row][layer]
            held.add(key_GTD, value_GTD)
            out.append(self._attend_row(query_HTD, held.columns, scaling, window))
        return (out[0] if len(out) == 1 else torch.cat(out)).to(query_RHTD.dtype)

    def _attend_row(self, query_HTD: Tensor, seen: RowKV, scaling: float | None, window: int | None) -> Tensor:
        mask = self._mask(seen, query_HTD.shape[1], window)
        query_1HTD = query_HTD[None].to(seen.keys_GSD.dtype)
        return attend(query_1HTD, seen.keys_GSD[None], seen.values_GSD[None], mask, scaling)

    def _mask(self, seen: RowKV, T: int, window: int | None) -> Tensor | None:
        """Which columns of a row each new token sees, `[1, 1, T, S]`; None: all."""
        keys_GSD, memory = seen.keys_GSD, seen.memory
        S = keys_GSD.shape[1]
        if window is not None and S - memory <= window:
            window = None
        if T == 1 and window is None:
            return None
        key = S, T, window, window and memory
        if key not in self._masks:  # layers alike share one
            column_S = torch.arange(S, device=keys_GSD.device)
            own_T1 = column_S[S - T :, None]
            seen_TS = column_S <= own_T1
            if window is not None:
                seen_TS &= (column_S > own_T1 - window) | (column_S < memory)
            self._masks[key] = seen_TS[None, None]
        return self._masks[key]


class RowKV(NamedTuple):
    """K and V that a row attends to, `[G, S, D]`; the first `memory` of them are of documents."""

    keys_GSD: Tensor
    values_GSD: Tensor
    memory: int = 0


def _memory_of(found: Retrieved, row: int) -> RowKV:
    rows_M = found.mask_BM[row]
    keys_GMD = found.keys_BGMD[row, :, rows_M]
    return RowKV(keys_GMD, found.values_BGMD[row, :, rows_M], keys_GMD.shape[1])


class _RowCache:
    """One row's K and V in one layer: its memory, then its tokens, then room."""

    def __init__(self, local: tuple[Tensor, Tensor], memory: RowKV | None) -> None:
        key_GTD = local[0]
        parts = [local] if memory is None else [(memory.keys_GSD, memory.values_GSD), local]
        self._memory = 0 if memory is None else memory.memory
        # A CPU attends to short rows three times as fast in float32 (docs/LOG.md).
        dtype = torch.float32 if key_GTD.device.type == "cpu" else key_GTD.dtype
        end, (G, _, D) = sum(keys.shape[1] for keys, _ in parts), key_GTD.shape
        self._both, self.used = key_GTD.new_empty((2, G, end + _room(end), D), dtype=dtype), 0
        for keys, values in parts:
            self.add(keys, values)

    @property
    def columns(self) -> RowKV:
        keys_GSD, values_GSD = self._both[:, :, : self.used]
        return RowKV(keys_GSD, values_GSD, self._memory)

    def add(self, key_GTD: Tensor, value_GTD: Tensor) -> None:
        """Put T columns behind those there are."""
        end = self.used + key_GTD.shape[1]
        if end > self._both.shape[2]:
            self._both = F.pad(self._both, (0, 0, 0, end + _room(end) - self._both.shape[2]))
        self._both[0, :, self.used : end] = key_GTD
        self._both[1, :, self.used : end] = value_GTD
        self.used = end


def _room(columns: int) -> int:
    return min(_ROOM, 16 + columns // 8)
