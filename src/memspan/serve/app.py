"""The application: routes behind the gate, and what is opened when it starts and closed when it stops."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from memspan import __version__
from memspan.errors import MemspanError
from memspan.model.convert import LoadedModel
from memspan.serve.api import chat, health, memories, overview, page
from memspan.serve.banks import ServedBank, close_banks
from memspan.serve.engine import Answering, Engine
from memspan.serve.errors import handle
from memspan.serve.gate import Gate
from memspan.serve.keys import KeyFile
from memspan.serve.metrics import Metrics
from memspan.serve.service import Service
from memspan.serve.settings import ServeSettings
from memspan.serve.traces import WITHOUT_FASTAPIS

_DESCRIPTION = "A language model with a memory of documents. Chat is OpenAI's API; `memspan` fields are its own."


def create_app(
    loaded: LoadedModel,
    banks: Mapping[str, ServedBank],
    settings: ServeSettings,
    keys: KeyFile | None,
    engine: Answering | None = None,
) -> FastAPI:
    """The ASGI application of one server. It owns the banks: they are closed when it stops.

    Args:
        engine: who answers; it is closed when the application stops. None: a thread of this process.
        keys: who may call; None: everybody, which only a server that listens on this machine alone may allow.

    Raises:
        MemspanError: the server would be open to other machines.
    """
    check_closed(settings, keys)
    if engine is None:
        engine = Engine(loaded, max_batch=settings.max_batch, max_queue=settings.max_queue, timeout=settings.timeout)
    service = Service(settings, engine, banks, Metrics(engine, banks))
    for bank in banks.values():
        bank.encode_behind(lambda: engine.is_asked)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await service.imports.resume(banks.values())
            yield
        finally:
            service.stop()
            await run_in_threadpool(engine.close, settings.grace)
            await run_in_threadpool(close_banks, banks)

    handled = (HTTPException, RequestValidationError, MemspanError, Exception)
    app = with_routes(lifespan=lifespan, exception_handlers={kind: handle for kind in handled})
    app.state.service = service
    app.add_middleware(Gate, settings=settings, keys=keys, metrics=service.metrics, keyless=page.PATHS | health.PATHS)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    return app


def with_routes(**options: Any) -> FastAPI:
    """All routes, described (`openapi()`), without what they work with."""
    app = FastAPI(
        title="memspan",
        version=__version__,
        description=_DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        telemetry=WITHOUT_FASTAPIS,
        **options,
    )
    for routes in (chat, memories, overview, health, page):
        app.include_router(routes.router)
    return app


def check_closed(settings: ServeSettings, keys: KeyFile | None) -> None:
    """Refuse to be open to other machines.

    Raises:
        MemspanError: with what to do.
    """
    if settings.is_local and keys is None:
        return
    if keys is None or not keys.stored():
        raise MemspanError(
            f"a server on {settings.host} needs API keys; make one with: memspan keys add NAME (and serve with --keys "
            "FILE), or serve on 127.0.0.1"
        )
