"""The files under a URL, by fsspec: a folder, a bucket of an object store, whatever it knows. Named errors.

A file is there whole or not at all: object stores do it so, and in a folder of this machine it is written aside, synced
and renamed. Of other stores this does not hold; there a file that is not whole has another size or checksum.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from memspan.errors import StoreError
from memspan.files import whole_file

Result = TypeVar("Result")

# Pauses before what failed is tried again. A store that is there and refuses is not asked again.
PAUSES = (0.2, 1.0)
_FINAL = (FileNotFoundError, PermissionError, NotImplementedError, ImportError, ValueError, TypeError)
# Bytes read at a time, and reads at a time, of a large file.
_PART, _PARTS_AT_ONCE = 2**23, 8
# Stores whose folders are made with their files; to make one could make a bucket.
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "obs", "tos", "memory"})


class Store:
    """Files by their names under a URL.

    Attributes:
        url: for people, without a password in it.
        is_local: whether it is a folder of this machine.

    Raises:
        StoreError: nothing of this kind can be opened, or a package for it is missing; from all methods: it cannot be
            reached, read or written.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        if not url:
            raise StoreError("the URL is empty; name a folder (. is this folder) or a URL")
        self.url = re.sub(r"//[^/@]*@", "//", url).rstrip("/")
        try:
            self._fs, root = fsspec.url_to_fs(url)
        except ImportError as error:
            raise StoreError(f"{self.url} needs a package that is not installed: {error}") from error
        except Exception as error:  # every store has its own
            raise StoreError(f"{self.url} cannot be opened: {_first_line(error)}") from error
        self._root = root.rstrip("/")
        protocols: set[str] = {self._fs.protocol} if isinstance(self._fs.protocol, str) else set(self._fs.protocol)
        self.is_local = "file" in protocols
        if self.is_local and "://" not in url:
            self.url = self._root  # absolute
        self._makes_folders = not self.is_local and not protocols & _OBJECT_STORES

    def is_in(self, folder: Path) -> bool:
        """Whether it is a folder of this machine, and that one or in it."""
        return self.is_local and Path(self._root).resolve().is_relative_to(folder.resolve())

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        """Whole files; None for those that are not there."""
        return [
            None if isinstance(found, FileNotFoundError) else self._given(found, name)
            for name, found in zip(names, self._ranges([(name, None, None) for name in names]), strict=True)
        ]

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Bytes of files: name, first byte, the one after the last.

        Raises:
            StoreError: also where a file is missing, or shorter.
        """
        found = []
        for (name, start, end), data in zip(ranges, self._ranges(ranges), strict=True):
            found.append(self._given(data, name))
            if len(found[-1]) != end - start:
                raise StoreError(f"{self.url}/{name} is shorter than it was when it was published")
        return found

    def download(self, name: str, size: int, path: Path) -> None:
        """Copy a file of a known size, a few parts at a time."""
        starts = range(0, size, _PART)
        with path.open("wb") as file:
            for at in range(0, len(starts), _PARTS_AT_ONCE):
                parts = [(name, first, min(size, first + _PART)) for first in starts[at : at + _PARTS_AT_ONCE]]
                for data in self.read_ranges(parts):
                    file.write(data)

    def write(self, name: str, data: bytes | Path) -> None:
        """Write a file, or copy one of this machine; what is there is replaced."""
        path = f"{self._root}/{name}"
        self._patiently(f"write {name} to", lambda: self._write(path, data))

    def sizes(self) -> dict[str, int]:
        """All files that are there, with their sizes in bytes."""

        def listed() -> dict[str, int]:
            self._fs.invalidate_cache()  # others write, too
            try:
                found: dict[str, Any] = self._fs.find(self._root, detail=True)  # type: ignore[assignment]
            except FileNotFoundError:
                return {}
            return {path.removeprefix(f"{self._root}/"): int(info["size"]) for path, info in found.items()}

        return self._patiently("list", listed)

    def remove(self, names: Sequence[str]) -> None:
        """Remove files, those that are there."""
        for name in names:
            try:
                self._patiently(f"remove {name} from", lambda name=name: self._fs.rm_file(f"{self._root}/{name}"))
            except FileNotFoundError:
                continue

    def _ranges(self, ranges: Sequence[tuple[str, int | None, int | None]]) -> list[Any]:
        """What each range holds, or the error that reading it gave."""
        paths = [f"{self._root}/{name}" for name, _, _ in ranges]
        found: list[Any] = [None] * len(ranges)
        left = list(range(len(ranges)))
        for pause in (*PAUSES, None):
            starts, ends = [ranges[at][1] for at in left], [ranges[at][2] for at in left]
            try:
                parts = self._fs.cat_ranges([paths[at] for at in left], starts, ends, on_error="return")  # type: ignore
            except Exception as error:  # every store has its own
                parts = [error] * len(left)
            for at, data in zip(left, parts, strict=True):
                found[at] = data
            left = [at for at in left if isinstance(found[at], Exception) and not isinstance(found[at], _FINAL)]
            if not left or pause is None:
                break
            time.sleep(pause)
        return found

    def _given(self, found: bytes | Exception, name: str) -> bytes:
        if isinstance(found, FileNotFoundError):
            raise StoreError(f"{self.url}/{name} is missing; publish the bank again") from found
        if isinstance(found, Exception):
            raise StoreError(f"cannot read {name} from {self.url}: {_first_line(found)}") from found
        return bytes(found)

    def _write(self, path: str, data: bytes | Path) -> None:
        if self.is_local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with whole_file(Path(path)) as partial:
                partial.write_bytes(data) if isinstance(data, bytes) else shutil.copyfile(data, partial)
            return
        if self._makes_folders:
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        if isinstance(data, bytes):
            self._fs.pipe_file(path, data)
        else:
            self._fs.put_file(str(data), path)

    def _patiently(self, doing: str, call: Callable[[], Result]) -> Result:
        for pause in (*PAUSES, None):
            try:
                return call()
            except Exception as error:  # every store has its own
                if isinstance(error, FileNotFoundError) and doing.startswith("remove"):
                    raise
                if pause is None or isinstance(error, _FINAL):
                    raise StoreError(f"cannot {doing} {self.url}: {_first_line(error)}") from error
            time.sleep(pause)
        raise AssertionError("the last attempt gives or raises")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
