"""PDF, by pdfium, in a process of its own; `layout` puts what stands on a page in order."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from memspan.text.readers.formats import Content, OneText, Unreadable, damage_named
from memspan.text.readers.isolated import isolated
from memspan.text.readers.layout import Page, Piece, text_of_pages
from memspan.types import JSON

_HYPHENS = {0x2: "-", 0xFFFE: "-"}  # how pdfium shows a hyphen at the end of a line
_BLANKS = frozenset({9, 10, 13, 32, 160})
_WIDE_GAP = 1.4  # in heights of a character
_CATALOG = re.compile(rb"(\d+)\s+(\d+)\s+obj\b(?:(?!endobj)[\s\S]){0,2000}?/Type\s*/Catalog\b")
_DATE = re.compile(r"D:(\d{4})(\d{2})?(\d{2})?")


def _read_pdf(path: Path) -> Content:
    found = isolated(f"{__name__}:pdf_text", str(path))
    if not found["text"].strip():
        raise Unreadable("PDF without text: scanned pages, or none; --ocr reads the text in them")
    metadata: dict[str, JSON] = {"pages": found["pages"]}
    metadata |= {key: found[key] for key in ("author", "modified", "running_heads") if found[key]}
    return Content(found["text"], found["title"], metadata)


def pdf_text(file: str) -> dict[str, JSON]:
    """Text, title, author, date and number of pages of a PDF.

    Raises:
        Unreadable: it is damaged, or needs a password to be opened.
    """
    with damage_named("PDF"):
        document = open_pdf(Path(file))
        text, running = text_of_pages([_page(document[number]) for number in range(len(document))])
        properties = document.get_metadata_dict()
        heads: list[JSON] = [_mended(head) for head in running]
        return {
            "text": _mended(text),
            "title": _mended(properties.get("Title", "")).strip(),
            "author": _mended(properties.get("Author", "")).strip(),
            "modified": _date(properties.get("ModDate", "") or properties.get("CreationDate", "")),
            "pages": len(document),
            "running_heads": heads,
        }


def open_pdf(path: Path) -> Any:
    """The document, also where the end of the file with its table of contents is lost.

    Raises:
        Unreadable: it needs a password, or is no PDF.
    """
    import pypdfium2

    data = path.read_bytes()
    try:
        return pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise Unreadable("encrypted PDF; save it without a password") from error
        if b"%PDF-" not in data[:1024]:
            raise Unreadable("not a PDF by its content") from error
        catalogs = _CATALOG.findall(data)
        if not catalogs:
            raise Unreadable(f"damaged PDF: {error}") from error
        number, generation = catalogs[-1]
        end = b"\ntrailer\n<< /Root %b %b R >>\nstartxref\n0\n%%%%EOF\n" % (number, generation)
        return pypdfium2.PdfDocument(data + end)


def _date(text: str) -> str | None:
    found = _DATE.match(text)
    return "-".join(filter(None, found.groups())) if found else None


def _mended(text: str) -> str:
    """Without what some fonts map their glyphs to: surrogate pairs are joined, lone ones replaced, NULs dropped."""
    return text.replace("\0", "").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _page(page: Any) -> Page:
    height = page.get_height()
    pieces, upright = list[Piece](), list[str]()
    for left, bottom, right, top, text in _upright_joined(_runs(page, page.get_rotation()), upright):
        pieces.append(Piece(left, height - top, right, height - bottom, text, len(pieces)))
    page.close()
    return Page(height, tuple(pieces), tuple(upright))


_Run = tuple[float, float, float, float, str]
"""Left, bottom, right, top and text of what stands on one line without a wide gap."""


def _runs(page: Any, rotation: int) -> Iterator[_Run]:
    box, text, ends_word = _Box(0.0, 0.0, 0.0, 0.0), "", False
    for code, of_character in _characters(page, rotation):
        if code in _BLANKS:
            ends_word = True
            continue
        if text and not _goes_on(box, of_character, ends_word):
            yield (*box, text)
            text = ""
        box = box.with_(of_character) if text else of_character
        text, ends_word = text + " " * (ends_word and bool(text)) + (_HYPHENS.get(code) or chr(code)), False
    if text:
        yield (*box, text)


class _Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    def with_(self, other: _Box) -> _Box:
        smallest = (min(self.left, other.left), min(self.bottom, other.bottom))
        return _Box(*smallest, max(self.right, other.right), max(self.top, other.top))

    @property
    def height(self) -> float:
        return self.top - self.bottom


def _goes_on(box: _Box, character: _Box, after_blank: bool) -> bool:
    """Whether a character belongs to the run before it, by its distance and height on the line."""
    size = max(box.height, character.height, 1.0)
    distance = max(character.left - box.right, box.left - character.right)
    overlap = min(character.top, box.top) - max(character.bottom, box.bottom)
    needed = 0.2 * min(character.height, box.height) if after_blank else -0.1 * size
    return distance <= _WIDE_GAP * size and overlap >= needed


def _characters(page: Any, rotation: int) -> Iterator[tuple[int, _Box]]:
    """Code points and boxes as pdfium reads them, the blanks included that it adds between words."""
    from pypdfium2 import raw

    text, (width, height) = page.get_textpage(), page.get_size()
    left, right, bottom, top = (ctypes.c_double() for _ in range(4))
    pointers = [ctypes.byref(one) for one in (left, right, bottom, top)]
    for number in range(text.count_chars()):
        code = raw.FPDFText_GetUnicode(text, number)
        raw.FPDFText_GetCharBox(text, number, *pointers)
        yield code, _turned(_Box(left.value, bottom.value, right.value, top.value), rotation, width, height)
    text.close()


def _turned(box: _Box, rotation: int, width: float, height: float) -> _Box:
    """A box of a page that is shown turned clockwise, where it is shown."""
    if rotation == 90:
        return _Box(box.bottom, height - box.right, box.top, height - box.left)
    if rotation == 180:
        return _Box(width - box.right, height - box.top, width - box.left, height - box.bottom)
    if rotation == 270:
        return _Box(width - box.top, box.left, width - box.bottom, box.right)
    return box


def _upright_joined(runs: Iterator[_Run], upright: list[str]) -> Iterator[_Run]:
    """The runs; single characters that stand over each other are put together and go to `upright`."""
    stack: list[_Run] = []
    for run in runs:
        if len(run[4]) == 1 and (not stack or abs(stack[-1][0] - run[0]) < run[2] - run[0] + 1):
            stack.append(run)
            continue
        yield from _unless_upright(stack, upright)
        stack = [run] if len(run[4]) == 1 else []
        if not stack:
            yield run
    yield from _unless_upright(stack, upright)


def _unless_upright(stack: list[_Run], upright: list[str]) -> Iterator[_Run]:
    if len(stack) > 3:
        upright.append("".join(run[4] for run in stack))
    else:
        yield from stack


PDF = OneText(_read_pdf)
