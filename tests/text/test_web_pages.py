"""Pages as they come: unclosed elements, hidden ones, wrapped lines of every script, and what the head says."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import document, found, refused

from memspan.text.readers.pages import read_page
from memspan.types import Document, Skipped


@pytest.mark.parametrize(
    ("page", "title", "text"),
    [
        ("<title>Name<body><p>Text</p>", "Name", "Text"),
        ("<title>Name\n<h1>Head</h1><p>Text", "Name", "Head\n\nText"),
        ("<TITLE>Name<META charset=utf-8><P>Text", "Name", "Text"),
        ("<title>One</title><svg><title>icon</title></svg>Text", "One", "Text"),
        ("<svg><title>icon</title></svg>Text", "", "Text"),
        ("<title> </title><title>Two</title>Text", "Two", "Text"),
        ("<nav><ul><li>a</ul><main><p>Text</main>", "", "a\n\nText"),
        ("<nav>menu</nav><p>Text<nav>menu</nav>", "", "Text"),
        ("<nav><nav>menu</nav>menu</nav><p>Text", "", "Text"),
        ("<p>Text</p><nav>menu", "", "Text\nmenu"),
        ("<script>var a = 1;\n<p>Text</p>", "", "Text"),
        ("<script>a</script><p>Text<script>b", "", "Text"),
        ("<script>w('<script>x<\\/script><nav>')</script><nav>m</nav><p>Text", "", "Text"),
        ("<script>if (a < b && c > d) {}</script><p>Text", "", "Text"),
        ("<style>p {}<p>Text", "", "Text"),
        ("<template><p>x</p></template>Text", "", "Text"),
        ("<template>one<p>Text", "", "one\nText"),
        ("<textarea>one <p>Text", "", "one\nText"),
        ("<!-- never closed <p>Text", "", "never closed\nText"),
        ("<!-- a --><p>One<!-- <p>no --> more<!-- b --></p>", "", "One more"),
        ("<p>a</p><![x[y]]><p>b", "", "a\n\nb"),
        ("<?php echo 1 ?><p>Text", "", "Text"),
        ("<p hidden>no</p><div style='display: none'>no<p>no</p></div><p>Text", "", "Text"),
        ("<p style='VISIBILITY:HIDDEN'>no</p>Text", "", "Text"),
        ("<p hidden=until-found>Text</p>", "", "Text"),
        ("<div hidden>never closed<p>Text", "", "never closed\nText"),
        ("<ul><li>one<li>two<li hidden>no</ul>", "", "one\ntwo"),
        ("<dl><dt>a<dd>b<dt>c<dd>d</dl>", "", "a\nb\nc\nd"),
        ("<p>a<br>b<br/>c<hr>d", "", "a\nb\nc\n\nd"),
        ("<table><tr><td>a<table><tr><td>b<td>c</table><td>d</table>", "", "a\n\nb c\nd"),
        ("<table><thead><tr><th>h<th>i<tbody><tr><td>1<td>2</table>", "", "h i\n1 2"),
        ("<select><option>a<option>b</select>", "", "a\nb"),
        ("<pre>\n  def f():\n      return 1\n</pre>", "", "def f():\n      return 1"),
        (
            "re&shy;mem&shy;ber &amp;amp; &lt;b&gt; &euro; &#8364; &#x1F600; &nosuch;",
            "",
            "remember &amp; <b> € € 😀 &nosuch;",
        ),
        ("AT&T &copy 2024", "", "AT&T © 2024"),
        ("<ruby>漢<rp>(</rp><rt>かん</rt><rp>)</rp></ruby>", "", "漢(かん)"),
        ("a<wbr>b<span>c</span>", "", "abc"),
        ("<" * 50 + "p>Text", "", "<" * 49 + "\nText"),
        ("<div>" * 3000 + "deep", "", "deep"),
        ("no tags at all", "", "no tags at all"),
        ("<frameset></frameset><noframes>Text</noframes>", "", "Text"),
    ],
    ids=lambda value: value[:40],
)
def test_pages(page: str, title: str, text: str) -> None:
    content = read_page(page)
    assert (content.title, content.text) == (title, text)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("東京\n特許\n  許可局", "東京特許許可局"),
        ("<b>東</b>\n<i>京</i>", "東京"),
        ("東\n<b>\n京</b>", "東京"),
        ("𠮷\n野家、\r\n々「\nカタ\nカナ」", "𠮷野家、々「カタカナ」"),
        ("中文,\n中文。\n中文", "中文, 中文。中文"),
        ("中文\nLatin\n中文 12\n中文", "中文 Latin 中文 12 中文"),
        ("one\ntwo\n<b>three</b>\n\n four", "one two three four"),
        ("한국어는\n띄어쓰기를\n한다", "한국어는 띄어쓰기를 한다"),
        ("हिन्दी\nपाठ", "हिन्दी पाठ"),
        ("東 京", "東 京"),
        ("東&#10;京", "東京"),
        ("<pre>東\n京</pre>", "東\n京"),
        ("東<br>\n京", "東\n京"),
        ("<p>東\n</p>\n<p>京</p>", "東\n\n京"),
    ],
)
def test_lines_that_are_wrapped_in_the_source_are_joined_as_their_script_is_written(source: str, text: str) -> None:
    assert read_page(f"<body>{source}</body>").text == text


@pytest.mark.parametrize(
    ("head", "title", "date", "kept"),
    [
        ('<meta property="og:title" content=" The  name ">', "The name", None, {}),
        ('<title>Own</title><meta property="og:title" content="Other">', "Own", None, {}),
        (
            '<meta property="article:published_time" content="2024-03-01T00:30:00+09:00">',
            "Head",
            "2024-03-01T00:30:00+09:00",
            {"published": "2024-03-01T00:30:00+09:00"},
        ),
        ('<meta name="date" content="2024-03">', "Head", "2024-03", {"published": "2024-03"}),
        ('<META NAME="DC.Date" CONTENT="1 March 2024">', "Head", "2024-03-01", {"published": "1 March 2024"}),
        ('<meta itemprop=datePublished content="2024">', "Head", "2024", {"published": "2024"}),
        ('<meta property="article:modified_time" content="2025">', "Head", "2025", {"modified": "2025"}),
        (
            '<meta name=author content="N. N."><meta name=keywords content="a, b"><meta name=description content=D>',
            "Head",
            None,
            {"author": "N. N.", "keywords": "a, b", "description": "D"},
        ),
        ('<meta name=viewport content=x><meta charset=utf-8><meta name=date content="">', "Head", None, {}),
    ],
)
def test_what_the_head_says_is_kept(
    tmp_path: Path, head: str, title: str, date: str | None, kept: dict[str, str]
) -> None:
    one = document(tmp_path / "a.html", f"<html><head>{head}</head><body><h1>Head</h1>\n<p>Text</p></body></html>")
    assert (one.title, one.date, one.text) == (title, date, "Head\n\nText")
    assert one.metadata == {"path": "a.html", **kept}


def test_a_date_in_the_head_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    one, skipped = found(tmp_path / "a.html", "<meta name=date content='03/04/2024'><p>Text")
    assert isinstance(one, Document) and one.date is None
    assert isinstance(skipped, Skipped) and "'03/04/2024' may mean two days" in skipped.reason


@pytest.mark.parametrize("page", ["", " ", "<html></html>", "<title>Only", "<script>x</script>", "<p hidden>x</p>"])
def test_a_page_without_a_text_is_skipped(tmp_path: Path, page: str) -> None:
    assert refused(tmp_path / "a.html", page) == "empty"


PIECES = [
    "<p>",
    "</p>",
    "<title>",
    "</title>",
    "<nav",
    "</nav>",
    "<script>",
    "</script>",
    "<!--",
    "-->",
    "<pre>",
    "<b hidden>",
]


@given(
    st.lists(st.sampled_from([*PIECES, "<", ">", "&", "&#", "東", "\n", "a", " ", '"', "<td>", "<svg>"]), max_size=30)
)
@settings(max_examples=200, derandomize=True, deadline=None)
def test_any_page_is_read(pieces: list[str]) -> None:
    text = read_page("".join(pieces)).text
    assert "\x1e" not in text and text == text.strip()


@given(st.lists(st.sampled_from(["<div>", "</div>", "<b>", "<li>", "<table>", "<tr>", "<td>", "</p>"]), max_size=20))
@settings(max_examples=100, derandomize=True, deadline=None)
def test_no_word_is_lost_between_tags_that_hide_nothing(tags: list[str]) -> None:
    page = "".join(f"{tag}word{number} " for number, tag in enumerate(tags))
    assert sorted(read_page(page).text.split()) == sorted(f"word{number}" for number in range(len(tags)))
