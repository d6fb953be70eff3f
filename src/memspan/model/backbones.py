"""Where a backbone comes from: a local folder, a `.gguf` file, a hub id, or a name that memspan knows."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import shutil
import socket
import tempfile
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from numpy.typing import NDArray
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from memspan.config import MSAConfig
from memspan.errors import CheckpointError, MemspanError, UnsupportedBackbone
from memspan.files import file_sha256
from memspan.model.shipped import BACKBONES, KnownBackbone, known_backbone
from memspan.places import cache_folder, quoted

RELEASED_TYPE = "msa"
QUANTIZED = ("gptq", "awq")
"""Methods whose checkpoints are converted as they are (`memspan.model.quantized`)."""

# Files of a checkpoint on the hub that are read where its weights are not loaded by transformers.
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
_HUB_TIMEOUT_SECONDS = 5.0
_SOFTMAX_LAYERS = {"full_attention", "sliding_attention"}


def load_backbone(source: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a plain decoder and its tokenizer.

    Args:
        source: a folder in Hugging Face format, a `.gguf` file, a hub id (`org/name`), or one of `BACKBONES`.
        dtype: of the loaded weights; quantized GGUF weights are unpacked into it.

    Raises:
        CheckpointError: nothing can be loaded from `source`; the message says why and what to do.
        UnsupportedBackbone: the decoder's kind of attention cannot be served; see `check_config`.
    """
    path = Path(source).expanduser()
    try:
        if (name := known_backbone(source)) is not None:
            with known_gguf(name) as path:
                return _load_gguf(path, dtype)
        if path.suffix == ".gguf":
            return _load_gguf(path, dtype)
        if path.is_dir():
            return _load(str(path), dtype, local_files_only=True)
        if path.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
            raise CheckpointError(
                f"{source} is neither a checkpoint folder, a .gguf file nor a hub id (org/name); "
                f"name one of these, or {' or '.join(BACKBONES)}"
            )
        return _load_from_hub(source, dtype)
    except MemspanError:
        raise
    except Exception as error:  # whatever a damaged file or an unknown architecture makes the loaders raise
        raise CheckpointError(f"cannot load a model from {source}: {first_line(error)}") from error


def check_config(config: PretrainedConfig) -> None:
    """Refuse what cannot work, before any weight is read.

    Raises:
        UnsupportedBackbone: encoder-decoder, latent (MLA), linear or chunked attention; the message names it.
    """
    name = config.model_type
    text = config.get_text_config(decoder=True)
    if name == MSAConfig.model_type:
        raise UnsupportedBackbone("the source is an MSA checkpoint already; convert the plain model it was made from")
    if getattr(config, "quantization_config", None):
        raise UnsupportedBackbone(
            f"the weights of this {name} are quantized; convert the model that they were made from, and quantize it "
            f"when it is loaded: memspan.load(FOLDER, quantization=...); only {' and '.join(QUANTIZED)} are copied"
        )
    if config.is_encoder_decoder:
        raise UnsupportedBackbone(f"{name} is an encoder-decoder; memory needs a decoder-only model")
    if getattr(text, "kv_lora_rank", None):
        raise UnsupportedBackbone(f"{name} uses multi-head latent attention (kv_lora_rank); its keys cannot be pooled")
    other = sorted(set(getattr(text, "layer_types", None) or ()) - _SOFTMAX_LAYERS)
    if other:
        raise UnsupportedBackbone(f"{name} has layers of type {', '.join(other)}; only softmax attention can be served")


def find_folder(source: str, is_meant: Callable[[Path], bool]) -> Path | None:
    """The folder of a checkpoint, fetched if `source` is a hub id; None: it is not one that is meant.

    Args:
        is_meant: looks at its config.json, which may be missing.

    Raises:
        CheckpointError: it is meant, and its files cannot be fetched.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder if is_meant(folder / "config.json") else None
    if folder.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        return None
    with hub_access() as unreachable:
        try:
            config_file = hf_hub_download(source, "config.json", local_files_only=unreachable is not None)
        except Exception:  # whatever the hub client raises: loading it as a plain model meets it again and names it
            return None
        if not is_meant(Path(config_file)):
            return None
        try:
            return Path(snapshot_download(source, allow_patterns=_WANTED, local_files_only=unreachable is not None))
        except Exception as error:
            raise CheckpointError(
                f"cannot fetch {source}: {first_line(error)}; try again, or name a local folder"
            ) from error


def setting(config_file: Path, name: str) -> Any:
    """A setting of a config.json; None where it, or the file, is missing or damaged."""
    try:
        return json.loads(config_file.read_text("utf-8")).get(name)
    except (OSError, ValueError, AttributeError):
        return None


@contextlib.contextmanager
def known_gguf(name: str) -> Iterator[Path]:
    """The file of a known backbone, checked by sha256: from its packages where they are installed, else from the hub.

    A file whose packages hold it in parts is put together in the cache folder, and removed afterwards.

    Raises:
        CheckpointError: it is not installed and the hub has it not or cannot be reached, or its bytes are others.
    """
    known = BACKBONES[name]
    parts = _installed_parts(known)
    if len(parts) == 1:
        yield _checked(parts[0], known)
    elif not parts:
        yield _checked(_from_hub(name, known), known)
    else:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as joined:
            path = Path(joined) / known.file
            with path.open("wb") as file:
                for part in parts:
                    with part.open("rb") as piece:
                        shutil.copyfileobj(piece, file)
            yield _checked(path, known)


def _installed_parts(known: KnownBackbone) -> list[Path]:
    """The files that hold a backbone, in order; none unless all their packages are installed."""
    parts = []
    for module, path in known.parts:
        # find_spec does not import the package, whose own dependencies are neither needed nor installed.
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            return []
        parts.append(Path(next(iter(spec.submodule_search_locations))) / path)
    return parts


def _checked(path: Path, known: KnownBackbone) -> Path:
    if not path.is_file() or file_sha256(path) != known.sha256:
        command = known.install.replace("install", "install --force-reinstall", 1)
        raise CheckpointError(f"{path} is missing or not the known file; run: {command}")
    return path


def _from_hub(name: str, known: KnownBackbone) -> Path:
    remedy = f"run: {known.install} (or name a model of your own)"
    if not known.hub:
        raise CheckpointError(f"the backbone {name} is not installed; {remedy}")
    with hub_access() as unreachable:
        try:
            found = hf_hub_download(known.hub, known.file, local_files_only=unreachable is not None)
        except (OSError, HfHubHTTPError) as error:
            why = unreachable or f"{known.hub} does not give it ({first_line(error)})"
            raise CheckpointError(f"the backbone {name} is not on this machine, and {why}; {remedy}") from error
    return Path(found)


def _load_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; name an existing .gguf file")
    folder, name = str(path.parent), path.name
    # Without `dequantize` the weights stay packed and such a model cannot be saved.
    unpack = GgufConfig(dequantize=True)  # reading a .gguf takes long; its config is checked with the model
    with _parsed_once():
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, quantization_config=unpack, dtype=dtype, attn_implementation="eager"
        )
        check_config(model.config)
        return model, AutoTokenizer.from_pretrained(folder, gguf_file=name)


@contextlib.contextmanager
def _parsed_once() -> Iterator[None]:
    """Inside, transformers parses a .gguf file once: it would for the config, the weights and the tokenizer each."""
    import gguf  # nothing else needs it

    reader = gguf.GGUFReader

    class ArrayReader(reader):
        """It slices the file some million times, which takes five times as long of numpy's memory maps."""

        @property
        def data(self) -> NDArray[np.uint8]:
            return self._data

        @data.setter
        def data(self, mapped: NDArray[np.uint8]) -> None:
            self._data = np.asarray(mapped)

    gguf.GGUFReader = functools.cache(ArrayReader)
    try:
        yield
    finally:
        gguf.GGUFReader = reader


def _load(source: str, dtype: torch.dtype, local_files_only: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    check_config(AutoConfig.from_pretrained(source, local_files_only=local_files_only))
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, attn_implementation="eager", local_files_only=local_files_only
    )
    return model, AutoTokenizer.from_pretrained(source, local_files_only=local_files_only)


def _load_from_hub(source: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with hub_access() as unreachable:
        try:
            return _load(source, dtype, local_files_only=unreachable is not None)
        except OSError as error:
            if unreachable is None:
                raise
            raise CheckpointError(
                f"{source} is not in the local Hugging Face cache and {unreachable}; "
                f"name a local folder or .gguf file, or {' or '.join(BACKBONES)}"
            ) from error


@contextlib.contextmanager
def hub_access() -> Iterator[str | None]:
    """Gives why the hub cannot be asked now, or None if it can. Inside, the hub client tries nothing in vain."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "ON", "YES")
    if not offline and _hub_answers():
        yield None
        return
    before = hub_constants.HF_HUB_OFFLINE
    hub_constants.HF_HUB_OFFLINE = True
    try:
        yield "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached ({_HUB_TIMEOUT_SECONDS:.0f} s)"
    finally:
        hub_constants.HF_HUB_OFFLINE = before


def _hub_answers() -> bool:
    """Whether the hub (or the proxy before it) takes a connection in time; the hub client itself would retry longer."""
    endpoint = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxies = urllib.request.getproxies()
    proxy = proxies.get(endpoint.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(endpoint.hostname or ""):
        target = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    else:
        target = endpoint
    port = target.port or (443 if target.scheme == "https" else 80)
    connected = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((target.hostname, port), timeout=_HUB_TIMEOUT_SECONDS).close()
            connected.set()

    # In a thread, because the look-up of the name has no timeout of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_HUB_TIMEOUT_SECONDS)
    return connected.is_set()


def first_line(error: BaseException) -> str:
    """What an error of another library says, without its paragraphs of advice."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def check_folder(folder: Path) -> None:
    """See that a folder holds an MSA checkpoint, before anything is loaded from it.

    Raises:
        CheckpointError: the folder holds no MSA checkpoint; the message says what it holds and what to do.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise CheckpointError(
            f"{folder} is not a checkpoint folder (no config.json); make one with: memspan convert; "
            f"or name a known model: {', '.join(BACKBONES)}"
        )
    try:
        model_type = json.loads(config_file.read_text("utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{config_file} is damaged ({error}); run memspan convert again") from error
    if model_type is None:
        raise CheckpointError(
            f"{folder} is not a checkpoint folder (its config.json names no model_type); make one with: memspan convert"
        )
    if model_type == RELEASED_TYPE:
        raise CheckpointError(
            f"{folder} holds a released MSA checkpoint; run: memspan convert {quoted(folder)} --out NEW_FOLDER"
        )
    if model_type != MSAConfig.model_type:
        raise CheckpointError(
            f"{folder} holds a plain {model_type} model without memory; "
            f"run: memspan convert {quoted(folder)} --out NEW_FOLDER"
        )
