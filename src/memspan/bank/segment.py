"""Immutable files of latents. A segment is a pair of safetensors files, written whole and then never changed.

    NAME.keys.safetensors     per MSA layer `layer_{l}`: routing keys, [rows, W]
    NAME.content.safetensors  per MSA layer `layer_{l}`: K and V of a row side by side, [rows, 2, G, D]

Rows of a document are consecutive, so its content in one layer is one contiguous read.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from memspan.errors import BankError
from memspan.model.fingerprint import file_sha256
from memspan.types import EncodedDocuments

KEYS_SUFFIX = ".keys.safetensors"
CONTENT_SUFFIX = ".content.safetensors"
_PARTIAL_SUFFIX = ".partial"


@dataclass(frozen=True, slots=True)
class SegmentFiles:
    """What the catalog knows of a segment: its name, rows, and the size and sha256 of both files."""

    name: str
    rows: int
    keys_bytes: int
    keys_sha256: str
    content_bytes: int
    content_sha256: str


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a document's rows stand: in a segment (by its name), from `first_row`, `rows` of them."""

    document_id: int
    segment: str
    first_row: int
    rows: int


class SegmentWriter:
    """Collects encoded documents and writes them as segments of at most `max_bytes`.

    A document never spans two segments. Files appear under their name only when they are complete and synced; they
    belong to the bank only once the catalog says so.

    Attributes:
        buffered_bytes: held in memory until the next file is written.
    """

    def __init__(self, folder: Path, layers: Sequence[int], max_bytes: int) -> None:
        self._folder, self._layers, self._max_bytes = folder, tuple(layers), max_bytes
        self._keys: list[torch.Tensor] = []
        self._contents: list[torch.Tensor] = []
        self._places: list[Placed] = []
        self._rows = 0
        self.buffered_bytes = 0
        self._name = _new_name()
        self._segments: list[SegmentFiles] = []

    def append(self, document_id: int, latents: EncodedDocuments) -> None:
        """Take the latents of one document."""
        (rows,) = latents.num_chunks
        nbytes = latents.router_keys_LCW.nbytes + latents.content_LC2GD.nbytes
        if self._rows and self.buffered_bytes + nbytes > self._max_bytes:
            self._write()
        self.buffered_bytes += nbytes
        self._places.append(Placed(document_id, self._name, self._rows, rows))
        self._keys.append(latents.router_keys_LCW)
        self._contents.append(latents.content_LC2GD)
        self._rows += rows

    def finish(self) -> tuple[list[SegmentFiles], list[Placed]]:
        """Write what is left; return everything written since the last call, for the catalog to commit."""
        if self._rows:
            self._write()
        segments, places = self._segments, self._places
        self._segments, self._places = [], []
        return segments, places

    def _write(self) -> None:
        keys_LCW, content_LC2GD = torch.cat(self._keys, 1), torch.cat(self._contents, 1)
        paths = segment_paths(self._folder, self._name)
        sizes: list[tuple[int, str]] = []
        for path, stacked in zip(paths, (keys_LCW, content_LC2GD), strict=True):
            by_layer = {f"layer_{layer}": rows for layer, rows in zip(self._layers, stacked.unbind(), strict=True)}
            sizes.append(_write_synced(path, by_layer))
        (keys_bytes, keys_sha256), (content_bytes, content_sha256) = sizes
        self._segments.append(
            SegmentFiles(self._name, self._rows, keys_bytes, keys_sha256, content_bytes, content_sha256)
        )
        self._keys, self._contents, self._rows, self.buffered_bytes, self._name = [], [], 0, 0, _new_name()


class SegmentReader:
    """A segment's rows, mapped into memory: pages are read when they are touched.

    Raises:
        BankError: a file is missing, truncated or not what the catalog says.
    """

    def __init__(self, folder: Path, files: SegmentFiles, layers: Sequence[int]) -> None:
        self.files = files
        keys_path, content_path = segment_paths(folder, files.name)
        self._keys = _open(keys_path, files.keys_bytes, files.rows, layers)
        self._contents = _open(content_path, files.content_bytes, files.rows, layers)

    def router_keys(self, layer: int) -> torch.Tensor:
        """Routing keys of all rows in an MSA layer, `[rows, W]`."""
        return self._keys[layer]

    def content(self, layer: int, first_row: int, rows: int) -> torch.Tensor:
        """K and V of some rows in an MSA layer, `[rows, 2, G, D]`."""
        return self._contents[layer][first_row : first_row + rows]


def segment_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """The files of a segment: routing keys, content."""
    return folder / f"{name}{KEYS_SUFFIX}", folder / f"{name}{CONTENT_SUFFIX}"


def sweep(folder: Path, known: set[str]) -> None:
    """Remove the files of segments that were never committed. Only for the one writer."""
    for path in folder.iterdir():
        name = path.name.removesuffix(_PARTIAL_SUFFIX)
        for suffix in (KEYS_SUFFIX, CONTENT_SUFFIX):
            if name.endswith(suffix) and (path.name != name or name.removesuffix(suffix) not in known):
                path.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Make renames in a folder survive a loss of power (where the platform can sync folders at all)."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_synced(path: Path, tensors: dict[str, torch.Tensor]) -> tuple[int, str]:
    """Write to a temporary name, sync, rename, sync the folder; return size and sha256."""
    partial = path.with_name(path.name + _PARTIAL_SUFFIX)
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
        partial.chmod(0o666 & ~_umask())  # safetensors makes files private; a bank may be shared
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        sha256 = file_sha256(partial)
        partial.replace(path)
        fsync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise BankError(
            f"cannot write {path}: {error}. What was committed before is safe; free some space and add again: "
            "it continues where it stopped"
        ) from error
    return path.stat().st_size, sha256


def _open(path: Path, size: int, rows: int, layers: Sequence[int]) -> dict[int, torch.Tensor]:
    if not path.is_file():
        raise BankError(f"the bank's file {path} is missing; restore it from a backup, or build the bank again")
    if path.stat().st_size != size:
        raise BankError(
            f"the bank's file {path} has {path.stat().st_size} bytes instead of {size}; "
            "restore it from a backup, or build the bank again"
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {layer: file.get_tensor(f"layer_{layer}") for layer in layers}
    except (OSError, SafetensorError) as error:
        raise BankError(f"the bank's file {path} is damaged ({error}); restore it, or build the bank again") from error
    if any(len(tensor) != rows for tensor in tensors.values()):
        raise BankError(f"the bank's file {path} does not hold {rows} rows; restore it, or build the bank again")
    return tensors


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _new_name() -> str:
    return uuid.uuid4().hex
