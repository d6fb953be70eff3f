"""Compressed files on disk, and what they may become."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from memspan.text.readers.formats import Unreadable
from memspan.text.readers.opening import MIB, MOST_EXPANSION, OPENERS, long_name

MIN_ALLOWED_BYTES, MAX_ALLOWED_BYTES = 256 * MIB, 8192 * MIB
"""What any file may be unpacked to, and what none may."""
MAX_MEMBERS = 100_000


class UnpackLimitReached(Unreadable):
    """A file becomes too much when it is unpacked."""


def name_on_disk(name: str) -> str:
    """A file name that every system takes, with the extension it had."""
    stem, dot, extension = re.sub(r'[<>:"|?*\x00-\x1f\\/]', "_", name).rpartition(".")
    return f"{stem[:60]}{dot}{extension[:20]}".rstrip(". ") or "_"


@dataclass(slots=True)
class UnpackBudget:
    """What may still be unpacked of one file, whatever stands in it."""

    bytes: int
    members: int

    @classmethod
    def of(cls, path: Path) -> UnpackBudget:
        return cls(min(max(path.stat().st_size * MOST_EXPANSION, MIN_ALLOWED_BYTES), MAX_ALLOWED_BYTES), MAX_MEMBERS)

    def write(self, source: IO[bytes], target: Path) -> None:
        """Write one file to disk.

        Raises:
            Exhausted: the budget does not reach.
        """
        self.members -= 1
        if self.members < 0:
            raise UnpackLimitReached("holds too many files; unpack it and add the folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            while block := source.read(1 << 20):
                self.bytes -= len(block)
                if self.bytes < 0:
                    raise UnpackLimitReached(
                        "unpacks to too much for its size; if you trust it, unpack it and add the folder"
                    )
                file.write(block)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The file that a compressed file holds, on disk as long as the context; any other file as it is.

    Raises:
        Exhausted: it becomes too much.
    """
    long = long_name(path)
    opener = OPENERS.get(long.suffix)
    if opener is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="memspan-", ignore_cleanup_errors=True) as folder:
        target = Path(folder) / (path.stem if path.suffix.lower() == long.suffix else long.stem)
        with path.open("rb") as file, opener(file) as source:
            UnpackBudget.of(path).write(source, target)
        yield target
