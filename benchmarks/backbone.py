"""The other side of a comparison: a model's backbone as transformers runs it by itself."""

from __future__ import annotations

import copy
from typing import Any

from transformers import AutoModelForCausalLM

from memspan.model.convert import LoadedModel


def plain_backbone(loaded: LoadedModel) -> Any:
    """The backbone with the same weights, number format and device, and its standard (SDPA) attention."""
    model = loaded.model
    backbone: Any = AutoModelForCausalLM.from_config(
        copy.deepcopy(model.config.backbone_config), attn_implementation="sdpa", dtype=model.dtype
    )
    backbone.load_state_dict(dict(model.named_backbone_weights()), strict=False)
    return backbone.to(model.device).eval()
