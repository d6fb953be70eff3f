"""A plain decoder becomes an MSA checkpoint; an MSA checkpoint becomes a model ready to use."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from filelock import FileLock
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from memspan.config import TEMPLATES, MSAConfig, TemplateSpec
from memspan.content import TokenContent
from memspan.errors import CheckpointError, MemspanError
from memspan.files import whole_folder
from memspan.model.adapter import adapter_layers, apply_adapter
from memspan.model.backbones import RELEASED_TYPE, check_folder, find_folder, first_line, load_backbone, setting
from memspan.model.loaded import LoadedModel
from memspan.model.modeling import MSAForCausalLM, check_fingerprints, is_router
from memspan.model.packed import DecodeWeights, check_weights
from memspan.model.probe import probe
from memspan.model.quantized import (
    check_packages,
    check_quantized,
    convert_quantized,
    is_copied,
    leaving_routers,
    method_of,
    read_quantized,
    stored_quantization,
)
from memspan.model.released import convert_released, released_config
from memspan.model.runtime import DeviceMap, pick_dtype, pick_one_device
from memspan.model.shipped import find_adapter, known_backbone, known_folder
from memspan.ops.similarity import SIMILARITIES
from memspan.places import gigabytes
from memspan.text.template import PromptTemplate, added_tokens

STORED = "stored"

# Below this size the probe runs in float32, where an attention that is nearly right cannot pass for right.
_EXACT_PROBE_PARAMETERS = 2_000_000_000


class LoadOptions(TypedDict, total=False):
    """How `load` loads a model, beside its names."""

    dtype: str | None
    device: str | None
    device_map: DeviceMap | None
    weights: str | None
    quantization: QuantizationConfigMixin | None
    content_chunk: int | None


def convert(
    source: str | Path,
    out: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    template: str | None = None,
    msa_layers: Sequence[int] | None = None,
    chunk_size: int = 64,
    top_k_docs: int = 16,
    max_document_tokens: int = 512,
    similarity: str | None = None,
    seed: int = 0,
) -> MSAConfig:
    """Turn a plain decoder into an MSA checkpoint with untrained routers. The decoder's weights are not changed.

    A released MSA checkpoint (`model_type: msa`, as EverMind-AI/MSA-4B) becomes one of ours with its trained routers;
    its own settings are kept, and naming others (than these or the defaults) is refused. See `memspan.model.released`.
    Weights that are quantized already (GPTQ, AWQ) are copied as they are, and probed when they are loaded.

    Writes `out/`: `config.json`, `generation_config.json`, `model*.safetensors`, the tokenizer's files. The folder
    appears whole or not at all.

    Args:
        source: see `memspan.model.backbones.load_backbone`.
        out: a folder that does not exist yet, or is empty.
        dtype: of the saved weights, but for quantized ones.
        template: name of a preset; default: chatml where the tokenizer has its markers, else plain.
        msa_layers, chunk_size, top_k_docs, max_document_tokens: see `MSAConfig`.
        similarity: see `MSAConfig`; default: cosine, or what the released serving code computes.
        seed: of the routers' initialization.

    Raises:
        CheckpointError: `source` cannot be loaded, or `out` is not empty.
        UnsupportedBackbone: the decoder cannot be served exactly.
        ValueError: an unknown template or similarity, or a setting that contradicts a released checkpoint's own.
    """
    source, out = str(source), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is not an empty folder; name another --out, or remove it")
    if template is not None and template not in TEMPLATES:
        raise ValueError(f"template must be one of {', '.join(TEMPLATES)}, not {template!r}")
    if similarity is not None:
        SIMILARITIES[similarity]  # an unknown one fails before anything is read
    name = source if "/" not in source or not Path(source).exists() else Path(source).name
    folder = find_folder(source, is_copied)
    if folder is not None and setting(folder / "config.json", "model_type") == RELEASED_TYPE:
        config = released_config(folder, similarity=similarity, max_document_tokens=max_document_tokens, name=name)
        layers = None if msa_layers is None else list(msa_layers)
        _check_requested(config, msa_layers=layers, chunk_size=chunk_size, top_k_docs=top_k_docs, template=template)
        return _save_released(folder, config, dtype, out)
    backbone, tokenizer = load_backbone(source, dtype) if folder is None else read_quantized(folder)
    has_chat_format = {"<|im_start|>", "<|im_end|>"} <= added_tokens(tokenizer)
    spec = TEMPLATES[template or ("chatml" if has_chat_format else "plain")]
    backbone.config.name_or_path = name
    config = MSAConfig(
        backbone_config=backbone.config,
        msa_layers=list(msa_layers) if msa_layers is not None else None,
        chunk_size=chunk_size,
        top_k_docs=top_k_docs,
        similarity=similarity or MSAConfig.similarity,
        max_document_tokens=max_document_tokens,
        template=dataclasses.asdict(spec),
    )
    if folder is not None:
        with _checkpoint_folder(out) as partial:
            convert_quantized(folder, partial, config, seed)
            tokenizer.save_pretrained(partial)
        return config
    if backbone.num_parameters() < _EXACT_PROBE_PARAMETERS:
        backbone.float()
    model = MSAForCausalLM.from_backbone(backbone.eval(), config, seed)
    probe(backbone, model)
    torch.nn.Module.to(model, dtype)
    save_checkpoint(model, tokenizer, out)
    return model.config


def save_checkpoint(model: MSAForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write model and tokenizer into `out/`, which appears whole or not at all."""
    with _checkpoint_folder(out) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


@contextlib.contextmanager
def _checkpoint_folder(out: Path) -> Iterator[Path]:
    """As `whole_folder`, with the error that a command shows."""
    try:
        with whole_folder(out) as partial:
            yield partial
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error}") from error


def _save_released(folder: Path, config: MSAConfig, dtype: torch.dtype, out: Path) -> MSAConfig:
    """Convert a released checkpoint's weights and copy its tokenizer into `out/`."""
    advice = "put the released tokenizer files beside its weights"
    # Without any file, transformers would make up an empty tokenizer.
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise CheckpointError(f"{folder} holds no tokenizer; {advice}")
    try:
        # The backbone's config decides where the tokenizer's own files leave its class open.
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config.text_config, local_files_only=True)
    except Exception as error:  # whatever a damaged file makes the loader raise
        raise CheckpointError(f"the tokenizer in {folder} is damaged ({first_line(error)}); {advice}") from error
    _check_markers(tokenizer, config.template_spec)
    with _checkpoint_folder(out) as partial:
        convert_released(folder, partial, config, dtype)
        tokenizer.save_pretrained(partial)
    return config


def _check_markers(tokenizer: PreTrainedTokenizerBase, spec: TemplateSpec) -> None:
    """See that a tokenizer has the markers that a released checkpoint reads and writes.

    `retrieval_end` may be ordinary text: the released code looks for it in decoded text.
    """
    literals = (spec.document_prefix, spec.document_suffix, spec.context_prefix, spec.context_suffix, spec.round_end)
    lacking = sorted(set(re.findall(r"<\|\w+\|>", "".join(literals))) - added_tokens(tokenizer))
    if not lacking and spec.retrieval_end not in tokenizer.decode(tokenizer.encode(spec.retrieval_end)):
        lacking = [spec.retrieval_end]
    if lacking:
        raise CheckpointError(
            f"the tokenizer lacks {', '.join(lacking)}, which the checkpoint was trained to read and write; put the "
            "released tokenizer files beside its weights"
        )


def _check_requested(config: MSAConfig, **requested: Any) -> None:
    """Refuse settings that contradict those a released checkpoint was trained with. Defaults count as none."""
    own = {name: getattr(config, name) for name in requested} | {"template": config.template_spec.name}
    for name, value in requested.items():
        if value not in (getattr(MSAConfig, name), own[name]):
            raise ValueError(
                f"{name} {value} was asked for, but the checkpoint was trained with {own[name]}; leave it out"
            )


def load(
    path: str | Path | None = None,
    *,
    adapter: str | Path | None = None,
    dtype: str | None = None,
    device: str | None = None,
    device_map: DeviceMap | None = None,
    weights: str | None = None,
    quantization: QuantizationConfigMixin | None = None,
    content_chunk: int | None = None,
    verify: bool = False,
) -> LoadedModel:
    """Load an MSA checkpoint for use.

    Args:
        path: a checkpoint folder, or the name of a known backbone (`memspan.model.shipped`), which is converted once
            into the user's cache; None: smollm2-135m-instruct.
        adapter: a folder with trained weights for this backbone (see `memspan.model.adapter`), the name of a shipped
            adapter, or "none". Default: the shipped adapter of a known backbone, else none. The adapter decides which
            layers route, not the checkpoint.
        dtype: "float32", "bfloat16" or "float16", or "stored": the checkpoint's own, whose files a CPU then maps and
            does not copy; default: what the device computes fast.
        device: a torch device; default: a GPU where there is one.
        device_map: in its place, as transformers takes it: "auto", or a map to one device. A memory serves no model
            that is divided over several.
        weights: packed copies that decoding may read, where they are faster here (CPU only; `memspan.model.packed`).
            "half" (16 bits; the default on a CPU), "int8", "int4"; "exact": none.
        quantization: of transformers, as `TorchAoConfig` or `BitsAndBytesConfig`: weights that are not quantized yet
            are quantized while they are loaded, but for routers and the head. Banks are of the model with one
            quantization, or with none. Only without an adapter, which is added to weights as they are (merge it first,
            and save the model).
        content_chunk: of the banks that are made with it: tokens of which the keys and values of one are kept, so that
            documents can be read without their texts (`memspan.content.TokenContent`). None: means of chunks alone.
        verify: compare all weights, not a sample of them, with the fingerprints that were stored with them.

    Raises:
        CheckpointError: missing, truncated or not an MSA checkpoint; an adapter of another backbone. Or an adapter or
            `quantization` beside weights that are quantized; or, with `verify`, weights that differ from the saved.
        UnsupportedBackbone: the quantized weights serve no memory, or a package that loads them is missing.
        MemspanError: `device_map` divides the model over several devices, or the device has no room for it; or
            `content_chunk` divides no chunk of the model.
    """
    known = known_backbone(path)
    folder = Path(path or "").expanduser() if known is None else known_checkpoint(known)
    check_folder(folder)
    stored = stored_quantization(folder / "config.json")
    num_bytes = 0 if quantization is not None else sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    target = pick_one_device(device, device_map, num_bytes)
    decode_weights: DecodeWeights | None = "half" if target.type == "cpu" else None
    if weights is not None:
        decode_weights = check_weights(weights, target)
    adapter = find_adapter(adapter, known)
    if quantization is not None and stored is not None:
        raise CheckpointError(f"the weights in {folder} are quantized ({method_of(stored)}); load without quantization")
    if adapter is not None and (quantization is not None or stored is not None):
        raise CheckpointError(
            'an adapter cannot be added to quantized weights; give adapter="none", or load it without quantization, '
            "merge it (memspan.model.lora.merge_lora), save the model and load that"
        )
    layers = None if adapter is None else adapter_layers(adapter)
    given: dict[str, Any] = {}
    used = stored if quantization is None else leaving_routers(quantization)
    if used is not None:
        check_packages(used, target)
        decode_weights, given = None, {"device_map": {"": target}}
        given |= {"quantization_config": used} if stored is None else {}
        dtype = dtype or (None if stored is None else STORED)
    try:
        config = MSAConfig.from_pretrained(folder, local_files_only=True)
        if adapter is not None and layers is not None:
            config = _routing_in(config, layers, adapter)
        with _loading_quietly():
            # Without the loading report, weights that a truncated checkpoint lacks would quietly be random.
            loaded: Any = MSAForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype="auto" if dtype == STORED else pick_dtype(dtype, target),
                local_files_only=True,
                output_loading_info=True,
                **given,
            )
        model, info = cast(tuple[MSAForCausalLM, dict[str, Any]], loaded)
        check_fingerprints(model.config, folder, verify=verify)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{folder} is damaged ({first_line(error)}); run memspan convert again") from error
    missing = (key for key in set(info["missing_keys"]) if adapter is None or not is_router(key))  # it brings its own
    lacking = sorted(missing) + sorted(str(key) for key in info["mismatched_keys"])
    if lacking:
        raise CheckpointError(
            f"{folder} lacks {len(lacking)} weights of its model (first: {lacking[0]}); run memspan convert again"
        )
    if adapter is not None:
        apply_adapter(model, adapter, verify=verify)
    template = PromptTemplate(model.config.template_spec, tokenizer)
    if used is None:
        _move(model, target)
    else:
        check_quantized(model.eval(), used)
    model.decode_weights = decode_weights
    content = None if content_chunk is None else TokenContent.of(model.config, content_chunk)
    return LoadedModel(model.eval(), template, folder, adapter, content)


def _move(model: MSAForCausalLM, device: torch.device) -> None:
    """
    Raises:
        MemspanError: there is no room for it.
    """
    try:
        torch.nn.Module.to(model, device)
    except torch.OutOfMemoryError as error:
        size = gigabytes(sum(weight.nbytes for weight in model.parameters()), up=True)
        raise MemspanError(
            f"{device} has no room for the model, whose weights take {size} in {model.dtype}; use --dtype bfloat16, "
            "--device cpu, or from Python quantization=..."
        ) from error


def _routing_in(config: MSAConfig, layers: tuple[int, ...], adapter: Path) -> MSAConfig:
    """A checkpoint's config with the layers of an adapter.

    Raises:
        CheckpointError: the backbone has not these layers.
    """
    if layers == config.layers:
        return config
    try:
        return MSAConfig.from_dict({**config.to_dict(), "msa_layers": list(layers)})
    except ValueError as error:
        raise CheckpointError(f"the adapter in {adapter} belongs to another backbone: {first_line(error)}") from error


@contextlib.contextmanager
def _loading_quietly() -> Iterator[None]:
    """Keep transformers from telling of missing weights: `load` reads its report, and says what matters."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def known_checkpoint(name: str) -> Path:
    """A known backbone as an MSA checkpoint, converted at the first call and kept in the user's cache."""
    folder = known_folder(name)
    if (folder / "config.json").is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not (folder / "config.json").is_file():
                convert(name, folder)
    except OSError as error:
        raise CheckpointError(f"cannot write {folder} ({error}); set MEMSPAN_CACHE to a folder that can be") from error
    return folder
