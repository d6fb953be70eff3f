"""Parameters in groups, each with its own learning rate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from memspan.model.modeling import MSAForCausalLM, is_lora
from memspan.train.lora import Trainable, make_trainable, trained_parameters
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
    *,
    seed: int = 0,
    frozen_dtype: torch.dtype | None = None,
) -> tuple[ParameterGroup, ...]:
    """Decide what of a model trains, in place (see `make_trainable`), and group it.

    A parameter belongs to the first group whose pattern is found in its name; those of LoRA to a group of their own.
    One that is tied to another (an LM head to the embedding) trains with it.

    Raises:
        ValueError: a group matches nothing, or nothing that an earlier one has not.
    """
    patterns = tuple(group.match for group in groups)
    make_trainable(model, Trainable(patterns, lora), seed=seed, frozen_dtype=frozen_dtype)
    chosen: dict[str, list[str]] = {group.name: [] for group in groups} | ({LORA_GROUP: []} if lora else {})
    for name in trained_parameters(model):
        owner = LORA_GROUP if is_lora(name) else next(g.name for g in groups if re.search(g.match, name))
        chosen[owner].append(name)
    empty = [name for name, found in chosen.items() if not found]
    if empty:
        raise ValueError(f"group {empty[0]!r} matches no parameter that an earlier group has not; see its pattern")
    settings = {group.name: (group.lr_factor, group.weight_decay) for group in groups}
    if lora:
        settings[LORA_GROUP] = (lora.lr_factor, lora.weight_decay)
    return tuple(ParameterGroup(name, tuple(found), *settings[name]) for name, found in chosen.items())
