"""Running a server: uvicorn around the application, and what a signal to stop means."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
from collections.abc import Callable, Iterable
from os import PathLike
from types import FrameType

import uvicorn
from fastapi import FastAPI
from sse_starlette.sse import AppStatus
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from memspan.generate.answerer import Answerer
from memspan.model.convert import LoadedModel
from memspan.serve.app import check_closed, create_app
from memspan.serve.banks import close_banks, open_banks
from memspan.serve.keys import KeyFile
from memspan.serve.logs import keep_private
from memspan.serve.settings import ServeSettings
from memspan.serve.workers import Workers, WorkerSetup

_ENDING_SECONDS = 10
# Files that a server opens beside its connections: of its banks and model, for answers and changes.
_OTHER_FILES = 256
_MOST_FILES = 65_536
# Connections that wait to be accepted; uvicorn's loop accepts up to so many at a time.
_BACKLOG = 128


class TimeoutProtocol(H11Protocol):
    """HTTP as uvicorn speaks it, but a connection is closed on which a request's headers do not come whole in time, or
    more comes of a body that nobody reads any more. Where there are too many connections, that one is closed whose
    request has been incomplete for longest.

    Attributes:
        patience: seconds.
        most: connections at a time.
        waiting: those without a complete request, the oldest first.
    """

    patience: float
    most: int
    waiting: dict[TimeoutProtocol, None]
    _closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look()
        if len(self.connections) > self.most:
            next(iter(self.waiting))._close()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()  # which may find that the next request is there already
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _look(self) -> None:
        """What is waited for now: a request's headers, its body (for which the gate has its own patience), nothing."""
        if self.transport.is_closing():
            return
        begun = self.cycle is not None and not self.cycle.response_complete
        if begun and not self.cycle.more_body:
            self._forget()
            return
        self.waiting.setdefault(self)
        if begun:
            self._forget_time()
        elif self._closing is None:
            self._closing = self.loop.call_later(self.patience, self._close)

    def _close(self) -> None:
        self._forget()
        self.transport.close()

    def _forget(self) -> None:
        self.waiting.pop(self, None)
        self._forget_time()

    def _forget_time(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None


class Server(uvicorn.Server):
    """A server that, asked to stop, takes no more questions at once, and lets running answers finish."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if isinstance(self.config.app, FastAPI):
            self.config.app.state.service.stop()
        super().handle_exit(sig, frame)


def make_server(
    loaded: LoadedModel,
    banks: Iterable[str | PathLike[str]],
    settings: ServeSettings,
    keys: KeyFile | None = None,
    answerer: Answerer | None = None,
    setup: WorkerSetup | None = None,
) -> Server:
    """A server ready to `run`.

    Args:
        banks: as FOLDER, URL or NAME=FOLDER; empty banks are made where there are none.
        answerer: another model that answers; None: the banks' own.
        setup: what processes that answer are made from, where the settings have several.

    Raises:
        MemspanError: a bank cannot be opened, a process cannot begin, or the server would be open to other machines.
    """
    check_closed(settings, keys)
    opened = open_banks(banks, loaded, settings.max_writes, answerer, settings.publish)
    try:
        engine = None
        if setup is not None and settings.workers > 1:
            names = {bank.folder: name for name, bank in opened.items()}
            limits = {"max_queue": settings.max_queue, "timeout": settings.timeout}
            engine = Workers(setup, settings.workers, names, **limits)
        return server_of(create_app(loaded, opened, settings, keys, engine), settings)
    except BaseException:
        close_banks(opened)
        raise


def most_connections() -> int:
    """Let this process open as many files as the system allows it, and give how many of them may be connections."""
    try:
        import resource
    except ImportError:  # Windows, where sockets are not counted so
        return _MOST_FILES
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if most == resource.RLIM_INFINITY else min(most, _MOST_FILES)
    if now != resource.RLIM_INFINITY and now < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS has another limit, which it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
            now = wanted
    now = _MOST_FILES if now == resource.RLIM_INFINITY else min(now, _MOST_FILES)
    return max(now // 2, now - _OTHER_FILES)


def run_server(server: Server, tell: Callable[[str], None]) -> None:
    """Listen, say at which address, and serve until a signal stops it."""
    listening = server.config.bind_socket()
    listening.listen(server.config.backlog)  # who hears the address may call at once, and waits until it is served
    host, port = listening.getsockname()[:2]
    tell(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    # uvicorn raises the signal that stopped it once more when it is done; by then there is nothing left to stop, and
    # what its caller has open is still to be closed.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    if (hangup := getattr(signal, "SIGHUP", None)) and signal.getsignal(hangup) != signal.SIG_IGN:
        before[hangup] = signal.signal(hangup, server.handle_exit)  # uvicorn knows only the others
    try:
        server.run([listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_app(app: ASGIApp, settings: ServeSettings, tell: Callable[[str], None]) -> None:
    """Serve another application in the same way."""
    run_server(server_of(app, settings), tell)


def server_of(app: ASGIApp, settings: ServeSettings) -> Server:
    """A server of any application, ready to `run`."""
    keep_private()
    limits = {"patience": settings.patience, "most": most_connections(), "waiting": {}}
    AppStatus.disable_automatic_graceful_drain()  # streams end when their answers do, see `Service.stop`
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=type("TimeoutProtocol", (TimeoutProtocol,), limits),
        backlog=_BACKLOG,
        loop="asyncio",  # whatever else is installed
        ws="none",
        log_config=None,
        access_log=False,  # it would hold the ids in paths and queries
        log_level="warning",
        server_header=False,
        # Answers end before, after the decoding step or prefill that runs then, and their ends are to be sent.
        timeout_graceful_shutdown=math.ceil(settings.grace) + _ENDING_SECONDS,
    )
    return Server(config)
