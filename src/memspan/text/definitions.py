"""Where source code is cut: at functions, classes and their members."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from memspan.text.splitter import split_text
from memspan.types import Span

CODE_KEY = "source_language"
"""The metadata key that marks source code."""

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
_CLOSING = re.compile(
    r"[ \t]*(?:[)\]}{]|(?:end|fi|done|esac|else|elif|elsif|except|finally|catch|rescue|then|in)\b)", re.I
)
_COMMENT = re.compile(r"[ \t]*#")

_Start = tuple[int, int]
"""Where a definition begins, and how many others it stands in."""


def split_code(text: str, language: str, count_tokens: Callable[[str], int], max_tokens: int) -> list[Span]:
    """Split source code into consecutive spans of at most `max_tokens` tokens each, which together cover it exactly.

    A definition that fits is never cut in itself, nor from its decorators or the comment above it. One that does not
    fit is cut before its members, and what has none where `split_text` cuts. Neighbors that together have as many
    characters as there is room for tokens, some quarter of it, are joined: imports, constants, one-liners.

    Python is parsed. In other languages, and where that fails, a definition is what indentation says it is: it begins
    after a blank line, or after the end of another, and all lines further in belong to it. So an unindented line after
    a blank one in a text of several lines is taken for a definition.
    """
    if not text.strip():
        return []
    starts = sorted(set((_python_starts(text) if language == "python" else None) or _indented_starts(text)))
    joined: list[Span] = []
    for piece in _pieces(text, Span(0, len(text)), starts, 0):
        for span in _fitting(text, piece, starts, 1, count_tokens, max_tokens):
            if joined and span.end - joined[-1].start <= max_tokens:
                joined[-1] = Span(joined[-1].start, span.end)
            else:
                joined.append(span)
    return joined


def _fitting(
    text: str, span: Span, starts: Sequence[_Start], depth: int, count_tokens: Callable[[str], int], max_tokens: int
) -> Iterator[Span]:
    """The span if it fits; else what stands in it `depth` deep, and so on."""
    piece = text[span.start : span.end]
    if (len(piece) <= max_tokens and piece.isascii()) or count_tokens(piece) <= max_tokens:
        yield span
        return
    pieces = _pieces(text, span, starts, depth)
    if len(pieces) > 1:
        for piece in pieces:
            yield from _fitting(text, piece, starts, depth + 1, count_tokens, max_tokens)
    else:
        for part in split_text(text[span.start : span.end], count_tokens, max_tokens):
            yield Span(span.start + part.start, span.start + part.end)


def _pieces(text: str, span: Span, starts: Sequence[_Start], depth: int) -> list[Span]:
    cuts = [place for place, deep in starts if deep == depth and span.start < place < span.end]
    if cuts and not text[span.start : cuts[0]].strip():
        del cuts[0]
    return [Span(start, end) for start, end in pairwise([span.start, *cuts, span.end])]


def _python_starts(text: str) -> list[_Start] | None:
    """None where it is no Python that this Python reads."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    lines = [match.start() for match in _LINE.finditer(text)]
    return [(lines[line], depth) for line, depth in _python_lines(tree.body, 0, text, lines)]


def _python_lines(body: Sequence[ast.stmt], depth: int, text: str, lines: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Lines, from 0, at which definitions begin, and those at which other statements follow them."""
    follows = False
    for node in body:
        defines = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if defines or follows:
            first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))]) - 1
            while first and _COMMENT.match(text, lines[first - 1]):
                first -= 1
            yield first, depth
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _python_lines(node.body, depth + 1, text, lines)
        follows = defines


def _indented_starts(text: str) -> list[_Start]:
    lines = [(match.start(), match[0]) for match in _LINE.finditer(text)]
    return list(_block_starts(lines, 0))


def _block_starts(lines: Sequence[tuple[int, str]], depth: int) -> Iterator[_Start]:
    """Where definitions begin among lines that are the inside of one, or a file."""
    indents = [_indent(line) for _, line in lines]
    filled = [indent for indent in indents if indent is not None]
    if not filled or depth > 8:
        return
    base, is_free, inside = min(filled), False, list[tuple[int, str]]()
    for (place, line), indent in zip(lines, indents, strict=True):
        if indent is None:
            is_free = True
            inside.append((place, line))
        elif indent > base:
            inside.append((place, line))
            is_free = False
        else:
            yield from _block_starts(inside, depth + 1)
            inside = []
            closes = _CLOSING.match(line) is not None
            if is_free and not closes:
                yield place, depth
            is_free = closes
    yield from _block_starts(inside, depth + 1)


def _indent(line: str) -> int | None:
    """Columns before the text of a line; None of a blank one."""
    text = line.expandtabs(4)
    return len(text) - len(text.lstrip()) if text.strip() else None
