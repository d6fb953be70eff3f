"""The prose that people read of this project, as sentences: pages, docstrings of public names, help and messages."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token
from typer.main import get_command

import memspan
from memspan.cli import app

ROOT = Path(__file__).parents[1]
MOST_WORDS = 30
_MARKDOWN = MarkdownIt("commonmark").enable("table")
_CODES = re.compile(r"`(?:,? (?:and |or )?`)+")
_END = re.compile(r"(?<=[.!?])[)\"”’]*\s+")
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|etc|vs|cf|[A-Z])\.$")


class Sentence(NamedTuple):
    """A sentence, with a backquote for inline code, and where it stands."""

    place: str
    text: str

    @property
    def words(self) -> int:
        """How many words it has. Inline code is one word, and so is a list of it."""
        return len(re.findall(r"\S*\w\S*|`", _CODES.sub("`", self.text)))


def sentences(place: str, text: str) -> Iterator[Sentence]:
    """The sentences of one paragraph, heading, item or cell."""
    text, start = " ".join(text.split()), 0
    for end in [match for match in _END.finditer(text) if not _ABBREVIATION.search(text[: match.start()])]:
        yield Sentence(place, text[start : end.end()].strip())
        start = end.end()
    yield Sentence(place, text[start:])


def of_markdown(name: str, text: str) -> Iterator[Sentence]:
    """The sentences of a Markdown text; blocks of code, addresses and raw HTML are left out."""
    line = 0
    for token in _MARKDOWN.parse(text):
        line = token.map[0] + 1 if token.map else line
        if token.type == "inline":
            yield from sentences(f"{name}:{line}", "".join(map(_inline, token.children or ())))


def _inline(token: Token) -> str:
    if token.type in ("softbreak", "hardbreak"):
        return " "
    return {"text": token.content, "code_inline": "`"}.get(token.type, "")


def of_docstrings() -> Iterator[Sentence]:
    """The docstrings of the public names, and of the public methods and properties that this package gives them."""
    for name in memspan.__all__:
        value = getattr(memspan, name)
        yield from of_markdown(name, inspect.getdoc(value) or "")
        for owner in getattr(value, "__mro__", ()):
            if owner.__module__.startswith("memspan."):
                for member, inner in vars(owner).items():
                    inner = getattr(inner, "__func__", inner)
                    if not member.startswith("_") and (inspect.isfunction(inner) or isinstance(inner, property)):
                        yield from of_markdown(f"{owner.__name__}.{member}", inspect.getdoc(inner) or "")


def of_help(words: str = "memspan", command: Any = None) -> Iterator[Sentence]:
    """The help of every command and of its options."""
    command = command or get_command(app)
    yield from of_markdown(words, inspect.cleandoc(command.help or ""))
    for option in command.params:
        yield from of_markdown(f"{words} {option.name}", getattr(option, "help", None) or "")
    for name, inner in getattr(command, "commands", {}).items():
        yield from of_help(f"{words} {name}", inner)


def of_messages() -> Iterator[Sentence]:
    """The texts of the errors that the package raises, with a backquote for each value in them."""
    for path in sorted((ROOT / "src" / "memspan").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                for line in "\n".join(map(_literal, node.exc.args)).splitlines():
                    if " " in line:
                        yield from sentences(f"{path.relative_to(ROOT).as_posix()}:{node.lineno}", line)


def of_descriptions() -> Iterator[Sentence]:
    """The descriptions of the server's fields, parameters and tools."""
    for path in sorted((ROOT / "src" / "memspan" / "serve").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "description":
                yield from sentences(f"{path.relative_to(ROOT).as_posix()}:{node.value.lineno}", _literal(node.value))


def _literal(node: ast.expr) -> str:
    """A text of the source, as it reads with its values left out."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_literal(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _literal(node.left) + _literal(node.right)
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "`"
