"""Immutable files of latents. A segment is a pair of safetensors files, written whole and then never changed.

    NAME.keys.safetensors     per MSA layer `layer_{l}`: routing keys, [rows, W];
                              `documents`: [N, 4] int64, by row: a document's id, first row, number of rows, and the
                              CRC-32 of the text that was encoded;
                              `keys_crc32` [L] and `content_crc32` [L, N]: of a layer's keys, of a document's content
    NAME.content.safetensors  per MSA layer `layer_{l}`: K and V of a row side by side, [rows, 2, G, D]; of a bank whose
                              content is of tokens `tokens`, [rows, content rows, 2, 1, D + 1]

Rows of a document are consecutive, so its content in one layer is one contiguous read. What is read is checked: a
layer's keys once per process, content every time; a damaged byte is an error, never a wrong latent. A large segment has
its keys in 8 bits beside (see `coarse`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from memspan.bank import coarse
from memspan.bank.coarse import CoarseFile, crc32, rows_crc32
from memspan.bank.files import publish, write_synced
from memspan.bank.folder import RowLocation, SegmentFiles, coarse_path, segment_paths
from memspan.bank.manifest import LATENT_DTYPE_NAME, TOKENS, Manifest
from memspan.bank.mapping import MappedTensor, Rows, open_mapped
from memspan.errors import BankError
from memspan.ops.coarse import CoarseKeys, quantize_keys
from memspan.types import EncodedDocuments

LATENT_DTYPE: torch.dtype = getattr(torch, LATENT_DTYPE_NAME)
_DOCUMENTS, _KEYS_CRC, _CONTENT_CRC = "documents", "keys_crc32", "content_crc32"
_INDEX = _DOCUMENTS, _KEYS_CRC, _CONTENT_CRC
MAX_SEGMENT_BYTES = 256 * 2**20
REMEDY = "mend the bank with: memspan verify BANK --repair"
Opener = Callable[[Path, int, str], Mapping[str, Rows]]


class SegmentWriter:
    """Collects encoded documents and writes them as segments of at most `max_bytes`.

    A document never spans two segments. Files appear under their name only when they are complete and synced; they
    belong to the bank only once the catalog says so.

    Attributes:
        buffered_bytes: held in memory until the next file is written.
    """

    def __init__(self, folder: Path, manifest: Manifest, max_bytes: int, *, by_content: bool = False) -> None:
        """
        Args:
            manifest: of the bank.
            by_content: name segments by their bytes, so that the same documents give the same file. Default: at random.
        """
        self._folder, self._manifest, self._max_bytes, self._by_content = folder, manifest, max_bytes, by_content
        self._latents: list[EncodedDocuments] = []
        self._places: list[RowLocation] = []
        self._segments: list[SegmentFiles] = []
        self._begin()

    def append(self, document_id: int, text_crc32: int, latents: EncodedDocuments) -> None:
        """Take the latents of one document, with the CRC-32 of its text (`text_crc32`)."""
        (rows,) = latents.num_chunks
        if self._rows and self.buffered_bytes + latents.nbytes > self._max_bytes:
            self._write()
        self.buffered_bytes += latents.nbytes
        self._places.append(RowLocation(document_id, self._name, self._rows, rows, text_crc32))
        self._latents.append(latents)
        self._rows += rows

    def finish(self) -> tuple[list[SegmentFiles], list[RowLocation]]:
        """Write what is left; return everything written since the last call, for the catalog to commit."""
        if self._rows:
            self._write()
        segments, places = self._segments, self._places
        self._segments, self._places = [], []
        return segments, places

    def _begin(self) -> None:
        self._latents, self._rows, self.buffered_bytes, self._name = [], 0, 0, uuid.uuid4().hex

    def _write(self) -> None:
        here = [place for place in self._places if place.segment == self._name]
        rows = [(place.document_id, place.first_row, place.rows, place.text_crc32) for place in here]
        keys_LCW = torch.cat([latents.router_keys_LCW for latents in self._latents], 1)
        content_L = torch.cat([latents.content_LC2GD for latents in self._latents], 1)
        content_L = content_L.view(len(content_L), self._rows, *self._manifest.content_shape)
        bounds = [(first, first + count) for _, first, count, _ in rows]
        content_crc32 = [rows_crc32(content, bounds) for content in content_L]
        names = [_content_name(layer) for layer in self._manifest.kept_layers]
        path = segment_paths(self._folder, self._name)[1]
        content = write_synced(path, dict(zip(names, content_L, strict=True)))
        written = publish_segment(
            self._folder,
            self._name,
            self._manifest.msa_layers,
            torch.tensor(rows),
            keys_LCW,
            content,
            content_crc32,
            by_content=self._by_content,
        )
        self._segments.append(written)
        self._places[-len(here) :] = [dataclasses.replace(place, segment=written.name) for place in here]
        self._begin()


def publish_segment(
    folder: Path,
    name: str,
    layers: Sequence[int],
    documents_N4: torch.Tensor,
    keys_LCW: torch.Tensor,
    content: tuple[int, str],
    content_crc32: Sequence[Sequence[int]],
    *,
    by_content: bool = False,
) -> SegmentFiles:
    """Write the routing keys of a segment whose content file is written, and give all its files their names.

    Writes NAME.keys.safetensors, and NAME.coarse.safetensors where the keys are large.

    Args:
        content: size and sha256 of the content file.
        content_crc32: per layer and document.
        by_content: give the files another name, which their bytes determine.
    """
    index = {
        _DOCUMENTS: documents_N4,
        _KEYS_CRC: torch.tensor([crc32(key_CW) for key_CW in keys_LCW]),
        _CONTENT_CRC: torch.tensor(content_crc32),
    }
    named = {f"layer_{layer}": key_CW for layer, key_CW in zip(layers, keys_LCW, strict=True)}
    paths = [*segment_paths(folder, name)]
    keys = write_synced(paths[0], {**index, **named})
    if keys[0] >= coarse.LEAST_KEYS_BYTES:
        paths.append(coarse_path(folder, name))
        write_synced(paths[2], coarse.coarse_tensors(layers, list(keys_LCW), documents_N4, keys[1]))
    if by_content:
        name = hashlib.sha256(f"{keys[1]} {content[1]}".encode()).hexdigest()[:32]
    publish(paths, [*segment_paths(folder, name), coarse_path(folder, name)][: len(paths)])
    return SegmentFiles(name, len(documents_N4), keys_LCW.shape[1], _index_crc32(index), *keys, *content)


def listed_documents(path: Path) -> list[list[int]]:
    """What the file of a segment's routing keys says of its documents: id, first row, rows and CRC-32 of the text.

    Raises:
        BankError: it is no such file, or cannot be read.
    """
    try:
        with safe_open(path, "pt") as opened:
            return opened.get_tensor(_DOCUMENTS).tolist()
    except (OSError, ValueError, SafetensorError) as error:
        raise BankError(f"{path} is no file of routing keys ({error})") from error


class SegmentReader:
    """A segment's rows, mapped into memory: pages are read when they are touched.

    Attributes:
        documents_N4: id, first row, rows and CRC-32 of the text of every document, by row; int64.

    Raises:
        BankError: a file is missing, truncated, damaged or not what the catalog says; from every method.
    """

    def __init__(
        self, folder: Path, files: SegmentFiles, manifest: Manifest, opened: Opener | None = None, remedy: str = REMEDY
    ) -> None:
        """
        Args:
            folder: where the files are.
            opened: how a file is opened, given its path, size and sha256. Default: it is mapped.
            remedy: what to do about damage, for messages.
        """
        self.files = files
        self._folder, self._opened, self._remedy = folder, opened or _open_whole, remedy
        self._keys_path, self._content_path = segment_paths(folder, files.name)
        self._layers, self._kept_layers, self._width = manifest.msa_layers, manifest.kept_layers, manifest.key_width
        N, names = files.documents, [f"layer_{layer}" for layer in self._layers]
        shapes = {_DOCUMENTS: (N, 4), _KEYS_CRC: (len(names),), _CONTENT_CRC: (len(self._kept_layers), N)}
        of_keys = {**dict.fromkeys(names, (files.rows, self._width)), **shapes}
        mapped = self._open(self._keys_path, files.keys_bytes, files.keys_sha256, of_keys)
        self._keys = [mapped[name] for name in names]
        for name, (length, *_) in shapes.items():
            mapped[name].prefetch(0, length)
        tensors = {name: mapped[name].tensor for name in shapes}
        if _index_crc32(tensors) != files.index_crc32:
            raise self._damaged(self._keys_path, "its list of documents")
        self.documents_N4 = tensors[_DOCUMENTS]
        self._keys_crc32, self._content_crc32 = tensors[_KEYS_CRC].tolist(), tensors[_CONTENT_CRC].numpy()
        of_content = {_content_name(layer): (files.rows, *manifest.content_shape) for layer in self._kept_layers}
        contents = self._open(self._content_path, files.content_bytes, files.content_sha256, of_content)
        self._contents = [contents[name] for name in of_content]
        self._rows = self.documents_N4.numpy()
        self._whole: dict[int, torch.Tensor] = {}
        self._coarse_file = self._open_coarse()
        self._rounded: dict[int, CoarseKeys] = {}

    @property
    def keys_bytes(self) -> int:
        """Size of the routing keys of all layers (and of the list of documents)."""
        return self.files.keys_bytes

    def router_keys(self, layer: int) -> torch.Tensor:
        """Routing keys of all rows in an MSA layer, `[rows, W]`."""
        place = self._layers.index(layer)
        if place not in self._whole:
            keys = self._keys[place].whole(self._keys_crc32[place])
            if keys is None:
                raise self._damaged(self._keys_path, f"the routing keys of layer {layer}")
            self._whole[place] = keys
        return self._whole[place]

    @property
    def has_stored(self) -> bool:
        """Whether the routing keys of all rows are on this machine as they are stored."""
        return isinstance(self._keys[0], MappedTensor)

    def stored_keys(self, layer: int) -> Iterator[torch.Tensor]:
        """Routing keys of all rows in an MSA layer as they are stored, in parts that are mapped until the next."""
        yield self.router_keys(layer)
        keys = self._keys[self._layers.index(layer)]
        if isinstance(keys, MappedTensor):
            keys.give_back()

    def router_rows(self, layer: int, document: int) -> torch.Tensor:
        """Routing keys of a document (its index in `documents_N4`) in an MSA layer, `[rows, W]`, copied."""
        place = self._layers.index(layer)
        first, last = self._bounds(document)
        if self._coarse_file is None:
            return self.router_keys(layer)[first:last].clone()
        keys = self._keys[place].checked(first, last, self._coarse_file.document_crc32(place, document))
        if keys is None:
            what = f"the routing keys of document {self._rows[document, 0]} in layer {layer}"
            raise self._damaged(self._keys_path, what)
        return keys

    def _bounds(self, document: int) -> tuple[int, int]:
        """A document's first row, and the one after its last."""
        first, rows = self._rows[document, 1:3].tolist()
        return first, first + rows

    def coarse_keys(self, layer: int) -> CoarseKeys:
        """Routing keys of all rows in an MSA layer in 8 bits: mapped, or rounded when a layer is first asked for."""
        place = self._layers.index(layer)
        keys = self._coarse_file.keys(place) if self._coarse_file is not None else None
        if keys is not None:
            return keys
        self._coarse_file = None
        if layer not in self._rounded:
            self._rounded[layer] = quantize_keys(self.router_keys(layer))
        return self._rounded[layer]

    def place(self, document: int) -> tuple[SegmentReader, int]:
        """The segment that holds a document, and its index there: this one; see `JoinedReader`."""
        return self, document

    def prefetch_rows(self, layer: int, document: int) -> None:
        """As `prefetch`, a document's routing keys."""
        self._keys[self._layers.index(layer)].prefetch(*self._bounds(document))

    @property
    def mapped_coarse_bytes(self) -> int:
        """What one layer's keys in 8 bits take while they are mapped; 0 where they are in memory for good."""
        return 0 if self._coarse_file is None else self._coarse_file.layer_bytes

    def give_back_coarse(self, layer: int) -> None:
        """Take a layer's mapped keys in 8 bits out of resident memory until they are scored again."""
        if self._coarse_file is not None:
            self._coarse_file.give_back(self._layers.index(layer))

    def prefetch(self, layer: int, document: int) -> None:
        """Have a document's content in a layer read from disk, without waiting for it."""
        self._contents[self._kept_layers.index(layer)].prefetch(*self._bounds(document))

    def content(self, layer: int, document: int) -> torch.Tensor:
        """K and V of a document (its index in `documents_N4`) in one of `Manifest.kept_layers`, `[rows, 2, G, D]` (of
        tokens `[rows, 2, 1, D + 1]`), copied."""
        place = self._kept_layers.index(layer)
        first, last = self._bounds(document)
        content = self._contents[place].checked(first, last, int(self._content_crc32[place, document]))
        if content is None:
            what = f"the content of document {self._rows[document, 0]} in layer {layer}"
            raise self._damaged(self._content_path, what)
        return content.flatten(0, -4)

    def latents(self, document: int) -> EncodedDocuments:
        """Everything kept of a document (its index in `documents_N4`), copied."""
        first, last = self._bounds(document)
        return EncodedDocuments(
            torch.stack([self.router_keys(layer)[first:last] for layer in self._layers]),
            torch.stack([self.content(layer, document) for layer in self._kept_layers]),
            (last - first,),
        )

    @property
    def is_large(self) -> bool:
        """Whether there should be a file of keys in 8 bits."""
        return self.files.keys_bytes >= coarse.LEAST_KEYS_BYTES

    @property
    def coarse_path(self) -> Path:
        return coarse_path(self._folder, self.files.name)

    def has_coarse(self) -> bool:
        """Whether that file is there and sound; reads all of it."""
        return self._coarse_file is not None and self._coarse_file.is_whole()

    def write_coarse(self) -> None:
        """Write that file (anew), and use it. Checks the keys that it is made of.

        Raises:
            BankError: the keys are damaged, or the disk is full.
        """
        keys_LCW = [self.router_keys(layer) for layer in self._layers]
        tensors = coarse.coarse_tensors(self._layers, keys_LCW, self.documents_N4, self.files.keys_sha256)
        write_synced(self.coarse_path, tensors)
        publish([self.coarse_path])
        self._coarse_file = self._open_coarse()

    def _open(self, path: Path, size: int, sha256: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Rows]:
        try:
            opened = self._opened(path, size, sha256)
            rows = {name: opened[name] for name in shapes}
        except FileNotFoundError as error:
            raise BankError(f"the bank's file {path} is missing; {self._remedy}") from error
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise BankError(f"the bank's file {path} is damaged ({error}); {self._remedy}") from error
        for name, shape in shapes.items():
            dtype = torch.int64 if name in _INDEX else LATENT_DTYPE
            if rows[name].place.shape != shape or rows[name].place.dtype != dtype:
                raise self._damaged(path, f"the shape of {name}")
        return rows

    def _damaged(self, path: Path, what: str) -> BankError:
        return BankError(f"{what} in the bank's file {path} changed since it was written; {self._remedy}")

    def _open_coarse(self) -> CoarseFile | None:
        rows, documents, sha256 = self.files.rows, self.files.documents, self.files.keys_sha256
        return coarse.open_coarse(self.coarse_path, self._layers, rows, documents, self._width, sha256)


def _content_name(layer: int) -> str:
    return "tokens" if layer == TOKENS else f"layer_{layer}"


def _open_whole(path: Path, size: int, sha256: str) -> Mapping[str, Rows]:
    """
    Raises:
        ValueError: it has another size, or is damaged.
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    if path.stat().st_size != size:
        raise ValueError(f"it has {path.stat().st_size} bytes instead of {size}")
    return open_mapped(path)


def _index_crc32(tensors: dict[str, torch.Tensor]) -> int:
    return zlib.crc32(b"".join(tensors[name].numpy().tobytes() for name in _INDEX))
