"""Waiting for files to change: what counts, and that it goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from memspan.text.folders import join
from memspan.text.watching import changes, counts


class Watched:
    """`changes` in a thread. `told` waits until it has yielded once more."""

    def __init__(self, *paths: Path, besides: list[Path]) -> None:
        self._stop, self._told = threading.Event(), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._watch, args=(paths, besides), daemon=True)
        self._thread.start()

    def _watch(self, paths: tuple[Path, ...], besides: list[Path]) -> None:
        for _ in changes(paths, self._stop.is_set, besides):
            self._told.release()

    def told(self) -> bool:
        return self._told.acquire(timeout=60)

    def end(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "docs/sub").mkdir(parents=True)
    (tmp_path / "docs/sub/a.md").write_text("A")
    return tmp_path / "docs"


@pytest.fixture
def watched(docs: Path) -> Iterator[Watched]:
    watched = Watched(docs, besides=[docs / "bank"])
    try:
        yield watched
    finally:
        watched.end()


def test_it_is_told_at_first_and_after_each_change(docs: Path, watched: Watched) -> None:
    assert watched.told()
    for change in (
        lambda: (docs / "b.md").write_text("B"),
        lambda: (docs / "sub/a.md").write_text("Changed"),
        lambda: (docs / "b.md").rename(docs / "sub/c.md"),
        lambda: (docs / "sub/a.md").unlink(),
    ):
        change()
        assert watched.told()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.md", True),
        ("sub/a.md", True),
        (".memspanignore", True),
        ("sub/.memspanignore", True),
        (".git/index", False),
        ("sub/.a.md.swp", False),
        ("bank/catalog.sqlite", False),
        ("bank", False),
        ("banks/a.md", True),
    ],
)
def test_hidden_files_and_the_bank_do_not_count(tmp_path: Path, path: str, expected: bool) -> None:
    folder = str(tmp_path / ".hidden" / "docs")
    assert counts(join(folder, path), [folder], [join(folder, "bank")]) is expected


def test_a_folder_may_go_and_come_back(docs: Path, watched: Watched) -> None:
    assert watched.told()
    away = docs.rename(docs.with_name("away"))
    (away / "b.md").write_text("B")
    away.rename(docs)
    assert watched.told()
    (docs / "c.md").write_text("C")
    assert watched.told()
