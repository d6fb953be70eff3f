"""The largest products of int8 rows with int8 queries, exact but for their scales, in the fastest way this machine has.

A *way* takes queries of some questions and gives what writes their scores. All exact ways write the same numbers, so
which of them is taken is a matter of speed alone: a CPU saturates where another does not (sums of two products at 16
bits without VNNI), a library has no kernel where another machine has one, and packing pays for many rows only. So the
ways are tried, once per process and kind of shape.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from memspan.ops.amx import TOKEN_STEP, ScaledLargest, amx_largest

_log = logging.getLogger(__name__)

Way = Callable[[Tensor, Tensor], ScaledLargest | None]
"""int8 queries (B, T, W) and their float32 scales (B) -> what writes scores; None where it cannot be done."""
Product = Callable[[Tensor], Tensor]
"""int8 rows (C, W) -> their products with one matrix (C, Q), float32."""

_EXACT_INTEGERS = 2**24
# Queries have 7 bits: where two products with unsigned bytes are added in 16 bits (x86 without VNNI) 2 * 255 * 63 fits.
_MOST_KEY_LEVELS, _MOST_QUERY_LEVELS = 127, 63
# Of what is multiplied at a time: products held (4 MiB of them), and bytes of rows, so that both stay in a cache.
_TILE_SUMS, _TILE_BYTES = 2**20, 2**21
_LEAST_TILE = 64
# Where products are held, matrices of other widths are multiplied up to twice as slowly.
_PRODUCT_STEP = 32
# oneDNN lays a matrix out for so many rows, and multiplies any number of them.
_TYPICAL_ROWS = 2048
# Products of a call from which on it counts as one of many rows.
_MANY_SUMS = 2**17
_CPU_WAYS = ("amx", "packed", "float")
_ACCELERATOR_WAYS = ("triton", "integers", "float")  # the best first
# A way is timed by so many multiplications (a millisecond or two), and the best of so many times counts; one that is so
# much slower than another is not timed again.
_TRIED_WORK, _TIMES, _HOPELESS = 2**27, 5, 4.0


def key_levels(width: int) -> int:
    """The largest number in a key: 127, or less where `width` products of two such would not sum exactly."""
    return min(_MOST_KEY_LEVELS, math.isqrt(_EXACT_INTEGERS // width))


def query_levels(width: int) -> int:
    """The largest number in a query: 63, or less where `width` products would not sum exactly."""
    return min(_MOST_QUERY_LEVELS, key_levels(width))


class LargestProducts:
    """Finds the largest product of int8 rows with the tokens of each question: exact, if no sum exceeds 2**24."""

    def __init__(self, query_BTW: Tensor, scale_B: Tensor, *, way: str | None = None) -> None:
        """
        Args:
            query_BTW: int8, no number larger than `query_levels`.
            scale_B: float32.
            way: a name of `exact_ways`. Default: the fastest.
        """
        self._query_BTW, self._scale_B, self._way = query_BTW, scale_B, way
        self._writers: dict[str, ScaledLargest] = {}

    def write(self, left_CW: Tensor, scale_C: Tensor, out_BC: Tensor) -> None:
        """Write for every question and row the largest product, times the row's scale, times the question's.

        Args:
            left_CW: int8, no number larger than `key_levels`.
            scale_C, out_BC: float32; the scores of a question stand one after the other.
        """
        name = self._way or self.fastest(len(left_CW))
        if name not in self._writers:  # queries are laid out once for all rows
            writer = WAYS[name](self._query_BTW, self._scale_B)
            assert writer is not None, "a way that is exact for a width can be taken"
            self._writers[name] = writer
        self._writers[name](left_CW, scale_C, out_BC)

    def fastest(self, num_rows: int) -> str:
        """The name of the way that is taken for so many rows."""
        B, T, W = self._query_BTW.shape
        if self._query_BTW.device.type != "cpu":
            return accelerator_way(W, self._query_BTW.device)
        tokens = 2 ** math.ceil(math.log2(B * T))
        return fastest_way(W, min(tokens, _TYPICAL_ROWS), num_rows * B * T >= _MANY_SUMS)


@functools.cache
def accelerator_way(width: int, device: torch.device) -> str:
    """The name of the first way that is exact on a device: one pass, or integers, or float32."""
    found = next(name for name in _ACCELERATOR_WAYS if name == "float" or _is_exact(WAYS[name], width, device))
    if device.type == "cuda" and found != "triton":
        reason = (
            "Triton is not installed; pip install triton" if find_spec("triton") is None else "its kernel fails here"
        )
        _log.warning("routing keys on %s are scored by torch (%s), more slowly: %s", device, found, reason)
    return found


@functools.cache
def fastest_way(width: int, tokens: int, many_rows: bool) -> str:
    """The name of the way that scores some rows in the least time: few of them with the queries laid out each time."""
    rows = max(1, _TRIED_WORK // (width * tokens)) if many_rows else _LEAST_TILE
    query_1TW = _extremes(tokens, 3, query_levels(width), width)[None]
    left_CW = _extremes(rows, 2, key_levels(width), width)
    one, scale_C, out_1C = torch.ones(1), torch.ones(rows), torch.empty(1, rows)

    def attempt(way: Way) -> Callable[[], None]:
        laid_out = way(query_1TW, one) if many_rows else None

        def score() -> None:
            writer = laid_out or way(query_1TW, one)
            assert writer is not None, "only ways that are exact are tried"
            writer(left_CW, scale_C, out_1C)

        return score

    return fastest({name: attempt(WAYS[name]) for name in exact_ways(width)})


def fastest(attempts: dict[str, Callable[[], None]], clock: Callable[[], float] = time.perf_counter) -> str:
    """The name of the attempt that takes the least time: best of a few, after one that is not counted."""
    best: dict[str, float] = {}
    for name, attempt in attempts.items():
        attempt()
        for _ in range(_TIMES):
            began = clock()
            attempt()
            best[name] = min(clock() - began, best.get(name, math.inf))
            if best[name] > _HOPELESS * min(best.values()):
                break
    return min(best, key=lambda name: best[name])


@functools.cache
def exact_ways(width: int) -> tuple[str, ...]:
    """The names of the ways that find what float32 finds on this CPU; `float` is always among them."""
    return tuple(name for name in _CPU_WAYS if name == "float" or _is_exact(WAYS[name], width))


def _is_exact(way: Way, width: int, device: torch.device | None = None) -> bool:
    """Whether the largest sums come out right, of few rows and of many, with either sign."""
    for rows, questions in ((1, 1), (33, 2)):
        left_CW, found_BC = _extremes(rows, 2, key_levels(width), width).to(device), torch.empty(questions, rows)
        query_BTW = _extremes(questions * 48, 3, query_levels(width), width).view(questions, 48, width).to(device)
        found_BC = found_BC.to(device)
        try:
            largest = way(query_BTW, torch.ones(questions, device=device))
            if largest is None:
                return False
            largest(left_CW, torch.ones(rows, device=device), found_BC)
        except Exception:  # another torch, another CPU, or whatever a compiler of kernels meets
            return False
        if not torch.equal(found_BC, (query_BTW.float() @ left_CW.float().T).amax(1)):
            return False
    return True


def _extremes(rows: int, step: int, levels: int, width: int) -> Tensor:
    """Rows of the largest numbers, every `step`-th negative."""
    extremes = torch.full((rows, width), levels, dtype=torch.int8)
    extremes[::step] *= -1
    return extremes


def _tiled(lay_out: Callable[[Tensor], Product]) -> Way:
    """The way that writes the products of a tile of rows, and takes the largest of them."""

    def way(query_BTW: Tensor, scale_B: Tensor) -> ScaledLargest:
        query_BTW = filled(query_BTW, _PRODUCT_STEP)
        B, T, W = query_BTW.shape
        product = lay_out(query_BTW.flatten(0, 1).T.contiguous())
        rows = max(_LEAST_TILE, min(_TILE_SUMS // (B * T), _TILE_BYTES // W))

        def largest(left_CW: Tensor, scale_C: Tensor, out_BC: Tensor) -> None:
            parts = zip(left_CW.split(rows), scale_C.split(rows), out_BC.split(rows, dim=1), strict=True)
            for part_CW, part_C, part_BC in parts:
                torch.mul(product(part_CW).view(-1, B, T).amax(-1).T, part_C, out=part_BC)
            out_BC *= scale_B.unsqueeze(1)

        return largest

    return way


def filled(query_BTW: Tensor, step: int) -> Tensor:
    """The queries with their first tokens again, up to a multiple of `step`: that changes no maximum."""
    again = -query_BTW.shape[1] % step
    return torch.cat([query_BTW, query_BTW[:, :1].expand(-1, again, -1)], dim=1) if again else query_BTW


def _packed_product(right_WQ: Tensor) -> Product:
    onednn, zero_point = torch.ops.onednn, 128
    packed = onednn.qlinear_prepack(right_WQ.T.contiguous(), [_TYPICAL_ROWS, len(right_WQ)])
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.int64)

    def product(left_CW: Tensor) -> Tensor:
        # Unsigned, which every x86 has a kernel for; with scale 1, no bias and nothing after: the sums themselves.
        left_CW = left_CW.view(torch.uint8) ^ zero_point
        return onednn.qlinear_pointwise(
            left_CW, 1.0, zero_point, packed, one, zero, None, 1.0, 0, torch.float32, "none", [], ""
        )

    return product


def _float_product(right_WQ: Tensor) -> Product:
    right = right_WQ.float()
    return lambda left_CW: left_CW.float() @ right


def _integer_product(right_WQ: Tensor) -> Product:
    def product(left_CW: Tensor) -> Tensor:
        # cuBLAS multiplies 17 rows or more.
        filled_CW = torch.nn.functional.pad(left_CW, (0, 0, 0, max(0, 17 - len(left_CW))))
        return torch.ops.aten._int_mm(filled_CW, right_WQ)[: len(left_CW)]

    return product


def _in_one_kernel(query_BTW: Tensor, scale_B: Tensor) -> ScaledLargest | None:
    if find_spec("triton") is None or (query_BTW.device.type == "cpu" and not os.environ.get("TRITON_INTERPRET")):
        return None
    from memspan.ops.kernels import TOKENS, triton_largest  # takes a second, and needs triton

    return triton_largest(filled(query_BTW, TOKENS), scale_B)


WAYS: dict[str, Way] = {
    "amx": lambda query_BTW, scale_B: amx_largest(filled(query_BTW, TOKEN_STEP), scale_B),
    "packed": _tiled(_packed_product),
    "triton": _in_one_kernel,
    "integers": _tiled(_integer_product),
    "float": _tiled(_float_product),
}
"""By name: AMX in one pass; oneDNN with the queries packed once; a GPU's kernel; int32 by torch; float32."""
