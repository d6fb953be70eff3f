"""What a reader gives, the kinds of formats, and the registry of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from memspan.errors import CorpusError
from memspan.registry import Registry
from memspan.types import JSON, is_unicode

TEXT_KEYS = ("text", "content", "body")
"""Where a record keeps its text: under the first of these keys that it fills."""

SAVED_KEY = "saved"
"""The metadata key of when a document was last saved: its date where nothing better is known."""

NOT_TEXT = "holds bytes or characters that are no text; if the file's encoding is another, name it with --encoding"


class Unreadable(Exception):
    """A file gives no text, or no more records; the message is the reason, for people."""


@dataclass(frozen=True, slots=True)
class Content:
    """A file that is one document.

    Attributes:
        text: never blank.
        title: as the format marks it (a heading, a title tag), empty where it does not.
        metadata: what else the format tells.
    """

    text: str
    title: str = ""
    metadata: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FilePart:
    """One of several documents in a file.

    Attributes:
        name: inside the file. Empty: the document has the file's own name.
        content: the document; or a file on disk that holds it, there until the next part is asked for; or why it cannot
            be read.
    """

    name: str
    content: Content | Path | Unreadable


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file of many.

    Attributes:
        line: the number of the line it begins on, or in a format without lines its own; 0 where the file is the record.
        metadata: what else is known of it; the record's own keys win.
    """

    line: int
    values: Mapping[str, JSON]
    metadata: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot be read."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class OneText:
    """A file that is one document. `read` raises `Unreadable` where it gives no text."""

    read: Callable[[Path], Content]


@dataclass(frozen=True, slots=True)
class DecodedText:
    """A text file that is one document.

    Attributes:
        read: makes it of the file's text, which is decoded and has no byte order mark.
        names_encoding: the file may name its encoding at its beginning, as HTML and XML do.
    """

    read: Callable[[str], Content]
    names_encoding: bool = False


@dataclass(frozen=True, slots=True)
class Records:
    """A text file of many records.

    Attributes:
        read: makes them of its lines, which keep their ends.
        is_table: all records have the same keys, so a first one without a text means that the file has none.
        in_lines: False where `read` takes the text in pieces that end anywhere, so that a line may have any length.
    """

    read: Callable[[Iterable[str]], Iterator[Record | BadRecord]]
    is_table: bool = False
    in_lines: bool = True


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How files are read, where they do not say it or what they say is wrong.

    Attributes:
        format: read every file as this one, whatever its extension; one of `FORMATS`.
        encoding: of all text files. Default: as a file says, or as it is found.
        text_column, title_column: the key of a record's text and title (the name of a column), where it is none of
            the usual ones.
        ocr: whether text is recognized in images and in pages of PDFs that have none, by the program tesseract.
        ocr_language: of such text, as tesseract calls it: "eng", "deu+eng".

    Raises:
        CorpusError: there is no such encoding, or tesseract is not installed.
        UnknownName: there is no such format.
    """

    format: str | None = None
    encoding: str | None = None
    text_column: str | None = None
    title_column: str | None = None
    ocr: bool = False
    ocr_language: str = "eng"

    def __post_init__(self) -> None:
        if self.format is not None:
            FORMATS[self.format]
        if self.encoding is not None:
            try:
                "a".encode(self.encoding)
            except (LookupError, ValueError) as error:
                message = f"there is no text encoding {self.encoding!r}; name one that Python knows, as cp1252 or gbk"
                raise CorpusError(message) from error
        if self.ocr:
            from memspan.text.readers.ocr import check_tesseract

            check_tesseract(self.ocr_language)

    @property
    def text_keys(self) -> tuple[str, ...]:
        return TEXT_KEYS if self.text_column is None else (self.text_column,)

    @property
    def title_keys(self) -> tuple[str, ...]:
        return ("title",) if self.title_column is None else (self.title_column,)


AS_FOUND = ReadOptions()


@dataclass(frozen=True, slots=True)
class ContainerReader:
    """A file of several documents (an archive, a mailbox). `read` raises `Unreadable` where the rest cannot be read."""

    read: Callable[[Path, ReadOptions], Iterator[FilePart]]


FORMATS: Registry[OneText | DecodedText | Records | ContainerReader] = Registry(
    "file format", "memspan.formats", OneText, DecodedText, Records, ContainerReader
)
"""By extension in lower case, without its dot: "md". A compressed file (`a.md.gz`) has the format of what it holds."""


@contextmanager
def damage_named(kind: str) -> Iterator[None]:
    """Turn what a library raises over a damaged file into `Unreadable`: nearly every built-in exception."""
    try:
        yield
    except (Unreadable, OSError, MemoryError):
        raise
    except Exception as error:
        raise Unreadable(f"damaged {kind}: {error}") from error


def is_text(value: JSON) -> bool:
    """Whether a value is JSON, not too deep, and all its strings can be written as UTF-8 (a lone surrogate can not)."""
    try:
        return is_unicode(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (ValueError, RecursionError):
        return False


def is_filled(value: JSON) -> bool:
    """Whether a value is a text that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def find_key(values: Mapping[str, JSON], names: Iterable[str], fits: Callable[[JSON], bool] = is_filled) -> str | None:
    """The first key that is one of `names`, in their order, and has a value that fits. Case, blanks, `_` and `-` differ
    only where no key is the name itself."""
    by_form: dict[str, list[str]] = {}
    for key in values:
        by_form.setdefault(_form(key), []).append(key)
    for name in names:
        for key in sorted(by_form.get(_form(name), ()), key=lambda key: key != name):
            if fits(values[key]):
                return key
    return None


@lru_cache(1024)
def _form(key: str) -> str:
    return re.sub(r"[\s_-]", "", key).casefold()


def checked(record: Record) -> Record | BadRecord:
    """The record, or a bad one where it holds what is no text."""
    return record if is_text(dict(record.values)) else BadRecord(record.line, NOT_TEXT)
