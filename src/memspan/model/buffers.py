"""K and V of the rows that are decoded: of every layer a row's memory and its local tokens, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from memspan.ops.attention import attend, with_row_bias
from memspan.types import Retrieved

# Columns made at a time for tokens still to be written.
_ROOM = 256


class DecodeBuffers:
    """What the new tokens of a batch attend to. A row joins after its prefill, and may leave at any time.

    Nothing is joined or copied anew at a token; a single row needs no mask for one token. Tokens come a few at a time,
    and the newest can be taken back (`drop`), whatever a layer's window. All new tokens see the whole memory of their
    row.

    Args:
        max_rows: rows at a time, at most; the buffers are made for so many.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._layers: list[_LayerBuffers] = []
        self._masks: dict[object, Tensor | None] = {}

    def join(self, cache: DynamicCache, retrieved: Mapping[int, Retrieved], row: int, length: int) -> None:
        """Copy what a prefill computed of one of its contexts behind the rows there are.

        Args:
            cache: filled by the prefill, padded on the left.
            retrieved: what the prefill routed to, per MSA layer.
            row: the context's in that prefill.
            length: its tokens.
        """
        if not self._layers:
            self._layers = [_LayerBuffers(self._max_rows, layer) for layer in cache.layers]
        for place, (held, layer) in enumerate(zip(self._layers, cache.layers, strict=True)):
            # A layer with a sliding window has kept its newest tokens only.
            local = [x[row, :, max(0, x.shape[2] - length) :] for x in (layer.keys, layer.values)]  # type: ignore[union-attr]
            held.join(local, retrieved.get(place), row)

    def leave(self, row: int) -> None:
        """Free a row: the last one takes its place."""
        for layer in self._layers:
            layer.leave(row)

    def drop(self, row: int, count: int) -> None:
        """Take a row's newest tokens back, in every layer."""
        for layer in self._layers:
            layer.used[row] -= count

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
        held, T, device = self._layers[layer], query_RHTD.shape[2], query_RHTD.device
        held.add(key_RGTD, value_RGTD)
        R, S = len(held.used), max(held.used)
        mask = self._mask(held, T, window, device)
        if score_bias is not None and max(held.memory):
            assert all(x is not None for x in held.scores), "a layer with a score bias needs a memory with row scores"
            seen = mask if mask is not None else torch.ones(1, 1, T, S, dtype=torch.bool, device=device)
            scores_RM = torch.nn.utils.rnn.pad_sequence([x for x in held.scores if x is not None], batch_first=True)
            mask = with_row_bias(seen, (score_bias * scores_RM).to(held.keys.dtype))
        query = query_RHTD.to(held.keys.dtype)
        return attend(query, held.keys[:R, :, :S], held.values[:R, :, :S], mask, scaling).to(query_RHTD.dtype)

    def _mask(self, held: _LayerBuffers, T: int, window: int | None, device: torch.device) -> Tensor | None:
        """Which columns each new token sees, `[R, 1, T, S]`; None: all. Layers alike share one."""
        used, memory = held.used, held.memory
        if window is not None and all(end - begin <= window for begin, end in zip(memory, used, strict=True)):
            window = None
        if T == 1 and window is None and len(set(used)) == 1:
            return None
        key = (tuple(used), T, window, None if window is None else tuple(memory))
        if key not in self._masks:
            column_S = torch.arange(max(used), device=device)
            own_RT1 = (torch.tensor(used, device=device)[:, None] - T + torch.arange(T, device=device))[..., None]
            mask_RTS = column_S <= own_RT1
            if window is not None:
                memory_R11 = torch.tensor(memory, device=device)[:, None, None]
                mask_RTS &= (column_S > own_RT1 - window) | (column_S < memory_R11)
            self._masks[key] = mask_RTS[:, None]
        return self._masks[key]


class _LayerBuffers:
    """One layer's K and V, `[max_rows, G, capacity, D]`: of each row its memory, then its tokens, then room.

    They are float32 on a CPU, and of the model's number format elsewhere.

    What stands in a row's room is left over from others: it is finite, and masked.

    Attributes:
        used, memory: per row its columns in use, and how many of them are memory.
        scores: per row the routing scores of its memory, where they are known.
    """

    def __init__(self, max_rows: int, like: object) -> None:
        self.used: list[int] = []
        self.memory: list[int] = []
        self.scores: list[Tensor | None] = []
        keys, values = cast(Tensor, like.keys), cast(Tensor, like.values)  # type: ignore[attr-defined]
        # A CPU attends to short rows three times as fast in float32 (docs/LOG.md).
        dtype = torch.float32 if keys.device.type == "cpu" else keys.dtype
        self.keys, self.values = (
            x.new_zeros((max_rows, x.shape[1], 0, x.shape[3]), dtype=dtype) for x in (keys, values)
        )

    def join(self, local: list[Tensor], retrieved: Retrieved | None, row: int) -> None:
        """Fill the next row from K and V `[G, S, D]` and from one row of what was routed to."""
        place, M, scores_M = len(self.used), 0, None
        memory: list[Tensor] = []
        if retrieved is not None:
            rows_M = retrieved.mask_BM[row]
            M = int(rows_M.sum())
            memory = [x[row, :, rows_M] for x in (retrieved.keys_BGMD, retrieved.values_BGMD)]
            scores_M = retrieved.row_scores_BM[row, rows_M] if retrieved.row_scores_BM is not None else None
        end = M + local[0].shape[1]
        self._reserve(end)
        for side, buffer in enumerate((self.keys, self.values)):
            if M:
                buffer[place, :, :M] = memory[side]
            buffer[place, :, M:end] = local[side]
        self.used.append(end)
        self.memory.append(M)
        self.scores.append(scores_M)

    def leave(self, row: int) -> None:
        last, end = len(self.used) - 1, self.used[-1]
        if row < last:
            for buffer in (self.keys, self.values):
                buffer[row, :, :end] = buffer[last, :, :end]
        for told in (self.used, self.memory, self.scores):
            told[row] = told[-1]  # type: ignore[index]
            told.pop()

    def add(self, key_RGTD: Tensor, value_RGTD: Tensor) -> None:
        """Put T tokens behind those of every row."""
        R, T = len(self.used), key_RGTD.shape[2]
        self._reserve(max(self.used) + T)
        for buffer, new_RGTD in ((self.keys, key_RGTD), (self.values, value_RGTD)):
            if len(set(self.used)) == 1:
                buffer[:R, :, self.used[0] : self.used[0] + T] = new_RGTD
                continue
            for row, end in enumerate(self.used):
                buffer[row, :, end : end + T] = new_RGTD[row]
        self.used = [end + T for end in self.used]

    def _reserve(self, end: int) -> None:
        if end > self.keys.shape[2]:
            room = end + _ROOM - self.keys.shape[2]
            self.keys, self.values = (F.pad(x, (0, 0, 0, room)) for x in (self.keys, self.values))
