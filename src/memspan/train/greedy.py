"""Greedy decoding over [memory ; local], for figures during training. Serving has its own loop (`memspan.generate`).

Nothing is constrained here: what a model that still learns writes is what is to be counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import DynamicCache

from memspan.model.memory_api import AskStep, LayerMemory
from memspan.model.modeling import MSAForCausalLM
from memspan.text.packing import pack_contexts
from memspan.text.template import Context


@torch.no_grad()
def decode_greedily(
    model: MSAForCausalLM,
    contexts: Sequence[Context],
    memory: LayerMemory | None,
    max_new_tokens: int,
    ended: Callable[[Sequence[int]], bool],
) -> list[list[int]]:
    """What the model writes after each context, most likely token by token.

    Args:
        ended: whether what was written so far is complete; its last token, the end marker, is returned too.
    """
    packed = pack_contexts(contexts, model.config.offset).to(model.device)
    cache = DynamicCache(config=model.config.text_config)
    step = AskStep(packed.padding_mask, packed.sees_memory, packed.routes, memory)
    ids_BT, positions_BT, valid_BS = packed.ids, packed.positions, packed.padding_mask
    written: list[list[int]] = [[] for _ in contexts]
    writing = set(range(len(contexts)))
    for _ in range(max_new_tokens):
        inputs = {"position_ids": positions_BT, "past_key_values": cache, "memory": step}
        ids_BT = model(ids_BT, logits_to_keep=1, **inputs).logits[:, -1].argmax(-1, keepdim=True)
        for row in sorted(writing):
            written[row].append(int(ids_BT[row]))
            if ended(written[row]):
                writing.discard(row)
        if not writing:
            break
        positions_BT = positions_BT[:, -1:] + 1
        valid_BS = None if valid_BS is None else torch.cat([valid_BS, valid_BS.new_ones(len(valid_BS), 1)], dim=1)
        step = AskStep(valid_BS, memory=memory, retrieved=step.retrieved)
    return written
