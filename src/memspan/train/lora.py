"""What of a model trains: routers, LoRA, and whatever else is named; in which number formats."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from memspan.model.lora import LoraSpec, add_lora
from memspan.model.modeling import MSAForCausalLM, is_lora, is_router

ROUTERS = r"\.router_"


@dataclass(frozen=True)
class Trainable:
    """What trains; all else is frozen. Checked when built.

    Attributes:
        patterns: regular expressions, searched in parameter names as `model.layers.20.self_attn.q_proj.weight`.
            Routers only is the default; `upper_layers(20)` names layers, `"."` everything.
        lora: low-rank changes that the model is given, beside what `patterns` names. Those it has already are frozen.
    """

    patterns: tuple[str, ...] = (ROUTERS,)
    lora: LoraSpec | None = None

    def __post_init__(self) -> None:
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"not a regular expression: {pattern!r} ({error})") from error


def upper_layers(first: int) -> str:
    """The pattern of all parameters in layers `first` and above."""
    return rf"\.layers\.({'|'.join(str(layer) for layer in range(first, 1000))})\."


def make_trainable(
    model: MSAForCausalLM,
    trainable: Trainable,
    *,
    seed: int = 0,
    frozen_dtype: torch.dtype | None = None,
) -> list[str]:
    """Freeze a model but for what trains, in place; what trains becomes float32, the masters that an optimizer steps.

    With a bfloat16 backbone, routers and LoRA run as they are. Where other parameters train as well, the forward has to
    run under `torch.autocast` in bfloat16.

    Args:
        seed: of LoRA's initialisation.
        frozen_dtype: what frozen parameters become; None: they stay as they are.

    Returns:
        Names of the trained parameters that are neither routers nor LoRA, for `save_adapter`.

    Raises:
        ValueError: a pattern fits no parameter.
    """
    given = add_lora(model, trainable.lora, seed=seed) if trainable.lora is not None else []
    changes = {f"{prefix}.{part}" for prefix in given for part in ("lora_a", "lora_b")}
    found: set[str] = set()
    further = []
    for name, parameter in model.named_parameters():
        fitting = {pattern for pattern in trainable.patterns if re.search(pattern, name)}
        found |= fitting
        parameter.requires_grad_(bool(fitting) or name.removeprefix("backbone.") in changes)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        elif frozen_dtype is not None:
            parameter.data = parameter.data.to(frozen_dtype)
        if fitting and not is_router(name) and not is_lora(name):
            further.append(name)
    lacking = sorted(set(trainable.patterns) - found)
    if lacking:
        raise ValueError(f"{lacking[0]!r} fits no parameter; one is called {next(model.named_parameters())[0]}")
    return further


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """What trains, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
