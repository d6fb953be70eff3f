"""Splitting a long text into consecutive parts that each hold a limited number of tokens."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate, chain, pairwise

from memspan.types import Span

_NEWLINE = r"(?:\r\n|\r(?!\n)|[\n\v\f\x85\u2028\u2029])"
_BLANK_LINE = re.compile(rf"{_NEWLINE}\s*{_NEWLINE}")
_LINE_END = re.compile(rf"{_NEWLINE}(?:\s*{_NEWLINE})?")
_WHITESPACE = re.compile(r"\s+")
# What separates ids and cells that are written without blanks; not the comma of 1,000.
_SEPARATOR = re.compile(r"[;|]|,(?!\d{3}(?!\d))")

_CLOSERS = r"""["'”’»)\]」』）】》〉]*"""
# The lookbehinds let a run of stops match only from its start: without them a long dotted line costs quadratic time.
_SENTENCE_END = re.compile(
    rf"(?<![.!?…])(?P<stop>[.!?…]+){_CLOSERS}\s+"  # spaced scripts
    rf"|(?<![。！？｡])[。！？｡]+{_CLOSERS}\s*"  # CJK
)
_LONGEST_ABBREVIATION = 6
_ABBREVIATION = re.compile(
    r"(?<![\w.])(?:Mrs?|Ms|Dr|Prof|St|Sr|Jr|Rev|Gen|Col|Lt|Sgt|Capt|Mt|Nos?|[Ff]igs?|[Ee]qs?|[Ss]ec|[Cc]h|[Vv]ol|"
    r"[Aa]rt|[Rr]ef|pp?|eds?|e\.?g|i\.?e|vs|cf|etc|al|approx|ca|viz|resp|incl)\Z"
    r"|(?<![^\W_])(?P<single>[^\W\d_])\Z"
)

_ZERO_WIDTH_JOINER = "\u200d"
# Characters without any better border are cut into crumbs this much smaller than a part, so that parts pack densely.
_CRUMBS_PER_PART = 8


class _Border(IntEnum):
    """How good a place to cut is, best first."""

    PARAGRAPH = 0
    LINE = 1
    SENTENCE = 2
    WORD = 3
    SEPARATOR = 4
    CHARACTER = 5
    TORN = 6  # leaves whitespace or a combining mark at the start of the next part


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of the text, its estimated number of tokens, and the border at its end."""

    start: int
    end: int
    cost: float
    border: _Border


def split_text(text: str, count_tokens: Callable[[str], int], max_tokens: int) -> list[Span]:
    """Split `text` into consecutive spans of at most `max_tokens` tokens each, which together cover it exactly.

    Each part ends at the best border it can reach once it is half full, and at the furthest one of that kind: the end
    of a paragraph (a blank line), of a line, of a sentence, of a word, behind a comma, semicolon or bar, or, where
    nothing else is in reach, between characters. The whitespace around a border belongs to the part before it; only
    the indentation of a line stays with the line.

    A text that fits is one span, an empty or blank text none. `count_tokens` should not add special tokens; it is
    called once for every piece at a border that had to be looked at and about once for every part, however long the
    text. It need not be additive: pieces only estimate a part, and each part is counted itself.

    Two promises give way where they cannot be kept. A single character that alone exceeds `max_tokens` stays whole. A
    part consists of whitespace, or begins with a combining mark, only inside a run of such characters that comes
    near `max_tokens` tokens by itself.

    Raises:
        ValueError: `max_tokens` is below 1.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; a part needs room for at least 1 token")
    if not text.strip():
        return []
    num_tokens = count_tokens(text)
    if num_tokens <= max_tokens:
        return [Span(0, len(text))]
    splitter = _Splitter(text, count_tokens, max_tokens)
    return splitter.pack(list(splitter.fitting_pieces(_Piece(0, len(text), num_tokens, _Border.PARAGRAPH))))


def sentence_ends(text: str) -> Iterator[int]:
    """Yield where the sentences of `text` end, each position after the stop, its closing quotes and whitespace.

    A stop is `.`, `!`, `?` or `…` before whitespace, or `。`, `！`, `？` before anything. A period after a common
    abbreviation or a single capital (an initial) ends nothing. The end of the text is not looked for.
    """
    for match in _SENTENCE_END.finditer(text):
        if match["stop"] != "." or not _is_abbreviation(text, match.start()):
            yield match.end()


def sentence_bounds(text: str) -> Iterator[tuple[int, int]]:
    """Yield where every sentence begins and ends; together they cover `text`, and the last one may be empty."""
    return pairwise([0, *sentence_ends(text), len(text)])


def _is_abbreviation(text: str, period: int) -> bool:
    """Whether the word before the period at `period` is one that is usually written with it."""
    match = _ABBREVIATION.search(text, max(0, period - _LONGEST_ABBREVIATION), period)
    return match is not None and (match["single"] is None or match["single"].isupper())


@dataclass(frozen=True, slots=True)
class _Splitter:
    """One call of `split_text`."""

    text: str
    count_tokens: Callable[[str], int]
    max_tokens: int

    def fitting_pieces(self, whole: _Piece) -> Iterator[_Piece]:
        """Cut a piece at its best borders, and what is still too long again, until every piece fits.

        Costs are scaled so that they add up to the cost of the whole: a tokenizer that counts a space apart from its
        word would otherwise make words look twice as long as the sentence they came from.
        """
        border, cuts = _best_cuts(self.text[whole.start : whole.end])
        if not cuts:
            yield whole
            return
        bounds = [whole.start, *(whole.start + cut for cut in cuts), whole.end]
        counts = [self.count_tokens(self.text[start:end]) for start, end in pairwise(bounds)]
        scale = whole.cost / max(1, sum(counts))
        limit = self.max_tokens if border < _Border.CHARACTER else max(1, self.max_tokens // _CRUMBS_PER_PART)
        for (start, end), count in zip(pairwise(bounds), counts, strict=True):
            piece = _Piece(start, end, count * scale, whole.border if end == whole.end else border)
            if count <= limit:
                yield piece
            else:
                yield from self.fitting_pieces(piece)

    def pack(self, pieces: Sequence[_Piece]) -> list[Span]:
        """Join consecutive pieces to parts, greedily."""
        cost_before = [0.0, *accumulate(piece.cost for piece in pieces)]
        parts: list[Span] = []
        first = 0
        while first < len(pieces):
            stop = self._part_stop(pieces, cost_before, first)
            parts.append(Span(pieces[first].start, pieces[stop - 1].end))
            first = stop
        return parts

    def _part_stop(self, pieces: Sequence[_Piece], cost_before: Sequence[float], first: int) -> int:
        """Return the index after the last piece of the part that begins with `pieces[first]`."""
        budget: float = self.max_tokens
        while True:
            reach = bisect_right(cost_before, cost_before[first] + budget) - 1
            # A border before the part is half full is not taken: a heading alone would be a part that says nothing.
            half = bisect_left(cost_before, cost_before[first] + budget / 2) - 1
            reachable = range(min(max(first, half), max(first, reach - 1)), max(reach, first + 1))
            last = min(reachable, key=lambda index: (pieces[index].border, -index))
            if last == first:
                return first + 1
            excess = self.count_tokens(self.text[pieces[first].start : pieces[last].end]) - self.max_tokens
            if excess <= 0:
                return last + 1
            budget = cost_before[last + 1] - cost_before[first] - excess


def _best_cuts(text: str) -> tuple[_Border, list[int]]:
    """Return the best kind of border inside `text` and the positions of all of that kind; none if it is one character.

    Borders of words and better are looked for between the first and the last character that is no whitespace, so
    that no piece is blank.
    """
    blank_start = len(text) - len(text.lstrip())
    blank_end = len(text.rstrip())
    inner = text[blank_start:blank_end]
    for border, find_ends in _END_FINDERS.items():
        ends = (blank_start + end for end in find_ends(inner))
        cuts = [end for end in ends if end < blank_end and not _continues_character(text, end)]
        if cuts:
            return border, cuts
    return _middle_cut(text)


def _match_ends(pattern: re.Pattern[str]) -> Callable[[str], Iterable[int]]:
    return lambda text: (match.end() for match in pattern.finditer(text))


_END_FINDERS: dict[_Border, Callable[[str], Iterable[int]]] = {
    _Border.PARAGRAPH: _match_ends(_BLANK_LINE),
    _Border.LINE: _match_ends(_LINE_END),
    _Border.SENTENCE: sentence_ends,
    _Border.WORD: _match_ends(_WHITESPACE),
    _Border.SEPARATOR: _match_ends(_SEPARATOR),
}


def _middle_cut(text: str) -> tuple[_Border, list[int]]:
    """Cut `text` near its middle, where that tears nothing if there is such a place, but at least somewhere."""
    if len(text) < 2:
        return _Border.CHARACTER, []
    middle, blank_start = len(text) // 2, len(text) - len(text.lstrip())
    outwards = chain(range(middle, 0, -1), range(middle + 1, len(text)))
    clean = (
        cut for cut in outwards if cut > blank_start and not (text[cut].isspace() or _continues_character(text, cut))
    )
    cut = next(clean, None)
    return (_Border.TORN, [middle]) if cut is None else (_Border.CHARACTER, [cut])


def _continues_character(text: str, position: int) -> bool:
    """Whether the code point at `position` shows as one character with the one before it.

    Covers combining marks, variation selectors, joined emoji, skin tones and surrogate pairs; not every grapheme
    cluster of Unicode (Hangul jamo, flags).
    """
    char = text[position]
    if char.isascii():
        return False
    return (
        unicodedata.category(char).startswith("M")
        or _ZERO_WIDTH_JOINER in (char, text[position - 1])
        or "\U0001f3fb" <= char <= "\U0001f3ff"
        or "\udc00" <= char <= "\udfff"
    )
