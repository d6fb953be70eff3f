"""A store in memory whose reads and writes are counted, and fail or lie when they are told to: `faulty://NAME`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

Reading = Callable[[str, bytes], bytes]


class FaultyFileSystem(MemoryFileSystem):
    """Attributes:
    on_write: called with the name of what is written, or removed; raises what is to go wrong.
    on_read: gives what a read of a name gives.
    reads, written: names, and the bytes of each read.
    """

    protocol = "faulty"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    on_write: ClassVar[Callable[[str], None]] = staticmethod(lambda name: None)
    on_read: ClassVar[Reading] = staticmethod(lambda name, data: data)
    reads: ClassVar[list[tuple[str, int]]] = []
    written: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("faulty://", "memory://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        data = type(self).on_read(path, super().cat_file(path, start, end))
        self.reads.append((path, len(data)))
        return data

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        type(self).on_write(path)
        super().pipe_file(path, value, mode)
        self.written.append(path)

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        with open(lpath, "rb") as file:
            self.pipe_file(rpath, file.read())

    def rm_file(self, path: str) -> None:
        type(self).on_write(path)
        super().rm_file(path)


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


@contextmanager
def faulty(on_write: Callable[[str], None] | None = None, on_read: Reading | None = None) -> Iterator[None]:
    """Have writes and reads go wrong inside."""
    before = FaultyFileSystem.on_write, FaultyFileSystem.on_read
    FaultyFileSystem.on_write = staticmethod(on_write or before[0])
    FaultyFileSystem.on_read = staticmethod(on_read or before[1])
    try:
        yield
    finally:
        FaultyFileSystem.on_write, FaultyFileSystem.on_read = staticmethod(before[0]), staticmethod(before[1])


def reset() -> None:
    """Be empty, and without faults."""
    FaultyFileSystem.store.clear()
    FaultyFileSystem.pseudo_dirs[:] = [""]
    FaultyFileSystem.reads.clear()
    FaultyFileSystem.written.clear()
