"""What the machine can do well: device, number format, threads."""

from __future__ import annotations

import torch

from memspan.errors import MemspanError

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str | None = None) -> torch.device:
    """The named device, or the best one present.

    Raises:
        MemspanError: the named device is not present.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MemspanError(f"device {name!r} is not present on this machine; leave it out, or use cpu") from error
    return device


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The named number format, or bfloat16 where the device multiplies it fast (else float32)."""
    if name is None:
        return torch.bfloat16 if fast_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise MemspanError(f"dtype must be one of {', '.join(DTYPES)}, not {name!r}")
    return DTYPES[name]


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are faster than float32 ones: GPUs, and CPUs with AVX512_BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
