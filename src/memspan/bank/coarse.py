"""Routing keys of a large segment in 8 bits, in a file of their own: what the coarse pass of routing reads.

    NAME.coarse.safetensors   per MSA layer `layer_{l}` [rows, W] int8 and `scale_{l}` [rows] float32;
                              `keys_crc32` [L, N]: of the routing keys (bfloat16) of every document in a layer;
                              `coarse_crc32` [L]: of a layer's numbers, then its scales;
                              `seal` [1]: over both, and the sha256 of the keys file that it was made of

It is derived from NAME.keys.safetensors and says so itself: the catalog does not know of it. A file that is missing,
damaged or of other keys is passed over, and the keys are rounded anew in memory.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch

from memspan.bank.mapping import MappedTensor, open_mapped
from memspan.ops.coarse import CoarseKeys, quantize_keys

_log = logging.getLogger(__name__)

# Segments whose keys take less have no such file: they are joined and rounded in memory.
LEAST_KEYS_BYTES = 2**23
_KEYS_CRC, _COARSE_CRC, _SEAL = "keys_crc32", "coarse_crc32", "seal"


class CoarseFile:
    """The mapped file of one segment."""

    def __init__(self, path: Path, mapped: dict[str, MappedTensor], layers: Sequence[int]) -> None:
        self.path = path
        self._mapped = [(mapped[f"layer_{layer}"], mapped[f"scale_{layer}"]) for layer in layers]
        self._keys = [CoarseKeys(keys.tensor, scale.tensor) for keys, scale in self._mapped]
        self._keys_crc32 = mapped[_KEYS_CRC].tensor.numpy()
        self._coarse_crc32 = mapped[_COARSE_CRC].tensor.tolist()
        self._checked: set[int] = set()

    @property
    def layer_bytes(self) -> int:
        """What the keys of one layer take in memory."""
        return self._keys[0].nbytes

    def keys(self, place: int) -> CoarseKeys | None:
        """Routing keys of the MSA layer at a place among them; None where they are damaged. Checked once."""
        if place not in self._checked:
            if _coarse_crc32(self._keys[place]) != self._coarse_crc32[place]:
                _log.warning("%s is damaged; its keys are rounded anew", self.path)
                return None
            self._checked.add(place)
        return self._keys[place]

    def give_back(self, place: int) -> None:
        """Take a layer's keys out of resident memory until they are read again."""
        for mapped in self._mapped[place]:
            mapped.give_back()

    def document_crc32(self, place: int, document: int) -> int:
        """CRC-32 of the routing keys (bfloat16) of a document in a layer."""
        return int(self._keys_crc32[place, document])

    def is_whole(self) -> bool:
        """Whether every layer's numbers are what was written; reads all."""
        whole = [self.keys(place) is not None for place in range(len(self._keys))]
        for place in range(len(self._keys)):
            self.give_back(place)
        return all(whole)


def coarse_tensors(
    layers: Sequence[int], keys_LCW: Sequence[torch.Tensor], documents_N4: torch.Tensor, keys_sha256: str
) -> dict[str, torch.Tensor]:
    """The tensors of a segment's file.

    Args:
        keys_LCW: routing keys per MSA layer.
        documents_N4: id, first row, rows of every document, ...
        keys_sha256: of the keys file.
    """
    tensors: dict[str, torch.Tensor] = {}
    coarse_crcs, keys_crcs = [], []
    bounds = [(first, first + rows) for _, first, rows, _ in documents_N4.tolist()]
    for layer, key_CW in zip(layers, keys_LCW, strict=True):
        coarse = quantize_keys(key_CW)
        tensors[f"layer_{layer}"], tensors[f"scale_{layer}"] = coarse.key_CW, coarse.scale_C
        coarse_crcs.append(_coarse_crc32(coarse))
        keys_crcs.append(rows_crc32(key_CW, bounds))
    tensors[_KEYS_CRC], tensors[_COARSE_CRC] = torch.tensor(keys_crcs), torch.tensor(coarse_crcs)
    tensors[_SEAL] = torch.tensor([_seal(tensors, keys_sha256)])
    return tensors


def open_coarse(
    path: Path, layers: Sequence[int], num_rows: int, num_documents: int, width: int, keys_sha256: str
) -> CoarseFile | None:
    """The file of a segment; None where there is none, or none of these keys (a damaged one is logged)."""
    L = len(layers)
    expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        **{f"layer_{layer}": ((num_rows, width), torch.int8) for layer in layers},
        **{f"scale_{layer}": ((num_rows,), torch.float32) for layer in layers},
        _KEYS_CRC: ((L, num_documents), torch.int64),
        _COARSE_CRC: ((L,), torch.int64),
        _SEAL: ((1,), torch.int64),
    }
    if not path.exists():
        return None
    try:
        mapped = open_mapped(path)
        tensors = {name: one.tensor for name, one in mapped.items()}
        found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        if found == expected and int(tensors[_SEAL]) == _seal(tensors, keys_sha256):
            return CoarseFile(path, mapped, layers)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        _log.warning("%s cannot be read (%s)", path, error)
        return None
    _log.warning("%s is damaged, or of other keys; keys are rounded anew", path)
    return None


def crc32(tensor: torch.Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


def rows_crc32(tensor: torch.Tensor, bounds: Sequence[tuple[int, int]]) -> list[int]:
    """CRC-32 of the rows of every document: from its first to before its last."""
    flat = memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    row = len(flat) // len(tensor)
    return [zlib.crc32(flat[first * row : last * row]) for first, last in bounds]


def _coarse_crc32(keys: CoarseKeys) -> int:
    return zlib.crc32(keys.scale_C.numpy().data, crc32(keys.key_CW))


def _seal(tensors: dict[str, torch.Tensor], keys_sha256: str) -> int:
    whole = zlib.crc32(tensors[_KEYS_CRC].numpy().data, zlib.crc32(keys_sha256.encode()))
    return zlib.crc32(tensors[_COARSE_CRC].numpy().data, whole)
