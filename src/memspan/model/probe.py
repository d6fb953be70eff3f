"""Is this decoder served exactly? Shown by running it beside its own eager attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache

from memspan.errors import UnsupportedBackbone
from memspan.model.memory_api import QueryStep
from memspan.model.modeling import MSAForCausalLM
from memspan.types import Retrieved

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_TOLERANCE = 0.1
# Memory must change logits by more than rounding does, in any number format.
_NOISE = 0.01
_PAD = 5


@torch.no_grad()
def probe(backbone: Callable[..., Any], model: MSAForCausalLM) -> float:
    """Compare a converted model with its backbone's eager attention, and see memory reach every MSA layer.

    A left-padded batch longer than every window is run in full and token by token from a cache. With windows of
    thousands of tokens this takes a forward of that length, so minutes for a large model on a CPU.

    Args:
        backbone: loaded with `attn_implementation="eager"`, or what calls such a decoder.
        model: made of it by `MSAForCausalLM.from_backbone`; same dtype.

    Returns:
        The largest relative difference of a token's logits.

    Raises:
        UnsupportedBackbone: there is a difference, or a layer is not reached; the message says which.
    """
    name = model.config.text_config.model_type
    ids_BT, mask_BT = _left_padded_batch(model)
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    want = backbone(input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT).logits
    tolerance = _TOLERANCE.get(want.dtype, _HALF_TOLERANCE)
    try:
        full = model(input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT).logits
        cached = _cached_logits(model, ids_BT, mask_BT, positions_BT)
    except (TypeError, KeyError, AttributeError) as error:
        raise UnsupportedBackbone(
            f"{name} does not look up its attention function, or pass keyword arguments on to it ({error})"
        ) from error
    difference = 0.0
    for kind, got in (("in one pass", full), ("decoding from a cache", cached)):
        worst = _relative_difference(got[mask_BT.bool()], want[mask_BT.bool()])
        if not worst <= tolerance:
            raise UnsupportedBackbone(
                f"{name}: logits {kind} differ from its own eager attention by {worst:.2g} (allowed {tolerance:.0e}); "
                "its attention does something that memory attention does not compute"
            )
        difference = max(difference, worst)
    check_memory_is_seen(model)
    return difference


def _left_padded_batch(model: MSAForCausalLM) -> tuple[torch.Tensor, torch.Tensor]:
    text = model.config.text_config
    named = [getattr(text, name, None) or 0 for name in ("sliding_window", "attention_chunk_size")]
    windows = [window for window in named if window < text.max_position_embeddings]  # a wider one never closes
    T = max(32, max(windows, default=0) + 16) + _PAD
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(0, text.vocab_size, (2, T), generator=generator)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, :_PAD] = 0
    return ids_BT.to(model.device), mask_BT.to(model.device)


def _cached_logits(
    model: MSAForCausalLM, ids_BT: torch.Tensor, mask_BT: torch.Tensor, positions_BT: torch.Tensor
) -> torch.Tensor:
    """Logits of a prefill of all but the last tokens, then of those one by one."""
    T = ids_BT.shape[1]
    cache = DynamicCache(config=model.config.text_config)
    logits, start = [], 0
    for end in (T - 4, *range(T - 3, T + 1)):
        out = model(
            input_ids=ids_BT[:, start:end],
            attention_mask=mask_BT[:, :end],
            position_ids=positions_BT[:, start:end],
            past_key_values=cache,
            use_cache=True,
        )
        logits.append(out.logits)
        start = end
    return torch.cat(logits, dim=1)


def _relative_difference(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest over tokens of |got - want| / |want - mean(want)|, as vectors over the vocabulary."""
    got, want = got.float(), want.float()
    spread = (want - want.mean(-1, keepdim=True)).norm(dim=-1).clamp(min=1e-6)
    return float(((got - want).norm(dim=-1) / spread).max())


class _OneLayerMemory:
    """Gives each MSA layer a few random rows for one question of a batch, and none for the others."""

    def __init__(self, model: MSAForCausalLM) -> None:
        self._model = model
        self.asked: list[int] = []

    def route(self, layer: int, router_query_BTHD: torch.Tensor, query_mask_BT: torch.Tensor) -> Retrieved:
        self.asked.append(layer)
        config, B = self._model.config, len(router_query_BTHD)
        rows_BGMD = router_query_BTHD.new_ones(B, config.num_kv_heads, 4, config.head_dim)
        own_B = torch.tensor([own == layer for own in config.layers], device=rows_BGMD.device)
        return Retrieved(rows_BGMD, rows_BGMD * 3, own_B[:, None].expand(B, 4), ((),) * B, ((),) * B)


def check_memory_is_seen(model: MSAForCausalLM) -> None:
    """See memory reach every MSA layer.

    Raises:
        UnsupportedBackbone: it does not reach one; the message says which.
    """
    layers = model.config.layers
    ids_BT = torch.arange(8, device=model.device).expand(len(layers), -1)
    plain, memory = model(input_ids=ids_BT[:1]).logits, _OneLayerMemory(model)
    step = QueryStep(routes_BT=torch.ones_like(ids_BT, dtype=torch.bool), memory=memory)
    changed = model(input_ids=ids_BT, memory=step).logits
    for row, layer in enumerate(layers):
        if memory.asked != list(layers) or _relative_difference(changed[row], plain[0]) < _NOISE:
            raise UnsupportedBackbone(
                f"{model.config.text_config.model_type}: memory does not reach the attention of layer {layer}"
            )
