"""The layers below the first MSA layer never see memory: what they computed of a token holds for all later rounds.

A context that grows at its end (paper 3.5) runs only its new tokens through these layers, from their cache; the states
that leave them for the tokens before are put in front of the first MSA layer. The layers from there on see other
documents in every round, so they run for all tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class LowerStates:
    """For one forward: what the lower layers need not compute again. Handed in as `QueryStep.lower`.

    Attributes:
        entering_BKF: states that left the lower layers for the first K tokens of every context (left-padded as the
            batch is); the caches of these layers hold the same K tokens. The forward gets all T tokens.
        entered: after the forward, one entry: those states for all tokens, `[B, T, F]`.
    """

    entering_BKF: torch.Tensor
    entered: list[torch.Tensor] = field(default_factory=list)


def keep_lower(layers: list[nn.Module]) -> None:
    """Let decoder layers, from the first on, leave out tokens that a step's `lower` has the states of.

    They do nothing in a forward without it. In transformers a decoder hands its layers tensors of all tokens
    (positions, rotary embeddings), which are cut to the new ones here.
    """
    for place, layer in enumerate(layers):
        layer.register_forward_pre_hook(_cut_first if place == 0 else _cut, with_kwargs=True)
    if layers:
        layers[-1].register_forward_hook(_join, with_kwargs=True)


def _lower(kwargs: dict[str, Any]) -> LowerStates | None:
    return getattr(kwargs.get("memory"), "lower", None)


def _cut_first(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    lower = _lower(kwargs)
    if lower is None:
        return None
    assert args, "decoders hand their layers the hidden states by position"
    num_kept = lower.entering_BKF.shape[1]
    return (args[0][:, num_kept:], *args[1:]), _newest(kwargs, num_kept, args[0].shape[1])


def _cut(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    lower = _lower(kwargs)
    if lower is None:
        return None
    num_kept = lower.entering_BKF.shape[1]
    return args, _newest(kwargs, num_kept, num_kept + args[0].shape[1])


def _newest(kwargs: dict[str, Any], num_kept: int, num_tokens: int) -> dict[str, Any]:
    """Arguments that hold something of all tokens, `[B, T, ...]`, for those after the first `num_kept`."""

    def cut(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(cut, value))
        whole = isinstance(value, torch.Tensor) and value.dim() >= 2 and value.shape[1] == num_tokens
        return value[:, num_kept:] if whole else value

    return {name: cut(value) for name, value in kwargs.items()}


def _join(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    lower = _lower(kwargs)
    if lower is None:
        return None
    assert isinstance(output, torch.Tensor), "decoder layers return their hidden states"
    entered_BTF = torch.cat([lower.entering_BKF.to(output.dtype), output], dim=1)
    lower.entered.append(entered_BTF)
    return entered_BTF
