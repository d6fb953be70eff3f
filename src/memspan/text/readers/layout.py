"""From the pieces of text on the pages of a PDF to a text in reading order.

Coordinates are in points, y grows downwards.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from memspan.text.paging import paged

_LIGATURES = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xFB05: "st", 0xFB06: "st"}
_HYPHENATED = re.compile(r"([^\s-]*(?:-[^\s-]+)*\w)[-\u00ad\u2010]\n(\n\f)?(\w[^\s]*)")
_COMPOUND = re.compile(r"\w+(?:-\w+)+")
_PAGE_NUMBER = re.compile(
    r"(?:\W*\b(?:page|seite|p|s|pag|página|pagina)\b)?\W*(\d+)(?:\s*(?:of|/|von|de|di|sur)\s*\d+)?\W*", re.IGNORECASE
)
_RIGHT_TO_LEFT = re.compile(r"[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]")

_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff]")

_EDGE_ROWS = 3
"""Rows from the top and the bottom of a page that may be a running head."""
_EDGE_SHARE = 0.14
_COLUMN_LINES, _COLUMN_WORDS = 3, 3
"""What stands side by side is columns of text where both have this many lines and as many words a line (the cells of a
table have fewer), or where it is drawn one after the other."""
_TRIED_GUTTERS = 8


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one line without a wide gap.

    Attributes:
        order: its place among all pieces of the page, as it is drawn.
    """

    left: float
    top: float
    right: float
    bottom: float
    text: str
    order: int = 0

    @property
    def height(self) -> float:
        return self.bottom - self.top


@dataclass(frozen=True, slots=True)
class Page:
    """A page: its height, its pieces, and what is drawn upwards or in columns of single characters."""

    height: float
    pieces: tuple[Piece, ...]
    upright: tuple[str, ...] = ()


def text_of_pages(pages: Sequence[Page]) -> tuple[str, list[str]]:
    """The text, with page breaks, and the running heads and feet that are left out of it."""
    running = _running(pages)
    left_out = sorted(
        {piece.text for of_page in running for piece in of_page if not _PAGE_NUMBER.fullmatch(piece.text)}
    )
    texts = []
    for page, dropped in zip(pages, running, strict=True):
        pieces = [piece for piece in page.pieces if piece not in dropped]
        blocks = [_lines(column) for column in _columns(pieces)]
        texts.append("\n\n".join([*filter(None, blocks), *page.upright]))
    return joined_words(paged(text.translate(_LIGATURES) for text in texts)), sorted(left_out)


def joined_words(text: str) -> str:
    """Words that were divided at the end of a line, whole again.

    The hyphen stays where the word has one elsewhere in the text, has others, or goes on with a capital or a figure.
    """
    compounds = {word.casefold() for word in _COMPOUND.findall(text)}

    def join(found: re.Match[str]) -> str:
        first, page_break, rest = found.groups()
        second = re.match(r"[\w-]*\w", rest)
        word = f"{first.rpartition('-')[2]}-{second[0] if second else rest}"
        keeps = word.casefold() in compounds or "-" in first or "-" in rest or not rest[0].islower()
        is_soft = found[0][len(first)] == "\u00ad"
        return f"{first}{'-' * (keeps and not is_soft)}{rest}" + (f"\n{page_break}" if page_break else "")

    return _HYPHENATED.sub(join, text)


# Running heads --------------------------------------------------------------------------------------------------------


def _running(pages: Sequence[Page]) -> list[set[Piece]]:
    """Per page the pieces near an edge that stand at the same place on the others: the same text, or page numbers."""
    edges = [_at_edges(page) for page in pages]
    num_filled = sum(1 for page in pages if page.pieces)
    counts: Counter[tuple[str, bool]] = Counter()
    for number, of_page in enumerate(edges):
        counts.update({key for piece, is_top in of_page for key in _keys(piece, is_top, number)})
    needed = num_filled if num_filled < 4 else max(3, num_filled * 2 // 5)
    found = [
        {
            piece
            for piece, is_top in of_page
            if any(counts[key] >= max(2, needed) for key in _keys(piece, is_top, number))
        }
        for number, of_page in enumerate(edges)
    ]
    # Pages of nothing else are not made of running heads.
    return [dropped if len(dropped) < len(page.pieces) else set() for page, dropped in zip(pages, found, strict=True)]


def _at_edges(page: Page) -> list[tuple[Piece, bool]]:
    rows = sorted({round(piece.bottom) for piece in page.pieces})
    top, bottom = set(rows[:_EDGE_ROWS]), set(rows[-_EDGE_ROWS:])
    return [
        (piece, is_top)
        for piece in page.pieces
        for is_top in (True, False)
        if round(piece.bottom) in (top if is_top else bottom)
        and (piece.bottom < page.height * _EDGE_SHARE if is_top else piece.top > page.height * (1 - _EDGE_SHARE))
    ]


def _keys(piece: Piece, is_top: bool, number: int) -> Iterator[tuple[str, bool]]:
    """What a running head has in common on all pages: its text, or that with its number counted from the page's."""
    text = " ".join(piece.text.split())
    yield text, is_top
    for found in re.finditer(r"\d+", text):
        at_end = found.end() == len(text) or found.start() == 0
        if len(found[0]) <= 5 and (at_end or _PAGE_NUMBER.fullmatch(text)):
            yield f"{text[: found.start()]}\0{int(found[0]) - number}{text[found.end() :]}", is_top


# Columns --------------------------------------------------------------------------------------------------------------


def _columns(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """The pieces in groups that are read one after the other, each from top to bottom."""
    gutter = _gutter(pieces)
    if gutter is None:
        yield list(pieces)
        return
    across = sorted((one for one in pieces if one.left < gutter < one.right), key=lambda one: one.top)
    bounds = [float("-inf"), *(one.top for one in across), float("inf")]
    for number, (start, end) in enumerate(pairwise(bounds)):
        if number:
            yield [across[number - 1]]
        beside = [one for one in pieces if start <= one.top < end and not one.left < gutter < one.right]
        for side in ([one for one in beside if one.right <= gutter], [one for one in beside if one.left >= gutter]):
            if side:
                yield from _columns(side)


def _gutter(pieces: Sequence[Piece]) -> float | None:
    """Where a line from top to bottom parts two columns of text, crossed by few pieces; None where none does."""
    if len(pieces) < 2 * _COLUMN_LINES:
        return None
    edges = {one.right + 0.5 for one in pieces}
    ranked = sorted((sum(one.left < x < one.right for one in pieces), -_width(pieces, x), x) for x in edges)
    for crossing, width, x in ranked[:_TRIED_GUTTERS]:
        if crossing > max(2, len(pieces) // 5):
            return None
        middle = x - width / 2
        if _are_columns(pieces, middle):
            return middle
    return None


def _width(pieces: Iterable[Piece], x: float) -> float:
    """From x to the next piece on its right."""
    return min((one.left - x for one in pieces if one.left >= x), default=0.0)


def _are_columns(pieces: Sequence[Piece], x: float) -> bool:
    left, right = [one for one in pieces if one.right <= x], [one for one in pieces if one.left >= x]
    if min(len(left), len(right)) < _COLUMN_LINES:
        return False
    top = max(min(one.top for one in side) for side in (left, right))
    bottom = min(max(one.bottom for one in side) for side in (left, right))
    beside = [[one for one in side if one.bottom > top and one.top < bottom] for side in (left, right)]
    if min(map(len, beside)) < _COLUMN_LINES:
        return False
    drawn = sorted((one.order, side) for side, of_side in enumerate(beside) for one in of_side)
    num_changes = sum(a[1] != b[1] for a, b in pairwise(drawn))
    is_text = all(_words_a_line(of_side) >= _COLUMN_WORDS for of_side in beside)
    return is_text or num_changes <= 2


def _words_a_line(pieces: Sequence[Piece]) -> float:
    """Words in the middle of all lines; two characters of scripts without blanks count as one."""
    words = (max(len(one.text.split()), len(_UNSPACED.findall(one.text)) // 2) for one in pieces)
    return sum(words) / len(_rows(pieces))


# Lines ----------------------------------------------------------------------------------------------------------------


def _rows(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces that stand on one line, lines from top to bottom."""
    rows: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda one: (one.top + one.bottom, one.left)):
        middle = (piece.top + piece.bottom) / 2
        if rows and rows[-1][-1].top <= middle <= rows[-1][-1].bottom:
            rows[-1].append(piece)
        else:
            rows.append([piece])
    return rows


def _lines(pieces: Sequence[Piece]) -> str:
    """A column as text; a gap that is wider than the usual one becomes a blank line."""
    rows = _rows(pieces)
    gaps = [below[0].top - above[0].bottom for above, below in pairwise(rows)]
    usual = median(gaps) if gaps else 0.0
    text = _row_text(rows[0]) if rows else ""
    for (above, below), gap in zip(pairwise(rows), gaps, strict=True):
        is_apart = gap > usual + 0.5 * max(above[0].height, below[0].height)
        text += ("\n\n" if is_apart else "\n") + _row_text(below)
    return text


def _row_text(row: Sequence[Piece]) -> str:
    is_reversed = sum(bool(_RIGHT_TO_LEFT.search(one.text)) for one in row) * 2 > len(row)
    return " ".join(one.text for one in sorted(row, key=lambda one: one.left, reverse=is_reversed))
