"""What the routes work with, and who may reach what of it."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, TypeVar, cast

import anyio
from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from memspan.bank.catalog import DEFAULT_NAMESPACE
from memspan.bank.texts import check_namespace
from memspan.errors import BankError
from memspan.events import Done, Event
from memspan.generate.memory import Memory
from memspan.generate.request import AskOptions
from memspan.serve.banks import ServedBank
from memspan.serve.engine import Answering, DeadlineExceeded, Failed, QueueFull, Stopping, Ticket, WorkerLost
from memspan.serve.errors import ApiError
from memspan.serve.imports import Imports
from memspan.serve.keys import Principal
from memspan.serve.metrics import Metrics
from memspan.serve.settings import ServeSettings
from memspan.serve.traces import AnswerStages, stage
from memspan.types import Answer

Result = TypeVar("Result")

MODEL_PREFIX = "memspan/"
_SEARCHES = 4


@dataclass(frozen=True)
class Service:
    """Everything one server has.

    Attributes:
        banks: by name; the first is the default.
        search_slots: searches that run at a time; further ones wait.
        started: seconds since the epoch.
    """

    settings: ServeSettings
    engine: Answering
    banks: Mapping[str, ServedBank]
    metrics: Metrics
    imports: Imports = field(default_factory=Imports)
    search_slots: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_SEARCHES))
    started: int = field(default_factory=lambda: int(time.time()))

    @property
    def answerer(self) -> str:
        """The name of the other model that writes answers; empty: the banks' own do."""
        answerer = self.bank(None).memory(DEFAULT_NAMESPACE).answerer
        return "" if answerer is None else answerer.name

    def stop(self) -> None:
        """Take no more questions, and stop imports; running answers get their grace. From any thread, or a signal's
        handler."""
        self.engine.drain(self.settings.grace)
        self.imports.stop()

    def bank(self, name: str | None) -> ServedBank:
        """A bank by its name; the first without one.

        Raises:
            ApiError: 404.
        """
        if name is None:
            return next(iter(self.banks.values()))
        if name not in self.banks:
            raise ApiError(404, f"there is no bank {name!r}; see /v1/models", "bank_not_found", param="bank")
        return self.banks[name]

    def bank_of_model(self, model: str) -> ServedBank:
        """The bank that a model's name says: `memspan/BANK`, or `memspan` for the first.

        Raises:
            ApiError: 404.
        """
        if model == MODEL_PREFIX.rstrip("/"):
            return self.bank(None)
        name = model.removeprefix(MODEL_PREFIX)
        if name == model or name not in self.banks:
            raise ApiError(404, f"there is no model {model!r}; see /v1/models", "model_not_found", param="model")
        return self.banks[name]


def namespace_for(principal: Principal, asked: str | None) -> str:
    """The namespace of a request.

    Raises:
        ApiError: 400 no name, 403 not the key's.
    """
    namespace = principal.default_namespace if asked is None else asked
    try:
        check_namespace(namespace)
    except BankError as error:
        raise ApiError(400, str(error), "invalid_value", param="namespace") from error
    if not principal.may_enter(namespace):
        raise ApiError(403, "this key may not enter this namespace", "forbidden_namespace", param="namespace")
    return namespace


def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


# For the description alone: the gate has seen the key before any route is reached.
_bearer = HTTPBearer(auto_error=False, description="An API key, as `memspan keys add` made it.")


class _Needs:
    """The principal of a request, which must have a scope."""

    def __init__(self, scope: str) -> None:
        self._scope = scope

    def __call__(self, request: Request, _: Annotated[object, Depends(_bearer)]) -> Principal:
        principal = cast(Principal, request.state.principal)
        if not principal.may(self._scope):
            raise ApiError(403, f"this key has not the scope {self._scope!r}", "missing_scope")
        return principal


def known_query(request: Request) -> None:
    """Refuse what a route does not read: a misspelt `namespace` would be another one's.

    Raises:
        ApiError: 400, with the parameter.
    """
    known = [param.alias for param in request.scope["route"].dependant.query_params]
    unknown = next((name for name in request.query_params if name not in known), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown[:100], known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"this route takes {', '.join(known) or 'none'}"
        raise ApiError(
            400, f"{unknown[:100]}: there is no such parameter; {hint}", "unknown_field", param=unknown[:100]
        )
    if request.method in ("GET", "DELETE") and request.headers.get("content-length", "0") != "0":
        raise ApiError(400, "this route reads no body; write what it takes into the address", "unknown_field")


ServiceDep = Annotated[Service, Depends(_service)]
Reader = Annotated[Principal, Depends(_Needs("read"))]
Writer = Annotated[Principal, Depends(_Needs("write"))]
Admin = Annotated[Principal, Depends(_Needs("admin"))]


class EventStream:
    """One question in the engine, for a coroutine: its events as they come."""

    def __init__(self, engine: Answering, memory: Memory, question: str, options: AskOptions) -> None:
        """
        Raises:
            ApiError: 429 too many wait, 503 the server stops.
        """
        loop, self._events = asyncio.get_running_loop(), asyncio.Queue[Event | Failed]()
        self._stages = AnswerStages()

        def deliver(event: Event | Failed) -> None:
            self._stages.take(event)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._engine = engine
        try:
            with refusals():
                self.ticket: Ticket = engine.submit(memory, question, options, deliver)
        except ApiError:
            self._stages.fail()
            raise

    async def next(self) -> Event:
        """The next event; the last is a `Done`.

        Raises:
            ApiError: the question cannot be answered.
            MemspanError: likewise.
        """
        event = await self._events.get()
        if isinstance(event, Failed):
            with refusals():
                raise event.error
        return event

    async def answer(self) -> Answer:
        """The answer, once it is whole. Raises as `next` does."""
        while not isinstance(event := await self.next(), Done):
            pass
        return event.answer

    def cancel(self) -> None:
        """Give it up; nothing happens to one that is answered."""
        self._engine.cancel(self.ticket)
        self._stages.fail()


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What the engine or a writer refuses, with its status."""
    try:
        yield
    except QueueFull as error:
        raise ApiError(429, str(error), "queue_full", retry_after=error.retry_after) from error
    except Stopping as error:
        raise ApiError(503, str(error), "stopping", retry_after=5) from error
    except DeadlineExceeded as error:
        raise ApiError(504, str(error), "timeout") from error
    except WorkerLost as error:
        raise ApiError(503, str(error), "worker_lost", retry_after=1) from error


async def written(bank: ServedBank, namespace: str, change: Callable[[Memory], Result]) -> Result:
    """The result of a change, made in the bank's queue, even if nobody waits for it any more.

    Raises:
        ApiError: 429 too many wait, 503 the server stops.
    """
    with refusals(), stage("change"):
        return await asyncio.shield(asyncio.wrap_future(bank.write(namespace, change)))


class ClientGone(Exception):
    """The client went away before it was answered."""


async def while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """Do something for a client, and stop when it goes away.

    Raises:
        ClientGone: it did.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
