"""The formats of a corpus: what one file holds, as a text or as records. `corpus` makes documents of it.

A new format is a function that reads it, and a line that registers it in `FORMATS`, in a module that is imported here;
see `memspan.registry` for other packages'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from memspan.text.readers import pages, source, texts  # noqa: F401  (they register their formats)
from memspan.text.readers.chats import chat_format
from memspan.text.readers.formats import (
    FORMATS,
    TEXT_KEYS,
    BadRecord,
    Content,
    DecodedText,
    OneText,
    Part,
    Record,
    Records,
    Several,
    Unreadable,
    is_text,
)
from memspan.text.readers.json_lines import parse_json_object, read_json_lines
from memspan.text.readers.opening import OPENERS, decode, long_name, named_failures, open_lines
from memspan.text.readers.signatures import IMAGES, refuse_other_kinds
from memspan.text.readers.tables import DELIMITERS, read_table
from memspan.text.readers.unpacking import unpacked

__all__ = [
    "FORMATS",
    "TEXT_KEYS",
    "BadRecord",
    "Content",
    "DecodedText",
    "OneText",
    "Part",
    "Record",
    "Records",
    "Several",
    "Unreadable",
    "extension",
    "holds_records",
    "is_supported",
    "is_text",
    "parse_json_object",
    "read_content",
    "read_json_lines",
    "read_parts",
    "read_records",
    "read_rows",
    "why_unsupported",
]

_EMPTY = "empty"
_REMEDIES = {
    "doc": "; save it as .docx",
    "ppt": "; save it as .pptx",
    "msg": "; save it as .eml",
    "7z": "; unpack it",
    "rar": "; unpack it",
}
F = TypeVar("F", OneText, DecodedText, Records, Several)


def is_supported(path: Path) -> bool:
    """Whether the extension is one of the known formats."""
    return extension(path) in FORMATS


def why_unsupported(path: Path) -> str:
    """Why a file of a folder is not read, by its name; empty where it is."""
    if is_supported(path):
        return ""
    kind = path.suffix.lower()[1:]
    if kind in IMAGES:
        return "an image; --ocr reads the text in it"
    return f"unsupported file type {path.suffix or '(no extension)'}{_REMEDIES.get(kind, '')}"


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


def read_parts(path: Path) -> Iterator[Part] | None:
    """The documents and files in a file of several; None where it is not one.

    The iterator raises `Unreadable` where the rest of the file cannot be read.
    """
    several = _format(path, Several) or chat_format(path)
    return None if several is None else _parts(several, path)


def _parts(several: Several, path: Path) -> Iterator[Part]:
    with named_failures(), unpacked(path) as plain:
        yield from several.read(plain)


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
        yield from read_table(lines, DELIMITERS.get(extension(path), ","), needs_text=False)


def _read_one(path: Path) -> Content:
    one_text = _format(path, OneText)
    if one_text:
        with unpacked(path) as plain:
            return one_text.read(plain)
    with unpacked(path) as plain:
        data = plain.read_bytes()
    refuse_other_kinds(data[:512])
    return (_format(path, DecodedText) or DecodedText(Content)).read(decode(data))


def _format(path: Path, kind: type[F]) -> F | None:
    """The format of a file's extension, if it is one of this kind."""
    found = FORMATS[extension(path)] if is_supported(path) else None
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
    "opendocument:OPEN_DOCUMENT": "odt odp fodt fodp",
    "books:BOOK": "epub",
    "books:RICH_TEXT": "rtf",
    "sheets:SHEETS": "xlsx xlsm xls ods",
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
