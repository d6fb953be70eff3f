"""Calls `amx.c`, where it was compiled at installation and this CPU has AMX: scaled largest products in one pass."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

ScaledLargest = Callable[[Tensor, Tensor, Tensor], None]
"""int8 rows (C, W), their scales (C), and where to write scores (B, C): see `memspan.ops.integers.LargestProducts`."""

TOKEN_STEP = 16
"""T is a multiple of it."""
_DEPTH, _MOST_WIDTH = 64, 4096
# Of the compiled file, which may be older than this one where it is not installed anew.
_INTERFACE = 1
# Of what a thread does at a time: half a millisecond's work or so.
_SUMS_OF_A_PART, _ROWS_AT_ONCE = 2**19, 32


def amx_largest(query_BTW: Tensor, scale_B: Tensor) -> ScaledLargest | None:
    """What writes the largest product of int8 rows with the tokens of each question, scaled; None where AMX cannot.

    Exact where no sum exceeds 2**24.

    Args:
        query_BTW: int8 on the CPU.
        scale_B: float32.
    """
    B, T, W = query_BTW.shape
    library = _library()
    if library is None or W % _DEPTH or W > _MOST_WIDTH or T % TOKEN_STEP:
        return None
    tiles = T // TOKEN_STEP
    # A tile holds 64 numbers of 16 tokens, 4 of a token together.
    columns = query_BTW.view(B, tiles, TOKEN_STEP, W // _DEPTH, _DEPTH // 4, 4).permute(0, 1, 3, 4, 2, 5).contiguous()

    scale_B = scale_B.contiguous()

    def run(parts: deque[tuple[Tensor, Tensor, Tensor]]) -> None:
        while parts:
            try:
                left_CW, scale_C, out_BC = parts.popleft()
            except IndexError:  # another thread took the last
                return
            rows, of_rows, by, of_questions = (x.data_ptr() for x in (left_CW, scale_C, columns, scale_B))
            out, stride = out_BC.data_ptr(), out_BC.stride(0)
            if library.memspan_amx_largest(rows, of_rows, len(left_CW), W, by, of_questions, B, tiles, out, stride):
                raise ValueError(f"amx.c does not multiply rows of {W} numbers with {tiles} tiles")

    def largest(left_CW: Tensor, scale_C: Tensor, out_BC: Tensor) -> None:
        left_CW, scale_C = left_CW.contiguous(), scale_C.contiguous()
        if out_BC.stride(1) != 1 or {scale_B.dtype, scale_C.dtype, out_BC.dtype} != {torch.float32}:
            raise ValueError("scales and scores are float32, and the scores of a question one after the other")
        # Every thread takes the next part when it has done one: none waits for another that the system let rest.
        # Nothing here is left to OpenMP, whose threads go on spinning for a while and would be in the way.
        rows = max(1, _SUMS_OF_A_PART // (B * T * _ROWS_AT_ONCE)) * _ROWS_AT_ONCE
        parts = deque(zip(left_CW.split(rows), scale_C.split(rows), out_BC.split(rows, dim=1), strict=True))
        helpers = min(torch.get_num_threads(), len(parts)) - 1
        others = [_pool(os.getpid()).submit(run, parts) for _ in range(helpers)]
        run(parts)
        for other in others:
            other.result()

    return largest


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled file, if there is one, it works here, and `MEMSPAN_COMPILED` is not "off"."""
    if os.environ.get("MEMSPAN_COMPILED") == "off":
        return None
    try:
        # It stands where a Python module would, but is none: a compiler is enough to make it.
        found = importlib.util.find_spec("memspan.ops._amx")
        library = ctypes.CDLL(found.origin) if found and found.origin else None
    except OSError:
        return None
    if library is None or library.memspan_amx_ready() != _INTERFACE:
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    shapes = [pointer, pointer, number, number, pointer, pointer, number, number, pointer, number]
    library.memspan_amx_largest.argtypes = shapes
    return library


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process: a fork has none of its parent's."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="memspan-amx")
