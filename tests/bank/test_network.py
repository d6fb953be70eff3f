"""Banks on network folders: how they are recognized, and what holds there without a write-ahead log."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    add_latents,
    become_nobody,
    child_process,
    enterable_folder,
    fill,
    random_latents,
    read_bank,
    receive,
    tiny_manifest,
)

from memspan.bank import database, network
from memspan.bank.bank import MemoryBank
from memspan.bank.database import Database
from memspan.bank.network import network_type, network_type_with_warning
from memspan.errors import BankBusy, BankError
from memspan.types import Document

MANIFEST = tiny_manifest()
SCHEMA = "CREATE TABLE t (x UNIQUE); INSERT INTO t VALUES (1);"


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder is on a network; nobody waits long for a lock."""
    monkeypatch.setattr(database, "network_type_with_warning", lambda folder: "made up")
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.05)


def _local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "network_type_with_warning", lambda folder: None)


def _rows(handle: Database) -> list[int]:
    return [x for (x,) in handle.read("SELECT x FROM t ORDER BY x")]


def _insert(handle: Database, value: int) -> None:
    with handle.transaction():
        handle.execute("INSERT INTO t VALUES (?)", (value,))


# --- recognizing ----------------------------------------------------------------------------------------------------


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str | None]:
    """The answer for a folder on a mount of some type, on Linux."""

    def ask(kind: str) -> str | None:
        device = tmp_path.stat().st_dev
        own = f"{os.major(device)}:{os.minor(device)}"
        lines = [
            "22 1 999:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw",
            f"36 22 {own} / /mnt/a\\040b rw,noatime master:1 propagate_from:2 - {kind} host:/export rw,vers=4.2",
            "37 22 999:2 / /tmp rw - nfs host:/other rw",
        ]
        (tmp_path / "mountinfo").write_text("\n".join(lines), encoding="utf-8")
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(network, "_MOUNTS", tmp_path / "mountinfo")
        return network_type(tmp_path)

    if not hasattr(os, "major"):
        pytest.skip("devices have no numbers here")
    return ask


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "lustre", "ceph", "fuse.sshfs", "fuse.x"]
)
def test_a_network_folder_is_recognized_on_linux(mounted: Callable[[str], str | None], kind: str) -> None:
    assert mounted(kind) == kind


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "fuseblk", "fuse.gocryptfs", "fuse"]
)
def test_a_disk_of_this_machine_is_none(mounted: Callable[[str], str | None], kind: str) -> None:
    assert mounted(kind) is None


def test_a_folder_of_an_unknown_mount_is_taken_for_a_local_one(
    mounted: Callable[[str], str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted("nfs")
    (tmp_path / "mountinfo").write_text("36 22 999:3 / / rw - nfs host:/ rw\n", encoding="utf-8")
    assert network_type(tmp_path) is None
    monkeypatch.setattr(network, "_MOUNTS", tmp_path / "no proc here")
    assert network_type(tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux itself")
def test_this_folder_is_recognized_as_what_the_system_says(tmp_path: Path) -> None:
    if not (stat := shutil.which("stat")):
        pytest.skip("the system does not say")
    told = os.popen(f"{stat} --file-system --format %T {tmp_path}").read().strip()
    assert (network_type(tmp_path) is not None) == (told in {"nfs", "smb2", "cifs", "v9fs", "fuseblk"})


@pytest.mark.parametrize("symbol", ["statfs$INODE64", "statfs"])
@pytest.mark.parametrize(("flags", "expected"), [(0x1000, None), (0x0, "smbfs"), (0x200018, "smbfs")])
def test_macos_says_by_a_flag_what_is_local(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, symbol: str, flags: int, expected: str | None
) -> None:
    def statfs(path: bytes, structure: Any) -> int:
        assert path == os.fsencode(tmp_path)
        # Where sys/mount.h has them: f_flags behind two sizes, five counts, the ids, the owner and the type.
        address = ctypes.addressof(structure._obj)
        ctypes.c_uint32.from_address(address + 64).value = flags
        ctypes.memmove(address + 72, b"smbfs\0", 6)
        return 0

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(network.ctypes, "CDLL", lambda name: types.SimpleNamespace(**{symbol: statfs}))
    assert network_type(tmp_path) == expected


@pytest.mark.parametrize(("kind", "expected"), [(2, None), (3, None), (4, "network drive"), (6, None)])
def test_windows_says_what_a_drive_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, expected: str | None
) -> None:
    asked = []
    kernel = types.SimpleNamespace(GetDriveTypeW=lambda root: asked.append(root) or kind)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(network.ctypes, "windll", types.SimpleNamespace(kernel32=kernel), raising=False)
    assert network_type(tmp_path / "below") == expected
    assert asked == [tmp_path.anchor]


def test_a_network_folder_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(network, "network_type", lambda folder: "nfs")
    with caplog.at_level(logging.WARNING):
        bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
        fill(bank, "a", "b")
        bank.close()
        read_bank(MemoryBank.open(tmp_path / "bank"))
    (record,) = caplog.records
    assert "nfs" in record.getMessage() and str(tmp_path / "bank") in record.getMessage()
    network_type_with_warning.cache_clear()


# --- the journal ----------------------------------------------------------------------------------------------------


@pytest.fixture
def made(remote: None, tmp_path: Path) -> Iterator[Database]:
    handle = Database(tmp_path / "file.sqlite", schema=SCHEMA)
    yield handle
    handle.close()


def test_there_is_a_journal_and_no_shared_memory(made: Database) -> None:
    other = Database(made.path)
    for handle in (made, other):
        assert handle.value("PRAGMA journal_mode") == "delete"
        assert handle.value("PRAGMA synchronous") == 3, "EXTRA: a commit is the end of the journal, so that is synced"
        assert handle.value("PRAGMA locking_mode") == "normal"
    with made.transaction():
        made.execute("INSERT INTO t VALUES (2)")
        assert _rows(other) == [1], "readers go on until the commit"
        assert {path.name for path in made.path.parent.iterdir()} == {"file.sqlite", "file.sqlite-journal"}
    assert _rows(other) == [1, 2]
    assert [path.name for path in made.path.parent.iterdir()] == ["file.sqlite"]
    other.close()


def test_a_snapshot_sees_nothing_later_and_a_commit_that_it_stops_is_a_named_error(made: Database) -> None:
    reader = Database(made.path)
    reader.begin_snapshot()
    with pytest.raises(BankBusy, match=rf"{made.path} is in use .*nothing was changed; wait for the processes"):
        _insert(made, 2)
    assert _rows(reader) == [1]
    reader.end_snapshot()
    assert _rows(reader) == _rows(made) == [1]
    _insert(made, 2)
    assert _rows(reader) == [1, 2]
    reader.close()


def test_a_commit_waits_for_a_snapshot_that_ends(made: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 60)

    def read(pipe: Any) -> None:
        reader = Database(made.path)
        reader.begin_snapshot()
        pipe.send(_rows(reader))
        receive(pipe)
        pipe.send(_rows(reader))
        reader.end_snapshot()
        reader.close()

    with child_process(read) as (_, pipe):
        assert receive(pipe) == [1]
        writer = Database(made.path)
        with writer.transaction():
            writer.execute("INSERT INTO t VALUES (2)")
            pipe.send("go on")
            assert receive(pipe) == [1]
        assert _rows(writer) == [1, 2]
        writer.close()


def test_rewriting_while_someone_reads_is_a_named_error(made: Database) -> None:
    reader = Database(made.path)
    reader.begin_snapshot()
    with pytest.raises(BankBusy, match="is in use"):
        made.vacuum()
    reader.end_snapshot()
    made.vacuum()
    assert made.empty_log() and _rows(reader) == [1]
    reader.close()


def test_a_file_with_a_log_is_given_a_journal_without_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bank that was made on a disk and copied; the newest of it is in the log."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "share").mkdir()
    local = Database(tmp_path / "disk" / "file.sqlite", schema=SCHEMA)
    _insert(local, 2)
    for name in ("file.sqlite", "file.sqlite-wal"):
        shutil.copy(tmp_path / "disk" / name, tmp_path / "share" / name)
    local.close()
    # A folder where the shared memory would be: SQLite cannot make it.
    (tmp_path / "share" / "file.sqlite-shm").mkdir()
    monkeypatch.setattr(database, "network_type_with_warning", lambda folder: "made up")
    handle = Database(tmp_path / "share" / "file.sqlite")
    assert handle.value("PRAGMA journal_mode") == "delete" and _rows(handle) == [1, 2]
    assert not (tmp_path / "share" / "file.sqlite-wal").exists()
    handle.close()


def test_a_file_whose_log_someone_uses_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = Database(tmp_path / "file.sqlite", schema=SCHEMA)
    monkeypatch.setattr(database, "network_type_with_warning", lambda folder: "made up")
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.05)
    with pytest.raises(BankBusy, match="is in use"):
        Database(local.path)
    _insert(local, 2)
    assert local.value("PRAGMA journal_mode") == "wal"
    local.close()
    assert _rows(Database(local.path)) == [1, 2]


def test_a_journal_stays_when_the_folder_is_used_where_its_disk_is(
    made: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may use it over the network meanwhile: they must not meet a log."""
    _local(monkeypatch)
    there = Database(made.path)
    assert there.value("PRAGMA journal_mode") == "delete"
    _insert(there, 2)
    assert _rows(made) == [1, 2]
    there.close()


@pytest.mark.usefixtures("remote")
@pytest.mark.parametrize("is_remote", [True, False])
def test_a_change_that_was_cut_short_is_not_read_where_it_cannot_be_undone(
    monkeypatch: pytest.MonkeyPatch, is_remote: bool
) -> None:
    """Where nothing may be written, a file is read as one that never changes: but not half of a transaction."""
    with enterable_folder() as folder:
        made = Database(folder / "file.sqlite", schema=SCHEMA)
        made.connection.execute("PRAGMA cache_size = 1")  # so that pages are written before the commit
        (folder / "copy").mkdir()
        with made.transaction():
            made.execute_many("INSERT INTO t VALUES (?)", [(number,) for number in range(2, 5000)])
            for path in [path for path in folder.iterdir() if path.is_file()]:
                shutil.copy(path, folder / "copy")
                (folder / "copy" / path.name).chmod(0o444)
        made.close()
        (folder / "copy").chmod(0o555)
        if not is_remote:
            _local(monkeypatch)

        def look(pipe: Any) -> None:
            become_nobody()
            try:
                pipe.send(_rows(Database(folder / "copy" / "file.sqlite")))
            except BankError as error:
                pipe.send(str(error))

        with child_process(look) as (_, pipe):
            assert f"{folder / 'copy' / 'file.sqlite'} is not a readable bank catalog" in receive(pipe)
        for path in (folder / "copy", *(folder / "copy").iterdir()):
            path.chmod(0o755)
        assert _rows(Database(folder / "copy" / "file.sqlite")) == [1]


# --- banks ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("remote")
def test_a_bank_is_filled_changed_compacted_and_erased(tmp_path: Path) -> None:
    bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
    fill(bank, "a", "b", "c")
    other = MemoryBank.open(bank.folder)
    assert len(read_bank(other)) == 3
    with bank.writer() as writer:
        add_latents(writer, Document("a", "a new text"), random_latents(MANIFEST, 2))
        writer.commit()
    bank.delete(["b"])
    bank.compact()
    bank.compact(secure=True)
    assert [document.external_id for document, *_ in read_bank(other)] == [
        document.external_id for document, *_ in read_bank(bank)
    ]
    assert {document.external_id for document, *_ in read_bank(bank)} == {"a", "c"}
    for handle in (bank, other):
        handle.close()
    assert {path.name for path in bank.folder.iterdir() if path.name.startswith("catalog")} == {"catalog.sqlite"}


@pytest.mark.usefixtures("remote")
def test_a_change_beside_an_open_snapshot_is_refused_and_loses_nothing(tmp_path: Path) -> None:
    bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
    fill(bank, "a")
    before = read_bank(bank)
    with bank.snapshot() as snapshot:
        with pytest.raises(BankBusy, match="nothing was changed"):
            fill(bank, "b")
        assert snapshot.commit == bank.catalog.commits()
    assert read_bank(bank) == before
    fill(bank, "b")
    assert len(read_bank(bank)) == 2
    bank.close()
