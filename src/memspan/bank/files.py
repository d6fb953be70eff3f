"""Writing a bank's files of tensors, whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from memspan import files
from memspan.errors import BankError
from memspan.files import file_sha256


def write_synced(path: Path, tensors: dict[str, torch.Tensor]) -> tuple[int, str]:
    """Write tensors to a temporary name beside `path` and sync; return size and sha256.

    Raises:
        BankError: the disk is full, or the folder cannot be written; nothing is left then.
    """
    return _complete(
        path, lambda partial: save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    )


def write_zeros_synced(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, str]:
    """As `write_synced`, bfloat16 tensors of zeros, in a file with a hole that takes no space."""
    header, size = {}, 0
    for name, shape in shapes.items():
        end = size + math.prod(shape) * torch.bfloat16.itemsize
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (size, end)}
        size = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)

    def write(partial: Path) -> None:
        partial.write_bytes(len(encoded).to_bytes(8, "little") + encoded)
        os.truncate(partial, 8 + len(encoded) + size)

    return _complete(path, write)


def _complete(path: Path, write: Callable[[Path], object]) -> tuple[int, str]:
    partial = _partial(path)
    try:
        with files.synced_file(partial):
            write(partial)
            return partial.stat().st_size, file_sha256(partial)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(path, error) from error


def publish(paths: Sequence[Path], names: Sequence[Path] | None = None) -> None:
    """Give written files their names, durably; or others in the same folder, which were not known before."""
    try:
        files.publish({_partial(path): name for path, name in zip(paths, names or paths, strict=True)})
    except OSError as error:
        raise _cannot_write(paths[0], error) from error


def _partial(path: Path) -> Path:
    return path.with_name(path.name + files.PARTIAL_SUFFIX)


def _cannot_write(path: Path, error: Exception) -> BankError:
    return BankError(
        f"cannot write {path}: {error}. What was committed before is safe; free some space and do it again: "
        "adding continues where it stopped"
    )
