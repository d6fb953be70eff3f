"""Exact products of many int8 rows with one int8 matrix, in the fastest way that is exact on this machine."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""int8 rows (C, W) -> their products with one matrix (C, Q), int32 or float32."""

# oneDNN lays a matrix out for so many rows, and multiplies any number of them.
_TYPICAL_ROWS = 2048
_LARGEST = 127


def integer_product(right_WQ: Tensor, pack: bool) -> Product:
    """What multiplies int8 rows with an int8 matrix, exactly, if no sum exceeds 2**24.

    On a CPU by oneDNN, with the matrix packed once (AMX, VNNI) or as it is, or in float32. Which of them are exact is
    tried once per process: CPUs without VNNI saturate sums of two products at 16 bits.

    Args:
        pack: whether there are so many rows that packing, which takes up to a millisecond, pays.
    """
    return (_exact_way(pack) if right_WQ.device.type == "cpu" else _float_product)(right_WQ)


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
        left_CW = torch.full((rows, 192), _LARGEST, dtype=torch.int8)
        left_CW[::2] *= -1
        right_WQ = torch.full((192, columns), _LARGEST, dtype=torch.int8)
        right_WQ[:, ::3] *= -1
        try:
            found = way(right_WQ)(left_CW)
        except (AttributeError, TypeError, RuntimeError):  # another torch, another CPU
            return False
        if not torch.equal(found.float(), _float_product(right_WQ)(left_CW)):
            return False
    return True
