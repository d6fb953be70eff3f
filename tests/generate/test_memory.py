from __future__ import annotations

import dataclasses
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import endless_loaded, save_backbone, tiny_loaded

from memspan.bank.add import add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.errors import (
    BankBusy,
    BankError,
    BankMismatch,
    EmptyBank,
    MemspanError,
    NotEncoded,
    QuestionError,
    UnknownDocument,
)
from memspan.generate.finder import Finder
from memspan.generate.interleave import MIN_SHARE
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.model.convert import LoadedModel, convert
from memspan.routing.local import LocalMemory
from memspan.text.template import Context, Passage, encoded_text
from memspan.types import Answer, Document, Evidence, Retrieved, Span

SELECTORS = ("router", "lexical", "hybrid")

SHORT = Sampling(max_new_tokens=8)
SAMPLED = Sampling(max_new_tokens=8, temperature=1.0, top_p=0.9, seed=3)
CITIES = ("Rome", "Oslo", "Lima", "Bern", "Cairo", "Quito", "Paris", "Tokyo", "Delhi", "Accra")
ANIMALS = ("otter", "heron", "badger", "newt", "falcon", "lynx", "marmot", "viper", "ibis", "gecko")
DOCUMENTS = [
    Document(f"{city}.txt", f"The {animal} of {city} lives at number {place}.", city, {"place": place})
    for place, (city, animal) in enumerate(zip(CITIES, ANIMALS, strict=True))
] + [Document(f"note-{place}", f"A note about {city} and the {city} river.") for place, city in enumerate(CITIES)]
QUESTIONS = [
    "Where does the otter live?",
    "Tell me of the Paris river",
    "lynx",
    "What about Tokyo, and the ibis of Delhi?",
]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return endless_loaded()


@pytest.fixture(scope="module")
def trained() -> LoadedModel:
    """The same model, said to have a trained router."""
    return tiny_loaded(router_trained=True)


@pytest.fixture
def memory(filled: Path, loaded: LoadedModel) -> Iterator[Memory]:
    with Memory(MemoryBank.open(filled), loaded) as memory:
        yield memory


@pytest.fixture
def empty(tmp_path: Path, loaded: LoadedModel) -> Iterator[Memory]:
    """A memory of an empty bank."""
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(loaded)), loaded) as memory:
        yield memory


def _passages(found: Sequence[Evidence]) -> list[Passage]:
    """What is put before the model of some evidence: the oldest first."""
    dated = sorted(found, key=lambda item: (item.date, item.document_id))
    return [Passage(item.document_id, encoded_text(item.title, item.text), item.date[:10]) for item in dated]


def _without_timings(answer: Answer) -> tuple[Any, ...]:
    return tuple(getattr(answer, name) for name in Answer.__slots__ if name != "timings")


# --- ask, ask_batch, stream -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_batch_answers_every_question_as_alone(memory: Memory, selector: str) -> None:
    for sampling in (SHORT, SAMPLED):
        alone = [memory.ask(question, selector=selector, sampling=sampling) for question in QUESTIONS]
        together = memory.ask_batch(QUESTIONS, selector=selector, sampling=sampling)
        # Scores of the router are sums of floats: everything else is equal to the bit.
        for one, other in zip(together, alone, strict=True):
            assert (one.question, one.text, one.finish_reason) == (other.question, other.text, other.finish_reason)
            assert (one.num_prompt_tokens, one.num_new_tokens) == (other.num_prompt_tokens, other.num_new_tokens)
            assert [item.external_id for item in one.evidence] == [item.external_id for item in other.evidence]
            assert [item.layers for item in one.evidence] == [item.layers for item in other.evidence]
            scores = [item.score for item in other.evidence]
            assert [item.score for item in one.evidence] == pytest.approx(scores, abs=1e-4)
    assert len({answer.text for answer in together}) > 1, "the questions are answered differently"


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("sampling", [SHORT, SAMPLED], ids=["greedy", "sampled"])
def test_streamed_pieces_join_to_the_answer(memory: Memory, selector: str, sampling: Sampling) -> None:
    answers: list[Answer] = []
    for question in QUESTIONS:
        pieces = list(memory.stream(question, selector=selector, sampling=sampling, on_answer=answers.append))
        asked = memory.ask(question, selector=selector, sampling=sampling)
        assert "".join(pieces).strip() == asked.text
        assert all(pieces), "no empty piece"
        assert _without_timings(answers[-1]) == _without_timings(asked)
    assert len(answers) == len(QUESTIONS)


def test_an_answer_counts_its_tokens_and_times_its_stages(memory: Memory, loaded: LoadedModel) -> None:
    answer = memory.ask(QUESTIONS[0], sampling=SHORT)
    assert answer.num_prompt_tokens == len(loaded.template.context(QUESTIONS[0], _passages(answer.evidence)).ids)
    assert (answer.num_new_tokens, answer.finish_reason) == (8, "length")
    assert list(answer.timings) == ["select", "prefill", "routing", "fetch", "decode"]
    assert {stage for stage, seconds in answer.timings.items() if not seconds} == {"routing", "fetch"}
    timings = memory.ask(QUESTIONS[0], sampling=SHORT, selector="router", route_answer=True).timings
    assert all(seconds > 0 for stage, seconds in timings.items() if stage != "fetch")


# --- evidence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selector", ["router", "lexical", "hybrid"])
def test_a_score_is_the_same_whatever_else_is_there(memory: Memory, selector: str) -> None:
    question = "Where does the otter of Rome live?"
    all_found = memory.search(question, selector=selector, limit=20)
    scores = [item.score for item in all_found]
    assert scores == sorted(scores, reverse=True) and 0 <= scores[-1] <= scores[0] <= 1
    found = memory.search(question, selector=selector, where={"external_id": all_found[0].external_id})
    # A layer that looked at others only is taken to score it as the last of those.
    assert [item.score for item in found] == [pytest.approx(scores[0], abs=0.03)], "not 1 because it is the only one"
    assert memory.ask(question, selector=selector, sampling=SHORT).evidence[0].score == pytest.approx(scores[0])


@pytest.mark.parametrize("selector", ["router", "lexical", "hybrid"])
def test_a_search_leaves_out_what_scores_less(memory: Memory, selector: str) -> None:
    every = memory.search(QUESTIONS[0], selector=selector, limit=20)
    least = every[len(every) // 2].score
    some = memory.search(QUESTIONS[0], selector=selector, limit=20, min_score=least)
    assert some == [item for item in every if item.score >= least] and 0 < len(some) <= len(every)
    assert memory.search(QUESTIONS[0], selector=selector, min_score=1.0) == []
    assert memory.search(QUESTIONS[0], selector=selector, limit=20, min_score=0.0) == every
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match="min_score is from 0 to 1"):
            memory.search(QUESTIONS[0], selector=selector, min_score=wrong)


def test_scores_without_a_bound_have_no_least_one(tmp_path: Path) -> None:
    loaded = tiny_loaded(similarity="dot")
    with Memory(MemoryBank.create(tmp_path / "dot", manifest_of(loaded)), loaded) as memory:
        memory.add(DOCUMENTS)
        assert memory.search(QUESTIONS[0], selector="router")[0].score == pytest.approx(1), "the ranking's own"
        for selector in ("router", "hybrid"):
            with pytest.raises(MemspanError, match=f"scores of the selector {selector} with this model mean something"):
                memory.search(QUESTIONS[0], selector=selector, min_score=0.5)
        assert memory.search(QUESTIONS[0], selector="lexical", min_score=0.01)


def test_evidence_is_the_stored_document_best_first(memory: Memory) -> None:
    answer = memory.ask("Where does the otter of Rome live?", sampling=SHORT)
    first = answer.evidence[0]
    document = DOCUMENTS[0]
    assert (first.external_id, first.title, first.text) == (document.external_id, document.title, document.text)
    assert (first.span, first.metadata) == (Span(0, len(document.text)), {"place": 0})
    assert first.layers is None, "nothing was routed"
    assert first.document_id == 1
    scores = [item.score for item in answer.evidence]
    assert scores == sorted(scores, reverse=True)
    assert all(score >= MIN_SHARE * scores[0] for score in scores)
    assert answer.selector == "lexical"


def test_a_part_of_a_long_source_is_evidence_with_its_place(tmp_path: Path) -> None:
    loaded = tiny_loaded(max_document_tokens=48)
    text = " ".join(f"Item {number} is kept in the {animal} room." for number, animal in enumerate(ANIMALS))
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(loaded)), loaded) as memory:
        assert memory.add([Document("inventory", text)]).documents > 3
        (found, *_) = memory.search("What is kept in the falcon room?")
        assert "falcon" in found.text
        assert found.text == text[found.span.start : found.span.end] != text


@pytest.mark.parametrize("selector", ["router", "hybrid"])
def test_a_router_says_how_many_layers_chose_a_document(memory: Memory, selector: str) -> None:
    found = memory.search("Where does the otter of Rome live?", selector=selector, limit=20)
    config = memory.loaded.model.config
    assert len(found) >= 8 * config.top_k_docs, "more was considered than is attended to"
    layers = [item.layers for item in found]
    assert all(0 <= count <= len(config.layers) for count in layers)
    assert sum(layers) == config.top_k_docs * len(config.layers)


@pytest.mark.parametrize("selector", SELECTORS)
def test_evidence_of_an_answer_is_the_best_of_the_search(memory: Memory, selector: str) -> None:
    for question in QUESTIONS:
        answer = memory.ask(question, selector=selector, sampling=SHORT, max_documents=3)
        found = memory.search(question, selector=selector)
        assert 1 <= len(answer.evidence) <= 3
        assert list(answer.evidence) == found[: len(answer.evidence)]
        assert {type(item.layers) for item in found} == {type(None) if selector == "lexical" else int}


@pytest.mark.parametrize("selector", SELECTORS)
def test_an_answer_says_how_many_layers_routed_to_its_evidence_while_answering(
    memory: Memory, selector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    route, rank = LocalMemory.route, Finder.rank

    def recording(self: LocalMemory, layer: int, *args: Any) -> Retrieved:
        retrieved = route(self, layer, *args)
        chosen.extend(retrieved.doc_ids[0])
        return retrieved

    def ranking(self: Finder, *args: Any) -> Any:
        selected = rank(self, *args)
        chosen.clear()  # what the question alone was routed to
        return selected

    monkeypatch.setattr(LocalMemory, "route", recording)
    monkeypatch.setattr(Finder, "rank", ranking)
    counts = set()
    for question in QUESTIONS:
        answer = memory.ask(question, selector=selector, sampling=SHORT, max_documents=20, route_answer=True)
        evidence = answer.evidence
        config = memory.loaded.model.config
        assert len(chosen) == config.top_k_docs * len(config.layers)
        assert [item.layers for item in evidence] == [chosen.count(item.document_id) for item in evidence]
        counts |= {item.layers for item in evidence}
    assert len(counts) > 1, "some were routed to and some were not"


def test_search_is_limited_and_generates_nothing(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memspan.generate.state.Decoding", None)
    found = memory.search("Rome river", limit=2)
    assert [item.external_id for item in found] == ["note-0", "Rome.txt"]
    assert len(memory.search("Rome river", limit=1)) == 1
    assert memory.search("zeppelin") == []


def _contexts(monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel) -> list[list[Passage]]:
    """The passages of every context that is made."""
    made: list[list[Passage]] = []
    true_context = type(loaded.template).context

    def context(self: Any, question: str, passages: Any = (), *more: Any, **named: Any) -> Context:
        made.append(list(passages))
        return true_context(self, question, passages, *more, **named)

    monkeypatch.setattr(type(loaded.template), "context", context)
    return made


def test_no_documents_means_no_text_before_the_question(
    memory: Memory, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _contexts(monkeypatch, loaded)
    answer = memory.ask(QUESTIONS[0], max_documents=0, sampling=SHORT)
    assert answer.evidence == ()
    assert made and not any(made)
    memory.ask(QUESTIONS[0], max_documents=1, sampling=SHORT)
    assert len(made[-1]) == 1


def test_a_question_no_document_has_words_of_is_answered_without_evidence(memory: Memory) -> None:
    for question in ("zeppelin", "?!"):
        answer = memory.ask(question, sampling=SHORT)
        assert (answer.evidence, answer.num_new_tokens) == ((), 8)


def test_passages_that_do_not_fit_are_dropped_from_the_worst_up_and_are_no_evidence(
    memory: Memory, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "Rome Oslo Lima Bern Cairo river"
    everything = memory.ask(question, sampling=SHORT).evidence
    assert len(everything) == 5
    passages = [_passages(everything[:count]) for count in range(6)]
    needed = [len(loaded.template.context(question, of_count).ids) for of_count in passages]
    assert needed == sorted(set(needed))
    made = _contexts(monkeypatch, loaded)
    for count in range(6):  # room for exactly so many, and for one token less than one more
        rooms = [needed[count]] if count == 5 else [needed[count], needed[count + 1] - 1]
        for room in rooms:
            max_new_tokens = 512 - loaded.model.config.offset - room
            sampling = Sampling(max_new_tokens=max_new_tokens, stop=tuple(map(chr, range(32, 127))))
            answer = memory.ask(question, sampling=sampling)
            assert answer.evidence == everything[:count]
            assert made[-1] == passages[count]
            assert answer.num_prompt_tokens == needed[count]


def test_what_is_remembered_decides_the_answer_without_any_text(
    loaded: LoadedModel, memory: Memory, empty: Memory
) -> None:
    empty.add([Document("other", "Something else altogether, in another bank.")])
    texts = {
        bank.ask(question, max_documents=0, sampling=SHORT).text for bank in (memory, empty) for question in ["lynx"]
    }
    assert len(texts) == 2, "the same prompt over two memories"


# --- selectors ------------------------------------------------------------------------------------------------------


def test_the_default_selector_follows_the_router(filled: Path, loaded: LoadedModel, trained: LoadedModel) -> None:
    for model, expected in ((loaded, "lexical"), (trained, "hybrid")):
        with Memory(MemoryBank.open(filled), model) as memory:
            assert memory.default_selector == expected
            answer = memory.ask(QUESTIONS[0], sampling=SHORT)
            assert answer.selector == expected
            assert (answer.evidence[0].layers is None) == (expected == "lexical")
            assert (memory.search(QUESTIONS[0])[0].layers is None) == (expected == "lexical")
            assert memory.ask(QUESTIONS[0], selector="router", sampling=SHORT).selector == "router"


def test_an_unknown_selector_is_refused_with_the_known_ones(memory: Memory) -> None:
    for call, known in (
        (memory.ask, "hybrid, generate, dense, fused, rrf"),
        (memory.search, "hybrid, dense, fused, rrf"),
    ):
        with pytest.raises(MemspanError, match=f"selector must be one of router, lexical, {known}, not 'magic'"):
            call("lynx", selector="magic")


def test_hybrid_finds_the_only_document_that_holds_the_word(filled: Path, trained: LoadedModel) -> None:
    with Memory(MemoryBank.open(filled), trained) as memory:
        found = {animal: memory.search(animal, limit=1)[0].text for animal in ANIMALS}
    assert all(animal in text for animal, text in found.items())


# --- what cannot be asked -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", ["", " ", "\n\t "])
def test_an_empty_question_is_refused(memory: Memory, question: str) -> None:
    for questions in ([question], ["lynx", question]):
        with pytest.raises(QuestionError, match="the question is empty; write one"):
            memory.ask_batch(questions)
    with pytest.raises(QuestionError, match="empty"):
        list(memory.stream(question))
    with pytest.raises(QuestionError, match="empty"):
        memory.search(question)


def test_an_empty_bank_says_how_to_fill_it(empty: Memory) -> None:
    for ask in (empty.ask, empty.search, lambda question: list(empty.stream(question))):
        with pytest.raises(EmptyBank, match="holds no documents; add some with: memspan add"):
            ask("Where does the otter live?")


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_question_that_is_too_long_is_refused_with_the_numbers(memory: Memory, selector: str) -> None:
    with pytest.raises(QuestionError, match=r"needs \d+ tokens and the model has room for \d+ beside"):
        memory.ask("Is the lynx grey? " * 200, selector=selector)


def test_an_answer_longer_than_the_models_positions_is_refused(memory: Memory) -> None:
    with pytest.raises(QuestionError, match="ask for fewer max_new_tokens"):
        memory.ask("lynx", sampling=Sampling(max_new_tokens=512))


# --- the bank as it is when asked -----------------------------------------------------------------------------------


def test_a_document_added_by_another_handle_is_found_by_the_next_question(empty: Memory, loaded: LoadedModel) -> None:
    empty.add(DOCUMENTS[:3])
    assert empty.search("zeppelin") == []
    other = MemoryBank.open(empty.bank.folder)
    add_documents(other, loaded, [Document("new", "A zeppelin over the lake.")])
    other.close()
    for selector in SELECTORS:
        found = [item.external_id for item in empty.search("zeppelin", selector=selector)]
        assert found == ["new"] if selector == "lexical" else "new" in found
    assert empty.ask("zeppelin", sampling=SHORT).evidence[0].external_id == "new"


def test_adding_through_the_memory_reports_and_is_found(empty: Memory) -> None:
    seen = []
    report = empty.add(DOCUMENTS[:4], progress=seen.append)
    assert (report.added, report.updated, report.unchanged, report.documents) == (4, 0, 0, 4)
    assert seen and seen[-1].documents == 4
    assert empty.add(DOCUMENTS[:4]).unchanged == 4
    assert empty.search("badger")[0].external_id == "Lima.txt"
    report = empty.add([Document("Lima.txt", "Only a walrus is left.")])
    assert (report.added, report.updated) == (0, 1)
    assert empty.search("badger") == []
    (found,) = empty.search("walrus")
    assert (found.external_id, found.document_id) == ("Lima.txt", 5)
    for selector in SELECTORS:
        texts = [item.text for item in empty.search("Lima badger", selector=selector)]
        assert all("badger" not in text for text in texts)


def test_a_bank_of_another_model_is_refused(filled: Path) -> None:
    with pytest.raises(BankMismatch, match="encoder_fingerprint"):
        Memory(MemoryBank.open(filled), tiny_loaded(seed=1))
    with pytest.raises(BankMismatch, match="chunk_size: bank 4, model 8"):
        Memory(MemoryBank.open(filled), tiny_loaded(chunk_size=8))


# --- a pinned memory ------------------------------------------------------------------------------------------------


def _known(memory: Memory, selector: str) -> set[str]:
    return {item.external_id for item in memory.search("otter", selector=selector, limit=50)}


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_pinned_memory_sees_what_it_saw_until_it_is_refreshed(
    empty: Memory, loaded: LoadedModel, selector: str
) -> None:
    empty.add([Document("a", "The otter of Rome."), Document("b", "The otter of Oslo.")])
    pinned = Memory(MemoryBank.open(empty.bank.folder), loaded, snapshot=True)
    changes: list[Callable[[], object]] = [
        lambda: empty.add([Document("c", "The otter of Lima.")]),
        lambda: empty.update("a", text="The badger of Rome."),
        lambda: empty.delete(["b"]),
        lambda: pinned.add([Document("d", "Its own otter.")]),
        empty.bank.compact,
    ]
    before = (pinned.search("otter", selector=selector), pinned.ask("otter", selector=selector, sampling=SHORT))
    for change in changes:
        change()
        assert pinned.search("otter", selector=selector) == before[0]
        assert _without_timings(pinned.ask("otter", selector=selector, sampling=SHORT)) == _without_timings(before[1])
    live = _known(empty, selector)
    assert live == ({"c", "d"} if selector == "lexical" else {"a", "c", "d"})
    assert _known(pinned, selector) == {"a", "b"}
    pinned.refresh()
    assert _known(pinned, selector) == live
    empty.delete(["c"])
    assert _known(pinned, selector) == live != _known(empty, selector)
    pinned.close()


def test_an_unpinned_memory_sees_every_change_with_the_next_question(empty: Memory, loaded: LoadedModel) -> None:
    with Memory(MemoryBank.open(empty.bank.folder), loaded) as reader:
        for number in range(10):  # so many that segments are merged on the way
            empty.add([Document(f"{number}", f"The otter number {number}.")])
            for selector in SELECTORS:
                assert _known(reader, selector) == {str(n) for n in range(number // 3, number + 1)}
            if number % 3 == 2:
                empty.delete([str(number // 3)])
        reader.refresh()  # of no effect


def test_a_pinned_memory_holds_up_what_erases_until_it_is_refreshed_or_closed(
    empty: Memory, loaded: LoadedModel
) -> None:
    empty.add(DOCUMENTS[:3])
    pinned = Memory(MemoryBank.open(empty.bank.folder), loaded, snapshot=True)
    empty.delete(["Rome.txt"])
    with pytest.raises(BankBusy, match=rf"pid {os.getpid()}"):
        empty.bank.compact(secure=True, timeout=0)
    assert pinned.search("otter")[0].external_id == "Rome.txt"
    pinned.close()
    empty.bank.compact(secure=True, timeout=0)
    assert empty.search("otter") == []


# --- streams left alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leave", ["closed", "dropped", "failed", "read to its end"])
def test_a_stream_holds_its_snapshot_until_it_ends_or_is_left(empty: Memory, leave: str) -> None:
    empty.add(DOCUMENTS[:3])
    stream = empty.stream("otter", sampling=Sampling(max_new_tokens=40))
    empty.bank.compact(secure=True, timeout=0)  # nothing is held before it is read from
    next(stream)
    empty.delete(["Rome.txt"])
    with pytest.raises(BankBusy, match="may see what is to be erased"):
        empty.bank.compact(secure=True, timeout=0)
    if leave == "closed":
        stream.close()  # type: ignore[attr-defined]
    elif leave == "dropped":
        del stream
    elif leave == "failed":
        with pytest.raises(KeyError):
            stream.throw(KeyError)  # type: ignore[attr-defined]
    else:
        assert list(stream)
    empty.bank.compact(secure=True, timeout=0)
    assert empty.search("otter") == []


def test_questions_that_fail_release_their_snapshots(empty: Memory) -> None:
    empty.add(DOCUMENTS[:3])
    failing: list[Callable[[], object]] = [
        lambda: empty.ask("x " * 2000),
        lambda: empty.ask("x", where={"no-field": 1}),
        lambda: empty.search("x", where={"place": "none"}) or empty.ask("x", where={"place": "none"}),
        lambda: empty.ask("x", sampling=Sampling(max_new_tokens=4000)),
        lambda: empty.in_namespace("other").ask("x"),
    ]
    kept: list[object] = []  # with the frames of the failed questions, which nothing else is to clear away
    for fail in failing:
        with pytest.raises(MemspanError) as failed:
            fail()
        kept.append(failed)
        empty.bank.compact(secure=True, timeout=0)


# --- remember -------------------------------------------------------------------------------------------------------


def test_a_turn_told_twice_is_remembered_once(empty: Memory) -> None:
    turn: dict[str, Any] = {"speaker": "Ann", "session": "s1", "date": "2026-03-01T10:00:00"}
    assert empty.remember("I like tea.", **turn).added == 1
    report = empty.remember("I like tea.", **turn)
    assert (report.added, report.updated, report.unchanged) == (0, 0, 1)
    others: list[dict[str, Any]] = [
        {"date": "2026-03-02T10:00:00"},
        {"speaker": "Ben"},
        {"session": "s2"},
        {"speaker": ""},
    ]
    for other in others:
        assert empty.remember("I like tea.", **(turn | other)).added == 1, other
    assert empty.remember("I like tea", **turn).added == 1
    assert empty.bank.catalog.counts().sources == 6


def test_a_turn_told_twice_is_remembered_once_however_its_date_is_written(empty: Memory) -> None:
    for date in ("2026-03-01T10:00:00+02:00", "2026-03-01T08:00:00", "2026-03-01T08:00Z"):
        empty.remember("I like tea.", date=date)
    assert empty.bank.catalog.counts().sources == 1


def test_a_turn_is_kept_with_who_said_it_where_and_when(empty: Memory) -> None:
    empty.remember("I like tea.", speaker="Ann", session="s1", date="2026-03-01T10:00+02:00")
    (found,) = empty.search("tea")
    assert (found.text, found.metadata) == ("Ann: I like tea.", {"speaker": "Ann", "session": "s1"})
    assert found.date == "2026-03-01T10:00:00+02:00"
    assert found.external_id.startswith("s1/")
    empty.remember("Tea is hot.", date="2026-03-02")
    assert [item.text for item in empty.search("hot")] == ["Tea is hot."]
    assert empty.search("tea", where={"speaker": "Ann"}) == empty.search("tea", as_of="2026-03-01")
    before = datetime.now(UTC).replace(tzinfo=None)
    empty.remember("Now it is cold.")
    (found,) = empty.search("cold")
    assert before <= datetime.fromisoformat(found.date) + timedelta(milliseconds=1)
    assert datetime.fromisoformat(found.date) <= datetime.now(UTC).replace(tzinfo=None)


@pytest.mark.parametrize(("turn", "date"), [("", None), (" \n", None), ("tea", "yesterday"), ("a\0b", None)])
def test_what_can_be_no_turn_is_refused(empty: Memory, turn: str, date: str | None) -> None:
    with pytest.raises(ValueError, match=r"turn is empty|is not a date|holds NUL"):
        empty.remember(turn, date=date)
    assert empty.bank.catalog.counts().sources == 0


def test_every_persona_remembers_its_own(empty: Memory) -> None:
    ann, ben = empty.in_namespace("Ann"), empty.in_namespace("Ben")
    for person, drink in ((ann, "tea"), (ben, "coffee")):
        for _ in range(2):
            person.remember(f"I drink {drink}.", speaker="guest", session="s", date="2026-03-01")
    for selector in SELECTORS:
        for person, drink in ((ann, "tea"), (ben, "coffee")):
            assert [item.text for item in person.search("drink", selector=selector)] == [f"guest: I drink {drink}."]
    with pytest.raises(EmptyBank):
        empty.search("drink")


# --- get, update, delete --------------------------------------------------------------------------------------------


def test_a_document_is_read_back_as_it_was_given_by_either_id(tmp_path: Path) -> None:
    loaded = tiny_loaded(max_document_tokens=48)
    long = Document(
        "long", " ".join(f"Item {n} is kept here." for n in range(20)), "Title", {"p": [1, {"q": None}]}, "2026-03-01"
    )
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(loaded)), loaded) as memory:
        memory.add([Document("short", "x"), long])
        parts = memory.bank.catalog.documents_of("default", "long")
        assert len(parts) > 3
        for key in ("long", *(part.id for part in parts)):
            assert memory.get(key) == long
        assert memory.get("short") == memory.get(1) == Document("short", "x")
        assert memory.delete([parts[2].id]) == 1, "a part stands for the whole"
        for key in ("long", *(part.id for part in parts)):
            with pytest.raises(UnknownDocument, match=f"there is no document {key!r} in namespace 'default'"):
                memory.get(key)
        assert memory.bank.catalog.counts().documents == 1


@pytest.mark.parametrize(
    ("change", "encoded"),
    [
        ({"text": "The walrus of Lima."}, 1),
        ({"title": "Walrus"}, 1),
        ({"metadata": {"place": "new"}}, 0),
        ({"date": "2020-01-01"}, 0),
        ({"metadata": {}}, None),
        ({"metadata": {"place": None}}, 0),
        ({"metadata": {"place": {"a": 1, "b": None}, "none such": None}}, 0),
        ({"date": ""}, 0),
        ({"expires": "9999-01-01"}, 0),
        ({"pinned": True}, 0),
        ({"title": ""}, 1),
        ({"text": "The walrus.", "title": "A", "metadata": {"a": 1}, "date": "2020-01-01"}, 1),
        ({}, None),
    ],
)
def test_an_update_replaces_what_is_given_and_keeps_the_rest(
    empty: Memory, change: dict[str, Any], encoded: int | None
) -> None:
    empty.add([dataclasses.replace(document, date="2026-03-01") for document in DOCUMENTS[:4]])
    before = empty.get("Lima.txt")
    report = empty.update(3, **change)
    is_same = encoded is None
    assert (report.updated, report.unchanged, report.documents) == (int(not is_same), int(is_same), encoded or 0)
    place = {"place": before.metadata["place"]} | change.get("metadata", {})
    merged = {key: {"a": 1} if isinstance(value, dict) else value for key, value in place.items() if value is not None}
    date = change.get("date", before.date) or None
    assert empty.get("Lima.txt") == dataclasses.replace(before, **change | {"metadata": merged, "date": date})
    (stored,) = empty.bank.catalog.documents_of("default", "Lima.txt")
    assert stored.id == (5 if encoded else 3), "what is encoded anew has a new id"
    if encoded:
        with pytest.raises(UnknownDocument):
            empty.get(3)
    question = change.get("text", before.text)
    for selector in SELECTORS:
        found = {item.external_id: item for item in empty.search(question, selector=selector, limit=50)}
        item, now = found["Lima.txt"], empty.get("Lima.txt")
        assert (item.text, item.title, item.metadata) == (now.text, now.title, now.metadata)
        assert item.date == now.date if now.date else item.date > "2026"


@pytest.mark.parametrize("unknown", ["nothing", "", "rome.txt", 0, -1, 99, 2**63, 10**30, "1", "x" * 5000])
def test_an_unknown_id_is_named_with_where_to_look_and_nothing_is_done(empty: Memory, unknown: int | str) -> None:
    empty.add(DOCUMENTS[:3])
    calls: list[Callable[[], object]] = [
        lambda: empty.get(unknown),
        lambda: empty.update(unknown, text="x"),
        lambda: empty.delete([unknown]),
        lambda: empty.delete(["Rome.txt", 2, unknown]),
    ]
    for call in calls:
        with pytest.raises(UnknownDocument) as refused:
            call()
        assert f"there is no document {unknown!r} in namespace 'default'" in str(refused.value)
        assert f"see: memspan ls {empty.bank.folder}" in str(refused.value)
    assert empty.bank.catalog.counts().sources == 3


def test_an_id_that_is_no_unicode_is_an_unknown_one(empty: Memory) -> None:
    with pytest.raises(UnknownDocument):
        empty.get("caf\udce9.txt")  # a file's name, as the command line passes it


def test_documents_are_deleted_by_either_id_and_counted_once(empty: Memory) -> None:
    empty.add(DOCUMENTS[:5])
    assert empty.delete(["Rome.txt", 1, 2, "Lima.txt"]) == 3
    assert empty.delete([]) == 0
    with pytest.raises(UnknownDocument):
        empty.delete(["Rome.txt"])
    for selector in SELECTORS:
        found = empty.search("Where does the otter or heron or newt live?", selector=selector, limit=50)
        assert {item.external_id for item in found} <= {"Bern.txt", "Cairo.txt"} and found
    assert empty.add(DOCUMENTS[:1]).added == 1, "it may come back"
    assert empty.bank.catalog.documents_of("default", "Rome.txt")[0].id == 6, "under an id that was never used"
    assert empty.delete(["Rome.txt", "Bern.txt", "Cairo.txt"]) == 3
    with pytest.raises(EmptyBank):
        empty.ask("otter")


# --- threads --------------------------------------------------------------------------------------------------------


def test_threads_with_a_memory_each_get_the_answers_each_would_alone(filled: Path, loaded: LoadedModel) -> None:
    asked = [*itertools.product(QUESTIONS, SELECTORS)]
    with Memory(MemoryBank.open(filled), loaded) as memory:
        alone = [_without_timings(memory.ask(question, selector=name, sampling=SHORT)) for question, name in asked]

        def answers(first: int) -> list[Any]:
            """Begins with another question than the other threads."""
            own, found = memory.in_namespace("default"), {}
            for question, name in asked[first:] + asked[:first]:
                found[question, name] = _without_timings(own.ask(question, selector=name, sampling=SHORT))
            own.close()
            return [found[key] for key in asked]

        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(answers, (0, 3, 6, 9)):
                assert found == alone
        memory.bank.compact(secure=True, timeout=0)  # no snapshot was left


def test_a_question_sees_all_of_a_change_or_nothing_of_it(empty: Memory) -> None:
    names = ("a", "b", "c")

    def generation(number: int) -> list[Document]:
        return [Document(name, f"The otter {name} of generation number{number}.") for name in names]

    empty.add(generation(0))
    done = threading.Event()

    def look(_: int) -> set[str]:
        reader, seen = empty.in_namespace("default"), set()
        while not done.is_set() or not seen:
            for selector in SELECTORS:
                try:
                    found = reader.search("otter", selector=selector, limit=9)
                except NotEncoded:  # the router alone sees what is encoded
                    assert selector == "router"
                    continue
                assert sorted(item.external_id for item in found) == [*names]
                (told,) = {item.text.split()[-1] for item in found}  # of one generation
                seen.add(told)
        return seen

    with ThreadPoolExecutor(2) as pool:
        looking = [pool.submit(look, number) for number in range(2)]
        try:
            for number in range(1, 7):
                empty.add(generation(number))
        finally:
            done.set()
        for future in looking:
            assert future.result() <= {f"number{number}." for number in range(7)}


# --- open -----------------------------------------------------------------------------------------------------------


def test_open_creates_only_when_asked_and_looks_for_the_bank_before_the_model(tmp_path: Path) -> None:
    with pytest.raises(BankError, match="there is no bank in"):
        Memory.open(tmp_path / "bank", tmp_path / "no-model")
    save_backbone(tmp_path / "plain")
    convert(str(tmp_path / "plain"), tmp_path / "msa", dtype=torch.float32, chunk_size=4, top_k_docs=2)
    with Memory.open(tmp_path / "bank", tmp_path / "msa", create=True, dtype="float32", device="cpu") as memory:
        memory.add(DOCUMENTS[:3])
        answer = memory.ask("badger", sampling=SHORT)
    for create in (True, False):
        with Memory.open(str(tmp_path / "bank"), tmp_path / "msa", create=create, dtype="float32") as memory:
            assert _without_timings(memory.ask("badger", sampling=SHORT)) == _without_timings(answer)
