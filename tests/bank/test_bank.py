from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import add_latents, bits, random_latents, read_bank, read_latents, tiny_manifest

from memspan.bank import segment
from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import Catalog
from memspan.errors import BankError
from memspan.types import Document, EncodedDocuments

MANIFEST = tiny_manifest()
# Forked, not spawned: a new interpreter takes seconds to import torch.
FORK = multiprocessing.get_context("fork")


def _fill(bank: MemoryBank, *names: str, rows: int = 3, **options: Any) -> dict[int, EncodedDocuments]:
    """Commit one source a name, at once; return its latents by id."""
    given: dict[int, EncodedDocuments] = {}
    with bank.writer(**options) as writer:
        for name in names:
            latents = random_latents(MANIFEST, rows)
            (document_id,) = add_latents(writer, Document(name, f"text of {name}"), latents)
            given[document_id] = latents
        writer.commit()
    return given


@pytest.fixture
def bank(tmp_path: Path) -> MemoryBank:
    return MemoryBank.create(tmp_path / "bank", MANIFEST)


# --- create and open ------------------------------------------------------------------------------------------------


def test_a_new_bank_is_empty_and_knows_its_manifest(tmp_path: Path) -> None:
    assert not MemoryBank.exists(tmp_path / "deep" / "bank")
    MemoryBank.create(tmp_path / "deep" / "bank", MANIFEST).close()
    assert MemoryBank.exists(tmp_path / "deep" / "bank")
    bank = MemoryBank.open(str(tmp_path / "deep" / "bank"))
    assert bank.manifest == MANIFEST
    assert (read_bank(bank), bank.shards(), bank.catalog.search("text", 5)) == ([], [], [])


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
        patched.setattr(Catalog, "write_manifest", _raise(OSError(28, "No space left on device")))
        with pytest.raises(BankError, match="No space left"):
            MemoryBank.create(tmp_path / "bank", MANIFEST)
    assert not MemoryBank.exists(tmp_path / "bank")
    with pytest.raises(BankError, match="memspan add"):
        MemoryBank.open(tmp_path / "bank")


def test_making_a_bank_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Catalog, "write_manifest", _raise(OSError(28, "No space left on device")))
        with pytest.raises(BankError):
            MemoryBank.create(tmp_path / "bank", MANIFEST)
    assert MemoryBank.create(tmp_path / "bank", MANIFEST).manifest == MANIFEST


def test_what_a_failed_attempt_left_is_as_good_as_empty(tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    (folder / "segments").mkdir(parents=True)
    for name in ("catalog.sqlite.partial", "writer.lock", "writer.pid"):
        (folder / name).write_bytes(b"half of it")
    bank = MemoryBank.create(folder, MANIFEST)
    given = _fill(bank, "a")
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
    given = _fill(bank, "a", "b", "c", max_segment_bytes=max_segment_bytes)
    given |= _fill(bank, "d", rows=1, max_segment_bytes=max_segment_bytes)
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
    assert len(bank.shards()) == 2
    assert [bits(read_latents(bank)[document_id]) for document_id in ids] == [bits(given) for given in latents]


def test_nothing_is_there_before_it_is_committed_nor_without_a_commit(bank: MemoryBank) -> None:
    _fill(bank, "a")
    before = read_bank(bank)
    with bank.writer(max_segment_bytes=1) as writer:
        for name in ("a", "b"):
            add_latents(writer, Document(name, "not committed"), random_latents(MANIFEST, 2))
        assert read_bank(bank) == before
    assert read_bank(bank) == before
    assert len(list((bank.folder / "segments").iterdir())) > 2, "uncommitted segments are left over ..."
    given = _fill(bank, "c")
    assert len(list((bank.folder / "segments").iterdir())) == 4, "... and swept by the next writer"
    assert read_bank(bank)[:1] == before
    (document_id,) = given
    assert bits(read_latents(bank)[document_id]) == bits(given[document_id])


def test_replaced_documents_are_in_no_shard_although_their_rows_stay(bank: MemoryBank) -> None:
    old = _fill(bank, "a", "b")
    new = _fill(bank, "a")
    _, b = old
    assert sorted(read_latents(bank)) == sorted([b, *new])
    (first, _) = bank.shards()
    assert (first.reader.files.rows, first.document_ids_N.tolist()) == (6, [b])
    newest = _fill(bank, "b")
    live = [shard.document_ids_N.tolist() for shard in bank.shards()]
    assert live == [[*new], [*newest]], "a segment without a live document is not opened"


def test_reserved_ids_follow_each_other_and_are_never_those_of_a_document(bank: MemoryBank) -> None:
    with bank.writer() as writer:
        assert list(writer.reserve_ids(2)) == [1, 2]  # not used
        add_latents(writer, Document("a", "text"), random_latents(MANIFEST, 1), random_latents(MANIFEST, 1))
        assert list(writer.reserve_ids(1)) == [5]
        writer.commit()
    with bank.writer() as writer:
        assert list(writer.reserve_ids(1)) == [5]


def test_a_missing_segment_is_named_when_the_bank_is_read(bank: MemoryBank) -> None:
    _fill(bank, "a")
    path = next((bank.folder / "segments").iterdir())
    path.unlink()
    with pytest.raises(BankError, match=str(path)):
        bank.shards()


# --- one writer, many readers ---------------------------------------------------------------------------------------


def test_a_second_handle_cannot_write_at_the_same_time(bank: MemoryBank) -> None:
    other = MemoryBank.open(bank.folder)
    with bank.writer(), pytest.raises(BankError, match=rf"pid {os.getpid()}\b.*{bank.folder}"), other.writer():
        pass
    _fill(other, "a")
    _fill(bank, "b")
    assert [document.external_id for document, *_ in read_bank(bank)] == ["a", "b"]


def test_the_lock_is_given_back_after_an_error(bank: MemoryBank) -> None:
    with pytest.raises(RuntimeError), bank.writer():
        raise RuntimeError
    _fill(MemoryBank.open(bank.folder), "a")


def _write_until_told(folder: Path, ready: Any, go_on: Any) -> None:
    with MemoryBank.open(folder).writer(max_segment_bytes=1) as writer:
        add_latents(writer, Document("child", "uncommitted"), random_latents(MANIFEST, 2), random_latents(MANIFEST, 1))
        ready.set()
        go_on.wait(60)


@pytest.mark.parametrize("ending", ["done", "killed"])
def test_another_process_that_writes_is_named_and_its_lock_ends_with_it(bank: MemoryBank, ending: str) -> None:
    before = _fill(bank, "a")
    ready, go_on = FORK.Event(), FORK.Event()
    child = FORK.Process(target=_write_until_told, args=(bank.folder, ready, go_on))
    child.start()
    try:
        assert ready.wait(60)
        with pytest.raises(BankError, match=rf"pid {child.pid}\b"), bank.writer():
            pass
        assert sorted(read_latents(bank)) == sorted(before), "readers are not kept waiting"
    finally:
        if ending == "done":
            go_on.set()
        else:
            child.kill()
        child.join(60)
    assert child.exitcode == (0 if ending == "done" else -signal.SIGKILL)
    after = _fill(bank, "b")
    assert sorted(read_latents(bank)) == sorted([*before, *after])
    assert len(list((bank.folder / "segments").iterdir())) == 4, "what the other left over is swept"


def test_a_reader_sees_what_another_handle_commits_and_only_then(bank: MemoryBank) -> None:
    reader = MemoryBank.open(bank.folder)
    version = reader.catalog.version()
    with bank.writer() as writer:
        add_latents(writer, Document("a", "zebra"), random_latents(MANIFEST, 2))
        assert (reader.catalog.version(), reader.catalog.search("zebra", 5)) == (version, [])
        writer.commit()
        assert reader.catalog.version() != version
        assert read_bank(reader) == read_bank(bank)
        assert len(reader.catalog.search("zebra", 5)) == 1


def test_shards_opened_before_an_update_stay_readable(bank: MemoryBank) -> None:
    given = _fill(bank, "a", "b")
    (shard,) = bank.shards()
    _fill(bank, "a", "c")
    places = (shard.document_ids_N.tolist(), shard.first_row_N.tolist())
    for document_id, first in zip(*places, strict=True):
        for row, layer in enumerate(MANIFEST.msa_layers):
            assert shard.reader.content(layer, first, 3).equal(given[document_id].content_LC2GD[row])


# --- failures at any step -------------------------------------------------------------------------------------------


def _raise(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


_STEPS = [
    (segment, "save_file"),
    (segment.os, "fsync"),
    (segment, "file_sha256"),
    (Path, "replace"),
    (Catalog, "_insert_segment"),
    (Catalog, "_insert_source"),
    (Catalog, "_insert_document"),
    (Catalog, "_retire"),
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
        _fill(MemoryBank.open(folder), "a", "b", max_segment_bytes=1)


def test_a_process_killed_at_any_step_of_a_write_loses_nothing_committed(bank: MemoryBank) -> None:
    _fill(bank, "a", "z")
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
    _fill(bank, "c")
    assert len(list((bank.folder / "segments").iterdir())) == 2 * 4, "leftovers of the killed are swept"


def test_a_disk_that_fills_up_at_any_segment_leaves_the_bank_as_it_was(
    bank: MemoryBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(bank, "a", "z")
    before = read_bank(bank)
    for call in range(4):
        calls, real = itertools.count(), segment.save_file

        def save(*arguments: Any, calls: Any = calls, real: Any = real, call: int = call) -> None:
            real(*arguments)
            if next(calls) == call:
                raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(segment, "save_file", save)
            with pytest.raises(BankError, match=r"No space left.*committed before is safe"):
                _fill(bank, "a", "b", max_segment_bytes=1)
        for handle in (bank, MemoryBank.open(bank.folder)):
            assert read_bank(handle) == before
            assert handle.catalog.search("b", 5) == []
    _fill(bank, "a", "b")
    assert [document.external_id for document, *_ in read_bank(bank)] == ["z", "a", "b"]


@pytest.mark.parametrize("room", [2_000, 200_000])
def test_a_file_that_really_cannot_grow_is_a_named_error(bank: MemoryBank, room: int) -> None:
    # The small limit is reached by the segment, the large one by the catalog's write-ahead log.
    _fill(bank, "a")
    before = read_bank(bank)
    texts = [f"{number} " * 2000 for number in range(30)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with bank.writer() as writer:
        for name, text in enumerate(texts):
            add_latents(writer, Document(str(name), text), random_latents(MANIFEST, 3))
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            with pytest.raises(BankError, match=f"cannot write .*{'segments' if room < 10_000 else 'catalog.sqlite'}"):
                writer.commit()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_bank(bank) == before
    assert read_bank(MemoryBank.open(bank.folder)) == before
    _fill(bank, *map(str, range(30)))
    assert len(read_bank(bank)) == 31
