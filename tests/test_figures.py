"""Figures of the pages have commands: each study of the log names one or the mark, and the named commands exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from memspan.cli import app

ROOT = Path(__file__).parents[1]
PAGES = {page.name: page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
MARK = "not reproducible"
COMMAND = re.compile(
    r"`[^`]*?(?:\b(?:python|torchrun|make|memspan|pytest) [^`]+|\b(?:benchmarks|examples|tests)/[^`]+)`"
    r"|\((?:evaluation|performance)\.md"
)
BLOCK = re.compile(r"^(?: {4}|\$ )(?:python benchmarks/|memspan |torchrun )", re.MULTILINE)


def studies() -> dict[str, str]:
    """The paragraphs of the log that begin with a bold title, with all that follows each, by title."""
    parts = re.split(r"\n(?=\*\*)", PAGES["LOG.md"].partition("\n## 20")[2])[1:]
    return {" ".join(part[2:].partition("**")[0].split()): " ".join(part.split()) for part in parts}


def measured_sections() -> dict[str, str]:
    """The sections of two pages that have a table with a fraction in it, by page and title."""
    parts = [
        (page, part) for page in ("performance.md", "evaluation.md") for part in re.split(r"\n(?=##+ )", PAGES[page])
    ]
    return {f"{page}: {part.splitlines()[0]}": part for page, part in parts if re.search(r"^\|.*\d\.\d", part, re.M)}


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """The words of each command on a page, in a block of code or inline, without brackets and remarks."""
    for page, text in PAGES.items():
        inline = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for line in re.findall(r"^(?: {4}|\$ )(.+)$", text, re.MULTILINE) + inline:
            words = re.sub(r"[\[\]|]|\s#.*", " ", line).split()
            if len(words) > 1 and words[0] in ("python", "memspan", "make"):
                yield page, words


def unknown_part(words: list[str], commands: Any, targets: list[str]) -> str:
    """The script, target, command or option that does not exist; empty where all do."""
    asked = [word.partition("=")[0] for word in words if word.startswith("--")]
    if words[0] == "make":
        return "" if words[1] in targets or "=" in words[1] else words[1]
    if words[0] == "python":
        script = ROOT / words[1]
        if not words[1].endswith(".py") or not script.is_file():
            return "" if words[1].startswith("-") else words[1]
        known = "".join(
            path.read_text(encoding="utf-8") for path in (script, script.with_name("plots.py")) if path.exists()
        )
        return next((option for option in asked if f'"{option}"' not in known), "")
    command = commands
    for word in words[1:]:
        command = getattr(command, "commands", {}).get(word, command)
    if command is commands and re.fullmatch(r"[a-z]+", words[1]):
        return words[1]
    options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
    return next((option for option in asked if option not in options), "")


@pytest.mark.parametrize("title", studies())
def test_a_study_names_its_command_or_has_the_mark(title: str) -> None:
    study = studies()[title]
    assert COMMAND.search(study) or MARK in study


@pytest.mark.parametrize("section", measured_sections())
def test_a_section_with_figures_has_a_command(section: str) -> None:
    text = measured_sections()[section]
    assert COMMAND.search(text) or BLOCK.search(text) or MARK in text


def test_a_row_of_the_readme_has_its_command() -> None:
    rows = [row for row in re.findall(r"^\|.*\|$", PAGES["README.md"], re.MULTILINE) if "| figure |" not in row]
    figures = [row for row in rows if re.search(r"\d", row)]
    assert len(figures) > 10 and all(COMMAND.search(row) for row in figures)


def test_a_figure_of_the_readme_stands_in_the_pages_it_leads_to() -> None:
    pages = "".join(PAGES[page] for page in ("performance.md", "evaluation.md", "LOG.md"))
    head, _, rest = PAGES["README.md"].partition("## Features")
    rows = re.findall(r"^\|.*\|$", head + rest.partition("## Measured")[2].partition("\n## ")[0], re.MULTILINE)
    cells = [cell for row in rows for cell in row.split("|")[2:-2] if "`" not in cell or "generate" in cell]
    figures = re.findall(r"\.\d+|\d+(?:\.\d+)?", " ".join(cells) + " ".join(re.findall(r" \.\d\d\d", head)))
    assert len(figures) > 30
    assert not [figure for figure in figures if not re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", pages)]


def test_named_commands_and_their_options_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    known = [(page, words, unknown_part(words, get_command(app), targets)) for page, words in command_lines()]
    assert len(known) > 100
    assert not [f"{page}: {unknown}: {' '.join(words)}" for page, words, unknown in known if unknown]


@pytest.mark.parametrize(
    ("line", "unknown"),
    [
        ("python benchmarks/rout.py", "benchmarks/rout.py"),
        ("python benchmarks/route.py --token 3", "--token"),
        ("make cheque", "cheque"),
        ("memspan asks BANK", "asks"),
        ("memspan ask BANK --round 2", "--round"),
        ("memspan bench latency --token 1m", "--token"),
        ("memspan bench latency --tokens 1m", ""),
        ("python benchmarks/route.py --tokens 3 --json FILE", ""),
    ],
)
def test_an_unknown_part_is_found(line: str, unknown: str) -> None:
    assert unknown_part(line.split(), get_command(app), ["check"]) == unknown
