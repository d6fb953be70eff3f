"""Groups of alike questions: near by embedding, no passage twice in one, nothing lost; and the way to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from made import questions, written

from memspan.errors import DataError
from memspan.train.data.mix import mix, mixture_of, read_mixture, write_mixture
from memspan.train.data.neighbours import NeighbourSettings, in_groups
from memspan.train.data.stream import ExampleStream
from memspan.train.teacher import SentenceTeacher

# Question n is about topic n % 5.
MADE = questions(40)
TOPICS = {question.question: place % 5 for place, question in enumerate(MADE)}


def by_topic(texts: Sequence[str]) -> torch.Tensor:
    return torch.eye(5)[[TOPICS.get(text, 0) for text in texts]]


def test_groups_are_alike_and_nothing_is_lost() -> None:
    found = in_groups(MADE, by_topic, NeighbourSettings("m", size=4, depth=8), "seed")
    assert sorted(q.id for q in found) == sorted(q.id for q in MADE)
    groups = [found[start : start + 4] for start in range(0, 40, 4)]
    assert all(len({TOPICS[q.question] for q in group}) == 1 for group in groups)
    assert found == in_groups(MADE, by_topic, NeighbourSettings("m", size=4, depth=8), "seed")
    assert found != in_groups(MADE, by_topic, NeighbourSettings("m", size=4, depth=8), "other")


def test_no_two_of_a_group_share_a_positive_and_rests_come_last() -> None:
    shared = [replace(question, positives=MADE[0].positives) if place < 10 else question for place, question in
              enumerate(MADE)]  # fmt: skip
    found = in_groups(shared, by_topic, NeighbourSettings("m", size=4, depth=40), "seed")
    assert sorted(q.id for q in found) == sorted(q.id for q in MADE)
    full = 0
    for start in range(0, 40, 4):
        names = [d.external_id for q in found[start : start + 4] for d in q.positives]
        if len({TOPICS[q.question] for q in found[start : start + 4]}) > 1:
            break
        full += 1
        assert len(names) == len(set(names))
    assert full >= 4


@pytest.mark.parametrize("values", [{"size": 0}, {"size": 9, "depth": 8}])
def test_sizes_that_make_no_sense_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"size|depth"):
        NeighbourSettings("m", **values)


def test_a_batch_holds_whole_groups() -> None:
    stream = ExampleStream({"zoo": MADE}, 8, group=4)
    place = {question.id: number for number, question in enumerate(MADE)}
    orders = []
    for batch in islice(stream, 10):
        starts = [place[q.id] for q in batch]
        for start in (0, 4):
            assert starts[start] % 4 == 0
            assert starts[start : start + 4] == list(range(starts[start], starts[start] + 4))
        orders += starts
    assert sorted(orders[:40]) == list(range(40)) and orders[:40] != orders[40:]
    with pytest.raises(DataError, match="group"):
        ExampleStream({"zoo": MADE}, 4, group=2).load_state_dict(stream.state_dict())


def test_a_mixture_in_groups_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "a.jsonl", MADE)
    asked = []

    def load(name: str) -> SentenceTeacher:
        asked.append(name)
        return SentenceTeacher(by_topic)

    monkeypatch.setattr(SentenceTeacher, "load", load)
    values = {
        "sources": {"one": {"files": "a.jsonl"}},
        "holdout": {"questions": 4, "bank": 8},
        "neighbours": {"model": "some-model", "size": 3, "depth": 12},
    }
    mixture = mix(mixture_of(values), tmp_path)
    assert asked == ["some-model"] and mixture.group == 3
    first = mixture.train[:3]
    assert len({TOPICS[question.question] for question in first}) == 1
    write_mixture(mixture, tmp_path / "out")
    back = read_mixture(tmp_path / "out")
    assert back.group == 3 and back.train == mixture.train
