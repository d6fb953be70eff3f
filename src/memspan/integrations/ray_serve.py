"""Ray Serve: replicas that answer, as many as the questions need, and one that makes all changes.

The writer's replica has the bank's folder, and publishes the bank at a URL after every change. Readers' replicas open
the URL, take all requests, and pass on to the writer whatever changes a memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memspan.bank.publication import read_latest
from memspan.bank.remembered import names_for
from memspan.bank.store import Store
from memspan.bank.texts import TextBank
from memspan.model.convert import LoadedModel, load
from memspan.model.decoding import prepare
from memspan.places import BankPlace
from memspan.serve.app import check_closed, create_app
from memspan.serve.banks import bank_places, open_banks
from memspan.serve.errors import ApiError
from memspan.serve.keys import KeyFile
from memspan.serve.logs import REQUEST_ID, keep_private
from memspan.serve.service import ClientGone, while_connected
from memspan.serve.settings import REQUESTS_PER_MINUTE, ServeSettings

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
try:
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException
    from ray.serve.handle import DeploymentHandle
except ImportError as error:
    raise ImportError(f"Ray Serve is not installed ({error.name}): pip install 'memspan[ray]'") from error

_LOOK_SECONDS = 0.5
# What of a request travels to the writer.
_TRAVELS = frozenset(
    {"type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path"}
    | {"headers", "client", "server"}
)


def application(
    bank: str | os.PathLike[str],
    url: str,
    *,
    keys: str | os.PathLike[str],
    readers: tuple[int, int] = (1, 4),
    model: str | Path | None = None,
    adapter: str | Path | None = None,
    dtype: str | None = None,
    settings: ServeSettings | None = None,
    reader_options: Mapping[str, Any] | None = None,
    writer_options: Mapping[str, Any] | None = None,
) -> serve.Application:
    """A bank as an application, for `ray.serve.run`. It serves what `memspan serve` does, at the route `/`.

    Replicas of readers are added while each has more questions than it answers at a time (`settings.max_batch`), and
    removed when they have fewer.

    Args:
        bank: its folder on the writer's machine, or NAME=FOLDER; no URL. An empty bank is made where there is none.
        url: where the writer publishes it and readers read it: an object store, or a folder that all machines share.
        keys: file of API keys, under the same path on every machine. Ray Serve may listen to other machines.
        readers: how many replicas answer, at least and at most.
        model, adapter, dtype: see `memspan.model.convert.load`; None: what made the bank.
        settings: limits of each replica, without host and port, which are Ray Serve's. Default: as for `memspan serve`
            with keys.
        reader_options, writer_options: what Ray gives each replica, as `{"num_gpus": 1}`. Name a resource that only one
            machine has, so that the writer always starts where the bank's folder is: `{"resources": {"bank": 1}}`.

    Raises:
        MemspanError: the bank's name cannot stand in a model's name, or the bank is a URL.
        ValueError: there are fewer readers at most than at least, or none at all; or the settings have several workers.
    """
    served = _Served.of(bank, url, keys, (model, adapter, dtype), settings)
    limits = served.settings
    ends: dict[str, Any] = {"graceful_shutdown_timeout_s": limits.grace + 10.0}
    writer = serve.deployment(
        name="writer",
        num_replicas=1,
        max_ongoing_requests=limits.max_batch + limits.max_queue + limits.max_writes,
        ray_actor_options=dict(writer_options or {}),
        **ends,
    )(_Writer).bind(served)
    return serve.deployment(
        name="readers",
        max_ongoing_requests=limits.max_batch + limits.max_queue,
        autoscaling_config=_scaling(*readers, limits.max_batch),
        ray_actor_options=dict(reader_options or {}),
        **ends,
    )(serve.ingress()(_Reader)).bind(served, writer)


def _scaling(least: int, most: int, each: int) -> dict[str, int]:
    """
    Raises:
        ValueError: there cannot be so few replicas, or so many.
    """
    if not 1 <= least <= most:
        raise ValueError(f"readers are at least one, and at most as many as that or more, not {least} to {most}")
    return {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": each}


@dataclass(frozen=True, slots=True)
class _Served:
    """What replicas are made from."""

    name: str
    place: BankPlace
    url: str
    keys: Path
    model: str | Path | None
    adapter: str | Path | None
    dtype: str | None
    settings: ServeSettings

    @classmethod
    def of(
        cls,
        bank: str | os.PathLike[str],
        url: str,
        keys: str | os.PathLike[str],
        model: tuple[str | Path | None, str | Path | None, str | None],
        settings: ServeSettings | None,
    ) -> _Served:
        """Replicas have another working folder, so that paths are made absolute.

        Raises:
            MemspanError, ValueError: see `application`.
        """
        ((name, place),) = bank_places([bank]).items()
        if settings is not None and settings.workers > 1:
            raise ValueError("each replica is one process; have more readers in place of workers")
        limits = settings or ServeSettings(requests_per_minute=REQUESTS_PER_MINUTE)
        limits = replace(limits, host="0.0.0.0", publish=None)  # so that it is closed without keys
        folder = BankPlace.of(place.new_folder.absolute())
        published = url if "://" in url else str(BankPlace.of(url).folder.absolute())
        path, adapter, dtype = model
        return cls(
            name, folder, published, Path(keys).expanduser().absolute(), _found(path), _found(adapter), dtype, limits
        )

    def app(self, writes: bool) -> FastAPI:
        """The application of a replica, which owns its bank.

        Raises:
            MemspanError: bank or model cannot be opened, or there are no keys.
        """
        keep_private()
        keys = KeyFile(self.keys)
        check_closed(self.settings, keys)  # before the model, which takes longer, and before anything is published
        place = self.place if writes else BankPlace.of(self.url)
        loaded = self._load(place)
        prepare(loaded.model)
        given = replace(place, name=f"{self.name}={place.name}")
        publish = self.url if writes else None
        banks = open_banks([given], loaded, self.settings.max_writes, publish=publish)
        return create_app(loaded, banks, self.settings, keys)

    def _load(self, place: BankPlace) -> LoadedModel:
        model, adapter = self.model, self.adapter
        if TextBank.exists(place):
            with contextlib.closing(TextBank.open(place)) as bank:
                model, adapter = names_for(bank, model, adapter)
        return load(model, adapter=adapter, dtype=self.dtype)


def _found(model: str | Path | None) -> str | Path | None:
    """The absolute path of a folder that is here; else what was given, which may be a name."""
    return Path(model).absolute() if model is not None and Path(model).is_dir() else model


class _Writer:
    """The replica that makes all changes."""

    async def __init__(self, served: _Served) -> None:
        self._app = await run_in_threadpool(served.app, True)
        self._running = contextlib.AsyncExitStack()
        await self._running.enter_async_context(self._app.router.lifespan_context(self._app))

    async def respond(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """The messages of a response to a request that came whole. Who goes away ends this generator."""
        given, taken = anyio.create_memory_object_stream[Message]()

        async def run() -> None:
            async with given:
                await self._app(scope, _given_again(body, asyncio.Future[Message]), given.send)

        task = asyncio.create_task(run())
        try:
            async with taken:
                async for message in taken:
                    yield message
            await task
        finally:
            task.cancel()

    def check_health(self) -> None:
        _check_ready(self._app)

    async def __del__(self) -> None:
        if hasattr(self, "_running"):
            await self._running.aclose()


class _Reader:
    """A replica that answers from what was published."""

    async def __init__(self, served: _Served, writer: DeploymentHandle) -> None:
        while await run_in_threadpool(lambda: read_latest(Store(served.url)) is None):
            await asyncio.sleep(_LOOK_SECONDS)  # the writer begins at the same time
        self._made = await run_in_threadpool(served.app, False)
        # The innermost, behind the gate: what it passes on is within the limits of a request.
        self._made.user_middleware.append(Middleware(_Passing, writer=writer))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._made

    def check_health(self) -> None:
        _check_ready(self._made)


class _Passing:
    """ASGI middleware that has the writer respond to what changes a memory."""

    def __init__(self, app: ASGIApp, writer: DeploymentHandle) -> None:
        self._app, self._writer = app, writer.options(stream=True, method_name="respond")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _reads(scope):
            await self._app(scope, receive, send)
            return
        body = await Request(scope, receive).body()
        if scope["path"] == "/v1/chat/completions" and not _remembers(body):
            await self._app(scope, _given_again(body, receive), send)
            return
        travels = {name: value for name, value in scope.items() if name in _TRAVELS}
        others = [pair for pair in scope["headers"] if pair[0] != b"x-request-id"]
        travels["headers"] = [*others, (b"x-request-id", REQUEST_ID.get().encode())]
        response: Any = self._writer.remote(travels, body)
        try:
            await while_connected(Request(scope, receive), _relayed(response, send))
        except ClientGone:
            return
        except (RayError, RayServeException) as error:
            problem = "the replica that makes changes is not there now; send the request again"
            raise ApiError(503, problem, "writer_lost", retry_after=5) from error
        finally:
            response.cancel()


async def _relayed(messages: AsyncIterator[Message], send: Send) -> None:
    async for message in messages:
        await send(message)


def _given_again(body: bytes, receive: Receive) -> Receive:
    """A request whose body was read before."""
    read = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return read.pop() if read else await receive()

    return again


def _check_ready(app: FastAPI) -> None:
    """
    Raises:
        RuntimeError: no more questions are answered, so that Ray Serve replaces the replica.
    """
    if not app.state.service.engine.is_ready:
        raise RuntimeError("the engine has ended")


def _reads(scope: Scope) -> bool:
    """Whether a request changes nothing, and a reader knows all about it, by its method and path."""
    method, path = scope["method"], scope["path"]
    if path.startswith("/v1/imports"):
        return False
    return method in ("GET", "HEAD", "OPTIONS") or (method, path) == ("POST", "/v1/memories/search")


def _remembers(body: bytes) -> bool:
    """Whether a question is to be remembered with its answer. What is not JSON is refused by whoever reads it."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(asked, dict) and bool(asked.get("remember"))
