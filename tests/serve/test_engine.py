"""The engine: what it answers, who waits, who leaves, how it ends. No test waits for a clock."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from serving import wait_for

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.errors import EmptyBank
from memspan.events import Done, Event, TextWritten
from memspan.generate.memory import Memory
from memspan.generate.request import AskOptions
from memspan.generate.sampling import Sampling
from memspan.model.convert import LoadedModel
from memspan.serve.engine import DeadlineExceeded, Engine, Failed, QueueFull, Stopping, Ticket
from memspan.types import Document

QUESTIONS = ["Where does the otter live?", "Tell me of the otter of 3", "otter", "What is at 7, and at 8?", "Rome"]


@pytest.fixture(scope="module")
def memory(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Memory]:
    folder = tmp_path_factory.mktemp("engine") / "bank"
    with Memory(MemoryBank.create(folder, manifest_of(loaded)), loaded) as memory:
        memory.add(Document(f"note-{place}", f"The otter lives at number {place}.") for place in range(10))
        yield memory


class Listener:
    """Takes a question's events. `gate`: the engine waits at the first piece of text until it is set."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.events: list[Event | Failed] = []
        self.gate, self.writing = gate, threading.Event()

    def __call__(self, event: Event | Failed) -> None:
        self.events.append(event)
        if isinstance(event, TextWritten):
            self.writing.set()
            if self.gate is not None:
                assert self.gate.wait(30)

    @property
    def ended(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Done | Failed)

    @property
    def text(self) -> str:
        assert isinstance(self.events[-1], Done), self.events[-1]
        return self.events[-1].answer.text

    @property
    def error(self) -> Exception:
        assert isinstance(self.events[-1], Failed), self.events[-1]
        return self.events[-1].error


@pytest.fixture
def make(loaded: LoadedModel) -> Iterator[Any]:
    """Makes engines, and closes them."""
    made: list[Engine] = []

    def make(**settings: Any) -> Engine:
        made.append(Engine(loaded, **{"max_batch": 3, "max_queue": 10, "timeout": 60.0, **settings}))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def _ask(engine: Engine, memory: Memory, listener: Listener, question: str = "otter", tokens: int = 8) -> Ticket:
    options = AskOptions(sampling=Sampling(max_new_tokens=tokens))
    return engine.submit(memory.in_namespace("default"), question, options, listener)


def test_many_questions_get_the_answers_they_would_get_alone(make: Any, memory: Memory) -> None:
    engine, listeners = make(), []
    for place, question in enumerate(QUESTIONS * 2):
        listeners.append((question, 4 + place, Listener()))
        _ask(engine, memory, listeners[-1][2], question, 4 + place)
    wait_for(lambda: all(listener.ended for _, _, listener in listeners))
    for question, tokens, listener in listeners:
        assert listener.text == memory.ask(question, sampling=Sampling(max_new_tokens=tokens)).text
        written = "".join(event.text for event in listener.events if isinstance(event, TextWritten))
        assert written.strip() == listener.text
    assert (engine.num_running, engine.num_waiting) == (0, 0)


def test_a_question_joins_while_another_is_answered(make: Any, memory: Memory) -> None:
    """The short one begins later and ends sooner."""
    engine, order = make(), []
    long, short = Listener(), Listener()

    def note(name: str, listener: Listener) -> Any:
        def deliver(event: Event | Failed) -> None:
            listener(event)
            if listener.ended:
                order.append(name)

        return deliver

    gate = long.gate = threading.Event()
    _ask(engine, memory, note("long", long), tokens=200)  # type: ignore[arg-type]
    assert long.writing.wait(30)
    _ask(engine, memory, note("short", short), tokens=4)  # type: ignore[arg-type]
    gate.set()
    wait_for(lambda: len(order) == 2)
    assert order == ["short", "long"]
    assert long.text == memory.ask("otter", sampling=Sampling(max_new_tokens=200)).text


def test_rows_are_written_in_turn(make: Any, memory: Memory) -> None:
    """No question gets a second token before every other that is decoding got its own."""
    engine, gate, order = make(), threading.Event(), []

    def deliver(name: int) -> Any:
        def note(event: Event | Failed) -> None:
            if isinstance(event, TextWritten):
                order.append(name)
                assert gate.wait(30)

        return note

    for name in range(3):
        engine.submit(memory, f"otter {name}", AskOptions(sampling=Sampling(max_new_tokens=40)), deliver(name))
    gate.set()
    wait_for(lambda: engine.num_running == engine.num_waiting == 0)
    together = order[order.index(2) : len(order) - order[::-1].index(0)]
    counts = [together.count(name) for name in range(3)]
    assert max(counts) - min(counts) <= 0.4 * max(counts), counts  # a token may show no text of its own


def test_who_goes_away_frees_the_place_at_once(make: Any, memory: Memory) -> None:
    engine = make(max_batch=1)
    gate = threading.Event()
    left, waits, stays = Listener(gate), Listener(), Listener()
    ticket = _ask(engine, memory, left, tokens=1000)
    assert left.writing.wait(30)
    waiting = _ask(engine, memory, waits)
    _ask(engine, memory, stays)
    engine.cancel(waiting)
    assert engine.num_waiting == 1
    engine.cancel(ticket)
    gate.set()
    wait_for(lambda: stays.ended)
    assert stays.text and not waits.events
    written = sum(isinstance(event, TextWritten) for event in left.events)
    assert written == 1 and not left.ended, "nothing is told to who has gone"


def test_a_full_queue_refuses_and_says_when_to_come_back(make: Any, memory: Memory) -> None:
    engine, gate = make(max_batch=1, max_queue=1), threading.Event()
    first, second = Listener(gate), Listener()
    _ask(engine, memory, first)
    assert first.writing.wait(30)
    _ask(engine, memory, second)
    with pytest.raises(QueueFull) as refused:
        _ask(engine, memory, Listener())
    assert refused.value.retry_after > 0
    gate.set()
    wait_for(lambda: first.ended and second.ended)
    third = Listener()
    _ask(engine, memory, third)
    wait_for(lambda: third.ended)
    assert third.text == second.text == first.text


def test_what_takes_too_long_is_ended(make: Any, memory: Memory) -> None:
    engine, gate = make(timeout=0.0), threading.Event()
    gate.set()
    listener = Listener(gate)
    _ask(engine, memory, listener)
    wait_for(lambda: listener.ended)
    assert isinstance(listener.error, DeadlineExceeded)


def test_an_error_is_its_own_questions_alone(make: Any, memory: Memory) -> None:
    engine, gate = make(), threading.Event()
    good, empty, broken = Listener(gate), Listener(), Listener()
    _ask(engine, memory, good, tokens=30)
    assert good.writing.wait(30)
    engine.submit(memory, "otter", AskOptions(sampling=None), broken)  # type: ignore[typeddict-item]
    engine.submit(memory.in_namespace("nobody"), "otter", AskOptions(), empty)
    gate.set()
    wait_for(lambda: good.ended and empty.ended and broken.ended)
    assert good.text == memory.ask("otter", sampling=Sampling(max_new_tokens=30)).text
    assert isinstance(broken.error, TypeError)
    assert isinstance(empty.error, EmptyBank)


def test_a_failed_step_ends_what_decodes_and_nothing_else(
    make: Any, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, gate = make(), threading.Event()
    hit, after = Listener(gate), Listener()
    _ask(engine, memory, hit, tokens=50)
    assert hit.writing.wait(30)
    step, failed = engine._batch.step, threading.Event()

    def fail() -> None:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("out of memory")
        step()

    monkeypatch.setattr(engine._batch, "step", fail)
    gate.set()
    wait_for(lambda: hit.ended)
    assert isinstance(hit.error, RuntimeError)
    _ask(engine, memory, after)
    wait_for(lambda: after.ended)
    assert after.text == memory.ask("otter", sampling=Sampling(max_new_tokens=8)).text


def test_stopping_finishes_what_runs_and_refuses_what_waits(make: Any, memory: Memory) -> None:
    engine, gate = make(max_batch=1), threading.Event()
    runs, waits = Listener(gate), Listener()
    _ask(engine, memory, runs)
    assert runs.writing.wait(30)
    _ask(engine, memory, waits)
    assert engine.is_ready
    engine.drain()
    assert not engine.is_ready
    assert isinstance(waits.error, Stopping)
    with pytest.raises(Stopping):
        _ask(engine, memory, Listener())
    gate.set()
    engine.close(grace=30)
    assert runs.text == memory.ask("otter", sampling=Sampling(max_new_tokens=8)).text


def test_closing_without_grace_ends_what_runs(make: Any, memory: Memory) -> None:
    engine, gate = make(), threading.Event()
    listener = Listener(gate)
    _ask(engine, memory, listener, tokens=1000)
    assert listener.writing.wait(30)
    closing = threading.Thread(target=engine.close)
    closing.start()
    wait_for(lambda: engine._closing)
    gate.set()
    closing.join(30)
    assert isinstance(listener.error, Stopping)
