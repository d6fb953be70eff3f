"""Several rounds of search: no trained model is needed, since text search leads from one document to the next."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import CopiedText, tiny_loaded

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.errors import MemspanError
from memspan.events import Done, RoundDone, RoundStarted
from memspan.generate.lexical import names_in, next_query
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.text.corpus import Skipped, read_paths
from memspan.text.packing import pack_contexts
from memspan.text.template import Passage
from memspan.types import Answer, Turn

SELECTORS = ("router", "lexical", "hybrid")

EXAMPLES = Path(__file__).parents[2] / "examples"
ASKED = [json.loads(line) for line in (EXAMPLES / "questions.jsonl").read_text().splitlines()]
FOLLOW_UPS = [json.loads(line) for line in (EXAMPLES / "follow_ups.jsonl").read_text().splitlines()]
TWO_HOPS = [asked for asked in ASKED if asked["needs"] == "two"]
SHORT = Sampling(max_new_tokens=3)


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Memory]:
    """The notes of examples/, in a model with room for several of them."""
    loaded = tiny_loaded()
    loaded.model.config.text_config.max_position_embeddings = 8192
    with Memory(MemoryBank.create(tmp_path_factory.mktemp("bank"), manifest_of(loaded)), loaded) as memory:
        memory.add(found for found in read_paths([EXAMPLES / "notes"]) if not isinstance(found, Skipped))
        yield memory


def _names(answer: Answer) -> list[list[str]]:
    return [[item.external_id.partition("notes/")[2] for item in found.chosen] for found in answer.rounds]


@pytest.mark.parametrize("asked", TWO_HOPS, ids=lambda asked: asked["documents"][-1])
def test_questions_of_two_hops_find_both_documents_in_two_rounds(memory: Memory, asked: dict[str, Any]) -> None:
    answer = memory.ask(asked["question"], selector="lexical", rounds=2, sampling=SHORT)
    wanted = {name.partition("notes/")[2] for name in asked["documents"]}
    assert len(answer.rounds) == 2 and all(found.chosen for found in answer.rounds)
    assert wanted <= {name for names in _names(answer) for name in names}
    assert len(answer.evidence) <= 4
    assert answer.rounds[1].query.startswith(asked["question"] + " ")


@pytest.mark.parametrize("asked", FOLLOW_UPS, ids=lambda asked: asked["question"])
def test_a_follow_up_finds_what_it_speaks_of_and_another_subject_its_own(memory: Memory, asked: dict[str, Any]) -> None:
    turns = [Turn(*turn) for turn in asked["turns"]]
    answer = memory.ask(asked["question"], history=turns, selector="lexical", max_documents=1, sampling=SHORT)
    assert f"notes/{_names(answer)[0][0]}" in asked["documents"]
    assert answer.rounds[0].query == asked["question"]


def test_one_round_does_not_reach_the_second_document(memory: Memory) -> None:
    asked = TWO_HOPS[0]
    answer = memory.ask(asked["question"], selector="lexical", sampling=SHORT)
    assert "people/yuki-tanabe.md" not in _names(answer)[0]
    answer = memory.ask(asked["question"], selector="lexical", rounds=2, documents_per_round=1, sampling=SHORT)
    assert _names(answer) == [["projects/piping.md"], ["people/yuki-tanabe.md"]]
    assert [found.ended for found in answer.rounds] == ["more", "limit"]


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("route_tokens", ["all", "newest"])
def test_a_batch_looks_as_often_as_each_question_alone(memory: Memory, selector: str, route_tokens: Any) -> None:
    questions = [TWO_HOPS[0]["question"], "zeppelin", "What is the price of the Amber scale?"]
    options: Any = {"selector": selector, "rounds": 3, "sampling": SHORT, "route_tokens": route_tokens}
    together = memory.ask_batch(questions, **options)
    for question, answer in zip(questions, together, strict=True):
        alone = memory.ask(question, **options)
        assert (answer.text, _names(answer)) == (alone.text, _names(alone))
        assert [found.ended for found in answer.rounds] == [found.ended for found in alone.rounds]
        ids = [item.document_id for item in answer.evidence]
        assert len(set(ids)) == len(ids) <= 5, "nothing is read twice"
    if selector == "lexical":
        assert [len(answer.rounds) for answer in together][1] == 1, "nothing found ends it at once"
        assert together[1].rounds[0].ended == "nothing"


def test_what_is_routed_again_is_the_question_with_the_texts_found(memory: Memory) -> None:
    question = TWO_HOPS[0]["question"]
    first, second = memory.ask(question, selector="router", rounds=2, sampling=SHORT).rounds
    assert [layer.layer for layer in second.routed] == list(memory.loaded.model.config.layers)
    assert [layer.scores for layer in first.routed] != [layer.scores for layer in second.routed]
    (once,) = memory.ask(question, selector="router", documents_per_round=2, sampling=SHORT).rounds
    assert (once.routed, once.chosen) == (first.routed, first.chosen)


def test_limits_of_searched_rounds(memory: Memory) -> None:
    question = TWO_HOPS[0]["question"]
    options: Any = {"selector": "lexical", "sampling": SHORT}
    answer = memory.ask(question, rounds=4, max_documents=3, **options)
    assert len(answer.evidence) == 3 and answer.rounds[-1].ended == "limit"
    question = TWO_HOPS[2]["question"]
    answer = memory.ask(question, rounds=1, documents_per_round=2, **options)
    tokens = answer.rounds[0].num_injected_tokens
    assert 0 < tokens < answer.num_prompt_tokens
    for limit, count in ((tokens, 2), (tokens - 1, 1), (0, 0)):
        limited = memory.ask(question, rounds=1, documents_per_round=2, max_injected_tokens=limit, **options)
        assert (len(limited.evidence), limited.rounds[0].left_out) == (count, 2 - count)
    assert limited.rounds[0].ended == "room"
    for wrong in ({"rounds": 0}, {"documents_per_round": 0}, {"max_injected_tokens": -1}, {"route_tokens": "some"}):
        with pytest.raises(MemspanError, match="must be"):
            memory.ask(question, **options, **wrong)


def test_events_of_searched_rounds(memory: Memory) -> None:
    events = list(memory.events(TWO_HOPS[0]["question"], selector="lexical", rounds=2, sampling=SHORT))
    assert [type(event) for event in events[:4]] == [RoundStarted, RoundDone] * 2
    assert isinstance(events[-1], Done)


def test_texts_read_before_do_not_route_with_newest(memory: Memory) -> None:
    template = memory.loaded.template
    passages = [Passage(1, "The first text."), Passage(22, "Another text."), Passage(3, "The last.")]
    whole = template.context("Where?", passages)
    context = template.context("Where?", passages, read=[1, 3])
    assert context.ids == whole.ids and context.routes == whole.routes
    routes = pack_contexts([context], 2).routes[0].tolist()
    text = template.text([token for token, on in zip(context.ids, routes, strict=True) if on])
    assert "Another text." in text and "Question: Where?" in text
    assert "first" not in text and "last" not in text


# --- the words of a further round -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("The dog of Ann Lee lives in Oslo. He is old.", ["Ann", "Lee", "Oslo"]),
        ("# Title Here\nOwner: Bob", ["Here"]),
        ("He met O'Neil, d'Artagnan and Jean-Luc.", ["O'Neil", "Jean-Luc"]),
        ("the 3M of Łódź and Ärzte", ["Łódź", "Ärzte"]),
        ("no names", []),
        ("漢字 だけ", []),
        ("", []),
    ],
)
def test_names_are_capitalised_words_inside_sentences(text: str, names: list[str]) -> None:
    assert names_in(text) == names


def test_names_are_found_in_linear_work() -> None:
    text = CopiedText('we met Ada\' and --Bob in "Rome", ' * 500)
    assert names_in(text) == ["Ada'", "Bob", "Rome"]
    assert text.copied[0] <= len(text)


def test_the_next_query_adds_the_names_that_the_question_lacks(memory: Memory) -> None:
    (found, *_) = memory.search("Piping project", limit=1)
    query = next_query("Who leads Piping?", [found])
    assert query.startswith("Who leads Piping? ") and {"Yuki", "Tanabe"} <= set(query.split())
    assert query.split().count("Piping?") + query.split().count("Piping") == 1
    assert next_query("Who?", []) == "Who?"
