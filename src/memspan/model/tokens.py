"""Content of tokens: the keys and values of documents that are read in the place of their texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memspan.content import TokenContent
from memspan.model.memory_api import TokenStep
from memspan.ops.choosing import kept_rows

if TYPE_CHECKING:
    from memspan.model.modeling import MSAForCausalLM


@dataclass(frozen=True, slots=True)
class Framing:
    """What stands around a document when its tokens are kept: it is run as a question has it before itself.

    Attributes:
        prefix: opens the active context.
        repeat: asks for a repetition.
        end: the position behind every document's last token, where a question begins. So a question reads several
            documents side by side, each as near as the other.
    """

    prefix: tuple[int, ...]
    repeat: tuple[int, ...]
    end: int


@torch.inference_mode()
def token_content(
    model: MSAForCausalLM, bodies: Sequence[Sequence[int]], counts: Sequence[int], content: TokenContent, how: Framing
) -> Tensor:
    """Keys (after RoPE) and values of the tokens that are kept of documents, `[1, sum(counts), 2, 1, D + 1]`.

    Args:
        bodies: token ids of each document as a question reads it; one batch.
        counts: rows kept of each, over all layers and heads; see `memspan.ops.choosing.kept_rows`.
    """
    first = len(how.prefix)
    rows = [[*how.prefix, *body, *how.repeat, *body] for body in bodies]
    place_BT = torch.arange(max(map(len, rows))).repeat(len(rows), 1)
    place_BT[:, first:] += torch.tensor([how.end - first - len(body) for body in bodies])[:, None]
    documents = tuple((first, first + len(body)) for body in bodies)
    step = TokenStep(content.layers, documents, tuple(map(len, rows)))
    model.run_documents(rows, step, place_BT)
    kept = []
    for row, count in enumerate(counts):
        received, kv = zip(*(step.recorded[layer][row] for layer in content.layers), strict=True)
        kept.append(kept_rows(torch.stack(received), torch.stack(kv), count))
    return torch.cat(kept)[None, :, :, None]
