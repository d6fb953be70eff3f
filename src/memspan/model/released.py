"""The released MSA checkpoint (EverMind-AI/MSA-4B, `model_type: msa`) becomes one of ours.

Only names and settings differ: the backbone is a Qwen3, and a router projection is the only entry of a list there
(`router_q_proj.0.weight`). What is read from `msa_config` is what the released serving code obeys.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import Qwen3Config

from memspan.config import TEMPLATES, MSAConfig
from memspan.errors import CheckpointError, UnsupportedBackbone
from memspan.model.backbones import RELEASED_TYPE, first_line
from memspan.model.fingerprint import mapped_weights
from memspan.model.modeling import MSAForCausalLM, set_fingerprints

TEMPLATE = "msa"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Written files are at most this large (a larger single tensor aside), which bounds what is held in memory.
_SHARD_BYTES = 2**30
_AUX_LOSS_METHODS = ("INFONCE", "INFONCE_FOCAL", "INFONCE_DECOUPLE", "INFONCE_DECOUPLE_FOCAL", "BCE")
# Settings with one value that can be served, and what another would mean.
_REQUIRED = {
    "decouple_router": (
        True,
        "it would route by the attention's own queries and keys; routers of their own are needed",
    ),
    "head_reduce_method": ("mean", "scores are the mean over heads (paper eq. 2)"),
    "query_reduce_method": ("max", "scores are the max over query tokens (paper eq. 2)"),
    "chunk_reduce_method": ("max", "a document scores as its best chunk (paper 3.2)"),
    "decouple_pooling_mode": ("mean", "chunks are mean-pooled (paper 3.2)"),
}
# Fields that say what the checkpoint is, not what the backbone computes.
_NOT_BACKBONE = {
    "architectures",
    "auto_map",
    "model_type",
    "msa_config",
    "dtype",
    "torch_dtype",
    "transformers_version",
}
# The released attention ignores every window.
_NO_WINDOW = {"sliding_window": None, "use_sliding_window": False, "layer_types": None}
_ROUTER_KEY = re.compile(r"(model\.layers\.(\d+)\.self_attn\.router_[qk]_proj)\.(\d+)\.(\w+)")
# Parameters of the training losses, and the rotary frequencies older versions stored; both follow from the config.
_DROPPED_KEY = re.compile(r"temperature|b|(.+\.)?rotary_emb\.(inv_freq|original_inv_freq)")
_FLOATS = {"F64", "F32", "F16", "BF16"}
_LM_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def released_config(
    folder: Path, *, similarity: str | None = None, max_document_tokens: int = 512, name: str | None = None
) -> MSAConfig:
    """Our config of a released checkpoint.

    Args:
        folder: holds `config.json` of `model_type: msa`.
        similarity: "cosine" or "dot"; default: what the released serving code computes, see `served_similarity`.
        max_document_tokens: see `MSAConfig`; the released format has no such setting.
        name: of the checkpoint, kept as the backbone's name. Default: the folder's.

    Raises:
        CheckpointError: no such config, or settings are missing or malformed.
        UnsupportedBackbone: a setting asks for what memory attention does not compute; the message names it.
    """
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text("utf-8"))
        if values["model_type"] != RELEASED_TYPE:
            raise CheckpointError(f"{file} is not of model_type {RELEASED_TYPE}, but {values['model_type']!r}")
        settings = values["msa_config"]
        top_k, chunk_size = _number(settings, "top_k_docs"), _number(settings, "pooling_kernel_size")
        layers = _router_layers(settings["router_layer_idx"], _number(values, "num_hidden_layers"))
        method = settings["aux_loss_method"]
    except KeyError as error:
        raise CheckpointError(f"{file} lacks {error}; it is not a whole released MSA checkpoint") from error
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read as a released MSA checkpoint: {first_line(error)}") from error
    _check_settings(settings)
    backbone = {key: value for key, value in values.items() if key not in _NOT_BACKBONE} | _NO_WINDOW
    if backbone.get("rope_scaling") is None:
        backbone.pop("rope_scaling", None)
    backbone_config = Qwen3Config(architectures=["Qwen3ForCausalLM"], **backbone)
    backbone_config.name_or_path = name or folder.name
    try:
        return MSAConfig(
            backbone_config=backbone_config,
            msa_layers=layers,
            chunk_size=chunk_size,
            top_k_docs=top_k,
            # Queries start right behind the template prefix and the top-k documents, whatever was selected.
            position_offset=top_k,
            similarity=similarity or served_similarity(method),
            template=dataclasses.asdict(TEMPLATES[TEMPLATE]),
            max_document_tokens=max_document_tokens,
            router_trained=True,
        )
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error


def served_similarity(aux_loss_method: str) -> str:
    """What the released serving code scores by: cosine only for the method named exactly "INFONCE", else dot * D**-0.5.

    Its training normalizes for every method whose name contains "INFONCE", so a checkpoint of another such method is
    served there by other scores than it was trained on. Following the served ones is what keeps its figures.

    Raises:
        UnsupportedBackbone: the method is not one of the released code's.
    """
    if aux_loss_method not in _AUX_LOSS_METHODS:
        raise UnsupportedBackbone(
            f"aux_loss_method {aux_loss_method!r} is none of {', '.join(_AUX_LOSS_METHODS)}: how its checkpoint scores "
            "is not known; name the similarity, if you know it"
        )
    return "cosine" if aux_loss_method == "INFONCE" else "dot"


def convert_released(folder: Path, into: Path, config: MSAConfig, dtype: torch.dtype) -> MSAConfig:
    """Write a released checkpoint's model in our format, a shard at a time. The tokenizer is the caller's matter.

    Writes `into/`: `config.json` with fingerprints, `model*.safetensors` (with an index where there are several) and
    `generation_config.json` where the source has one. Peak memory: the written weights, mapped from disk, or one shard
    as read and as written, whichever is more.

    Args:
        folder: `model*.safetensors` of the released format.
        into: an existing, empty folder.
        config: of `released_config(folder)`; its fingerprints are set.
        dtype: of the written weights.

    Raises:
        CheckpointError: weights are missing, damaged, unknown or of other shapes than the config's.
        UnsupportedBackbone: the routers are not single linear maps without bias.
    """
    with torch.device("meta"):
        model = MSAForCausalLM(config)
    model.tie_weights()
    prefix = f"{model.base_model_prefix}."
    expected = {name.removeprefix(prefix): tuple(p.shape) for name, p in model.named_parameters()}
    shards = _plan(_map_keys(_read_headers(folder), expected, config), dtype)
    written: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = _WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(shard, into / name, dtype)
        written |= {key.name: name for key in shard}
    if len(shards) > 1:
        size = sum(key.numel for shard in shards for key in shard) * dtype.itemsize
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(written.items()))}
        (into / _INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    set_fingerprints(config, mapped_weights(into))
    config.architectures, config.dtype, config.text_config.dtype = [type(model).__name__], dtype, dtype
    config.save_pretrained(into)
    if (folder / "generation_config.json").is_file():
        shutil.copyfile(folder / "generation_config.json", into / "generation_config.json")
    return config


@dataclasses.dataclass(frozen=True, slots=True)
class _Key:
    """A weight that goes into our checkpoint: `stored` in `file`, called `name` by us."""

    file: Path
    stored: str
    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()


def _check_settings(settings: Mapping[str, Any]) -> None:
    for name, (only, meaning) in _REQUIRED.items():
        # The pooling mode is written by the released code and never read.
        value = settings.get(name, only if name == "decouple_pooling_mode" else None)
        if value != only:
            raise UnsupportedBackbone(f"{name} {value!r} of msa_config cannot be served, only {only!r}: {meaning}")


def _number(settings: Mapping[str, Any], name: str) -> int:
    value = settings[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    return value


def _router_layers(value: str | Sequence[int], num_layers: int) -> list[int]:
    """`router_layer_idx`, a list or "18,19,20" or "all", as ascending indices."""
    if value == "all":
        return list(range(num_layers))
    return sorted({int(layer) for layer in (value.split(",") if isinstance(value, str) else value)})


def _read_headers(folder: Path) -> list[_Key]:
    """Every weight of a checkpoint, under its stored name; nothing but headers is read."""
    index = folder / _INDEX
    try:
        files = (
            sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values())) if index.is_file() else [_WEIGHTS]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged ({first_line(error)}); fetch the checkpoint again") from error
    keys: dict[str, _Key] = {}
    for file in (folder / name for name in files):
        with _opened(file) as source:
            for stored in source.keys():  # noqa: SIM118 - an open file is no dict
                entry = source.get_slice(stored)
                if entry.get_dtype() not in _FLOATS:
                    raise CheckpointError(
                        f"{stored} of {file} is quantized ({entry.get_dtype()}); take the bf16 weights"
                    )
                if stored in keys:
                    raise CheckpointError(f"{stored} is both in {keys[stored].file} and in {file}; fetch them again")
                keys[stored] = _Key(file, stored, stored, tuple(entry.get_shape()))
    return list(keys.values())


def _map_keys(keys: Iterable[_Key], expected: Mapping[str, tuple[int, ...]], config: MSAConfig) -> list[_Key]:
    """The weights of our checkpoint. Every stored key is used, dropped for a stated reason, or refused."""
    by_name: dict[str, _Key] = {}
    tied_head: _Key | None = None
    for key in keys:
        if _DROPPED_KEY.fullmatch(key.stored):
            continue
        if key.stored == _LM_HEAD and config.tie_word_embeddings:
            tied_head = key
            continue
        name = _our_name(key.stored, config)
        if name not in expected:
            raise CheckpointError(
                f"{key.file} holds {key.stored}, which is no weight of this model; it is not converted"
            )
        if key.shape != expected[name]:
            raise CheckpointError(f"{key.stored} of {key.file} is {key.shape}; its config says {expected[name]}")
        by_name[name] = dataclasses.replace(key, name=name)
    if lacking := sorted(set(expected) - set(by_name)):
        raise CheckpointError(
            f"the checkpoint lacks {len(lacking)} weights of its model (first: {lacking[0]}); fetch it again"
        )
    if tied_head is not None:
        _check_tied(tied_head, by_name[_EMBEDDING])
    return list(by_name.values())


def _our_name(stored: str, config: MSAConfig) -> str:
    if "router_" not in stored:
        return stored
    found = _ROUTER_KEY.fullmatch(stored)
    if found is None:
        raise UnsupportedBackbone(f"{stored} is not laid out as the released routers are (router_q_proj.0.weight)")
    stem, layer, place, leaf = found.groups()
    if leaf != "weight":
        raise UnsupportedBackbone(
            f"{stored}: a router projection with a {leaf} cannot be served, only a plain linear map"
        )
    if place != "0":
        raise UnsupportedBackbone(f"{stored}: a router of more than one linear map cannot be served")
    if int(layer) not in config.layers:
        raise UnsupportedBackbone(f"{stored} belongs to a layer that router_layer_idx does not name ({config.layers})")
    return f"{stem}.weight"


def _check_tied(head: _Key, embedding: _Key) -> None:
    """See that a stored head is the embedding it is said to be tied to."""
    with _opened(head.file) as a, _opened(embedding.file) as b:
        same = head.shape == embedding.shape and torch.equal(a.get_tensor(_LM_HEAD), b.get_tensor(_EMBEDDING))
    if not same:
        raise CheckpointError(
            f"{head.file} holds a {_LM_HEAD} of its own, but config.json ties it to the embedding; "
            "set tie_word_embeddings to false there to use it"
        )


def _plan(keys: Iterable[_Key], dtype: torch.dtype) -> list[list[_Key]]:
    """Weights grouped into the files to write: each from one source file, and of bounded size."""
    shards: list[list[_Key]] = []
    size = 0
    for key in keys:
        key_size = key.numel * dtype.itemsize
        if not shards or shards[-1][0].file != key.file or size + key_size > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += key_size
    return shards


def _write_shard(shard: Sequence[_Key], file: Path, dtype: torch.dtype) -> None:
    with _opened(shard[0].file) as source:
        weights = {key.name: source.get_tensor(key.stored).to(dtype) for key in shard}
    try:
        save_file(weights, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(first_line(error)) from error


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, "pt") as source:
            yield source
    except (FileNotFoundError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} is missing or damaged ({first_line(error)}); fetch the checkpoint again"
        ) from error
