"""Content of tokens: the keys and values of documents that are read in the place of their texts."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memspan.config import TokenContent
from memspan.model.memory_api import AllRecorded, TokenStep
from memspan.ops.transfer import to_device

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
    """Keys (after RoPE) and values of the tokens that are kept of documents, `[L, sum(counts), 2, G, D]`.

    Args:
        bodies: token ids of each document as a question reads it; one batch.
        counts: tokens kept of each; rows of zeros fill up what a document has fewer.
    """
    device, first = model.device, len(how.prefix)
    rows = [[*how.prefix, *body, *how.repeat, *body] for body in bodies]
    ids_BT = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    place_BT = torch.arange(ids_BT.shape[1]).repeat(len(rows), 1)
    for row, (ids, body) in enumerate(zip(rows, bodies, strict=True)):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        place_BT[row, first:] += how.end - first - len(body)
    documents = tuple((first, first + len(body)) for body in bodies)
    step = TokenStep(content.layers, documents, tuple(map(len, rows)), tuple(counts))
    decoder: Any = model.backbone.base_model
    with contextlib.suppress(AllRecorded):
        decoder(
            input_ids=to_device(ids_BT, device), position_ids=to_device(place_BT, device), memory=step, use_cache=False
        )
    return torch.stack([_filled(step.recorded[layer], counts) for layer in content.layers])


def _filled(kept: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """The rows of all documents of a layer, each filled up with zeros to its count."""
    pairs = zip(kept, counts, strict=True)
    return torch.cat([F.pad(x_M2GD, (0, 0, 0, 0, 0, 0, 0, count - len(x_M2GD))) for x_M2GD, count in pairs])
