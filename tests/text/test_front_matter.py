"""Front matter: title, date and all else before a text are its metadata; what only looks like it stays text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import document, found

from memspan.text.readers.texts import front_matter
from memspan.types import Document, Skipped

NAMES = ("a.md", "a.markdown", "a.rst", "a.txt", "a.html")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "lines",
    [
        ["---", "title: The title", "date: 2024-03-01", "tags: [a, b]", "draft: false", "---"],
        [
            "---",
            "# a comment",
            "title: 'The title'",
            "date: '2024-03-01'",
            "tags:",
            "  - a",
            "  - b",
            "draft: false",
            "...",
        ],
        ["+++", "# a comment", 'title = "The title"', "date = 2024-03-01", 'tags = ["a", "b"]', "draft = false", "+++"],
        ["---  ", '{"title": "The title", "date": "2024-03-01", "tags": ["a", "b"], "draft": false}', "--- "],
    ],
)
def test_title_date_and_all_else_are_taken_from_it(tmp_path: Path, name: str, end: str, lines: list[str]) -> None:
    one = document(tmp_path / name, end.join([*lines, "The text."]))
    assert (one.title, one.date, one.text) == ("The title", "2024-03-01", "The text.")
    assert one.metadata == {"path": name, "tags": ["a", "b"], "draft": False}


@pytest.mark.parametrize(
    ("matter", "values"),
    [
        ("a: no\nb: yes\nc: on", {"a": "no", "b": "yes", "c": "on"}),
        ("time: 12:30\nzip: 01234\nport: 22:22", {"time": "12:30", "zip": "01234", "port": "22:22"}),
        ("n: 12\nx: -1.5\ne: 1e3\ntrue: null\nt: ~", {"n": 12, "x": -1.5, "e": 1000.0, "true": None, "t": None}),
        ("a: {b: [1, {c: 2}]}", {"a": {"b": [1, {"c": 2}]}}),
        ("a: >\n  folded\n  text", {"a": "folded text\n"}),
        ("größe: 5 m²", {"größe": "5 m²"}),
        ("2024: year", {"2024": "year"}),
        ("when: 2024-03-01 10:00", {"when": "2024-03-01 10:00"}),
        ("a: 0x1f\nb: 1_000\nc: .5", {"a": "0x1f", "b": "1_000", "c": 0.5}),
    ],
)
def test_values_are_what_is_written(matter: str, values: dict[str, Any]) -> None:
    assert front_matter(f"---\n{matter}\n---\nText") == (values, "Text")


def test_toml_keeps_its_dates_and_tables() -> None:
    matter = "a = 2024-03-01T00:30:00+09:00\nb = 10:00:00\nc = 2024-03-01 10:00:00\n[d]\ne = [1, 2.5]\n"
    values, text = front_matter(f"+++\n{matter}+++\n\nText")
    assert values == {
        "a": "2024-03-01T00:30:00+09:00",
        "b": "10:00:00",
        "c": "2024-03-01T10:00:00",
        "d": {"e": [1, 2.5]},
    }
    assert text == "\nText"


STAYS = [
    "---\n\nA rule, and a text.\n\n---\n\nMore.",
    "---\nA sentence: with a colon: twice\n---\nText",
    "---\ntitle: [unclosed\n---\nText",
    "---\ntitle: x\n\nNever closed.",
    "---\n- a\n- list\n---\nText",
    "---\njust words\n---\nText",
    "---\n---\nText",
    "----\ntitle: x\n----\nText",
    "--- title: x\n---\nText",
    "Text\n---\ntitle: x\n---\n",
    " ---\ntitle: x\n---\nText",
    "---\ntitle: x\n ---\nText",
    "---\na: &x [1]\nb: *x\n---\nText",
    "---\na: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n---\nText",
    "---\na: !!python/object/apply:os.system [ls]\n---\nText",
    "---\na: " + "[" * 5000 + "\n---\nText",
    "---\n? [a, b]\n: c\n---\nText",
    "+++\nnot toml\n+++\nText",
    "+++\na = 1\na = 2\n+++\nText",
    "+++\na = nan\n+++\nText",
    "+++\na = 1\n---\nText",
    "---\na = 1\n+++\nText",
    "---\na: .nan\n---\n",
]


@pytest.mark.parametrize("text", STAYS, ids=lambda text: text[:30])
@pytest.mark.parametrize("name", ["a.md", "a.txt"])
def test_what_is_none_stays_text(tmp_path: Path, name: str, text: str) -> None:
    one = document(tmp_path / name, text)
    assert one.text == text
    assert one.metadata.keys() == {"path"} or not text.partition("\n---\n")[2]


def test_a_file_of_front_matter_alone_is_its_text_and_its_metadata(tmp_path: Path) -> None:
    text = "---\ntitle: T\ndate: 2024\n---\n"
    one = document(tmp_path / "a.md", text)
    assert (one.title, one.date, one.text) == ("T", "2024", text)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("---\n# comment\ntags: x\n---\n# Heading\nText", "Heading"),
        ("---\ntags: x\n---\nText", "a"),
        ("---\ntitle: ''\n---\n# Heading\nText", "Heading"),
        ("---\ntitle: 2024\n---\n# Heading\nText", "2024"),
        ("---\ntitle: [a]\n---\n# Heading\nText", "Heading"),
        ("---\nTitle: Upper\n---\n# Heading\nText", "Upper"),
        ("---\ntitle: two\n  lines\n---\nText", "two lines"),
    ],
)
def test_titles_beside_headings(tmp_path: Path, text: str, title: str) -> None:
    assert document(tmp_path / "a.md", text).title == title


@pytest.mark.parametrize(
    ("matter", "date"),
    [
        ("date: 2024-03-01T00:30:00+09:00", "2024-03-01T00:30:00+09:00"),
        ("created: 1 March 2024", "2024-03-01"),
        ("updated: 2025\ndate: 2024-03", "2024-03"),
        ("published: true\nmodified: 2024-05-01", "2024-05-01"),
        ("lastmod: 2024", "2020-01-01"),
        ("date:", "2020-01-01"),
    ],
)
def test_dates_in_it(tmp_path: Path, matter: str, date: str) -> None:
    assert document(tmp_path / "2020-01-01.md", f"---\n{matter}\n---\nText").date == date


def test_a_date_in_it_that_may_be_two_is_named(tmp_path: Path) -> None:
    one, skipped = found(tmp_path / "2020-01-01.md", "---\ndate: 03/04/2024\n---\nText")
    assert isinstance(one, Document) and one.date is None and one.metadata["date"] == "03/04/2024"
    assert isinstance(skipped, Skipped) and "may mean two days" in skipped.reason


def test_it_is_looked_for_at_the_beginning_only(tmp_path: Path) -> None:
    long = "---\n" + "a: b\n" * 20_000 + "---\nText"
    assert document(tmp_path / "a.md", long).text == long


@given(st.sampled_from(["---", "+++"]), st.text(max_size=40), st.text(max_size=10))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_any_text_is_read_whole_or_split_at_its_front_matter(mark: str, matter: str, body: str) -> None:
    text = f"{mark}\n{matter}\n{mark}\n{body}"
    values, rest = front_matter(text)
    assert rest == text if not values else text.endswith(rest)
