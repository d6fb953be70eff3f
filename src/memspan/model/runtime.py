"""What the machine can do well: device, number format, threads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch

from memspan.errors import MemspanError
from memspan.places import gigabytes
from memspan.text.packing import BATCH_TOKENS

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

DeviceMap = str | int | torch.device | Mapping[str, str | int | torch.device]
"""As transformers takes it: a device, one for parts of a model by name, or how it is to be chosen."""

_CHOOSING = ("auto", "balanced", "balanced_low_0", "sequential")

# Derived, not measured: one layer's feed-forward of Qwen3-4B (2 x 2,560 x 9,728 weights read once) then multiplies long
# enough to hide its launches, and holds about 1 GB.
_ACCELERATOR_TOKENS = 16_384


def pick_device(name: str | None = None) -> torch.device:
    """The named device, or that of the environment variable MEMSPAN_DEVICE, or the best one present.

    Raises:
        MemspanError: the named device is not present.
    """
    name = name or os.environ.get("MEMSPAN_DEVICE")
    if not name:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MemspanError(f"device {name!r} is not present on this machine; leave it out, or use cpu") from error
    return device


def pick_one_device(name: str | None, device_map: DeviceMap | None, num_bytes: int) -> torch.device:
    """The device of a model that is named, or that a `device_map` of transformers puts it on: a memory serves a model
    that is on one.

    Args:
        num_bytes: of its weights, which must fit where the map leaves the choice of the device.

    Raises:
        MemspanError: both are given, or the map names several devices, or none, or leaves the choice where there is
            no room on one.
    """
    if device_map is None:
        return pick_device(name)
    if name is not None:
        raise MemspanError(f"give device={name!r} or device_map={device_map!r}, not both")
    devices = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    names = sorted({f"cuda:{one}" if isinstance(one, int) else str(one) for one in devices})
    _check_one(names)
    if names[0] not in _CHOOSING:
        return pick_device(names[0])
    device = pick_device()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else num_bytes
    if num_bytes > free:
        raise MemspanError(
            f"device_map={names[0]!r} would have to divide the model: its weights take "
            f"{gigabytes(num_bytes, up=True)}, and {device} has {gigabytes(free)} free; make it smaller "
            "(quantization=...), or use device='cpu'"
        )
    return device


def check_one_device(model: torch.nn.Module) -> None:
    """See that a model that somebody else has loaded is on one device.

    Raises:
        MemspanError: it is divided over several, or parts of it are on disk (those have no data: device "meta").
    """
    _check_one(sorted({str(tensor.device) for tensor in (*model.parameters(), *model.buffers())}))


def _check_one(names: Sequence[str]) -> None:
    if len(names) != 1 or names[0] in ("disk", "meta"):
        raise MemspanError(
            f"device_map puts the model on {', '.join(names) or 'no device'}, and a memory serves one device; "
            'name one (device_map={"": 0}), make it smaller (quantization=...), or run one per device (torchrun)'
        )


def encode_tokens(device: torch.device) -> int:
    """Padded tokens per forward that encode fast on a device: on a GPU more of them fill it."""
    return BATCH_TOKENS if device.type == "cpu" else _ACCELERATOR_TOKENS


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The named number format, or bfloat16 where the device multiplies it fast (else float32)."""
    if name is None:
        return torch.bfloat16 if fast_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise MemspanError(f"dtype must be one of {', '.join(DTYPES)}, not {name!r}")
    return DTYPES[name]


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are faster than float32 ones.

    They are on GPUs that have them, and on CPUs with AVX512_BF16, AMX, or ARM's BF16 (Graviton3, Apple M2, and newer)
    where torch has oneDNN, which alone uses them (it is not in torch for macOS).
    """
    if device.type in ("cuda", "xpu"):
        return torch.get_device_module(device).is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    if device.type == "cpu":
        if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() == "AVX2":
            return False
        can = torch.cpu.get_capabilities()
        return any(can.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False
