"""Tensors of published files, by their rows: as `mapping`, of files that are not on this machine.

What is asked for ahead is read with the next that is needed, all at once; ranges that lie close are one. What was read
is kept in the cache. Everything is compared with its checksum when it is used, and read again where it differs.
"""

from __future__ import annotations

import json
import threading
import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from memspan.bank.folder import SegmentFiles, segment_paths, segments_folder
from memspan.bank.manifest import Manifest
from memspan.bank.mapping import Rows, TensorPlace, open_mapped
from memspan.bank.mirror import Mirror
from memspan.bank.pieces import Part
from memspan.bank.publication import TRIES, PublishedFile
from memspan.bank.segment import SegmentReader
from memspan.errors import BankError, StoreError

# What is read between two ranges rather than asking twice, and most of what is read at once.
_GAP, _MOST = 2**17, 2**24
_ENDLESS = 2**63
# Of every file at first: its header is shorter, unless there are very many layers.
_HEAD_BYTES = 2**13


class Ranges:
    """Bytes of a published bank's files. For any number of threads."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        self._of_thread = threading.local()

    def want(self, part: Part) -> None:
        """Have a range read with the next that is needed in this thread."""
        self._wanted.append(part)

    def read(self, part: Part) -> bytes:
        """
        Raises:
            StoreError: it cannot be read.
        """
        found = self._arrived.pop(part, None)
        if found is None:
            parts = list(dict.fromkeys([*self._wanted, part]))
            self._wanted.clear()
            self._of_thread.arrived = arrived = self.mirror.pieces.get(parts)
            missing = [one for one in parts if one not in arrived]
            if missing:
                arrived |= self._fetched(missing)
            found = arrived.pop(part)
        return found

    def drop(self, part: Part) -> None:
        """Read a range anew when it is next needed: it was damaged."""
        self._arrived.pop(part, None)
        self.mirror.pieces.drop([part])

    @property
    def _wanted(self) -> list[Part]:
        return self._of_thread.__dict__.setdefault("wanted", [])

    @property
    def _arrived(self) -> dict[Part, bytes]:
        return self._of_thread.__dict__.setdefault("arrived", {})

    def _fetched(self, parts: list[Part]) -> dict[Part, bytes]:
        from fsspec.utils import merge_offset_ranges  # who reads no published bank need not wait for it

        names, starts, stops = (list(column) for column in zip(*parts, strict=True))
        merged = merge_offset_ranges(names, starts, stops, max_gap=_GAP, max_block=_MOST)
        ranges = [(name, start, stop) for name, start, stop in zip(*merged, strict=True) if stop is not None]
        read = self.mirror.store.read_ranges(ranges)
        found: dict[Part, bytes] = {}
        for name, start, stop in parts:
            at = bisect_right(ranges, (name, start, _ENDLESS)) - 1
            while ranges[at][2] < stop:  # where those that were merged overlap
                at -= 1
            first = ranges[at][1]
            found[name, start, stop] = read[at][start - first : stop - first]
        self.mirror.pieces.put(found)
        return found


class Fetched:
    """A tensor in a published file, by its rows (the first dimension)."""

    def __init__(self, ranges: Ranges, name: str, place: TensorPlace) -> None:
        self._ranges, self._name, self.place = ranges, name, place

    @property
    def tensor(self) -> torch.Tensor:
        """All of it, in memory and not checked."""
        return self._tensor(self._ranges.read(self._part(0, self.place.shape[0])))

    def whole(self, crc32: int) -> torch.Tensor | None:
        """All rows, if this is their checksum. Errors as in `checked`."""
        return self.checked(0, self.place.shape[0], crc32)

    def checked(self, first: int, last: int, crc32: int) -> torch.Tensor | None:
        """
        Raises:
            StoreError: it cannot be read, or is damaged however often it is read.
        """
        part = self._part(first, last)
        for _ in range(TRIES):
            data = self._ranges.read(part)
            if zlib.crc32(data) == crc32:
                return self._tensor(data)
            self._ranges.drop(part)
        url = self._ranges.mirror.store.url
        raise StoreError(f"{url}/{self._name} is damaged; remove it, and publish the bank again")

    def prefetch(self, first: int, last: int) -> None:
        self._ranges.want(self._part(first, last))

    def _part(self, first: int, last: int) -> Part:
        row, start = self.place.row_bytes, self.place.start
        return self._name, start + first * row, start + last * row

    def _tensor(self, data: bytes) -> torch.Tensor:
        if not data:
            return torch.empty(0, *self.place.shape[1:], dtype=self.place.dtype)
        return torch.frombuffer(bytearray(data), dtype=self.place.dtype).view(-1, *self.place.shape[1:])


def open_segments(ranges: Ranges, segments: Sequence[SegmentFiles], manifest: Manifest) -> list[SegmentReader]:
    """Readers of a published bank's segments; what is read whole of them is fetched, the rest when it is needed.

    Raises:
        StoreError: a file is missing or damaged, however often it is read.
        BudgetError: the routing keys do not fit into the cache's budget.
    """
    ranges.mirror.fetch(segments)
    folder = segments_folder(ranges.mirror.folder)
    for files in segments:
        kinds = ((files.keys_bytes, files.keys_sha256), (files.content_bytes, files.content_sha256))
        for path, (size, sha256) in zip(segment_paths(folder, files.name), kinds, strict=True):
            if not path.is_file():
                ranges.want((_name(path, sha256), 0, min(size, _HEAD_BYTES)))
    return [_reader(ranges, files, manifest) for files in segments]


def _reader(ranges: Ranges, files: SegmentFiles, manifest: Manifest) -> SegmentReader:
    mirror = ranges.mirror
    remedy = f"remove the cache {mirror.folder}, and what is in it is fetched anew"
    for left in reversed(range(TRIES)):
        try:
            return SegmentReader(segments_folder(mirror.folder), files, manifest, partial(_open, ranges), remedy)
        except StoreError:
            raise
        except BankError as error:
            if not left:
                raise StoreError(
                    f"the segment {files.name} of {mirror.store.url} is damaged ({error}); remove segments/"
                    f"{files.keys_sha256}* and segments/{files.content_sha256}* there, and publish the bank again"
                ) from error
            mirror.forget(files)
            mirror.fetch([files])
    raise AssertionError("the last attempt gives or raises")


def _open(ranges: Ranges, path: Path, size: int, sha256: str) -> Mapping[str, Rows]:
    """A file that was fetched, or else its tensors where they were published.

    Raises:
        ValueError, KeyError, TypeError: its header is damaged.
        StoreError: it cannot be read.
    """
    if path.is_file():
        return open_mapped(path)
    name = _name(path, sha256)
    head = ranges.read((name, 0, min(size, _HEAD_BYTES)))
    length = int.from_bytes(head[:8], "little")
    if not 0 < length <= size - 8:
        raise ValueError("its header is longer than the file")
    header = json.loads(head[8 : 8 + length] if 8 + length <= len(head) else ranges.read((name, 8, 8 + length)))
    places = {name: TensorPlace.of(8 + length, entry) for name, entry in header.items() if name != "__metadata__"}
    if any(place.start + place.bytes > size for place in places.values()):
        raise ValueError("a tensor ends behind the file")
    return {tensor: Fetched(ranges, name, place) for tensor, place in places.items()}


def _name(path: Path, sha256: str) -> str:
    """The file under the URL, by what it would be called here."""
    return PublishedFile(path.name[path.name.index(".") :], 0, sha256).name
