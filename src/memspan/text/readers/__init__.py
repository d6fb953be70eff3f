"""The formats of a corpus: what one file holds, as a text or as records. `corpus` makes documents of it.

A new format is a function that reads it, and a line that registers it in `FORMATS`, in a module that is imported here;
see `memspan.registry` for other packages'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TextIO, TypeVar

from memspan.text.readers import pages, pdf, texts  # noqa: F401  (they register their formats)
from memspan.text.readers.encodings import Encoding
from memspan.text.readers.formats import (
    AS_FOUND,
    FORMATS,
    TEXT_KEYS,
    BadRecord,
    Content,
    DecodedText,
    OneText,
    ReadOptions,
    Record,
    Records,
    Unreadable,
    find_key,
    is_filled,
    is_text,
)
from memspan.text.readers.json_files import items_of, parse_json_object, read_json_lines, wrapped
from memspan.text.readers.opening import OPENERS, bounded_lines, decode, named_failures, open_text, pieces, read_text
from memspan.text.readers.tables import DELIMITERS, read_table
from memspan.types import JSON

__all__ = [
    "AS_FOUND",
    "FORMATS",
    "TEXT_KEYS",
    "BadRecord",
    "Content",
    "DecodedText",
    "OneText",
    "ReadOptions",
    "Record",
    "Records",
    "Unreadable",
    "decode",
    "find_key",
    "holds_records",
    "is_filled",
    "is_supported",
    "is_text",
    "no_text",
    "parse_json_object",
    "read_content",
    "read_json_lines",
    "read_records",
    "read_rows",
]

REMEDY = "name the one that holds it with --text-column"

_EMPTY = "empty"
F = TypeVar("F", OneText, DecodedText, Records)


def is_supported(path: Path) -> bool:
    """Whether the extension is one of the known formats."""
    return _extension(path) in FORMATS


def holds_records(path: Path, options: ReadOptions = AS_FOUND) -> bool:
    """Whether the file is one for `read_records`; any other is one for `read_content`."""
    return _format(path, Records, options) is not None


def read_content(path: Path, options: ReadOptions = AS_FOUND) -> Content:
    """Read a file as one document; of another extension than that of such a file it is read as plain text.

    Raises:
        Unreadable: the file is damaged, binary, blank or too long, may not be read, or its encoding is not certain.
    """
    with named_failures():
        one_text = _format(path, OneText, options)
        content = one_text.read(path) if one_text else _read_decoded(path, options)
    if not content.text.strip():
        raise Unreadable(_EMPTY)
    return content


def _read_decoded(path: Path, options: ReadOptions) -> Content:
    decoded = _format(path, DecodedText, options) or DecodedText(Content)
    text, encoding = read_text(path, options, decoded.names_encoding)
    content = decoded.read(text)
    return replace(content, metadata={**content.metadata, **_guessed(encoding)})


def read_records(
    path: Path, at: Callable[[int], object] = lambda position: None, options: ReadOptions = AS_FOUND
) -> Iterator[Record | BadRecord]:
    """Yield the records of a file, reading it as far as they are asked for.

    Args:
        at: told before every record how many bytes of the file are read.

    Raises:
        Unreadable: the file is damaged, binary or blank, may not be read, its encoding is not certain, or it has
            nowhere a text. It may be raised after some records, where the damage begins there.
    """
    records = _format(path, Records, options)
    assert records is not None, "holds_records says which files have records"
    with named_failures(), path.open("rb") as file, open_text(file, path, options) as (text, encoding):
        is_first, guessed = True, _guessed(encoding)
        for record in _records(records, text, options):
            at(file.tell())
            if is_first and records.is_table and isinstance(record, Record):
                _check_columns(record, options)
            is_first = False
            if guessed and isinstance(record, Record):
                record = replace(record, metadata={**record.metadata, **guessed})
            yield record
        if is_first:
            raise Unreadable(_EMPTY)


def _records(records: Records, text: TextIO, options: ReadOptions) -> Iterator[Record | BadRecord]:
    """The records; an object that is the whole file and no text wraps them."""
    for record in records.read(bounded_lines(text) if records.in_lines else pieces(text)):
        if isinstance(record, Record) and record.line == 0 and not find_key(record.values, options.text_keys):
            items = wrapped(record.values)
            if items is None:
                keys = ", ".join(record.values) or "none"
                raise Unreadable(
                    f"{no_text(options)}; its keys are {keys[:200]}; {REMEDY}, or --format txt for all of it"
                )
            yield from items_of(items)
        else:
            yield record


def no_text(options: ReadOptions) -> str:
    """That a record has no text, and where it would be."""
    return f"no text under the key {' or '.join(options.text_keys)}"


def _check_columns(record: Record, options: ReadOptions) -> None:
    if find_key(record.values, options.text_keys, lambda value: True) is None:
        columns = ", ".join(record.values)
        raise Unreadable(f"no column {' or '.join(options.text_keys)}; the columns are {columns[:200]}; {REMEDY}")


def _guessed(encoding: Encoding) -> dict[str, JSON]:
    """What is kept of an encoding: its name, where it was guessed."""
    return {"encoding": encoding.codec} if encoding.is_guess else {}


def read_rows(path: Path) -> Iterator[Record | BadRecord]:
    """Yield the rows of a table (.csv, .tsv), whatever its columns are called; `read_records` wants one of text.

    Raises:
        Unreadable: the file is damaged or binary, may not be read, or its encoding is not certain.
    """
    with named_failures(), path.open("rb") as file, open_text(file, path) as (text, _):
        yield from read_table(bounded_lines(text), DELIMITERS.get(_extension(path), ","))


def _format(path: Path, kind: type[F], options: ReadOptions) -> F | None:
    """The format of a file's extension, or the one that the options name, if it is one of this kind."""
    name = options.format or _extension(path)
    if name not in FORMATS:
        return None
    found = FORMATS[name]
    return found if isinstance(found, kind) else None


def _extension(path: Path) -> str:
    """Return the extension in lower case, with the one before it where the file is a compressed one (`jsonl.gz`)."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:] if suffixes and suffixes[-1] in OPENERS else suffixes[-1:])[1:]
