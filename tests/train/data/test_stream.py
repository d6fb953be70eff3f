"""The stream of questions: drawn by weight, each once before any again, resumable and shardable exactly."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from typing import Any

import pytest
from made import questions

from memspan.errors import DataError
from memspan.train.data.stream import ExampleStream, by_source

SOURCES = {"a": questions(30), "b": questions(50, 40, source="b"), "c": questions(7, 100, source="c")}


def stream(batch_size: int = 4, **options: Any) -> ExampleStream:
    return ExampleStream(SOURCES, batch_size, **options)


def ids(batches: Any, count: int) -> list[list[str]]:
    return [[found.id for found in batch] for batch in islice(batches, count)]


def test_the_order_is_the_seeds() -> None:
    assert ids(stream(), 50) == ids(stream(), 50) != ids(stream(seed=1), 50)


@pytest.mark.parametrize("one_source", [True, False])
def test_every_question_comes_once_before_any_comes_again(one_source: bool) -> None:
    given = stream(one_source_per_batch=one_source)
    seen: dict[str, list[str]] = {name: [] for name in SOURCES}
    for batch in islice(given, 200):
        for found in batch:
            seen["a" if found.source == "zoo" else found.source].append(found.id)
    for name, found in seen.items():
        size = len(SOURCES[name])
        turns = [found[start : start + size] for start in range(0, len(found) - size + 1, size)]
        assert len(turns) > 1
        assert all(sorted(turn) == sorted(question.id for question in SOURCES[name]) for turn in turns)
        assert turns[0] != turns[1], "every turn has an order of its own"
        assert given.epochs[name] == pytest.approx(len(found) / size)


def test_a_batch_is_of_one_source_or_of_several() -> None:
    assert all(len({found.source for found in batch}) == 1 for batch in islice(stream(), 50))
    mixed = [len({found.source for found in batch}) for batch in islice(stream(one_source_per_batch=False), 50)]
    assert max(mixed) > 1


@pytest.mark.parametrize("one_source", [True, False])
def test_sources_are_drawn_by_weight(one_source: bool) -> None:
    given = stream(weights={"a": 6, "b": 3, "c": 1}, one_source_per_batch=one_source)
    drawn = Counter(found.source for batch in islice(given, 3000) for found in batch)
    total = sum(drawn.values())
    assert drawn["zoo"] / total == pytest.approx(0.6, abs=0.03)
    assert drawn["c"] / total == pytest.approx(0.1, abs=0.02)


def test_without_weights_sources_are_drawn_by_size() -> None:
    drawn = Counter(found.source for batch in islice(stream(), 3000) for found in batch)
    assert drawn["b"] / sum(drawn.values()) == pytest.approx(50 / 87, abs=0.03)


@pytest.mark.parametrize("stop", [0, 1, 7, 60])
def test_a_stream_continues_exactly_from_its_state(stop: int) -> None:
    whole = ids(stream(), 120)
    first = stream()
    ids(first, stop)
    state = json.loads(json.dumps(first.state_dict()))
    other = stream()
    ids(other, 13)  # whatever it did before
    other.load_state_dict(state)
    assert ids(other, 120 - stop) == whole[stop:]
    assert other.epochs == pytest.approx(next_epochs(120))


def next_epochs(batches: int) -> dict[str, float]:
    given = stream()
    ids(given, batches)
    return given.epochs


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_see_what_one_sees(world: int) -> None:
    whole = ids(stream(), 12 * world)
    ranks = [ids(stream(rank=rank, world=world), 12) for rank in range(world)]
    assert [batch for step in zip(*ranks, strict=True) for batch in step] == whole


def test_a_run_continues_with_another_number_of_ranks() -> None:
    whole = ids(stream(), 12)
    two = [stream(rank=rank, world=2) for rank in range(2)]
    for rank in two:
        ids(rank, 3)
    assert two[0].state_dict() == two[1].state_dict()
    one = stream()
    one.load_state_dict(two[1].state_dict())
    assert ids(one, 6) == whole[6:]


def test_a_state_of_other_data_is_refused_and_says_what_changed() -> None:
    state = stream().state_dict()
    for options, changed in (({"seed": 1}, "seed"), ({"weights": {"a": 1, "b": 1, "c": 2}}, "weights")):
        with pytest.raises(DataError, match=rf"changed since its checkpoint \({changed}\)"):
            stream(**options).load_state_dict(state)
    with pytest.raises(DataError, match="batch_size"):
        stream(5).load_state_dict(state)
    with pytest.raises(DataError, match="questions"):
        ExampleStream({**SOURCES, "c": questions(7, 101, source="c")}, 4).load_state_dict(state)


def test_caps_keep_the_same_questions_always() -> None:
    given = stream(caps={"a": 3}, weights={"a": 1, "b": 1, "c": 1})
    assert given.num_questions == {"a": 3, "b": 50, "c": 7}
    assert len({found.id for batch in islice(given, 100) for found in batch if found.source == "zoo"}) == 3
    assert ExampleStream(SOURCES, 1, caps=5).num_questions == {"a": 5, "b": 5, "c": 5}


def test_a_batch_may_be_larger_than_its_source() -> None:
    given = ExampleStream({"c": SOURCES["c"]}, 16)
    assert max(Counter(found.id for found in next(given)).values()) <= 3


def test_by_source_keeps_the_order() -> None:
    mixed = [*SOURCES["b"][:2], *SOURCES["a"][:1], *SOURCES["b"][2:3]]
    assert by_source(mixed) == {"b": SOURCES["b"][:3], "zoo": SOURCES["a"][:1]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch size 0"),
        ({"rank": 2, "world": 2}, "rank 2 of 2"),
        ({"weights": {"a": 1, "b": 1}}, "c has no weight"),
        ({"weights": {"a": 1, "b": 1, "c": 0}}, "c has no weight"),
        ({"weights": {"a": 1, "b": 1, "c": 1, "d": 1}}, "given for d"),
        ({"sources": {}}, "no questions"),
        ({"sources": {"a": []}}, "no questions of a"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ExampleStream(**{"sources": SOURCES, "batch_size": 4, **options})
