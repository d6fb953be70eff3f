"""The largest products of int8 rows with int8 queries, exact but for their scales, as fast as this machine does it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from memspan.ops.amx import TOKEN_STEP, ScaledLargest, amx_largest

Product = Callable[[Tensor], Tensor]
"""int8 rows (C, W) -> their products with one matrix (C, Q), int32 or float32."""

# Sums held at once, rows times query tokens: 8 MiB.
_TILE_SUMS = 2**21
_LEAST_TILE, _MOST_TILE = 64, 2**13
# Sums of a call from which on packing the queries saves more than it takes.
_WORTH_PACKING = 2**20
# Where products are held, matrices of other widths are multiplied up to twice as slowly.
_PRODUCT_STEP = 32
# oneDNN lays a matrix out for so many rows, and multiplies any number of them.
_TYPICAL_ROWS = 2048
_LARGEST = 127


class LargestProducts:
    """Finds the largest product of int8 rows with the tokens of each question: exact, if no sum exceeds 2**24.

    On a CPU by AMX in one pass (`memspan.ops.amx`); or as products of a tile of rows, whose largest is then taken: by
    oneDNN with the queries packed (AMX, VNNI), or as they are, or in float32. Which of them are exact is tried once per
    process: CPUs without VNNI saturate sums of two products at 16 bits. Queries are laid out at most once for each.
    """

    def __init__(self, query_BTW: Tensor, scale_B: Tensor, *, fused: bool = True) -> None:
        """
        Args:
            query_BTW: int8.
            scale_B: float32.
            fused: whether AMX may be used in one pass, where it is there.
        """
        self._query_BTW, self._scale_B, self._fused = query_BTW, scale_B, fused

    def write(self, left_CW: Tensor, scale_C: Tensor, out_BC: Tensor, tile: int | None = None) -> None:
        """Write for every question and row the largest product, times the row's scale, times the question's.

        Args:
            left_CW: int8.
            scale_C, out_BC: float32; the scores of a question stand one after the other.
            tile: rows multiplied at a time where products are held. Default: as many as take 8 MiB.
        """
        if self._in_one_pass is not None:
            self._in_one_pass(left_CW, scale_C, out_BC)
            return
        B, T, _ = self._query_BTW.shape
        T += -T % _PRODUCT_STEP
        product = self._packed if len(left_CW) * B * T >= _WORTH_PACKING else self._plain
        rows = tile or min(max(_LEAST_TILE, _TILE_SUMS // (B * T)), _MOST_TILE)
        best = [product(part_CW).view(-1, B, T).amax(-1) for part_CW in left_CW.split(rows)]
        torch.mul(torch.cat(best).T, scale_C, out=out_BC)
        out_BC *= self._scale_B.unsqueeze(1)

    @property
    def is_fused(self) -> bool:
        """Whether AMX is used in one pass."""
        return self._in_one_pass is not None

    @cached_property
    def _in_one_pass(self) -> ScaledLargest | None:
        usable = self._fused and self._query_BTW.device.type == "cpu" and _amx_is_exact()
        return amx_largest(self._filled(TOKEN_STEP), self._scale_B) if usable else None

    @cached_property
    def _packed(self) -> Product:
        return self._product(pack=True)

    @cached_property
    def _plain(self) -> Product:
        return self._product(pack=False)

    def _product(self, pack: bool) -> Product:
        right_WQ = self._filled(_PRODUCT_STEP).flatten(0, 1).T.contiguous()
        return (_exact_way(pack) if right_WQ.device.type == "cpu" else _float_product)(right_WQ)

    def _filled(self, step: int) -> Tensor:
        """The queries with their first tokens again, up to a multiple of so many: that changes no maximum."""
        again = -self._query_BTW.shape[1] % step
        return torch.cat([self._query_BTW, self._query_BTW[:, :1].expand(-1, again, -1)], dim=1)


def _packed_product(right_WQ: Tensor) -> Product:
    onednn = torch.ops.onednn
    packed = onednn.qlinear_prepack(right_WQ.T.contiguous(), [_TYPICAL_ROWS, len(right_WQ)])
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.int64)

    def product(left_CW: Tensor) -> Tensor:
        # Scale 1, zero point 0, no bias, nothing after: the sums themselves.
        return onednn.qlinear_pointwise(left_CW, 1.0, 0, packed, one, zero, None, 1.0, 0, torch.float32, "none", [], "")

    return product


def _plain_product(right_WQ: Tensor) -> Product:
    return lambda left_CW: torch.ops.aten._int_mm(left_CW, right_WQ)


def _float_product(right_WQ: Tensor) -> Product:
    right = right_WQ.float()
    return lambda left_CW: left_CW.float() @ right


@functools.cache
def _exact_way(pack: bool) -> Callable[[Tensor], Product]:
    ways = (_packed_product, _plain_product) if pack else (_plain_product,)
    return next((way for way in ways if _is_exact(way)), _float_product)


def _is_exact(way: Callable[[Tensor], Product]) -> bool:
    """Whether the largest sums come out right, of few rows and of many, with either sign."""
    for rows, columns in ((1, 1), (64, 32), (65, 300)):
        left_CW, right_WQ = _extremes(rows, 2), _extremes(columns, 3).T.contiguous()
        try:
            found = way(right_WQ)(left_CW)
        except (AttributeError, TypeError, RuntimeError):  # another torch, another CPU
            return False
        if not torch.equal(found.float(), _float_product(right_WQ)(left_CW)):
            return False
    return True


@functools.cache
def _amx_is_exact() -> bool:
    """Whether AMX can be used, and finds what float32 finds."""
    for rows, questions in ((1, 1), (32, 2), (100, 3)):
        left_CW, query_BTW = _extremes(rows, 2), _extremes(questions * 48, 3).view(questions, 48, 192)
        largest = amx_largest(query_BTW, torch.ones(questions))
        if largest is None:
            return False
        found_BC = torch.empty(questions, rows)
        largest(left_CW, torch.ones(rows), found_BC)
        if not torch.equal(found_BC, (query_BTW.float() @ left_CW.float().T).amax(1)):
            return False
    return True


def _extremes(rows: int, step: int) -> Tensor:
    """Rows of the largest numbers, every so many negative."""
    extremes = torch.full((rows, 192), _LARGEST, dtype=torch.int8)
    extremes[::step] *= -1
    return extremes
