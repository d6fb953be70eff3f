"""The pictures of the README: they are there, small, described, and show the commands that the README shows."""

from __future__ import annotations

import html
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PICTURES = ROOT / "docs" / "pictures"
MOST_BYTES = {"recording.svg": 80_000, "page.png": 150_000, "page-dark.png": 150_000}


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "make_pictures.py"))


def lines_of(svg: str) -> list[str]:
    """The lines of text in a recording."""
    rows: dict[str, str] = {}
    for row, text in re.findall(r'clip-path="url\(#memspan-line-(\d+)\)">([^<]*)</text>', svg):
        rows[row] = rows.get(row, "") + html.unescape(text).replace("\xa0", " ").rstrip("\n")
    return list(rows.values())


def test_all_pictures_are_small_and_nothing_else_is_beside_them() -> None:
    assert {path.name for path in PICTURES.iterdir()} == set(MOST_BYTES)
    for name, most in MOST_BYTES.items():
        assert 1_000 < (PICTURES / name).stat().st_size < most, name
        assert (PICTURES / name).read_bytes().startswith(b"<svg" if name.endswith(".svg") else b"\x89PNG")


def test_the_readme_shows_all_pictures_below_its_first_screen_with_a_text_for_each() -> None:
    first_screen = "\n".join(README.splitlines()[:40])
    described = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", README)
    described += [(text, name) for name, text in re.findall(r'<img src="([^"]+)" alt="([^"]+)"', README)]
    assert {name for _, name in described} == {"docs/pictures/recording.svg", "docs/pictures/page.png"}
    assert all(len(text.split()) > 15 for text, _ in described)
    assert 'media="(prefers-color-scheme: dark)" srcset="docs/pictures/page-dark.png"' in README
    assert "docs/pictures" not in first_screen and "docs/pictures" in README.partition("## Features")[0]


def test_the_recording_shows_the_first_commands_of_the_readme_and_the_answer(made: dict[str, Any]) -> None:
    shown = lines_of((PICTURES / "recording.svg").read_text(encoding="utf-8"))
    commands = [line for line in shown if line.startswith("$ ")]
    block = README.partition("```console\n")[2].partition("```")[0]
    assert commands == block.splitlines() == [f"$ {command}" for command in made["first_commands"]()]
    assert all(shlex.split(command)[1] == "memspan" for command in commands)
    answer = README.partition("```text\n")[2].splitlines()[:2]
    place = shown.index(answer[0])
    assert shown[place : place + 2] == answer


def test_the_recording_fetches_nothing_and_runs_nothing() -> None:
    svg = (PICTURES / "recording.svg").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\s\"<]+", svg)) <= {"http://www.w3.org/2000/svg", "https://www.textualize.io"}
    assert not re.search(r"<script|<foreignObject|@import|@font-face|\son\w+=|url\((?!#)", svg)
    assert "prefers-reduced-motion: no-preference" in svg


def test_a_recording_shows_lines_as_they_are(made: dict[str, Any]) -> None:
    text = "[bold]<b>&amp;[/bold] 🦦 “x”\n\n  " + "word " * 60 + "\n"
    svg = made["recording"]([("memspan ls a", text), ("memspan ls b", "")])
    shown = lines_of(svg)
    assert shown[:2] == ["$ memspan ls a", "[bold]<b>&amp;[/bold] 🦦 “x”"] and shown[-1] == "$ memspan ls b"
    assert " ".join(shown).split().count("word") == 60, "a long line is wrapped, not cut"
    rows = [int(row) for row in re.findall(r"memspan-line-(\d+)\)\"\] \{", svg)]
    moments = [float(delay) for delay in re.findall(r"animation-delay: ([\d.]+)s", svg)]
    assert rows == list(range(len(rows))) and moments == sorted(moments)
    assert {int(row) for row in re.findall(r'clip-path="url\(#memspan-line-(\d+)\)">', svg)} <= set(rows)


def test_the_site_has_the_pictures_and_no_package_does(tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / "docs" / "make_site.py"))["write_pages"](tmp_path)
    index = (tmp_path / "index.md").read_text(encoding="utf-8")
    for name in MOST_BYTES:
        assert (tmp_path / "pictures" / name).read_bytes() == (PICTURES / name).read_bytes()
        assert re.search(rf'[("]pictures/{name}[")]', index)
    assert "docs/pictures" not in index.partition("make_pictures")[0]
    # An sdist holds the sources of the package, and what a MANIFEST.in names.
    assert (ROOT / "MANIFEST.in").read_text(encoding="utf-8") == "prune tests\n"
    assert not list((ROOT / "src").rglob("*.png"))
