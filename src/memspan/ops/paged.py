"""Attention of rows of any lengths over keys in pages, in one call: torch's own kernel, where a device has it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from memspan.ops.attention import attend, local_mask

PAGE = 256
"""Tokens of a page: what every version of the kernel takes."""

PagedAttention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, float | None, int | None], Tensor]
"""As `varlen_attention`."""

_log = logging.getLogger(__name__)
_TOLERANCE = 2e-2


def varlen_attention(
    query_XHD: Tensor,
    pool_2PSGD: Tensor,
    table_RP: Tensor,
    used_R: Tensor,
    first_R1: Tensor,
    max_used: int,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Attend for the T newest tokens of every row, each to those before it, by torch's `varlen_attn` (FlashAttention):
    `[R * T, H, D]`.

    Args:
        query_XHD: T queries of every row, one row behind the other.
        pool_2PSGD: pages of K and of V.
        table_RP: which pages a row has, in order, int32.
        used_R: tokens of each row, int32; `max_used` is the most of them, or more.
        first_R1: where the queries of each row begin, and the end of all, int32.
        window: sliding window in tokens, or None.
    """
    from torch.nn.attention.varlen import varlen_attn

    num_tokens = len(query_XHD) // len(used_R)
    out = varlen_attn(
        query_XHD,
        pool_2PSGD[0],
        pool_2PSGD[1],
        first_R1,
        None,
        num_tokens,
        max_used,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query_XHD.shape[1] != pool_2PSGD.shape[3],
        seqused_k=used_R,
        block_table=table_RP,
    )
    assert isinstance(out, Tensor), "nothing else was asked for"
    return out


@functools.cache
def paged_attention(device: torch.device, dtype: torch.dtype, heads: int, groups: int, width: int) -> bool:
    """Whether `varlen_attention` computes what `attend` does on a device, for H heads in G groups of width D; tried
    once."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    try:
        return all(_is_exact(device, dtype, heads, groups, width, window) for window in (None, 100))
    except Exception as error:  # no such kernel in this torch, or none for this card
        _log.info("rows attend one by one in decoding steps: %s", error)
        return False


def _is_exact(device: torch.device, dtype: torch.dtype, H: int, G: int, D: int, window: int | None) -> bool:
    lengths, T = (PAGE + 44, 5), 2
    table_RP, pool_2PSGD = torch.tensor([[2, 0], [1, 1]]), torch.randn(2, 3, PAGE, G, D).to(device, dtype)
    query_RHTD = torch.randn(len(lengths), H, T, D).to(device, dtype)
    out_XHD = varlen_attention(
        query_RHTD.transpose(1, 2).flatten(0, 1),
        pool_2PSGD,
        table_RP.to(device, torch.int32),
        torch.tensor(lengths, dtype=torch.int32, device=device),
        torch.arange(len(lengths) + 1, dtype=torch.int32, device=device) * T,
        max(lengths),
        None,
        window,
    )
    for row, (length, pages) in enumerate(zip(lengths, table_RP.tolist(), strict=True)):
        keys_1GSD, values_1GSD = pool_2PSGD[:, pages].flatten(1, 2)[:, :length].transpose(1, 2)[:, None]
        mask = local_mask(T, length, None, window, device)
        wanted_THD = attend(query_RHTD[row : row + 1], keys_1GSD, values_1GSD, mask, None)[0]
        if not torch.allclose(out_XHD[row * T : (row + 1) * T], wanted_THD, atol=_TOLERANCE, rtol=_TOLERANCE):
            return False
    return True
