"""Processes that answer beside one another: each has the model, an engine, and the banks to read.

The process that starts them takes all requests and makes every change; a question goes to the worker that has the
fewest. A worker sees what was committed before its question, as every reader of a bank does.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import math
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from memspan.errors import MemspanError
from memspan.events import Done, Event
from memspan.generate.answerer import Answerer
from memspan.generate.memory import Memory
from memspan.generate.request import AskOptions
from memspan.model.convert import LoadedModel
from memspan.serve.banks import close_banks, open_banks
from memspan.serve.engine import Answering, Deliver, Engine, EngineError, Failed, Ticket, WorkerLost
from memspan.serve.logs import keep_private, place_of, set_up

_log = logging.getLogger(__name__)

# How long a worker may take to end when it is asked to; how long until another takes its place, at first and at most.
_ENDING_SECONDS, _REST, _LONGEST_REST = 10.0, 0.5, 30.0


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a worker is made from; it is sent to another process, so its functions are those of modules or objects that
    can be pickled.

    Attributes:
        load: gives the model, ready to decode.
        banks: as given to `memspan.serve.banks.open_banks`.
        answerer: gives the other model that answers, if there is one.
        max_batch: questions of one worker at a time.
        log_json: log JSON lines.
    """

    load: Callable[[], LoadedModel]
    banks: tuple[str | os.PathLike[str], ...]
    answerer: Callable[[], Answerer | None]
    max_batch: int
    log_json: bool = False


@dataclass(frozen=True, slots=True)
class _Ask:
    number: int
    bank: str
    namespace: str
    question: str
    options: AskOptions
    seconds: float


@dataclass(frozen=True, slots=True)
class _Cancel:
    number: int


@dataclass(frozen=True, slots=True)
class _Drain:
    grace: float


@dataclass(frozen=True, slots=True)
class _End:
    pass


@dataclass(frozen=True, slots=True)
class _Begun:
    """A worker takes questions; or why it cannot."""

    failure: str | None = None


@dataclass(frozen=True, slots=True)
class _Told:
    number: int
    event: Event | Failed


class _Line:
    """One end of a connection. What is said is written by a thread of its own, so `say` never waits; None hangs up."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._said: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="memspan-line", daemon=True)
        self._thread.start()

    def say(self, message: object) -> None:
        self._said.put(message)

    def hear(self) -> object:
        """The next message, or None: there is nobody at the other end any more."""
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            return None

    def close(self) -> None:
        """Hang up when everything is said."""
        self.say(None)
        self._thread.join(_ENDING_SECONDS)
        self._connection.close()

    def _write(self) -> None:
        while (message := self._said.get()) is not None:
            try:
                self._connection.send(message)
            except OSError:
                return


class Workers(Answering):
    """As an `Engine`, with several processes that answer. Made, it has a worker in each place that takes questions.

    Args:
        count: of processes; one that dies is replaced.
        names: of the banks that are served, by their folders.
        max_queue, timeout: as of an `Engine`.

    Raises:
        MemspanError: a worker cannot begin.
    """

    def __init__(
        self, setup: WorkerSetup, count: int, names: Mapping[Path, str], *, max_queue: int, timeout: float
    ) -> None:
        super().__init__(max_batch=setup.max_batch * count, max_queue=max_queue, timeout=timeout)
        self._each, self._names = setup.max_batch, names
        self._numbers = itertools.count()
        self._workers: list[_Worker] = []
        atexit.register(self.close)  # it runs before multiprocessing's own, which waits for whoever was not told to end
        for _ in range(count):
            self._workers.append(_Worker(self, setup, max(1, (os.cpu_count() or 1) // count)))
        with self._changed:
            self._changed.wait_for(lambda: all(worker.line or worker.failure for worker in self._workers))
        if (failure := next((worker.failure for worker in self._workers if worker.failure), None)) is not None:
            self.close()
            raise MemspanError(f"a process that answers cannot begin: {failure}")

    @property
    def num_running(self) -> int:
        return sum(len(worker.running) for worker in self._workers)

    @property
    def is_ready(self) -> bool:
        return not self._draining and any(worker.line for worker in self._workers)

    @property
    def pids(self) -> list[int]:
        """Of the workers that take questions."""
        return [worker.pid for worker in self._workers if worker.line]

    def submit(
        self, memory: Memory, question: str, options: AskOptions, deliver: Deliver, timeout: float | None = None
    ) -> Ticket:
        ticket = super().submit(memory, question, options, deliver, timeout)
        self.assign()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        super().cancel(ticket)
        with self._changed:
            for worker in self._workers:
                for number in [number for number, running in worker.running.items() if running is ticket]:
                    del worker.running[number]
                    worker.say(_Cancel(number))
        self.assign()

    def drain(self, grace: float = math.inf) -> None:
        super().drain(grace)
        for worker in self._workers:
            worker.say(_Drain(grace))

    def close(self, grace: float = 0.0) -> None:
        self.drain(grace)
        with self._changed:
            # A step may be running when the grace is over.
            self._changed.wait_for(lambda: not self.num_running, self._stop_at - time.monotonic() + _ENDING_SECONDS)
            self._closing = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.close()
        atexit.unregister(self.close)

    def _is_up(self) -> bool:
        return not self._closing

    def assign(self) -> None:
        """Give the questions that wait to the workers that have room, the least busy first."""
        with self._changed:
            while free := [worker for worker in self._workers if worker.line and len(worker.running) < self._each]:
                try:
                    ticket = self._waiting.popleft()
                except IndexError:
                    return
                now, number = time.monotonic(), next(self._numbers)
                ticket.queued_seconds = now - ticket.submitted
                worker = min(free, key=lambda worker: len(worker.running))
                worker.running[number] = ticket
                name, namespace = self._names[ticket.memory.bank.folder], ticket.memory.namespace
                worker.say(_Ask(number, name, namespace, ticket.question, ticket.options, ticket.deadline - now))

    def began(self, worker: _Worker, line: _Line) -> None:
        """A worker takes questions."""
        with self._changed:
            worker.line, worker.failure = line, None
            self._changed.notify_all()
            if self._draining:
                worker.say(_Drain(max(0.0, self._stop_at - time.monotonic())))
        self.assign()

    def heard(self, worker: _Worker, told: _Told) -> None:
        """An event of a question has come."""
        is_last = isinstance(told.event, Done | Failed)
        with self._changed:
            ticket = worker.running.get(told.number)
            if ticket is None:  # it was cancelled
                return
            if is_last:
                del worker.running[told.number]
                if isinstance(told.event, Done):
                    self._took(time.monotonic() - ticket.submitted - ticket.queued_seconds)
                self._changed.notify_all()
        ticket.deliver(told.event)
        if is_last:
            self.assign()

    def lost(self, worker: _Worker, failure: str | None) -> None:
        """A worker has ended, before its time if none closed it; or it could not begin."""
        with self._changed:
            worker.line, worker.failure = None, failure
            tickets = list(worker.running.values())
            worker.running.clear()
            self._changed.notify_all()
        for ticket in tickets:
            ticket.deliver(Failed(WorkerLost()))
        if failure is not None and not any(one.line for one in self._workers):
            self._refuse_waiting()

    def stops_within(self, seconds: float) -> bool:
        """Wait; then, or before, whether everything stops."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closing or self._draining, seconds)


class _Worker:
    """One process after the other, and the thread that hears them.

    Attributes:
        running: the questions it has, by their numbers.
        line: to one that takes questions; None: there is none now.
        failure: why the last one did not begin.
    """

    def __init__(self, workers: Workers, setup: WorkerSetup, num_threads: int) -> None:
        self.running: dict[int, Ticket] = {}
        self.line: _Line | None = None
        self.failure: str | None = None
        self.pid = 0
        self._workers, self._setup, self._num_threads = workers, setup, num_threads
        self._thread = threading.Thread(target=self._run, name="memspan-worker", daemon=True)
        self._thread.start()

    def say(self, message: object) -> None:
        """Tell the process, if there is one; what is said to one that dies is lost, and so are its questions."""
        if (line := self.line) is not None:
            line.say(message)

    def close(self) -> None:
        self.say(_End())
        self._thread.join(2 * _ENDING_SECONDS)

    def _run(self) -> None:
        rest = _REST
        while True:
            failure = self._live()
            if self._workers.stops_within(rest):
                return
            _log.error("a process that answers has ended (%s); another takes its place", failure or "it died")
            rest = _REST if failure is None else min(2 * rest, _LONGEST_REST)

    def _live(self) -> str | None:
        """Start a process and hear it until it ends. Returns why it did not begin; None: it did."""
        spawning = multiprocessing.get_context("spawn")  # a process with threads cannot be copied
        ours, theirs = spawning.Pipe()
        process = spawning.Process(target=_work, args=(self._setup, theirs, self._num_threads), daemon=True)
        try:
            process.start()
        except Exception as error:
            failure = f"it cannot be started: {error}"
            self._workers.lost(self, failure)
            return failure
        finally:
            theirs.close()
        self.pid = process.pid or 0
        failure = self._hear(_Line(ours))
        process.join(_ENDING_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        return failure

    def _hear(self, line: _Line) -> str | None:
        """Hear a process until it ends. Returns as `_live` does."""
        failure: str | None = "it died while it began; is there enough memory for another model?"
        while (message := line.hear()) is not None:
            if isinstance(message, _Told):
                self._workers.heard(self, message)
            elif isinstance(message, _Begun) and (failure := message.failure) is None:
                self._workers.began(self, line)
        self._workers.lost(self, failure)
        line.close()
        return failure


def _work(setup: WorkerSetup, connection: Connection, num_threads: int) -> None:
    """What the process of a worker does, until there is nobody at the other end any more."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):  # they go to a whole group; who started it says when
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    set_up(setup.log_json)
    keep_private()
    line = _Line(connection)
    try:
        _answer(setup, line, num_threads)
    except Exception as error:
        line.say(_Begun(str(error) if isinstance(error, MemspanError) else place_of(error)))
    line.close()
    os._exit(0)  # libraries complain of what they find left


def _answer(setup: WorkerSetup, line: _Line, num_threads: int) -> None:
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(num_threads)
    loaded = setup.load()
    banks = open_banks(setup.banks, loaded, 1, setup.answerer())
    engine = Engine(loaded, max_batch=setup.max_batch, max_queue=setup.max_batch, timeout=math.inf)
    tickets: dict[int, Ticket] = {}
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()

    def deliver_to(number: int) -> Callable[[Event | Failed], None]:
        def deliver(event: Event | Failed) -> None:
            line.say(_Told(number, _sendable(event)))
            if isinstance(event, Done | Failed):
                ended.put(number)

        return deliver

    line.say(_Begun())
    while not isinstance(message := line.hear(), _End | None):
        while not ended.empty():
            tickets.pop(ended.get(), None)
        match message:
            case _Ask(number, bank, namespace, question, options, seconds):
                try:
                    memory = banks[bank].memory(namespace)
                    tickets[number] = engine.submit(memory, question, options, deliver_to(number), seconds)
                except EngineError as error:
                    line.say(_Told(number, Failed(error)))
            case _Cancel(number) if number in tickets:
                engine.cancel(tickets.pop(number))
            case _Drain(grace):
                engine.drain(grace)
    engine.close()
    close_banks(banks)


def _sendable(event: Event | Failed) -> Event | Failed:
    """An event as another process can read it: an error of ours as it is, of another only where it was raised."""
    if not isinstance(event, Failed):
        return event
    if isinstance(event.error, MemspanError):
        try:
            pickle.loads(pickle.dumps(event.error))
            return event
        except Exception:
            return Failed(MemspanError(str(event.error)))
    return Failed(RuntimeError(place_of(event.error)))
