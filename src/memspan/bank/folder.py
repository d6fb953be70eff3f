"""A bank's folder: the names of its files, what the catalog knows of a segment's, and making the folder whole.

catalog.sqlite           documents, text, metadata, full-text indexes, manifest (see `catalog`)
segments/                latents, immutable (see `segment`)
encoded/                 latents that are not committed yet, written by other processes (see `encoded`)
writer.lock, readers/    who uses the bank (see `locks`)
"""

from __future__ import annotations

import contextlib
import re
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from memspan.bank.locks import ENCODER_LOCK, HOLDER, LOCK, READERS, writer_lock
from memspan.errors import BankError
from memspan.files import CATALOG, PARTIAL_SUFFIX, SEGMENTS, file_sha256, publish, sync_folder

PARTIAL_CATALOG = f"{CATALOG}{PARTIAL_SUFFIX}"
_SQLITE_SUFFIXES = ("", "-wal", "-shm", "-journal")
KEYS_SUFFIX = ".keys.safetensors"
CONTENT_SUFFIX = ".content.safetensors"
COARSE_SUFFIX = ".coarse.safetensors"


@dataclass(frozen=True, slots=True)
class SegmentFiles:
    """What the catalog knows of a segment: its name, documents, rows, and sizes and checksums of both files.

    Attributes:
        index_crc32: over the tensors of the keys file that are no keys (documents and checksums).
    """

    name: str
    documents: int
    rows: int
    index_crc32: int
    keys_bytes: int
    keys_sha256: str
    content_bytes: int
    content_sha256: str

    @property
    def bytes(self) -> int:
        return self.keys_bytes + self.content_bytes

    def changed(self, folder: Path) -> list[Path]:
        """Which of both files are missing, or have another sha256; reads them whole."""
        wanted = zip(segment_paths(folder, self.name), (self.keys_sha256, self.content_sha256), strict=True)
        return [path for path, sha256 in wanted if not path.is_file() or file_sha256(path) != sha256]


@dataclass(frozen=True, slots=True)
class RowLocation:
    """Where a document's rows stand: in a segment (by its name), from `first_row`, `rows` of them; of which text."""

    document_id: int
    segment: str
    first_row: int
    rows: int
    text_crc32: int


@dataclass(frozen=True, slots=True)
class WrittenSegments:
    """Segment files on disk, and where each document's rows stand in them."""

    segments: Sequence[SegmentFiles]
    places: Sequence[RowLocation]

    @classmethod
    def joined(cls, parts: Sequence[WrittenSegments]) -> WrittenSegments:
        return cls(
            [files for part in parts for files in part.segments], [place for part in parts for place in part.places]
        )


def segments_folder(folder: Path) -> Path:
    """Where the segments of a bank are."""
    return folder / SEGMENTS


def encoded_folder(folder: Path) -> Path:
    """Where processes that hold no lock leave the segments that they encoded for a bank, until they are committed."""
    return folder / "encoded"


def segment_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """The files of a segment: routing keys, content."""
    return folder / f"{name}{KEYS_SUFFIX}", folder / f"{name}{CONTENT_SUFFIX}"


def coarse_path(folder: Path, name: str) -> Path:
    """Where a segment's keys in 8 bits are, if they are there."""
    return folder / f"{name}{COARSE_SUFFIX}"


def segment_of(path: Path) -> str | None:
    """The segment that a file belongs to, complete or not; None for a file of another kind."""
    kinds = "|".join(map(re.escape, (KEYS_SUFFIX, CONTENT_SUFFIX, COARSE_SUFFIX)))
    found = re.fullmatch(rf"([0-9a-f]{{32}})({kinds})({re.escape(PARTIAL_SUFFIX)})?", path.name)
    return found[1] if found else None


def is_partial(path: Path) -> bool:
    """Whether a file is a segment's that was never completed (safetensors writes to `.tmp...` first, then renames)."""
    is_ours = path.name.endswith(PARTIAL_SUFFIX) and segment_of(path) is not None
    return is_ours or re.fullmatch(r"\.tmp\w{6}", path.name) is not None


def text_crc32(text: str) -> int:
    """What binds latents to the text they were made of (title and part, see `encoded_text`)."""
    return zlib.crc32(text.encode())


def make_folder(path: Path) -> None:
    """Make a folder with its parents, so that it survives a loss of power."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


@contextlib.contextmanager
def new_bank(folder: Path) -> Iterator[None]:
    """A new bank's folder, locked, to be filled: segments, and a catalog named `PARTIAL_CATALOG`, closed at the end.

    The catalog gets its name at the end: a half-made bank is no bank. Where anything fails no bank is left.

    Raises:
        BankError: the folder holds something else than what an attempt that failed left behind.
        OSError: it cannot be written, or closing the catalog did not write everything to it (a full disk).
    """
    if folder.exists():
        check_empty(folder)  # before a lock is left in a folder that is not ours
    make_folder(folder)
    with writer_lock(folder):
        check_empty(folder)
        make_folder(segments_folder(folder))
        remove_partial_catalog(folder)
        try:
            yield
            partial = folder / PARTIAL_CATALOG
            if any(partial.with_name(f"{PARTIAL_CATALOG}{log}").exists() for log in ("-wal", "-journal")):
                raise OSError("the catalog could not be written completely")
        except BaseException:
            shutil.rmtree(segments_folder(folder), ignore_errors=True)
            remove_partial_catalog(folder)
            raise
        publish({partial: folder / CATALOG})


def remove_partial_catalog(folder: Path) -> None:
    for suffix in _SQLITE_SUFFIXES:
        (folder / f"{PARTIAL_CATALOG}{suffix}").unlink(missing_ok=True)


def check_empty(folder: Path) -> None:
    """See that a new bank can be made in a folder, which need not exist.

    Raises:
        BankError: something else is there than what an attempt that failed left behind.
    """
    ours = {LOCK, HOLDER, ENCODER_LOCK, READERS, *(f"{PARTIAL_CATALOG}{suffix}" for suffix in _SQLITE_SUFFIXES)}
    there = next((path for path in (folder, *folder.parents) if path.exists()), Path())
    if not there.is_dir():
        raise BankError(f"{there} is a file; name a folder for the new bank")
    if there != folder:
        return
    others = [path for path in folder.iterdir() if path.name not in ours]
    if any(path != segments_folder(folder) or any(path.iterdir()) for path in others):
        raise BankError(f"{folder} exists and is not an empty folder; name another one for the new bank")
