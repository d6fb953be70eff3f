from __future__ import annotations

import dataclasses
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
    receive,
    tiny_manifest,
)

from memspan.bank import bank as module
from memspan.bank import compaction, locks
from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE, Catalog
from memspan.bank.database import Database
from memspan.bank.scope import Scope
from memspan.bank.segment import SegmentReader
from memspan.bank.snapshot import Snapshot
from memspan.errors import FilterError
from memspan.types import Document, EncodedDocuments

DEFAULT = DEFAULT_NAMESPACE
MANIFEST = tiny_manifest()


def _seen(snapshot: Snapshot) -> tuple[Any, ...]:
    """Everything a snapshot shows: text, full-text scores, latents."""
    latents = {
        number: bits(latents_in(shard, index))
        for shard in snapshot.shards
        for index, number in enumerate(shard.ids_N.tolist())
        if shard.live_N[index]
    }
    return (
        snapshot.commit,
        snapshot.num_documents,
        snapshot.documents(range(1, 50)),
        snapshot.search("text of a new changed", 50),
        snapshot.search("text", 50, Scope.parse({"external_id": "a"})),
        snapshot.selectable_mask().tolist(),
        latents,
    )


def _update(bank: MemoryBank) -> None:
    with bank.writer() as writer:
        add_latents(writer, Document("a", "changed"), random_latents(MANIFEST, 2))
        writer.commit()


def _relabel(bank: MemoryBank) -> None:
    bank.relabel(dataclasses.replace(bank.get("a"), metadata={"changed": True}, date="2020-01-01"))


def _all_of_it(bank: MemoryBank) -> None:
    for name in ("add", "update", "relabel", "delete", "compact"):
        CHANGES[name](bank)


CHANGES: dict[str, Callable[[MemoryBank], object]] = {
    "add": lambda bank: fill(bank, "new"),
    "update": _update,
    "relabel": _relabel,
    "delete": lambda bank: bank.delete(["b"]),
    "compact": lambda bank: bank.compact(),
    "all": _all_of_it,
}


# --- what does not change -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["the same handle", "another handle", "another process"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_snapshot_does_not_change_whatever_is_done_to_the_bank(bank: MemoryBank, change: str, who: str) -> None:
    fill(bank, "a", "b", "c")
    with bank.snapshot() as snapshot:
        before = _seen(snapshot)
        if who == "another process":
            with child_process(lambda pipe: pipe.send(CHANGES[change](MemoryBank.open(bank.folder)) and None)) as child:
                receive(child[1])
        else:
            CHANGES[change](bank if who == "the same handle" else MemoryBank.open(bank.folder))
        assert _seen(snapshot) == before
        with bank.snapshot() as later:
            if change not in ("compact",):
                assert _seen(later)[2:] != before[2:], "else nothing was changed"
        assert _seen(snapshot) == before


def test_a_snapshot_of_another_process_does_not_change_either(bank: MemoryBank) -> None:
    fill(bank, "a", "b", "c")

    def read(pipe: Connection) -> None:
        snapshot = MemoryBank.open(bank.folder).snapshot()
        while receive(pipe) == "look":
            pipe.send(_seen(snapshot))

    with child_process(read) as (_, pipe):
        pipe.send("look")
        before = receive(pipe)
        for name in ("add", "update", "relabel", "delete", "compact"):
            CHANGES[name](bank)
            pipe.send("look")
            assert receive(pipe) == before
        pipe.send("end")


def test_a_snapshot_may_be_read_by_another_thread_than_made_it(bank: MemoryBank) -> None:
    fill(bank, "a", "b")
    snapshot = bank.snapshot()
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(_seen, snapshot).result() == _seen(snapshot)
        threads.submit(snapshot.close).result()
    assert locks.holders(bank.folder) == {}


def test_closing_twice_lets_go_once(bank: MemoryBank) -> None:
    fill(bank, "a")
    first, second = bank.snapshot(), bank.snapshot()
    first.close()
    first.close()
    assert list(locks.holders(bank.folder).values()) == [second.commit]
    second.close()
    assert locks.holders(bank.folder) == {}


def test_a_snapshot_that_could_not_be_taken_holds_nothing(bank: MemoryBank) -> None:
    fill(bank, "a")
    path = next((bank.folder / "segments").iterdir())
    content = path.read_bytes()
    path.unlink()
    errors: list[BaseException] = []  # kept, and so is all that their frames hold
    for _ in range(3):
        with pytest.raises(module.BankError, match=str(path)) as raised:
            bank.snapshot()
        errors.append(raised.value)
        assert locks.holders(bank.folder) == {}
    path.write_bytes(content)
    assert len(read_bank(bank)) == 1


def test_a_catalog_that_cannot_be_read_leaves_nothing_held(bank: MemoryBank, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(bank, "a")

    def fail(_: Database) -> None:
        raise module.BankError("damaged")

    with monkeypatch.context() as patched:
        patched.setattr(Database, "begin_snapshot", fail)
        with pytest.raises(module.BankError, match="damaged"):
            bank.snapshot()
    assert locks.holders(bank.folder) == {}
    assert len(read_bank(bank)) == 1


# --- what may be selected -------------------------------------------------------------------------------------------


def test_what_may_be_selected_is_alive_and_in_the_scope(bank: MemoryBank) -> None:
    with bank.writer() as writer:
        for number in range(8):
            metadata = {"n": number, "even": number % 2 == 0}
            add_latents(writer, Document(str(number), "text", metadata=metadata), random_latents(MANIFEST, 1))
            if number % 3 == 0:
                writer.commit()
        writer.commit()
    bank.delete(["2", "7"])
    for where in ({}, {"even": True}, {"n": {">=": 5}}, {"external_id": "2"}, {"even": False, "n": {"<": 3}}):
        scope = Scope.parse(where)
        with bank.snapshot() as snapshot:
            ids = torch.cat([shard.ids_N for shard in snapshot.shards])
            allowed = bank.catalog.ids_in_scope(DEFAULT, scope).tolist()
            assert sorted(ids[snapshot.selectable_mask(scope)].tolist()) == allowed
            assert {number for number, _ in snapshot.search("text", 99, scope)} == set(allowed)
    assert allowed == [2]


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[Scope]:
    """The scopes whose documents were looked up in the catalog."""
    scopes: list[Scope] = []
    look_up = Catalog.ids_in_scope

    def counted(catalog: Catalog, namespace: str, scope: Scope) -> Any:
        scopes.append(scope)
        return look_up(catalog, namespace, scope)

    monkeypatch.setattr(Catalog, "ids_in_scope", counted)
    return scopes


def _mask(bank: MemoryBank, scope: Scope, namespace: str = DEFAULT) -> list[bool]:
    with bank.snapshot(namespace) as snapshot:
        return snapshot.selectable_mask(scope).tolist()


def test_a_scope_is_looked_up_once_for_all_snapshots_of_a_commit(bank: MemoryBank, looked_up: list[Scope]) -> None:
    fill(bank, "a", "b", "c")
    fill(bank, "a", namespace="other")
    one, same, others = (Scope.parse({"external_id": given}) for given in ("a", "a", {"!=": "a"}))
    for _ in range(3):
        assert _mask(bank, one) == _mask(bank, same) == [True, False, False]
        assert _mask(bank, others) == [False, True, True]
        assert _mask(bank, one, "other") == [True]
        assert _mask(bank, Scope()) == [True] * 3
    assert looked_up == [one, others, one]


@pytest.mark.parametrize("change", ["add", "delete", "update", "relabel", "compact"])
def test_no_mask_outlives_a_commit(bank: MemoryBank, change: str) -> None:
    fill(bank, "a", "b", "c")
    scope = Scope.parse({"external_id": {"!=": "b"}}, as_of="9999-01-01")
    assert _mask(bank, scope) == [True, False, True]
    with bank.snapshot() as before:
        match change:
            case "add":
                fill(bank, "d")
            case "delete":
                bank.delete(["c"])
            case "update":
                _update(bank)
            case "relabel":
                bank.relabel(Document("a", "text of a", date="9999-12-31"))
            case _:
                bank.delete(["a"])
                bank.compact()
        fresh = MemoryBank.open(bank.folder)
        assert _mask(bank, scope) == _mask(fresh, scope) != [True, False, True]
        fresh.close()
        assert before.selectable_mask(scope).tolist() == [True, False, True]


def test_masks_are_kept_within_bounds(
    bank: MemoryBank, looked_up: list[Scope], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MASK_BYTES", 7)
    fill(bank, "a", "b", "c")
    scopes = [Scope.parse({"external_id": name}) for name in "abc"]
    for scope in [*scopes, scopes[2], scopes[1], scopes[0]]:
        assert _mask(bank, scope) == [scope == other for other in scopes]
    assert looked_up == [*scopes, scopes[0]]


def test_a_field_that_no_document_has_is_named(bank: MemoryBank) -> None:
    fill(bank, "a")
    with bank.snapshot() as snapshot, pytest.raises(FilterError, match="'colour'"):
        snapshot.selectable_mask(Scope.parse({"colour": "red"}))


def test_an_empty_namespace_has_nothing_to_select(bank: MemoryBank) -> None:
    with bank.snapshot("nobody") as snapshot:
        assert (snapshot.selectable_mask().tolist(), snapshot.documents([1]), snapshot.search("text", 9)) == (
            [],
            [],
            [],
        )


# --- the work of a new one ------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the segments that banks open from here on."""
    names: list[str] = []

    def reader(folder: Path, files: Any, manifest: Any) -> SegmentReader:
        names.append(files.name)
        return SegmentReader(folder, files, manifest)

    monkeypatch.setattr(module, "SegmentReader", reader)
    return names


def _names(bank: MemoryBank) -> list[str]:
    return [files.name for _, files in bank.catalog.segments(DEFAULT)]


def test_only_new_segments_are_opened(bank: MemoryBank, opened: list[str]) -> None:
    fill(bank, "a")
    reader = MemoryBank.open(bank.folder)
    for name in "bcd":
        reader.snapshot().close()
        assert opened == _names(bank)
        fill(bank, name)
    reader.snapshot().close()
    assert opened == _names(bank), "each once"


def test_where_nothing_changed_the_shards_are_the_same(bank: MemoryBank, opened: list[str]) -> None:
    fill(bank, "a", "b")
    with bank.snapshot() as one, bank.snapshot() as two:
        assert one.shards and all(x is y for x, y in zip(one.shards, two.shards, strict=True))
    assert len(opened) == 1


@pytest.mark.parametrize("change", ["delete", "relabel"])
def test_a_change_without_new_latents_opens_nothing(bank: MemoryBank, opened: list[str], change: str) -> None:
    fill(bank, "a", "b")
    bank.snapshot().close()
    opened.clear()
    CHANGES[change](bank)
    with bank.snapshot() as snapshot:
        assert (snapshot.num_documents, opened) == (1 if change == "delete" else 2, [])


def test_after_a_merge_the_new_segment_alone_is_opened(bank: MemoryBank, opened: list[str]) -> None:
    for number in range(compaction.FAN_OUT - 1):
        fill(bank, str(number))
    fill(bank, "large", rows=3000)
    bank.snapshot().close()
    before = set(opened)
    opened.clear()
    fill(bank, "last")
    with bank.snapshot() as snapshot:
        assert snapshot.num_documents == compaction.FAN_OUT + 1
    assert opened == [name for name in _names(bank) if name not in before]
    assert (len(opened), len(_names(bank))) == (1, 2)


def test_what_was_deleted_long_ago_is_dead_in_a_segment_that_is_opened_now(bank: MemoryBank) -> None:
    fill(bank, "a", "b")
    bank.delete(["a"])
    for reader in (bank, MemoryBank.open(bank.folder)):
        with reader.snapshot() as snapshot:
            assert snapshot.selectable_mask().tolist() == [False, True]


def test_an_older_snapshot_in_the_making_and_a_newer_one_do_not_disturb_each_other(
    bank: MemoryBank, monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    fill(bank, "a", "b")
    bank.snapshot().close()
    real, calls = MemoryBank._view, []

    def late(self: MemoryBank, catalog: Catalog, namespace: str, commit: int) -> Any:
        calls.append(commit)
        if len(calls) == 1:  # between reading the commit and the segments, another thread is quicker
            fill(bank, "c")
            bank.delete(["a"])
            bank.snapshot().close()
        return real(self, catalog, namespace, commit)

    monkeypatch.setattr(MemoryBank, "_view", late)
    old = bank.snapshot()
    opened.clear()
    with old, bank.snapshot() as new:
        assert opened == [], "the newer one was here before"
        assert (old.commit, new.commit) == (calls[0], calls[1])
        assert [shard.ids_N[shard.live_N].tolist() for shard in old.shards] == [[1, 2]]
        assert [shard.ids_N[shard.live_N].tolist() for shard in new.shards] == [[2, 3]]
        assert [found.id for found in old.documents([1, 2, 3])] == [1, 2]
    with bank.snapshot() as again:
        assert [shard.ids_N[shard.live_N].tolist() for shard in again.shards] == [[2, 3]]


def test_a_snapshot_on_its_way_keeps_every_file(bank: MemoryBank, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer compacts after the snapshot has begun and before it could say which commit it sees."""
    fill(bank, "a", "b")
    reader = MemoryBank.open(bank.folder)
    real, begun = Database.begin_snapshot, []

    def begin(self: Database) -> None:
        real(self)
        begun.append(self)
        if len(begun) == 1:
            bank.delete(["a"])
            bank.compact()

    monkeypatch.setattr(Database, "begin_snapshot", begin)
    with reader.snapshot() as snapshot:
        assert [shard.ids_N.tolist() for shard in snapshot.shards] == [[1, 2]]
        assert [found.id for found in snapshot.documents([1, 2])] == [1, 2]
    assert len(begun) == 1, "it did not have to look again"


def test_a_reader_that_cannot_register_looks_again_when_files_vanish_under_it(
    bank: MemoryBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bank, "a", "b")
    bank.delete(["a"])
    with monkeypatch.context() as patched:
        patched.setattr(locks, "_lock_new_file", lambda path: None)
        reader = MemoryBank.open(bank.folder)
    real, calls = MemoryBank._view, []

    def late(self: MemoryBank, catalog: Catalog, namespace: str, commit: int) -> Any:
        calls.append(commit)
        if len(calls) == 1:
            bank.compact()
        return real(self, catalog, namespace, commit)

    monkeypatch.setattr(MemoryBank, "_view", late)
    with reader.snapshot() as snapshot:
        assert [shard.ids_N.tolist() for shard in snapshot.shards] == [[2]]
    assert calls[1] > calls[0]


# --- while one writes -----------------------------------------------------------------------------------------------

NAMES, ROUNDS = 5, 25


def test_taking_a_snapshot_leaves_the_connection_that_writes_alone(bank: MemoryBank) -> None:
    """SQLite refuses to drop a table, or to vacuum, while another thread reads on the same connection."""
    fill(bank, "a")
    statements: list[str] = []
    bank.catalog.connection.set_trace_callback(statements.append)
    bank.snapshot().close()
    assert statements == []


def _of_text(text: str) -> EncodedDocuments:
    """The latents that belong to a text."""
    generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
    L, G, D = len(MANIFEST.msa_layers), MANIFEST.num_kv_heads, MANIFEST.head_dim
    rows = 1 + len(text) % 3
    keys_LCW = torch.randn(L, rows, G * D, generator=generator).bfloat16()
    return EncodedDocuments(keys_LCW, torch.randn(L, rows, 2, G, D, generator=generator).bfloat16(), (rows,))


def _check(bank: MemoryBank) -> int:
    """Look at a snapshot in which all documents must be of one round; returns the round."""
    with bank.snapshot() as snapshot:
        latents = {
            number: bits(latents_in(shard, index))
            for shard in snapshot.shards
            for index, number in enumerate(shard.ids_N.tolist())
            if shard.live_N[index]
        }
        stored = snapshot.documents(sorted(latents))
        rounds = {document.text.split()[0] for document in stored}
        assert (len(stored), len(rounds), snapshot.num_documents) == (NAMES, 1, NAMES), rounds
        (word,) = rounds
        assert sorted(number for number, _ in snapshot.search(word, 99)) == sorted(latents)
        assert snapshot.search("round", 99) == []
        for document in stored:
            assert bits(_of_text(document.text)) == latents[document.id], document.text
        return int(word.removeprefix("round"))


def _write_round(bank: MemoryBank, number: int) -> None:
    """Replace every document in one transaction; now and then compact."""
    with bank.writer() as writer:
        for name in range(NAMES):
            text = f"round{number} of {'x' * name}"
            add_latents(writer, Document(str(name), text), _of_text(text))
        writer.commit()
    if number % 10 == 7:
        bank.compact()


@pytest.mark.parametrize("shared", [True, False], ids=["one handle", "a handle each"])
def test_threads_read_whole_commits_while_one_writes(bank: MemoryBank, shared: bool) -> None:
    _write_round(bank, 0)
    done = threading.Event()

    def read() -> list[int]:
        reader = bank if shared else MemoryBank.open(bank.folder)
        rounds = [_check(reader)]
        while not done.is_set():
            rounds.append(_check(reader))
        return rounds

    with ThreadPoolExecutor(4) as threads:
        readers = [threads.submit(read) for _ in range(4)]
        try:
            for number in range(1, ROUNDS):
                _write_round(bank, number)
        finally:
            done.set()
        for reader in readers:
            rounds = reader.result()
            assert rounds == sorted(rounds), "time does not go back"
    assert _check(bank) == ROUNDS - 1
    assert locks.holders(bank.folder) == {}
    with bank.locked():
        assert len(list((bank.folder / "segments").iterdir())) == 2 * len(_names(bank))


def test_processes_read_whole_commits_while_one_writes(bank: MemoryBank) -> None:
    _write_round(bank, 0)

    def read(pipe: Connection) -> None:
        reader = MemoryBank.open(bank.folder)
        rounds = [_check(reader)]
        pipe.send("ready")
        while not pipe.poll():
            rounds.append(_check(reader))
        rounds.append(_check(reader))
        pipe.send(rounds)

    with child_process(read) as (_, one), child_process(read) as (_, two):
        assert receive(one) == receive(two) == "ready"
        for number in range(1, ROUNDS):
            _write_round(bank, number)
        for pipe in (one, two):
            pipe.send("enough")
            rounds = receive(pipe)
            assert rounds == sorted(rounds)
            assert (rounds[0], rounds[-1]) == (0, ROUNDS - 1)
