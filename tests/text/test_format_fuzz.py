"""Every reader meets damaged files, and names them: cut off, with bytes turned over, with pieces put in or left out."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_archives import PACKERS, tarred, zipped
from test_chats import DAYS, chatgpt, said, turn
from test_mail import HEADERS, letter, mailbox
from test_office import book, open_document, paragraph, shape, slides, word
from test_pdf import body, drawn
from test_structured import SRT, VTT, code, notebook

from memspan.text.corpus import read_paths
from memspan.types import Document, Skipped

_STEADY: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
ROW = '<text:p>One <text:s text:c="2"/>x</text:p><text:list-item><text:p>y</text:p></text:list-item>'


def _of(make: Callable[[Path], Path]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return make(Path(folder) / "x").read_bytes()


SEEDS: dict[str, Callable[[], bytes]] = {
    "zip": lambda: zipped({"a.txt": "One " * 20, "b/c.md": "# Two"}),
    "tar": lambda: tarred({"a.txt": b"One", "b/c.md": b"# Two"}),
    "tgz": lambda: PACKERS["gz"](tarred({"a.txt": b"One"})),
    "txt.zst": lambda: PACKERS["zst"](b"Some text to compress " * 20),
    "txt.bz2": lambda: PACKERS["bz2"](b"Some text to compress " * 20),
    "docx": lambda: _of(lambda path: word(path, paragraph("Text", style="L"))),
    "pptx": lambda: _of(lambda path: slides(path, shape("Title", "title"), notes="Notes")),
    "odt": lambda: _of(lambda path: open_document(path, f"<office:text>{ROW}</office:text>")),
    "fodt": lambda: b'<o xmlns:text="t"><body>' + ROW.encode() + b"</body></o>",
    "epub": lambda: _of(lambda path: book(path, {"one": "<p>Text</p>"})),
    "rtf": lambda: rb"{\rtf1\ansi{\info{\title T}}Hello \b bold\b0 \'fc \u26085? {\*\x y}\par}",
    "eml": lambda: letter("Text", **HEADERS).as_bytes(),
    "mbox": lambda: mailbox(letter("One", **HEADERS), letter("Two", Subject="s")),
    "ipynb": lambda: notebook(code("x = 1", {"output_type": "stream", "text": "1"})).encode(),
    "xml": lambda: b'<?xml version="1.0"?><a><title>T</title><p>One <i>two</i> &amp; three</p><!-- c --></a>',
    "srt": SRT.encode,
    "vtt": VTT.encode,
    "txt": DAYS.encode,
    "json": lambda: json.dumps([chatgpt(a=turn("What?", parent="root"), b=turn("That.", "assistant", "a"))]).encode(),
    "py": lambda: b"import x\n\n\ndef f():\n    return 1\n",
    "tex": lambda: b"\\title{The \\emph{plan}}\n\\begin{document}x\\end{document}",
}
SLACK = json.dumps([said("U1", "Hi <@U2> <https://x|y>"), said("U2", "Yes", files=[{"name": "a"}])]).encode()


@cache
def seed(kind: str) -> bytes:
    return SLACK if kind == "slack" else SEEDS[kind]()


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """The data with a few bytes changed, a piece put in or left out, or the end cut off."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(0, 6))):
        if changed:
            place = draw(st.integers(0, len(changed) - 1))
            changed[place] = draw(st.integers(0, 255))
    start = draw(st.integers(0, len(changed)))
    how = draw(st.sampled_from(["keep", "cut", "leave out", "put in"]))
    if how == "cut":
        del changed[start:]
    elif how == "leave out":
        del changed[start : start + draw(st.integers(1, 40))]
    elif how == "put in":
        changed[start:start] = draw(st.binary(min_size=1, max_size=40))
    return bytes(changed)


def _is_named(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for one in read_paths([path]):
        assert isinstance(one, Document | Skipped)
        assert not isinstance(one, Skipped) or one.reason


@pytest.mark.parametrize("kind", [*SEEDS, "slack"])
def test_damaged_files_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("2024-03-31.json" if kind == "slack" else f"a.{kind}")

    @settings(max_examples=50, **_STEADY)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        _is_named(path, data.draw(damaged(seed(kind))))

    check()


@pytest.mark.parametrize("kind", ["pdf", "xlsx", "docx", "zip", "eml", "rtf", "xml", "srt", "txt.gz"])
def test_any_bytes_are_named(tmp_path: Path, kind: str) -> None:
    @settings(max_examples=20, **_STEADY)
    @given(st.binary(max_size=300))
    def check(data: bytes) -> None:
        _is_named(tmp_path / f"a.{kind}", data)

    check()


def test_damaged_pdfs_are_named(tmp_path: Path) -> None:
    whole = drawn(tmp_path / "whole.pdf", body(0), body(1)).read_bytes()

    @settings(max_examples=30, **_STEADY)
    @given(damaged(whole))
    def check(data: bytes) -> None:
        _is_named(tmp_path / "a.pdf", data)

    check()


def test_every_reader_reads_its_seed(tmp_path: Path) -> None:
    for kind in SEEDS:
        path = tmp_path / f"a.{kind}"
        path.write_bytes(seed(kind))
        assert any(isinstance(one, Document) for one in read_paths([path])), kind
