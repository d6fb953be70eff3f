"""A memory over time: every selector sees what holds, and what held then; what expires is gone at its moment."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_loaded

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.reencode import reencode
from memspan.bank.scope import Scope
from memspan.bank.verify import verify
from memspan.errors import BankBusy, EmptyBank, FilterError, UnknownDocument
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.generate.summarize import SummaryPlan
from memspan.model.convert import LoadedModel
from memspan.types import Document

SELECTORS = ("router", "lexical", "hybrid")
SHORT = Sampling(max_new_tokens=2)


def _tell(memory: Memory) -> None:
    memory.add([Document("a", "The otter lives in Bern.", date="2025-01-01"), Document("b", "An otter swims.")])
    memory.add([Document("a", "The otter lives in Rome.", date="2026-01-01")])


def _texts(memory: Memory, selector: str, **times: Any) -> set[str]:
    found = {item.text for item in memory.search("otter lives", selector=selector, limit=50, **times)}
    answer = memory.ask("Where does the otter live?", selector=selector, max_documents=9, sampling=SHORT, **times)
    assert {item.text for item in answer.evidence} <= found
    routed = {number for one in answer.routed for number in one.document_ids}
    page = memory.bank.catalog.page("default", 0, 99, Scope.parse(None, **times))
    seen = {stored.id: stored.text for stored in page}
    assert routed <= seen.keys()
    assert found <= set(seen.values())
    return found


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_question_sees_what_holds_and_one_of_then_what_held(memory: Memory, selector: str) -> None:
    _tell(memory)
    assert _texts(memory, selector) == {"The otter lives in Rome.", "An otter swims."}
    assert _texts(memory, selector, as_of="2025-06-01") == {"The otter lives in Bern."}
    assert _texts(memory, selector, as_of="2999-01-01") == {"The otter lives in Rome.", "An otter swims."}
    first = memory.versions("a")[0]
    assert _texts(memory, selector, known_at=first.recorded_at) == {"The otter lives in Bern.", "An otter swims."}
    assert _texts(memory, selector, known_at=first.recorded_at, as_of="2025-06-01") == {"The otter lives in Bern."}
    with pytest.raises(EmptyBank):
        memory.ask("Where?", selector=selector, as_of="1999-01-01")
    assert memory.search("otter", selector=selector, known_at="1999-01-01") == []


def test_versions_are_listed_and_got_by_their_time(memory: Memory) -> None:
    _tell(memory)
    memory.update("a", metadata={"checked": True})
    versions = memory.versions("a")
    assert [one.document.text[-5:-1] for one in versions] == ["Bern", "Rome", "Rome"]
    assert [one.superseded_at is None for one in versions] == [False, False, True]
    assert memory.get("a", as_of="2025-06-01") == versions[0].document
    assert memory.get(["a", "b"], known_at=versions[1].recorded_at) == [versions[1].document, memory.get("b")]
    assert memory.get(1, as_of="2025-06-01").text == "The otter lives in Bern."
    with pytest.raises(UnknownDocument):
        memory.get(1)
    with pytest.raises(UnknownDocument, match="at that time"):
        memory.get("b", as_of="2025-06-01")
    with pytest.raises(FilterError, match="known_at"):
        memory.get("a", known_at="soon")
    with pytest.raises(UnknownDocument):
        memory.versions("none such")
    assert [one.text for one in memory.list(as_of="2025-06-01")] == ["The otter lives in Bern."]
    assert len(memory) == 2
    assert memory.delete("a") == 1
    with pytest.raises(UnknownDocument):
        memory.versions("a")
    assert memory.list(as_of="2025-06-01") == []


def test_a_summary_reads_what_held_then(memory: Memory) -> None:
    _tell(memory)
    plan = SummaryPlan(sampling=SHORT)
    assert memory.summarize(plan, as_of="2025-06-01").num_documents == 1
    assert memory.summarize(plan, known_at=memory.versions("a")[0].recorded_at).num_documents == 2


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("pinned", [False, True])
def test_what_expires_is_gone_at_its_moment(
    tmp_path: Path, loaded: LoadedModel, later: list[timedelta], selector: str, pinned: bool
) -> None:
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(loaded)), loaded) as first:
        first.add(["The otter lives in Bern."], ids=["a"], ttl="1d")
        first.add(
            [Document("b", "An otter swims."), Document("c", "Otter, kept.", pinned=True)], ttl=timedelta(hours=1)
        )
    with Memory(MemoryBank.open(tmp_path / "bank"), loaded, snapshot=pinned) as memory:
        assert _texts(memory, selector) == {"The otter lives in Bern.", "An otter swims.", "Otter, kept."}
        later.append(timedelta(hours=2))
        assert _texts(memory, selector) == {"The otter lives in Bern.", "Otter, kept."}
        later.append(timedelta(days=2))
        assert _texts(memory, selector) == {"Otter, kept."}
        assert [document.external_id for document in memory] == ["c"]
        assert "a" not in memory


def test_all_gone_is_an_empty_bank(memory: Memory, later: list[timedelta]) -> None:
    memory.add(["The otter."], ttl="1d")
    later.append(timedelta(days=2))
    for ask in (lambda: memory.ask("otter?"), lambda: memory.search("otter"), memory.summarize):
        with pytest.raises(EmptyBank, match="holds no documents"):
            ask()


def test_a_time_to_live_is_renewed_and_counts_as_an_update(memory: Memory, later: list[timedelta]) -> None:
    documents = [Document("a", "The otter."), Document("b", "The heron.", expires="2999-01-01")]
    assert memory.add(documents, ttl="30d").added == 2
    assert memory.add(documents).unchanged == 2
    later.append(timedelta(days=20))
    report = memory.add(documents, ttl="30d")
    assert (report.updated, report.unchanged, report.tokens) == (1, 1, 0)
    assert memory.get("b").expires == "2999-01-01", "what says itself when it expires is not told"
    assert len(memory.versions("a")) == 1, "expiry is no content"
    later.append(timedelta(days=40))
    assert "a" in memory
    assert memory.add([documents[0]], existing="refuse", expires="never").updated == 1
    later.append(timedelta(days=90))
    assert memory.get("a").expires is None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"ttl": "1 month"}, ValueError),
        ({"ttl": 30}, ValueError),
        ({"ttl": timedelta()}, ValueError),
        ({"ttl": timedelta(days=-1)}, ValueError),
        ({"ttl": "999999w"}, ValueError),
        ({"expires": "2001-01-01"}, ValueError),
        ({"expires": datetime(2999, 1, 1)}, ValueError),
        ({"expires": "2999-01-01", "ttl": "1d"}, ValueError),
        ({"expiry": "2999-01-01"}, TypeError),
    ],
)
def test_an_expiry_that_is_none_is_refused_before_anything_is_added(
    memory: Memory, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        memory.add(["The otter."], **options)
    assert len(memory) == 0
    memory.add(["The otter."], ids=["a"])
    with pytest.raises(error):
        memory.update("a", **options)


@pytest.mark.parametrize("change", [{"text": "The otter of {}."}, {"metadata": {"{}": 1}}])
def test_changes_of_two_memories_at_once_both_survive(memory: Memory, loaded: LoadedModel, change: dict) -> None:
    memory.add([Document("a", "The otter.", metadata={"kept": 1})])
    errors: list[BaseException] = []

    def update(name: str) -> None:
        try:
            with Memory(MemoryBank.open(memory.bank.folder), loaded) as own:
                text = change["text"].format(name) if "text" in change else None
                own.update("a", metadata={name: 1}, text=text)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=update, args=(f"n{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert memory.get("a").metadata == {"kept": 1, **{f"n{number}": 1 for number in range(4)}}
    assert len(memory.versions("a")) == 5
    assert verify(memory.bank) == []


def test_what_is_given_to_an_update_does_not_hold_the_lock_for_ever(memory: Memory) -> None:
    memory.add([Document("a", "The otter.")])
    with pytest.raises(ValueError, match="no text"):
        memory.update("a", text=" ")
    assert memory.update("a", text="The heron.").updated == 1
    with memory.bank.writer(), pytest.raises(BankBusy):  # another part of this process holds it
        memory.delete("a")


def test_former_versions_are_encoded_anew_with_the_rest(memory: Memory, loaded: LoadedModel) -> None:
    _tell(memory)
    memory.update("a", metadata={"n": 1})
    folder, recorded = memory.bank.folder, memory.versions("a")[1].recorded_at
    other = tiny_loaded(seed=1, max_document_tokens=16)  # it cuts texts at other places, too
    reencode(memory.bank, other)
    assert verify(memory.bank) == []
    with Memory(MemoryBank.open(folder), other) as again:
        for selector in SELECTORS:
            assert _texts(again, selector, as_of="2025-06-01")
        assert again.search("otter Bern", selector="router", as_of="2025-06-01")
        assert again.search("Bern", selector="lexical", as_of="2025-06-01")[0].external_id == "a"
        assert again.search("Bern", selector="lexical") == []
        assert again.get("a", known_at=recorded).metadata == {}
        again.bank.compact(secure=True)
        assert again.list(as_of="2025-06-01") == []
        assert verify(again.bank) == []
