"""Low-rank adaptation of linear layers that knows which side it is on: documents being encoded, or the active context.

A layer's side is an argument of its forward: it is read from the step that is handed in as `memory=` (`DocumentStep`:
document; anything else: query), and holds while that forward runs, in its thread. So a layer that gradient
checkpointing computes again sees the side it saw, and threads that share a model do not see each other's. (`peft`
switches adapters by module state, which does neither; and serving an adapter should not need it.)

As routers do, LoRA replaces a module's class, so that modules and parameters keep their names.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from memspan.model.memory_api import DocumentStep
from memspan.model.modeling import MSAForCausalLM, decoder_layers

Side = Literal["document", "query"]
SIDES: tuple[Side, ...] = ("document", "query")

_side: ContextVar[Side | None] = ContextVar("side", default=None)
_off: ContextVar[bool] = ContextVar("off", default=False)


@dataclass(frozen=True)
class LoraSpec:
    """Which linear layers get LoRA, and how; checked when built.

    Attributes:
        targets: a regular expression, searched in module names as `model.layers.20.self_attn.q_proj`.
        rank, alpha: the change is `alpha / rank * B A`, with A and B of this rank.
        sides: where it holds.
    """

    targets: str = r"\.(q|k|v|o|gate|up|down)_proj$"
    rank: int = 16
    alpha: float = 32.0
    sides: tuple[Side, ...] = SIDES

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise ValueError(f"LoRA needs a rank of at least 1 and an alpha above 0, not {self.rank} and {self.alpha}")
        if not self.sides or set(self.sides) - set(SIDES):
            raise ValueError(f"sides must be some of {', '.join(SIDES)}, not {self.sides}")
        object.__setattr__(self, "sides", tuple(side for side in SIDES if side in self.sides))
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(f"targets is no regular expression: {self.targets!r} ({error})") from error


class LoraLinear(nn.Linear):
    """A linear layer with a low-rank change on some sides. Made by `add_lora`, never by hand.

    Attributes:
        lora_a, lora_b: `[rank, in]` and `[out, rank]`; may be of a wider number format than the weight.
        lora_scale: alpha / rank.
        lora_sides: where the change holds.
    """

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    lora_scale: float
    lora_sides: tuple[Side, ...]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        out = super().forward(input)
        if not self._applies():
            return out
        low = F.linear(input, self.lora_a.to(out.dtype))
        b_RO = (self.lora_scale * self.lora_b).to(out.dtype).T
        # One fused product and sum: the scale is in the small matrix, and no second output is written.
        return torch.addmm(out.flatten(0, -2), low.flatten(0, -2), b_RO).view_as(out)

    def _applies(self) -> bool:
        if _off.get() and self.lora_a.requires_grad:
            return False
        if len(self.lora_sides) == len(SIDES):
            return True
        side = _side.get()
        assert side is not None, "LoRA of one side only holds inside a decoder layer"
        return side in self.lora_sides

    @torch.no_grad()
    def merged_weight(self) -> torch.Tensor:
        """The weight with the change in it, rounded once."""
        # In place: new memory for every step takes longer than the arithmetic.
        merged = self.lora_b.float() @ self.lora_a.float()
        return merged.mul_(self.lora_scale).add_(self.weight).to(self.weight.dtype)


class TwoSidedLinear(nn.Linear):
    """A linear layer whose `weight` is for documents, with another one for questions. Made by `merge_lora`.

    Attributes:
        query_weight: `[out, in]`; not saved with the model.
    """

    query_weight: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        side = _side.get()
        assert side is not None, "weights of one side only hold inside a decoder layer"
        return F.linear(input, self.query_weight if side == "query" else self.weight, self.bias)


class SidedLayer(nn.Module):
    """Mixin of a decoder layer that tells what is in it which side it is on."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        token = _side.set("document" if isinstance(kwargs.get("memory"), DocumentStep) else "query")
        try:
            return super().forward(*args, **kwargs)
        finally:
            _side.reset(token)


@cache
def _sided_class(layer_class: type[nn.Module]) -> type[nn.Module]:
    return type(f"Sided{layer_class.__name__}", (SidedLayer, layer_class), {})


def add_lora(
    model: MSAForCausalLM, spec: LoraSpec, *, seed: int = 0, dtype: torch.dtype | None = torch.float32
) -> list[str]:
    """Give a model's linear layers LoRA that changes nothing yet, in place. Routers and the head are left out.

    Args:
        seed: of A's random values (uniform, as a linear layer's own); B is 0.
        dtype: of A and B; None: the weight's.

    Returns:
        The names of the modules, as `LoraSpec.targets` sees them.

    Raises:
        ValueError: no module fits, or one has LoRA already.
    """
    generator = torch.Generator().manual_seed(seed)
    names = []
    for name, linear in _candidates(model):
        if not re.search(spec.targets, name):
            continue
        if isinstance(linear, LoraLinear):
            raise ValueError(f"{name} has LoRA already")
        a_RI = torch.empty(spec.rank, linear.in_features)
        a_RI.uniform_(-1, 1, generator=generator).mul_(1 / math.sqrt(linear.in_features))
        a_RI = a_RI.to(linear.weight.device, dtype or linear.weight.dtype)
        install(linear, a_RI, a_RI.new_zeros(linear.out_features, spec.rank), spec.alpha / spec.rank, spec.sides)
        names.append(name)
    if not names:
        raise ValueError(f"no linear layer of this model fits {spec.targets!r}; one is called {_example(model)}")
    mark_sides(model)
    return names


def install(
    linear: nn.Linear, a_RI: torch.Tensor, b_OR: torch.Tensor, scale: float, sides: tuple[Side, ...]
) -> LoraLinear:
    """Turn a linear layer into one with LoRA, in place."""
    linear.__class__ = LoraLinear
    assert isinstance(linear, LoraLinear)
    linear.lora_a, linear.lora_b = nn.Parameter(a_RI), nn.Parameter(b_OR)
    linear.lora_scale, linear.lora_sides = scale, sides
    return linear


def mark_sides(model: MSAForCausalLM) -> None:
    """Let the decoder layers that hold LoRA of one side, merged or not, say which side they are on."""
    for layer in _layers(model).values():
        sides = (module.lora_sides for module in layer.modules() if isinstance(module, LoraLinear))
        one_sided = any(len(own) < len(SIDES) for own in sides)
        one_sided |= any(isinstance(module, TwoSidedLinear) for module in layer.modules())
        if one_sided and not isinstance(layer, SidedLayer):
            layer.__class__ = _sided_class(type(layer))


def lora_modules(model: nn.Module) -> dict[str, LoraLinear]:
    """The linear layers with LoRA, by name."""
    return {
        name.removeprefix("backbone."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLinear)
    }


def merge_lora(model: MSAForCausalLM) -> int:
    """Put LoRA into the weights, in place; returns how many modules had any.

    A layer with LoRA of one side then has two weights: a forward costs what the backbone's does, and the model takes
    more memory. In float32 the merged model computes the same but for rounding; in bfloat16 every merged weight is
    rounded once (to 1/256 of itself at most). Where the document side changes, the stored fingerprints are not this
    model's any more, and its config forgets them.
    """
    merged = 0
    modules: dict[str, Any] = {**lora_modules(model)}
    for module in modules.values():
        sides, changed = module.lora_sides, module.merged_weight()
        del module.lora_a, module.lora_b, module.lora_scale, module.lora_sides
        module.__class__ = nn.Linear if len(sides) == len(SIDES) else TwoSidedLinear
        if len(sides) < len(SIDES):
            asked = changed if "query" in sides else module.weight.detach().clone()
            module.register_buffer("query_weight", asked, persistent=False)
        if "document" in sides:
            module.weight.data.copy_(changed)
            model.config.backbone_fingerprint = model.config.document_fingerprint = None
        merged += 1
    mark_sides(model)
    return merged


@contextlib.contextmanager
def trained_lora_off() -> Iterator[None]:
    """Inside, LoRA that trains (is neither merged nor frozen) does nothing, in this thread."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


def linear_modules(model: MSAForCausalLM) -> dict[str, nn.Linear]:
    """The linear layers that may have LoRA, by name."""
    return dict(_candidates(model))


def _candidates(model: MSAForCausalLM) -> Iterator[tuple[str, nn.Linear]]:
    for prefix, layer in _layers(model).items():
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear) and "router_" not in name:
                yield f"{prefix}.{name}", module


def _layers(model: MSAForCausalLM) -> dict[str, nn.Module]:
    """All decoder layers by name."""
    return decoder_layers(model.backbone, range(model.config.text_config.num_hidden_layers))


def _example(model: MSAForCausalLM) -> str:
    return next(_candidates(model), ("nothing",))[0]
