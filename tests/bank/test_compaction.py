from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import random
import string
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    add_latents,
    bits,
    child_process,
    fill,
    latents_in,
    random_latents,
    read_bank,
    read_latents,
    receive,
    tiny_manifest,
)

from memspan.bank import coarse, compaction, edits
from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE
from memspan.bank.edits import NewDocument, NewSource
from memspan.bank.folder import CONTENT_SUFFIX, WrittenSegments, segment_paths
from memspan.bank.segment import SegmentWriter
from memspan.bank.verify import verify
from memspan.errors import BankBusy
from memspan.ops.coarse import quantize_keys
from memspan.types import Document, EncodedDocuments

DEFAULT = DEFAULT_NAMESPACE
MANIFEST = tiny_manifest()
ROW = MANIFEST.row_bytes
# What a file of one small document takes besides its latents, about.
HEADER = 1200


def _segments(bank: MemoryBank) -> set[Path]:
    return set((bank.folder / "segments").iterdir())


def _add(bank: MemoryBank, name: str, text: str = "text", rows: int = 1, **options: int) -> EncodedDocuments:
    latents = random_latents(MANIFEST, rows)
    with bank.writer(**options) as writer:  # type: ignore[arg-type]
        add_latents(writer, Document(name, text), latents)
        writer.commit()
    return latents


# --- merging as segments pile up ------------------------------------------------------------------------------------


@pytest.fixture
def unsynced(bank: MemoryBank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let many small commits cost what they cost without the disk."""
    bank.catalog.connection.execute("PRAGMA synchronous = OFF")
    monkeypatch.setattr("memspan.bank.files.os.fsync", lambda descriptor: None)


@pytest.mark.usefixtures("unsynced")
def test_a_thousand_single_adds_leave_few_segments_and_every_latent(
    bank: MemoryBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "_SMALLEST_TIER_BYTES", 2 * HEADER)  # these documents are small
    latents = [random_latents(MANIFEST, 1 + number % 3) for number in range(1000)]
    most = 0
    with bank.writer() as writer:
        for number, encoded in enumerate(latents):
            add_latents(writer, Document(str(number), "text"), encoded)
            writer.commit()
            most = max(most, len(bank.catalog.segments()))
    assert most <= 32
    found = read_latents(bank)
    assert [bits(found[number + 1]) for number in range(1000)] == [bits(encoded) for encoded in latents]
    assert len(_segments(bank)) == 2 * len(bank.catalog.segments()), "merged files are gone"


@pytest.mark.usefixtures("unsynced")
def test_a_document_is_rewritten_a_few_times_only_however_many_adds(
    bank: MemoryBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "_SMALLEST_TIER_BYTES", 2 * HEADER)
    rewritten, real = 0, SegmentWriter.append

    def append(writer: SegmentWriter, document_id: int, text_crc32: int, latents: EncodedDocuments) -> None:
        nonlocal rewritten
        rewritten += 1
        real(writer, document_id, text_crc32, latents)

    monkeypatch.setattr(SegmentWriter, "append", append)
    with bank.writer() as writer:
        for number in range(256):
            add_latents(writer, Document(str(number), "text"), random_latents(MANIFEST, 1))
            writer.commit()
    assert 256 * 2 <= rewritten <= 256 * 5, "written once, then merged once per power of eight"
    assert len(bank.catalog.segments()) <= 32


@pytest.mark.parametrize("merge", [False, True])
def test_merging_changes_nothing_that_a_reader_sees(
    bank: MemoryBank, monkeypatch: pytest.MonkeyPatch, merge: bool
) -> None:
    names = [f"n{number}" for number in range(compaction.FAN_OUT - 1)]
    for name in names:
        _add(bank, name, f"the text of {name}")
    bank.delete(["n2"])
    before, scores = read_bank(bank), bank.catalog.search(DEFAULT, "n1 text", 9)
    if merge:
        with bank.writer(), monkeypatch.context() as patched:
            patched.setattr(compaction, "FAN_OUT", 2)
            compaction.merge_small(bank.catalog, bank.folder, MANIFEST, DEFAULT, 2**20)
    assert len(bank.catalog.segments()) == (1 if merge else compaction.FAN_OUT - 1)
    assert (read_bank(bank), bank.catalog.search(DEFAULT, "n1 text", 9)) == (before, scores)
    assert read_bank(MemoryBank.open(bank.folder)) == before


def test_a_merge_leaves_the_rows_of_deleted_documents_behind(bank: MemoryBank) -> None:
    gone = _add(bank, "gone", rows=3)
    bank.delete(["gone"])
    for number in range(compaction.FAN_OUT - 2):
        _add(bank, str(number))
    assert _holds(bank.folder, bits(gone)[1][:64])
    _add(bank, "last")
    ((_, files),) = bank.catalog.segments()
    assert (files.documents, files.rows) == (compaction.FAN_OUT - 1, compaction.FAN_OUT - 1)
    assert bank.catalog.counts().deleted_documents == 0
    assert not _holds(bank.folder, bits(gone)[1][:64])


@pytest.mark.parametrize("max_rows", [1, 10, 40])
def test_a_merge_makes_no_segment_larger_than_allowed(bank: MemoryBank, max_rows: int) -> None:
    latents = [_add(bank, str(number), max_segment_bytes=max_rows * ROW + HEADER) for number in range(60)]
    for _, files in bank.catalog.segments():
        assert files.bytes <= max_rows * ROW + HEADER or files.documents == 1
    assert (len(bank.catalog.segments()) < 60) is (max_rows >= 10), "else nothing fits together"
    found = read_latents(bank)
    assert [bits(found[number + 1]) for number in range(60)] == [bits(encoded) for encoded in latents]


def test_a_segment_that_is_full_does_not_keep_younger_ones_from_being_merged(bank: MemoryBank) -> None:
    limit = 40 * ROW
    _add(bank, "full", rows=40, max_segment_bytes=limit)
    for number in range(compaction.FAN_OUT):
        _add(bank, str(number), max_segment_bytes=limit)
    sizes = [files.rows for _, files in bank.catalog.segments()]
    assert sizes[0] == 40 and len(sizes) < compaction.FAN_OUT


def test_namespaces_are_merged_apart(bank: MemoryBank) -> None:
    for number in range(compaction.FAN_OUT):
        fill(bank, str(number), namespace="ann" if number % 2 else "bob")
    assert len(bank.catalog.segments()) == compaction.FAN_OUT
    for number in range(compaction.FAN_OUT):
        fill(bank, f"more {number}", namespace="ann")
    assert [len(bank.catalog.segments(name)) for name in ("ann", "bob")] == [5, 4]
    for name, count in (("ann", 12), ("bob", 4)):
        assert len(read_bank(bank, name)) == count


# --- compacting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secure", [False, True])
def test_compacting_changes_nothing_but_the_space_that_deleted_documents_take(bank: MemoryBank, secure: bool) -> None:
    for names in ("abc", "de", "f", "gh"):
        fill(bank, *names)
    fill(bank, "a", namespace="other")
    bank.delete(["b", "f", "g"])
    fill(bank, "e")
    before = [read_bank(bank, name) for name in (DEFAULT, "other")]
    scores = bank.catalog.search(DEFAULT, "text of a", 9)
    size = bank.catalog.counts().segment_bytes
    bank.compact(secure=secure)
    for handle in (bank, MemoryBank.open(bank.folder)):
        assert [read_bank(handle, name) for name in (DEFAULT, "other")] == before
        assert handle.catalog.search(DEFAULT, "text of a", 9) == scores
    counts = bank.catalog.counts()
    assert (counts.deleted_documents, counts.segments, counts.segment_bytes < size) == (0, 2, True)
    assert len(_segments(bank)) == 4


def test_compacting_a_second_time_rewrites_nothing(bank: MemoryBank) -> None:
    for names in ("abc", "de"):
        fill(bank, *names)
    bank.delete(["b"])
    bank.compact()
    before, files = read_bank(bank), _segments(bank)
    bank.compact()
    assert (read_bank(bank), _segments(bank)) == (before, files)
    bank.compact(secure=True)
    assert (read_bank(bank), _segments(bank)) == (before, files)


def test_compacting_an_empty_bank_and_an_emptied_one(bank: MemoryBank) -> None:
    bank.compact(secure=True)
    fill(bank, "a", "b")
    bank.delete(["a", "b"])
    bank.compact(secure=True)
    assert (_segments(bank), bank.catalog.namespaces(), read_bank(bank)) == (set(), [], [])
    fill(bank, "a")
    assert [document.id for document, *_ in read_bank(bank)] == [3]


def test_only_segments_that_need_it_are_rewritten(bank: MemoryBank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memspan.bank.bank.MAX_SEGMENT_BYTES", 3 * ROW + HEADER)
    for name in "abcd":
        _add(bank, name, rows=3)
    before = _segments(bank)
    bank.delete(["b"])
    bank.compact()
    assert len(before & _segments(bank)) == 6


def test_compacting_respects_the_size_of_segments(bank: MemoryBank, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 10 * ROW + HEADER
    monkeypatch.setattr("memspan.bank.bank.MAX_SEGMENT_BYTES", limit)
    fill(bank, *string.ascii_lowercase, rows=1, max_segment_bytes=4 * ROW)
    before = read_bank(bank)
    bank.delete(["c"])
    bank.compact()
    assert [values for values in before if values[0].external_id != "c"] == read_bank(bank)
    assert all(files.bytes <= limit for _, files in bank.catalog.segments())
    assert len(bank.catalog.segments()) < 7


@pytest.mark.parametrize("emptied", ["other", DEFAULT])
@pytest.mark.parametrize("secure", [False, True])
def test_namespaces_that_were_emptied_are_forgotten(bank: MemoryBank, secure: bool, emptied: str) -> None:
    fill(bank, "a", namespace="other")
    fill(bank, "b")
    kept = {DEFAULT: "other", "other": DEFAULT}[emptied]
    before = read_bank(bank, kept)
    bank.delete([1 if emptied == "other" else 2], emptied)
    assert bank.catalog.namespaces() == [DEFAULT, "other"]
    bank.compact(secure=secure)
    assert (bank.catalog.namespaces(), read_bank(bank, kept)) == ([kept], before)
    fill(bank, "c", namespace=emptied)
    assert [document.external_id for document, *_ in read_bank(bank, emptied)] == ["c"]


# --- readers meanwhile ----------------------------------------------------------------------------------------------


def test_a_snapshot_keeps_its_files_until_it_is_closed_and_a_writer_sweeps(bank: MemoryBank) -> None:
    fill(bank, "a", "b")
    reader = MemoryBank.open(bank.folder)
    before, old = read_bank(reader), _segments(bank)
    snapshot = reader.snapshot()
    found = snapshot.search("text of a", 9)
    bank.delete(["a"])
    bank.compact()
    assert old < _segments(bank)
    with reader.snapshot() as another:
        assert [shard.ids_N.tolist() for shard in another.shards] == [[2]]
    assert [text.text for text in snapshot.documents([1, 2])] == ["text of a", "text of b"]
    assert snapshot.search("text of a", 9) == found
    (shard,) = snapshot.shards
    assert [bits(latents_in(shard, index)) for index in (0, 1)] == [tuple(rest) for _, *rest in before]
    with bank.locked():
        assert old < _segments(bank), "while the snapshot is open"
    snapshot.close()
    assert old < _segments(bank), "readers unlink nothing"
    with bank.locked():
        assert not old & _segments(bank)
    assert bank.catalog.segment_states().keys() == {files.name for _, files in bank.catalog.segments()}


def test_files_go_when_the_oldest_open_snapshot_is_of_a_later_commit(bank: MemoryBank) -> None:
    fill(bank, "a", "b")
    before, old = bank.snapshot(), _segments(bank)
    bank.delete(["a"])
    bank.compact()
    with MemoryBank.open(bank.folder).snapshot() as after:
        bank.compact()
        assert old < _segments(bank)
        before.close()
        bank.compact()
        assert not old & _segments(bank)
        assert [found.text for found in after.documents([1, 2])] == ["text of b"]


@pytest.mark.parametrize("ending", ["killed", "closed", "ended"])
def test_the_files_of_a_process_that_reads_are_kept_as_long_as_it_does(bank: MemoryBank, ending: str) -> None:
    given = fill(bank, "a", "b")

    def read(pipe: Connection) -> None:
        snapshot = MemoryBank.open(bank.folder).snapshot()
        pipe.send("ready")
        receive(pipe)
        (shard,) = snapshot.shards
        pipe.send([bits(latents_in(shard, index)) for index in (0, 1)])
        receive(pipe)
        if ending == "closed":
            snapshot.close()
            pipe.send("closed")
            receive(pipe)

    old = _segments(bank)
    with child_process(read) as (child, pipe):
        assert receive(pipe) == "ready"
        bank.delete(["a"])
        bank.compact()
        assert old < _segments(bank)
        pipe.send("read")
        assert receive(pipe) == [bits(latents) for latents in given.values()]
        if ending == "killed":
            child.kill()
            child.join(60)
        else:
            pipe.send("go on")
            if ending == "closed":
                assert receive(pipe) == "closed"
            else:
                child.join(60)
        bank.compact()
        assert not old & _segments(bank)


def test_a_merge_keeps_the_files_of_an_open_snapshot(bank: MemoryBank) -> None:
    given = fill(bank, "a")
    with bank.snapshot() as snapshot:
        for number in range(compaction.FAN_OUT):
            _add(bank, str(number))
        assert bank.catalog.segment_states().keys() > {files.name for _, files in bank.catalog.segments()}
        (shard,) = snapshot.shards
        assert all(path.exists() for path in segment_paths(bank.folder / "segments", shard.reader.files.name))
        assert bits(latents_in(shard, 0)) == bits(given[1])


# --- sweeping -------------------------------------------------------------------------------------------------------


def test_sweeping_removes_what_was_never_committed_and_nothing_else(bank: MemoryBank) -> None:
    fill(bank, "a")
    folder = bank.folder / "segments"
    kept = _segments(bank)
    lost = SegmentWriter(folder, MANIFEST, 2**20)
    lost.append(7, 0, random_latents(MANIFEST, 2))
    ((files,), _) = lost.finish()
    keys, _ = sorted(kept)
    for name in (f"{keys.name}.partial", f"{'0' * 32}{CONTENT_SUFFIX}.partial"):
        (folder / name).write_bytes(b"torn")
    others = {folder / name for name in ("notes.txt", "model.safetensors", f"{files.name}.txt")}
    for path in others:
        path.write_text("not ours")
    compaction.sweep(bank.catalog, bank.folder)
    assert _segments(bank) == kept | others


@pytest.mark.parametrize("name", ["notes.partial", ".tmp.my-notes"])
def test_somebody_elses_unfinished_files_are_left_alone(bank: MemoryBank, name: str) -> None:
    (bank.folder / "segments" / name).write_text("not ours")
    compaction.sweep(bank.catalog, bank.folder)
    assert (bank.folder / "segments" / name).exists()


def test_staged_segments_are_not_swept(bank: MemoryBank) -> None:
    fill(bank, "a")
    staged = _stage(bank, a=random_latents(MANIFEST, 2))
    with bank.locked():
        assert staged <= _segments(bank)
    edits.stage_manifest(bank.catalog, None)
    with bank.locked():
        assert not staged & _segments(bank)


# --- erasing --------------------------------------------------------------------------------------------------------


def _stage(bank: MemoryBank, **latents: EncodedDocuments) -> set[Path]:
    """Stage other latents of some sources, as a `reencode` that was interrupted leaves them; returns their files."""
    before = _segments(bank)
    edits.stage_manifest(bank.catalog, dataclasses.replace(MANIFEST, chunk_size=8).as_json())
    writer = SegmentWriter(bank.folder / "segments", MANIFEST, 2**20)
    sources = []
    for name, encoded in latents.items():
        (stored,) = bank.catalog.documents_of(DEFAULT, name)
        writer.append(stored.id, 0, encoded)
        document = Document(name, stored.text)
        sources.append((stored.source_id, NewSource(document, (NewDocument(stored.id, stored.span, 8),))))
    edits.stage(bank.catalog, DEFAULT, sources, WrittenSegments(*writer.finish()))
    return _segments(bank) - before


def _holds(folder: Path, needle: bytes) -> list[Path]:
    """Files below a folder, in whose bytes the needle stands."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and needle in path.read_bytes()]


def _words(generator: random.Random, count: int) -> list[str]:
    return ["".join(generator.choices(string.ascii_lowercase, k=9)) for _ in range(count)]


def _secret(generator: random.Random, name: str) -> Document:
    words = _words(generator, 46)
    return Document(
        name,
        " ".join([*words[:40], "".join(chr(generator.randrange(0x4E00, 0x9FFF)) for _ in range(8))]),
        title=f"{words[40]} {words[41]}",
        metadata={words[42]: [words[43]], "project": words[44]},
    )


def _needles(document: Document, *latents: EncodedDocuments) -> list[bytes]:
    """Everything by which a document could be found in a file: text, words, title, metadata, its rows."""
    values = [document.external_id, *document.text.split(), *document.title.split()]
    values += [*(key for key in document.metadata if key != "project"), str(document.metadata["project"])]
    values += [item for value in document.metadata.values() if isinstance(value, list) for item in map(str, value)]
    needles = [value.encode() for value in values] + [b"2019-11-23"] * (document.date == "2019-11-23")
    for encoded in latents:
        keys_LCW, content_LC2GD = encoded.router_keys_LCW, encoded.content_LC2GD
        for tensor in (*keys_LCW.flatten(0, 1), *content_LC2GD.flatten(0, 2)):
            needles.append(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        needles += [row.numpy().tobytes() for row in quantize_keys(keys_LCW.flatten(0, 1)).key_CW]
    return needles


def _delete(bank: MemoryBank, document: Document) -> None:
    bank.delete([document.external_id])


def _update(bank: MemoryBank, document: Document) -> None:
    # Another name cannot be given to a document, so this one stays.
    _add(bank, document.external_id, "harmless")


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("remove", [_delete, _update])
def test_nothing_of_what_was_removed_is_left_in_any_file(
    bank: MemoryBank,
    remove: Callable[[MemoryBank, Document], None],
    reopened: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coarse, "LEAST_KEYS_BYTES", 0)  # keys in 8 bits are kept, too
    generator = random.Random(0)
    kept = [_secret(generator, f"kept-{name}") for name in _words(generator, 6)]
    gone = [_secret(generator, f"gone-{name}") for name in _words(generator, 3)]
    latents: dict[str, list[EncodedDocuments]] = {}
    with bank.writer() as writer:
        for document in [*kept[:3], *gone, *kept[3:]]:
            latents[document.external_id] = [random_latents(MANIFEST, 2), random_latents(MANIFEST, 3)]
            add_latents(writer, document, *latents[document.external_id])
            if document in (kept[1], gone[1]):
                writer.commit()
        writer.commit()
    needles = [needle for document in gone for needle in _needles(document, *latents[document.external_id])]
    if remove is _update:
        needles = [needle for needle in needles if not needle.startswith(b"gone-")]
    assert all(_holds(bank.folder, needle) for needle in needles if len(needle) in (16, 32))
    for document in gone:
        remove(bank, document)
    before = read_bank(bank)
    words = [document.text.split()[0] for document in kept]
    scores = [bank.catalog.search(DEFAULT, word, 9) for word in words]
    if reopened:
        bank.close()
        bank = MemoryBank.open(bank.folder)
    bank.compact(secure=True)
    content = b"".join(path.read_bytes() for path in sorted(bank.folder.rglob("*")) if path.is_file())
    assert [needle for needle in needles if needle in content] == []
    assert all(needle in content for needle in _needles(kept[0], *latents[kept[0].external_id]) if len(needle) == 32)
    for handle in (bank, MemoryBank.open(bank.folder)):
        assert read_bank(handle) == before
        assert [handle.catalog.search(DEFAULT, word, 9) for word in words] == scores
    assert all(scores)


def test_nothing_of_replaced_metadata_and_dates_is_left_in_any_file(bank: MemoryBank) -> None:
    old = Document("a", "text", metadata={"oldkeyname": "oldvaluename"}, date="2019-11-23")
    with bank.writer() as writer:
        add_latents(writer, old, random_latents(MANIFEST, 1))
        writer.commit()
    bank.relabel(Document("a", "text", metadata={"new": 1}, date="2020-01-01"))
    needles = [b"oldkeyname", b"oldvaluename", b"2019-11-23"]
    assert all(_holds(bank.folder, needle) for needle in needles)
    bank.compact(secure=True)
    assert not any(_holds(bank.folder, needle) for needle in needles)
    ((document, *_),) = read_bank(bank)
    assert (document.metadata, document.date) == ({"new": 1}, "2020-01-01")


def test_nothing_of_a_namespace_that_was_emptied_is_left_not_even_its_name(bank: MemoryBank) -> None:
    fill(bank, "a")
    fill(bank, "b", namespace="anneliese")
    bank.delete(["b"], "anneliese")
    bank.compact(secure=True)
    assert not _holds(bank.folder, b"anneliese")


def test_nothing_of_what_was_deleted_is_left_in_latents_on_their_way(bank: MemoryBank) -> None:
    fill(bank, "gone", "kept")
    gone = random_latents(MANIFEST, 2)
    _stage(bank, gone=gone, kept=random_latents(MANIFEST, 2))
    needles = [bits(gone)[0][:32], bits(gone)[1][:64]]
    assert all(_holds(bank.folder, needle) for needle in needles)
    bank.delete(["gone"])
    bank.compact(secure=True)
    assert not any(_holds(bank.folder, needle) for needle in needles)


def _hold(folder: Path, pipe: Connection) -> None:
    """Hold a snapshot, say so, and close it when told."""
    snapshot = MemoryBank.open(folder).snapshot()
    pipe.send("ready")
    receive(pipe)
    snapshot.close()
    pipe.send("closed")
    receive(pipe)


def test_erasing_waits_for_a_reader_and_then_succeeds(bank: MemoryBank, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = fill(bank, "gone", "kept")
    needle = bits(latents[1])[1][:64]
    with child_process(lambda pipe: _hold(bank.folder, pipe)) as (_, pipe):
        assert receive(pipe) == "ready"
        bank.delete(["gone"])
        waits: list[bool] = []

        def wait(_: float) -> None:
            waits.append(bool(_holds(bank.folder, needle)))
            if len(waits) == 3:
                pipe.send("close")
                assert receive(pipe) == "closed"

        monkeypatch.setattr(compaction.time, "sleep", wait)
        bank.compact(secure=True)
        pipe.send("end")
    assert waits == [True] * 3
    assert not _holds(bank.folder, needle) and not _holds(bank.folder, b"gone")
    assert [document.external_id for document, *_ in read_bank(bank)] == ["kept"]


def test_erasing_forgets_namespaces_although_it_had_to_wait(bank: MemoryBank, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(bank, "a", namespace="anneliese")
    snapshot = MemoryBank.open(bank.folder).snapshot("anneliese")
    bank.delete(["a"], "anneliese")
    monkeypatch.setattr(compaction.time, "sleep", lambda _: snapshot.close())
    bank.compact(secure=True)
    assert bank.catalog.namespaces() == []
    assert not _holds(bank.folder, b"anneliese")


def test_erasing_names_the_process_that_still_reads_after_the_timeout(bank: MemoryBank) -> None:
    fill(bank, "gone", "kept")
    with child_process(lambda pipe: _hold(bank.folder, pipe)) as (child, pipe):
        assert receive(pipe) == "ready"
        bank.delete(["gone"])
        with pytest.raises(BankBusy, match=rf"pid {child.pid}\b.*may see what is to be erased"):
            bank.compact(secure=True, timeout=0)
        assert [document.external_id for document, *_ in read_bank(bank)] == ["kept"]
        pipe.send("close")
        assert receive(pipe) == "closed"
        bank.compact(secure=True, timeout=0)
        assert not _holds(bank.folder, b"gone")
        pipe.send("end")


def test_erasing_names_every_reading_process_and_a_killed_one_no_longer(bank: MemoryBank) -> None:
    fill(bank, "gone", "kept")
    with (
        child_process(lambda pipe: _hold(bank.folder, pipe)) as (one, to_one),
        child_process(lambda pipe: _hold(bank.folder, pipe)) as (two, to_two),
    ):
        assert receive(to_one) == receive(to_two) == "ready"
        bank.delete(["gone"])
        for readers in ({one.pid, two.pid}, {two.pid}):
            with pytest.raises(BankBusy) as raised:
                bank.compact(secure=True, timeout=0)
            named = str(raised.value).partition("(pid ")[2].partition(")")[0]
            assert {int(pid) for pid in named.split(", ")} == readers
            one.kill()
            one.join(60)
        two.kill()
        two.join(60)
        bank.compact(secure=True, timeout=0)
    assert not _holds(bank.folder, b"gone")


def test_a_snapshot_of_this_very_process_is_waited_for_too(bank: MemoryBank) -> None:
    fill(bank, "gone")
    with bank.snapshot():
        bank.delete(["gone"])
        with pytest.raises(BankBusy, match=rf"pid {os.getpid()}\b"):
            bank.compact(secure=True, timeout=0)
    bank.compact(secure=True, timeout=0)
    assert not _holds(bank.folder, b"gone")


def test_a_reader_without_a_snapshot_is_not_waited_for(bank: MemoryBank) -> None:
    fill(bank, "gone", "kept")
    reader = MemoryBank.open(bank.folder)
    read_bank(reader)
    bank.delete(["gone"])
    bank.compact(secure=True, timeout=0)
    assert not _holds(bank.folder, b"gone")
    assert [document.external_id for document, *_ in read_bank(reader)] == ["kept"]


def test_erasing_holds_the_writers_lock_while_it_waits(bank: MemoryBank, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(bank, "gone", "kept")
    snapshot = MemoryBank.open(bank.folder).snapshot()
    bank.delete(["gone"])
    refused: list[str] = []

    def wait(_: float) -> None:
        with pytest.raises(BankBusy) as raised:
            MemoryBank.open(bank.folder).delete(["kept"])
        refused.append(str(raised.value))
        snapshot.close()

    monkeypatch.setattr(compaction.time, "sleep", wait)
    bank.compact(secure=True)
    assert len(refused) == 1 and "another writer" in refused[0]


def test_snapshots_that_never_saw_what_is_erased_do_not_keep_it_waiting(
    bank: MemoryBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy server: at every moment somebody reads, but each for a short while."""
    fill(bank, "gone", "kept")
    reader = MemoryBank.open(bank.folder)
    open_snapshots = [reader.snapshot()]
    bank.delete(["gone"])
    bank.catalog.connection.execute("PRAGMA busy_timeout = 0")  # here nobody reads on while SQLite waits

    def wait(_: float) -> None:
        open_snapshots.append(reader.snapshot())
        open_snapshots.pop(0).close()

    monkeypatch.setattr(compaction.time, "sleep", wait)
    bank.compact(secure=True, timeout=1)
    assert not _holds(bank.folder, b"gone")
    assert [found.text for found in open_snapshots[0].documents([1, 2])] == ["text of kept"]


def test_erasing_names_who_reads_also_where_only_the_log_is_held(bank: MemoryBank) -> None:
    """A snapshot that never saw what is erased keeps SQLite's log from being emptied all the same."""
    fill(bank, "gone", "kept")
    bank.delete(["gone"])
    bank.compact()
    bank.catalog.connection.execute("PRAGMA busy_timeout = 0")  # else this test takes half a minute
    real = compaction.edits.rebuild_words
    with pytest.MonkeyPatch.context() as patched, contextlib.ExitStack() as held:

        def rebuild(*arguments: Any) -> None:
            real(*arguments)
            held.enter_context(MemoryBank.open(bank.folder).snapshot())

        patched.setattr(compaction.edits, "rebuild_words", rebuild)
        with pytest.raises(BankBusy, match=rf"pid {os.getpid()}\b"):
            bank.compact(secure=True, timeout=0)


# --- files that cannot be removed yet (Windows) ---------------------------------------------------------------------


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Files that someone maps: the system does not remove them. To be filled."""
    files: set[Path] = set()
    real = compaction.remove
    monkeypatch.setattr(compaction, "remove", lambda path: path not in files and real(path))
    return files


def test_files_in_use_are_left_and_remembered_and_the_next_writer_removes_them(
    bank: MemoryBank, mapped: set[Path]
) -> None:
    fill(bank, "a", "b", "c")
    bank.delete(["b"])
    before, old = read_bank(bank), _segments(bank)
    mapped |= {path for path in old if path.name.endswith(CONTENT_SUFFIX)}
    bank.compact()
    assert mapped <= _segments(bank) and not (old - mapped) & _segments(bank)
    assert set(bank.catalog.unused_segments()) == {path.name.partition(".")[0] for path in mapped}
    assert read_bank(bank) == before and list(verify(bank)) == []
    fill(bank, "d")  # sweeps again, and still cannot
    assert mapped <= _segments(bank)
    left = mapped.copy()
    mapped.clear()
    fill(bank, "e")
    assert not left & _segments(bank) and bank.catalog.unused_segments() == {}
    assert {document.external_id for document, *_ in read_bank(bank)} == {"a", "c", "d", "e"}


def test_erasing_does_not_end_before_the_last_file_is_gone(bank: MemoryBank, mapped: set[Path]) -> None:
    fill(bank, "a", "b")
    bank.delete(["b"])
    mapped |= _segments(bank)
    with pytest.raises(BankBusy, match="may see what is to be erased; end it, or try again"):
        bank.compact(secure=True, timeout=0.0)
    left = mapped.copy()
    mapped.clear()
    bank.compact(secure=True)
    assert not left & _segments(bank)
    assert [document.external_id for document, *_ in read_bank(bank)] == ["a"]


def test_erasing_lets_go_of_what_this_bank_itself_maps(bank: MemoryBank) -> None:
    fill(bank, "a", "b")
    with bank.snapshot() as snapshot:
        reader = weakref.ref(snapshot.shards[0].reader)
    del snapshot
    bank.delete(["b"])
    bank.compact()
    gc.collect()
    assert reader() is not None, "it is kept for the next snapshot"
    bank.compact(secure=True)
    gc.collect()
    assert reader() is None
