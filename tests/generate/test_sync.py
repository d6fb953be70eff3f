"""A memory in step with folders: what is new, changed, moved and gone; what is never forgotten."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from helpers import become_nobody, child_process, enterable_folder, receive

from memspan.bank.archive import export_bank, import_bank
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.ledger import FileStat, Ledger
from memspan.bank.sync import SyncPlan, SyncReport
from memspan.bank.verify import verify
from memspan.errors import CorpusError, SyncRefused
from memspan.generate.memory import Memory
from memspan.model.convert import LoadedModel
from memspan.text import corpus
from memspan.types import Document


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A folder of five files, two of them in a folder of their own."""
    files = {name: f"The {name} is here." for name in ("a.md", "b.txt", "c.txt", "sub/d.md", "sub/e.md")}
    return write(tmp_path / "docs", files)


def write(folder: Path, files: Mapping[str, str | bytes | None]) -> Path:
    """Write files, or (None) remove them; a written file is older than it is, so that its time tells a change."""
    for name, content in files.items():
        path = folder / name
        if content is None:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        age(path)
    return folder


def age(path: Path, seconds: int = 60) -> None:
    """Let a file have been written some time ago."""
    now = path.stat().st_mtime_ns
    os.utime(path, ns=(now, now - seconds * 10**9))


def ids(memory: Memory) -> list[str]:
    return sorted(document.external_id for document in memory)


def planned(report: SyncReport) -> dict[str, Any]:
    """What a plan says, without what it does not."""
    plan = report.plan
    found = {"added": plan.added, "changed": plan.changed, "moved": plan.moved, "removed": plan.removed}
    return {name: sorted(files) for name, files in found.items() if files}


DOCS = ["docs/a.md", "docs/b.txt", "docs/c.txt", "docs/sub/d.md", "docs/sub/e.md"]


# --- the plan -------------------------------------------------------------------------------------------------------


def test_the_first_sync_adds_and_the_second_reads_nothing(
    memory: Memory, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = memory.sync(docs)
    assert planned(first) == {"added": DOCS} and first.done.added == 5
    assert ids(memory) == DOCS
    monkeypatch.setattr("memspan.bank.ledger.sha256_of", None)
    monkeypatch.setattr("memspan.bank.differences.sha256_of", None)
    again = memory.sync(docs)
    assert again.plan == SyncPlan(unchanged=5) and again.plan.is_empty
    assert again.done.documents == 0


@pytest.mark.parametrize(
    ("changes", "expected", "left"),
    [
        ({"new.md": "New."}, {"added": ["docs/new.md"]}, [*DOCS, "docs/new.md"]),
        ({"a.md": "Another text."}, {"changed": ["docs/a.md"]}, DOCS),
        ({"a.md": None}, {"removed": ["docs/a.md"]}, DOCS[1:]),
        ({"sub/d.md": None, "sub/e.md": None}, {"removed": ["docs/sub/d.md", "docs/sub/e.md"]}, DOCS[:3]),
        (
            {"a.md": None, "z/a.md": "The a.md is here."},
            {"moved": [("docs/a.md", "docs/z/a.md")]},
            [*DOCS[1:], "docs/z/a.md"],
        ),
        (
            {"a.md": None, "z.md": "The a.md is here.", "b.txt": None, "y.txt": "Other.", "c.txt": "New text."},
            {
                "moved": [("docs/a.md", "docs/z.md")],
                "removed": ["docs/b.txt"],
                "added": ["docs/y.txt"],
                "changed": ["docs/c.txt"],
            },
            ["docs/c.txt", "docs/sub/d.md", "docs/sub/e.md", "docs/y.txt", "docs/z.md"],
        ),
        # A copy is no move, and of two copies of what is gone one is where it went.
        ({"z.md": "The a.md is here."}, {"added": ["docs/z.md"]}, [*DOCS, "docs/z.md"]),
        (
            {"a.md": None, "y.md": "The a.md is here.", "z.md": "The a.md is here."},
            {"moved": [("docs/a.md", "docs/y.md")], "added": ["docs/z.md"]},
            [*DOCS[1:], "docs/y.md", "docs/z.md"],
        ),
        # Two files change places: both are changed.
        ({"a.md": "The b.txt is here.", "b.txt": "The a.md is here."}, {"changed": ["docs/a.md", "docs/b.txt"]}, DOCS),
        ({"new.png": b"\x89PNG"}, {}, DOCS),
        ({".hidden.md": "x"}, {}, DOCS),
        ({"neu \u00fc\u4e2d.md": "x"}, {"added": ["docs/neu \u00fc\u4e2d.md"]}, [*DOCS, "docs/neu \u00fc\u4e2d.md"]),
        ({"line\nend\t.md": "x"}, {"added": ["docs/line\nend\t.md"]}, [*DOCS, "docs/line\nend\t.md"]),
        ({".memspanignore": "sub/"}, {"removed": ["docs/sub/d.md", "docs/sub/e.md"]}, DOCS[:3]),
    ],
)
def test_what_changed_is_planned_and_done(
    memory: Memory, docs: Path, changes: dict[str, Any], expected: dict[str, Any], left: list[str]
) -> None:
    memory.sync(docs)
    write(docs, changes)
    shown = memory.sync(docs, dry_run=True)
    assert planned(shown) == expected and ids(memory) == DOCS, "nothing is done"
    done = memory.sync(docs)
    assert done.plan == shown.plan
    assert ids(memory) == sorted(left)
    assert done.forgotten == len(expected.get("removed", ()))
    for document in memory:
        assert document.text == (docs / document.external_id.removeprefix("docs/")).read_text()
    assert memory.sync(docs).plan.is_empty
    assert verify(memory.bank) == []


def test_what_moved_keeps_its_number_and_is_not_encoded(memory: Memory, docs: Path) -> None:
    memory.sync(docs)
    memory.update("docs/b.txt", metadata={**memory.get("docs/b.txt").metadata, "tag": "x"})
    before = {document.id: document.text for document in memory.bank.catalog.page("default", 0, 100)}
    (docs / "b.txt").rename(docs / "sub/renamed.txt")
    (docs / "sub").rename(docs / "below")
    report = memory.sync(docs)
    assert sorted(report.plan.moved) == [
        ("docs/b.txt", "docs/below/renamed.txt"),
        ("docs/sub/d.md", "docs/below/d.md"),
        ("docs/sub/e.md", "docs/below/e.md"),
    ]
    assert (report.done.documents, report.done.added, report.forgotten) == (0, 0, 0)
    assert {document.id: document.text for document in memory.bank.catalog.page("default", 0, 100)} == before
    moved = memory.get("docs/below/renamed.txt")
    assert moved.metadata == {"path": "below/renamed.txt", "tag": "x"}
    assert [found.external_id for found in memory.search("b.txt", selector="lexical", limit=1)] == [moved.external_id]
    assert verify(memory.bank) == []


def test_what_moved_to_another_synced_folder_is_moved(memory: Memory, docs: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", {"x.md": "Something else."})
    memory.sync(docs, other)
    (docs / "a.md").rename(other / "a.md")
    report = memory.sync(docs, other)
    assert report.plan.moved == (("docs/a.md", "other/a.md"),) and report.done.documents == 0
    # Seen from one of them only, it is new there, and gone from the other.
    (other / "a.md").rename(docs / "z.md")
    assert planned(memory.sync(docs)) == {"added": ["docs/z.md"]}
    assert planned(memory.sync(other)) == {"removed": ["other/a.md"]}


def test_a_file_written_anew_with_the_same_content_is_not_read_into_the_bank(memory: Memory, docs: Path) -> None:
    memory.sync(docs)
    age(docs / "a.md", 1000)
    assert memory.sync(docs).plan == SyncPlan(unchanged=5)
    (known, *_) = Ledger(memory.bank.catalog, "default").files()
    assert known.stat == FileStat.of(docs / "a.md")


def test_a_change_within_the_clocks_step_is_seen(memory: Memory, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = docs / "a.md"
    path.write_text("first!")
    moment = path.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr("memspan.bank.ledger.time.time_ns", lambda: moment + 1000)
        memory.sync(docs)
    path.write_text("second")
    os.utime(path, ns=(moment, moment))
    assert planned(memory.sync(docs)) == {"changed": ["docs/a.md"]}
    assert memory.get("docs/a.md").text == "second"


# --- what is never forgotten ----------------------------------------------------------------------------------------


def test_only_what_the_folder_gave_is_forgotten(memory: Memory, docs: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "x/docs", {"a.md": "Of another folder.", "gone.md": "Gone, but elsewhere."})
    memory.add(["By hand."], ids=["docs/by-hand.md"])
    memory.sync(docs)
    memory.add_files(other)
    alone = write(docs, {"alone.md": "Given by itself."}) / "alone.md"
    memory.add_files(alone)
    alone.unlink()
    (other / "gone.md").unlink()
    (docs / "a.md").unlink()
    assert planned(memory.sync(docs)) == {"removed": ["docs/a.md"]}
    assert ids(memory) == sorted([*DOCS[1:], "docs/by-hand.md", "docs/alone.md", "x/docs/a.md", "x/docs/gone.md"])
    assert planned(memory.sync(other)) == {"removed": ["x/docs/gone.md"]}


def test_another_namespace_is_not_touched(memory: Memory, docs: Path) -> None:
    other = memory.in_namespace("other")
    for one in (memory, other):
        one.sync(docs)
    (docs / "a.md").unlink()
    memory.sync(docs)
    assert ids(memory) == DOCS[1:] and ids(other) == DOCS
    assert planned(other.sync(docs, dry_run=True)) == {"removed": ["docs/a.md"]}


def test_what_add_read_from_the_folder_is_in_step_too(memory: Memory, docs: Path) -> None:
    memory.add_files(docs)
    assert memory.sync(docs).plan == SyncPlan(unchanged=5)
    (docs / "a.md").unlink()
    assert planned(memory.sync(docs)) == {"removed": ["docs/a.md"]}


@pytest.mark.parametrize("spelling", ["docs", "./docs", "link", "{}", "docs/../docs"])
def test_the_folder_is_the_same_from_wherever_it_is_seen(
    memory: Memory, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    memory.sync(docs)
    (tmp_path / "link").symlink_to("docs")
    monkeypatch.chdir(tmp_path)
    (docs / "a.md").unlink()
    report = memory.sync(spelling.format(docs), dry_run=True)
    assert planned(report) == {"removed": ["docs/a.md"]} and report.plan.unchanged == 4
    assert len(memory.add_files(spelling.format(docs)).skipped) == 0 and len(memory) == 5


def test_a_part_of_the_folder_is_synced_by_itself(memory: Memory, docs: Path) -> None:
    memory.sync(docs)
    write(docs, {"a.md": None, "sub/d.md": None, "sub/f.md": "New."})
    assert planned(memory.sync(docs / "sub")) == {"removed": ["docs/sub/d.md"], "added": ["docs/sub/f.md"]}
    assert planned(memory.sync(docs)) == {"removed": ["docs/a.md"]}


def test_a_pattern_means_no_other_files(memory: Memory, docs: Path) -> None:
    memory.sync(docs / "**" / "*.md")
    assert ids(memory) == ["docs/a.md", "docs/sub/d.md", "docs/sub/e.md"]
    memory.sync(docs)
    write(docs, {"a.md": None, "b.txt": None, "sub/d.md": None})
    assert planned(memory.sync(docs / "*.md", force=True)) == {"removed": ["docs/a.md"]}
    assert planned(memory.sync(docs / "**" / "*.md")) == {"removed": ["docs/sub/d.md"]}
    assert planned(memory.sync(docs)) == {"removed": ["docs/b.txt"]}


def test_a_file_given_by_itself_is_in_step_by_itself(memory: Memory, docs: Path) -> None:
    memory.sync(docs / "a.md")
    write(docs, {"a.md": "New."})
    assert planned(memory.sync(docs / "a.md")) == {"changed": ["docs/a.md"]}
    (docs / "a.md").unlink()
    with pytest.raises(SyncRefused, match="all 1 files"):
        memory.sync(docs / "a.md")
    assert planned(memory.sync(docs / "a.md", force=True)) == {"removed": ["docs/a.md"]}
    with pytest.raises(CorpusError, match="does not exist, and the bank knows nothing of it"):
        memory.sync(docs / "a.md")


@pytest.mark.parametrize(
    "wrong", ["dcos", "docs.md", "docs/new.md", "docs/sub/gone.md", "docs/su", "dcos/*.md", "docs/a"]
)
def test_a_mistyped_path_beside_what_is_known_is_an_error(memory: Memory, docs: Path, wrong: str) -> None:
    memory.sync(docs)
    for paths in ([docs.parent / wrong], [docs, docs.parent / wrong]):
        with pytest.raises(CorpusError, match="does not exist, and the bank knows nothing of it"):
            memory.sync(*paths)
    assert ids(memory) == DOCS


def test_a_known_file_that_is_gone_may_be_named(memory: Memory, docs: Path) -> None:
    memory.sync(docs)
    write(docs, {"a.md": None, "sub/d.md": None})
    for gone in ("a.md", "sub/d.md"):
        assert planned(memory.sync(docs / gone, dry_run=True)).keys() <= {"removed"}
    assert planned(memory.sync(docs)) == {"removed": ["docs/a.md", "docs/sub/d.md"]}


# --- what looks as if it were not mounted ---------------------------------------------------------------------------


def _empty(docs: Path) -> None:
    shutil.rmtree(docs)
    docs.mkdir()


@pytest.mark.parametrize("vanish", [shutil.rmtree, _empty], ids=["missing", "empty"])
def test_a_folder_that_may_not_be_mounted_is_not_forgotten(memory: Memory, docs: Path, vanish: Any) -> None:
    memory.sync(docs)
    before = ids(memory)
    away = docs.with_name("away")
    shutil.copytree(docs, away)
    vanish(docs)
    assert memory.sync(docs, dry_run=True).plan.refused
    with pytest.raises(SyncRefused, match=r"--force \(in Python force=True\)"):
        memory.sync(docs)
    assert ids(memory) == before
    if docs.exists():
        docs.rmdir()
    away.rename(docs)
    assert memory.sync(docs).plan.is_empty, "it came back"
    vanish(docs)
    assert memory.sync(docs, force=True).forgotten == len(before) and not len(memory)


@pytest.mark.parametrize(
    ("files", "gone", "is_refused"), [(20, 11, True), (20, 10, False), (10, 9, False), (4, 4, True)]
)
def test_how_much_may_be_gone(memory: Memory, tmp_path: Path, files: int, gone: int, is_refused: bool) -> None:
    folder = write(tmp_path / "many", {f"{number}.txt": f"Number {number}." for number in range(files)})
    memory.sync(folder)
    for number in range(gone):
        (folder / f"{number}.txt").unlink()
    assert bool(memory.sync(folder, dry_run=True).plan.refused) is is_refused
    if is_refused:
        with pytest.raises(SyncRefused, match="as if it were not mounted"):
            memory.sync(folder)
    assert memory.sync(folder, force=is_refused).forgotten == gone


def test_of_two_folders_one_that_is_gone_stops_both(memory: Memory, docs: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", {"x.md": "Something else."})
    memory.sync(docs, other)
    shutil.rmtree(docs)
    write(other, {"y.md": "New."})
    with pytest.raises(SyncRefused, match="all 5 files that the bank knows"):
        memory.sync(docs, other)
    assert planned(memory.sync(other)) == {"added": ["other/y.md"]}


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions are others here")
def test_what_cannot_be_read_is_not_gone(loaded: LoadedModel) -> None:
    with enterable_folder() as folder:
        docs = write(folder / "docs", {"a.md": "A.", "sub/b.md": "B.", "sub/c.md": "C.", "d.md": "D."})
        with Memory(MemoryBank.create(folder / "bank", manifest_of(loaded)), loaded) as memory:
            memory.sync(docs)
        write(docs, {"d.md": "New, and not to be read."})
        os.chmod(docs / "sub", 0)
        os.chmod(docs / "d.md", 0)
        shutil.copytree(folder / "bank", folder / "copy")
        for path in (folder / "copy", *(folder / "copy").rglob("*")):
            os.chmod(path, 0o777)

        def sync(pipe: Any) -> None:
            become_nobody()
            with Memory(MemoryBank.open(folder / "copy"), loaded) as memory:
                report = memory.sync(docs)
                pipe.send((planned(report), len(report.done.skipped), ids(memory), memory.get("docs/d.md").text))

        try:
            with child_process(sync) as (_, pipe):
                found = receive(pipe)
        finally:
            os.chmod(docs / "sub", 0o755)
        assert found[1:] == (2, ["docs/a.md", "docs/d.md", "docs/sub/b.md", "docs/sub/c.md"], "D.")
        assert "removed" not in found[0]


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n\0\0\0", b" \n"])
def test_a_file_without_text_keeps_its_memory(memory: Memory, docs: Path, content: bytes) -> None:
    memory.sync(docs)
    write(docs, {"b.txt": content})
    for _ in range(2):  # it is named as long as it is so
        (skipped,) = memory.sync(docs).done.skipped
        assert skipped.source.endswith("b.txt")
    assert memory.get("docs/b.txt").text == "The b.txt is here."
    write(docs, {"b.txt": "Text again."})
    memory.sync(docs)
    assert memory.get("docs/b.txt").text == "Text again."


def test_a_broken_link_is_not_gone(memory: Memory, docs: Path, tmp_path: Path) -> None:
    write(tmp_path, {"target.md": "Somewhere else."})
    (docs / "link.md").symlink_to(tmp_path / "target.md")
    memory.sync(docs)
    (tmp_path / "target.md").unlink()
    report = memory.sync(docs)
    assert report.plan.removed == () and len(report.done.skipped) == 1
    (docs / "link.md").unlink()
    assert planned(memory.sync(docs)) == {"removed": ["docs/link.md"]}


# --- files of records -----------------------------------------------------------------------------------------------


def records(*values: Mapping[str, Any] | str) -> str:
    return "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in values)


A, B, C = ({"id": name, "text": f"The record {name}."} for name in "abc")


@pytest.mark.parametrize(
    ("after", "left", "forgotten"),
    [
        (records(A, C), ["a", "c"], 1),
        (records(C, A, B), ["a", "b", "c"], 0),
        (records({**A, "text": "Another."}, B, C), ["a", "b", "c"], 0),
        (records(A), ["a"], 2),
        (records(A, B, C, {"id": "d", "text": "New."}), ["a", "b", "c", "d"], 0),
        # What cannot be read may be one of those that are missing.
        (records(A, "no JSON"), ["a", "b", "c"], 0),
        (records(A, {"id": "b"}), ["a", "b", "c"], 0),
        ("", ["a", "b", "c"], 0),
    ],
)
def test_a_record_that_is_gone_from_its_file_is_forgotten(
    memory: Memory, tmp_path: Path, after: str, left: list[str], forgotten: int
) -> None:
    folder = write(tmp_path / "data", {"r.jsonl": records(A, B, C), "other.md": "Another file."})
    memory.sync(folder)
    write(folder, {"r.jsonl": after})
    report = memory.sync(folder)
    assert (ids(memory), report.forgotten) == ([*left, "data/other.md"], forgotten)


def test_records_of_a_file_that_is_gone_are_forgotten_and_those_of_a_moved_one_stay(
    memory: Memory, tmp_path: Path
) -> None:
    table = "id,text\nx,The row x.\n,A row without an id.\n"
    folder = write(tmp_path / "data", {"r.jsonl": records(A, B, C), "t.csv": table, "other.md": "Another file."})
    memory.sync(folder)
    assert ids(memory) == ["a", "b", "c", "data/other.md", "data/t.csv#3", "x"]
    (folder / "t.csv").rename(folder / "table.csv")
    (folder / "r.jsonl").unlink()
    report = memory.sync(folder)
    assert (report.forgotten, report.done.documents) == (3, 0)
    assert ids(memory) == ["data/other.md", "data/table.csv#3", "x"]
    assert memory.sync(folder).plan.is_empty


def test_a_record_that_moves_to_another_file_is_kept(memory: Memory, tmp_path: Path) -> None:
    folder = write(tmp_path / "data", {"r.jsonl": records(A, B), "s.jsonl": records(C)})
    memory.sync(folder)
    write(folder, {"r.jsonl": records(A), "s.jsonl": records(C, B)})
    memory.sync(folder)
    assert ids(memory) == ["a", "b", "c"]
    write(folder, {"r.jsonl": None})
    memory.sync(folder)
    assert ids(memory) == ["b", "c"]


def test_one_id_in_two_files_is_that_of_the_first_and_the_other_is_named(memory: Memory, tmp_path: Path) -> None:
    folder = write(tmp_path / "data", {"r.jsonl": records(A, B), "s.jsonl": records({**A, "text": "Of s."}, C)})
    for _ in range(2):
        report = memory.sync(folder)
    assert memory.get("a").text == A["text"] and ids(memory) == ["a", "b", "c"]
    write(folder, {"s.jsonl": records({**A, "text": "Of s again."}, C)})
    report = memory.sync(folder)
    assert memory.get("a").text == A["text"]
    assert any("'a'" in one.reason for one in report.done.skipped)
    write(folder, {"r.jsonl": records(B)})
    memory.sync(folder)
    memory.sync(folder)
    assert memory.get("a").text == "Of s again."


# --- other machines, other times ------------------------------------------------------------------------------------


def test_what_was_forgotten_by_hand_comes_back_while_the_file_is_there(memory: Memory, docs: Path) -> None:
    memory.sync(docs)
    memory.delete("docs/a.md")
    memory.sync(docs)
    assert ids(memory) == DOCS


def test_a_folder_that_was_moved_is_named(memory: Memory, docs: Path, tmp_path: Path) -> None:
    memory.sync(docs)
    (tmp_path / "new").mkdir()
    moved = docs.rename(tmp_path / "new/docs")
    write(moved, {"a.md": None})
    with pytest.raises(CorpusError, match="--root docs; if it is another one"):
        memory.sync(moved)
    report = memory.sync(moved, root="docs")
    assert (planned(report), report.plan.unchanged) == ({"removed": ["docs/a.md"]}, 4)
    assert memory.sync(moved).plan == SyncPlan(unchanged=4)


def test_a_folder_may_be_given_a_name(memory: Memory, docs: Path, tmp_path: Path) -> None:
    memory.sync(docs, root="handbook/")
    assert ids(memory)[0] == "handbook/a.md"
    assert memory.sync(docs).plan == SyncPlan(unchanged=5)
    for wrong in ((docs, tmp_path), (docs / "a.md",)):
        with pytest.raises(CorpusError, match="root is the name of one folder"):
            memory.sync(*wrong, root="x")


def test_an_exported_bank_knows_no_path_of_the_disk_and_is_synced_by_its_roots(
    memory: Memory, docs: Path, tmp_path: Path, loaded: LoadedModel
) -> None:
    memory.sync(docs)
    export_bank(memory.bank, tmp_path / "x.memspan")
    assert os.fsencode(tmp_path) not in (tmp_path / "x.memspan").read_bytes()
    there = tmp_path / "there"
    shutil.copytree(docs, there / "docs")
    write(there / "docs", {"a.md": None})
    with Memory(import_bank(tmp_path / "x.memspan", tmp_path / "imported"), loaded) as other:
        with pytest.raises(CorpusError, match="--root docs"):
            other.sync(there / "docs")
        report = other.sync(there / "docs", root="docs")
        assert planned(report) == {"removed": ["docs/a.md"]} and report.done.documents == 0
        assert ids(other) == DOCS[1:]


def test_files_of_documents_that_were_erased_are_not_kept(memory: Memory, docs: Path) -> None:
    memory.sync(docs)
    memory.delete("docs/a.md")
    memory.bank.compact(secure=True)
    found = [path.read_bytes() for path in memory.bank.folder.rglob("catalog*")]
    assert not any(b"a.md" in data for data in found)


def test_a_stopped_sync_goes_on_when_run_again(memory: Memory, docs: Path) -> None:
    asked = iter([False, False, True])
    stopped = memory.sync(docs, should_stop=lambda: next(asked, True), batch_tokens=8)
    assert stopped.done.interrupted
    again = memory.sync(docs)
    assert not again.done.interrupted and ids(memory) == DOCS
    assert memory.sync(docs).plan == SyncPlan(unchanged=5)


def test_what_fails_in_the_middle_is_done_by_the_next(
    memory: Memory, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.sync(docs)
    (docs / "b.txt").rename(docs / "z.txt")
    write(docs, {"a.md": None, "new.md": "New.", "c.txt": "Changed."})

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the power is off")

    for place in ("bank.edits.rename_sources", "generate.documents.add_documents", "bank.edits.delete_sources"):
        with monkeypatch.context() as patch:
            patch.setattr(f"memspan.{place}", fail)
            with pytest.raises(RuntimeError, match="power"):
                memory.sync(docs)
    memory.sync(docs)
    assert ids(memory) == ["docs/c.txt", "docs/new.md", "docs/sub/d.md", "docs/sub/e.md", "docs/z.txt"]
    assert memory.get("docs/c.txt").text == "Changed."
    assert memory.sync(docs).plan.is_empty and verify(memory.bank) == []


def test_a_file_that_changes_while_it_is_read_is_read_again(
    memory: Memory, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = corpus.read_file

    def changing(file: Any, *values: Any) -> Any:
        yield from read(file, *values)
        if file.relative == "a.md":
            with file.path.open("a") as stream:
                stream.write(" And more.")

    with monkeypatch.context() as patch:
        patch.setattr("memspan.bank.ledger.read_file", changing)
        (skipped,) = memory.sync(docs).done.skipped
        assert "changed while it was read" in skipped.reason
    memory.sync(docs)
    assert memory.get("docs/a.md").text == "The a.md is here. And more."


def test_stale_files_are_known(memory: Memory, docs: Path) -> None:
    def stale() -> list[str]:
        return [name for name, _ in Ledger(memory.bank.catalog, "default").stale()]

    memory.sync(docs)
    assert stale() == []
    write(docs, {"a.md": "Changed.", "b.txt": None, "new.md": "No memory has this."})
    age(docs / "c.txt", 1000)
    assert stale() == ["docs/a.md", "docs/b.txt"]
    memory.sync(docs)
    assert stale() == []


@pytest.mark.parametrize("wrong", [(), (["docs"],), (1,)])
def test_what_is_no_path_is_refused(memory: Memory, wrong: Any) -> None:
    with pytest.raises(TypeError, match="each by itself"):
        memory.sync(*wrong)
    with pytest.raises(TypeError, match="dryrun"):
        memory.sync("docs", dryrun=True)


def test_a_bank_that_is_opened_again_knows_its_files(memory: Memory, docs: Path, loaded: LoadedModel) -> None:
    memory.sync(docs)
    memory.close()
    with closing(MemoryBank.open(memory.bank.folder)) as bank:
        assert Memory(bank, loaded).sync(docs).plan == SyncPlan(unchanged=5)
        assert isinstance(Memory(bank, loaded).get("docs/a.md"), Document)
