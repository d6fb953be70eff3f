from __future__ import annotations

import os
import stat
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from helpers import file_size_limit

from memspan import files
from memspan.files import PARTIAL_SUFFIX, publish, remove, sync_file, sync_folder, whole_file, whole_folder, write_text


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module thinks that it runs on Windows (where it may sleep, and need not here)."""
    monkeypatch.setattr(files, "os", types.SimpleNamespace(**{**vars(os), "name": "nt"}))
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- whole or not there ---------------------------------------------------------------------------------------------


def test_a_text_is_written_as_it_is(tmp_path: Path) -> None:
    text = "ä\nb\r\nc\u2028日"
    for _ in range(2):  # also over what is there
        write_text(tmp_path / "a.txt", text)
        assert (tmp_path / "a.txt").read_bytes() == text.encode()
    assert _names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_nothing_is_left_of_what_fails_and_the_old_file_stays(tmp_path: Path, error: BaseException) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(type(error)), whole_file(tmp_path / "a") as partial:
        partial.write_text("half", encoding="utf-8")
        assert (tmp_path / "a").read_text("utf-8") == "old"
        raise error
    assert _names(tmp_path) == ["a"] and (tmp_path / "a").read_text("utf-8") == "old"
    with pytest.raises(type(error)), whole_folder(tmp_path / "folder") as partial:
        (partial / "x").touch()
        raise error
    assert _names(tmp_path) == ["a"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with file_size_limit(100), pytest.raises(OSError):
        write_text(tmp_path / "a", "x" * 1000)
    assert _names(tmp_path) == ["a"] and (tmp_path / "a").read_text("utf-8") == "old"


def test_a_file_that_cannot_be_renamed_is_not_left_beside(tmp_path: Path) -> None:
    (tmp_path / "a" / "below").mkdir(parents=True)
    with pytest.raises(OSError):
        write_text(tmp_path / "a", "text")
    assert _names(tmp_path) == ["a"]


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a") as one, whole_file(tmp_path / "a") as two:
        one.write_bytes(b"1" * 1000)
        two.write_bytes(b"2")
    assert (tmp_path / "a").read_bytes() == b"1" * 1000 and _names(tmp_path) == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes of files")
def test_files_have_the_mode_of_any_new_file_whatever_writes_them(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        with whole_file(tmp_path / "a") as partial:
            partial.unlink()
            os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors replaces it
        write_text(tmp_path / "secret", "key", private=True)
        with whole_folder(tmp_path / "folder") as folder:
            os.close(os.open(folder / "b", os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(umask)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "secret", "folder", "folder/b")]
    assert modes == [0o640, 0o600, 0o750, 0o640]


def test_a_folder_takes_the_place_of_an_empty_one_only(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with whole_folder(tmp_path / "a") as partial:
        (partial / "x").write_bytes(b"1")
    with pytest.raises(OSError), whole_folder(tmp_path / "a") as partial:
        (partial / "x").write_bytes(b"2")
    assert (tmp_path / "a" / "x").read_bytes() == b"1" and _names(tmp_path) == ["a"]


def test_all_is_synced_before_it_has_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        done.append(f"rename {target.name}")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(files, "sync_file", lambda descriptor: done.append("file"))
    monkeypatch.setattr(files, "sync_folder", lambda folder: done.append(f"folder {folder.name.partition('.')[2][:1]}"))
    write_text(tmp_path / "a", "text")
    with whole_folder(tmp_path / "b") as partial:
        (partial / "x").touch()
        (partial / "y").touch()
    assert done == ["file", "rename a", "folder ", "file", "file", "folder b", "rename b", "folder "]


# --- macOS ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_macos_syncs_to_the_drive_itself_where_the_file_system_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    asked: list[Any] = []

    def fcntl(descriptor: int, command: int) -> None:
        asked.append(command)
        if not known:
            raise OSError("not supported")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "fcntl", types.SimpleNamespace(fcntl=fcntl, F_FULLFSYNC=51))
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: asked.append("fsync"))
    with (tmp_path / "a").open("wb") as file:
        sync_file(file.fileno())
    assert asked == ([51] if known else [51, "fsync"])


# --- Windows --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("windows")
def test_windows_is_not_asked_to_sync_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "open", lambda *arguments: 1 / 0)
    sync_folder(tmp_path)


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("busy", [0, 1, 39, 40])
def test_a_file_that_is_being_read_is_replaced_on_windows_when_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: int
) -> None:
    real, tries = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        tries.append(target)
        if len(tries) <= busy:
            raise PermissionError(13, "Access is denied")
        return real(self, target)

    write_text(tmp_path / "a", "old")
    monkeypatch.setattr(Path, "replace", replace)
    if busy < 40:
        write_text(tmp_path / "a", "new")
    else:
        with pytest.raises(PermissionError):
            write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text("utf-8") == ("new" if busy < 40 else "old")
    assert len(tries) == min(busy + 1, 40) and _names(tmp_path) == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="of the other systems")
def test_elsewhere_a_refusal_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def refuse(self: Path, *arguments: Any, **named: Any) -> None:
        tries.append(self)
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.partial").touch()
    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(PermissionError):
        publish({tmp_path / f"a{PARTIAL_SUFFIX}": tmp_path / "a"})
    with pytest.raises(PermissionError):
        remove(tmp_path / "a.partial")
    assert len(tries) == 2


@pytest.mark.usefixtures("windows")
def test_a_file_in_use_is_left_on_windows_and_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert remove(tmp_path / "gone")
    real = Path.unlink

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if self.name == "mapped":
            raise PermissionError(13, "Access is denied")
        real(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    for name in ("mapped", "free"):
        (tmp_path / name).touch()
    assert [remove(tmp_path / name) for name in ("mapped", "free")] == [False, True]
    assert _names(tmp_path) == ["mapped"]
