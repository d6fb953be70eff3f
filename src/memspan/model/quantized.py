"""Quantized weights: made while a checkpoint is loaded (torchao, ...), or stored in it (GPTQ, AWQ). Both are loaded by
transformers' own code, which needs packages of each method.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from memspan.config import MSAConfig
from memspan.errors import CheckpointError, UnsupportedBackbone
from memspan.model.backbones import QUANTIZED, RELEASED_TYPE, check_config, first_line, setting
from memspan.model.fingerprint import mapped_weights
from memspan.model.modeling import (
    MSAForCausalLM,
    decoder_layers,
    initial_routers,
    routed_modules,
    set_fingerprints,
)
from memspan.model.probe import check_memory_is_seen, probe

# Names by which methods are told what to leave.
_SKIPPING = ("modules_to_not_convert", "llm_int8_skip_modules")
_ROUTERS = ("router_q_proj", "router_k_proj")
_LEFT = ("lm_head", *_ROUTERS)
_INDEX = "model.safetensors.index.json"


def leaving_routers(quantization: QuantizationConfigMixin) -> QuantizationConfigMixin:
    """A quantization that leaves routers and the language-model head as they are."""
    changed = copy.deepcopy(quantization)
    for name in _SKIPPING:
        if hasattr(changed, name):
            # Some methods compare the ends of modules' names, some match the names of weights.
            patterns = (f".*{left}" for left in _LEFT)
            setattr(changed, name, sorted({*(getattr(changed, name) or ()), *_LEFT, *patterns}))
    return changed


def method_of(quantization: QuantizationConfigMixin | Mapping[str, Any]) -> str:
    """The name of a quantization's method."""
    found = quantization["quant_method"] if isinstance(quantization, Mapping) else quantization.quant_method
    return str(getattr(found, "value", found))


def check_packages(quantization: QuantizationConfigMixin | Mapping[str, Any], device: torch.device) -> None:
    """See that weights quantized in this way can be loaded here, before any is read.

    Raises:
        UnsupportedBackbone: a package is missing, or the method does not run on the device.
    """
    try:
        stored = isinstance(quantization, Mapping)
        given: Any = dict(quantization) if stored else quantization
        quantizer = AutoHfQuantizer.from_config(given, pre_quantized=stored)
        quantizer.validate_environment(device_map={"": device}, weights_only=True)
    except (ImportError, RuntimeError, ValueError) as error:
        raise UnsupportedBackbone(
            f"weights quantized by {method_of(quantization)} cannot be loaded on {device} here: {first_line(error)}; "
            "install what is missing, or convert and load the plain model"
        ) from error


def stored_quantization(config_file: Path) -> dict[str, Any] | None:
    """How the weights beside a config.json are quantized; None: they are not, or by a method that is not served."""
    found = setting(config_file, "quantization_config")
    return found if isinstance(found, dict) and found.get("quant_method") in QUANTIZED else None


def is_copied(config_file: Path) -> bool:
    """Whether the weights beside a source's config.json are copied, not loaded: quantized or released ones."""
    return setting(config_file, "model_type") == RELEASED_TYPE or stored_quantization(config_file) is not None


def read_quantized(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The plain decoder of a folder without its weights (on the meta device), and its tokenizer.

    Raises:
        CheckpointError: a file is damaged.
        UnsupportedBackbone: see `check_config`.
    """
    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        del config.quantization_config  # of modules that our model names otherwise
        check_config(config)
        with torch.device("meta"):
            backbone = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        return backbone, AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot load a model from {folder}: {first_line(error)}") from error


def convert_quantized(folder: Path, into: Path, config: MSAConfig, seed: int) -> MSAConfig:
    """Write a checkpoint of quantized weights, as they are, and of untrained routers. No weight is computed with.

    Writes `into/`: `config.json` with fingerprints, the source's `*.safetensors` with one more for the routers, their
    index, and `generation_config.json` where the source has one.

    Args:
        folder: `stored_quantization` knows how it is quantized.
        into: an existing, empty folder.
        config: of the plain decoder; its quantization and fingerprints are set.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    with torch.device("meta"):
        model = MSAForCausalLM(config)
    prefix, stored = f"{model.base_model_prefix}.", mapped_weights(folder)
    quantization = stored_quantization(folder / "config.json")
    assert quantization is not None, "the caller found it"
    config.quantization_config = _of_modules(model, prefix, quantization, stored)
    dtype = next((w.dtype for w in stored.values() if w.dtype in (torch.float16, torch.bfloat16)), torch.float16)
    routers = {name.removeprefix(prefix): x.to(dtype) for name, x in initial_routers(model, seed).items()}
    _write_files(folder, into, routers)
    set_fingerprints(config, mapped_weights(into))
    config.architectures, config.dtype, config.text_config.dtype = [type(model).__name__], dtype, dtype
    config.save_pretrained(into)
    if (folder / "generation_config.json").is_file():
        shutil.copyfile(folder / "generation_config.json", into / "generation_config.json")
    return config


def _of_modules(
    model: MSAForCausalLM, prefix: str, quantization: Mapping[str, Any], stored: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """The source's quantization by the names of our modules: exactly what is stored in other forms is replaced."""
    linears = [name.removeprefix(prefix) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if quantization["quant_method"] == "awq":
        plain = {name for name in linears if f"{name}.qweight" not in stored}
        return {**quantization, "modules_to_not_convert": sorted({*plain, *_ROUTERS})}
    layers = decoder_layers(model.backbone, range(model.config.text_config.num_hidden_layers))
    return {
        **quantization,
        "block_name_to_quantize": prefix + next(iter(layers)).rpartition(".")[0],
        "modules_in_block_to_quantize": [[name] for name in linears if f"{name}.qweight" in stored],  # compared by ends
    }


def _write_files(folder: Path, into: Path, routers: Mapping[str, torch.Tensor]) -> None:
    """Copy the weights' files, and write one more and an index of all."""
    sources = (
        sorted(set(json.loads((folder / _INDEX).read_text("utf-8"))["weight_map"].values()))
        if (folder / _INDEX).is_file()
        else ["model.safetensors"]
    )
    names = [f"model-{number:05d}-of-{len(sources) + 1:05d}.safetensors" for number in range(1, len(sources) + 2)]
    for source, name in zip(sources, names, strict=False):
        shutil.copyfile(folder / source, into / name)
    save_file(dict(routers), into / names[-1], {"format": "pt"})
    where: dict[str, str] = {}
    for name in names:
        with safe_open(into / name, "pt") as file:
            where |= dict.fromkeys(file.keys(), name)
    size = sum((into / name).stat().st_size for name in names)
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
    (into / _INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


@torch.no_grad()
def check_quantized(model: MSAForCausalLM, quantization: QuantizationConfigMixin | Mapping[str, Any]) -> None:
    """See that quantized weights serve a memory.

    A model whose weights were quantized when it was loaded gets a fingerprint of its own: it computes other latents
    of a document, so a bank of the weights before is refused. Stored ones are probed as `convert` probes plain ones.

    Raises:
        UnsupportedBackbone: routers were quantized, logits are not finite, or memory does not reach a layer; or of
            stored weights, attention differs from the decoder's own.
    """
    method = method_of(quantization)
    for attention in routed_modules(model):
        for linear in (attention.router_q_proj, attention.router_k_proj):
            if type(linear) is not nn.Linear or type(linear.weight.data) is not torch.Tensor:
                raise UnsupportedBackbone(
                    f"{method} quantized the routers, whose scores would be others; have it leave {' and '.join(_LEFT)}"
                )
    ids_BT = torch.arange(8, device=model.device)[None]
    if not bool(model(input_ids=ids_BT).logits.isfinite().all()):
        raise UnsupportedBackbone(f"with weights quantized by {method} the model computes no numbers; use another")
    if isinstance(quantization, Mapping):
        probe(partial(_own_attention, model), model)
        return
    check_memory_is_seen(model)
    settings = json.dumps(quantization.to_dict(), sort_keys=True, default=str)
    of_both = f"{model.config.backbone_fingerprint}\n{settings}"
    model.config.backbone_fingerprint = hashlib.sha256(of_both.encode()).hexdigest()


def _own_attention(model: MSAForCausalLM, **inputs: torch.Tensor) -> Any:
    """What the model's decoder gives with its own attention."""
    before = model.backbone.config._attn_implementation
    model.backbone.set_attn_implementation("eager")
    try:
        return model.backbone(**inputs)
    finally:
        model.backbone.set_attn_implementation(before)
