"""The formats of a corpus: what one file holds, as a text or as records. `corpus` makes documents of it.

A new format is a function that reads it, and a line that registers it in `FORMATS`, in a module that is imported here;
see `memspan.registry` for other packages'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TextIO, TypeVar, cast

from memspan.text.readers import pages, source, texts  # noqa: F401  (they register their formats)
from memspan.text.readers.chats import chat_format
from memspan.text.readers.encodings import Encoding
from memspan.text.readers.formats import (
    AS_FOUND,
    FORMATS,
    TEXT_KEYS,
    BadRecord,
    ContainerReader,
    Content,
    DecodedText,
    FilePart,
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
from memspan.text.readers.opening import (
    OPENERS,
    bounded_lines,
    decode,
    long_name,
    named_failures,
    open_text,
    pieces,
    read_text,
)
from memspan.text.readers.signatures import IMAGES
from memspan.text.readers.tables import DELIMITERS, read_table
from memspan.text.readers.unpacking import unpacked
from memspan.types import JSON

__all__ = [
    "AS_FOUND",
    "FORMATS",
    "TEXT_KEYS",
    "BadRecord",
    "ContainerReader",
    "Content",
    "DecodedText",
    "FilePart",
    "OneText",
    "ReadOptions",
    "Record",
    "Records",
    "Unreadable",
    "decode",
    "extension",
    "find_key",
    "holds_records",
    "is_filled",
    "is_supported",
    "is_text",
    "no_text",
    "parse_json_object",
    "read_content",
    "read_json_lines",
    "read_parts",
    "read_records",
    "read_rows",
    "why_unsupported",
]

REMEDY = "name the one that holds it with --text-column"

_EMPTY = "empty"
_NAME_IT = "; if it is text, give its own path"
_REMEDIES = {
    "doc": "; save it as .docx",
    "ppt": "; save it as .pptx",
    "msg": "; save it as .eml",
    "7z": "; unpack it",
    "rar": "; unpack it",
}
F = TypeVar("F", OneText, DecodedText, Records, ContainerReader)


def is_supported(path: Path, options: ReadOptions = AS_FOUND) -> bool:
    """Whether the extension is one of the known formats."""
    kind = extension(path)
    return kind in FORMATS or (options.ocr and kind in IMAGES)


def why_unsupported(path: Path, options: ReadOptions = AS_FOUND) -> str:
    """Why a file of a folder is not read, by its name; empty where it is."""
    if is_supported(path, options):
        return ""
    kind = extension(path)
    remedy = " (an image); --ocr reads the text in it" if kind in IMAGES else _REMEDIES.get(kind, _NAME_IT)
    return f"unsupported file type {path.suffix or '(no extension)'}{remedy}"


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
        kind = extension(path) if options.ocr and options.format is None else ""
        if one_text or kind in IMAGES:
            with unpacked(path) as plain:
                content = _read_recognised(plain, kind, options) or cast(OneText, one_text).read(plain)
        else:
            content = _read_decoded(path, options)
    if not content.text.strip():
        raise Unreadable(_EMPTY)
    return content


def _read_recognised(path: Path, kind: str, options: ReadOptions) -> Content | None:
    """A file whose text is to be recognized; None of another."""
    if kind != "pdf" and kind not in IMAGES:
        return None
    from memspan.text.readers import ocr

    return (ocr.read_pdf if kind == "pdf" else ocr.read_image)(path, options.ocr_language)


def read_parts(path: Path, options: ReadOptions = AS_FOUND) -> Iterator[FilePart] | None:
    """The documents and files in a file of several; None where it is not one.

    The iterator raises `Unreadable` where the rest of the file cannot be read.
    """
    several = _format(path, ContainerReader, options) or (chat_format(path) if options.format is None else None)
    return None if several is None else _parts(several, path, options)


def _parts(several: ContainerReader, path: Path, options: ReadOptions) -> Iterator[FilePart]:
    with named_failures(), unpacked(path) as plain:
        yield from several.read(plain, options)


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
        yield from read_table(bounded_lines(text), DELIMITERS.get(extension(path), ","))


def _format(path: Path, kind: type[F], options: ReadOptions) -> F | None:
    """The format of a file's extension, or the one that the options name, if it is one of this kind."""
    name = options.format or extension(path)
    if name not in FORMATS:
        return None
    found = FORMATS[name]
    return found if isinstance(found, kind) else None


def extension(path: Path) -> str:
    """The name of a file's format: its extension in lower case, without that of compression (`md` of `a.md.gz`)."""
    suffixes = long_name(path).suffixes
    if not suffixes or suffixes[-1] not in OPENERS:
        return "".join(suffixes[-1:])[1:]
    both = "".join(suffixes[-2:])[1:]
    return both if both in FORMATS else "".join(suffixes[-2:-1])[1:]


# Formats whose modules are imported when a file is one of theirs.
_HOMES = {
    "archives:ARCHIVE": "zip tar",
    "office:WORD": "docx docm dotx",
    "office:SLIDES": "pptx pptm ppsx",
    "opendocument:OPEN_DOCUMENT": "odt odp ods fodt fodp fods",
    "books:BOOK": "epub",
    "books:RICH_TEXT": "rtf",
    "sheets:SHEETS": "xlsx xlsm xls",
    "mail:LETTER": "eml",
    "mail:MAILBOX": "mbox",
    "structured:NOTEBOOK": "ipynb",
    "structured:XML": "xml",
    "structured:SUBTITLES": "srt vtt",
    "pdf:PDF": "pdf",
}
for _home, _names in _HOMES.items():
    for _name in _names.split():
        FORMATS.register(_name, f"{__name__}.{_home}")
