"""`memspan sync`, and what commands say of files: names, patterns, what is stale."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import failed, memspan

from memspan.cli import render
from memspan.text import watching


def listed(bank: Path, *options: object) -> list[str]:
    return [found["external_id"] for found in memspan("ls", bank, *options, "--json").json]


def test_a_plan_is_shown_done_and_empty_then(notes: Path, tmp_path: Path, no_model: None) -> None:
    shown = memspan("sync", tmp_path / "bank", notes, "--dry-run")
    assert (shown.code, shown.out) == (
        0,
        "+ notes/heron.md\n+ notes/lynx.txt\n+ notes/otter.txt\n3 new, 0 changed, 0 moved, 0 gone, 0 unchanged files\n",
    )
    assert not (tmp_path / "bank").exists()


def test_a_folder_and_its_memory_stay_in_step(notes: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    done = memspan("sync", bank, notes)
    assert done.code == 0
    assert done.out.startswith(
        "3 new, 0 changed, 0 moved, 0 gone, 0 unchanged files; 0 documents forgotten\ndone: 3 added"
    )
    (notes / "lynx.txt").unlink()
    (notes / "otter.txt").rename(notes / "otter two.txt")
    (notes / "heron.md").write_text("# Heron\n\nThe heron moved to Bergen, far from here.")
    (notes / "picture.png").write_bytes(b"\x89PNG")
    shown = memspan("sync", bank, notes, "--dry-run")
    assert (shown.code, shown.out.splitlines()[:-1]) == (
        3,
        ["~ notes/heron.md", "- notes/lynx.txt", "> notes/otter.txt -> notes/otter two.txt"],
    )
    assert shown.err.startswith("skipped ") and "picture.png: unsupported file type" in shown.err
    plan = memspan("sync", bank, notes, "--dry-run", "--json").json
    assert plan["moved"] == [["notes/otter.txt", "notes/otter two.txt"]] and plan["refused"] == []
    done = memspan("sync", bank, notes, "--json")
    assert (done.code, done.json["plan"], done.json["forgotten"]) == (3, plan, 1)
    assert done.json["done"]["updated"] == 1 and done.json["bank"]["sources"] == 2
    assert sorted(listed(bank)) == ["notes/heron.md", "notes/otter two.txt"]
    assert memspan("sync", bank, notes).out.startswith("0 new, 0 changed, 0 moved, 0 gone, 2 unchanged")


@pytest.mark.parametrize("command", ["sync", "add"])
def test_a_bank_in_its_own_folder_is_no_document(command: str, notes: Path) -> None:
    for _ in range(2):
        done = memspan(command, notes / "bank", notes)
        assert (done.code, done.err) == (0, "")
    assert len(listed(notes / "bank")) == 3


def test_a_folder_that_is_gone_needs_force(notes: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    memspan("sync", bank, notes)
    shutil.rmtree(notes)
    shown = memspan("sync", bank, notes, "--dry-run")
    assert (shown.code, "refused without --force: all 3 files" in shown.err) == (1, True)
    assert "as if it were not mounted" in failed("sync", bank, notes)
    assert len(listed(bank)) == 3
    assert memspan("sync", bank, notes, "--force").code == 0
    assert listed(bank) == []
    assert "does not exist, and the bank knows nothing of it" in failed("sync", bank, notes)


def test_errors_come_before_a_model_is_loaded(tmp_path: Path, no_model: None) -> None:
    assert "does not exist" in failed("sync", tmp_path / "bank", tmp_path / "nothing")
    assert not (tmp_path / "bank").exists()
    (tmp_path / ".memspanignore").write_text("!")
    assert ".memspanignore cannot be read" in failed("sync", tmp_path / "bank", tmp_path)
    assert memspan("sync", tmp_path / "bank").code == 2


@pytest.mark.parametrize("pattern", ["*.txt", "**/*.txt", "[lo]*"])
def test_a_pattern_may_be_given(notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.chdir(notes)
    memspan("sync", tmp_path / "bank", pattern)
    assert listed(tmp_path / "bank") == ["notes/lynx.txt", "notes/otter.txt"]


def test_what_is_as_its_memory_is_not_listed(bank: Path, no_model: None) -> None:
    assert memspan("info", bank, "--json").json["stale_files"] == 0
    assert memspan("ls", bank, "--stale").out == ""
    assert "leave out --where" in failed("ls", bank, "--stale", "--where", "x=1")


def test_what_is_newer_than_its_memory_or_gone_is_listed(notes: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    memspan("add", bank, notes)
    (notes / "lynx.txt").unlink()
    (notes / "otter.txt").write_text("The otter is elsewhere.")
    done = memspan("ls", bank, "--stale")
    assert done.out == "notes/lynx.txt\tgone\nnotes/otter.txt\tchanged\n" and "memspan sync" in done.err
    assert memspan("ls", bank, "--stale", "--json").json == [
        {"external_id": "notes/lynx.txt", "state": "gone"},
        {"external_id": "notes/otter.txt", "state": "changed"},
    ]
    assert memspan("info", bank, "--json").json["stale_files"] == 2


def test_watching_goes_on_after_an_error(notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes, and when, is said by the test; that files are watched is seen in `tests/text`."""

    def told(*_: object) -> Iterator[None]:
        yield
        (notes / "new.txt").write_text("The newt is new.")
        yield
        notes.rename(tmp_path / "away")
        yield
        (tmp_path / "away").rename(notes)
        (notes / "lynx.txt").unlink()
        yield

    monkeypatch.setattr(watching, "changes", told)
    done = memspan("sync", tmp_path / "bank", notes, "--watch")
    lines = [line for line in done.out.splitlines() if "unchanged files" in line]
    assert [line.partition(",")[0] for line in lines] == ["3 new", "1 new", "0 new"]
    assert "as if it were not mounted" in done.err
    assert listed(tmp_path / "bank") == ["notes/heron.md", "notes/otter.txt", "notes/new.txt"]


# Names ----------------------------------------------------------------------------------------------------------------

NAMES = [
    "line\nend.txt",
    "tab\there.txt",
    "esc\x1b[31m.txt",
    "sep\u2028.txt",
    "quote'\".txt",
    "l" * 240 + ".txt",
    "-x.txt",
]


@pytest.mark.skipif(sys.platform == "win32", reason="no such names here")
def test_names_of_files_break_no_listing_and_are_verbatim_in_json(tmp_path: Path) -> None:
    folder, bank = tmp_path / "docs", tmp_path / "bank"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_text("The otter of Rome.")
    (folder / os.fsdecode(b"bad\xff.txt")).write_text("x")
    done = memspan("add", bank, folder)
    assert (done.code, len(done.err.splitlines())) == (3, 1), "the one whose name is not UTF-8"
    assert sorted(listed(bank)) == sorted(f"docs/{name}" for name in NAMES)
    rows = memspan("ls", bank).out.splitlines()
    assert len(rows) == len(NAMES) and all(row.count("\t") == 5 for row in rows)
    assert any(r"docs/line\nend.txt" in row for row in rows) and any(r"docs/esc\x1b[31m.txt" in row for row in rows)
    found = memspan("search", bank, "otter", "--selector", "lexical").out
    assert len(found.splitlines()) == len(NAMES) and "\x1b" not in found
    for name in NAMES:
        assert memspan("rm", bank, f"docs/{name}", "--json").json == {"deleted": 1}
    assert "no document" in failed("rm", bank, os.fsdecode(b"docs/bad\xff.txt"))


def test_one_line_leaves_text_as_it_is() -> None:
    assert render.one_line("Grüße, 日本 \u05e9\u05dc [x] \\n") == "Grüße, 日本 \u05e9\u05dc [x] \\n"
    assert render.one_line("a\r\nb\x85\udcff") == r"a\r\nb\x85\udcff"


# Patterns of rm -------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path) -> Path:
    bank, docs = tmp_path / "bank", tmp_path / "docs"
    for name in ("a.md", "b.md", "c.txt", "sub/d.md", "[x].md"):
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / name).write_text(f"Text of {name}.")
    assert memspan("add", bank, docs).code == 0
    return bank


ALL = ["docs/[x].md", "docs/a.md", "docs/b.md", "docs/c.txt", "docs/sub/d.md"]


@pytest.mark.parametrize(
    ("arguments", "gone"),
    [
        (["docs/*.md"], ["docs/[x].md", "docs/a.md", "docs/b.md"]),
        (["docs/**/*.md"], ["docs/[x].md", "docs/a.md", "docs/b.md", "docs/sub/d.md"]),
        (["docs/**"], ALL),
        (["docs/?.txt", "docs/s*/*"], ["docs/c.txt", "docs/sub/d.md"]),
        (["docs/*.md", "docs/a.md"], ["docs/[x].md", "docs/a.md", "docs/b.md"]),
        (["docs/[x].md"], ["docs/[x].md"]),
        (["--where", "external_id>=docs/c"], ["docs/c.txt", "docs/sub/d.md"]),
        (["docs/*", "--where", "path!=a.md"], ["docs/[x].md", "docs/b.md", "docs/c.txt"]),
        (["docs/a.md", "--where", "path=b.md"], []),
    ],
)
def test_rm_takes_patterns_and_filters(many: Path, no_model: None, arguments: list[str], gone: list[str]) -> None:
    done = memspan("rm", many, *arguments, "--yes", "--json")
    assert (done.code, done.json) == (0, {"deleted": len(gone)})
    assert sorted(listed(many)) == [name for name in ALL if name not in gone]


@pytest.mark.parametrize(("answer", "is_done"), [("y\n", True), ("n\n", False), ("", False)])
def test_rm_shows_what_a_pattern_means_and_asks(many: Path, no_model: None, answer: str, is_done: bool) -> None:
    done = memspan("rm", many, "docs/[ab].md", stdin=answer)
    assert done.code == (0 if is_done else 1)
    assert done.err.startswith("docs/a.md\ndocs/b.md\nforget 2 documents?")
    assert ("docs/a.md" in listed(many)) is not is_done


def test_rm_of_a_pattern_that_matches_nothing_forgets_nothing(many: Path, no_model: None) -> None:
    assert "no document matches 'x/*'" in failed("rm", many, "docs/a.md", "x/*", "--yes")
    assert "no document 'docs/none'" in failed("rm", many, "docs/*.md", "docs/none", "--yes")
    assert "no document has a field 'wings'" in failed("rm", many, "--where", "wings=2", "--yes")
    assert "--id names documents already" in failed("rm", many, "--id", 1, "--where", "path=a.md")
    assert sorted(listed(many)) == ALL
