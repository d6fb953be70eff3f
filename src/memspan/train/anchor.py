"""What keeps a model the one it was: it is to expect the next token that its backbone expects (not in the paper).

Training for routing changes layers without asking what else they are for. Plain text alone does not hold a chat model:
one anchored on it kept its perplexity, and answered 5 of 12 questions on given texts instead of 9 (docs/LOG.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from memspan.model.lora import lora_modules, lora_off
from memspan.model.modeling import MSAForCausalLM


def anchor_loss(model: MSAForCausalLM, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Kullback-Leibler divergence of the model's next-token distribution from its backbone's, summed over all tokens.

    Args:
        model: with LoRA that is not merged; without it, it is the backbone.
        texts: token ids, none empty; run without memory, from position 0.

    Raises:
        ValueError: there is no LoRA, and so no backbone left to compare with.
    """
    if not lora_modules(model):
        raise ValueError("an anchor compares a model with its backbone, which only LoRA leaves as it was: train LoRA")
    lengths_B = torch.tensor([len(text) for text in texts])
    ids_BT = torch.zeros(len(texts), int(lengths_B.max()), dtype=torch.long)
    for row, text in zip(ids_BT, texts, strict=True):
        row[: len(text)] = torch.as_tensor(text)
    # Right padding needs no mask: causal attention never looks at it from a valid token.
    valid_BT = (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).to(model.device)
    ids_BT = ids_BT.to(model.device)
    with torch.no_grad(), lora_off():
        wanted_XV = _log_shares(model, ids_BT, valid_BT)
    return F.kl_div(_log_shares(model, ids_BT, valid_BT), wanted_XV, log_target=True, reduction="sum")


def _log_shares(model: MSAForCausalLM, ids_BT: torch.Tensor, valid_BT: torch.Tensor) -> torch.Tensor:
    logits_XV = model(ids_BT, use_cache=False).logits[valid_BT]
    return F.log_softmax(logits_XV.to(torch.promote_types(logits_XV.dtype, torch.float32)), dim=-1)
