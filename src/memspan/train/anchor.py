"""What keeps a model the one it was: it is to expect the next token that it expected before (not in the paper).

Training for routing changes layers without asking what else they are for. Plain text alone does not hold a chat model:
one anchored on it kept its perplexity, and answered 5 of 12 questions on given texts instead of 9 (docs/LOG.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from memspan.model.lora import lora_modules, trained_lora_off
from memspan.model.modeling import MSAForCausalLM


def anchor_loss(model: MSAForCausalLM, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Kullback-Leibler divergence of the model's next-token distribution from what it is without the LoRA that trains,
    summed over all tokens.

    Frozen LoRA, which the run goes on beside, is part of both: it may have learned to answer, and keeps doing so.

    Args:
        model: with LoRA that trains.
        texts: token ids, none empty; run without memory, from position 0.

    Raises:
        ValueError: no LoRA trains, and so nothing is left to compare with.
    """
    if not any(module.lora_a.requires_grad for module in lora_modules(model).values()):
        raise ValueError("an anchor compares a model with itself before, which only LoRA leaves as it was: train LoRA")
    lengths_B = torch.tensor([len(text) for text in texts])
    ids_BT = torch.zeros(len(texts), int(lengths_B.max()), dtype=torch.long)
    for row, text in zip(ids_BT, texts, strict=True):
        row[: len(text)] = torch.as_tensor(text)
    # Right padding needs no mask: causal attention never looks at it from a valid token.
    valid_BT = (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).to(model.device)
    ids_BT = ids_BT.to(model.device)
    with torch.no_grad(), trained_lora_off():
        wanted_XV = _log_shares(model, ids_BT, valid_BT)
    return F.kl_div(_log_shares(model, ids_BT, valid_BT), wanted_XV, log_target=True, reduction="sum")


def _log_shares(model: MSAForCausalLM, ids_BT: torch.Tensor, valid_BT: torch.Tensor) -> torch.Tensor:
    logits_XV = model(ids_BT, use_cache=False).logits[valid_BT]
    return F.log_softmax(logits_XV.to(torch.promote_types(logits_XV.dtype, torch.float32)), dim=-1)
