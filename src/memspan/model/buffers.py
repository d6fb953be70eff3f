"""K and V of the rows that are decoded: of every row and layer its memory and its local tokens, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from memspan.ops.attention import attend, with_row_bias
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
        self._rows: list[list[_Held]] = []
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
        joined: list[list[_Held]] = [[] for _ in rows]
        for place, layer in enumerate(cache.layers):
            keys, values, found = cast(Tensor, layer.keys), cast(Tensor, layer.values), retrieved.get(place)
            for held, row, length in zip(joined, rows, lengths, strict=True):
                # A layer with a sliding window has kept its newest tokens only.
                newest = slice(max(0, keys.shape[2] - length), None)
                held.append(_Held(keys[row, :, newest], values[row, :, newest], found, row))
            if place >= keep_layers:
                layer.keys = layer.values = keys.new_empty(0)
            if found is not None:
                retrieved[place] = replace(found, keys_BGMD=keys.new_empty(0), values_BGMD=keys.new_empty(0))
        self._rows += joined

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
        score_bias: Tensor | None,
    ) -> Tensor:
        """Add a layer's K and V of the T newest tokens of every row, and attend to all there are: `[R, T, H, D]`.

        Args:
            window: sliding window over the local tokens.
            score_bias: the layer's multiple of routing scores that is added to the logits of memory rows.
        """
        out = []
        for row, (query_HTD, key_GTD, value_GTD) in enumerate(zip(query_RHTD, key_RGTD, value_RGTD, strict=True)):
            held = self._rows[row][layer]
            held.add(key_GTD, value_GTD)
            mask = self._mask(held, query_HTD.shape[1], window, score_bias)
            keys_GSD, values_GSD = held.both[:, :, : held.used]
            query_1HTD = query_HTD[None].to(keys_GSD.dtype)
            out.append(attend(query_1HTD, keys_GSD[None], values_GSD[None], mask, scaling))
        return (out[0] if len(out) == 1 else torch.cat(out)).to(query_RHTD.dtype)

    def _mask(self, held: _Held, T: int, window: int | None, score_bias: Tensor | None) -> Tensor | None:
        """Which columns of a row each new token sees, or what is added to its logits, `[1, 1, T, S]`; None: all."""
        if window is not None and held.used - held.memory <= window:
            window = None
        biased = score_bias is not None and held.memory > 0
        if T == 1 and window is None and not biased:
            return None
        key = held.used, T, window, window and held.memory
        if key not in self._masks:  # layers alike share one
            column_S = torch.arange(held.used, device=held.both.device)
            own_T1 = column_S[held.used - T :, None]
            seen_TS = column_S <= own_T1
            if window is not None:
                seen_TS &= (column_S > own_T1 - window) | (column_S < held.memory)
            self._masks[key] = seen_TS[None, None]
        if not biased:
            return self._masks[key]
        assert held.scores_M is not None, "a layer with a score bias needs a memory with row scores"
        return with_row_bias(self._masks[key], (score_bias * held.scores_M)[None].to(held.both.dtype))


class _Held:
    """One row's K and V in one layer: its memory, then its tokens, then room.

    Attributes:
        both: K and V, `[2, G, capacity, D]`; float32 on a CPU, and of the model's number format elsewhere.
        used, memory: columns in use, and how many of them are memory.
        scores_M: the routing scores of its memory, where they are known.
    """

    def __init__(self, key_GTD: Tensor, value_GTD: Tensor, retrieved: Retrieved | None, row: int) -> None:
        self.memory, self.scores_M = 0, None
        parts = [(key_GTD, value_GTD)]
        if retrieved is not None:
            rows_M = retrieved.mask_BM[row]
            parts.insert(0, (retrieved.keys_BGMD[row, :, rows_M], retrieved.values_BGMD[row, :, rows_M]))
            self.memory = parts[0][0].shape[1]
            if retrieved.row_scores_BM is not None:
                self.scores_M = retrieved.row_scores_BM[row, rows_M]
        # A CPU attends to short rows three times as fast in float32 (docs/LOG.md).
        dtype = torch.float32 if key_GTD.device.type == "cpu" else key_GTD.dtype
        end, (G, _, D) = sum(keys.shape[1] for keys, _ in parts), key_GTD.shape
        self.both, self.used = key_GTD.new_empty((2, G, end + _room(end), D), dtype=dtype), 0
        for keys, values in parts:
            self.add(keys, values)

    def add(self, key_GTD: Tensor, value_GTD: Tensor) -> None:
        """Put T columns behind those there are."""
        end = self.used + key_GTD.shape[1]
        if end > self.both.shape[2]:
            self.both = F.pad(self.both, (0, 0, 0, end + _room(end) - self.both.shape[2]))
        self.both[0, :, self.used : end] = key_GTD
        self.both[1, :, self.used : end] = value_GTD
        self.used = end


def _room(columns: int) -> int:
    return min(_ROOM, 16 + columns // 8)
