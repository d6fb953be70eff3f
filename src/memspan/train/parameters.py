"""What of a model trains: routers, LoRA and whatever else is named, in groups with learning rates of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from memspan.model.lora import LoraSpec, add_lora
from memspan.model.modeling import MSAForCausalLM, is_lora
from memspan.train.settings import GroupSettings, LoraSettings

ROUTERS = r"\.router_"
LORA_GROUP = "lora"


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters by name, as `named_parameters` of the model calls them."""

    name: str
    parameters: tuple[str, ...]
    lr_factor: float = 1.0
    weight_decay: float = 0.0


def make_trainable(
    model: MSAForCausalLM,
    patterns: Sequence[str] = (ROUTERS,),
    lora: LoraSpec | None = None,
    *,
    seed: int = 0,
    frozen_dtype: torch.dtype | None = None,
    convert: bool = True,
) -> dict[str, torch.nn.Parameter]:
    """Freeze a model but for what trains, in place; what trains becomes float32, the masters that an optimizer steps.

    With a bfloat16 backbone, routers and LoRA run as they are. Where other parameters train as well, the forward has to
    run under `torch.autocast` in bfloat16.

    Args:
        patterns: regular expressions, searched in names as `model.layers.20.self_attn.q_proj.weight`.
        lora: low-rank changes that the model is given, beside what `patterns` name. Those it has already are frozen.
        seed: of LoRA's initialization.
        frozen_dtype: what frozen parameters become; None: they stay as they are.
        convert: False: all stay in their number format.

    Returns:
        What trains, by name.
    """
    given = add_lora(model, lora, seed=seed) if lora is not None else []
    changes = {f"{prefix}.{part}" for prefix in given for part in ("lora_a", "lora_b")}
    trained: dict[str, torch.nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        trains = any(re.search(pattern, name) for pattern in patterns) or name.removeprefix("backbone.") in changes
        parameter.requires_grad_(trains)
        if trains:
            trained[name] = parameter
        if convert:
            parameter.data = parameter.data.to(torch.float32 if trains else frozen_dtype or parameter.dtype)
    return trained


def choose_parameters(
    model: MSAForCausalLM,
    groups: Sequence[GroupSettings],
    lora: LoraSettings | None = None,
    *,
    seed: int = 0,
    frozen_dtype: torch.dtype | None = None,
    convert: bool = True,
) -> tuple[ParameterGroup, ...]:
    """Decide what of a model trains, in place (see `make_trainable`), and group it.

    A parameter belongs to the first group whose pattern is found in its name; those of LoRA to a group of their own.
    One that is tied to another (an LM head to the embedding) trains with it.

    Raises:
        ValueError: a group matches nothing, or nothing that an earlier one has not.
    """
    how = {"seed": seed, "frozen_dtype": frozen_dtype, "convert": convert}
    trained = make_trainable(model, [group.match for group in groups], lora, **how)
    rates = {group.name: (group.lr_factor, group.weight_decay) for group in groups}
    if lora:
        rates[LORA_GROUP] = (lora.lr_factor, lora.weight_decay)
    chosen: dict[str, list[str]] = {name: [] for name in rates}
    for name in trained:
        owner = LORA_GROUP if is_lora(name) else next(g.name for g in groups if re.search(g.match, name))
        chosen[owner].append(name)
    if empty := [name for name, found in chosen.items() if not found]:
        raise ValueError(
            f"group {empty[0]!r} matches no parameter that an earlier group has not; see its pattern: one parameter is "
            f"called {next(model.named_parameters())[0]}"
        )
    return tuple(ParameterGroup(name, tuple(found), *rates[name]) for name, found in chosen.items())
