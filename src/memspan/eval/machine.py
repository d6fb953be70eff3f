"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from memspan.model.convert import LoadedModel
from memspan.ops.amx import TOKEN_STEP, amx_largest

# Of a CPU, what decides which kernels run: as torch calls them, and as Linux calls those of ARM.
_FLAGS = (
    *("avx2", "avx_vnni", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "bf16"),
)
_CLASSES = {"AMX": "amx_int8", "AVX-512": "avx512_f", "AVX2": "avx2", "ARM": "asimddp"}
# Values of ONEDNN_MAX_CPU_ISA, and beginnings of others; see oneDNN's "CPU Dispatcher Control".
_ISAS = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "DEFAULT", "ALL")
_ISA_BEGINNINGS = ("AVX512_CORE_", "AVX10_")
_LOAD_AT_START = os.getloadavg() if hasattr(os, "getloadavg") else ()


def machine(loaded: LoadedModel | None = None) -> dict[str, Any]:
    """Where something is measured: system, CPU and what of it may be used, threads, memory, versions.

    `cpu_class` is AMX, AVX-512, AVX2 or ARM: the best that oneDNN may use. `load_average` is that of the time when this
    module was imported, the start of a benchmark.

    Args:
        loaded: the model that is measured, if one is.
    """
    known, limit = torch.cpu.get_capabilities(), os.environ.get("ONEDNN_MAX_CPU_ISA")
    flags = [name for name in _FLAGS if known.get(name) or name in _arm_features()]
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": known.get("cpu_name") or platform.processor() or platform.machine(),
        "cpu_class": _cpu_class(flags, limit),
        "cpu_flags": flags,
        "isa": {
            "torch": torch.backends.cpu.get_cpu_capability(),
            "ONEDNN_MAX_CPU_ISA": limit if limit is None or is_isa(limit) else f"{limit} (unknown: ignored)",
            "ATEN_CPU_CAPABILITY": os.environ.get("ATEN_CPU_CAPABILITY"),
            "compiled": _uses_compiled(),
        },
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "load_average": [round(load, 2) for load in _LOAD_AT_START],
        "device": None if loaded is None else str(loaded.model.device),
        "dtype": None if loaded is None else str(loaded.model.dtype).removeprefix("torch."),
        **{name: _version(name) for name in ("memspan", "torch", "transformers")},
    }


def is_isa(limit: str) -> bool:
    """Whether oneDNN knows a value of `ONEDNN_MAX_CPU_ISA`; it ignores others."""
    return limit.upper() in _ISAS or limit.upper().startswith(_ISA_BEGINNINGS)


def _cpu_class(flags: list[str], limit: str | None) -> str:
    usable, named = dict(_CLASSES), (limit or "").upper()
    if named.startswith(("SSE", "AVX")) and "AMX" not in named:
        del usable["AMX"]
    if named.startswith(("SSE", "AVX")) and not named.startswith(("AVX512_", "AVX10_")):
        del usable["AVX-512"]
    return next((name for name, flag in usable.items() if flag in flags), platform.machine())


def _arm_features() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return next((line.partition(":")[2].split() for line in lines if line.startswith("Features")), [])


def _uses_compiled() -> bool:
    """Whether a compiled file of this package is used."""
    return amx_largest(torch.ones(1, TOKEN_STEP, 64, dtype=torch.int8), torch.ones(1)) is not None


def _memory_gib() -> float:
    return round(psutil.virtual_memory().total / 2**30, 1)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "run from its source, not installed"
