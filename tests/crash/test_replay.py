"""What survives a loss of power, in traces made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from replay import Disk, Loss, Op, Record, Tree, points, read_tree, write_tree

_OLD, _NEW = 1, 2  # inode numbers of the trace; `_OLD` is replaced by the file's own


class _Traced:
    """A folder that holds `old` with content "before", and a disk that records are applied to."""

    def __init__(self, folder: Path) -> None:
        write_tree({"old": b"before", "sub": None}, folder)
        self.disk = Disk(folder)
        self._inodes = {_OLD: (folder / "old").stat().st_ino, _NEW: 2**40}
        self._folders = {"": folder.stat().st_ino, "sub": (folder / "sub").stat().st_ino}

    def apply(self, op: Op, file: int = 0, *, path: str = "", other: str = "", data: bytes = b"", at: int = 0) -> None:
        inode = self._inodes.get(file) or self._folders.get(path, 0)
        size = at if op is Op.TRUNCATE else len(data)
        self.disk.apply(Record(op, 1, inode, at, size, path, other, data))

    def left(self) -> dict[Loss, Tree]:
        return {loss: {k: v for k, v in self.disk.left(loss).items() if k != "sub"} for loss in Loss}


@pytest.fixture
def traced(tmp_path: Path) -> _Traced:
    return _Traced(tmp_path / "root")


def test_a_write_survives_once_its_file_is_synced(traced: _Traced) -> None:
    traced.apply(Op.WRITE, _OLD, data=b"AFTER", at=3)
    left = traced.left()
    assert left[Loss.ALL] == left[Loss.CONTENTS] == {"old": b"before"}
    assert left[Loss.ZEROED] == {"old": b"before\0\0"}
    assert traced.disk.kept()["old"] == b"befAFTER"
    traced.apply(Op.SYNC, _OLD)
    assert all(tree == {"old": b"befAFTER"} for tree in traced.left().values())


def test_a_name_survives_once_its_folder_is_synced(traced: _Traced) -> None:
    traced.apply(Op.CREATE, _NEW, path="new")
    traced.apply(Op.WRITE, _NEW, data=b"text")
    traced.apply(Op.SYNC, _NEW)
    assert traced.left()[Loss.ALL] == {"old": b"before"}, "a synced file without a name is lost"
    assert traced.left()[Loss.CONTENTS] == {"old": b"before", "new": b"text"}
    traced.apply(Op.SYNC, path="")
    assert traced.left()[Loss.ALL] == {"old": b"before", "new": b"text"}


def test_a_rename_before_its_file_is_synced_may_leave_nothing_in_it(traced: _Traced) -> None:
    traced.apply(Op.CREATE, _NEW, path="new")
    traced.apply(Op.WRITE, _NEW, data=b"text")
    traced.apply(Op.RENAME, _NEW, path="new", other="old")
    left = traced.left()
    assert left[Loss.ALL] == {"old": b"before"}
    assert left[Loss.CONTENTS] == {"old": b""}
    assert left[Loss.ZEROED] == {"old": bytes(4)}


def test_a_rename_between_folders_lasts_in_those_that_were_synced(traced: _Traced) -> None:
    traced.apply(Op.RENAME, _OLD, path="old", other="sub/moved")
    traced.apply(Op.SYNC, path="sub")
    assert traced.left()[Loss.ALL] == {"old": b"before", "sub/moved": b"before"}
    traced.apply(Op.SYNC, path="")
    assert traced.left()[Loss.ALL] == {"sub/moved": b"before"}


def test_an_unlink_is_undone_and_so_is_a_truncation(traced: _Traced) -> None:
    traced.apply(Op.TRUNCATE, _OLD, at=2)
    assert traced.left()[Loss.ALL] == {"old": b"before"}
    assert traced.left()[Loss.CONTENTS] == {"old": b"be"}
    traced.apply(Op.UNLINK, path="old")
    assert traced.left()[Loss.ALL] == {"old": b"before"}
    assert traced.left()[Loss.CONTENTS] == {}


def test_what_a_failed_sync_was_to_write_is_lost_even_if_the_next_succeeds(traced: _Traced) -> None:
    traced.apply(Op.WRITE, _OLD, data=b"AFTER")
    traced.apply(Op.SYNC_FAILED, _OLD)
    traced.apply(Op.SYNC, _OLD)
    assert traced.left()[Loss.ALL] == {"old": b"before"}
    assert traced.disk.kept()["old"] == b"AFTERe"


def test_lots_fall_on_sectors_and_the_same_seed_draws_the_same(traced: _Traced) -> None:
    traced.apply(Op.WRITE, _OLD, data=b"x" * 4096)
    drawn = {bytes(traced.disk.left(Loss.SCATTERED, seed)["old"] or b"") for seed in range(50)}
    assert {b"before", b"x" * 4096} < drawn
    assert any(b"x" in content and b"\0" in content for content in drawn)
    assert traced.disk.left(Loss.SCATTERED, 7) == traced.disk.left(Loss.SCATTERED, 7)


def test_half_a_write_is_torn_and_the_disk_goes_on_whole(traced: _Traced, tmp_path: Path) -> None:
    inode = (tmp_path / "root" / "old").stat().st_ino
    write = Record(Op.WRITE, 1, inode, 0, 6, "old", "", b"AFTERS")
    assert traced.disk.torn(write)["old"] == b"AFTore"
    assert traced.disk.kept()["old"] == b"before"


def test_a_point_lies_before_each_call_and_after_the_last(traced: _Traced, tmp_path: Path) -> None:
    inode = (tmp_path / "root" / "old").stat().st_ino
    first = Record(Op.WRITE, 1, inode, 0, 1, "old", "", b"1")
    mark = Record(Op.MARK, 1, 0, 0, 0, "", "", b"")
    second = Record(Op.WRITE, 2, inode, 0, 1, "old", "", b"2")
    seen = [
        (record, traced.disk.acknowledged, traced.disk.kept()["old"])
        for record in points(traced.disk, [first, mark, second])
    ]
    assert seen == [(first, 0, b"before"), (second, 1, b"1efore"), (None, 1, b"2efore")]


def test_a_tree_is_read_as_it_was_written(tmp_path: Path) -> None:
    tree: Tree = {"a": b"1", "b": None, "b/c": b"2"}
    write_tree(tree, tmp_path / "copy")
    (tmp_path / "copy" / "db-shm").write_bytes(b"shared")
    assert read_tree(tmp_path / "copy") == tree
