"""Sentences that a reader meets are short, plain and American (the rules are in docs/architecture.md)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import pytest
from prose import (
    MOST_WORDS,
    ROOT,
    Sentence,
    of_descriptions,
    of_docstrings,
    of_help,
    of_markdown,
    of_messages,
    sentences,
)

# docs/cli.md is made of help texts, which are read by themselves.
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != "cli.md"]
PAGES += [*ROOT.glob("*/README.md"), *ROOT.glob("src/memspan/adapters/*/README.md"), *ROOT.glob("*.md")]
SOURCES = {"docstrings": of_docstrings, "help": of_help, "messages": of_messages, "descriptions": of_descriptions}

PATTERNS = [
    r"\btold\b",
    r"\bso (?:many|much)\b",
    r"^what\b[^?]*\.$",
    r"\bwhat\b[^.?!;:,]* (?:is|are|was|were|has|have|does|do|can)\b[^.?!;:,]* (?:is|are|was|were)\b",
    r"\b(?:that|which|it) is what\b",
    r"\bthe ones? (?:that|which|who)\b",
    r"\bthose (?:that|which|who)\b",
    r"\bown\b.*\b(?:its|their|his|her|your|our) own\b",
]


def faults(found: Iterable[Sentence]) -> list[str]:
    """What breaks a rule, with its place."""
    wrong = []
    for sentence in found:
        long = [f"{sentence.words} words"] if sentence.words > MOST_WORDS else []
        phrases = [match[0] for pattern in PATTERNS if (match := re.search(pattern, sentence.text, re.IGNORECASE))]
        wrong += [f"{sentence.place}: {fault}: {sentence.text}" for fault in long + phrases]
    return wrong


def misspelled(texts: Iterable[str]) -> list[str]:
    """Words that are not spelled as in America, or not at all, by `typos` with the settings of pyproject.toml."""
    typos = shutil.which("typos", path=sysconfig.get_path("scripts"))
    assert typos is not None, "pip install typos"
    done = subprocess.run(
        [typos, "--format", "json", "-"], input="\n".join(texts), capture_output=True, encoding="utf-8", cwd=ROOT
    )
    assert done.returncode in (0, 2), done.stderr
    return [
        f"{found['typo']}: {', '.join(found['corrections'])}" for found in map(json.loads, done.stdout.splitlines())
    ]


def page_sentences(page: Path) -> list[Sentence]:
    """Of the log only the page on top: the studies below it stay as they were written."""
    text = page.read_text(encoding="utf-8")
    return list(of_markdown(page.name, text.partition("\n## 20")[0] if page.name == "LOG.md" else text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_is_plain(page: Path) -> None:
    assert not faults(page_sentences(page))


@pytest.mark.parametrize("source", SOURCES)
def test_what_the_package_says_is_plain(source: str) -> None:
    found = list(SOURCES[source]())
    assert len(found) > 100, "the texts are looked for where there are none"
    assert not faults(found)


def test_spelling_is_american() -> None:
    found = [sentence for page in PAGES for sentence in page_sentences(page)]
    found += [sentence for source in SOURCES.values() for sentence in source()]
    assert not misspelled(sentence.text for sentence in found)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("It has 0.5 s (e.g. here, i.e. there). x.py runs.", ["It has 0.5 s (e.g. here, i.e. there).", "x.py runs."]),
        ("(It ends.) So it goes on\nin a line.", ["(It ends.)", "So it goes on in a line."]),
    ],
)
def test_sentences_are_found(text: str, wanted: list[str]) -> None:
    assert [sentence.text for sentence in sentences("", text)] == wanted


def test_markdown_is_read_without_code_and_addresses() -> None:
    text = "# A title\n\nIt has `a b`, `c` and `d`.\n\n- [An item](x.md). Second.\n\n```text\nno sentence\n```\n"
    text += "\n    none\n"
    text += "\n| a | b |\n|---|---|\n| One. Two. | `x` |\n"
    found = list(of_markdown("page", text))
    assert [(sentence.place, sentence.text) for sentence in found] == [
        *[("page:1", "A title"), ("page:3", "It has `, ` and `."), ("page:5", "An item."), ("page:5", "Second.")],
        *[("page:13", "a"), ("page:13", "b"), ("page:15", "One."), ("page:15", "Two."), ("page:15", "`")],
    ]
    assert found[1].words == 3


@pytest.mark.parametrize(
    "text",
    [
        "It " + "is " * MOST_WORDS + "long.",
        "The tool was told.",
        "It reads so many rows.",
        "What is new is added.",
        "It shows what was found is wanted.",
        "That is what it does.",
        "It keeps the one that is new.",
        "It deletes those that are old.",
        "Each has its own folder of its own.",
    ],
)
def test_a_fault_is_found(text: str) -> None:
    assert faults([Sentence("here", text)])


@pytest.mark.parametrize(
    "text",
    ["It " + "is " * (MOST_WORDS - 2) + "long.", "What is new?", "It asks what to do.", "This is fine, e.g. here."],
)
def test_plain_sentences_pass(text: str) -> None:
    assert not faults([Sentence("here", text)])


@pytest.mark.parametrize(
    "word", ["behaviour", "colour", "normalise", "tokenised", "centre", "licence", "cancelled", "teh"]
)
def test_a_british_or_wrong_spelling_is_found(word: str) -> None:
    assert misspelled(["All is well.", f"It has a {word}."]) and not misspelled(["It has a behavior and a license."])
