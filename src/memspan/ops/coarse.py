"""Routing keys in 8 bits, and their scores: the coarse pass of routing (paper 3.4.2).

A row is an int8 vector with one float32 scale. Its product with a query in 7 bits is a sum of small integers that never
exceeds 2**24, so int32 and float32 both hold it exactly, in any order of summing: a coarse score does not depend on
device, thread, tile, batch or rank. `memspan.ops.scoring` re-scores what the coarse pass leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from memspan.ops.integers import LargestProducts, key_levels, query_levels

_SMALLEST_SCALE = 1e-30
_QUANTIZED_AT_ONCE = 2**15


@dataclass(frozen=True, slots=True)
class CoarseKeys:
    """Folded routing keys in 8 bits: row c is `scale_C[c] * key_CW[c]` but for rounding; int8 and float32."""

    key_CW: Tensor
    scale_C: Tensor

    @property
    def nbytes(self) -> int:
        return self.key_CW.nbytes + self.scale_C.nbytes


@dataclass(frozen=True)
class CoarseQueries:
    """Folded queries in 7 bits, with one scale a question: so the max over tokens can be taken of integers.

    Attributes:
        query_BTW: int8.
        scale_B: float32.
        way: see `LargestProducts`.
    """

    query_BTW: Tensor
    scale_B: Tensor
    way: str | None = None

    @cached_property
    def largest(self) -> LargestProducts:
        """What scores keys with these queries."""
        return LargestProducts(self.query_BTW, self.scale_B, way=self.way)


def quantize_keys(key_CW: Tensor) -> CoarseKeys:
    """Round folded keys to 8 bits, every row by its own largest value. Row by row, so parts can be joined."""
    levels = key_levels(key_CW.shape[1])
    quantized = torch.empty(key_CW.shape, dtype=torch.int8, device=key_CW.device)
    scale_C = torch.empty(len(key_CW), dtype=torch.float32, device=key_CW.device)
    for first in range(0, len(key_CW), _QUANTIZED_AT_ONCE):
        rows = slice(first, first + _QUANTIZED_AT_ONCE)
        exact_CW = key_CW[rows].float()
        scale_C[rows] = exact_CW.abs().amax(1) / levels
        quantized[rows] = (exact_CW / scale_C[rows].clamp_min(_SMALLEST_SCALE).unsqueeze(1)).round_().to(torch.int8)
    return CoarseKeys(quantized, scale_C)


def join_keys(parts: list[CoarseKeys]) -> CoarseKeys:
    """The rows of several, one after the other."""
    return CoarseKeys(torch.cat([part.key_CW for part in parts]), torch.cat([part.scale_C for part in parts]))


def quantize_queries(query_BTW: Tensor) -> CoarseQueries:
    """Round folded queries, in which every token routes, to 7 bits: a question by the largest value of its tokens."""
    scale_B = query_BTW.abs().amax((1, 2)) / query_levels(query_BTW.shape[2])
    rounded_BTW = (query_BTW / scale_B.clamp_min(_SMALLEST_SCALE)[:, None, None]).round().to(torch.int8)
    return CoarseQueries(rounded_BTW, scale_B.float())


def coarse_scores(queries: CoarseQueries, keys: CoarseKeys, out_BC: Tensor) -> None:
    """Write the score of every chunk for every question: the max over query tokens, float32.

    One pass over the keys serves the whole batch.

    Args:
        out_BC: where the scores go.
    """
    if len(keys.scale_C):
        queries.largest.write(keys.key_CW, keys.scale_C, out_BC)
