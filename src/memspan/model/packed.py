"""Packed weights: copies of the linear layers' weights in 8 or 4 bits, read by the steps that decode a few tokens.

Such a step reads every weight for one or a few rows, so it takes as long as reading them does. What runs over many
tokens (encoding, prefill) uses the original weights: latents, and so banks, and what is routed to, stay what they are.
The products are torch's own weight-only CPU kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from memspan.errors import MemspanError
from memspan.model.memory_api import AskStep, Step

Packing = Literal["int8", "int4"]
# Rows up to which the packed product is the faster one (measured with AVX512 and AMX, docs/LOG.md).
_MOST_ROWS: dict[str, int] = {"int8": 6, "int4": 8}
# Weights that share a scale and a zero in int4: as in the Q4_1 files that small models are published in.
_GROUP = 32
_INT4_ROWS = 16  # what the kernel takes at a time

_in_use: ContextVar[bool] = ContextVar("packed_in_use", default=False)


class PackedLinear(nn.Linear):
    """A linear layer with a packed copy of its weight beside it. Made by `pack_weights`, never by hand.

    Attributes:
        packing: "int8": one scale a row, `[out, in]` int8. "int4": a scale and a zero for every `_GROUP` weights.
        packed_weight, packed_scales: not saved with the model.
    """

    packing: Packing
    packed_weight: Tensor
    packed_scales: Tensor

    def forward(self, input: Tensor) -> Tensor:
        rows_RF = input.flatten(0, -2)
        if not _in_use.get() or len(rows_RF) > _MOST_ROWS[self.packing]:
            return super().forward(input)
        if self.packing == "int8":
            out_RO = torch.ops.aten._weight_int8pack_mm(rows_RF, self.packed_weight, self.packed_scales)
        else:
            out_RO = torch.ops.aten._weight_int4pack_mm_for_cpu(rows_RF, self.packed_weight, _GROUP, self.packed_scales)
        if self.bias is not None:
            out_RO = out_RO + self.bias
        return out_RO.view(*input.shape[:-1], -1)


@contextmanager
def reading_packed(step: Step | None) -> Iterator[None]:
    """Let linear layers read their packed weights while a decoding step runs (one over `AskStep.buffers`)."""
    token = _in_use.set(isinstance(step, AskStep) and step.buffers is not None)
    try:
        yield
    finally:
        _in_use.reset(token)


def check_packing(name: str) -> Packing:
    """A packing by its name.

    Raises:
        MemspanError: there is none of that name.
    """
    if name not in _MOST_ROWS:
        raise MemspanError(f"weights must be one of {', '.join(_MOST_ROWS)}, not {name!r}")
    return cast(Packing, name)


@torch.no_grad()
def pack_weights(backbone: PreTrainedModel, packing: Packing) -> int:
    """Give every linear layer of a decoder a packed copy of its weight, in place. Returns their bytes.

    The language-model head takes int8 in any case: 4 bits lose most there. A layer whose shape int4 cannot hold does
    as well. Weights must not change afterwards.

    Raises:
        MemspanError: the model is not on a CPU.
    """
    if next(backbone.parameters()).device.type != "cpu":
        raise MemspanError(f"{packing} weights are for CPUs; leave them out on a GPU")
    num_bytes, head = 0, backbone.get_output_embeddings()
    for name, module in backbone.named_modules():
        if not isinstance(module, nn.Linear) or "router_" in name:
            continue
        assert not isinstance(module, PackedLinear), "weights are packed once"
        fits = module.in_features % _GROUP == 0 and module.out_features % _INT4_ROWS == 0
        own = "int8" if module is head or not fits else packing
        assert not hasattr(module, "lora_a"), "LoRA is merged before weights are packed"
        # What decodes is the query side; a `memspan.model.lora.TwoSidedLinear` has a weight of its own for it.
        asked = cast(Tensor, getattr(module, "query_weight", module.weight))
        weight, scales = _int8(asked) if own == "int8" else _int4(asked)
        module.__class__ = _packed_class(type(module))
        assert isinstance(module, PackedLinear)
        module.packing = own
        module.register_buffer("packed_weight", weight, persistent=False)
        module.register_buffer("packed_scales", scales.to(module.weight.dtype), persistent=False)
        num_bytes += weight.nbytes + module.packed_scales.nbytes
    return num_bytes


@cache
def _packed_class(linear_class: type[nn.Linear]) -> type[nn.Linear]:
    """The class of a packed layer: what a subclass does otherwise (weights of two sides) it does over many rows."""
    if linear_class is nn.Linear:
        return PackedLinear
    bases: tuple[type[nn.Linear], ...] = (PackedLinear, linear_class)
    return type(f"Packed{linear_class.__name__}", bases, {})  # type: ignore[misc]


def _int8(weight_OF: Tensor) -> tuple[Tensor, Tensor]:
    """Rows scaled so that their largest weight is 127."""
    weight_OF = weight_OF.float()
    scale_O = weight_OF.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (weight_OF / scale_O[:, None]).round().to(torch.int8), scale_O


def _int4(weight_OF: Tensor) -> tuple[Tensor, Tensor]:
    """Groups of a row, each spread over 16 steps from its least to its largest weight; scale and zero `[n, O, 2]`."""
    weight_OnK = weight_OF.float().unflatten(1, (-1, _GROUP))
    least_On, most_On = weight_OnK.amin(2), weight_OnK.amax(2)
    scale_On = ((most_On - least_On) / 15).clamp(min=torch.finfo(torch.float32).tiny)
    steps_OnK = ((weight_OnK - least_On[..., None]) / scale_On[..., None]).round().clamp(0, 15).int()
    # The kernel computes (step - 8) * scale + zero.
    scales_nO2 = torch.stack([scale_On, least_On + 8 * scale_On], dim=-1).transpose(0, 1).contiguous()
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(steps_OnK.flatten(1), 1), scales_nO2
