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
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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
_FOLIO = 2**21


class Rows(Protocol):
    """A tensor in a file, by its rows (the first dimension). None where a checksum (CRC-32) is not that of the rows."""

    @property
    def place(self) -> TensorPlace: ...
    @property
    def tensor(self) -> torch.Tensor: ...
    def whole(self, crc32: int) -> torch.Tensor | None: ...
    def checked(self, first: int, last: int, crc32: int) -> torch.Tensor | None: ...
    def prefetch(self, first: int, last: int) -> None: ...


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor stands in a safetensors file: from the byte `start`.

    Raises:
        ValueError: from `of`, where it is of a number format that banks do not have, or out of place.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @classmethod
    def of(cls, data: int, entry: Mapping[str, object]) -> TensorPlace:
        """By its entry in the header of a file, whose tensors begin at the byte `data`."""
        dtype = _DTYPES.get(str(entry["dtype"]))
        shape = tuple(int(size) for size in entry["shape"])  # type: ignore[attr-defined]
        start, end = (data + int(offset) for offset in entry["data_offsets"])  # type: ignore[attr-defined]
        if dtype is None or start % dtype.itemsize or end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"a tensor of {entry['dtype']} {list(shape)} stands where it cannot")
        return cls(dtype, shape, start)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class MappedTensor:
    """A tensor in a mapped file, by its rows (the first dimension).

    Attributes:
        tensor: all of it; reading it touches pages.
        place: where it stands in the file.
    """

    def __init__(self, tensor: torch.Tensor, place: TensorPlace) -> None:
        self.tensor, self.place = tensor, place
        self._address, self._row_bytes = tensor.data_ptr(), place.row_bytes
        whole = tensor.untyped_storage()
        self._lowest, self._highest = whole.data_ptr(), whole.data_ptr() + whole.nbytes()
        self._bytes = memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]

    def bytes(self, first: int, last: int) -> memoryview:
        """The bytes of some rows, where they lie."""
        return self._bytes[first * self._row_bytes : last * self._row_bytes]

    def whole(self, crc32: int) -> torch.Tensor | None:
        """All rows, where they lie, if this is their checksum."""
        return self.tensor if zlib.crc32(self._bytes) == crc32 else None

    def checked(self, first: int, last: int, crc32: int) -> torch.Tensor | None:
        """As `take`, if this is the checksum of the rows."""
        return self.take(first, last) if zlib.crc32(self.bytes(first, last)) == crc32 else None

    def take(self, first: int, last: int) -> torch.Tensor:
        """A copy of some rows, which are then no longer resident."""
        flat = torch.frombuffer(bytearray(self.bytes(first, last)), dtype=self.tensor.dtype)
        self.give_back(first, last)
        return flat.view(-1, *self.tensor.shape[1:])

    def prefetch(self, first: int, last: int) -> None:
        """Have some rows read into the page cache, without waiting for it."""
        self._advise(first, last, getattr(mmap, "MADV_WILLNEED", None), mmap.PAGESIZE)

    def give_back(self, first: int = 0, last: int | None = None) -> None:
        """Take rows out of the process's resident memory; they are read again when touched."""
        self._advise(first, len(self.tensor) if last is None else last, getattr(mmap, "MADV_DONTNEED", None), _FOLIO)

    def _advise(self, first: int, last: int, advice: int | None, granule: int) -> None:
        madvise = _madvise()
        if advice is None or madvise is None or first >= last:
            return
        start = (self._address + first * self._row_bytes) // granule * granule
        end = -(-(self._address + last * self._row_bytes) // granule) * granule
        start, end = max(start, self._lowest), min(end, self._highest)
        madvise(start, end - start, advice)  # advice only: a failure changes nothing


def open_mapped(path: Path) -> dict[str, MappedTensor]:
    """The tensors of a file, by name.

    Raises:
        OSError: it cannot be read.
        ValueError, KeyError, TypeError, RuntimeError: it is no safetensors file, or damaged in its header.
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
    places = {name: TensorPlace.of(8 + length, header[name]) for name in names}
    return {name: MappedTensor(_view(storage, place), place) for name, place in places.items()}  # type: ignore[arg-type]


def _view(storage: torch.UntypedStorage, place: TensorPlace) -> torch.Tensor:
    first = place.start // place.dtype.itemsize
    return torch.empty(0, dtype=place.dtype).set_(storage, first, place.shape)  # type: ignore[call-overload]


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if os.name != "posix":
        return None
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
