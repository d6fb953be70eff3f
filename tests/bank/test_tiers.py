from __future__ import annotations

import gc
import mmap
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import add_latents, random_latents, tiny_manifest

from memspan.bank import coarse, shard, tiers
from memspan.bank import moved as moving
from memspan.bank.bank import MemoryBank
from memspan.bank.segment import SegmentReader
from memspan.bank.tiers import TensorCache, Tiers, resident_bytes
from memspan.errors import BudgetError
from memspan.ops.coarse import CoarseKeys
from memspan.places import parse_bytes
from memspan.routing.local import LocalMemory
from memspan.types import Document, Retrieved

MANIFEST = tiny_manifest()
SCRATCH = 2**26


class _Keys:
    def __init__(self, size: int) -> None:
        self.mapped_coarse_bytes = size


def _tensor(size: int) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.uint8)


def test_the_cache_keeps_what_was_read_last_within_its_bytes() -> None:
    cache, read = TensorCache(100), []

    def get(key: str, size: int = 40) -> torch.Tensor:
        return cache.get(key, lambda: read.append(key) or _tensor(size))

    for key in ("a", "b", "a", "c", "a", "b"):
        get(key)
        assert cache.bytes <= 100
    assert read == ["a", "b", "c", "b"], "b was read longest ago when c came"
    assert get("too large", 101).nbytes == 101 and "too large" not in cache and "a" in cache
    assert (cache.hits, cache.misses) == (2, 5)
    cache.resize(0)
    assert cache.bytes == 0 and get("a").nbytes == 40 and "a" not in cache


def test_without_a_budget_all_keys_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "resident_bytes", lambda: 1 / 0)
    assert Tiers().resident([_Keys(10**12)] * 3, 15) == [True] * 3


def test_a_budget_keeps_the_first_segments_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "resident_bytes", lambda: 10**9)
    sizes = [2 * 10**6, 3 * 10**6, 10**6]
    keys = [_Keys(size) for size in sizes]
    least = 10**9 + SCRATCH + 3 * 10**6
    for rest, expected in ((0, [False] * 3), (10**7, [False, False, True]), (10**8, [True] * 3)):
        division = Tiers(least + rest)
        assert division.resident(keys, 5) == expected
        kept = sum(size * 5 for size, stays in zip(sizes, expected, strict=True) if stays)
        assert kept + division.content.max_bytes <= rest
    # What the process holds later, keys among it, does not count against the budget once more.
    monkeypatch.setattr(tiers, "resident_bytes", lambda: 10**12)
    assert division.resident(keys, 5) == [True] * 3


def test_a_budget_without_room_for_a_tile_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "resident_bytes", lambda: 10**9)
    with pytest.raises(BudgetError, match=r"budget of 0\.50 GB .* at least 1\.37 GB: .* takes 1\.00 GB .* 0\.30 GB"):
        Tiers(5 * 10**8).resident([_Keys(3 * 10**8)], 1)
    Tiers(137 * 10**7).resident([_Keys(3 * 10**8)], 1)


class _Moving:
    """A reader of two documents of four rows each, in two layers, 1,024 bytes of bfloat16 keys in all."""

    documents_N4, keys_bytes = torch.tensor([[1, 0, 4, 0], [2, 4, 4, 0]]), 1024

    def __init__(self, number: int = 0, has_stored: bool = True) -> None:
        self.given_back: list[int] = []
        self.number, self.has_stored = number, has_stored

    def coarse_keys(self, layer: int) -> CoarseKeys:
        return CoarseKeys(torch.full((8, 32), 10 * self.number + layer, dtype=torch.int8), torch.ones(8))

    def give_back_coarse(self, layer: int) -> None:
        self.given_back.append(layer)

    def stored_keys(self, layer: int) -> list[torch.Tensor]:
        assert self.has_stored
        return [torch.full((rows, 32), 10.0 * self.number + layer, dtype=torch.bfloat16) for rows in (3, 5)]


MOVED_BYTES = 1024 // 2 + 4 * 8 * 2
LAYERS, HERE = (3, 5), torch.device("cpu")


@pytest.mark.parametrize(("room", "moved"), [(1.0, 1), (1.9, 1), (2.0, 2), (100.0, 3)])
def test_an_accelerator_keeps_the_keys_of_the_first_segments_that_fit(room: float, moved: int) -> None:
    readers, division = [_Moving(number) for number in range(3)], Tiers(device_budget=int(room * MOVED_BYTES))
    for _ in range(2):  # what is there already is not moved again
        assert division.move(readers, LAYERS, HERE) == moved
    assert [reader.given_back for reader in readers] == [[3, 5]] * moved + [[]] * (3 - moved)
    (run,) = division.runs(readers[:moved])
    assert (run.first, run.last) == (0, 8 * moved), "one call scores all of them"
    assert run.coarse(5).key_CW[:, 0].tolist() == [10 * (row // 8) + 5 for row in range(8 * moved)]
    assert run.coarse(3).scale_C.tolist() == [1.0] * 8 * moved


@pytest.mark.parametrize(("room", "stored"), [(0, 0), (1023, 0), (1024, 1), (2047, 1), (3 * 1024, 3), (10**6, 3)])
def test_what_is_left_of_the_room_holds_the_stored_keys_of_the_first(room: int, stored: int) -> None:
    readers, division = [_Moving(number) for number in range(3)], Tiers(device_budget=3 * MOVED_BYTES + room)
    assert division.move(readers, LAYERS, HERE) == 3
    runs = division.runs(readers)
    assert sum(run.last - run.first for run in runs if run.has_stored) == 8 * stored
    for run in runs:
        assert not run.has_stored or torch.equal(run.stored(3), run.coarse(3).key_CW.bfloat16())
    assert [run.first for run in runs] == [0, *(run.last for run in runs[:-1])]


def test_stored_keys_that_are_on_another_machine_stay_there() -> None:
    readers = [_Moving(0), _Moving(1, has_stored=False), _Moving(2)]
    division = Tiers(device_budget=10**6)
    assert division.move(readers, LAYERS, HERE) == 3
    assert [run.has_stored for run in division.runs(readers)] == [True, False]


def test_segments_that_come_later_are_runs_of_their_own_whatever_the_order() -> None:
    readers, division = [_Moving(number) for number in range(4)], Tiers(device_budget=10**6)
    division.move(readers[:2], LAYERS, HERE)
    assert division.move([readers[0], readers[3], readers[1]], LAYERS, HERE) == 3
    runs = division.runs([readers[0], readers[3], readers[1]])
    assert [(run.first, run.last, int(run.coarse(3).key_CW[0, 0])) for run in runs] == [
        (0, 8, 3), (8, 16, 33), (16, 24, 13)
    ]  # fmt: skip


def test_keys_that_are_there_count_against_the_budget() -> None:
    readers, division = [_Moving(number) for number in range(4)], Tiers(device_budget=2 * MOVED_BYTES)
    assert division.move(readers[:2], LAYERS, HERE) == 2
    assert division.move(readers[2:], LAYERS, HERE) == 0, "those of the first two are there"
    del readers[:2]
    gc.collect()
    assert division.move(readers, LAYERS, HERE) == 2


def test_a_gpu_budget_without_room_for_one_segment_is_refused_with_the_number() -> None:
    with pytest.raises(BudgetError, match=r"GPU memory budget of 0\.00 GB .* at least 0\.01 GB, or --device cpu"):
        Tiers(device_budget=MOVED_BYTES - 1).move([_Moving()], LAYERS, HERE)


def test_what_is_free_on_an_accelerator_is_used_and_too_little_leaves_keys_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(moving, "free_bytes", lambda device: 0)
    division = Tiers()
    for _ in range(2):  # nor at the next question
        assert division.move([_Moving()], LAYERS, HERE) == 0
    monkeypatch.setattr(moving, "free_bytes", lambda device: 10**9)

    tried = []

    def full(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        tried.append(device)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(moving, "to_device", full)
    for division in (Tiers(), Tiers(device_budget=10**9)):
        tried.clear()
        for _ in range(2):
            assert division.move([_Moving()], LAYERS, HERE) == 0
        assert len(tried) == 1, "what did not fit is not tried at every question"
    assert "cpu has no room for 0.00 GB of keys; they stay on the CPU" in caplog.text


@pytest.mark.parametrize("given", [True, False])
def test_keys_that_stay_on_the_cpu_are_told_once_with_the_numbers(
    given: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    room = int(1.5 * MOVED_BYTES)
    monkeypatch.setattr(moving, "free_bytes", lambda device: room)
    readers, division = [_Moving(number) for number in range(2)], Tiers(device_budget=room if given else None)
    for _ in range(3):
        assert division.move(readers, LAYERS, HERE) == 1
    (record,) = caplog.records
    what = "GPU memory budget" if given else "memory that is free there"
    assert record.message == (
        f"cpu has no room for all routing keys: 0.01 GB are wanted, and the {what} leaves 0.00 GB; the others are "
        "scored on the CPU"
    )


@pytest.mark.parametrize(("rows", "moved"), [(7, 0), (8, 1), (15, 1), (16, 2), (31, 2), (32, 4)])
def test_memory_that_runs_out_has_half_of_the_keys_moved_and_so_on(
    rows: int, moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = torch.empty

    def limited(*shape: int, **options: Any) -> torch.Tensor:
        if shape[0] > rows:
            raise torch.OutOfMemoryError
        return empty(*shape, **options)

    monkeypatch.setattr(moving.torch, "empty", limited)
    readers, division = [_Moving(number) for number in range(4)], Tiers(device_budget=10**6)
    for _ in range(2):
        assert division.move(readers, LAYERS, HERE) == moved
    assert sum(run.last - run.first for run in division.runs(readers[:moved])) == 8 * moved
    del readers[:moved]
    gc.collect()
    assert division.move([_Moving()], LAYERS, HERE) == bool(moved), "what is given up has room for others"


def test_memory_that_runs_out_for_stored_keys_leaves_those_in_8_bits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(moving.torch, "empty_like", full)
    reader, division = _Moving(), Tiers(device_budget=10**6)
    assert division.move([reader], LAYERS, HERE) == 1
    assert [run.has_stored for run in division.runs([reader])] == [False]
    assert "candidates are scored exactly on the CPU" in caplog.text


def test_keys_of_segments_that_are_gone_leave_the_accelerator() -> None:
    readers, division = [_Moving(), _Moving()], Tiers(device_budget=10**6)
    division.move(readers, LAYERS, HERE)
    kept = weakref.ref(division.runs(readers)[0].pool.coarse[3].key_CW)
    readers.pop()
    gc.collect()
    assert kept() is not None, "those of the other are beside"
    readers.pop()
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6GB", 6 * 10**9),
        ("512MiB", 2**29),
        ("1.5 g", 15 * 10**8),
        ("100000", 100_000),
        ("2kib", 2048),
        ("1TB", 10**12),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "6 apples", "0GB", "1e9", "6GBB", "6IB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="as 6GB"):
        parse_bytes(text)


def test_what_a_process_holds_grows_with_what_it_takes() -> None:
    before = resident_bytes()
    with mmap.mmap(-1, 2**26) as taken:  # torch may take memory that other tests have given back
        for start in range(0, len(taken), mmap.PAGESIZE):
            taken[start] = 1
        assert resident_bytes() - before > 0.9 * len(taken)


def test_routing_within_a_budget_is_the_same_and_gives_back_what_must_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coarse, "LEAST_KEYS_BYTES", 0)
    monkeypatch.setattr(shard, "_SMALL_KEYS_BYTES", 0)
    monkeypatch.setattr(tiers, "resident_bytes", lambda: 0)
    bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
    with bank.writer(max_segment_bytes=30 * MANIFEST.row_bytes) as writer:
        for number in range(60):
            add_latents(writer, Document(str(number), f"text {number}"), random_latents(MANIFEST, 1 + number % 3))
        writer.commit()
    given_back: list[str] = []
    give_back = SegmentReader.give_back_coarse

    def watched(self: SegmentReader, layer: int) -> None:
        given_back.append(self.files.name)
        give_back(self, layer)

    monkeypatch.setattr(SegmentReader, "give_back_coarse", watched)
    questions = torch.randn(2, 3, 4, 8), torch.ones(2, 3).bool()

    def route(budget: int | None) -> list[Retrieved]:
        opened = MemoryBank.open(bank.folder, budget)
        with opened.snapshot() as snapshot:
            memory = LocalMemory(snapshot.shards, MANIFEST, 3, tiers=snapshot.tiers)
            retrieved = [memory.route(layer, *questions) for _ in range(2) for layer in MANIFEST.msa_layers]
        assert opened.tiers.content.hits >= opened.tiers.content.misses or budget is not None
        return retrieved

    expected = route(None)
    assert not given_back
    for rest in (0, 2000, 10**6):
        found = route(SCRATCH + 30 * 20 + rest)
        for one, other in zip(found, expected, strict=True):
            assert (one.doc_ids, one.scores) == (other.doc_ids, other.scores)
            assert torch.equal(one.keys_BGMD, other.keys_BGMD) and torch.equal(one.values_BGMD, other.values_BGMD)
        kinds = len(set(given_back))
        assert {0: kinds == len(bank.catalog.segments()), 2000: 0 < kinds < len(bank.catalog.segments())}.get(
            rest, kinds == 0
        )
        given_back.clear()
