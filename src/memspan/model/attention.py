"""The attention function registered with transformers as "memspan"; every layer of a converted model calls it."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import AttentionInterface

from memspan.errors import UnsupportedBackbone
from memspan.model.memory_api import (
    AllRecorded,
    DocumentStep,
    EncodeStep,
    PooledLayer,
    QueryStep,
    Step,
    TokenStep,
    Watch,
)
from memspan.ops.attention import attend, attention_shares, local_mask, memory_mask
from memspan.ops.choosing import attention_received
from memspan.ops.pooling import pool_chunks
from memspan.types import Retrieved

ATTENTION_NAME = "memspan"

# Keyword arguments decoders pass along that do not change what attention computes. Anything else that is set
# (softcap, s_aux, position_bias ...) would be silently ignored, so it is refused by name.
_HARMLESS = {
    "cache_position",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "use_cache",
}


def memspan_attention(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BGSD: torch.Tensor,
    value_BGSD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    memory: Step | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside a document (encoding), or [memory ; local] attention (asking).

    Args:
        module: the layer's attention; `layer_idx` says which. MSA layers are `RoutedAttention`s.
        key_BGSD, value_BGSD: after RoPE, with what a cache holds.
        attention_mask: must be None; padding is described by `memory`.
        memory: the step object of this forward; None: plain causal attention.

    Raises:
        UnsupportedBackbone: the decoder asks for something this function does not compute.
        AllRecorded: the last layer that a document step keeps something of, or that is looked at, is recorded.
    """
    if kwargs.pop("is_causal", None) is False:
        raise UnsupportedBackbone(f"{type(module).__name__} asks for attention that is not causal")
    unknown = sorted(name for name, value in kwargs.items() if value is not None and name not in _HARMLESS)
    if unknown or attention_mask is not None:
        raise UnsupportedBackbone(
            f"{type(module).__name__} passes {', '.join(unknown) or 'its own attention mask'} to its attention, which "
            "memory attention does not compute: its answers would be silently wrong"
        )
    if isinstance(memory, QueryStep) and memory.buffers is not None:
        given = query_BHTD, key_BGSD, value_BGSD, scaling, sliding_window
        return memory.buffers.attend(cast(int, module.layer_idx), *given), None
    T, S = query_BHTD.shape[2], key_BGSD.shape[2]
    if isinstance(memory, DocumentStep):
        if isinstance(memory, TokenStep):
            _keep(memory, module, query_BHTD, key_BGSD, value_BGSD, scaling)
        else:
            _record(memory, module, key_BGSD, value_BGSD)
        # Right padding needs no mask: causal attention never looks at it from a valid token.
        mask = local_mask(T, S, None, sliding_window, key_BGSD.device)
        return attend(query_BHTD, key_BGSD, value_BGSD, mask, scaling, dropout), None

    if memory is not None and memory.watch is not None:
        _look(memory.watch, module, query_BHTD, key_BGSD, scaling, sliding_window)
    retrieved = memory.retrieved.get(getattr(module, "layer_idx", -1)) if memory else None
    if retrieved is not None and retrieved.mask_BM.shape[1]:
        key_BGSD = torch.cat([retrieved.keys_BGMD.to(key_BGSD.dtype), key_BGSD], dim=2)
        value_BGSD = torch.cat([retrieved.values_BGMD.to(value_BGSD.dtype), value_BGSD], dim=2)
    parts = _parts(memory, T, S, sliding_window, key_BGSD.shape[2])
    out = []
    for part in parts:
        mask = _local_mask(memory, part, T, S, sliding_window, key_BGSD.device, shared=len(parts) == 1)
        if memory is not None and retrieved is not None and retrieved.mask_BM.shape[1]:
            mask = _join_masks(mask, memory, retrieved, query_BHTD.shape[1], part, S - T)
        seen = slice(0, key_BGSD.shape[2] - T + part.stop)
        given = query_BHTD[:, :, part], key_BGSD[:, :, seen], value_BGSD[:, :, seen]
        out.append(attend(*given, mask, scaling, dropout))
    return (out[0] if len(out) == 1 else torch.cat(out, dim=1)), None


def _parts(step: QueryStep | None, T: int, S: int, window: int | None, num_columns: int) -> list[slice]:
    """Which of the T tokens attend together: all of them where that takes no mask."""
    whole = step is None or (step.valid_BS is None and window is None and num_columns == S == T)
    size = T if whole or step is None or step.slice_tokens is None else step.slice_tokens
    return [slice(begin, min(begin + size, T)) for begin in range(0, T, size)]


def _local_mask(
    step: QueryStep | None, part: slice, T: int, S: int, window: int | None, device: torch.device, *, shared: bool
) -> torch.Tensor | None:
    """`local_mask` of some of the tokens; with `shared` made once for all layers of a step that are alike."""
    num_queries, num_keys = part.stop - part.start, S - T + part.stop
    if step is None:
        return local_mask(num_queries, num_keys, None, window, device)
    key = num_queries, num_keys, window
    if key in step.local_masks:
        return step.local_masks[key]
    valid_BS = step.valid_BS[:, -S:][:, :num_keys] if step.valid_BS is not None else None
    mask = local_mask(num_queries, num_keys, valid_BS, window, device)
    if shared:
        step.local_masks[key] = mask
    return mask


def _join_masks(
    local: torch.Tensor | None, step: QueryStep, found: Retrieved, H: int, part: slice, num_before: int
) -> torch.Tensor:
    """The visibility of [memory ; local] for some of the tokens, `[B, 1 or H, T, M+S]`; `num_before` are in the
    cache."""
    B, T, device = len(found.mask_BM), part.stop - part.start, found.mask_BM.device
    sees_BT = step.sees_memory_BT[:, part] if step.sees_memory_BT is not None else found.mask_BM.new_ones(B, T)
    if local is None:
        local = torch.ones(T, num_before + part.stop, dtype=torch.bool, device=device).tril(num_before + part.start)
        local = local[None, None]
    before = memory_mask(found.mask_BM, sees_BT)
    if found.heads_BGM is not None:
        before = before & found.heads_BGM.repeat_interleave(H // found.heads_BGM.shape[1], dim=1)[:, :, None]
    return torch.cat([before, local.expand(B, before.shape[1], -1, -1)], dim=-1)


def _record(step: EncodeStep, module: torch.nn.Module, key_BGTD: torch.Tensor, value_BGTD: torch.Tensor) -> None:
    """Pool K and V of an MSA layer (one that has left its routing key in this step) into chunks."""
    layer = getattr(module, "layer_idx", -1)
    if (pooled := step.recorded.get(layer)) is not None:
        pooled.key_BCGD = _pool_heads(step, key_BGTD)
        pooled.value_BCGD = _pool_heads(step, value_BGTD)
    if layer == step.last_layer and not torch.is_grad_enabled():
        raise AllRecorded


def _keep(
    step: TokenStep,
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BGTD: torch.Tensor,
    value_BGTD: torch.Tensor,
    scaling: float | None,
) -> None:
    """Leave K and V of documents, and how much their repetitions look at them, in a layer that keeps any."""
    layer = getattr(module, "layer_idx", -1)
    if layer not in step.layers:
        return
    step.recorded[layer] = []
    for row, ((first, last), end) in enumerate(zip(step.documents, step.ends, strict=True)):
        key_GSD, value_GSD = key_BGTD[row, :, first:last], value_BGTD[row, :, first:last]
        received_GS = attention_received(query_BHTD[row, :, last:end], key_GSD, scaling)
        step.recorded[layer].append((received_GS, torch.stack([key_GSD, value_GSD], dim=2)))
    if layer == step.layers[-1] and not torch.is_grad_enabled():
        raise AllRecorded


def _pool_heads(step: EncodeStep, x_BGTD: torch.Tensor) -> torch.Tensor:
    B, G, T, D = x_BGTD.shape
    pooled_BCF = pool_chunks(x_BGTD.transpose(1, 2).reshape(B, T, G * D), step.lengths_B, step.chunk_size)
    return pooled_BCF.view(B, -1, G, D)


def _look(
    watch: Watch,
    module: torch.nn.Module,
    query_1HTD: torch.Tensor,
    key_1GSD: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> None:
    """Record a layer's attention from the last tokens to those before."""
    layer = cast(int, module.layer_idx)
    if layer in watch.layers:
        T, S, device = watch.num_last, key_1GSD.shape[2], key_1GSD.device
        mask = local_mask(T, S, torch.ones(1, S, dtype=torch.bool, device=device), window, device)
        assert mask is not None, "padding is told, though there is none"
        given = query_1HTD[0, :, -T:], key_1GSD[0], watch.owner_S.to(device), watch.num_owners
        watch.shares[layer] = attention_shares(*given, mask[0, 0], scaling)
    if layer >= max(watch.layers) and not torch.is_grad_enabled():
        raise AllRecorded


def record_router_key(step: EncodeStep, layer: int, hidden_BCF: torch.Tensor, router_key_BCGD: torch.Tensor) -> None:
    """Open an MSA layer's entry in an encoding step; the attention function adds K and V to it."""
    step.recorded[layer] = PooledLayer(hidden_BCF, router_key_BCGD)


AttentionInterface.register(ATTENTION_NAME, memspan_attention)
