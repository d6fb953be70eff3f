"""What of a model trains: parameters chosen by patterns, in groups with their own learning rate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from memspan.model.modeling import MSAForCausalLM
from memspan.train.settings import GroupSettings, LoraSettings

LORA_GROUP = "lora"


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters by name, as `named_parameters` of the model calls them."""

    name: str
    parameters: tuple[str, ...]
    lr_factor: float = 1.0
    weight_decay: float = 0.0


def choose_parameters(
    model: MSAForCausalLM,
    groups: Sequence[GroupSettings],
    lora: LoraSettings | None = None,
    frozen_dtype: torch.dtype = torch.float32,
) -> tuple[ParameterGroup, ...]:
    """Decide what trains: it is kept in float32 and requires gradients; the rest does not, in `frozen_dtype`.

    A parameter belongs to the first group whose pattern is found in its name; those of LoRA to a group of their own.
    One that is tied to another (an LM head to the embedding) trains with it.

    Raises:
        ValueError: a group matches nothing.
    """
    chosen: dict[str, list[str]] = {group.name: [] for group in groups}
    if lora:
        chosen[LORA_GROUP] = []
    for name, parameter in model.named_parameters():
        owner = LORA_GROUP if lora and "lora_" in name else _first_match(name, groups)
        if owner is not None:
            chosen[owner].append(name)
        parameter.requires_grad_(owner is not None)
        parameter.data = parameter.data.to(torch.float32 if owner is not None else frozen_dtype)
    empty = [name for name, found in chosen.items() if not found]
    if empty:
        raise ValueError(f"group {empty[0]!r} matches no parameter that an earlier group has not; see its pattern")
    settings = {group.name: (group.lr_factor, group.weight_decay) for group in groups}
    if lora:
        settings[LORA_GROUP] = (lora.lr_factor, lora.weight_decay)
    return tuple(ParameterGroup(name, tuple(found), *settings[name]) for name, found in chosen.items())


def _first_match(name: str, groups: Sequence[GroupSettings]) -> str | None:
    return next((group.name for group in groups if re.search(group.match, name)), None)
