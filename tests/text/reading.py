"""What tests of readers have in common: files made on the spot, and what they come to."""

from __future__ import annotations

from pathlib import Path

from memspan.text.corpus import read_paths
from memspan.text.readers import AS_FOUND, ReadOptions
from memspan.types import Document, Skipped


def found(path: Path, data: bytes | str, options: ReadOptions = AS_FOUND) -> list[Document | Skipped]:
    """What a file that holds `data` comes to; a text is written in UTF-8."""
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(read_paths([path], options=options))


def documents(path: Path, data: bytes | str, options: ReadOptions = AS_FOUND) -> list[Document]:
    items = found(path, data, options)
    assert all(isinstance(item, Document) for item in items), items
    return [item for item in items if isinstance(item, Document)]


def document(path: Path, data: bytes | str, options: ReadOptions = AS_FOUND) -> Document:
    (one,) = documents(path, data, options)
    return one


def refused(path: Path, data: bytes | str, options: ReadOptions = AS_FOUND) -> str:
    """The reason for which the whole file is skipped."""
    (skipped,) = found(path, data, options)
    assert isinstance(skipped, Skipped), skipped
    assert skipped.source == str(path)
    return skipped.reason
