"""The formats of a corpus: what one file holds, as a text or as records. `corpus` makes documents of it.

A new format is a function that reads it, and a line in `FORMATS` at the end of its kind; see `memspan.registry` for
other packages'.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import BinaryIO, TextIO, TypeVar, cast

from memspan.registry import Registry
from memspan.types import JSON, is_unicode

TEXT_KEYS = ("text", "content", "body")
"""Where a record keeps its text: under the first of these keys that it fills."""

_NOT_TEXT = "neither UTF-8 nor UTF-16 text"
_BINARY = "binary file"
_EMPTY = "empty"
_SNIFFED_BYTES = 8192

_CODE_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6}[ \t]+(?P<atx>.*?)[ \t]*#*[ \t\r]*$|^(?P<underlined>\S.*)\n=+[ \t\r]*$", re.MULTILINE)


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
class Records:
    """A text file of many records, which `read` makes of its lines (they keep their ends)."""

    read: Callable[[Iterable[str]], Iterator[Record | BadRecord]]


F = TypeVar("F", OneText, Records)
FORMATS: Registry[OneText | Records] = Registry("file format", "memspan.formats", OneText, Records)
"""By extension in lower case, without its dot: "md", "jsonl.gz"."""


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
    one_text = _format(path, OneText) or OneText(_read_text)
    with _named_failures():
        content = one_text.read(path)
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
    with _named_failures(), path.open("rb") as file, _open_lines(file, path) as lines:
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
    with _named_failures(), path.open("rb") as file, _open_lines(file, path) as lines:
        yield from _read_table(lines, _DELIMITERS.get(_extension(path), ","), needs_text=False)


def is_text(value: JSON) -> bool:
    """Whether all strings in a JSON value can be written as UTF-8 (a lone surrogate can not)."""
    return is_unicode(json.dumps(value, ensure_ascii=False))


def _format(path: Path, kind: type[F]) -> F | None:
    """The format of a file's extension, if it is one of this kind."""
    found = FORMATS[_extension(path)] if is_supported(path) else None
    return found if isinstance(found, kind) else None


def _extension(path: Path) -> str:
    """Return the extension in lower case, with the one before it where the file is a compressed one (`jsonl.gz`)."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:] if suffixes and suffixes[-1] in _OPENERS else suffixes[-1:])[1:]


@contextmanager
def _named_failures() -> Iterator[None]:
    """Turn what the system and the decoders raise into `Unreadable`."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise Unreadable(_NOT_TEXT) from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, csv.Error) as error:
        raise Unreadable(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


# Files that are one document ------------------------------------------------------------------------------------------


def _read_text(path: Path) -> Content:
    return Content(_decode(path.read_bytes()))


def _read_markup(path: Path) -> Content:
    text = _decode(path.read_bytes())
    heading = _HEADING.search(_CODE_FENCE.sub("", text))
    return Content(text, (heading["atx"] or heading["underlined"] or "") if heading else "")


def _read_html(path: Path) -> Content:
    parser = _PageText()
    try:
        parser.feed(_decode(path.read_bytes()))
        parser.close()
    except AssertionError as error:  # how html.parser refuses a malformed declaration
        raise Unreadable(f"malformed HTML: {error}") from error
    return Content(parser.text(), parser.title)


def _read_pdf(path: Path) -> Content:
    import pypdf  # takes as long as all of `memspan ls`

    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted:
            raise Unreadable("encrypted PDF")
        pages = [page.extract_text().strip() for page in reader.pages]
        title = (reader.metadata.title if reader.metadata else None) or ""
    except (Unreadable, OSError):
        raise
    except Exception as error:  # pypdf meets damaged files with nearly every built-in exception
        raise Unreadable(f"damaged PDF: {error}") from error
    if not any(pages):
        raise Unreadable("PDF without text (scanned pages need text recognition first)")
    return Content(_repair_glyphs("\n\n".join(pages)), _repair_glyphs(title), {"pages": len(pages)})


def _repair_glyphs(text: str) -> str:
    """Mend what some PDF fonts map their glyphs to: surrogate pairs are joined, lone ones replaced, NULs dropped."""
    return text.replace("\0", "").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _decode(data: bytes) -> str:
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


class _PageText(HTMLParser):
    """Collects the text of an HTML page as it reads on the screen, and its title."""

    _DROPPED = ("script", "style", "nav", "template", "svg")
    _OWN_BLOCK = re.compile(
        "address|article|aside|blockquote|body|details|div|dl|fieldset|figcaption|figure|footer|form|h[1-6]|header|hr|"
        "main|ol|p|pre|section|table|ul"
    )
    _NEW_LINE = ("br", "dd", "dt", "li", "option", "summary", "tr")
    _NEW_CELL = ("td", "th")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self._pieces: list[str] = []
        self._num_open = dict.fromkeys([*self._DROPPED, "pre", "title"], 0)

    def text(self) -> str:
        """Return the text read so far: no spaces at line ends, at most one blank line in a row."""
        text = re.sub(r"[ \t]+\n", "\n", "".join(self._pieces))
        return re.sub(r"\n{3,}", "\n\n", text).strip()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._num_open:
            self._num_open[tag] += 1
        if tag in self._NEW_LINE or self._OWN_BLOCK.fullmatch(tag):
            self._write("\n")
        elif tag in self._NEW_CELL:
            self._write(" ")

    def handle_endtag(self, tag: str) -> None:
        if self._num_open.get(tag):
            self._num_open[tag] -= 1
        if self._OWN_BLOCK.fullmatch(tag):
            self._write("\n")

    def handle_data(self, data: str) -> None:
        if any(self._num_open[tag] for tag in self._DROPPED):
            return
        if self._num_open["title"]:
            self.title += data
        else:
            self._write(data if self._num_open["pre"] else re.sub(r"\s+", " ", data))

    def _write(self, piece: str) -> None:
        follows_space = not self._pieces or self._pieces[-1][-1].isspace()
        if follows_space and not self._num_open["pre"]:
            piece = piece.lstrip(" ")
        if piece:
            self._pieces.append(piece)


for _name in ("txt", "text"):
    FORMATS.register(_name, OneText(_read_text))
for _name in ("md", "markdown", "rst"):
    FORMATS.register(_name, OneText(_read_markup))
for _name in ("html", "htm"):
    FORMATS.register(_name, OneText(_read_html))
FORMATS.register("pdf", OneText(_read_pdf))


# Files of records -----------------------------------------------------------------------------------------------------


def read_json_lines(lines: Iterable[str]) -> Iterator[Record | BadRecord]:
    """Yield a record for each line that is not blank; the lines are counted from 1."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            values = parse_json_object(line)
            yield BadRecord(number, "not a JSON object") if values is None else _checked(Record(number, values))


def parse_json_object(line: str) -> dict[str, JSON] | None:
    """Return the object, or None where `line` is anything else. NaN and Infinity are no JSON."""
    try:
        value = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _checked(record: Record) -> Record | BadRecord:
    return record if is_text(dict(record.values)) else BadRecord(record.line, _NOT_TEXT)


def _read_table(lines: Iterable[str], delimiter: str, needs_text: bool = True) -> Iterator[Record | BadRecord]:
    rows = _numbered_rows(lines, delimiter)
    _, columns = next(rows, (0, []))
    if not is_text([*columns]):
        raise Unreadable(_NOT_TEXT)
    if needs_text and columns and not set(TEXT_KEYS) & set(columns):
        raise Unreadable(f"no column {' or '.join(TEXT_KEYS)}; the columns are {', '.join(columns)}")
    for line, row in rows:
        if len(row) > len(columns):
            yield BadRecord(line, f"{len(row)} cells for {len(columns)} columns")
        else:
            # A row may be short: the columns it lacks are keys that the record does not have.
            yield _checked(Record(line, dict(zip(columns, row, strict=False))))


def _numbered_rows(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with the number of the line it begins on."""
    # The default limit of 128 KiB is for cells, not for documents; the module has no other place to set it.
    csv.field_size_limit(2**31 - 1)
    rows = csv.reader(lines, delimiter=delimiter)
    line = 1
    for row in rows:
        if row:
            yield line, row
        line = rows.line_num + 1


@contextmanager
def _open_lines(file: BinaryIO, path: Path) -> Iterator[TextIO]:
    """A text file that is open, compressed or not, for reading line by line."""
    with _OPENERS.get(path.suffix.lower(), _open_plain)(file) as data:
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


_OPENERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {".gz": _open_gzip, ".xz": _open_xz}

_DELIMITERS = {"csv": ",", "tsv": "\t"}
for _name, _delimiter in _DELIMITERS.items():
    FORMATS.register(_name, Records(partial(_read_table, delimiter=_delimiter)))
for _name in ("jsonl", "ndjson", *(f"{lines}{packed}" for lines in ("jsonl", "ndjson") for packed in _OPENERS)):
    FORMATS.register(_name, Records(read_json_lines))
