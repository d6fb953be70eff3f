"""Files as text: compressed or not, in whatever encoding, and within bounds."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from memspan.text.readers.encodings import Encoding, broken, find_encoding
from memspan.text.readers.formats import AS_FOUND, NOT_TEXT, ReadOptions, Unreadable
from memspan.text.readers.signatures import refuse_other_kinds

MIB = 2**20
LONGEST_TEXT = 64 * MIB
"""Bytes of a document, and characters of a line: 16 million tokens, and some hundred MiB of memory."""
MOST_EXPANSION = 200
"""Times that a compressed file may grow. A text grows tenfold, a dull log a hundredfold, zeros a thousandfold."""
_FREE_EXPANSION = 64 * MIB
"""Bytes that any compressed file may grow to."""
_SNIFFED_BYTES = MIB


@contextmanager
def named_failures() -> Iterator[None]:
    """Turn what the system and the decoders raise into `Unreadable`."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise Unreadable(NOT_TEXT) from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, csv.Error, MemoryError) as error:
        raise Unreadable(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_text(path: Path, options: ReadOptions = AS_FOUND, names_encoding: bool = False) -> tuple[str, Encoding]:
    """The text of a file, and its encoding.

    Raises:
        Unreadable: it is binary, too long, or its encoding is not certain.
    """
    with path.open("rb") as file, open_bytes(file, path) as data:
        return decode(data.read(LONGEST_TEXT + 1), options.encoding, names_encoding)


def decode(data: bytes, encoding: str | None = None, names_encoding: bool = False) -> tuple[str, Encoding]:
    """The text of a whole file, and its encoding; errors as in `read_text`."""
    refuse_other_kinds(data[:512])
    if len(data) > LONGEST_TEXT:
        raise Unreadable(f"longer than {LONGEST_TEXT // MIB} MiB of text; split it into files, or records of a .jsonl")
    found = find_encoding(data, encoding, names_encoding=names_encoding)
    try:
        text = data.decode(found.codec)
    except UnicodeDecodeError as error:
        reason = broken(data, found.codec)
        raise Unreadable(f"{reason}; mend it, or name another encoding with --encoding") from error
    if "\0" in text:
        raise Unreadable("binary file")
    return text.removeprefix("\ufeff"), found


@contextmanager
def open_text(file: BinaryIO, path: Path, options: ReadOptions = AS_FOUND) -> Iterator[tuple[TextIO, Encoding]]:
    """A text file that is open, compressed or not, for reading piece by piece, and its encoding."""
    with open_bytes(file, path) as data:
        head, is_cut = _head(data)
        refuse_other_kinds(head[:512])
        found = find_encoding(head, options.encoding, is_tolerant=True, is_cut=is_cut)
        data.seek(0)
        # Undecodable bytes pass as lone surrogates, so that they cost one record and not the rest of the file.
        with io.TextIOWrapper(data, found.codec, errors="surrogateescape", newline="") as text:
            yield text, found


def _head(data: BinaryIO) -> tuple[bytes, bool]:
    """The beginning of a file, and whether it goes on. What is damaged further on costs no more than that."""
    head = b""
    try:
        while len(head) < _SNIFFED_BYTES and (piece := data.read(_SNIFFED_BYTES // 64)):
            head += piece
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        if not head:
            raise
        return head, True
    return head, len(head) >= _SNIFFED_BYTES


def bounded_lines(text: TextIO) -> Iterator[str]:
    """The lines of a text, with their ends.

    Raises:
        Unreadable: a line is too long.
    """
    number = 0
    while line := text.readline(LONGEST_TEXT + 1):
        number += 1
        if len(line) > LONGEST_TEXT:
            raise Unreadable(f"line {number} is longer than {LONGEST_TEXT // MIB} MiB; split it")
        yield line


def pieces(text: TextIO) -> Iterator[str]:
    """A text in pieces, wherever its lines end."""
    while piece := text.read(MIB):
        yield piece


@contextmanager
def open_bytes(file: BinaryIO, path: Path) -> Iterator[BinaryIO]:
    """A file that is open, decompressed where its last extension says that it is compressed."""
    opener = OPENERS.get(path.suffix.lower())
    if opener is None:
        yield file
        return
    with opener(file) as data:
        yield cast(BinaryIO, io.BufferedReader(DecompressedFile(data, file)))


class DecompressedFile(io.RawIOBase):
    """What a compressed file holds.

    Raises:
        Unreadable: from reading, where it grows beyond all measure.
    """

    def __init__(self, data: BinaryIO, compressed: BinaryIO) -> None:
        self._data, self._compressed, self._size = data, compressed, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._size = self._data.seek(offset, whence)
        return self._size

    def tell(self) -> int:
        return self._size

    def readinto(self, buffer: Any) -> int:
        piece = self._data.read(len(buffer))
        self._size += len(piece)
        if self._size > max(_FREE_EXPANSION, MOST_EXPANSION * self._compressed.tell()):
            raise Unreadable(f"expands more than {MOST_EXPANSION}-fold, as no text does; decompress it yourself first")
        buffer[: len(piece)] = piece
        return len(piece)


def _open_gzip(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file))


def _open_xz(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, lzma.open(file))


def _open_bzip2(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, bz2.open(file))


class _Zstandard(io.RawIOBase):
    """A Zstandard file that can be read from its beginning again, and whose damage is an `OSError`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        import zstandard

        if offset or whence:
            raise io.UnsupportedOperation("only the beginning can be sought")
        self._file.seek(0)
        # Frames of a larger window need more memory than a reader should give.
        decompressor = zstandard.ZstdDecompressor(max_window_size=128 * MIB)
        self._stream = decompressor.stream_reader(self._file, read_across_frames=True, closefd=False)
        return 0

    def readinto(self, buffer: Any) -> int:
        import zstandard

        try:
            piece = self._stream.read(len(buffer))
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error
        buffer[: len(piece)] = piece
        return len(piece)


OPENERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": _open_gzip,
    ".xz": _open_xz,
    ".bz2": _open_bzip2,
    ".zst": lambda file: cast(BinaryIO, _Zstandard(file)),
}
"""How a compressed file is opened, by its last extension."""

SHORT_NAMES = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz", ".tzst": ".tar.zst"}
"""Tarballs by their short names."""


def long_name(path: Path) -> Path:
    """The name of a file in lower case; the short names of tarballs as two extensions: `a.tar.gz` for `a.tgz`."""
    name = path.name.lower()
    short = next((short for short in SHORT_NAMES if name.endswith(short)), "")
    return Path(name.removesuffix(short) + SHORT_NAMES.get(short, ""))
