"""The formats of a corpus: what one file holds, as a text or as records. `corpus` makes documents of it.

A new format is a function that reads it, and a line that registers it in `FORMATS`, in a module that is imported here;
see `memspan.registry` for other packages'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from memspan.text.readers import pages, pdf, texts  # noqa: F401  (they register their formats)
from memspan.text.readers.formats import (
    FORMATS,
    TEXT_KEYS,
    BadRecord,
    Content,
    DecodedText,
    OneText,
    Record,
    Records,
    Unreadable,
    is_text,
)
from memspan.text.readers.json_lines import parse_json_object, read_json_lines
from memspan.text.readers.opening import OPENERS, decode, named_failures, open_lines
from memspan.text.readers.tables import DELIMITERS, read_table

__all__ = [
    "FORMATS",
    "TEXT_KEYS",
    "BadRecord",
    "Content",
    "DecodedText",
    "OneText",
    "Record",
    "Records",
    "Unreadable",
    "holds_records",
    "is_supported",
    "is_text",
    "parse_json_object",
    "read_content",
    "read_json_lines",
    "read_records",
    "read_rows",
]

_EMPTY = "empty"
F = TypeVar("F", OneText, DecodedText, Records)


def is_supported(path: Path) -> bool:
    """Whether the extension is one of the known formats."""
    return _extension(path) in FORMATS


def holds_records(path: Path) -> bool:
    """Whether the file is one for `read_records`; any other is one for `read_content`."""
    return _format(path, Records) is not None


def read_content(path: Path) -> Content:
    """Read a file as one document; of another extension than that of such a file it is read as plain text.

    Raises:
        Unreadable: the file is damaged, binary or blank, or may not be read.
    """
    with named_failures():
        content = _read_one(path)
    if not content.text.strip():
        raise Unreadable(_EMPTY)
    return content


def read_records(path: Path, at: Callable[[int], object] = lambda position: None) -> Iterator[Record | BadRecord]:
    """Yield the records of a file, reading it as far as they are asked for.

    Args:
        at: told before every record how many bytes of the file are read.

    Raises:
        Unreadable: the file is damaged, binary or blank, may not be read, or is a table without a text column. It may
            be raised after some records, where the damage begins there.
    """
    records = _format(path, Records)
    assert records is not None, "holds_records says which files have records"
    with named_failures(), path.open("rb") as file, open_lines(file, path) as lines:
        is_empty = True
        for record in records.read(lines):
            is_empty = False
            at(file.tell())
            yield record
        if is_empty:
            raise Unreadable(_EMPTY)


def read_rows(path: Path) -> Iterator[Record | BadRecord]:
    """Yield the rows of a table (.csv, .tsv), whatever its columns are called; `read_records` wants one of text.

    Raises:
        Unreadable: the file is damaged or binary, or may not be read.
    """
    with named_failures(), path.open("rb") as file, open_lines(file, path) as lines:
        yield from read_table(lines, DELIMITERS.get(_extension(path), ","), needs_text=False)


def _read_one(path: Path) -> Content:
    one_text = _format(path, OneText)
    if one_text:
        return one_text.read(path)
    return (_format(path, DecodedText) or DecodedText(Content)).read(decode(path.read_bytes()))


def _format(path: Path, kind: type[F]) -> F | None:
    """The format of a file's extension, if it is one of this kind."""
    found = FORMATS[_extension(path)] if is_supported(path) else None
    return found if isinstance(found, kind) else None


def _extension(path: Path) -> str:
    """Return the extension in lower case, with the one before it where the file is a compressed one (`jsonl.gz`)."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:] if suffixes and suffixes[-1] in OPENERS else suffixes[-1:])[1:]
