"""What a reader gives, the kinds of formats, and the registry of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from memspan.registry import Registry
from memspan.types import JSON, is_unicode

TEXT_KEYS = ("text", "content", "body")
"""Where a record keeps its text: under the first of these keys that it fills."""

PAGE_END = "\f"
"""A form feed ends every page of a text whose metadata give the number of `pages`."""

NOT_TEXT = "neither UTF-8 nor UTF-16 text"


class Unreadable(Exception):
    """A file gives no text, or no more records; the message is the reason, for people."""


@dataclass(frozen=True, slots=True)
class Content:
    """A file that is one document.

    Attributes:
        text: never blank.
        title: as the format marks it (a heading, a title tag), empty where it does not.
        metadata: what else the format tells.
        date: as the format tells it; see `memspan.types.normal_date`.
    """

    text: str
    title: str = ""
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    date: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
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
    """One record of a file of many, with the number of the line it begins on."""

    line: int
    values: Mapping[str, JSON]


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
    """A text file that is one document, which `read` makes of its text, decoded and without a byte order mark."""

    read: Callable[[str], Content]


@dataclass(frozen=True, slots=True)
class Records:
    """A text file of many records, which `read` makes of its lines (they keep their ends)."""

    read: Callable[[Iterable[str]], Iterator[Record | BadRecord]]


@dataclass(frozen=True, slots=True)
class Several:
    """A file of several documents (an archive, a mailbox). `read` raises `Unreadable` where the rest cannot be read."""

    read: Callable[[Path], Iterator[Part]]


FORMATS: Registry[OneText | DecodedText | Records | Several] = Registry(
    "file format", "memspan.formats", OneText, DecodedText, Records, Several
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
    """Whether all strings in a JSON value can be written as UTF-8 (a lone surrogate can not)."""
    return is_unicode(json.dumps(value, ensure_ascii=False))


def checked(record: Record) -> Record | BadRecord:
    """The record, or a bad one where it holds what is no text."""
    return record if is_text(dict(record.values)) else BadRecord(record.line, NOT_TEXT)
