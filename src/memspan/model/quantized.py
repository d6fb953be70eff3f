"""Weights that are quantized while a checkpoint is loaded: by transformers' own loading (torchao, ...)."""

from __future__ import annotations

import copy
import hashlib
import json

import torch
from torch import nn
from transformers.utils.quantization_config import QuantizationConfigMixin

from memspan.errors import UnsupportedBackbone
from memspan.model.modeling import MSAForCausalLM, routed_modules
from memspan.model.probe import check_memory_is_seen

# Names by which methods are told what to leave.
_SKIPPING = ("modules_to_not_convert", "llm_int8_skip_modules")
_LEFT = ("lm_head", "router_q_proj", "router_k_proj")


def leaving_routers(quantization: QuantizationConfigMixin) -> QuantizationConfigMixin:
    """A quantization that leaves routers and the language-model head as they are."""
    changed = copy.deepcopy(quantization)
    for name in _SKIPPING:
        if hasattr(changed, name):
            # Some methods compare the ends of modules' names, some match the names of weights.
            patterns = (f".*{left}" for left in _LEFT)
            setattr(changed, name, sorted({*(getattr(changed, name) or ()), *_LEFT, *patterns}))
    return changed


@torch.no_grad()
def check_quantized(model: MSAForCausalLM, quantization: QuantizationConfigMixin) -> None:
    """See that quantized weights serve a memory, and give the model a fingerprint of its own.

    What it computes of a document is not what the weights before would: a bank of theirs is refused.

    Raises:
        UnsupportedBackbone: routers were quantized, logits are not finite, or memory does not reach a layer.
    """
    method = str(getattr(quantization.quant_method, "value", quantization.quant_method))
    for attention in routed_modules(model):
        for linear in (attention.router_q_proj, attention.router_k_proj):
            if type(linear) is not nn.Linear or type(linear.weight.data) is not torch.Tensor:
                raise UnsupportedBackbone(
                    f"{method} quantized the routers, whose scores would be others; have it leave {' and '.join(_LEFT)}"
                )
    ids_BT = torch.arange(8, device=model.device)[None]
    if not bool(model(input_ids=ids_BT).logits.isfinite().all()):
        raise UnsupportedBackbone(f"with weights quantized by {method} the model computes no numbers; use another")
    check_memory_is_seen(model)
    settings = json.dumps(quantization.to_dict(), sort_keys=True, default=str)
    of_both = f"{model.config.backbone_fingerprint}\n{settings}"
    model.config.backbone_fingerprint = hashlib.sha256(of_both.encode()).hexdigest()
