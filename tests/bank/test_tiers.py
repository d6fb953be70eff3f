from __future__ import annotations

import gc
import mmap
import weakref
from pathlib import Path

import pytest
import torch
from helpers import add_latents, random_latents, tiny_manifest

from memspan.bank import coarse, shard, tiers
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

    def __init__(self) -> None:
        self.given_back: list[int] = []

    def coarse_keys(self, layer: int) -> CoarseKeys:
        return CoarseKeys(torch.full((8, 32), layer, dtype=torch.int8), torch.ones(8))

    def give_back_coarse(self, layer: int) -> None:
        self.given_back.append(layer)


MOVED_BYTES = 1024 // 2 + 4 * 8 * 2


@pytest.mark.parametrize(("room", "moved"), [(1.0, 1), (1.9, 1), (2.0, 2), (100.0, 3)])
def test_an_accelerator_keeps_the_keys_of_the_first_segments_that_fit(room: float, moved: int) -> None:
    readers, division = [_Moving() for _ in range(3)], Tiers(device_budget=int(room * MOVED_BYTES))
    for _ in range(2):  # what is there already is not moved again
        assert division.move(readers, (3, 5), torch.device("cpu")) == moved
    assert [reader.given_back for reader in readers] == [[3, 5]] * moved + [[]] * (3 - moved)
    assert torch.all(division.moved_keys(readers[0], 5).key_CW == 5)


def test_a_gpu_budget_without_room_for_one_segment_is_refused_with_the_number() -> None:
    with pytest.raises(BudgetError, match=r"GPU memory budget of 0\.00 GB .* at least 0\.01 GB, or --device cpu"):
        Tiers(device_budget=MOVED_BYTES - 1).move([_Moving()], (3, 5), torch.device("cpu"))


def test_what_is_free_on_an_accelerator_is_used_and_too_little_leaves_keys_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tiers, "free_bytes", lambda device: 0)
    division = Tiers()
    for _ in range(2):  # nor at the next question
        assert division.move([_Moving()], (3, 5), torch.device("cpu")) == 0
    monkeypatch.setattr(tiers, "free_bytes", lambda device: 10**9)

    tried = []

    def full(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        tried.append(device)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(tiers, "to_device", full)
    for division in (Tiers(), Tiers(device_budget=10**9)):
        tried.clear()
        for _ in range(2):
            assert division.move([_Moving()], (3, 5), torch.device("cpu")) == 0
        assert len(tried) == 1, "what did not fit is not tried at every question"
    assert "cpu has no room for 0.00 GB of keys; they stay on the CPU" in caplog.text


def test_keys_of_segments_that_are_gone_leave_the_accelerator() -> None:
    reader, division = _Moving(), Tiers(device_budget=10**6)
    division.move([reader], (3, 5), torch.device("cpu"))
    kept = weakref.ref(division.moved_keys(reader, 3).key_CW)
    assert kept() is not None
    del reader
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
