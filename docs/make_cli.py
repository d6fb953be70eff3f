"""Write docs/cli.md from the command's own help: `python docs/make_cli.py`. A test compares the two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from typer.main import get_command
from typer.testing import CliRunner

from memspan.cli import app

TARGET = Path(__file__).with_name("cli.md")
WIDTH = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}


def render() -> str:
    """The help of the command and of each of its subcommands, as Markdown."""
    runner = CliRunner()
    parts = ["# Command line\n\nMade by `python docs/make_cli.py`; a test keeps it true.\n"]
    for words in _commands([], get_command(app)):
        shown = runner.invoke(app, [*words, "--help"], env=WIDTH).output
        lines = "\n".join(line.rstrip() for line in shown.strip().splitlines())
        parts.append(f"## {' '.join(['memspan', *words])}\n\n```text\n{lines}\n```\n")
    return "\n".join(parts)


def _commands(words: list[str], command: object) -> Iterator[list[str]]:
    """A command's words, and those of the commands in it, sorted."""
    yield words
    inner: dict[str, object] = getattr(command, "commands", {})
    for name in sorted(inner):
        yield from _commands([*words, name], inner[name])


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
