"""K and V of rows that decode: what they hold in memory, and that every row attends to its own and to nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import paged_kernel
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import DynamicCache

from memspan.model.buffers import DecodeBuffers
from memspan.model.paged import PagedBuffers
from memspan.types import Retrieved

LAYERS, H, G, D = 4, 6, 2, 8
TOKEN = 2 * G * D * 4
"""Bytes of a token in one layer."""
LENGTHS = (2000, 130, 900, 1300, 128, 3000, 700, 400)


class _Bytes(TorchDispatchMode):
    """What tensors made inside hold at a time, at most, since `peak` was last set."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._held[StorageWeakRef(storage)] = storage.nbytes()
        self._held = {held: size for held, size in self._held.items() if not held.expired()}
        self.peak = max(self.peak, self.now)
        return out

    @property
    def now(self) -> int:
        return sum(size for held, size in self._held.items() if not held.expired())


def _paged() -> DecodeBuffers:
    return PagedBuffers(paged_kernel)


BUFFERS = pytest.mark.parametrize("made", [DecodeBuffers, _paged], ids=["own", "paged"])


def _prefilled(lengths: Sequence[int], layers: int = LAYERS) -> DynamicCache:
    """A cache of a prefill of contexts, padded on the left."""
    cache = DynamicCache()
    for layer in range(layers):
        shape = len(lengths), G, max(lengths), D
        cache.update(torch.randn(shape), torch.randn(shape), layer)
    return cache


def _write(buffers: DecodeBuffers, rows: int, layers: int = LAYERS) -> None:
    buffers.begin()
    for layer in range(layers):
        new = torch.randn(rows, G, 1, D)
        buffers.attend(layer, torch.randn(rows, H, 1, D), new, new, None, None)


@pytest.mark.parametrize("lengths", [LENGTHS, sorted(LENGTHS), (1000,) * 8, (3000, *(128,) * 7)])
def test_rows_that_join_one_by_one_hold_no_more_than_their_own_lengths_need(lengths: Sequence[int]) -> None:
    buffers, written = DecodeBuffers(), 40
    with _Bytes() as held:
        for length in lengths:
            buffers.join(_prefilled([length]), {}, [0], [length])
        for _ in range(written):
            _write(buffers, len(lengths))
    assert held.peak < 1.2 * TOKEN * LAYERS * (sum(lengths) + written * len(lengths))


def test_pages_hold_little_more_than_long_rows_need() -> None:
    lengths, written, layers = (8000, 3100, 5000, 8190, 2560), 30, 16
    buffers = _paged()
    with _Bytes() as held:
        for length in lengths:
            buffers.join(_prefilled([length], layers), {}, [0], [length])
        for _ in range(written):
            _write(buffers, len(lengths), layers)
        assert held.peak < 1.2 * TOKEN * layers * (sum(lengths) + written * len(lengths))
        buffers.leave(1)
        held.peak = 0
        buffers.join(_prefilled([3100], layers), {}, [0], [3100])
    assert held.peak < 1.2 * TOKEN * layers * (sum(lengths) + written * len(lengths) + 3100), "pages are used again"


def test_rows_of_one_prefill_are_never_held_twice() -> None:
    buffers = DecodeBuffers()
    with _Bytes() as held:
        cache = _prefilled((2000,) * 4)
        prefilled, held.peak = held.now, 0
        buffers.join(cache, {}, range(4), (2000,) * 4)
        assert held.peak < 1.2 * (1 + 1 / LAYERS) * prefilled, "a layer at a time is copied and given up"
        assert held.now < 1.2 * prefilled


def test_what_was_routed_to_is_given_up_too() -> None:
    with _Bytes() as held:
        retrieved = {1: _routed((500, 300))}
        cache = _prefilled((9, 9))
        buffers = DecodeBuffers()
        before = held.now
        buffers.join(cache, retrieved, (0, 1), (9, 9))
        assert held.now < before + 2 * LAYERS * TOKEN * 20, "nothing of the memory is held twice"
    assert retrieved[1].doc_ids == ((0,), (1,)) and retrieved[1].keys_BGMD.numel() == 0


@BUFFERS
@pytest.mark.parametrize("keep", [0, 1, LAYERS])
def test_layers_that_the_next_round_needs_stay_in_the_cache(made: Callable[[], DecodeBuffers], keep: int) -> None:
    cache = _prefilled((5, 3))
    kept = [layer.keys for layer in cache.layers[:keep]]
    made().join(cache, {}, [1], [3], keep)
    assert all(layer.keys is keys for layer, keys in zip(cache.layers, kept, strict=False))
    assert all(not layer.keys.numel() and not layer.values.numel() for layer in cache.layers[keep:])  # type: ignore[union-attr]


def test_a_row_that_leaves_frees_what_it_held_and_moves_no_other() -> None:
    buffers = DecodeBuffers()
    with _Bytes() as held:
        for length in (2000, 100, 300):
            buffers.join(_prefilled([length]), {}, [0], [length])
        held.peak = 0
        buffers.leave(0)
        assert not held.peak, "no tensor is made"
        assert held.now < 1.25 * TOKEN * LAYERS * 400


# --- what a token attends to ------------------------------------------------------------------------------------------


def _routed(rows: Sequence[int]) -> Retrieved:
    mask_BM = torch.arange(max(rows)) < torch.tensor(rows)[:, None]
    keys, values = torch.randn(2, len(rows), G, max(rows), D)
    ids = tuple((place,) for place in range(len(rows)))
    scores = tuple((1.0,) for _ in rows)
    return Retrieved(keys, values, mask_BM, ids, scores)


def _naive(
    query_HTD: torch.Tensor, keys_GSD: torch.Tensor, values_GSD: torch.Tensor, seen_TS: torch.Tensor
) -> torch.Tensor:
    keys, values = (x.repeat_interleave(H // G, dim=0) for x in (keys_GSD, values_GSD))
    logits = query_HTD @ keys.transpose(1, 2) / math.sqrt(D) + seen_TS
    return (logits.softmax(-1) @ values).transpose(0, 1)


@BUFFERS
@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("window", [None, 3, 50])
def test_every_row_attends_to_its_own_memory_and_tokens(
    made: Callable[[], DecodeBuffers], T: int, window: int | None
) -> None:
    lengths, memory = (7, 1, 33), (0, 5, 2)
    cache, routed = _prefilled(lengths), _routed(memory)
    local = cache.layers[0].keys, cache.layers[0].values
    buffers = made()
    buffers.join(cache, {0: routed}, range(3), lengths)
    expected_keys: list[tuple[torch.Tensor, torch.Tensor]] = []
    for row, (length, M) in enumerate(zip(lengths, memory, strict=True)):
        parts = zip((routed.keys_BGMD, routed.values_BGMD), local, strict=True)
        expected_keys.append(tuple(torch.cat([x[row, :, :M], y[row, :, -length:]], 1) for x, y in parts))  # type: ignore[arg-type,index]
    for _ in range(20):  # they grow on the way
        buffers.begin()
        query, new = torch.randn(3, H, T, D), torch.randn(2, 3, G, T, D)
        out = buffers.attend(0, query, new[0], new[1], None, window)
        for row, M in enumerate(memory):
            keys, values = (torch.cat([x, y[row]], 1) for x, y in zip(expected_keys[row], new, strict=True))
            expected_keys[row] = keys, values
            S = keys.shape[1]
            own, column = torch.arange(S - T, S)[:, None], torch.arange(S)
            seen = (column <= own) & ((column > own - (window or S)) | (column < M))
            added = torch.zeros(T, S).masked_fill(~seen, -math.inf)
            torch.testing.assert_close(out[row], _naive(query[row], keys, values, added))


@BUFFERS
@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("window", [None, 3])
def test_heads_attend_to_rows_of_their_own(made: Callable[[], DecodeBuffers], T: int, window: int | None) -> None:
    """Of two rows that read documents from tokens, and one between them that reads none, which leaves."""
    lengths, M, buffers = (7, 2, 5), 9, made()
    cache, routed = _prefilled(lengths), _routed((M, 0, M))
    heads_BGM = torch.rand(3, G, M) < 0.5
    heads_BGM[1], heads_BGM[:, 0, 0] = False, True
    heads_BGM[1, 0, 0] = False
    routed = replace(routed, heads_BGM=heads_BGM, mask_BM=heads_BGM.any(1))
    local = cache.layers[0].keys, cache.layers[0].values
    buffers.join(cache, {0: routed}, range(3), lengths)
    buffers.leave(1)
    buffers.begin()
    query, new = torch.randn(2, H, T, D), torch.randn(2, 2, G, T, D)
    out = buffers.attend(0, query, new[0], new[1], None, window)
    for place, row in enumerate((0, 2)):
        parts = zip((routed.keys_BGMD, routed.values_BGMD), local, new, strict=True)
        keys, values = (torch.cat([x[row], y[row, :, -lengths[row] :], z[place]], 1) for x, y, z in parts)  # type: ignore[index]
        S = keys.shape[1]
        own, column = torch.arange(S - T, S)[:, None], torch.arange(S)
        seen_TS = (column <= own) & ((column > own - (window or S)) | (column < M))
        seen_GTS = seen_TS.expand(G, T, S).clone()
        seen_GTS[:, :, :M] &= heads_BGM[row, :, None]
        added = torch.zeros(H, T, S).masked_fill(~seen_GTS.repeat_interleave(H // G, dim=0), -math.inf)
        torch.testing.assert_close(out[place], _naive(query[place], keys, values, added))


@BUFFERS
def test_tokens_taken_back_are_written_over(made: Callable[[], DecodeBuffers]) -> None:
    torch.manual_seed(0)
    states: list[torch.Tensor] = []
    for drafted in (0, 3):
        generator = torch.Generator().manual_seed(1)
        cache = DynamicCache()
        cache.update(*torch.randn(2, 1, G, 6, D, generator=generator), 0)
        buffers = made()
        buffers.join(cache, {}, [0], [6])
        if drafted:
            buffers.attend(0, torch.randn(1, H, 3, D), *torch.randn(2, 1, G, 3, D), None, None)
            buffers.drop(0, drafted)
        new = torch.randn(1, G, 1, D, generator=generator)
        states.append(buffers.attend(0, torch.ones(1, H, 1, D), new, new, None, None))
    assert torch.equal(*states)
