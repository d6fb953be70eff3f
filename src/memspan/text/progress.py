"""How far files are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from memspan.text.folders import GivenPath
from memspan.text.readers import is_supported
from memspan.types import Skipped


class ReadProgress:
    """How far the files of some paths are read, and an estimate of the text in them.

    Attributes:
        characters: of the documents read so far.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        self.characters = self._bytes_before = self._position = 0
        self._total_bytes: int | None = None
        self._is_done = False

    def at(self, position: int) -> None:
        """So many bytes are read of the file that is being read."""
        self._position = position

    def next_file(self) -> None:
        self._bytes_before, self._position = self._bytes_before + self._position, 0

    def done(self) -> None:
        self._is_done = True

    def total_characters(self) -> float | None:
        """Of all documents, if the bytes not read yet hold as many as those that are; None before anything is read."""
        if self._is_done:
            return self.characters
        if self._total_bytes is None:
            self._total_bytes = sum(map(size_of, self._files()))
        num_bytes = self._bytes_before + self._position
        return self.characters * max(1.0, self._total_bytes / num_bytes) if num_bytes else None

    def _files(self) -> Iterator[Path]:
        for path in self._paths:
            for file in GivenPath.of(path).files():
                if not isinstance(file, Skipped) and (file.alone or is_supported(file.path)):
                    yield file.path


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
