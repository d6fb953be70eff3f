"""The engine: one thread that answers questions, their tokens decoded together.

A question waits in a bounded queue, is looked up and prefilled alone, and then decodes in one batch with all others;
it can leave at any token. While one is prefilled the others wait for that one forward, no more: a turn of the engine
prepares at most one question, and then writes a token of each.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

from memspan.errors import MemspanError
from memspan.events import CallWritten, Done, Event, TextWritten
from memspan.generate.batching import DecodingBatch
from memspan.generate.memory import Memory
from memspan.generate.request import AskOptions
from memspan.model.convert import LoadedModel

_log = logging.getLogger(__name__)

# What an answer is taken to last before any was given, for telling when to come back.
_FIRST_GUESS = 5.0
_SMOOTHING = 0.2


class EngineError(MemspanError):
    """A question that the engine did not answer."""

    def __reduce__(self) -> tuple[type[EngineError], tuple[object, ...]]:
        return type(self), ()


class QueueFull(EngineError):
    """Too many questions wait already.

    Attributes:
        retry_after: seconds after which there may be room.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__("too many questions wait already; ask again later")
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type[EngineError], tuple[object, ...]]:
        return type(self), (self.retry_after,)


class Stopping(EngineError):
    """The engine stops, and takes no more questions."""

    def __init__(self) -> None:
        super().__init__("the server is stopping; ask another one, or this one again when it is back")


class DeadlineExceeded(EngineError):
    """A question's time was over before its answer was done."""

    def __init__(self) -> None:
        super().__init__("the answer took too long; ask for fewer tokens, or when there is less to do")


class WorkerLost(EngineError):
    """The process that was answering a question has died."""

    def __init__(self) -> None:
        super().__init__("the process that was answering died; ask again")


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a question that got no answer."""

    error: Exception


Deliver = Callable[[Event | Failed], None]


@dataclass(eq=False, slots=True)
class Ticket:
    """One question in the engine.

    Attributes:
        queued_seconds: that it waited for its turn.
    """

    memory: Memory
    question: str
    options: AskOptions
    deliver: Deliver
    deadline: float
    submitted: float = field(default_factory=time.monotonic)
    queued_seconds: float = 0.0
    steps: Iterator[Event | None] | None = None
    decoding: bool = False
    cancelled: bool = False


class Answering(ABC):
    """Questions that wait, before who answers them. `submit`, `cancel`, `drain` and `close` are for any thread.

    Args:
        max_batch: questions answered at a time.
        max_queue: questions that wait, at most.
        timeout: seconds from `submit` to the answer, at most.
    """

    def __init__(self, *, max_batch: int, max_queue: int, timeout: float) -> None:
        self._max_batch, self._max_queue, self._timeout = max_batch, max_queue, timeout
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._draining = self._closing = False
        self._stop_at = math.inf
        self._seconds_per_answer = _FIRST_GUESS

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    @abstractmethod
    def num_running(self) -> int: ...

    @property
    def is_asked(self) -> bool:
        """Whether questions wait or are being answered."""
        return bool(self._waiting or self.num_running)

    @property
    @abstractmethod
    def is_ready(self) -> bool: ...

    def submit(
        self, memory: Memory, question: str, options: AskOptions, deliver: Deliver, timeout: float | None = None
    ) -> Ticket:
        """Ask. Returns at once.

        Args:
            memory: of this engine's model; not used by any other thread.
            deliver: called in another thread with every event; the last is a `Done` or a `Failed`. Not called after
                `cancel`.
            timeout: seconds that are left for this one; None: as for all.

        Raises:
            QueueFull: too many questions wait.
            Stopping: the engine stops.
        """
        seconds = self._timeout if timeout is None else timeout
        ticket = Ticket(memory, question, options, deliver, time.monotonic() + seconds)
        with self._changed:
            if self._draining or not self._is_up():
                raise Stopping
            if self.num_running + len(self._waiting) >= self._max_batch + self._max_queue:
                waves = 1 + len(self._waiting) / self._max_batch
                raise QueueFull(waves * self._seconds_per_answer)
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Give a question up: its place is free at the next token. Nothing happens to one that is answered."""
        with self._changed:
            ticket.cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            self._changed.notify()

    def drain(self, grace: float = math.inf) -> None:
        """Take no more questions, and refuse those that wait. Running ones get `grace` seconds to finish."""
        with self._changed:
            self._draining = True
            self._stop_at = min(self._stop_at, time.monotonic() + grace)
            self._changed.notify()
        self._refuse_waiting()

    @abstractmethod
    def close(self, grace: float = 0.0) -> None:
        """Stop: running questions get `grace` seconds to finish, or what is left of those an earlier `drain` gave."""

    @abstractmethod
    def _is_up(self) -> bool: ...

    def _refuse_waiting(self) -> None:
        with self._changed:
            refused = list(self._waiting)
            self._waiting.clear()
        for ticket in refused:
            ticket.deliver(Failed(Stopping()))

    def _took(self, seconds: float) -> None:
        """An answer took so long: for telling when to come back."""
        self._seconds_per_answer += _SMOOTHING * (seconds - self._seconds_per_answer)


class Engine(Answering):
    """Answers questions of any bank of one model, in one thread."""

    def __init__(self, loaded: LoadedModel, *, max_batch: int, max_queue: int, timeout: float) -> None:
        super().__init__(max_batch=max_batch, max_queue=max_queue, timeout=timeout)
        self._batch = DecodingBatch(loaded, max_batch)
        self._running: list[Ticket] = []
        self._thread = threading.Thread(target=self._run, name="memspan-engine", daemon=True)
        self._thread.start()

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def is_ready(self) -> bool:
        return self._is_up() and not self._draining

    def _is_up(self) -> bool:
        return self._thread.is_alive()

    def close(self, grace: float = 0.0) -> None:
        self.drain(grace)
        with self._changed:
            self._changed.wait_for(lambda: not self._running, self._stop_at - time.monotonic())
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._admit():
            self._end_some()
            self._advance()
        for ticket in list(self._running):
            self._end(ticket, Failed(Stopping()))

    def _admit(self) -> bool:
        """Wait until there is something to do, and take in what there is room for. False: stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._running or self._closing)
            while self._waiting and len(self._running) < self._max_batch:
                ticket = self._waiting.popleft()
                ticket.queued_seconds = time.monotonic() - ticket.submitted
                ticket.steps = ticket.memory.steps(ticket.question, self._batch, **ticket.options)
                self._running.append(ticket)
            return not self._closing

    def _end_some(self) -> None:
        """End what was given up, or takes too long."""
        now = time.monotonic()
        for ticket in list(self._running):
            if ticket.cancelled:
                self._end(ticket, None)
            elif now > self._stop_at:
                self._end(ticket, Failed(Stopping()))
            elif now > ticket.deadline:
                self._end(ticket, Failed(DeadlineExceeded()))

    def _advance(self) -> None:
        """One turn: what decodes tells what the last step wrote, one question is prepared, and all write a token."""
        for ticket in [ticket for ticket in self._running if ticket.decoding]:
            self._take(ticket)
        preparing = next((ticket for ticket in self._running if not ticket.decoding), None)
        if preparing is not None:
            self._take(preparing)
        try:
            self._batch.step()
        except Exception as error:  # out of memory, say: all that decode are lost, the engine is not
            _log.exception("a decoding step failed")
            for ticket in [ticket for ticket in self._running if ticket.decoding]:
                self._end(ticket, Failed(error))

    def _take(self, ticket: Ticket) -> None:
        """Take a question's events up to its next token, or to the end of what prepares a round."""
        assert ticket.steps is not None, "it is running"
        try:
            for event in ticket.steps:
                ticket.decoding = event is None or isinstance(event, TextWritten | CallWritten)
                if event is None:
                    return
                if isinstance(event, Done):
                    self._end(ticket, event)
                    return
                ticket.deliver(event)
                if not ticket.decoding:
                    return
        except Exception as error:  # whatever it is, it is this question's alone
            if not isinstance(error, MemspanError):
                _log.exception("a question failed")
            self._end(ticket, Failed(error))

    def _end(self, ticket: Ticket, last: Done | Failed | None) -> None:
        """Free a question's place, then tell it its end."""
        if isinstance(ticket.steps, Generator):
            ticket.steps.close()
        seconds = time.monotonic() - ticket.submitted - ticket.queued_seconds
        with self._changed:
            self._running.remove(ticket)
            if isinstance(last, Done):
                self._took(seconds)
            self._changed.notify_all()
        if last is not None:
            ticket.deliver(last)
