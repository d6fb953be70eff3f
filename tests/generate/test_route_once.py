"""A question is routed when it is looked up; its answer attends to what was selected then, unless it routes again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_loaded

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.scope import EVERYTHING
from memspan.errors import MemspanError
from memspan.generate.context import fitted_context, room_for
from memspan.generate.decode import Decoding
from memspan.generate.finder import Finder, routing_of
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.model.convert import LoadedModel
from memspan.routing.local import ReplayedMemory, SourceMemory
from memspan.types import Answer, Document, Retrieved

SHORT = Sampling(max_new_tokens=6)
QUESTIONS = ["Where is the otter?", "The heron of place 7, and the river", "Who knows place 3?"]
ANIMALS = ("otter", "heron", "badger", "newt", "falcon")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded(router_trained=True)


@pytest.fixture(scope="module")
def memory(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Memory]:
    bank = MemoryBank.create(tmp_path_factory.mktemp("route") / "bank", manifest_of(loaded))
    with Memory(bank, loaded) as opened:
        texts = [f"The {animal} lives at place {place} by the river." for place in range(4) for animal in ANIMALS]
        opened.add(Document(f"note-{place}", text) for place, text in enumerate(texts))
        yield opened


@pytest.fixture
def routings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The MSA layer of every routing over documents."""
    layers: list[int] = []
    route = SourceMemory.route

    def counted(self: SourceMemory, layer: int, *arguments: Any) -> Retrieved:
        layers.append(layer)
        return route(self, layer, *arguments)

    monkeypatch.setattr(SourceMemory, "route", counted)
    return layers


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ({"selector": "router"}, 1),
        ({"selector": "hybrid"}, 1),
        ({"selector": "hybrid", "text_only": True}, 1),
        ({"selector": "hybrid", "max_documents": 0}, 1),
        ({"selector": "hybrid", "rounds": 2}, 2),
        ({"selector": "hybrid", "route_answer": True}, 2),
        ({"selector": "lexical"}, 0),
        ({"selector": "lexical", "text_only": True}, 0),
        ({"selector": "lexical", "rounds": 2}, 0),
        ({"selector": "lexical", "route_answer": True}, 1),
        ({"max_documents": 0}, 1),
    ],
    ids=str,
)
def test_how_often_every_msa_layer_routes(
    memory: Memory, loaded: LoadedModel, routings: list[int], options: dict[str, Any], times: int
) -> None:
    memory.ask(QUESTIONS[0], sampling=SHORT, **options)
    assert routings == [*loaded.model.config.layers] * times


@pytest.mark.parametrize("selector", ["router", "hybrid"])
def test_the_answer_attends_to_what_the_question_was_routed_to(memory: Memory, selector: str) -> None:
    answers = memory.ask_batch(QUESTIONS, selector=selector, sampling=SHORT)
    assert len({answer.routed for answer in answers}) > 1
    for question, answer in zip(QUESTIONS, answers, strict=True):
        assert answer.routed == answer.rounds[-1].routed and answer.routed
        alone = memory.ask(question, selector=selector, sampling=SHORT)
        assert (alone.text, _documents(alone)) == (answer.text, _documents(answer))
        again = memory.ask(question, selector=selector, sampling=SHORT, route_answer=True)
        assert _documents(again) != _documents(answer), "with its texts a question is routed elsewhere"


def _documents(answer: Answer) -> list[tuple[int, ...]]:
    return [layer.document_ids for layer in answer.routed]


def test_what_is_recalled_is_what_was_routed_to_bit_for_bit(memory: Memory, loaded: LoadedModel) -> None:
    """From the memory that routed, and from one of the same snapshot that has routed nothing."""
    with memory.bank.snapshot() as snapshot:
        for questions in ([QUESTIONS[0]], [QUESTIONS[2], QUESTIONS[0], QUESTIONS[1]]):
            contexts = [loaded.template.context(question) for question in questions]
            finder, other = (Finder(loaded, snapshot, EVERYTHING) for _ in range(2))
            expected = Decoding(loaded, contexts, finder.memory, SHORT)
            list(expected.run())
            routed = [routing_of(expected.retrieved, row) for row in range(len(questions))]
            for source in (finder.memory, other.memory):
                found = Decoding(loaded, contexts, ReplayedMemory(source, routed), SHORT)
                list(found.run())
                assert [row.ids for row in found.rows] == [row.ids for row in expected.rows]
                for layer in loaded.model.config.layers:
                    for field in fields(Retrieved):
                        pair = [getattr(one.retrieved[layer], field.name) for one in (found, expected)]
                        is_tensor = isinstance(pair[0], torch.Tensor)
                        assert torch.equal(*pair) if is_tensor else pair[0] == pair[1], field.name


@pytest.mark.parametrize("options", [{"selector": "lexical"}, {"selector": "hybrid", "text_only": True}], ids=str)
def test_an_answer_from_text_alone_is_the_backbones(memory: Memory, loaded: LoadedModel, options: dict) -> None:
    answer = memory.ask(QUESTIONS[0], sampling=SHORT, **options)
    room = room_for(loaded, SHORT.max_new_tokens, None)
    context = fitted_context(loaded, QUESTIONS[0], answer.evidence, room).context
    decoding = Decoding(loaded, [context], None, SHORT)
    list(decoding.run())
    assert answer.evidence and answer.text == decoding.rows[0].text.strip() and answer.routed == ()
    layers = {item.layers for item in answer.evidence}
    assert (layers == {None}) == (options["selector"] == "lexical")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selector": "lexical", "max_documents": 0}, "lexical, which routes nothing, leaves nothing to answer from"),
        ({"text_only": True, "max_documents": 0}, "text_only leaves nothing to answer from; allow at least one"),
        ({"text_only": True, "route_answer": True}, "text_only leaves the latents out, which route_answer reads"),
    ],
)
def test_options_that_leave_nothing_or_contradict_each_other_are_refused(
    memory: Memory, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MemspanError, match=message):
        memory.ask(QUESTIONS[0], **options)


def test_without_text_an_untrained_router_is_asked(loaded: LoadedModel, tmp_path: Path) -> None:
    untrained = tiny_loaded()
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(untrained)), untrained) as memory:
        memory.add([Document("a", "The otter of Rome"), Document("b", "The heron of Oslo")])
        assert memory.ask("otter?", sampling=SHORT).selector == "lexical"
        assert memory.ask("otter?", sampling=SHORT, max_documents=0).selector == "router"
