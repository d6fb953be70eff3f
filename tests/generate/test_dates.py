"""Dates of documents: what the model is shown of them, in which order, and what was known at a date."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_loaded

from memspan.bank import clock as bank_clock
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.model.convert import LoadedModel
from memspan.text.corpus import read_paths
from memspan.text.template import Context, Passage, PromptTemplate
from memspan.types import Document, Evidence

SELECTORS = ("router", "lexical", "hybrid")

SHORT = Sampling(max_new_tokens=2)
NOTES = Path(__file__).parents[2] / "examples" / "notes"


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[list[Passage]]:
    """The passages of every context that is made."""
    made: list[list[Passage]] = []
    true_context = PromptTemplate.context

    def context(self: PromptTemplate, question: str, passages: Any = (), *more: Any, **named: Any) -> Context:
        made.append(list(passages))
        return true_context(self, question, passages, *more, **named)

    monkeypatch.setattr(PromptTemplate, "context", context)
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What documents are added at: the last of these."""
    times = ["2026-01-01T00:00:00"]

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.fromisoformat(times[-1]).replace(tzinfo=tz)

    monkeypatch.setattr(bank_clock, "datetime", Clock)
    return times


# --- what is shown --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selector", SELECTORS)
def test_texts_stand_before_the_question_oldest_first_with_their_dates(
    memory: Memory, contexts: list[list[Passage]], selector: str
) -> None:
    dates = ["2026-03-02", "2024-05-05T12:00", "2026-03-02T01:00+02:00", "1999-12-31", "2026-03-01", "2024-05-05"]
    memory.add([Document(f"{n}", f"The otter saw river number {n}.", date=date) for n, date in enumerate(dates)])
    answer = memory.ask("otter river", selector=selector, max_documents=6, sampling=SHORT)
    shown = contexts[-1]
    assert {passage.document_id for passage in shown} == {item.document_id for item in answer.evidence}
    # The order is that of the moments, the day that is shown that of the place; within a day a moment comes later.
    order = {4: "1999-12-31", 6: "2024-05-05", 2: "2024-05-05", 5: "2026-03-01", 3: "2026-03-02", 1: "2026-03-02"}
    expected = [(number, date) for number, date in order.items() if number in {p.document_id for p in shown}]
    assert [(passage.document_id, passage.date) for passage in shown] == expected
    assert len(shown) == 6 or selector != "lexical"
    scores = [item.score for item in answer.evidence]
    assert scores == sorted(scores, reverse=True), "evidence stays best first"
    by_id = {item.document_id: item.date for item in answer.evidence}
    assert all(by_id[passage.document_id].startswith(passage.date) for passage in shown)


def test_the_models_prompt_holds_the_dates(memory: Memory, loaded: LoadedModel) -> None:
    memory.add(
        [Document("a", "The otter is in Rome.", date="2025-02-03"), Document("b", "The otter left.", date="2024-07-08")]
    )
    answer = memory.ask("otter", sampling=SHORT)
    passages = [Passage(2, "The otter left.", "2024-07-08"), Passage(1, "The otter is in Rome.", "2025-02-03")]
    context = loaded.template.context("otter", passages)
    assert answer.num_prompt_tokens == len(context.ids)
    text = loaded.template.text(context.ids)
    assert "[2]. (2024-07-08) The otter left.\n[1]. (2025-02-03) The otter is in Rome.\n" in text


def test_documents_of_one_date_stand_in_the_order_of_their_ids(memory: Memory, contexts: list[list[Passage]]) -> None:
    # The later ones are the better hits.
    memory.add([Document(f"{n}", "otter " * (n + 1) + "river", date="2026-03-01") for n in range(4)])
    found = memory.ask("otter", sampling=SHORT).evidence
    assert [item.document_id for item in found] != sorted(item.document_id for item in found)
    assert [passage.document_id for passage in contexts[-1]] == sorted(item.document_id for item in found)


def test_where_room_is_short_the_lowest_scored_go_first_and_the_others_stay_in_order_of_date(
    memory: Memory, loaded: LoadedModel, contexts: list[list[Passage]]
) -> None:
    # The best is neither the oldest nor the newest, nor is the worst.
    times = {1: 3, 2: 5, 3: 2, 4: 4}
    dates = {1: "2024-01-01", 2: "2022-01-01", 3: "2023-01-01", 4: "2021-01-01"}
    memory.add([Document(str(n), "otter " * times[n] + "sea " * (8 - times[n]), date=dates[n]) for n in times])
    question = "otter"
    everything = memory.ask(question, sampling=SHORT).evidence
    assert [item.document_id for item in everything] == [2, 4, 1, 3]
    for kept in range(5):
        best = {item.document_id for item in everything[:kept]}
        shown = [
            Passage(n, f"{'otter ' * times[n]}{'sea ' * (8 - times[n])}", dates[n]) for n in (4, 2, 3, 1) if n in best
        ]
        needed = len(loaded.template.context(question, shown).ids)
        sampling = Sampling(
            max_new_tokens=512 - loaded.model.config.offset - needed, stop=tuple(map(chr, range(32, 127)))
        )
        answer = memory.ask(question, sampling=sampling)
        assert contexts[-1] == shown
        assert answer.evidence == everything[:kept]


# --- where dates come from ------------------------------------------------------------------------------------------


def test_a_document_without_a_date_is_of_the_time_it_was_added(
    memory: Memory, clock: list[str], contexts: list[list[Passage]]
) -> None:
    memory.add([Document("first", "otter one")])
    clock.append("2026-06-01T12:30:00")
    memory.add([Document("second", "otter two"), Document("dated", "otter three", date="2026-03-01")])
    found = {item.external_id: item.date for item in memory.ask("otter", sampling=SHORT).evidence}
    assert found == {"first": "2026-01-01T00:00:00", "second": "2026-06-01T12:30:00", "dated": "2026-03-01"}
    assert [p.date for p in contexts[-1]] == ["2026-01-01", "2026-03-01", "2026-06-01"]
    assert {item.external_id for item in memory.search("otter", as_of="2026-05-01")} == {"first", "dated"}
    assert memory.get("first").date is None, "it was given none"
    # The same again changes nothing; another text is another time.
    clock.append("2026-09-01T00:00:00")
    assert memory.add([Document("first", "otter one")]).unchanged == 1
    memory.add([Document("second", "otter two again")])
    found = {item.external_id: item.date for item in memory.search("otter")}
    assert (found["first"], found["second"]) == ("2026-01-01T00:00:00", "2026-09-01T00:00:00")


def test_a_date_is_changed_without_encoding_anything(memory: Memory, contexts: list[list[Passage]]) -> None:
    memory.add([Document("a", "otter one", date="2026-03-01"), Document("b", "otter two", date="2026-03-02")])
    report = memory.update("a", date="2026-03-05T00:00+02:00")
    assert (report.updated, report.documents) == (1, 0)
    memory.ask("otter", sampling=SHORT)
    assert [(p.document_id, p.date) for p in contexts[-1]] == [(2, "2026-03-02"), (1, "2026-03-05")]
    assert [item.external_id for item in memory.search("otter", as_of="2026-03-03")] == ["b"]
    assert memory.get("a").date == "2026-03-05T00:00:00+02:00"


def test_parts_of_a_long_document_are_of_its_date(tmp_path: Path) -> None:
    loaded = tiny_loaded(max_document_tokens=48)
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(loaded)), loaded) as memory:
        text = " ".join(f"The otter number {n} is in room {n}." for n in range(8))
        assert memory.add([Document("long", text, date="2025-05-05")]).documents > 3
        found: list[Evidence] = memory.search("otter", limit=50)
        assert len(found) > 3 and {item.date for item in found} == {"2025-05-05"}
        assert memory.search("otter", where={"date": {"<": "2025-05-05"}}) == []


# --- what was known then --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decisions(tmp_path_factory: pytest.TempPathFactory, loaded: LoadedModel) -> Iterator[Memory]:
    """The decisions of the example notes, with the beginnings of their texts: the tiny model has little room."""
    documents = [document for document in read_paths([NOTES / "decisions"]) if isinstance(document, Document)]
    bank = MemoryBank.create(tmp_path_factory.mktemp("decisions") / "bank", manifest_of(loaded))
    with Memory(bank, loaded) as memory:
        memory.add([dataclasses.replace(document, text=document.text[:180]) for document in documents])
        yield memory


REVERSALS = {
    "How long is the warranty?": ("2022-11-08-warranty-two-years", "2024-11-19-warranty-five-years"),
    "radio network of the Amber scale": ("2023-02-14-radio-lorawan", "2024-09-10-radio-nb-iot"),
    "battery of the Amber scale": ("2023-05-22-battery-lithium-ion", "2025-01-20-battery-iron-phosphate"),
    "What does the Waggle app cost?": ("2024-01-15-app-monthly-fee", "2025-03-11-app-free"),
    "Where are finished scales stored, which warehouse?": (
        "2023-10-03-warehouse-venlo",
        "2025-04-08-warehouse-hasselt",
    ),
}


@pytest.mark.parametrize("question", REVERSALS)
def test_a_decision_that_was_reversed_later_is_read_before_the_reversal_and_as_of_then_alone(
    decisions: Memory, contexts: list[list[Passage]], question: str
) -> None:
    earlier, later = (f"decisions/{name}.md" for name in REVERSALS[question])
    (of_earlier,), (of_later,) = (decisions.bank.catalog.documents_of("default", name) for name in (earlier, later))
    assert (of_earlier.date, of_later.date) == (REVERSALS[question][0][:10], REVERSALS[question][1][:10])
    decisions.ask(question, sampling=SHORT)
    shown = [passage.document_id for passage in contexts[-1]]
    assert shown.index(of_earlier.id) < shown.index(of_later.id)
    for as_of, known in ((of_later.date, True), (of_earlier.date, False), (f"{of_later.date}T00:00+01:00", False)):
        answer = decisions.ask(question, as_of=as_of, sampling=SHORT)
        shown = [passage.document_id for passage in contexts[-1]]
        assert (of_later.id in shown, of_earlier.id in shown) == (known, True)
        assert {passage.date for passage in contexts[-1]} <= {item.date for item in answer.evidence}
        for selector in SELECTORS:
            found = decisions.search(question, selector=selector, as_of=as_of, limit=50)
            assert (later in [item.external_id for item in found]) == known
            assert max(item.date for item in found) <= as_of[:10]


def test_a_growing_history_keeps_its_answer_until_the_fact_changes(
    memory: Memory, contexts: list[list[Passage]]
) -> None:
    """What is read last about a fact stays the same turn while others are told, and changes with the fact."""
    told = [
        ("My cat is called Momo.", "2026-01-01", True),
        ("I went to the harbour.", "2026-01-05", False),
        ("We had soup.", "2026-02-01", False),
        ("The cat is called Nero now.", "2026-03-01", True),
        ("It rains.", "2026-03-02", False),
    ]
    last = ""
    for turn, date, changes in told:
        memory.remember(turn, speaker="Ann", session="s", date=date)
        memory.ask("How is the cat called?", sampling=SHORT)
        last = turn if changes else last
        assert contexts[-1][-1].text == f"Ann: {last}"
    for _, date, _ in told:
        memory.ask("How is the cat called?", sampling=SHORT, as_of=date)
        name = "My cat is called Momo." if date < "2026-03-01" else "The cat is called Nero now."
        assert contexts[-1][-1].text == f"Ann: {name}"
