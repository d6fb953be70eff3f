"""Files as text: compressed or not, in whatever encoding."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from memspan.text.readers.formats import NOT_TEXT, Unreadable

_BINARY = "binary file"
_SNIFFED_BYTES = 8192


@contextmanager
def named_failures() -> Iterator[None]:
    """Turn what the system and the decoders raise into `Unreadable`."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise Unreadable(NOT_TEXT) from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, csv.Error) as error:
        raise Unreadable(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def decode(data: bytes) -> str:
    """The text of a whole file.

    Raises:
        Unreadable: it is binary.
    """
    text = data.decode(_sniff_encoding(data))
    if "\0" in text:
        raise Unreadable(_BINARY)
    return text


def _sniff_encoding(head: bytes) -> str:
    """Return the codec, one that drops the byte order mark, for a file that begins with `head`."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in head:
        raise Unreadable(_BINARY)
    return "utf-8-sig"


@contextmanager
def open_lines(file: BinaryIO, path: Path) -> Iterator[TextIO]:
    """A text file that is open, compressed or not, for reading line by line."""
    with OPENERS.get(path.suffix.lower(), _open_plain)(file) as data:
        encoding = _sniff_encoding(data.read(_SNIFFED_BYTES))
        data.seek(0)
        # Undecodable bytes pass as lone surrogates, so that they cost one record and not the rest of the file.
        with io.TextIOWrapper(data, encoding, errors="surrogateescape", newline="") as lines:
            yield lines


def _open_plain(file: BinaryIO) -> BinaryIO:
    return file


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
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        self._stream = decompressor.stream_reader(self._file, read_across_frames=True, closefd=False)
        return 0

    def readinto(self, buffer: Any) -> int:
        import zstandard

        try:
            data = self._stream.read(len(buffer))
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error
        buffer[: len(data)] = data
        return len(data)


def _open_zstandard(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Zstandard(file)))


OPENERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": _open_gzip,
    ".xz": _open_xz,
    ".bz2": _open_bzip2,
    ".zst": _open_zstandard,
}
"""How a compressed file is opened, by its last extension."""

# Tarballs by their short names.
_SHORT_NAMES = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz", ".tzst": ".tar.zst"}


def long_name(path: Path) -> Path:
    """The name of a file in lower case; the short names of tarballs as two extensions: `a.tar.gz` for `a.tgz`."""
    name = path.name.lower()
    short = next((short for short in _SHORT_NAMES if name.endswith(short)), "")
    return Path(name.removesuffix(short) + _SHORT_NAMES.get(short, ""))
