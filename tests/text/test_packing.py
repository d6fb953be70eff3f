from __future__ import annotations

import itertools

import pytest
import torch
from helpers import random_context

from memspan.text.packing import even_shares, length_batches, pack_contexts
from memspan.text.template import Context
from memspan.types import Span

OFFSET = 16


def test_packing_writes_what_its_definition_says_token_by_token() -> None:
    contexts = [random_context(3, 4, 2), random_context(3, 1, 2), random_context(0, 5, 0)]
    packed = pack_contexts(contexts, OFFSET)
    T = 9
    for row, context in enumerate(contexts):
        pad = T - len(context.ids)
        for t in range(T):
            place = t - pad
            inside = place >= 0
            behind_prefix = inside and place >= context.routes.start
            assert bool(packed.valid[row, t]) is inside
            assert bool(packed.sees_memory[row, t]) is behind_prefix
            assert bool(packed.routes[row, t]) is (behind_prefix and place < context.routes.end)
            if inside:
                assert packed.ids[row, t] == context.ids[place]
                assert packed.positions[row, t] == place + (OFFSET if behind_prefix else 0)


def test_a_context_is_packed_the_same_alone_and_in_a_batch() -> None:
    contexts = [random_context(3, 4, 2), random_context(3, 1, 2), random_context(3, 30, 2)]
    together = pack_contexts(contexts, OFFSET)
    for row, context in enumerate(contexts):
        alone = pack_contexts([context], OFFSET)
        for name in ("ids", "positions", "valid", "sees_memory", "routes"):
            assert torch.equal(getattr(together, name)[row, -len(context.ids) :], getattr(alone, name)[0]), name
        assert together.valid[row].sum() == len(context.ids)
        assert together.routes[row].sum() == context.routes.end - context.routes.start


def test_a_token_of_id_zero_is_no_padding() -> None:
    packed = pack_contexts([Context((0, 0, 0), Span(1, 2)), Context((0,) * 5, Span(1, 2))], OFFSET)
    assert packed.valid.sum(1).tolist() == [3, 5]


def test_moving_a_batch_keeps_every_field_in_its_place() -> None:
    packed = pack_contexts([random_context(3, 4, 2), random_context(3, 1, 2)], OFFSET)
    moved = packed.to(torch.device("meta"))
    for name in ("ids", "positions", "valid", "sees_memory", "routes"):
        assert getattr(moved, name).device.type == "meta" and getattr(moved, name).dtype == getattr(packed, name).dtype
    again = packed.to(torch.device("cpu"))
    assert all(torch.equal(getattr(again, n), getattr(packed, n)) for n in ("sees_memory", "routes", "valid"))


@pytest.mark.parametrize("max_tokens", [1, 7, 40, 100, 10_000])
def test_length_batches_hold_every_index_once_within_the_limit_and_longest_first(max_tokens: int) -> None:
    lengths = torch.randint(1, 60, (83,)).tolist()
    batches = list(length_batches(lengths, max_tokens))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= max_tokens
    in_order = [lengths[index] for batch in batches for index in batch]
    assert in_order == sorted(lengths, reverse=True)


@pytest.mark.parametrize("max_tokens", [100, 1000])
def test_length_batches_are_as_full_as_the_limit_and_their_padding_allow(max_tokens: int) -> None:
    lengths = torch.randint(1, 60, (300,)).tolist()
    batches = list(length_batches(lengths, max_tokens))
    for batch, following in itertools.pairwise(batches):
        own = sum(lengths[index] for index in batch)
        padded = (len(batch) + 1) * lengths[batch[0]]
        wasteful = 1 - (own + lengths[following[0]]) / padded > 0.05 and own >= max_tokens // 4
        assert padded > max_tokens or wasteful, f"{following[0]} would have fitted"


def test_length_batches_of_passages_waste_less_than_a_twentieth() -> None:
    lengths = (120 * torch.empty(192).log_normal_(0.0, 0.5)).clamp(8, 512).int().tolist()
    batches = list(length_batches(lengths, 2048))
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert 1 - sum(lengths) / padded < 0.05
    assert len(batches) < 1.6 * sum(lengths) / 2048, "and are not many small ones"


def test_no_sequences_make_no_batches() -> None:
    assert list(length_batches([], 100)) == []


def test_shares_are_even_and_hold_every_place_once() -> None:
    sizes = [5, 100, 3, 60, 41, 0, 7]
    given = even_shares(sizes, 3)
    assert sorted(place for places in given for place in places) == list(range(7))
    loads = [sum(sizes[place] for place in places) for places in given]
    assert max(loads) == 100 and min(loads) >= 50
    assert even_shares([], 2) == [[], []]
