"""K and V of one question while its answer is decoded: every layer's memory rows and local tokens, side by side."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from memspan.ops.attention import attend, local_mask, with_row_bias
from memspan.types import Retrieved

# Columns made at a time for tokens still to be written.
_ROOM = 256


class DecodeBuffers:
    """What one question's new tokens attend to. Nothing is joined or copied anew at a token; there is no padding.

    Tokens come a few at a time, and the newest can be taken back (`drop`), whatever a layer's window. All new tokens
    see the whole memory.
    """

    def __init__(self, cache: DynamicCache, retrieved: Mapping[int, Retrieved]) -> None:
        """
        Args:
            cache: filled by the prefill of one context without padding; it is copied.
            retrieved: what the prefill routed to, per MSA layer.
        """
        self._layers = [_LayerBuffers(layer, retrieved.get(place)) for place, layer in enumerate(cache.layers)]
        self._masks: dict[tuple[int, int, int, int | None], Tensor] = {}

    def attend(
        self,
        layer: int,
        query_1HTD: Tensor,
        key_1GTD: Tensor,
        value_1GTD: Tensor,
        scaling: float | None,
        window: int | None,
        score_bias: Tensor | None,
    ) -> Tensor:
        """Add a layer's K and V of the T newest tokens, and attend to all there are: `[1, T, H, D]`.

        Args:
            window: sliding window over the local tokens.
            score_bias: the layer's multiple of routing scores that is added to the logits of memory rows.
        """
        held = self._layers[layer]
        keys_1GSD, values_1GSD = held.add(key_1GTD, value_1GTD)
        mask = self._mask(query_1HTD.shape[2], held.num_memory, held.num_local, window, query_1HTD.device)
        if score_bias is not None and held.num_memory:
            assert held.scores_1M is not None, "a layer with a score bias needs a memory that tells row scores"
            T, S = query_1HTD.shape[2], keys_1GSD.shape[2]
            seen = mask if mask is not None else torch.ones(1, 1, T, S, dtype=torch.bool, device=query_1HTD.device)
            mask = with_row_bias(seen, (score_bias * held.scores_1M).to(query_1HTD.dtype))
        return attend(query_1HTD, keys_1GSD, values_1GSD, mask, scaling)

    def drop(self, count: int) -> None:
        """Take the newest tokens back, in every layer. Called after every step, be it with 0."""
        self._masks.clear()
        for layer in self._layers:
            layer.num_local -= count

    def _mask(self, T: int, M: int, S: int, window: int | None, device: torch.device) -> Tensor | None:
        """Which of [memory ; local] each new token sees, `[1, 1, T, M+S]`; layers alike share one."""
        if T == 1 and (window is None or window >= S):
            return None
        key = (T, M, S, window)
        if key not in self._masks:
            local = local_mask(T, S, None, window, device)
            assert local is not None, "new tokens follow others, so not all of them see the same"
            self._masks[key] = F.pad(local, (M, 0), value=True)
        return self._masks[key]


class _LayerBuffers:
    """One layer's K and V, `[1, G, capacity, D]`: `num_memory` rows of memory, then `num_local` tokens, then room."""

    def __init__(self, layer: object, retrieved: Retrieved | None) -> None:
        keys_1GSD, values_1GSD = layer.keys, layer.values  # type: ignore[attr-defined]
        self.scores_1M: Tensor | None = None
        self.num_memory, self.num_local = 0, keys_1GSD.shape[2]
        parts = [keys_1GSD], [values_1GSD]
        if retrieved is not None:
            rows = retrieved.mask_BM[0]
            self.num_memory = int(rows.sum())
            for part, memory_1GMD in zip(parts, (retrieved.keys_BGMD, retrieved.values_BGMD), strict=True):
                part.insert(0, memory_1GMD[:, :, rows].to(keys_1GSD.dtype))
            if retrieved.row_scores_BM is not None:
                self.scores_1M = retrieved.row_scores_BM[:, rows]
        room_1GRD = keys_1GSD.new_zeros(*keys_1GSD.shape[:2], _ROOM, keys_1GSD.shape[3])
        self._keys, self._values = (torch.cat([*part, room_1GRD], dim=2) for part in parts)

    def add(self, key_1GTD: Tensor, value_1GTD: Tensor) -> tuple[Tensor, Tensor]:
        """Put T tokens behind those there are; returns all of K and V that is in use."""
        begin = self.num_memory + self.num_local
        end = begin + key_1GTD.shape[2]
        if end > self._keys.shape[2]:
            self._keys, self._values = (F.pad(x, (0, 0, 0, max(_ROOM, end))) for x in (self._keys, self._values))
        self._keys[:, :, begin:end] = key_1GTD
        self._values[:, :, begin:end] = value_1GTD
        self.num_local = end - self.num_memory
        return self._keys[:, :, :end], self._values[:, :, :end]
