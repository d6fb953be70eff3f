"""Adapters: trained weights that belong to one backbone, kept apart from it.

adapter.json          fingerprint of the backbone, the MSA layers, what the weights are called
adapter.safetensors   the weights, by the backbone's own parameter names (routers, and whatever else was trained)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from memspan.errors import CheckpointError
from memspan.model.fingerprint import fingerprint
from memspan.model.modeling import MSAForCausalLM, is_router

_CONFIG, _WEIGHTS = "adapter.json", "adapter.safetensors"


def save_adapter(model: MSAForCausalLM, folder: Path, backbone_fingerprint: str, names: Iterable[str] = ()) -> None:
    """Write a model's routers, and other trained parameters, as an adapter.

    Writes `folder/adapter.json` and `folder/adapter.safetensors`.

    Args:
        backbone_fingerprint: of the backbone the adapter was trained from (`config.backbone_fingerprint` of its
            checkpoint, before training).
        names: further parameters to keep, as `named_parameters` of the model calls them.
    """
    kept = {name: p for name, p in model.named_parameters() if is_router(name)}
    kept |= {name: model.get_parameter(name) for name in names}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: p.detach().cpu().contiguous() for name, p in kept.items()}, folder / _WEIGHTS)
    values = {"backbone_fingerprint": backbone_fingerprint, "msa_layers": list(model.config.layers)}
    (folder / _CONFIG).write_text(json.dumps(values, indent=2) + "\n")


def apply_adapter(model: MSAForCausalLM, folder: Path) -> None:
    """Put an adapter's weights into a model, whose router then counts as trained.

    The model's encoder fingerprint is computed anew: banks made without the adapter do not fit it any more.

    Raises:
        CheckpointError: no adapter there, a damaged one, or one that belongs to another backbone or other layers.
    """
    try:
        values = json.loads((folder / _CONFIG).read_text())
        weights = load_file(folder / _WEIGHTS)
        belongs_to, layers = values["backbone_fingerprint"], tuple(values["msa_layers"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no readable adapter ({error}); name another, or leave it out") from error
    config = model.config
    own = config.backbone_fingerprint or fingerprint(model.named_backbone_weights())
    if belongs_to != own:
        raise CheckpointError(
            f"the adapter in {folder} was trained on another backbone (fingerprint {belongs_to[:12]}, this one's is "
            f"{own[:12]}); use it with the checkpoint it was made for"
        )
    if layers != config.layers:
        raise CheckpointError(f"the adapter in {folder} routes in layers {layers}, the model in {config.layers}")
    parameters = dict(model.named_parameters())
    wrong = [n for n, w in weights.items() if n not in parameters or parameters[n].shape != w.shape]
    if wrong:
        raise CheckpointError(f"the adapter in {folder} holds weights this model has not, as {wrong[0]}")
    with torch.no_grad():
        for name, weight in weights.items():
            parameters[name].copy_(weight)
    config.router_trained = True
    config.encoder_fingerprint = model.encoder_fingerprint()
