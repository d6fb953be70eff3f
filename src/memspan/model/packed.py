"""Packed weights: copies of the linear layers' weights in 16, 8 or 4 bits, read by the steps that decode a few tokens.

Such a step reads every weight for one or a few rows, so it takes as long as reading them does. What runs over many
tokens (encoding, prefill) uses the original weights: latents, and so banks, and what is routed to, stay what they are.
The products are torch's own CPU kernels. Which of them is fast depends on the machine and on the number format of the
rows, so each is timed on the weights it would read, and a layer keeps its own weight where nothing is faster.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from memspan.errors import MemspanError
from memspan.model.memory_api import QueryStep, Step

_log = logging.getLogger(__name__)

Packing = Literal["float16", "bfloat16", "int8", "int4"]
DecodeWeights = Literal["exact", "half", "int8", "int4"]
"""What decoding steps may read; "exact": the weights as they are loaded; "half": copies of 16 bits."""
_WEIGHTS = ("exact", "half", "int8", "int4")
# Rows a packed product is timed with, and read for at most.
ROWS = (1, 2, 4, 8)
# A packed product must take less than this share of the plain one's time, in one of some timings: none is more exact.
_WORTH, _TIMINGS = 0.95, 3
# Weights that share a scale and a zero in int4: as in the Q4_1 files that small models are published in.
_GROUP = 32
_INT4_ROWS = 16  # what the kernel takes at a time
# Bytes of one shape's weights that a timing reads: more than the caches next to a core hold, as a step reads more.
_TIMED_BYTES = 2**24
# Weights of one shape with fewer bytes than this stay in a cache: their layers keep them as they are.
_LEAST_BYTES = 2**22

_in_use: ContextVar[bool] = ContextVar("packed_in_use", default=False)


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How a weight is kept, and the number format of the rows that are multiplied with it.

    Attributes:
        packing: "float16": as FBGEMM tiles them, which adds up in float32. "bfloat16": `[out, in]`. "int8": one scale a
            row. "int4": a scale and a zero for `_GROUP` weights.
    """

    packing: Packing
    rows: torch.dtype

    def pack(self, weight_OF: Tensor) -> tuple[Any, ...]:
        """What `product` takes: the weight, and its scales where it has some."""
        if self.packing == "float16":
            return (torch.ops.quantized.linear_prepack_fp16(weight_OF.detach().float().contiguous(), None),)
        if self.packing == "bfloat16":
            return (weight_OF.bfloat16(),)
        weight, scales = _int8(weight_OF) if self.packing == "int8" else _int4(weight_OF)
        return weight, scales.to(self.rows)

    def product(self, input: Tensor, *packed: Any) -> Tensor:
        """`[..., out]` of `[..., in]`, in the number format of `input`."""
        rows = input.to(self.rows)
        if self.packing == "float16":
            return torch.ops.quantized.linear_dynamic_fp16(rows, *packed).to(input.dtype)
        if self.packing == "bfloat16":
            return F.linear(rows, *packed).to(input.dtype)
        rows_RF = rows.reshape(-1, rows.shape[-1])
        if self.packing == "int8":
            out_RO = torch.ops.aten._weight_int8pack_mm(rows_RF, *packed)
        else:
            weight, scales = packed
            out_RO = torch.ops.aten._weight_int4pack_mm_for_cpu(rows_RF, weight, _GROUP, scales)
        return out_RO.to(input.dtype).view(*input.shape[:-1], -1)


class PackedLinear(nn.Linear):
    """A linear layer with a packed copy of its weight beside it. Made by `pack_weights`, never by hand.

    Attributes:
        form: of the copy.
        most_rows: rows up to which it is read.
        packed: the copy, not saved with the model.
    """

    form: WeightFormat
    most_rows: int
    packed: tuple[Any, ...]

    def forward(self, input: Tensor) -> Tensor:
        return self.product(input) if self.reads_packed(input) else super().forward(input)

    def reads_packed(self, input: Tensor) -> bool:
        """Whether these rows, now, are multiplied with the copy."""
        return _in_use.get() and input.numel() <= self.most_rows * self.in_features

    def product(self, input: Tensor) -> Tensor:
        """The product with the copy, in the number format of `input`."""
        out = self.form.product(input, *self.packed)
        return out if self.bias is None else out + self.bias


@contextmanager
def reading_packed(step: Step | None) -> Iterator[None]:
    """Let linear layers read their packed weights while a decoding step runs (one over `QueryStep.buffers`)."""
    token = _in_use.set(isinstance(step, QueryStep) and step.buffers is not None)
    try:
        yield
    finally:
        _in_use.reset(token)


def check_weights(name: str, device: torch.device) -> DecodeWeights:
    """What decoding may read, by its name.

    Raises:
        MemspanError: there is none of that name, or it is not for this device.
    """
    if name not in _WEIGHTS:
        raise MemspanError(f"weights must be one of {', '.join(_WEIGHTS)}, not {name!r}")
    if device.type != "cpu":
        raise MemspanError(f"{name} weights are for CPUs; leave them out on a GPU")
    return cast(DecodeWeights, name)


def asked_weight(linear: nn.Linear) -> Tensor:
    """The weight that questions read; a `memspan.model.lora.TwoSidedLinear` has one of its own for them."""
    return cast(Tensor, getattr(linear, "query_weight", linear.weight))


Seconds = Callable[[WeightFormat | None, Sequence[Tensor]], list[float]]
"""How long products with some weights of one shape take, one after the other, for each of `ROWS`; None: as they are."""


def _seconds(form: WeightFormat | None, weights: Sequence[Tensor]) -> list[float]:
    packed: list[tuple[Any, ...]] = [form.pack(weight) if form else (weight,) for weight in weights]

    def run(rows_RF: Tensor) -> float:
        begin = time.perf_counter()
        for tensors in packed:
            form.product(rows_RF, *tensors) if form else F.linear(rows_RF, *tensors)
        return time.perf_counter() - begin

    inputs = [weights[0].new_ones(num_rows, weights[0].shape[1]) for num_rows in ROWS]
    return [min(run(rows_RF) for _ in range(5)) for rows_RF in inputs]


@torch.no_grad()
def pack_weights(backbone: PreTrainedModel, weights: DecodeWeights, seconds: Seconds = _seconds) -> dict[str, int]:
    """Give linear layers of a decoder a packed copy of their weights where that is read faster, in place.

    Layers of one shape are decided together. Where 16 bits are faster than what is asked for, they are taken, as they
    lose less. The language-model head takes int8 for int4: 4 bits lose most there. A layer whose shape int4 cannot hold
    does as well. Weights must not change afterwards.

    Args:
        seconds: times a product.

    Returns:
        How many linear layers read what: "plain", or a packing.
    """
    shapes: dict[tuple[object, ...], list[nn.Linear]] = {}
    head = backbone.get_output_embeddings()
    for name, module in backbone.named_modules():
        if not isinstance(module, nn.Linear) or "router_" in name:
            continue
        assert not isinstance(module, PackedLinear), "weights are packed once"
        assert not hasattr(module, "lora_a"), "LoRA is merged before weights are packed"
        fits = module.in_features % _GROUP == 0 and module.out_features % _INT4_ROWS == 0
        own = "int8" if weights == "int4" and (module is head or not fits) else weights
        shapes.setdefault((own, module.weight.shape, module.weight.dtype), []).append(module)
    counts: Counter[str] = Counter()
    for (own, *_), linears in shapes.items():
        form, most_rows = None, 0
        if sum(asked_weight(linear).nbytes for linear in linears) >= _LEAST_BYTES:
            form, most_rows = _fastest(cast(DecodeWeights, own), linears, seconds)
        counts[form.packing if form else "plain"] += len(linears)
        for linear in linears if form else ():
            _give(linear, cast(WeightFormat, form), most_rows)
    _log.info("decoding reads %s", ", ".join(f"{name} weights in {count} layers" for name, count in counts.items()))
    return dict(counts)


def _fastest(weights: DecodeWeights, linears: Sequence[nn.Linear], seconds: Seconds) -> tuple[WeightFormat | None, int]:
    """The form in which layers of one shape are read fastest for one row, and rows up to which it is worth it."""
    timed = [asked_weight(linear) for linear in linears]
    dtype, row_bytes = timed[0].dtype, timed[0][0].nbytes
    timed = timed[: max(1, _TIMED_BYTES // timed[0].nbytes)]
    timed[0] = timed[0][: max(_INT4_ROWS, _TIMED_BYTES // row_bytes // _INT4_ROWS * _INT4_ROWS)]
    if _has_fbgemm():
        forms = [WeightFormat("float16", torch.float32)]
    else:
        forms = [WeightFormat("bfloat16", torch.bfloat16)] if dtype == torch.float32 else []
    if weights in ("int8", "int4"):
        forms += [WeightFormat(weights, rows) for rows in dict.fromkeys((dtype, torch.bfloat16))]
    for _ in range(_TIMINGS if forms else 0):
        took, plain = {form: seconds(form, timed) for form in forms}, seconds(None, timed)
        best = min(took, key=lambda form: took[form][0])
        faster = [packed <= _WORTH * own for packed, own in zip(took[best], plain, strict=True)]
        if faster[0]:
            return best, max(rows for rows, is_faster in zip(ROWS, faster, strict=True) if is_faster)
    return None, 0


def _has_fbgemm() -> bool:
    """Whether float16 can be packed: on x86."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def _give(linear: nn.Linear, form: WeightFormat, most_rows: int) -> None:
    made = cast(PackedLinear, linear)
    made.form, made.most_rows, made.packed = form, most_rows, form.pack(asked_weight(linear))
    # Last, so that another thread that runs the layer finds all of it.
    linear.__class__ = _packed_class(type(linear))


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
