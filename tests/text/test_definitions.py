"""Source code is cut at its definitions."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memspan.text.corpus import read_paths
from memspan.text.definitions import CODE_KEY, split_code
from memspan.text.readers.source import LANGUAGES
from memspan.types import Document

PYTHON = '''\
"""A module."""

import os
import sys

LIMIT = 5


# What it is for.
@decorated
def first(a):
    """Words."""

    text = """
def not_one():

unindented in a string
"""
    return text


class Box:
    """Holds things."""

    size = 3

    def open(self):
        return 1

    @property
    def lid(self):

        return 2


async def last(): return 3
print(last())
'''

BRACES = {
    "javascript": "import x from 'y';\n\n/** Doc. */\nfunction one(a) {\n  if (a) {\n"
    "    b();\n  }\n}\n\nconst two = () => {\n  c();\n\n  d();\n};\n",
    "go": 'package main\n\nimport "fmt"\n\n// One says.\nfunc One() {\n\tfmt.Println(1)\n'
    "\n\tfmt.Println(2)\n}\n\nfunc Two() {\n\tfmt.Println(3)\n}\n",
    "rust": "use x::y;\n\n#[test]\nfn one() {\n    a();\n\n    b();\n}\n\nimpl T for U {\n    fn two(&self) {}\n}\n",
    "java": "package p;\n\npublic class One {\n    int a;\n\n    void f() {\n"
    "        g();\n    }\n}\n\ninterface Two {\n    void h();\n}\n",
    "c": "#include <x.h>\n\nint one(void)\n{\n    a();\n\n    b();\n}\n\nstatic int two(void)\n{\n    return 2;\n}\n",
    "ruby": "require 'x'\n\ndef one\n  a\n\n  b\nend\n\nclass Two\n  def c\n  end\nend\n",
    "shell": "#!/bin/sh\n\none() {\n  a\n\n  b\n}\n\ntwo() {\n  c\n}\n",
    "sql": "-- One\nCREATE TABLE one (\n  a int,\n\n  b int\n);\n\nCREATE TABLE two (\n  c int\n);\n",
    "c#": "using X;\n\nnamespace N\n{\n    class One\n    {\n        void F() { }\n    }\n}\n\nclass Two\n{\n}\n",
    "kotlin": "import x\n\nfun one(): Int {\n    a()\n\n    return 1\n}\n\nfun two() = 2\n",
    "php": "<?php\n\nfunction one() {\n    a();\n\n    b();\n}\n\nfunction two() {\n    c();\n}\n",
    "swift": "import X\n\nfunc one() {\n    a()\n\n    b()\n}\n\nstruct two {\n    let c = 1\n}\n",
}


def words(text: str) -> int:
    return len(text.split())


def passages(text: str, language: str, room: int = 12) -> list[str]:
    spans = split_code(text, language, words, room)
    assert all(a.end == b.start for a, b in pairwise(spans))
    assert not spans or (spans[0].start, spans[-1].end) == (0, len(text))
    return [text[span.start : span.end] for span in spans]


def test_a_definition_of_python_is_one_passage_with_its_decorator_and_comment() -> None:
    found = passages(PYTHON, "python", room=45)
    starts = [passage.lstrip().split("\n")[0] for passage in found]
    assert starts == ['"""A module."""', "# What it is for.", "class Box:", "async def last(): return 3"]
    assert "unindented in a string" in found[1]
    assert "return 2" in found[2]


def test_a_class_that_does_not_fit_is_cut_before_its_methods() -> None:
    found = passages(PYTHON, "python", room=8)
    starts = [passage.strip().split("\n")[0].strip() for passage in found]
    assert "def open(self):" in starts and "@property" in starts


def test_python_that_is_none_is_cut_as_other_languages() -> None:
    assert [text.split()[1] for text in passages("def a:\n  x y z\n\ndef b:\n  x y z\n", "python", 8)] == ["a:", "b:"]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("language", BRACES)
def test_a_definition_of_other_languages_is_one_passage(language: str, line_end: str) -> None:
    found = passages(BRACES[language].replace("\n", line_end), language, room=20)
    (one,) = (passage for passage in found if "one" in passage.lower())
    (two,) = (passage for passage in found if "two" in passage.lower())
    assert one != two
    assert "two" not in one.lower()


def test_small_neighbours_are_one_passage() -> None:
    text = "".join(f"def f{number}(): pass\n\n" for number in range(20))
    assert [words(passage) for passage in passages(text, "python", room=160)] == [30, 27, 3]


def test_a_definition_that_is_longer_than_the_room_is_cut_all_the_same() -> None:
    text = "def f():\n" + "".join(f"    x = {number}\n" for number in range(100))
    assert max(map(words, passages(text, "python"))) <= 12


@pytest.mark.parametrize("text", ["", " \n\t\n", "\n"])
def test_nothing_is_no_passage(text: str) -> None:
    assert split_code(text, "python", words, 10) == []


@pytest.mark.parametrize(
    "text", ["x", "x = 1", "\n\n\nx = 1\n\n\n", "    indented = 1\n", "def f(:\n", "\tx\n y\n", "if x:\\\n"]
)
def test_odd_texts_are_covered_whole(text: str) -> None:
    assert "".join(passages(text, "python")) == text
    assert "".join(passages(text, "go")) == text


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab \n\t{}()#:@\"'\\\rdef", max_size=200), st.sampled_from(["python", "c"]), st.integers(1, 30))
def test_any_text_is_covered_by_passages_of_the_room(text: str, language: str, room: int) -> None:
    found = [len(passage) for passage in passages_of_characters(text, language, room)]
    assert sum(found) == len(text) * bool(text.strip())
    assert all(length <= room for length in found)


def passages_of_characters(text: str, language: str, room: int) -> list[str]:
    return [text[span.start : span.end] for span in split_code(text, language, len, room)]


# As files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_files_of_code_are_titled_by_their_path(tmp_path: Path, language: str) -> None:
    for extension in LANGUAGES[language].split():
        path = tmp_path / "src" / f"a.{extension}"
        path.parent.mkdir(exist_ok=True)
        path.write_text("x = 1\n\ny = 2\n", encoding="utf-8")
        (found,) = (one for one in read_paths([tmp_path]) if isinstance(one, Document) and extension in one.external_id)
        assert (found.text, found.title) == ("x = 1\n\ny = 2\n", f"{tmp_path.name}/src/a.{extension}")
        assert found.metadata[CODE_KEY] == language
        path.unlink()
