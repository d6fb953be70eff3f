"""Mean-pooling of a document's tokens into chunks (paper 3.2), ragged tails exactly."""

from __future__ import annotations

import torch


def num_chunks(num_tokens: int, chunk_size: int) -> int:
    """Chunks of a document of `num_tokens` tokens: ceil(num_tokens / chunk_size)."""
    return -(-num_tokens // chunk_size)


def pool_chunks(x_BTF: torch.Tensor, lengths_B: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """Mean of every `chunk_size` consecutive tokens; the last chunk of a row is the mean of its actual tokens.

    Args:
        x_BTF: right-padded values, any trailing size F. Padding is ignored, whatever it holds (NaN too).
        lengths_B: valid tokens per row.
        chunk_size: P.

    Returns:
        `[B, ceil(T/P), F]` in x's dtype, summed in float32 (or x's dtype where that is wider); rows past a
        document's last chunk are zero.
    """
    B, T, F = x_BTF.shape
    C = num_chunks(T, chunk_size)
    padding_BT = torch.arange(C * chunk_size, device=x_BTF.device) >= lengths_B[:, None]
    x_BTF = torch.nn.functional.pad(x_BTF, (0, 0, 0, C * chunk_size - T)) if C * chunk_size != T else x_BTF.clone()
    if x_BTF.is_cpu:  # where filling a few rows is several times as fast as a mask over all
        x_BTF.flatten(0, 1).index_fill_(0, padding_BT.flatten().nonzero()[:, 0], 0)
    else:
        x_BTF.masked_fill_(padding_BT.unsqueeze(-1), 0)
    accumulate = torch.promote_types(x_BTF.dtype, torch.float32)
    sums_BCF = x_BTF.view(B, C, chunk_size, F).sum(2, dtype=accumulate)
    starts_C = torch.arange(C, device=x_BTF.device) * chunk_size
    counts_BC = (lengths_B[:, None] - starts_C).clamp(1, chunk_size)
    return (sums_BCF / counts_BC.unsqueeze(-1)).to(x_BTF.dtype)


def valid_chunks(lengths_B: torch.Tensor, num_rows: int, chunk_size: int) -> torch.Tensor:
    """`[B, num_rows]`, True where a pooled row belongs to the document."""
    return torch.arange(num_rows, device=lengths_B.device) * chunk_size < lengths_B[:, None]
