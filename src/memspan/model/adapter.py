"""Adapters: trained weights that belong to one backbone, kept apart from it.

adapter.json          fingerprint of the backbone, the MSA layers, settings it was trained with, what LoRA there is,
                      whether the routers are trained; the fingerprint of what shapes documents, and a sample of the
                      weights by which a changed file is noticed (`memspan.model.fingerprint`)
adapter.safetensors   the weights, by the backbone's own parameter names (routers, and whatever else was trained);
                      LoRA as NAME.lora_a and NAME.lora_b
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from memspan.config import MSAConfig, refuse_score_bias
from memspan.errors import CheckpointError
from memspan.model.fingerprint import fingerprint, sample
from memspan.model.lora import SIDES, Side, install, linear_modules, lora_modules, mark_sides, merge_lora
from memspan.model.modeling import MSAForCausalLM, is_lora, is_router
from memspan.model.shipped import NO_ADAPTER, shipped_adapters

_CONFIG, _WEIGHTS = "adapter.json", "adapter.safetensors"


@dataclass(frozen=True)
class _Lora:
    """How the LoRA of one module is scaled, and where it holds."""

    rank: int
    scale: float
    sides: tuple[Side, ...]


def adapter_weights(
    model: MSAForCausalLM, names: Iterable[str] = (), dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """The weights of an adapter: routers, LoRA, and other trained parameters.

    Args:
        names: further parameters, as `named_parameters` of the model calls them.
        dtype: what they are stored in; None: their own.
    """
    kept = {name: p for name, p in model.named_parameters() if is_router(name) or is_lora(name)}
    kept |= {name: model.get_parameter(name) for name in names}
    return {name: p.detach().to("cpu", dtype or p.dtype).contiguous() for name, p in kept.items()}


def save_adapter(
    model: MSAForCausalLM,
    folder: Path,
    backbone_fingerprint: str,
    names: Iterable[str] = (),
    dtype: torch.dtype | None = None,
    router_trained: bool = True,
) -> None:
    """Write a model's routers, LoRA, and other trained parameters, as an adapter.

    Writes `folder/adapter.json` and `folder/adapter.safetensors`.

    Args:
        backbone_fingerprint: of the backbone the adapter was trained from (`config.backbone_fingerprint` of its
            checkpoint, before training).
        names, dtype: see `adapter_weights`.
        router_trained: False: the adapter is for reading, and its routers mean little yet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = adapter_weights(model, names, dtype)
    save_file(weights, folder / _WEIGHTS)
    lora = {
        name: {"rank": len(module.lora_a), "scale": module.lora_scale, "sides": module.lora_sides}
        for name, module in lora_modules(model).items()
    }
    values = {
        "backbone_fingerprint": backbone_fingerprint,
        "msa_layers": list(model.config.layers),
        "settings": _settings(model.config),
        "router_trained": router_trained,
        "lora": lora,
        "document_fingerprint": model.document_fingerprint(weights),
        "weights_sample": _sample(weights, lora),
    }
    (folder / _CONFIG).write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def apply_adapter(model: MSAForCausalLM, folder: Path, *, verify: bool = False) -> None:
    """Put an adapter's weights into a model, whose router then counts as trained, unless the adapter says otherwise.

    LoRA is merged into the weights, in float32, and rounded once; where it is of one side, a layer then has two weights
    (see `merge_lora`). The encoder fingerprint is that of backbone and adapter as they are stored: banks made without
    the adapter do not fit it any more.

    Args:
        verify: hash what shapes documents, also where a sample says that it is what was saved.

    Raises:
        CheckpointError: no adapter there, a damaged one, or one that belongs to another backbone or other layers, or
            that has a score bias; with `verify`, one that is not what was saved.
    """
    weights = read_weights(folder)
    with _readable(folder):
        values = _read_config(folder)
        belongs_to, layers = values["backbone_fingerprint"], tuple(values["msa_layers"])
        settings = dict(values.get("settings", {}))
        lora = _read_lora(values.get("lora", {}))
    config = model.config
    own = config.backbone_fingerprint or fingerprint(model.named_backbone_weights())
    if belongs_to != own:
        raise CheckpointError(
            f"the adapter in {folder} was trained on another backbone (fingerprint {belongs_to[:12]}, this one's is "
            f"{own[:12]}); use it with the checkpoint it was made for"
        )
    if layers != config.layers:
        raise CheckpointError(f"the adapter in {folder} routes in layers {layers}, the model in {config.layers}")
    own_settings = _settings(config)
    other = [name for name, value in settings.items() if own_settings.get(name) != value]
    if other:
        raise CheckpointError(
            f"the adapter in {folder} was trained with {other[0]} {settings[other[0]]!r}, and this model has "
            f"{own_settings.get(other[0])!r}; convert the backbone with the former"
        )
    _check_weights(model, folder, weights, lora)
    stored = dict(weights)
    _install(model, weights, lora)
    # That of an adapter from before it was stored, or of a changed file, is computed.
    is_same = values.get("weights_sample") == _sample(stored, values.get("lora", {}))
    document = values.get("document_fingerprint") if is_same else None
    if document is None or verify:
        found = model.document_fingerprint(stored)
        if verify and values.get("document_fingerprint", found) != found:
            raise CheckpointError(f"the weights in {folder} differ from the saved ones; train or fetch them again")
        document = found
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            parameters[name].copy_(weight)
    merge_lora(model)
    config.router_trained = bool(values.get("router_trained", True))
    config.backbone_fingerprint, config.document_fingerprint = own, document


def take_lora(model: MSAForCausalLM, folder: Path, but: str) -> None:
    """Give a model the LoRA of an adapter, not merged, in place: for training that leaves it as it is.

    Args:
        but: a regular expression, as `LoraSpec.targets`: modules that get none.

    Raises:
        CheckpointError: there is no readable adapter, or its LoRA fits no module of this model.
    """
    weights = read_weights(folder)
    with _readable(folder):
        lora = _read_lora(_read_config(folder).get("lora", {}))
    _check_weights(model, folder, weights, lora)
    _install(model, weights, {name: item for name, item in lora.items() if not re.search(but, name)})
    mark_sides(model)


def _sample(weights: Mapping[str, torch.Tensor], lora: Mapping[str, Any]) -> str:
    """By which it is noticed that an adapter's weights, or how its LoRA holds, are not what was saved."""
    return sample(weights.items(), settings=json.dumps(lora, sort_keys=True))


def adapter_layers(folder: Path) -> tuple[int, ...]:
    """The layers that an adapter routes in.

    Raises:
        CheckpointError: there is no readable adapter.
    """
    with _readable(folder):
        return tuple(_read_config(folder)["msa_layers"])


def _settings(config: MSAConfig) -> dict[str, Any]:
    """What a model was trained with, beside its weights, and must be served with. `top_k_docs` may be another."""
    template = dataclasses.asdict(config.template_spec)
    names = ("document_prefix", "document_suffix", "context_prefix", "context_suffix", "plain_question")
    names += ("passage", "grounded_question", "round_end", "retrieval_end")
    return {
        "chunk_size": config.chunk_size,
        "position_offset": config.offset,
        "similarity": config.similarity,
        **{f"template.{name}": template[name] for name in names},
    }


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of an adapter as they are stored, LoRA apart: for training that goes on from it.

    Raises:
        CheckpointError: there is no readable adapter.
    """
    with _readable(folder):
        return load_file(folder / _WEIGHTS)


def _read_config(folder: Path) -> dict[str, Any]:
    """
    Raises:
        CheckpointError: the adapter has a score bias.
    """
    values = json.loads((folder / _CONFIG).read_text("utf-8"))
    refuse_score_bias(f"the adapter in {folder}", bool(values.get("score_bias")))
    return values


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turn whatever reading an adapter's files raises into a `CheckpointError`."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        known = ", ".join([NO_ADAPTER, *shipped_adapters()])
        raise CheckpointError(
            f"{folder} holds no readable adapter ({error}); name another folder or one of {known}, or leave it out"
        ) from error


def _read_lora(values: Mapping[str, Mapping[str, Any]]) -> dict[str, _Lora]:
    found = {}
    for name, item in values.items():
        sides: tuple[Side, ...] = tuple(item["sides"])
        if not sides or set(sides) - set(SIDES):
            raise ValueError(f"LoRA of {name} holds on unknown sides {sides}")
        found[name] = _Lora(int(item["rank"]), float(item["scale"]), sides)
    return found


def _install(model: MSAForCausalLM, weights: dict[str, torch.Tensor], lora: Mapping[str, _Lora]) -> None:
    """Give modules their LoRA, whose weights leave `weights`."""
    for name, module in linear_modules(model).items():
        if name in lora:
            a_RI, b_OR = (
                weights.pop(f"backbone.{name}.{part}").to(module.weight.device) for part in ("lora_a", "lora_b")
            )
            install(module, a_RI, b_OR, lora[name].scale, lora[name].sides)


def _check_weights(
    model: MSAForCausalLM, folder: Path, weights: Mapping[str, torch.Tensor], lora: Mapping[str, _Lora]
) -> None:
    """See that every weight has its place in the model, and every place for LoRA its weights.

    Raises:
        CheckpointError: one has not; the message names the first.
    """
    shapes: dict[str, tuple[int, ...]] = {name: tuple(p.shape) for name, p in model.named_parameters()}
    linear = linear_modules(model)
    for name, item in lora.items():
        if name not in linear:
            raise CheckpointError(f"the adapter in {folder} changes {name}, which this model has not")
        shapes[f"backbone.{name}.lora_a"] = (item.rank, linear[name].in_features)
        shapes[f"backbone.{name}.lora_b"] = (linear[name].out_features, item.rank)
    wrong = [name for name, weight in weights.items() if shapes.get(name) != tuple(weight.shape)]
    if wrong:
        raise CheckpointError(
            f"the adapter in {folder} holds weights this model has not, as {wrong[0]} of shape "
            f"{tuple(weights[wrong[0]].shape)}"
        )
    needed = {name for name, _ in model.named_parameters() if is_router(name)} | {n for n in shapes if is_lora(n)}
    lacking = sorted(needed - set(weights))
    if lacking:
        raise CheckpointError(f"the adapter in {folder} lacks {len(lacking)} of its weights, as {lacking[0]}")
