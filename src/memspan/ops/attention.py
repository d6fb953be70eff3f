"""Attention over [memory ; local] (paper eq. 3-4): ordinary softmax attention with the selected chunks put in front."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def local_mask(
    num_queries: int,
    num_keys: int,
    valid_BS: Tensor | None,
    window: int | None,
    device: torch.device,
) -> Tensor | None:
    """Which local key each query may see, `[B or 1, 1, T, S]` bool, or None where plain causal attention says it all.

    Queries are the last T of the S keys (bottom-right aligned). Padding is never seen, except by itself: a row
    without any visible key would be undefined.

    Args:
        num_queries, num_keys: T and S.
        valid_BS: True for tokens, False for padding; may be longer than S (a sliding cache keeps the newest).
        window: sliding window in tokens, or None.
    """
    if window is not None and num_keys <= window:
        window = None
    if valid_BS is None and window is None and num_queries in (1, num_keys):
        return None
    query_T1 = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    key_S = torch.arange(num_keys, device=device)
    mask_TS = key_S <= query_T1
    if window is not None:
        mask_TS &= key_S > query_T1 - window
    mask_BTS = mask_TS[None]
    if valid_BS is not None:
        mask_BTS = (mask_BTS & valid_BS[:, None, -num_keys:]) | (key_S == query_T1)
    return mask_BTS[:, None]


def memory_mask(mask_BM: Tensor, sees_memory_BT: Tensor) -> Tensor:
    """Which memory row each query may see, `[B, 1, T, M]`: all rows of its question, unless it is template prefix."""
    return (sees_memory_BT[:, :, None] & mask_BM[:, None, :])[:, None]


def attend(
    query_BHTD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    mask_BHTS: Tensor | None,
    scaling: float | None,
    dropout: float = 0.0,
) -> Tensor:
    """Grouped-query softmax attention, `[B, T, H, D]`. Without a mask it is causal (or one query that sees all).

    Args:
        mask_BHTS: bool, True where visible; head and batch dimensions may be 1.
        scaling: of the logits; None means D**-0.5.
    """
    grouped = query_BHTD.shape[1] != key_BGSD.shape[1]
    device = query_BHTD.device.type
    if grouped and device != "cpu" and (mask_BHTS is not None or device != "cuda"):
        # CUDA's fused kernels take grouped heads only without a mask; else the slow kernel would be picked. Of other
        # devices it is not known that they take any.
        if len(query_BHTD) == 1:
            return _attend_by_group(query_BHTD, key_BGSD, value_BGSD, mask_BHTS, scaling, dropout)
        repeats = query_BHTD.shape[1] // key_BGSD.shape[1]
        key_BGSD, value_BGSD = (x.repeat_interleave(repeats, dim=1) for x in (key_BGSD, value_BGSD))
        grouped = False
    if device == "cpu" and torch.is_grad_enabled() and query_BHTD.requires_grad and not dropout:
        return _attend_plainly(query_BHTD, key_BGSD, value_BGSD, mask_BHTS, scaling)
    out_BHTD = F.scaled_dot_product_attention(
        query_BHTD,
        key_BGSD,
        value_BGSD,
        attn_mask=mask_BHTS,
        dropout_p=dropout,
        is_causal=mask_BHTS is None and query_BHTD.shape[2] > 1,
        scale=scaling,
        enable_gqa=grouped,
    )
    return out_BHTD.transpose(1, 2).contiguous()


def attention_shares(
    query_HTD: Tensor,
    key_GSD: Tensor,
    owner_S: Tensor,
    num_owners: int,
    mask_TS: Tensor,
    scaling: float | None,
) -> Tensor:
    """How the softmax attention of T queries is divided among owners of keys, `[H, T, N]`, in float32.

    Args:
        owner_S: of every key from 0 to N - 1 its owner, or N: none.
        num_owners: N.
        mask_TS: True where visible.
        scaling: of the logits; None means D**-0.5.
    """
    (H, T, D), (G, S, _) = query_HTD.shape, key_GSD.shape
    query_GXD = (query_HTD * (D**-0.5 if scaling is None else scaling)).reshape(G, H // G * T, D)
    logits_HTS = (query_GXD @ key_GSD.transpose(1, 2)).float().view(H, T, S)
    weights_HTS = logits_HTS.masked_fill(~mask_TS, float("-inf")).softmax(-1)
    return weights_HTS.new_zeros(H, T, num_owners + 1).index_add_(2, owner_S, weights_HTS)[..., :num_owners]


def _attend_by_group(
    query_1HTD: Tensor,
    key_1GSD: Tensor,
    value_1GSD: Tensor,
    mask_1HTS: Tensor | None,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """As `attend`, of one row, for kernels that know no grouped heads: a group is a row of a batch, and its heads read
    its key at one place in memory. Nothing is repeated."""
    (_, H, T, D), G = query_1HTD.shape, key_1GSD.shape[1]
    query_GXTD = query_1HTD.reshape(G, H // G, T, D)
    key_GXSD, value_GXSD = (x[0][:, None].expand(-1, H // G, -1, -1) for x in (key_1GSD, value_1GSD))
    mask_GXTS = mask_1HTS.expand(1, H, -1, -1)[0].unflatten(0, (G, H // G)) if mask_1HTS is not None else None
    out_GTXD = attend(query_GXTD, key_GXSD, value_GXSD, mask_GXTS, scaling, dropout)
    return out_GTXD.transpose(0, 1).reshape(1, T, H, -1)


def _attend_plainly(
    query_BHTD: Tensor, key_BGSD: Tensor, value_BGSD: Tensor, mask_BHTS: Tensor | None, scaling: float | None
) -> Tensor:
    """As `attend`, with all weights in memory: the fused kernel's backward takes three times as long on CPUs (LOG)."""
    B, H, T, D = query_BHTD.shape
    G, S = key_BGSD.shape[1:3]
    # The query heads of a group are rows of one product; no key is repeated.
    query_BGXD = (query_BHTD * (D**-0.5 if scaling is None else scaling)).reshape(B, G, H // G * T, D)
    logits = (query_BGXD @ key_BGSD.transpose(2, 3)).view(B, H, T, S)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if mask_BHTS is None:
        mask_BHTS = torch.ones(T, S, dtype=torch.bool, device=logits.device).tril(S - T)
    seen = logits.masked_fill(~mask_BHTS, float("-inf"))
    weights = seen.softmax(-1).to(value_BGSD.dtype).view(B, G, -1, S)
    return (weights @ value_BGSD).view(B, H, T, D).transpose(1, 2).contiguous()
