"""Routing's coarse pass on a GPU: one kernel that multiplies 8-bit rows with queries and keeps the largest sum.

The products never leave the chip: a block of rows is multiplied with the tokens of one question after another, and only
the largest product of each question is written. Sums are int32 and exact (`memspan.ops.integers`), and scales are
multiplied in the order in which the ways of the CPU do it, so the scores are theirs, bit for bit.

Triton is optional (the extra `gpu`). With TRITON_INTERPRET=1 the kernel runs on a CPU, for tests.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from memspan.ops.amx import ScaledLargest

ROWS, TOKENS, DEPTH = 128, 32, 128
"""Of a block: rows, tokens multiplied at a time, and numbers of a row summed at a time."""


@triton.jit
def largest_products(
    query, query_scale, row, row_scale, out, num_rows, num_tokens, num_questions, width,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Write `out[b, c] = max_t(query[b, t] . row[c]) * row_scale[c] * query_scale[b]`.

    query: int8 [num_questions, num_tokens, width], num_tokens a multiple of TOKENS; row: int8 [num_rows, width]; the
    scales and `out` [num_questions, num_rows]: float32.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = rows < num_rows
    scales = tl.load(row_scale + rows, mask=in_rows, other=0.0)
    row_at = rows.to(tl.int64) * width
    out_at = rows.to(tl.int64)  # beyond 2**31 where many questions meet many rows
    for question in range(num_questions):
        largest = tl.full((ROWS,), -(2**31), tl.int32)
        for first in range(0, num_tokens, TOKENS):
            tokens = question * num_tokens + first + tl.arange(0, TOKENS)
            sums = tl.zeros((ROWS, TOKENS), tl.int32)
            for start in range(0, width, DEPTH):
                depth = start + tl.arange(0, DEPTH)
                in_width = depth < width
                left = tl.load(
                    row + row_at[:, None] + depth[None, :], mask=in_rows[:, None] & in_width[None, :], other=0
                )
                right = tl.load(query + tokens[None, :] * width + depth[:, None], mask=in_width[:, None], other=0)
                sums = tl.dot(left, right, acc=sums, out_dtype=tl.int32)
            largest = tl.maximum(largest, tl.max(sums, axis=1))
        scored = largest.to(tl.float32) * scales * tl.load(query_scale + question)
        tl.store(out + out_at, scored, mask=in_rows)
        out_at += num_rows


def triton_largest(query_BTW: Tensor, scale_B: Tensor) -> ScaledLargest:
    """What writes the scores of rows in the kernel.

    Args:
        query_BTW: int8, T a multiple of `TOKENS`, on the device of the rows.
        scale_B: float32.
    """
    B, T, W = query_BTW.shape
    query_BTW = query_BTW.contiguous()
    blocks: Any = (ROWS, TOKENS, DEPTH)  # of constants, as the kernel says

    def largest(left_CW: Tensor, scale_C: Tensor, out_BC: Tensor) -> None:
        C = len(left_CW)
        found_BC = torch.empty(B, C, device=left_CW.device)  # `out_BC` may be some columns of a wider one
        tensors = (query_BTW, scale_B, left_CW.contiguous(), scale_C.contiguous(), found_BC)
        largest_products[(triton.cdiv(C, ROWS),)](*tensors, C, T, B, W, *blocks)
        out_BC.copy_(found_BC)

    return largest
