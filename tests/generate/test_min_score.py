"""`min_score` of a question: what scores less is read neither as text nor as latents, whoever chooses and answers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_loaded

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.texts import TextBank
from memspan.errors import MemspanError
from memspan.events import Done
from memspan.generate.interleave import Plan
from memspan.generate.memory import Memory
from memspan.generate.prompts import NOTHING
from memspan.generate.sampling import Sampling
from memspan.generate.textual import TextMemory
from memspan.types import Answer, Document

SHORT = Sampling(max_new_tokens=4)
QUESTION = "Where does the otter of Rome live?"
ANIMALS = ("otter", "heron", "badger", "newt", "falcon")
RANKING = ("router", "lexical", "hybrid")


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Memory]:
    loaded = tiny_loaded(router_trained=True)
    with Memory(MemoryBank.create(tmp_path_factory.mktemp("least") / "bank", manifest_of(loaded)), loaded) as made:
        texts = [f"The {animal} of {city} lives there." for city in ("Rome", "Quito") for animal in ANIMALS]
        made.add(Document(f"note-{place}", text) for place, text in enumerate(texts))
        yield made


class Hears:
    """Another model, which keeps what it was asked."""

    name, context = "hears", 8000

    def __init__(self) -> None:
        self.asked: list[str] = []

    def stream(self, messages: Any, sampling: Sampling) -> Iterator[str]:
        self.asked.append(messages[-1].text)
        yield "It is not said. [0]"


def attended(answer: Answer) -> set[int]:
    return {document_id for layer in answer.routed for document_id in layer.document_ids}


def middle_score(memory: Memory, selector: str) -> float:
    """A score that some documents of the question have, and some have not."""
    scores = sorted({item.score for item in memory.search(QUESTION, selector=selector, limit=20)})
    assert len(scores) > 2
    return scores[len(scores) // 2]


@pytest.mark.parametrize("documents", [0, 1, 3, 20])
@pytest.mark.parametrize("selector", RANKING)
def test_what_scores_less_is_read_in_no_form(memory: Memory, selector: str, documents: int) -> None:
    if selector == "lexical" and not documents:
        pytest.skip("there is nothing to answer from")
    how: Any = {"selector": selector, "max_documents": documents, "sampling": SHORT}
    least = middle_score(memory, selector)
    every, some = memory.ask(QUESTION, **how), memory.ask(QUESTION, min_score=least, **how)
    enough = {x.document_id for x in memory.search(QUESTION, selector=selector, limit=20, min_score=least)}
    assert [x.external_id for x in some.evidence] == [x.external_id for x in every.evidence if x.score >= least]
    assert attended(some) == attended(every) & enough and some.answered
    assert (attended(some) < attended(every)) or selector == "lexical"
    assert memory.ask(QUESTION, min_score=0, **how).evidence == every.evidence


@pytest.mark.parametrize("text_only", [False, True])
@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("selector", RANKING)
def test_where_none_is_left_nothing_was_found(memory: Memory, selector: str, rounds: int, text_only: bool) -> None:
    how: Any = {"selector": selector, "rounds": rounds, "text_only": text_only, "sampling": SHORT}
    answer = memory.ask(QUESTION, min_score=1.0, **how)
    assert (answer.answered, answer.evidence, attended(answer)) == (False, (), set())
    assert [one.ended for one in answer.rounds] == ["nothing"]
    nowhere = memory.ask("zebra", selector="lexical", sampling=SHORT)
    assert nowhere.answered is False, "as where a search finds nothing"
    assert answer.text == memory.ask(QUESTION, selector="lexical", sampling=SHORT, min_score=1).text, "no latents"


@pytest.mark.parametrize("documents", [0, 3])
@pytest.mark.parametrize("selector", ["router", "hybrid"])
def test_each_question_of_a_batch_has_what_it_has_alone(memory: Memory, selector: str, documents: int) -> None:
    questions = [QUESTION, "falcon", "What is there?"]
    tops = [memory.search(one, selector=selector, limit=1)[0].score for one in questions]
    least = sorted(tops)[1]  # one question has none that scores so much
    how: Any = {"selector": selector, "max_documents": documents, "min_score": least, "sampling": SHORT}
    together = memory.ask_batch(questions, **how)
    assert sorted(answer.answered for answer in together)[0] is False
    for one, alone in zip(together, (memory.ask(question, **how) for question in questions), strict=True):
        assert (one.text, one.answered, attended(one)) == (alone.text, alone.answered, attended(alone))
        assert [x.document_id for x in one.evidence] == [x.document_id for x in alone.evidence]


@pytest.mark.parametrize("selector", RANKING)
def test_another_model_reads_no_more(memory: Memory, selector: str) -> None:
    other = Memory(memory.bank, memory.loaded, answerer=(hears := Hears()))
    least = middle_score(memory, selector)
    found = memory.search(QUESTION, selector=selector, limit=20, min_score=least)
    answer = other.ask(QUESTION, selector=selector, max_documents=20, min_score=least)
    assert {x.external_id for x in answer.evidence} <= {x.external_id for x in found} and answer.evidence
    nothing = other.ask(QUESTION, selector=selector, min_score=1)
    assert NOTHING in hears.asked[-1] and (nothing.answered, nothing.evidence) == (False, ())


def test_a_bank_that_is_searched_by_words_reads_no_more(memory: Memory) -> None:
    with contextlib.closing(TextBank.open(memory.bank.folder)) as bank:
        texts, least = TextMemory(bank, Hears()), middle_score(memory, "lexical")
        for score, wanted in ((least, True), (1, False)):
            done = list(texts.events(QUESTION, selector="lexical", min_score=score))[-1]
            assert isinstance(done, Done) and bool(done.answer.evidence) is wanted
            assert all(item.score >= score for item in done.answer.evidence)


def test_a_reranker_orders_what_is_left(memory: Memory) -> None:
    how: Any = {"selector": "lexical", "max_documents": 20, "sampling": SHORT}
    least = middle_score(memory, "lexical")
    plain, anew = (memory.ask(QUESTION, min_score=least, rerank=name, **how) for name in ("none", "likelihood"))
    assert {x.external_id for x in anew.evidence} == {x.external_id for x in plain.evidence} != set()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"min_score": -0.1}, ValueError, "min_score is from 0 to 1, not -0.1"),
        ({"min_score": 1.01}, ValueError, "min_score is from 0 to 1, not 1.01"),
        ({"min_score": math.nan}, ValueError, "min_score is from 0 to 1, not nan"),
        ({"min_score": math.inf}, ValueError, "min_score is from 0 to 1, not inf"),
        ({"min_score": "0.5"}, TypeError, "min_score is a number, not '0.5'"),
        ({"min_score": True}, TypeError, "min_score is a number, not True"),
        ({"min_score": [0.5]}, TypeError, r"min_score is a number, not \[0.5\]"),
        ({"min_score": 0.5, "route_answer": True}, MemspanError, "route_answer attends to latents of any score"),
        ({"minscore": 0.5}, TypeError, "did you mean 'min_score'"),
    ],
)
def test_what_means_nothing_is_refused(memory: Memory, options: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        memory.ask(QUESTION, **options)
    with pytest.raises(error, match=said):
        memory.check(QUESTION, **options)


def test_what_the_model_names_by_itself_has_no_least_score() -> None:
    with pytest.raises(MemspanError, match="the selector generate attends to latents of any score, and min_score to"):
        Plan("generate", 1, 3, min_score=0.0)
    assert Plan("generate", 1, 3).min_score is None


@pytest.mark.parametrize("least", ["0.5", True, math.nan])
def test_a_search_refuses_the_same(memory: Memory, least: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="min_score is"):
        memory.search(QUESTION, min_score=least)


@pytest.mark.parametrize("selector", ["router", "hybrid"])
def test_scores_without_a_bound_have_no_least_one_to_ask_with(tmp_path: Path, selector: str) -> None:
    loaded = tiny_loaded(similarity="dot")
    with Memory(MemoryBank.create(tmp_path / "dot", manifest_of(loaded)), loaded) as memory:
        memory.add([Document("a", "The otter of Rome."), Document("b", "A lynx."), Document("c", "A newt.")])
        with pytest.raises(MemspanError, match=f"scores of the selector {selector} with this model mean something"):
            memory.ask(QUESTION, selector=selector, min_score=0.5)
        assert memory.ask("otter", selector="lexical", min_score=0.01, sampling=SHORT).evidence


def test_documents_without_latents_are_left_out_by_their_words(tmp_path: Path) -> None:
    loaded = tiny_loaded(router_trained=True)
    with Memory(MemoryBank.create(tmp_path / "later", manifest_of(loaded)), loaded) as memory:
        memory.add([Document("a", "The otter of Rome."), Document("b", "A lynx of Quito.")], later=True)
        (found,) = memory.search("otter", selector="hybrid")
        answer = memory.ask("otter", selector="hybrid", min_score=found.score, sampling=SHORT)
        assert [x.external_id for x in answer.evidence] == ["a"] and answer.answered
        assert memory.ask("otter", selector="hybrid", min_score=1, sampling=SHORT).answered is False
        assert memory.ask("zebra", selector="hybrid", sampling=SHORT).answered is False, "no layer routed to anything"
