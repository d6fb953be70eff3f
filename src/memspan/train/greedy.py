"""Greedy decoding over [memory ; local], for figures during training.

Nothing is constrained here: what a model that still learns writes is what is to be counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import DynamicCache

from memspan.model.decoding import DecodeRows, prefill
from memspan.model.memory_api import LayerMemory
from memspan.model.modeling import MSAForCausalLM
from memspan.text.packing import pack_contexts
from memspan.text.template import Context
from memspan.types import Retrieved


@torch.inference_mode()
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
    cache, retrieved = DynamicCache(config=model.config.text_config), dict[int, Retrieved]()
    logits_RV = prefill(model, packed, memory, retrieved, cache)
    rows = DecodeRows(model, len(contexts))
    rows.join(packed, cache, retrieved, range(len(contexts)))
    written: list[list[int]] = [[] for _ in contexts]
    writing = list(written)  # in the order of `rows`
    while True:
        for answer, token in zip(writing, logits_RV.argmax(-1).tolist(), strict=True):
            answer.append(token)
        for row in reversed(range(len(writing))):
            if len(writing[row]) == max_new_tokens or ended(writing[row]):
                rows.leave(row)
                writing[row] = writing[-1]
                writing.pop()
        if not writing:
            return written
        logits_RV = rows.step([answer[-1:] for answer in writing])[:, -1]
