"""A published bank is the same bank to its readers, and each edition is there whole or not at all."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faulty_store
import pytest
from faulty_store import FaultyFileSystem, faulty
from helpers import add_latents, child_process, fill, make_format_2, random_latents, read_bank, tiny_manifest

from memspan.bank import coarse, mirror, publication, shard, store
from memspan.bank import publish as publishing
from memspan.bank.bank import MemoryBank
from memspan.bank.publication import Edition, read_latest
from memspan.bank.publish import Publication, publish
from memspan.bank.store import Store
from memspan.bank.texts import DocumentUpdate, TextBank
from memspan.errors import (
    BankBusy,
    BankError,
    BankMismatch,
    BudgetError,
    MemspanError,
    ReadOnlyBank,
    StoreError,
    UnknownDocument,
)
from memspan.places import BankPlace
from memspan.types import Document

MANIFEST = tiny_manifest()
URL = "faulty://shelf/notes"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing waits, every question looks for a new edition, and the store is empty."""
    monkeypatch.setattr(store, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(mirror, "POLL_SECONDS", 0.0)
    faulty_store.reset()
    yield
    faulty_store.reset()


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    """Two namespaces, three segments, a text replaced, one deleted."""
    bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
    fill(bank, "otter", "heron", "lynx")
    fill(bank, "otter")
    with bank.writer("öther") as writer:
        add_latents(writer, Document("otter", "of another namespace"), random_latents(MANIFEST, 2))
        writer.commit()
    bank.delete(["lynx"])
    yield bank
    bank.close()


@pytest.fixture(params=["small", "large"])
def sized(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Segments count as small (keys are fetched whole) or as large (keys in 8 bits are, and single rows)."""
    if request.param == "large":
        monkeypatch.setattr(coarse, "LEAST_KEYS_BYTES", 1)
        monkeypatch.setattr(shard, "_SMALL_KEYS_BYTES", 1)
    return request.param


def place(tmp_path: Path, url: str = URL, **options: Any) -> BankPlace:
    return BankPlace.of(url, tmp_path / "cache", **options)


def opened(tmp_path: Path, url: str = URL, **options: Any) -> MemoryBank:
    return MemoryBank.open(place(tmp_path, url, **options))


def everything(bank: MemoryBank) -> list[Any]:
    return [read_bank(bank, "default"), read_bank(bank, "öther")]


def outdated_reader(bank: MemoryBank, tmp_path: Path) -> tuple[MemoryBank, list[Any]]:
    """A reader that has read everything, and what it read: then the bank was changed, and published again."""
    publish(bank, URL)
    reader = opened(tmp_path)
    expected = everything(reader)
    fill(bank, "crane")
    publish(bank, URL)
    return reader, expected


def names(bank: TextBank) -> list[str]:
    with bank.pinned_catalog() as catalog:
        return catalog.external_ids("default")


def stored_names() -> list[str]:
    """Files at the URL, without their root."""
    return sorted(name.removeprefix("/shelf/notes/") for name in FaultyFileSystem.store)


def editions() -> list[str]:
    return [name for name in stored_names() if name.startswith("editions/")]


# --- the same bank ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["a folder", "file://", "memory://", "faulty://", "a folder of odd characters"])
def test_readers_have_the_same_bank_bit_for_bit(tmp_path: Path, kind: str, sized: str) -> None:
    bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
    fill(bank, "otter", "heron", "lynx")
    fill(bank, "otter")
    with bank.writer("öther") as writer:
        add_latents(writer, Document("otter", "of another namespace"), random_latents(MANIFEST, 2))
        writer.commit()
    bank.delete(["lynx"])
    folder = tmp_path / ("ödd [1] *?#%20" if "odd" in kind and not hasattr(Path, "drive_letters") else "shared")
    url = {"file://": folder.as_uri(), "memory://": f"memory://{tmp_path.name}/x", "faulty://": URL}.get(
        kind, str(folder)
    )
    done = publish(bank, url)
    assert (done.edition, done.is_new, done.removed_files) == (1, True, 0)
    with_coarse = any(len(files) == 3 for files in latest_edition(url).segments.values())
    assert with_coarse == (sized == "large")
    reader = opened(tmp_path, url)
    assert reader.is_published and not bank.is_published
    assert everything(reader) == everything(bank)
    for namespace in ("default", "öther"):
        with bank.snapshot(namespace) as here, reader.snapshot(namespace) as there:
            assert there.search("text of otter", 5) == here.search("text of otter", 5)
            for ours, theirs in zip(here.shards, there.shards, strict=True):
                for index, layer in itertools.product(range(len(ours.ids_N)), MANIFEST.msa_layers):
                    (one, at), (other, there_at) = ours.place(index), theirs.place(index)
                    assert one.router_rows(layer, at).equal(other.router_rows(layer, there_at))
                    assert ours.reader.coarse_keys(layer).key_CW.equal(theirs.reader.coarse_keys(layer).key_CW)
    reader.close()
    bank.close()


def latest_edition(url: str = URL) -> Edition:
    found = read_latest(Store(url))
    assert found is not None
    return found.edition


def test_a_second_reader_of_a_cache_fetches_nothing_but_what_says_which_edition_it_is(
    bank: MemoryBank, tmp_path: Path, sized: str
) -> None:
    publish(bank, URL)
    first = opened(tmp_path)
    expected = everything(first)
    FaultyFileSystem.reads.clear()
    second = opened(tmp_path)
    assert everything(second) == expected
    assert all("latest.json" in name or "editions/" in name for name, _ in FaultyFileSystem.reads)


def test_publishing_again_uploads_what_changed_and_nothing_where_nothing_did(bank: MemoryBank, tmp_path: Path) -> None:
    first = publish(bank, URL)
    FaultyFileSystem.written.clear()
    again = publish(bank, URL)
    assert (again.is_new, again.edition, again.uploaded_files, again.removed_files) == (False, 1, 0, 0)
    assert not FaultyFileSystem.written
    fill(bank, "crane")
    third = publish(bank, URL)
    assert (third.is_new, third.edition, third.commit) == (True, 2, first.commit + 1)
    kinds = [name.rpartition("/")[0].rpartition("/")[2] for name in FaultyFileSystem.written]
    assert sorted(kinds) == ["catalog", "editions", "notes", "segments", "segments"]
    assert FaultyFileSystem.written[-2:] == [f"/shelf/notes/{name}" for name in (editions()[-1], "latest.json")], (
        "the edition is written last, and then what names it"
    )


def test_only_blocks_of_the_catalog_that_changed_are_uploaded_and_fetched(
    bank: MemoryBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (publication, publishing, mirror):
        monkeypatch.setattr(module, "BLOCK_BYTES", 2**14)
    with bank.writer() as writer:
        text = " ".join(hashlib.sha256(str(number).encode()).hexdigest() for number in range(2000))
        add_latents(writer, Document("long", text), random_latents(MANIFEST, 2))
        writer.commit()
    publish(bank, URL)
    assert len(latest_edition().blocks) > 20
    reader = opened(tmp_path)
    fill(bank, "crane")
    FaultyFileSystem.reads.clear()
    done = publish(bank, URL)
    assert done.uploaded_bytes < latest_edition().catalog_bytes / 2
    FaultyFileSystem.reads.clear()
    assert "crane" in names(reader)
    fetched = [name for name, _ in FaultyFileSystem.reads if "/catalog/" in name]
    assert 0 < len(fetched) < len(latest_edition().blocks) / 2


def test_a_question_reads_what_it_needs_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large segments: keys in 8 bits whole, and of keys and content the rows that are asked for."""
    monkeypatch.setattr(coarse, "LEAST_KEYS_BYTES", 1)
    monkeypatch.setattr(shard, "_SMALL_KEYS_BYTES", 1)
    big = MemoryBank.create(tmp_path / "big", MANIFEST)
    fill(big, *(f"note {number}" for number in range(400)), rows=40)
    publish(big, URL)
    reader = opened(tmp_path)
    with reader.snapshot() as snapshot:
        at_first = sum(size for _, size in FaultyFileSystem.reads)
        segment, index = snapshot.shards[0].place(7)
        segment.router_rows(MANIFEST.msa_layers[0], index)
        segment.content(MANIFEST.msa_layers[0], index)
    of_document = sum(size for _, size in FaultyFileSystem.reads) - at_first
    published = sum(file.bytes for _, file in latest_edition().files())
    assert of_document == 40 * 3 * 2 * MANIFEST.key_width
    kept = sum(file.bytes for _, file in latest_edition().files() if "coarse" in file.suffix)
    assert at_first < kept + latest_edition().catalog_bytes + published / 4


def test_what_is_asked_for_ahead_comes_with_the_next_read_and_ranges_nearby_are_one(
    bank: MemoryBank, tmp_path: Path, sized: str
) -> None:
    publish(bank, URL)
    reader = opened(tmp_path)
    with reader.snapshot() as snapshot:
        segment = snapshot.shards[0].place(0)[0]
        FaultyFileSystem.reads.clear()
        for index in range(len(segment.documents_N4)):
            segment.prefetch(MANIFEST.msa_layers[0], index)
        for index in range(len(segment.documents_N4)):
            segment.content(MANIFEST.msa_layers[0], index)
        assert len(FaultyFileSystem.reads) == 1


# --- whole or not at all ---------------------------------------------------------------------------------------------


def failing_at(number: int, error: BaseException, ever_after: bool = True) -> Callable[..., Any]:
    """Raises at the call of this number (from 0), and at those after it."""
    calls = itertools.count()

    def call(name: str, data: bytes = b"") -> bytes:
        at = next(calls)
        if at == number or (ever_after and at > number):
            raise error
        return data

    return call


@pytest.mark.parametrize("error", [OSError("the line is down"), KeyboardInterrupt(), PermissionError("no")])
@pytest.mark.parametrize("has_old", [False, True])
def test_an_upload_that_is_interrupted_at_any_file_shows_no_half_edition(
    bank: MemoryBank, tmp_path: Path, error: BaseException, has_old: bool
) -> None:
    before = None
    if has_old:
        publish(bank, URL)
        before = everything(opened(tmp_path))
        fill(bank, "crane")
    there = dict(FaultyFileSystem.store)
    for number in itertools.count():
        FaultyFileSystem.store.clear()
        FaultyFileSystem.store.update(there)
        try:
            with faulty(failing_at(number, error)):
                publish(bank, URL)
            break
        except (StoreError, KeyboardInterrupt) as raised:
            assert isinstance(raised, KeyboardInterrupt) or str(error) in str(raised)
        if before is None:
            with pytest.raises(StoreError, match="no bank was published"):
                opened(tmp_path / "early")
        else:
            assert everything(opened(tmp_path / "early")) == before
        done = publish(bank, URL)
        assert (done.is_new, done.edition) == (True, 2 if has_old else 1)
        if not has_old:
            assert done.uploaded_files == max(0, len(latest_edition().sizes()) - number), "what was there stayed"
        assert everything(opened(tmp_path / str(number))) == everything(bank)
    assert number == len(set(FaultyFileSystem.store) - set(there)) + has_old


def test_a_failure_that_passes_is_not_noticed(bank: MemoryBank, tmp_path: Path) -> None:
    for number in range(5):
        fill(bank, f"crane {number}")
        with faulty(failing_at(number, OSError("reset"), ever_after=False)):
            publish(bank, URL)
        with faulty(on_read=failing_at(number, OSError("reset"), ever_after=False)):
            assert everything(opened(tmp_path)) == everything(bank)


@pytest.mark.parametrize("kind", ["down", "short"])
def test_a_download_that_is_interrupted_anywhere_is_an_error_and_then_goes_on(
    bank: MemoryBank, tmp_path: Path, kind: str, sized: str
) -> None:
    publish(bank, URL)
    for number in itertools.count():
        calls = itertools.count()

        def on_read(name: str, data: bytes, number: int = number, calls: Iterator[int] = calls) -> bytes:
            if next(calls) < number:
                return data
            if kind == "down":
                raise OSError("the line is down")
            return data[: len(data) // 2]

        try:
            with faulty(on_read=on_read):
                found = everything(opened(tmp_path))
            break
        except StoreError as error:
            assert "faulty://shelf/notes" in str(error)
    assert number > 3 and found == everything(bank)
    assert not list((tmp_path / "cache").rglob("*.partial")) and not list((tmp_path / "cache").rglob("incoming"))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if data else data


@pytest.mark.parametrize("times", [1, 1000])
def test_a_flipped_byte_is_read_again_or_named_and_never_used(
    bank: MemoryBank, tmp_path: Path, times: int, sized: str
) -> None:
    publish(bank, URL)
    expected = everything(bank)
    for name in [name for name in stored_names() if "coarse" not in name]:
        for where in (0.5,) if times == 1 else (0.0, 0.5, 0.99):
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
            left = itertools.count()

            def on_read(path: str, data: bytes, name: str = name, where: float = where, left: Any = left) -> bytes:
                is_hit = path.endswith(name) and next(left) < times
                return flipped(data, int(len(data) * where)) if is_hit else data

            with faulty(on_read=on_read):
                try:
                    assert everything(opened(tmp_path)) == expected
                except StoreError as error:
                    assert times > 1 and "faulty://shelf/notes" in str(error), error
                except BankError as error:
                    assert times > 1 and "newer memspan" in str(error), error


def test_a_edition_that_is_missing_is_named_and_an_open_reader_stays_where_it_is(
    bank: MemoryBank, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader, expected = outdated_reader(bank, tmp_path)
    lost = next(name for name in stored_names() if name.startswith("editions/00000002"))
    kept = FaultyFileSystem.store.pop(f"/shelf/notes/{lost}")
    with caplog.at_level(logging.WARNING):
        assert everything(reader) == expected
        assert everything(reader) == expected
    assert [lost in record.getMessage() for record in caplog.records] == [True], "said once"
    with pytest.raises(StoreError, match=rf"latest\.json names {lost}, which is missing; publish the bank again"):
        opened(tmp_path / "elsewhere")
    FaultyFileSystem.store[f"/shelf/notes/{lost}"] = kept
    assert names(reader) == names(bank)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'{"format": 1}', b'{"format": 1, "edition": "../x", "sha256": "0"}', b"\xff"]
)
def test_a_damaged_pointer_is_named(bank: MemoryBank, tmp_path: Path, data: bytes) -> None:
    publish(bank, URL)
    FaultyFileSystem().pipe_file("/shelf/notes/latest.json", data)
    with pytest.raises(StoreError, match=r"latest\.json is damaged .* publish the bank again"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"segments": {"../../x": []}},
        {"segments": {"0" * 32: [{"suffix": "/../x", "bytes": 1, "sha256": "0" * 64}]}},
        {"blocks": ["../../../etc/passwd"]},
        {"bank": "../.."},
        {"catalog_bytes": -1},
        {"catalog_bytes": 10**9},
        {"number": "1"},
        {"more": 1},
    ],
)
def test_a_edition_that_is_none_is_refused_whatever_its_checksum(changes: dict[str, Any], bank: MemoryBank) -> None:
    publish(bank, URL)
    values = json.loads(latest_edition().encoded()) | changes
    with pytest.raises(StoreError, match="is no edition of a bank"):
        Edition.parse(json.dumps(values).encode(), "it")


def test_what_a_newer_memspan_published_is_refused_by_name(bank: MemoryBank, tmp_path: Path) -> None:
    publish(bank, URL)
    FaultyFileSystem().pipe_file("/shelf/notes/latest.json", b'{"format": 2}')
    for use in (lambda: opened(tmp_path), lambda: publish(bank, URL)):
        with pytest.raises(BankError, match="newer memspan; update memspan"):
            use()


def test_a_damaged_file_of_the_bank_is_not_published(bank: MemoryBank) -> None:
    path = next((bank.folder / "segments").glob("*.content.safetensors"))
    path.write_bytes(flipped(path.read_bytes(), -1 % path.stat().st_size))
    with pytest.raises(BankError, match=rf"{path.name} changed since it was written; mend the bank with"):
        publish(bank, URL)
    assert "latest.json" not in stored_names()


# --- following -------------------------------------------------------------------------------------------------------


def test_a_reader_looks_once_a_second_and_sees_a_edition_then(
    bank: MemoryBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(mirror, "POLL_SECONDS", 1.0)
    monkeypatch.setattr(mirror.time, "monotonic", lambda: now[0])
    publish(bank, URL)
    reader = opened(tmp_path)
    fill(bank, "crane")
    publish(bank, URL)
    FaultyFileSystem.reads.clear()
    assert "crane" in names(reader), "the first question looks"
    fill(bank, "newt")
    publish(bank, URL)
    FaultyFileSystem.reads.clear()
    for _ in range(20):
        now[0] += 0.049
        assert "newt" not in names(reader)
    assert not FaultyFileSystem.reads
    now[0] += 0.03
    assert "newt" in names(reader)
    FaultyFileSystem.reads.clear()
    for _ in range(30):
        now[0] += 0.1
        names(reader)
    assert len(FaultyFileSystem.reads) in (2, 3) and {name for name, _ in FaultyFileSystem.reads} == {
        "/shelf/notes/latest.json"
    }


def test_a_question_sees_one_edition_from_beginning_to_end(bank: MemoryBank, tmp_path: Path, sized: str) -> None:
    publish(bank, URL)
    reader, expected = opened(tmp_path), read_bank(bank)
    with reader.snapshot() as snapshot:
        bank.delete(["heron"])
        fill(bank, "otter", "crane")
        bank.compact(secure=True)
        publish(bank, URL)
        assert read_bank(reader) == read_bank(bank), "another question sees the next edition"
        assert [found.id for found in snapshot.documents(snapshot.ids())] == [stored.id for stored, *_ in expected]
        assert snapshot.search("heron", 5)
        found = {
            document: shard_of.place(at)[0].latents(shard_of.place(at)[1])
            for shard_of in snapshot.shards
            for at, document in enumerate(shard_of.ids_N.tolist())
        }
        assert set(found) >= {stored.id for stored, *_ in expected}


def test_readers_in_threads_see_whole_editions_while_others_are_published(bank: MemoryBank, tmp_path: Path) -> None:
    """Each edition holds as many documents as its commit says."""
    publish(bank, URL)
    reader = opened(tmp_path)
    sizes = {bank.catalog.commits(): len(names(bank))}
    seen: list[tuple[int, int, int]] = []
    ends, failed = threading.Event(), []

    def read() -> None:
        try:
            while not ends.is_set():
                with reader.snapshot() as snapshot:
                    seen.append((snapshot.commit, snapshot.num_documents, len(snapshot.ids())))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(6):
        fill(bank, f"crane {number}", f"newt {number}")
        sizes[bank.catalog.commits()] = len(names(bank))
        publish(bank, URL, keep=8)
    names(reader)
    ends.set()
    for thread in threads:
        thread.join()
    assert not failed
    assert all(sizes[commit] == count == ids for commit, count, ids in seen)
    assert len(names(reader)) == sizes[bank.catalog.commits()]


def test_a_reader_goes_on_while_the_store_cannot_be_reached(
    bank: MemoryBank, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader, expected = outdated_reader(bank, tmp_path)
    with faulty(on_read=failing_at(0, OSError("down"))), caplog.at_level(logging.WARNING):
        assert everything(reader) == expected
        assert everything(opened(tmp_path)) == expected, "a new one opens what is in the cache"
        with pytest.raises(StoreError, match="OSError: down"):
            opened(tmp_path / "elsewhere")
    assert any("the edition that was read last is opened" in record.getMessage() for record in caplog.records)
    assert everything(reader) == everything(bank)


def test_a_bank_that_was_published_in_place_of_another_is_not_taken_for_it(bank: MemoryBank, tmp_path: Path) -> None:
    publish(bank, URL)
    reader = opened(tmp_path)
    names(reader)
    faulty_store.reset()
    other = MemoryBank.create(tmp_path / "other", MANIFEST)
    publish(other, URL)
    with pytest.raises(BankMismatch, match=r"another bank was published at faulty://shelf/notes .*open it again"):
        names(reader)
    assert names(opened(tmp_path)) == []


# --- who publishes ---------------------------------------------------------------------------------------------------


def test_another_bank_or_an_older_copy_cannot_take_its_place(bank: MemoryBank, tmp_path: Path) -> None:
    shutil.copytree(bank.folder, tmp_path / "older")
    publish(bank, URL)
    shutil.copytree(bank.folder, tmp_path / "old")
    fill(bank, "crane")
    publish(bank, URL)
    before = stored_names()
    with pytest.raises(BankMismatch, match="a copy from before; publish it at a URL of its own"):
        publish(MemoryBank.open(tmp_path / "old"), URL)
    with pytest.raises(BankMismatch, match=r"holds another bank \(bank on "):
        publish(MemoryBank.open(tmp_path / "older"), URL)
    assert stored_names() == before


def test_of_publishers_at_once_each_gives_a_whole_edition_or_a_named_error(bank: MemoryBank, tmp_path: Path) -> None:
    publish(bank, URL)
    shutil.copytree(bank.folder, tmp_path / "copy")
    banks = [bank, TextBank.open(bank.folder), TextBank.open(tmp_path / "copy")]
    results: list[Publication | MemspanError] = []

    def run(one: TextBank, number: int) -> None:
        for turn in range(4):
            try:
                one.update("heron", DocumentUpdate(metadata={f"by {number}": turn}))
                results.append(publish(one, URL))
            except MemspanError as error:
                results.append(error)

    threads = [threading.Thread(target=run, args=(one, number)) for number, one in enumerate(banks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 12
    assert all(isinstance(result, Publication | BankBusy | BankMismatch | StoreError) for result in results)
    edition, there = latest_edition(), FaultyFileSystem.store
    sizes = {name: there[f"/shelf/notes/{name}"].getbuffer().nbytes for name in edition.sizes()}
    assert sizes == edition.sizes()
    assert names(opened(tmp_path)) == ["heron", "otter"]


def test_the_editions_that_are_kept_are_whole_and_the_rest_is_removed(bank: MemoryBank, tmp_path: Path) -> None:
    for number in range(7):
        fill(bank, f"crane {number}")
        bank.compact(secure=True)
        publish(bank, URL, keep=3)
    numbers = [int(name[9:17]) for name in stored_names() if name.startswith("editions/")]
    assert numbers == [5, 6, 7]
    needed = set()
    for name in stored_names():
        if name.startswith("editions/"):
            needed |= Edition.parse(FaultyFileSystem().cat_file(f"/shelf/notes/{name}"), name).sizes().keys()
    found = {name for name in stored_names() if name.startswith(("segments/", "catalog/"))}
    assert found == needed
    done = publish(bank, URL, keep=1)
    assert done.removed_files and not done.is_new
    assert everything(opened(tmp_path)) == everything(bank)
    with pytest.raises(ValueError, match="at least one edition is kept"):
        publish(bank, URL, keep=0)


def test_what_others_keep_there_stays_and_what_an_interrupted_upload_left_goes(bank: MemoryBank) -> None:
    others = ["README.md", "segments/notes.txt", "editions/1.json", "catalog/x/y.block", "other/latest.json"]
    left = [f"segments/{'0' * 64}.content.safetensors", f"catalog/{'1' * 64}.block", "segments/.x.0a.partial"]
    left.append(f"editions/00000000-{'2' * 16}.json")
    for name in [*others, *left]:
        FaultyFileSystem().pipe_file(f"/shelf/notes/{name}", b"x")
    done = publish(bank, URL)
    assert done.removed_files == len(left) and set(others) < set(stored_names()) and not set(left) & set(stored_names())


def test_a_file_that_was_removed_from_the_store_is_uploaded_again(bank: MemoryBank, tmp_path: Path) -> None:
    publish(bank, URL)
    for name in [name for name in stored_names() if name.startswith(("segments/", "catalog/"))]:
        del FaultyFileSystem.store[f"/shelf/notes/{name}"]
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        with pytest.raises(StoreError, match="publish the bank again"):
            everything(opened(tmp_path))
        done = publish(bank, URL)
        assert (done.is_new, done.uploaded_files) == (False, 1)
        assert everything(opened(tmp_path)) == everything(bank)


def test_a_bank_of_format_2_is_published_as_one_of_this_format(tmp_path: Path) -> None:
    bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
    fill(bank, "otter", "heron")
    bank.close()
    make_format_2(tmp_path / "bank")
    old = MemoryBank.open(tmp_path / "bank")
    publish(old, URL)
    assert read_bank(opened(tmp_path)) == read_bank(old)
    assert not publish(old, URL).is_new


def test_an_empty_bank_is_published(tmp_path: Path) -> None:
    bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
    publish(bank, URL)
    reader = opened(tmp_path)
    assert names(reader) == []
    fill(bank, "otter")
    publish(bank, URL)
    assert read_bank(reader) == read_bank(bank)


def test_no_folder_of_the_writer_is_published(tmp_path: Path) -> None:
    from memspan.bank.ledger import Ledger  # noqa: F401 (its tables hold folders)

    bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
    with bank.catalog.transaction():
        bank.catalog.execute("INSERT INTO namespaces VALUES (1, 'default', 0)")
        bank.catalog.execute("INSERT INTO roots VALUES (1, 1, 'notes', ?, 1)", (str(tmp_path / "secret folder"),))
    publish(bank, URL)
    published = b"".join(bytes(file.getbuffer()) for file in FaultyFileSystem.store.values())
    assert b"secret folder" not in published and str(tmp_path).encode() not in published


def test_a_bank_cannot_be_published_into_itself_nor_a_published_one_be_published(
    bank: MemoryBank, tmp_path: Path
) -> None:
    for url in (str(bank.folder), (bank.folder / "deeper").as_uri()):
        with pytest.raises(BankError, match="in the bank's own folder"):
            publish(bank, url)
    publish(bank, URL)
    with pytest.raises(ReadOnlyBank, match="published"):
        publish(opened(tmp_path), URL)


# --- the reader's machine ---------------------------------------------------------------------------------------------


def test_a_published_bank_is_not_changed_and_says_where_it_is(bank: MemoryBank, tmp_path: Path) -> None:
    from memspan.bank.archive import export_bank
    from memspan.bank.verify import verify

    publish(bank, URL)
    reader = opened(tmp_path)
    changes: list[Callable[[], Any]] = [
        lambda: reader.delete(["otter"]),
        lambda: reader.update("otter", DocumentUpdate(title="x")),
        lambda: reader.compact(),
        lambda: reader.reindex(),
        lambda: reader.writer().__enter__(),
        lambda: verify(reader),
        lambda: export_bank(reader, tmp_path / "x.zip"),
    ]
    for change in changes:
        with pytest.raises(ReadOnlyBank, match=r"where it is written \(bank on .+\), and then: memspan publish BANK"):
            change()
    assert everything(reader) == everything(bank)
    with pytest.raises(UnknownDocument, match="memspan ls faulty://shelf/notes"):
        reader.get("nothing")
    with pytest.raises(BankError, match="make the bank in a folder of this machine"):
        MemoryBank.create("s3://bucket/notes", MANIFEST)


def test_the_cache_stays_within_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse, "LEAST_KEYS_BYTES", 1)
    bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
    fill(bank, *(f"note {number}" for number in range(200)), rows=100)
    publish(bank, URL)
    opened(tmp_path).close()
    folder = next((tmp_path / "cache" / "banks").glob("*/*"))
    free = opened(tmp_path)
    expected = read_bank(free)
    free.close()

    def size() -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix != ".json")

    least = size() - (folder / "pieces.sqlite").stat().st_size
    most = least + 300_000
    assert size() > 2 * most - least, "without a budget it is larger"
    reader = opened(tmp_path, cache_budget=most)
    assert read_bank(reader) == expected
    assert size() <= most + 20_000
    with pytest.raises(BudgetError, match=r"a cache budget of .* its catalog and routing keys take"):
        opened(tmp_path / "tight", cache_budget=1000)
    with (
        pytest.raises(BudgetError, match="routing keys take"),
        opened(tmp_path / "tight", cache_budget=latest_edition().catalog_bytes + 10).snapshot(),
    ):
        pass
    monkeypatch.setenv("MEMSPAN_CACHE_BUDGET", "a lot")
    with pytest.raises(BudgetError, match="a size as 6GB"):
        opened(tmp_path)


def test_what_is_damaged_in_the_cache_is_fetched_again(
    bank: MemoryBank, tmp_path: Path, sized: str, caplog: pytest.LogCaptureFixture
) -> None:
    publish(bank, URL)
    reader = opened(tmp_path)
    expected = everything(reader)
    reader.close()
    (pieces,) = (tmp_path / "cache").rglob("pieces.sqlite")
    whole = pieces.read_bytes()
    for damaged in (b"", b"no database" * 500, whole[:5000], whole[: len(whole) // 2] + b"\0" * (len(whole) // 2)):
        pieces.write_bytes(damaged)
        reader = opened(tmp_path)
        assert everything(reader) == expected
        reader.close()
    for at in range(5000, len(whole), 997):
        pieces.write_bytes(flipped(whole, at))
        reader = opened(tmp_path)
        assert everything(reader) == expected
        reader.close()


def test_a_process_that_was_killed_while_it_fetched_leaves_nothing_that_counts(
    bank: MemoryBank, tmp_path: Path
) -> None:
    publish(bank, URL)
    opened(tmp_path).close()
    (catalog,) = (tmp_path / "cache").rglob("catalog.sqlite")
    for name in ("catalog.sqlite.partial", "catalog.sqlite.partial-wal", "incoming/catalog.sqlite-journal"):
        (catalog.parent / name).parent.mkdir(exist_ok=True)
        (catalog.parent / name).write_bytes(b"half")
    (catalog.parent / "segments" / f".{'0' * 32}.keys.safetensors.0a.partial").write_bytes(b"half")
    fill(bank, "crane")
    publish(bank, URL)
    assert everything(opened(tmp_path)) == everything(bank)
    catalog.unlink()
    assert everything(opened(tmp_path)) == everything(bank)
    assert not list(catalog.parent.rglob("*.partial")) and not (catalog.parent / "incoming").exists()


def test_processes_share_a_cache(bank: MemoryBank, tmp_path: Path) -> None:
    url = str(tmp_path / "shared")
    publish(bank, url)
    expected = [(stored.id, keys, content) for stored, keys, content in read_bank(bank)]

    def read(pipe: Any) -> None:
        reader = opened(tmp_path, url)
        pipe.send([(stored.id, keys, content) for stored, keys, content in read_bank(reader)])
        last = pipe.recv()
        while last not in (found := names(reader)):  # while the other one fetches a edition, it is not waited for
            pass
        pipe.send(found)

    with child_process(read) as (_, first), child_process(read) as (_, second):
        assert first.recv() == second.recv() == expected
        fill(bank, "crane")
        publish(bank, url)
        for pipe in (first, second):
            pipe.send("crane")
        assert first.recv() == second.recv() == names(bank)


def test_a_url_as_a_path_is_noticed(tmp_path: Path) -> None:
    for text in ("s3://bucket/notes", "memory://x", "gs://b"):
        with pytest.raises(BankError, match="write it as text and with ://"):
            TextBank.open(Path(text))
    with pytest.raises(BankError, match="there is no bank in"):
        TextBank.open(tmp_path / "C:nothing")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nosuchkind://x/y", "cannot be opened.*nosuchkind"),
        ("faulty://empty", "no bank was published at faulty://empty"),
    ],
)
def test_a_url_that_leads_nowhere_is_named(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        opened(tmp_path, url)


def test_a_password_in_a_url_is_in_no_message(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        opened(tmp_path, "faulty://me:secret@empty/x")
    assert "secret" not in str(caught.value)


def test_a_package_that_a_store_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(StoreError, match=r"s3://bucket/x needs a package that is not installed: .*s3fs"):
        opened(tmp_path, "s3://bucket/x")


def test_a_store_without_permission_is_named(bank: MemoryBank, tmp_path: Path) -> None:
    refusing = failing_at(0, PermissionError("Access Denied"))
    with faulty(refusing), pytest.raises(StoreError, match=r"cannot write .* to faulty://shelf/notes: .*Access Denied"):
        publish(bank, URL)
    publish(bank, URL)
    with faulty(on_read=refusing), pytest.raises(StoreError, match=r"cannot read latest.json from .*Access Denied"):
        opened(tmp_path)
