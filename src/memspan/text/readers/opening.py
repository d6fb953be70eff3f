"""Files as text: compressed or not, in whatever encoding."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, cast

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


OPENERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {".gz": _open_gzip, ".xz": _open_xz}
"""How a compressed file is opened, by its last extension."""
