"""A memory in several threads and on an event loop: the same answers, no lost change, nothing that blocks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_loaded

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.events import Done
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.generate.summarize import SummaryPlan
from memspan.model.convert import LoadedModel
from memspan.model.decoding import prepare, unprepared_alone
from memspan.types import Answer

CITIES = {"otter": "Rome", "heron": "Oslo", "lynx": "Quito", "newt": "Bern"}
QUESTIONS = [f"Where does the {animal} live?" for animal in CITIES]
LONG = Sampling(max_new_tokens=40)  # more steps than a model takes before it is prepared
SHORT = Sampling(max_new_tokens=6)


def endless(**msa: Any) -> LoadedModel:
    """A model that never ends an answer by itself."""
    loaded = tiny_loaded(**msa)
    loaded.template.stop_ids = frozenset()
    loaded.model.generation_config.eos_token_id = None
    return loaded


@pytest.fixture
def loaded() -> LoadedModel:
    return endless()


@pytest.fixture
def memory(tmp_path: Path, loaded: LoadedModel) -> Iterator[Memory]:
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(loaded)), loaded) as memory:
        memory.add([f"The {animal} lives in {city}." for animal, city in CITIES.items()], ids=list(CITIES))
        yield memory


def said(answer: Answer) -> tuple[str, list[str]]:
    return answer.text, [item.external_id for item in answer.evidence]


# --- threads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selector", ["lexical", "router"])
def test_questions_in_threads_are_answered_as_alone_while_the_model_is_prepared(
    memory: Memory, selector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [said(memory.ask(question, selector=selector, sampling=LONG)) for question in QUESTIONS]
    fresh = memory.in_namespace(memory.namespace)
    fresh.loaded = endless()
    fresh.loaded.model.decode_weights = "exact"
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda q: fresh.ask(q, selector=selector, sampling=LONG), QUESTIONS * 3))
    assert [said(answer) for answer in answers] == alone * 3
    assert fresh.loaded.model.decode_weights is None, "it was prepared meanwhile"


def test_a_model_is_not_prepared_while_another_thread_runs_it(loaded: LoadedModel) -> None:
    loaded.model.decode_weights = "exact"
    preparing = threading.Thread(target=prepare, args=(loaded.model,))
    with unprepared_alone(loaded.model):
        preparing.start()
        preparing.join(0.3)
        assert preparing.is_alive() and loaded.model.decode_weights == "exact"
    preparing.join(60)
    assert loaded.model.decode_weights is None
    with unprepared_alone(loaded.model):  # and prepared, any number of threads run it
        other = threading.Thread(target=lambda: unprepared_alone(loaded.model).__enter__())
        other.start()
        other.join(10)
        assert not other.is_alive()


def test_what_threads_add_and_delete_at_once_is_all_done(memory: Memory) -> None:
    def change(number: int) -> None:
        memory.in_namespace(memory.namespace).add([f"Note {number} of the marmot."], ids=[f"note-{number}"])
        memory.update(f"note-{number}", metadata={"n": number})
        if number % 2:
            memory.delete(f"note-{number}")
        assert memory.search("marmot", selector="lexical"), "and it is asked meanwhile"

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(change, range(0, 13)))
    assert {document.external_id for document in memory} == {*CITIES, *(f"note-{n}" for n in range(0, 13, 2))}


def test_reading_waits_for_no_change(memory: Memory) -> None:
    reading, read = threading.Event(), threading.Event()

    def documents() -> Iterator[str]:
        yield "The ibis lives in Delhi."
        reading.set()
        assert read.wait(60), "nobody could read"

    adding = threading.Thread(target=memory.add, args=(documents(),))
    adding.start()
    assert reading.wait(60)
    assert len(memory) == len(memory.list()) == 4 and memory.get("otter") in list(memory)
    assert memory.ask(QUESTIONS[0], sampling=SHORT).text and memory.search("otter")
    read.set()
    adding.join(60)
    assert len(memory) == 5


def test_a_snapshot_is_seen_by_every_thread(memory: Memory, loaded: LoadedModel) -> None:
    with Memory(MemoryBank.open(memory.bank.folder), loaded, snapshot=True) as pinned:
        alone = [said(pinned.ask(question, selector="router", sampling=SHORT)) for question in QUESTIONS]
        memory.delete(where={"external_id": {"!=": "otter"}})
        with ThreadPoolExecutor(4) as threads:
            answers = threads.map(lambda q: pinned.ask(q, selector="router", sampling=SHORT), QUESTIONS * 4)
            assert [said(answer) for answer in answers] == alone * 4 and len(pinned) == 4


# --- async ----------------------------------------------------------------------------------------------------------


def test_every_method_that_works_has_an_async_twin() -> None:
    methods = {name for part in Memory.__mro__[:-1] for name in vars(part) if not name.startswith("_")}
    twins = {name for name in methods if f"{name[1:]}" in methods and name.startswith("a")}
    others = {"open", "in_namespace", "is_pinned", "close", "refresh", "default_selector", "steps", "check"}
    others.add("sync")  # its twin would be called `async`, which is a keyword
    assert methods - twins - others == {name[1:] for name in twins}
    for name in twins:
        assert getattr(Memory, name).__name__ == name
        assert getattr(Memory, name).__doc__ == f"`{name[1:]}` in a worker thread."


def test_the_twins_do_what_the_methods_do(memory: Memory, tmp_path: Path) -> None:
    (tmp_path / "ibis.txt").write_text("The ibis lives in Delhi.")

    async def run() -> None:
        assert (await memory.aadd(["The gecko lives in Accra."], ids=["gecko"])).added == 1
        assert (await memory.aadd_files(tmp_path / "ibis.txt")).added == 1
        assert (await memory.aremember("I am Ann.", speaker="Ann")).added == 1
        assert (await memory.aget("gecko")).text == "The gecko lives in Accra."
        assert (await memory.aupdate("gecko", metadata={"n": 1})).updated == 1
        assert [document.external_id for document in await memory.alist(where={"n": 1})] == ["gecko"]
        assert await memory.adelete(where={"n": 1}) == 1
        question = QUESTIONS[0]
        expected = said(memory.ask(question, sampling=SHORT))
        together = await asyncio.gather(*(memory.aask(question, sampling=SHORT) for _ in range(3)))
        assert [said(answer) for answer in together] == [expected] * 3
        assert [said(answer) for answer in await memory.aask_batch([question], sampling=SHORT)] == [expected]
        assert await memory.asearch(question) == memory.search(question)
        assert "".join([text async for text in memory.astream(question, sampling=SHORT)]).strip() == expected[0]
        *_, last = [event async for event in memory.aevents(question, sampling=SHORT)]
        assert isinstance(last, Done) and said(last.answer) == expected
        plan = SummaryPlan(sampling=SHORT)
        assert (await memory.asummarize(plan)).num_documents == memory.summarize(plan).num_documents == 6

    asyncio.run(run())


@pytest.mark.parametrize("name", ["aask", "asearch", "aadd", "astream", "aevents"])
def test_the_twins_check_options_and_questions(memory: Memory, name: str) -> None:
    async def call(**options: Any) -> None:
        made = getattr(memory, name)(["otter"] if name == "aadd" else "otter?", **options)
        if isinstance(made, AsyncIterator):
            async for _ in made:
                pass
        else:
            await made

    with pytest.raises(TypeError, match=f"Memory.{name[1:]} has no option 'wher'"):
        asyncio.run(call(wher={"n": 1}))


def test_the_event_loop_runs_on_while_a_memory_works(memory: Memory) -> None:
    async def run() -> int:
        turns, asking = 0, asyncio.ensure_future(memory.aask(QUESTIONS[0], sampling=LONG))
        while not asking.done():
            turns += 1
            await asyncio.sleep(0.001)
        return turns

    assert asyncio.run(run()) > 3


def test_a_stream_that_is_left_or_cancelled_ends_the_question(memory: Memory) -> None:
    async def leave() -> None:
        stream = memory.astream(QUESTIONS[0], sampling=Sampling(max_new_tokens=300))
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]

        async def read() -> None:
            async for _ in memory.aevents(QUESTIONS[0], sampling=Sampling(max_new_tokens=300)):
                began.set()

        began = asyncio.Event()
        reading = asyncio.ensure_future(read())
        await began.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    asyncio.run(leave())
    memory.bank.compact(secure=True, timeout=5)  # refused while a question reads
    assert memory.ask(QUESTIONS[0], sampling=SHORT).text
