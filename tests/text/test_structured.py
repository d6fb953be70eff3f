"""Notebooks, XML, subtitles, markup and settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memspan.text.corpus import read_paths
from memspan.types import Document, Skipped


def read(path: Path, data: str | bytes) -> Document | Skipped:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    (found,) = read_paths([path])
    return found


def document(path: Path, data: str | bytes) -> Document:
    found = read(path, data)
    assert isinstance(found, Document), found
    return found


# Notebooks ------------------------------------------------------------------------------------------------------------


def notebook(*cells: dict[str, Any], **more: Any) -> str:
    return json.dumps({"cells": list(cells), "metadata": {"kernelspec": {"language": "python"}}, "nbformat": 4, **more})


def code(source: Any, *outputs: dict[str, Any]) -> dict[str, Any]:
    return {"cell_type": "code", "source": source, "outputs": list(outputs)}


PICTURE = {"output_type": "display_data", "data": {"image/png": "aGVsbG8=" * 50, "text/plain": "<Figure>"}}


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        ([{"cell_type": "markdown", "source": ["# Otters\n", "Text"]}, code("x = 1")], "# Otters\nText\n\nx = 1"),
        ([code("print(1)", {"output_type": "stream", "text": ["1\n"]})], "print(1)\n\nOutput: 1"),
        ([code("f()", {"output_type": "execute_result", "data": {"text/plain": "7"}})], "f()\n\nOutput: 7"),
        ([code("plot()", PICTURE)], "plot()\n\nOutput: <Figure>"),
        (
            [code("x", {"output_type": "error", "ename": "E", "evalue": "no"})],
            "x\n\nOutput: E: no",
        ),
        ([code(""), code("a")], "a"),
    ],
)
def test_cells_and_what_of_their_outputs_is_text(tmp_path: Path, cells: list[dict[str, Any]], text: str) -> None:
    assert document(tmp_path / "a.ipynb", notebook(*cells)).text.strip() == text


def test_a_notebook_is_titled_by_its_first_heading_not_by_a_comment_of_its_code(tmp_path: Path) -> None:
    found = document(
        tmp_path / "a.ipynb", notebook(code("# a comment"), {"cell_type": "markdown", "source": "# Otters"})
    )
    assert (found.title, found.metadata["language"]) == ("Otters", "python")


def test_a_long_output_is_cut(tmp_path: Path) -> None:
    found = document(tmp_path / "a.ipynb", notebook(code("x", {"output_type": "stream", "text": "long " * 5000})))
    assert len(found.text) < 3000
    assert found.text.endswith(" ...")


def test_a_notebook_of_the_format_before(tmp_path: Path) -> None:
    old = {"worksheets": [{"cells": [{"cell_type": "code", "input": "x = 1", "outputs": []}]}], "nbformat": 3}
    assert document(tmp_path / "a.ipynb", json.dumps(old)).text == "x = 1"


@pytest.mark.parametrize("data", ["", "{", "[]", "5", "{}", '{"cells": 5}', '{"cells": [5]}', "[" * 9000])
def test_what_is_no_notebook_is_skipped(tmp_path: Path, data: str) -> None:
    assert isinstance(read(tmp_path / "a.ipynb", data), Skipped)


# XML ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("<a><b>One</b><c>Two</c></a>", "One\n\nTwo"),
        ("<p>An <i>ot</i>ter, <b>really</b>.</p>", "An otter, really."),
        ("<a>\n  <b>\n   One\n   two </b>\n</a>", "One two"),
        ("<a><!-- no --><?php no ?><b>One</b></a>", "One"),
        ("<a><![CDATA[1 < 2]]></a>", "1 < 2"),
        ("<x:a xmlns:x='u'><x:b>One</x:b></x:a>", "One"),
        ("<a>&lt;&#246;&gt;</a>", "<ö>"),
        ("<rss><item><title>T</title><description>D</description></item></rss>", "T\n\nD"),
    ],
)
def test_the_text_of_xml_in_order(tmp_path: Path, data: str, text: str) -> None:
    assert document(tmp_path / "a.xml", data).text == text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1", "windows-1252"])
def test_the_encoding_that_xml_declares(tmp_path: Path, encoding: str) -> None:
    data = f'<?xml version="1.0" encoding="{encoding}"?><a>Grüße</a>'.encode(encoding)
    assert document(tmp_path / "a.xml", data).text == "Grüße"


def test_xml_in_an_encoding_of_several_bytes(tmp_path: Path) -> None:
    data = '<?xml version="1.0" encoding="shift_jis"?><a>日本語</a>'.encode("shift_jis")
    assert document(tmp_path / "a.xml", data).text == "日本語"


def test_the_title_of_xml(tmp_path: Path) -> None:
    assert document(tmp_path / "a.xml", "<article><title>The <i>plan</i></title><p>x</p></article>").title == "The plan"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("<a><b></a>", "malformed XML"),
        ("", "malformed XML"),
        ("<a b='only attributes'/>", "XML without text"),
        ('<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]><a>&e;</a>', "XML that declares entities"),
        ('<!DOCTYPE a [<!ENTITY e "x"><!ENTITY f "&e;&e;">]><a>&f;</a>', "XML that declares entities"),
        ("<a>" * 100_000, ""),
        ("<a>" * 20_000 + "x" + "</a>" * 20_000, ""),
    ],
)
def test_xml_that_is_not_read(tmp_path: Path, data: str, reason: str) -> None:
    found = read(tmp_path / "a.xml", data)
    assert isinstance(found, Skipped)
    assert found.reason.startswith(reason)


# Subtitles ------------------------------------------------------------------------------------------------------------

SRT = """\
1
00:00:01,000 --> 00:00:02,500
<i>An otter</i>

2
00:00:03,000 --> 00:00:04,000
{\\an8}swims
and dives.

3
01:02:03,000 --> 01:02:04,000
Later.
"""
VTT = """\
WEBVTT - a file

NOTE a note --> not said

STYLE
::cue { color: red }

intro
00:01.000 --> 00:02.000 align:start position:0%
<v Ann Smith>Hello <c.loud>there</c>

00:03.000 --> 00:04.000
<v.first Bo>Hi
"""


def test_subtitles_are_said_in_order_with_the_time_of_each_paragraph(tmp_path: Path) -> None:
    found = document(tmp_path / "a.srt", SRT)
    assert found.text == "[0:00:01] An otter\nswims and dives.\n\n[1:02:03] Later."
    assert found.metadata["seconds"] == 3724


def test_web_subtitles_name_who_speaks(tmp_path: Path) -> None:
    assert document(tmp_path / "a.vtt", VTT).text == "[0:00:01] Ann Smith: Hello there\nBo: Hi"


@pytest.mark.parametrize("change", [lambda text: text.replace("\n", "\r\n"), lambda text: "\ufeff" + text, str.strip])
def test_subtitles_of_other_systems(tmp_path: Path, change: Any) -> None:
    assert document(tmp_path / "a.srt", change(SRT)).text == document(tmp_path / "b.srt", SRT).text


def test_a_paragraph_is_at_most_a_minute(tmp_path: Path) -> None:
    cues = "".join(
        f"{s}\n00:{s // 60:02}:{s % 60:02},000 --> 00:{s // 60:02}:{s % 60:02},900\nw{s}\n\n" for s in range(150)
    )
    assert document(tmp_path / "a.srt", cues).text.count("\n\n") == 2


def test_captions_that_roll_are_said_once(tmp_path: Path) -> None:
    cues = "".join(f"{n}\n00:00:0{n},000 --> 00:00:0{n},900\nsame line\n\n" for n in range(4))
    assert document(tmp_path / "a.srt", cues).text == "[0:00:00] same line"


@pytest.mark.parametrize("data", ["", "no cue", "1\n00:00 -> 00:01\nx\n", "WEBVTT\n\nNOTE only\n"])
def test_what_holds_no_subtitles_is_skipped(tmp_path: Path, data: str) -> None:
    assert isinstance(read(tmp_path / "a.srt", data), Skipped)


# Markup and settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "title"),
    [
        (
            "a.tex",
            "% \\title{No}\n\\documentclass{article}\n\\title[s]{The \\textbf{plan}}\n\\begin{document}x",
            "The plan",
        ),
        ("a.tex", "\\section{One}\ntext", "a"),
        ("a.org", "#+AUTHOR: Ann\n#+TITLE: The plan\n* One\ntext", "The plan"),
        ("a.org", "* One\ntext\n* Two", "One"),
        ("a.org", "#+title: lower\n", "lower"),
        ("a.adoc", "// a comment\n= The plan\nAnn\n\n== One\n", "The plan"),
        ("a.asciidoc", "== One\ntext", "a"),
    ],
)
def test_titles_of_markup(tmp_path: Path, name: str, text: str, title: str) -> None:
    found = document(tmp_path / name, text)
    assert (found.text, found.title) == (text, title)


@pytest.mark.parametrize("extension", ["yaml", "yml", "toml", "ini", "cfg", "conf", "log", "properties"])
def test_settings_and_logs_are_text_as_they_stand(tmp_path: Path, extension: str) -> None:
    text = "# a comment\nkey: value\r\n[section]\n"
    assert document(tmp_path / f"a.{extension}", text).text == text
