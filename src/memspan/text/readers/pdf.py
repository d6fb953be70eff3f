"""PDF, by pdfium, in a process of its own; `layout` puts what stands on a page in order."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from memspan.text.paging import paged
from memspan.text.readers.formats import SAVED_KEY, Content, OneText, Unreadable, damage_named
from memspan.text.readers.isolated import isolated
from memspan.text.readers.layout import Page, Piece, joined_words, text_of_pages
from memspan.types import JSON

WITHOUT_TEXT = "pages_without_text"
"""The metadata key of the numbers, from 1, of pages that show something and have no text."""

_HYPHENS = {0x2: "-", 0xFFFE: "-", 0xA0: " "}  # how pdfium shows a hyphen at the end of a line
_WORD = re.compile(r"[^\s\x02\ufffe]+[\x02\ufffe]?|[\x02\ufffe]")
_MOST_PIXELS = 6000  # of a side of a page that is drawn
_WIDE_GAP = 1.4  # in heights of a word
_CATALOG = re.compile(rb"(\d+)\s+(\d+)\s+obj\b(?:(?!endobj)[\s\S]){0,2000}?/Type\s*/Catalog\b")
_DATE = re.compile(r"D:(\d{4})(\d{2})?(\d{2})?")


def _read_pdf(path: Path) -> Content:
    content = read_pages(path)
    if not content.text.strip():
        raise Unreadable("PDF without text: scanned pages, or none; --ocr reads the text in them")
    return content


def read_pages(path: Path) -> Content:
    """A PDF as it is, also without any text; its metadata say which pages show something and have none.

    Raises:
        Unreadable: it is damaged, needs a password to be opened, or takes too long.
    """
    with path.open("rb") as file:
        if b"%PDF-" not in file.read(1024):
            raise Unreadable("damaged PDF: not one by its content")
    found = isolated(f"{__name__}:pdf_text", str(path))
    metadata: dict[str, JSON] = {"pages": found["pages"]}
    metadata |= {key: found[key] for key in ("author", SAVED_KEY, "running_heads", WITHOUT_TEXT) if found[key]}
    return Content(found["text"], found["title"], metadata)


def pdf_text(file: str) -> dict[str, JSON]:
    """Text, title, author, date and number of pages of a PDF; errors as of `read_pages`."""
    path = Path(file)
    try:
        with damage_named("PDF"):
            found = _by_pdfium(path)
    except _Locked:
        raise
    except Unreadable as error:
        return _by_pypdf(path, error)
    if not str(found["text"]).strip():
        with contextlib.suppress(Unreadable):
            return _by_pypdf(path, Unreadable())
    return found


def draw_page(file: str, number: int, image: str) -> None:
    """Draw a page in shades of gray, as a PGM file of 300 points per inch (fewer of a large page)."""
    page = open_pdf(Path(file))[number]
    scale = min(300 / 72, _MOST_PIXELS / max(page.get_size()))
    bitmap = page.render(scale=scale, grayscale=True)
    rows = bytes(bitmap.buffer)
    lines = (rows[start : start + bitmap.width] for start in range(0, bitmap.height * bitmap.stride, bitmap.stride))
    Path(image).write_bytes(b"P5 %d %d 255\n" % (bitmap.width, bitmap.height) + b"".join(lines))


class _Locked(Unreadable):
    """A PDF needs a password to be opened."""


def _by_pdfium(path: Path) -> dict[str, JSON]:
    document = open_pdf(path)
    pages, without_text = list[Page](), list[JSON]()
    for number in range(len(document)):
        page = document[number]
        pages.append(_page(page))
        if not pages[-1].pieces and any(True for _ in page.get_objects(max_depth=1)):
            without_text.append(number + 1)
        page.close()
    text, running = text_of_pages(pages)
    of_layout: dict[str, JSON] = {"running_heads": [_mended(head) for head in running], WITHOUT_TEXT: without_text}
    return _found(text, document.get_metadata_dict(), len(document)) | of_layout


def _by_pypdf(path: Path, failure: Unreadable) -> dict[str, JSON]:
    """What pypdf reads where pdfium does not: it makes something of other kinds of damage.

    Raises:
        Unreadable: the failure given, since neither reads it.
    """
    import pypdf

    try:
        reader = pypdf.PdfReader(path)
        texts = [page.extract_text() for page in reader.pages]
        properties = {key[1:]: str(value) for key, value in (reader.metadata or {}).items()}
    except Exception as error:  # nearly every built-in exception
        raise failure from error
    if not any(text.strip() for text in texts):
        raise failure
    return _found(joined_words(paged(texts)), properties, len(texts)) | {"running_heads": [], WITHOUT_TEXT: []}


def _found(text: str, properties: Mapping[str, str], pages: int) -> dict[str, JSON]:
    return {
        "text": _mended(text),
        "title": _mended(properties.get("Title", "")).strip(),
        "author": _mended(properties.get("Author", "")).strip(),
        SAVED_KEY: _date(properties.get("ModDate", "") or properties.get("CreationDate", "")),
        "pages": pages,
    }


def open_pdf(path: Path) -> Any:
    """The document, also where the end of the file with its table of objects is lost.

    Raises:
        Unreadable: it needs a password.
        PdfiumError: it is damaged.
    """
    import pypdfium2

    data = path.read_bytes()
    try:
        return pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise _Locked("encrypted PDF; save it without a password") from error
        catalogs = _CATALOG.findall(data)
        if not catalogs:
            raise
    number, generation = catalogs[-1]
    return pypdfium2.PdfDocument(
        data + b"\ntrailer\n<< /Root %b %b R >>\nstartxref\n0\n%%%%EOF\n" % (number, generation)
    )


def _date(text: str) -> str | None:
    found = _DATE.match(text)
    return "-".join(filter(None, found.groups())) if found else None


def _mended(text: str) -> str:
    """Without what some fonts map their glyphs to: surrogate pairs are joined, lone ones replaced, NULs dropped."""
    return text.replace("\0", "").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _page(page: Any) -> Page:
    height = page.get_height()
    pieces, upright = list[Piece](), list[str]()
    for box, text in _upright_apart(_runs(_words(page)), upright):
        pieces.append(Piece(box.left, height - box.top, box.right, height - box.bottom, text, len(pieces)))
    return Page(height, tuple(pieces), tuple(upright))


class _Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    def with_(self, other: _Box) -> _Box:
        smallest = (min(self.left, other.left), min(self.bottom, other.bottom))
        return _Box(*smallest, max(self.right, other.right), max(self.top, other.top))

    def goes_on_with(self, other: _Box) -> bool:
        """Whether a word follows on the same line without a wide gap."""
        height = min(self.top - self.bottom, other.top - other.bottom)
        size = max(self.top - self.bottom, other.top - other.bottom, 1.0)
        distance = max(other.left - self.right, self.left - other.right)
        return (
            distance <= _WIDE_GAP * size and min(other.top, self.top) - max(other.bottom, self.bottom) >= 0.2 * height
        )


_Words = Iterable[tuple[_Box, str]]


def _words(page: Any) -> Iterator[tuple[_Box, str]]:
    """What stands between blanks, also those that pdfium adds between words, as it is drawn.

    Calls of pdfium are what takes the time, so of a word only the boxes of its first and last character are asked for.
    """
    from pypdfium2 import raw

    text_page, (width, height), rotation = page.get_textpage(), page.get_size(), page.get_rotation()
    text = _characters(text_page)
    edges = [ctypes.c_double() for _ in range(4)]
    left, right, bottom, top = edges
    pointers = [ctypes.byref(edge) for edge in edges]

    def box_of(number: int) -> _Box:
        raw.FPDFText_GetCharBox(text_page.raw, number, *pointers)
        box = _Box(left.value, bottom.value, right.value, top.value)
        return _turned(box, rotation, width, height) if rotation else box

    for word in _WORD.finditer(text):
        first = box_of(word.start())
        box = first if len(word[0]) == 1 else first.with_(box_of(word.end() - 1))
        yield box, word[0].translate(_HYPHENS)
    text_page.close()


def _characters(text_page: Any) -> str:
    """The text of a page, in which every character has the place that pdfium knows it by."""
    from pypdfium2 import raw

    count = text_page.count_chars()
    text = text_page.get_text_range(0, count) if count else ""
    if len(text) == count:
        return text
    return "".join(chr(raw.FPDFText_GetUnicode(text_page.raw, number)) for number in range(count))


def _runs(words: _Words) -> Iterator[tuple[_Box, str]]:
    """Words that follow each other on a line."""
    run, said = None, list[str]()
    for box, word in words:
        if run is not None and not run.goes_on_with(box):
            yield run, " ".join(said)
            run, said = None, []
        run = box if run is None else run.with_(box)
        said.append(word)
    if run is not None:
        yield run, " ".join(said)


def _upright_apart(runs: _Words, upright: list[str]) -> Iterator[tuple[_Box, str]]:
    """The runs. What is drawn upwards goes to `upright`: single characters over each other, put together."""
    stack: list[tuple[_Box, str]] = []
    for box, text in runs:
        if len(text) == 1 and (not stack or abs(stack[-1][0].left - box.left) < box.right - box.left + 1):
            stack.append((box, text))
            continue
        yield from _unless_upright(stack, upright)
        stack = [(box, text)] if len(text) == 1 else []
        if len(text) > 3 and box.top - box.bottom > 2 * (box.right - box.left):
            upright.append(text)
        elif not stack:
            yield box, text
    yield from _unless_upright(stack, upright)


def _unless_upright(stack: list[tuple[_Box, str]], upright: list[str]) -> Iterator[tuple[_Box, str]]:
    if len(stack) > 3:
        upright.append("".join(text for _, text in stack))
    else:
        yield from stack


def _turned(box: _Box, rotation: int, width: float, height: float) -> _Box:
    """A box of a page that is shown turned clockwise, where it is shown."""
    if rotation == 90:
        return _Box(box.bottom, height - box.right, box.top, height - box.left)
    if rotation == 180:
        return _Box(width - box.right, height - box.top, width - box.left, height - box.bottom)
    if rotation == 270:
        return _Box(width - box.top, box.left, width - box.bottom, box.right)
    return box


PDF = OneText(_read_pdf)
