from __future__ import annotations

import dataclasses
import itertools
import os
import re
import signal
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from helpers import (
    FORK,
    add_latents,
    bits,
    child_process,
    file_size_limit,
    fill,
    random_latents,
    read_bank,
    read_latents,
    receive,
    tiny_manifest,
)

from memspan.bank import edits, files
from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE
from memspan.bank.versions import SourceRows
from memspan.bank.words import WordIndex
from memspan.errors import BankBusy, BankError, BankMismatch, UnknownDocument
from memspan.types import Document

DEFAULT = DEFAULT_NAMESPACE
MANIFEST = tiny_manifest()


# --- create and open ------------------------------------------------------------------------------------------------


def test_a_new_bank_is_empty_and_knows_its_manifest(tmp_path: Path) -> None:
    assert not MemoryBank.exists(tmp_path / "deep" / "bank")
    MemoryBank.create(tmp_path / "deep" / "bank", MANIFEST).close()
    assert MemoryBank.exists(tmp_path / "deep" / "bank")
    bank = MemoryBank.open(str(tmp_path / "deep" / "bank"))
    assert bank.manifest == MANIFEST
    with bank.snapshot() as snapshot:
        assert (snapshot.shards, snapshot.num_documents, snapshot.search("text", 5)) == ((), 0, [])
    assert (read_bank(bank), bank.catalog.namespaces()) == ([], [])


def test_an_empty_folder_becomes_a_bank_and_anything_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    MemoryBank.create(tmp_path / "empty", MANIFEST)
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "thesis.txt").write_text("years of work")
    file = tmp_path / "file"
    file.write_text("a file")
    alike = tmp_path / "alike"  # its segments are somebody's
    (alike / "segments").mkdir(parents=True)
    (alike / "segments" / "orange").write_text("juicy")
    for path in (occupied, alike, tmp_path / "empty"):
        with pytest.raises(BankError, match=f"{path} exists and is not an empty folder"):
            MemoryBank.create(path, MANIFEST)
    with pytest.raises(BankError, match=f"{file} is a file; name a folder for the new bank"):
        MemoryBank.create(file, MANIFEST)
    assert [path.name for path in occupied.iterdir()] == ["thesis.txt"]
    assert [path.name for path in alike.rglob("*")] == ["segments", "orange"]
    assert file.read_text() == "a file"
    with pytest.raises(BankError, match=str(file)):
        MemoryBank.create(file / "below", MANIFEST)


@pytest.mark.parametrize("exists", [True, False])
def test_opening_what_is_no_bank_says_what_to_run(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "nothing"
    if exists:
        folder.mkdir()
        (folder / "notes.txt").write_text("no bank")
    with pytest.raises(BankError, match=f"no bank in {folder}.*memspan add {folder} FILES"):
        MemoryBank.open(folder)
    assert folder.exists() is exists


def test_a_bank_half_made_is_no_bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(edits, "write_manifest", _raise(OSError(28, "No space left on device")))
        with pytest.raises(BankError, match="No space left"):
            MemoryBank.create(tmp_path / "bank", MANIFEST)
    assert not MemoryBank.exists(tmp_path / "bank")
    with pytest.raises(BankError, match="memspan add"):
        MemoryBank.open(tmp_path / "bank")


def test_making_a_bank_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(edits, "write_manifest", _raise(OSError(28, "No space left on device")))
        with pytest.raises(BankError):
            MemoryBank.create(tmp_path / "bank", MANIFEST)
    assert MemoryBank.create(tmp_path / "bank", MANIFEST).manifest == MANIFEST


def test_what_a_failed_attempt_left_is_as_good_as_empty(tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    (folder / "segments").mkdir(parents=True)
    for name in ("catalog.sqlite.partial", "writer.lock", "writer.pid"):
        (folder / name).write_bytes(b"half of it")
    bank = MemoryBank.create(folder, MANIFEST)
    given = fill(bank, "a")
    assert {key: bits(value) for key, value in read_latents(bank).items()} == {k: bits(v) for k, v in given.items()}
    assert not (folder / "catalog.sqlite.partial").exists()


def test_a_bank_without_its_segments_folder_says_so_to_a_writer(bank: MemoryBank) -> None:
    (bank.folder / "segments").rmdir()
    with pytest.raises(BankError, match="segments"), bank.writer():
        pass


# --- what is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_segment_bytes", [1, 5 * MANIFEST.row_bytes, 2**20])
def test_every_latent_is_found_again_by_this_handle_and_after_reopening(
    bank: MemoryBank, max_segment_bytes: int
) -> None:
    given = fill(bank, "a", "b", "c", max_segment_bytes=max_segment_bytes)
    given |= fill(bank, "d", rows=1, max_segment_bytes=max_segment_bytes)
    fresh = read_bank(bank)
    bank.close()
    reopened = MemoryBank.open(bank.folder)
    assert read_bank(reopened) == fresh
    found = read_latents(reopened)
    assert {key: bits(latents) for key, latents in found.items()} == {k: bits(v) for k, v in given.items()}


def test_a_source_of_several_parts_may_lie_in_several_segments(bank: MemoryBank) -> None:
    latents = [random_latents(MANIFEST, rows) for rows in (4, 1, 6)]
    with bank.writer(max_segment_bytes=5 * MANIFEST.row_bytes) as writer:
        ids = add_latents(writer, Document("a", "one two three"), *latents)
        writer.commit()
    assert len(bank.catalog.segments()) == 2
    assert [bits(read_latents(bank)[document_id]) for document_id in ids] == [bits(given) for given in latents]


def test_nothing_is_there_before_it_is_committed_nor_without_a_commit(bank: MemoryBank) -> None:
    fill(bank, "a")
    before = read_bank(bank)
    with bank.writer(max_segment_bytes=1) as writer:
        for name in ("a", "b"):
            add_latents(writer, Document(name, "not committed"), random_latents(MANIFEST, 2))
        assert read_bank(bank) == before
    assert read_bank(bank) == before
    assert len(list((bank.folder / "segments").iterdir())) > 2, "uncommitted segments are left over ..."
    given = fill(bank, "c")
    assert len(list((bank.folder / "segments").iterdir())) == 4, "... and swept by the next writer"
    assert read_bank(bank)[:1] == before
    (document_id,) = given
    assert bits(read_latents(bank)[document_id]) == bits(given[document_id])


def test_replaced_documents_are_not_alive_although_their_rows_stay(bank: MemoryBank) -> None:
    old = fill(bank, "a", "b")
    new = fill(bank, "a")
    a, b = old
    assert sorted(read_latents(bank)) == sorted([b, *new])
    with bank.snapshot() as snapshot:
        ids = [number for shard in snapshot.shards for number in shard.ids_N.tolist()]
        alive = [is_live for shard in snapshot.shards for is_live in shard.live_N.tolist()]
    assert dict(zip(ids, alive, strict=True)) == {a: False, b: True, **dict.fromkeys(new, True)}


def test_a_source_added_twice_before_a_commit_is_there_once_as_it_was_last(bank: MemoryBank) -> None:
    with bank.writer() as writer:
        add_latents(writer, Document("a", "first"), random_latents(MANIFEST, 2))
        last = random_latents(MANIFEST, 3)
        (number,) = add_latents(writer, Document("a", "last"), last)
        writer.commit()
    found = read_latents(bank)
    assert {key: bits(latents) for key, latents in found.items()} == {number: bits(last)}
    assert [document.text for document, *_ in read_bank(bank)] == ["last"]


def test_reserved_ids_follow_each_other_and_are_never_those_of_a_document(bank: MemoryBank) -> None:
    with bank.writer() as writer:
        assert list(writer.reserve_ids(2)) == [1, 2]  # not used
        add_latents(writer, Document("a", "text"), random_latents(MANIFEST, 1), random_latents(MANIFEST, 1))
        assert list(writer.reserve_ids(1)) == [5]
        writer.commit()
    with bank.writer() as writer:
        assert list(writer.reserve_ids(1)) == [5]


def test_a_missing_segment_is_named_when_the_bank_is_read(bank: MemoryBank) -> None:
    fill(bank, "a")
    path = next((bank.folder / "segments").iterdir())
    path.unlink()
    with pytest.raises(BankError, match=str(path)):
        bank.snapshot()


# --- one writer, many readers ---------------------------------------------------------------------------------------


def test_a_second_handle_cannot_write_at_the_same_time(bank: MemoryBank) -> None:
    other = MemoryBank.open(bank.folder)
    with bank.writer(), pytest.raises(BankBusy, match=rf"pid {os.getpid()}\b.*{bank.folder}"), other.writer():
        pass
    with bank.writer(), pytest.raises(BankBusy, match=rf"pid {os.getpid()}\b"), bank.writer():
        pass
    fill(other, "a")
    fill(bank, "b")
    assert [document.external_id for document, *_ in read_bank(bank)] == ["a", "b"]


def test_a_second_thread_cannot_write_at_the_same_time(bank: MemoryBank) -> None:
    with bank.writer(), ThreadPoolExecutor(1) as threads:
        error = threads.submit(lambda: bank.delete([1])).exception()
    assert isinstance(error, BankBusy) and f"pid {os.getpid()}" in str(error)


def test_the_lock_is_given_back_after_an_error(bank: MemoryBank) -> None:
    with pytest.raises(RuntimeError), bank.writer():
        raise RuntimeError
    fill(MemoryBank.open(bank.folder), "a")


@pytest.mark.parametrize("ending", ["done", "killed"])
def test_another_process_that_writes_is_named_and_its_lock_ends_with_it(bank: MemoryBank, ending: str) -> None:
    before = fill(bank, "a")

    def write(pipe: Connection) -> None:
        with MemoryBank.open(bank.folder).writer(max_segment_bytes=1) as writer:
            latents = random_latents(MANIFEST, 2), random_latents(MANIFEST, 1)
            add_latents(writer, Document("child", "uncommitted"), *latents)
            pipe.send("ready")
            receive(pipe)

    with child_process(write) as (child, pipe):
        assert receive(pipe) == "ready"
        for change in (lambda: bank.writer().__enter__(), lambda: bank.delete(["a"]), bank.compact):
            with pytest.raises(BankBusy, match=rf"pid {child.pid}\b"):
                change()
        assert sorted(read_latents(bank)) == sorted(before), "readers are not kept waiting"
        if ending == "done":
            pipe.send("go on")
        else:
            child.kill()
        child.join(60)
        assert child.exitcode == (0 if ending == "done" else -signal.SIGKILL)
    after = fill(bank, "b")
    assert sorted(read_latents(bank)) == sorted([*before, *after])
    assert len(list((bank.folder / "segments").iterdir())) == 4, "what the other left over is swept"


def test_a_reader_sees_what_another_handle_commits_and_only_then(bank: MemoryBank) -> None:
    reader = MemoryBank.open(bank.folder)
    before = reader.catalog.commits()
    with bank.writer() as writer:
        add_latents(writer, Document("a", "zebra"), random_latents(MANIFEST, 2))
        assert (reader.catalog.commits(), read_bank(reader)) == (before, [])
        writer.commit()
        assert reader.catalog.commits() > before
        assert read_bank(reader) == read_bank(bank) != []
        assert len(reader.catalog.search(DEFAULT, "zebra", 5)) == 1


# --- deleting -------------------------------------------------------------------------------------------------------


def _contents(bank: MemoryBank) -> dict[str, tuple[bytes, bytes]]:
    """The bits of the latents of every live document, by external id, seen by a new snapshot."""
    return {document.external_id: tuple(latents) for document, *latents in read_bank(bank)}  # type: ignore[misc]


def test_a_deleted_document_is_gone_from_the_next_snapshot_of_every_handle(bank: MemoryBank) -> None:
    fill(bank, "a", "b", "c")
    other = MemoryBank.open(bank.folder)
    before = {id(handle): _contents(handle) for handle in (bank, other)}
    assert bank.delete(["b"]) == 1
    for handle in (bank, other, MemoryBank.open(bank.folder)):
        expected = before[id(bank)]
        assert _contents(handle) == {name: expected[name] for name in "ac"}
        with handle.snapshot() as snapshot:
            assert [found.external_id for found in snapshot.documents([1, 2, 3])] == ["a", "c"]
            assert sorted(number for number, _ in snapshot.search("text b", 9)) == [1, 3]
            assert snapshot.selectable_mask().tolist() == [True, False, True]
            assert snapshot.num_documents == 2


def test_a_deleted_document_is_gone_from_the_next_snapshot_of_another_process(bank: MemoryBank) -> None:
    fill(bank, "a", "b")

    def read(pipe: Connection) -> None:
        reader = MemoryBank.open(bank.folder)
        while receive(pipe) == "look":
            pipe.send(_contents(reader))

    with child_process(read) as (_, pipe):
        pipe.send("look")
        before = receive(pipe)
        bank.delete(["a"])
        pipe.send("look")
        assert receive(pipe) == {"b": before["b"]}
        pipe.send("end")


def test_another_process_may_delete(bank: MemoryBank) -> None:
    fill(bank, "a", "b")
    before = _contents(bank)
    with child_process(lambda pipe: pipe.send(MemoryBank.open(bank.folder).delete(["a"]))) as (_, pipe):
        assert receive(pipe) == 1
    assert _contents(bank) == {"b": before["b"]}


def test_after_deleting_the_scores_are_those_of_a_bank_that_never_held_it(tmp_path: Path) -> None:
    texts = {name: f"zebra {'giraffe ' * number}gnu {name}" for number, name in enumerate("abcdef")}
    deleted, fresh = (MemoryBank.create(tmp_path / name, MANIFEST) for name in ("deleted", "fresh"))
    for bank in (deleted, fresh):
        with bank.writer() as writer:
            for name, text in texts.items():
                ids = (
                    add_latents(writer, Document(name, text), random_latents(MANIFEST, 1))
                    if (bank is deleted or name in "acdf")
                    else writer.reserve_ids(1)
                )
                assert len(ids) == 1
            writer.commit()
    deleted.delete(["b", 5])
    for question in ("zebra", "giraffe gnu", "a gnu", "e b"):
        with deleted.snapshot() as one, fresh.snapshot() as two:
            assert one.search(question, 9) == two.search(question, 9)
            assert one.search("giraffe", 9)


@pytest.mark.parametrize("name", ["the source", 1, 2, 3])
def test_a_part_stands_for_its_whole_source(bank: MemoryBank, name: str | int) -> None:
    with bank.writer() as writer:
        latents = [random_latents(MANIFEST, rows) for rows in (2, 1, 3)]
        add_latents(writer, Document("the source", "one two three"), *latents)
        writer.commit()
    fill(bank, "other")
    assert bank.delete([name]) == 1
    assert sorted(_contents(bank)) == ["other"]


def test_several_names_of_one_source_are_one_deletion(bank: MemoryBank) -> None:
    with bank.writer() as writer:
        add_latents(writer, Document("a", "one two"), random_latents(MANIFEST, 1), random_latents(MANIFEST, 1))
        writer.commit()
    fill(bank, "b", "c")
    before = bank.catalog.commits()
    assert bank.delete(["a", 1, 2, "a", 3]) == 2
    assert sorted(_contents(bank)) == ["c"]
    assert bank.catalog.commits() == before + 1


@pytest.mark.parametrize("unknown", ["b", "", "1", 99, 0, -1, 2**63, 10**40, "'; DROP TABLE documents; --"])
def test_an_unknown_id_is_named_and_nothing_is_deleted(bank: MemoryBank, unknown: str | int) -> None:
    fill(bank, "a", "c")
    before = read_bank(bank)
    with pytest.raises(UnknownDocument) as raised:
        bank.delete(["a", unknown, "c"])
    assert repr(unknown) in str(raised.value) and f"memspan ls {bank.folder}" in str(raised.value)
    assert read_bank(bank) == before


def test_a_name_that_is_no_unicode_is_unknown(bank: MemoryBank) -> None:
    fill(bank, "a")
    with pytest.raises(UnknownDocument):
        bank.delete(["a", "\udcff"])  # as a shell hands over a name in another encoding
    assert sorted(_contents(bank)) == ["a"]


def test_what_was_deleted_or_is_in_another_namespace_is_unknown(bank: MemoryBank) -> None:
    fill(bank, "a", "b", namespace="ann")
    bank.delete(["a"], namespace="ann")
    for number in ("a", 1, 2, "b"):
        with pytest.raises(UnknownDocument, match="namespace"):
            bank.delete([number], namespace="ann" if number in ("a", 1) else "bob")
    with pytest.raises(UnknownDocument, match="default"):
        bank.delete(["b"])
    assert [document.external_id for document, *_ in read_bank(bank, "ann")] == ["b"]


def test_ids_are_not_used_again_after_deleting_compacting_and_reopening(bank: MemoryBank) -> None:
    seen = set(fill(bank, "a", "b", "c"))
    for secure in (False, True):
        bank.delete(sorted(read_latents(bank)))
        bank.compact(secure=secure)
        assert bank.catalog.counts().deleted_documents == 0
        bank.close()
        bank = MemoryBank.open(bank.folder)
        new = set(fill(bank, "a", "b"))
        assert not new & seen
        seen |= new


def test_deleting_reads_and_writes_no_segment(bank: MemoryBank, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(bank, "a", "b")
    files = {path: path.stat() for path in (bank.folder / "segments").iterdir()}
    monkeypatch.setattr("memspan.bank.bank.SegmentReader", None)
    monkeypatch.setattr("memspan.bank.compaction.SegmentReader", None)
    bank.delete(["a"])
    assert {path: path.stat() for path in (bank.folder / "segments").iterdir()} == files


# --- another model --------------------------------------------------------------------------------------------------


def test_after_the_bank_was_encoded_anew_open_handles_refuse(bank: MemoryBank) -> None:
    fill(bank, "a")
    with bank.snapshot():
        pass
    other = MemoryBank.open(bank.folder)
    manifest = dataclasses.replace(MANIFEST, chunk_size=8)
    edits.write_manifest(other.catalog, manifest.as_json())
    for use in (bank.snapshot, lambda: bank.writer().__enter__(), bank.compact, lambda: bank.snapshot("other")):
        with pytest.raises(BankMismatch, match="encoded anew since it was opened; open it again"):
            use()
    reopened = MemoryBank.open(bank.folder)
    assert reopened.manifest == manifest
    fill(reopened, "b")


# --- namespaces -----------------------------------------------------------------------------------------------------


def test_namespaces_share_nothing(bank: MemoryBank) -> None:
    ann = fill(bank, "a", namespace="ann")
    bob = fill(bank, "a", "b", namespace="bob")
    assert not set(ann) & set(bob)
    for name, given in (("ann", ann), ("bob", bob), (DEFAULT, {})):
        with bank.snapshot(name) as snapshot:
            assert sorted(number for shard in snapshot.shards for number in shard.ids_N.tolist()) == sorted(given)
            assert [found.id for found in snapshot.documents([1, 2, 3])] == sorted(given)
            assert sorted(number for number, _ in snapshot.search("text", 9)) == sorted(given)


def test_writing_in_one_namespace_leaves_the_scores_of_another_bit_for_bit(bank: MemoryBank) -> None:
    fill(bank, "a", "b", "c", namespace="ann")
    with bank.snapshot("ann") as snapshot:
        before = snapshot.search("text of a", 9)
    fill(bank, "a", "of", "text", namespace="bob")
    bank.delete(["of"], namespace="bob")
    with bank.snapshot("ann") as snapshot:
        assert snapshot.search("text of a", 9) == before != []


@pytest.mark.parametrize("name", ["", " ", "\n", "a\nb", "\0", "\ud800", "x" * 201])
def test_a_namespace_needs_a_name_people_can_read(bank: MemoryBank, name: str) -> None:
    with pytest.raises(BankError, match="printable name"), bank.writer(name):
        pass
    assert bank.catalog.namespaces() == []


def test_a_namespace_is_made_by_the_first_commit_only(bank: MemoryBank) -> None:
    with bank.writer("ann") as writer:
        add_latents(writer, Document("a", "text"), random_latents(MANIFEST, 1))
        assert bank.catalog.namespaces() == []
    assert bank.catalog.namespaces() == []
    fill(bank, "a", namespace="ann")
    assert bank.catalog.namespaces() == ["ann"]


# --- handles --------------------------------------------------------------------------------------------------------


def test_a_file_that_vanished_is_not_made_anew_by_a_reader(bank: MemoryBank) -> None:
    fill(bank, "a")
    other = MemoryBank.open(bank.folder)
    bank.close()
    for path in bank.folder.glob("catalog.sqlite*"):
        path.unlink()
    with pytest.raises(BankError, match=r"catalog\.sqlite"):
        other.snapshot()
    assert not MemoryBank.exists(bank.folder)


def test_closing_twice_is_closing_once(bank: MemoryBank) -> None:
    fill(bank, "a")
    bank.snapshot().close()
    bank.close()
    bank.close()
    assert list((bank.folder / "readers").iterdir()) == []


def test_a_catalog_without_its_clock_is_named(bank: MemoryBank) -> None:
    fill(bank, "a")
    bank.close()
    db = sqlite3.connect(bank.folder / "catalog.sqlite", isolation_level=None)
    db.execute("DELETE FROM clock")
    db.close()
    with pytest.raises(BankError, match="counter of commits"):
        MemoryBank.open(bank.folder).snapshot()


# --- failures at any step -------------------------------------------------------------------------------------------


def _raise(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


_STEPS: list[tuple[Any, str]] = [
    (files, "save_file"),
    (files.os, "fsync"),
    (files, "file_sha256"),
    (Path, "replace"),
    (edits, "_insert_segments"),
    (SourceRows, "_insert"),
    (SourceRows, "_end"),
    (WordIndex, "insert"),
]


def _patch_steps(patch: pytest.MonkeyPatch, at: int, fail: Callable[[], None]) -> None:
    """Let the `at`-th of all steps of a write fail, after it is done."""
    calls = itertools.count()

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            result = real(*arguments, **options)
            if next(calls) == at:
                fail()
            return result

        return step

    for owner, name in _STEPS:
        patch.setattr(owner, name, watched(getattr(owner, name)))


def _write_and_die(folder: Path, at: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        _patch_steps(patched, at, lambda: os._exit(9))
        fill(MemoryBank.open(folder), "a", "b", max_segment_bytes=1)


def test_a_process_killed_at_any_step_of_a_write_loses_nothing_committed(bank: MemoryBank) -> None:
    fill(bank, "a", "z")
    before = read_bank(bank)
    for step in itertools.count():
        assert step < 100
        child = FORK.Process(target=_write_and_die, args=(bank.folder, step))
        child.start()
        child.join(60)
        if child.exitcode == 0:
            break
        assert child.exitcode == 9
        assert read_bank(MemoryBank.open(bank.folder)) == before, f"step {step}"
    assert step > 20, "every step was reached"
    after = read_bank(bank)
    assert [document.external_id for document, *_ in after] == ["z", "a", "b"]
    assert after[0] == before[1]
    fill(bank, "c")
    assert len(list((bank.folder / "segments").iterdir())) == 2 * 4, "leftovers of the killed are swept"


def test_a_disk_that_fills_up_at_any_segment_leaves_the_bank_as_it_was(
    bank: MemoryBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bank, "a", "z")
    before = read_bank(bank)
    for call in range(4):
        calls, real = itertools.count(), files.save_file

        def save(*arguments: Any, calls: Any = calls, real: Any = real, call: int = call) -> None:
            real(*arguments)
            if next(calls) == call:
                raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(files, "save_file", save)
            with pytest.raises(BankError, match=r"No space left.*committed before is safe"):
                fill(bank, "a", "b", max_segment_bytes=1)
        for handle in (bank, MemoryBank.open(bank.folder)):
            assert read_bank(handle) == before
            assert handle.catalog.search(DEFAULT, "b", 5) == []
    fill(bank, "a", "b")
    assert [document.external_id for document, *_ in read_bank(bank)] == ["z", "a", "b"]


@pytest.mark.parametrize("room", [2_000, 200_000])
def test_a_file_that_really_cannot_grow_is_a_named_error(bank: MemoryBank, room: int) -> None:
    # The small limit is reached by the segment, the large one by the catalog's write-ahead log.
    fill(bank, "a")
    before = read_bank(bank)
    texts = [f"{number} " * 2000 for number in range(30)]
    with bank.writer() as writer:
        for name, text in enumerate(texts):
            add_latents(writer, Document(str(name), text), random_latents(MANIFEST, 3))
        message = f"cannot write .*{'segments' if room < 10_000 else 'catalog.sqlite'}"
        with file_size_limit(room), pytest.raises(BankError, match=message):
            writer.commit()
    assert read_bank(bank) == before
    assert read_bank(MemoryBank.open(bank.folder)) == before
    fill(bank, *map(str, range(30)))
    assert len(read_bank(bank)) == 31


# --- names of files -------------------------------------------------------------------------------------------------


def test_no_name_of_a_users_becomes_that_of_a_file(tmp_path: Path) -> None:
    """So names that differ in case only, or that a system keeps for itself, are names like any other everywhere."""
    bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
    names = ["a", "A", "con", "aux.txt", "a:b", "a/b", "a\\b", "..", "ä", "a\u0308", "x" * 150]
    for namespace in names:
        fill(bank, *names, namespace=namespace)
    for namespace in names:
        assert {document.external_id for document, *_ in read_bank(bank, namespace)} == set(names)
    found = [path.relative_to(bank.folder).as_posix() for path in bank.folder.rglob("*") if path.is_file()]
    ours = (
        r"catalog\.sqlite(-wal|-shm)?|writer\.(lock|pid)|readers/\d+-[0-9a-f]+|segments/[0-9a-f]{32}\.\w+\.safetensors"
    )
    assert [name for name in found if not re.fullmatch(ours, name)] == []
    assert len({name.lower() for name in found}) == len(found)
    bank.close()


def test_processes_that_begin_a_bank_at_once_all_have_it(tmp_path: Path) -> None:
    """Whoever comes second waits, or finds it made; nobody is told that the folder is not empty."""
    path, at_once = tmp_path / "bank", Barrier(4)

    def begin(_: int) -> str:
        at_once.wait()
        with closing(MemoryBank.open_or_create(path, tiny_manifest())) as bank:
            return bank.catalog.read_manifest()["encoder_fingerprint"]

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(begin, range(4))) == {tiny_manifest().encoder_fingerprint}


def test_a_bank_that_is_made_meanwhile_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, create = tmp_path / "bank", MemoryBank.create
    tries: list[int] = []

    def made_by_another(*arguments: Any) -> MemoryBank:
        tries.append(1)
        if len(tries) == 1:
            raise BankBusy("another process makes it")
        create(*arguments).close()
        return create(*arguments)  # refused: the folder is not empty

    monkeypatch.setattr(MemoryBank, "create", made_by_another)
    MemoryBank.open_or_create(path, tiny_manifest()).close()
    assert len(tries) == 2


def test_a_folder_of_something_else_becomes_no_bank(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(BankError, match="not an empty folder"):
        MemoryBank.open_or_create(tmp_path, tiny_manifest())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
