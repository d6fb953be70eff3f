"""Publishing and reading a published bank by commands; the page that shows it is followed."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from command import failed, memspan

PAGE = (Path(__file__).parents[2] / "docs" / "shared.md").read_text(encoding="utf-8")


@pytest.fixture
def notes(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a bank of two notes; it is the working folder, and the cache is in it."""
    monkeypatch.setenv("MEMSPAN_CACHE", str(tmp_path / "cache"))
    lines = [{"id": name, "text": f"The {name} of Rome lives at number seven."} for name in ("otter", "heron")]
    (tmp_path / "notes.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert memspan("add", tmp_path / "notes.bank", tmp_path / "notes.jsonl").code == 0
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_of_published_banks_does_as_it_says(notes: Path) -> None:
    (block, *_) = re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL)
    outputs = [memspan(*shlex.split(line)[2:]) for line in block.splitlines()]
    assert [done.code for done in outputs] == [0, 0, 0]
    assert "otter" in outputs[1].out and "heron" in outputs[1].out
    assert "otter" in outputs[2].out and "heron" not in outputs[2].out
    code, _, any_engine = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(code, "shared.md", "exec"), {})
    (notes / "newt.txt").write_text("The newt of Rome lives at number nine.", encoding="utf-8")
    assert memspan("add", "notes.bank", "newt.txt", "--later").code == 0
    exec(compile(any_engine, "shared.md", "exec"), {})
    assert memspan("commit", "notes.bank", "rows.jsonl").code == 0
    assert memspan("info", "notes.bank", "--json").json["pending"] == 0
    assert len(PAGE.splitlines()) < 120


@pytest.mark.parametrize("url", ["shared", "file"])
def test_commands_read_a_published_bank_and_refuse_to_change_it(notes: Path, url: str) -> None:
    where = str(notes / "shared") if url == "shared" else (notes / "shared").as_uri()
    first = memspan("publish", "notes.bank", where, "--json").json
    assert (first["edition"], first["is_new"], first["url"]) == (1, True, where)
    assert memspan("ask", where, "Where does the otter live?", "--json").json["evidence"]
    searched = memspan("search", where, "otter", "--cache", notes / "other", "--cache-budget", "1GB", "--json").json
    assert searched and list((notes / "other" / "banks").glob("*/*/catalog.sqlite"))
    assert memspan("info", where, "--json").json["documents"] == 2
    assert memspan("export", where, "-").out.count('"external_id"') == 2
    assert memspan("changes", where, "--after-commit", 0, "--json").code == 0
    changes = [
        ("add", where, "notes.jsonl"),
        ("rm", where, "otter"),
        ("update", where, "otter", "--title", "x"),
        ("compact", where),
        ("verify", where),
        ("encode", where),
        ("reencode", where),
        ("reindex", where),
        ("export", where, "whole.zip"),
        ("sync", where, "."),
        ("publish", where, "elsewhere"),
    ]
    for words in changes:
        assert "is a published bank" in failed(*words), words
        assert "notes.bank on " in failed(*words), words
    memspan("export", "notes.bank", "whole.zip")
    assert "make the bank in a folder of this machine" in failed("import", "whole.zip", "s3://bucket/notes")
    assert not Path("s3:").exists() and not Path("elsewhere").exists()


def test_what_cannot_be_is_named(notes: Path) -> None:
    assert "at least one edition is kept" in failed("publish", "notes.bank", "shared", "--keep", 0)
    assert "no bank was published at" in failed("ls", "memory://nothing")
    assert "there is no bank in" in failed("publish", "nowhere", "shared")
    memspan("publish", "notes.bank", "shared")
    assert "a size as 6GB" in failed("search", "shared", "otter", "--cache-budget", "much")
    assert "too small" in failed("search", "shared", "otter", "--selector", "lexical", "--cache-budget", "1KB")
    (notes / "other.jsonl").write_text('{"id": "newt", "text": "The newt of Bern."}', encoding="utf-8")
    assert memspan("add", "other.bank", "other.jsonl").code == 0
    assert "holds another bank (notes.bank on " in failed("publish", "other.bank", "shared")
