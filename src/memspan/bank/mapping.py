"""Safetensors files mapped into memory: pages are read when touched, asked for ahead, and given back when asked.

What a mapping has touched counts as resident memory of the process until it is given back; the file stays in the
system's page cache either way. A mapping keeps no file descriptor, and outlives the file's name.
"""

from __future__ import annotations

import ctypes
import functools
import json
import math
import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

_DTYPES = {
    "I64": torch.int64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
}
# The kernel maps up to so many bytes around a page that was touched (a large folio); giving back less leaves the rest.
_FAULT_AROUND = 2**21


def open_mapped(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, by name.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no safetensors file, or damaged in its header.
    """
    try:
        with safe_open(path, framework="pt") as checked:  # that the header is sound, and the file as long as it says
            names = list(checked.keys())
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    storage = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    return {name: _view(storage, 8 + length, header[name]) for name in names}


def prefetch(mapped: torch.Tensor) -> None:
    """Have the rows of a mapped tensor read into the page cache, without waiting for it."""
    _advise(mapped, getattr(mmap, "MADV_WILLNEED", None), mmap.PAGESIZE)


def give_back(mapped: torch.Tensor) -> None:
    """Take rows of a mapped tensor out of the process's resident memory; they are read again when touched.

    The tensor must be (part of) one of `open_mapped`: other memory would lose what it holds.
    """
    _advise(mapped, getattr(mmap, "MADV_DONTNEED", None), _FAULT_AROUND)


def _view(storage: torch.UntypedStorage, data: int, entry: Mapping[str, object]) -> torch.Tensor:
    """
    Raises:
        ValueError: of a number format that banks do not have, or out of place.
    """
    dtype = _DTYPES.get(str(entry["dtype"]))
    shape = [int(size) for size in entry["shape"]]  # type: ignore[attr-defined]
    start, end = (data + int(offset) for offset in entry["data_offsets"])  # type: ignore[attr-defined]
    if dtype is None or start % dtype.itemsize or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"a tensor of {entry['dtype']} {shape} stands where it cannot")
    return torch.empty(0, dtype=dtype).set_(storage, start // dtype.itemsize, shape)


def _advise(mapped: torch.Tensor, advice: int | None, granule: int) -> None:
    madvise = _madvise()
    if advice is None or madvise is None or not mapped.nbytes:
        return
    whole = mapped.untyped_storage()
    lowest, highest = whole.data_ptr(), whole.data_ptr() + whole.nbytes()
    first = max(lowest, mapped.data_ptr() // granule * granule)
    last = min(highest, -(-(mapped.data_ptr() + mapped.nbytes) // granule) * granule)
    madvise(first, last - first, advice)  # advice only: a failure changes nothing


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if os.name != "posix":
        return None
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
