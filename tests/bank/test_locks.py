from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from helpers import become_nobody, child_process, enterable_folder, receive

from memspan.bank import locks
from memspan.bank.locks import HOLDER, READERS, Registration, holders, pids, writer_lock
from memspan.errors import BankBusy

fcntl = pytest.importorskip("fcntl", reason="readers are not registered on this system")
UNKNOWN = -1


def _registered(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / READERS).iterdir())


# --- the writer's lock ----------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    with writer_lock(tmp_path):
        for _ in range(2):
            with pytest.raises(BankBusy, match=rf"pid {os.getpid()}\b.*{tmp_path}"), writer_lock(tmp_path):
                pass
        with ThreadPoolExecutor(1) as threads:
            assert isinstance(threads.submit(writer_lock(tmp_path).__enter__).exception(), BankBusy)
    with writer_lock(tmp_path):
        pass


def test_the_lock_of_one_folder_is_not_that_of_another(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with writer_lock(tmp_path / "a"), writer_lock(tmp_path / "b"):
        pass


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), writer_lock(tmp_path):
        raise RuntimeError
    with writer_lock(tmp_path):
        pass


def test_a_killed_process_holds_the_lock_no_longer(tmp_path: Path) -> None:
    def hold(pipe: Connection) -> None:
        with writer_lock(tmp_path):
            pipe.send("held")
            receive(pipe)

    with child_process(hold) as (child, pipe):
        assert receive(pipe) == "held"
        with pytest.raises(BankBusy, match=rf"pid {child.pid}\b"), writer_lock(tmp_path):
            pass
        child.kill()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
    assert (tmp_path / HOLDER).read_text() == str(child.pid), "what it left does not matter"
    with writer_lock(tmp_path), pytest.raises(BankBusy, match=rf"pid {os.getpid()}\b"), writer_lock(tmp_path):
        pass


def test_a_writer_without_its_pid_is_refused_all_the_same(tmp_path: Path) -> None:
    with writer_lock(tmp_path):
        (tmp_path / HOLDER).unlink()
        with pytest.raises(BankBusy, match="its pid is unknown"), writer_lock(tmp_path):
            pass


# --- readers --------------------------------------------------------------------------------------------------------


def test_a_reader_holds_the_oldest_commit_that_its_snapshots_see(tmp_path: Path) -> None:
    reader = Registration(tmp_path)
    assert reader.name.startswith(f"{os.getpid()}-")
    held: list[dict[str, int]] = [holders(tmp_path)]
    reader.announce()
    held.append(holders(tmp_path))
    reader.hold(7)
    held.append(holders(tmp_path))
    reader.announce()
    held.append(holders(tmp_path))
    reader.hold(12)
    held.append(holders(tmp_path))
    reader.release(7)
    held.append(holders(tmp_path))
    reader.release(12)
    held.append(holders(tmp_path))
    assert held == [{}, *({reader.name: commit} for commit in (UNKNOWN, 7, UNKNOWN, 7, 12)), {}]


def test_two_snapshots_of_one_commit_are_both_waited_for(tmp_path: Path) -> None:
    reader = Registration(tmp_path)
    for _ in range(2):
        reader.announce()
        reader.hold(3)
    reader.release(3)
    assert holders(tmp_path) == {reader.name: 3}
    reader.release(3)
    assert holders(tmp_path) == {}


def test_a_snapshot_that_was_not_taken_is_withdrawn(tmp_path: Path) -> None:
    reader = Registration(tmp_path)
    reader.announce()
    reader.withdraw()
    assert holders(tmp_path) == {}


def test_every_reader_is_told_but_for_the_one_not_counted(tmp_path: Path) -> None:
    readers = [Registration(tmp_path) for _ in range(3)]
    for commit, reader in enumerate(readers):
        reader.announce()
        reader.hold(commit)
    assert holders(tmp_path) == {reader.name: commit for commit, reader in enumerate(readers)}


def test_closing_takes_the_reader_off_the_list(tmp_path: Path) -> None:
    reader, other = Registration(tmp_path), Registration(tmp_path)
    reader.announce()
    reader.close()
    reader.close()
    assert (holders(tmp_path), _registered(tmp_path)) == ({}, [other.name])
    reader.release(UNKNOWN)  # a snapshot that was open is closed later
    assert _registered(tmp_path) == [other.name]


def test_a_reader_that_does_nothing_keeps_its_place(tmp_path: Path) -> None:
    reader = Registration(tmp_path)
    assert (holders(tmp_path), _registered(tmp_path)) == ({}, [reader.name])
    reader.announce()
    assert holders(tmp_path) == {reader.name: UNKNOWN}


def test_readers_of_other_processes_are_seen_until_they_end_however_they_end(tmp_path: Path) -> None:
    def hold(pipe: Connection) -> None:
        reader = Registration(tmp_path)
        reader.announce()
        reader.hold(5)
        pipe.send(reader.name)
        receive(pipe)
        os._exit(0)  # nothing is closed

    with child_process(hold) as (one, to_one), child_process(hold) as (two, to_two):
        names = receive(to_one), receive(to_two)
        assert holders(tmp_path) == dict.fromkeys(names, 5)
        assert pids(holders(tmp_path)) == ", ".join(sorted([str(one.pid), str(two.pid)]))
        one.kill()
        one.join(60)
        assert holders(tmp_path) == {names[1]: 5}
        assert _registered(tmp_path) == [names[1]], "the dead are cleared away"
        to_two.send("end")
        two.join(60)
    assert (holders(tmp_path), _registered(tmp_path)) == ({}, [])


def test_pids_are_named_once(tmp_path: Path) -> None:
    assert pids(["12-a", "7-b", "12-c"]) == "12, 7"


def test_without_readers_nobody_holds_anything(tmp_path: Path) -> None:
    assert holders(tmp_path) == {}
    (tmp_path / READERS).mkdir()
    assert holders(tmp_path) == {}


def test_where_no_reader_can_be_registered_all_else_goes_on(tmp_path: Path) -> None:
    (tmp_path / READERS).write_text("a file where the folder should be")
    reader = Registration(tmp_path)
    reader.announce()
    reader.hold(3)
    reader.release(3)
    reader.close()
    assert holders(tmp_path) == {}


# --- garbage --------------------------------------------------------------------------------------------------------


def test_garbage_among_the_readers_is_harmless(tmp_path: Path) -> None:
    readers = tmp_path / READERS
    (readers / "folder" / "below").mkdir(parents=True)
    for name, content in (("notes.txt", b"not ours"), ("123-dead", b"5"), (".hidden", b"\xff" * 99), ("empty", b"")):
        (readers / name).write_bytes(content)
    (readers / "dangling").symlink_to(tmp_path / "nothing")
    reader = Registration(tmp_path)
    reader.announce()
    reader.hold(2)
    for _ in range(2):
        assert holders(tmp_path) == {reader.name: 2}
    assert (readers / "folder" / "below").is_dir()


def test_a_pipe_among_the_readers_is_harmless(tmp_path: Path) -> None:
    (tmp_path / READERS).mkdir()
    os.mkfifo(tmp_path / READERS / "pipe")
    with child_process(lambda pipe: pipe.send(holders(tmp_path))) as (child, pipe):
        answered = pipe.poll(5)
        child.kill()
        assert answered and pipe.recv() == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 30, b"soon", b"-1", b"1.5", b"--5", "²".encode()],
)
def test_a_living_reader_that_writes_nonsense_is_thought_to_hold_everything(tmp_path: Path, content: bytes) -> None:
    (tmp_path / READERS).mkdir()
    path = tmp_path / READERS / "77-x"
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert holders(tmp_path) == {"77-x": UNKNOWN}


# --- races ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 3])
def test_a_reader_whose_file_is_cleared_before_it_is_locked_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    real, cleared = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and len(cleared) < times:
            cleared.append(operation)
            assert holders(tmp_path) == {}  # a writer looks while the file is not locked yet
            assert _registered(tmp_path) == []
        real(descriptor, operation)

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    reader = Registration(tmp_path)
    assert len(cleared) == times
    reader.announce()
    assert holders(tmp_path) == {reader.name: UNKNOWN}


def test_a_reader_that_has_written_nothing_yet_holds_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    real = Registration._write

    def write(self: Registration) -> None:
        seen.append(list(holders(tmp_path).values()))
        real(self)

    monkeypatch.setattr(Registration, "_write", write)
    Registration(tmp_path)
    assert seen == [[UNKNOWN]]


def test_registering_and_clearing_at_once_loses_no_reader(tmp_path: Path) -> None:
    (tmp_path / READERS).mkdir()

    def register(_: int) -> None:
        for commit in range(40):
            reader = Registration(tmp_path)
            reader.announce()
            reader.hold(commit)
            assert holders(tmp_path)[reader.name] == commit
            reader.close()

    def clear(pipe: Connection) -> None:
        while not pipe.poll():
            holders(tmp_path)
        pipe.send("done")

    with child_process(clear) as (_, pipe), ThreadPoolExecutor(3) as threads:
        list(threads.map(register, range(3)))
        pipe.send("enough")
        assert receive(pipe) == "done"
    assert _registered(tmp_path) == []


# --- several users --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(getattr(os, "geteuid", lambda: -1)() != 0, reason="only root can become another user")
def test_a_reader_of_another_user_is_waited_for() -> None:
    with enterable_folder() as folder:
        (folder / READERS).mkdir()
        for path in (folder, folder / READERS):
            path.chmod(0o777)
        reader = Registration(folder)  # with an ordinary umask, others may read its file
        (folder / READERS / reader.name).chmod(0o644)
        reader.announce()
        reader.hold(3)

        def look(pipe: Connection) -> None:
            become_nobody()
            pipe.send(holders(folder))

        with child_process(look) as (_, pipe):
            assert receive(pipe) == {reader.name: 3}
        reader.close()
