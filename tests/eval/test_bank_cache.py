"""Encoded memories that runs share: what has one name, who waits, and what is removed."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from filelock import FileLock
from helpers import tiny_loaded

from memspan.errors import EvaluationError
from memspan.eval.cache import encoded_memories, key_of, trim
from memspan.eval.sets import MemoryPlan
from memspan.types import Document


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMSPAN_CACHE", str(tmp_path))


def kept(name: str, size: int, used: int, root: Path) -> Path:
    """A kept memory of `size` bytes that was last used at the second `used`."""
    with encoded_memories(name, print, lambda: False) as folder:
        assert folder is not None
        (folder / "bank").mkdir()
        (folder / "bank" / "file").write_bytes(b"x" * size)
    os.utime(folder, (used, used))
    return root / "eval" / name


def plan(*documents: Document) -> MemoryPlan:
    return MemoryPlan(documents, 0)


def test_a_name_is_of_content_order_namespaces_and_model() -> None:
    loaded, other = tiny_loaded(seed=0), tiny_loaded(seed=1)
    one, two = Document("1", "a", date="2024"), Document("2", "b")
    memories: list[dict[str, MemoryPlan]] = [
        {"x": plan(one, two)},
        {"x": plan(two, one)},
        {"y": plan(one, two)},
        {"x": plan(one), "y": plan(two)},
        {"x": plan(one)},
        {"x": plan(Document("1", "a", date="2025"), two)},
        {"x": plan(Document("0", "a", date="2024"), two)},
        {"x": plan(Document("1", "a", "t", date="2024"), two)},
        {},
    ]
    keys = [key_of(loaded, found) for found in memories]
    assert len({*keys, key_of(other, memories[0])}) == len(memories) + 1
    assert keys[0] == key_of(loaded, {"x": MemoryPlan([one, two], 9)})


def test_the_longest_unused_is_removed_first(tmp_path: Path) -> None:
    folders = [kept(name, 100, used, tmp_path) for name, used in (("old", 10), ("new", 30), ("middle", 20))]
    trim(250)
    assert [folder.exists() for folder in folders] == [False, True, True]
    with encoded_memories("middle", print, lambda: False):  # uses it now
        trim(150)
    assert [folder.exists() for folder in folders] == [False, False, True]
    trim(0)
    assert not any(folder.exists() for folder in folders)


def test_what_a_run_uses_stays_and_what_a_killed_run_left_goes(tmp_path: Path) -> None:
    folder = kept("used", 100, 10, tmp_path)
    left = tmp_path / "eval" / "other.going"
    left.mkdir()
    with encoded_memories("used", print, lambda: False):
        trim(0)
    assert folder.exists() and not left.exists()


def test_a_run_waits_for_another_with_the_same_memory_and_can_be_stopped(tmp_path: Path) -> None:
    kept("busy", 1, 1, tmp_path)
    told: list[str] = []
    asked = iter([False, False, True])
    with FileLock(tmp_path / "eval" / "busy.lock"), encoded_memories("busy", told.append, lambda: next(asked)) as found:
        assert found is None and told == ["another run uses the same memory; waiting for it"]
    holds, free = threading.Event(), threading.Event()

    def hold() -> None:
        with FileLock(tmp_path / "eval" / "busy.lock", thread_local=False):
            holds.set()
            free.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    holds.wait(60)
    with encoded_memories("busy", lambda line: free.set(), lambda: False) as found:
        assert found == tmp_path / "eval" / "busy"
    holder.join()


def test_an_error_leaves_what_was_encoded_for_the_next_run(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk"), encoded_memories("part", print, lambda: False) as folder:
        assert folder is not None
        (folder / "encoding.jsonl").write_text("{}")
        raise OSError("disk")
    with encoded_memories("part", print, lambda: False) as folder:
        assert folder is not None and (folder / "encoding.jsonl").exists()


def test_folders_of_other_programs_are_no_memories(tmp_path: Path) -> None:
    trim(0)
    assert list((tmp_path / "eval").iterdir()) == []


def test_a_cache_that_cannot_be_made_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEMSPAN_CACHE", str(tmp_path / "file"))
    with pytest.raises(EvaluationError, match="name another cache folder: MEMSPAN_CACHE"):
        trim(0)
