"""What every request passes before any of it is read: host, key, rate, size, kind; and headers every response gets."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Collection

from opentelemetry.trace import Span
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memspan.errors import MemspanError
from memspan.serve.errors import ApiError, error_response
from memspan.serve.keys import SCOPES, KeyFile, Principal
from memspan.serve.logs import REQUEST_ID, request_id
from memspan.serve.metrics import Metrics
from memspan.serve.settings import ServeSettings
from memspan.serve.traces import request_span, responded

_log = logging.getLogger(__name__)

_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_LOCAL_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.IGNORECASE)
_MOST_CLIENTS = 10_000
_CLIENT_GONE = 499
_SLOWEST = 10_000  # bytes a second of a body, at least
_SECONDS_PER_MINUTE = 60.0


class RateLimit:
    """So many requests a minute of each client, in bursts of no more (a token bucket each)."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, client: str) -> None:
        """Count one request.

        Raises:
            ApiError: 429, there were too many.
        """
        if self._per_minute is None:
            return
        now = self._clock()
        left, since = self._buckets.pop(client, (float(self._per_minute), now))
        rate = self._per_minute / _SECONDS_PER_MINUTE
        left = min(float(self._per_minute), left + rate * (now - since))
        allowed = left >= 1
        self._buckets[client] = (left - allowed, now)
        while len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)
        if not allowed:
            raise ApiError(
                429, "too many requests in this minute; slow down", "rate_limited", retry_after=(1 - left) / rate
            )


class Gate:
    """ASGI middleware. Requests that it lets through carry their `Principal` in `request.state.principal`.

    Args:
        keys: who may enter; None: everybody, with every scope (the server is then local, and answers only to local
            names, so that no web page can reach it by a name of its own).
        keyless: paths that may be read without a key: what is the same for everybody.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: ServeSettings,
        keys: KeyFile | None,
        metrics: Metrics,
        keyless: Collection[str] = (),
    ) -> None:
        self._app, self._settings, self._keys, self._metrics = app, settings, keys, metrics
        self._keyless = keyless
        self._rate = RateLimit(settings.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        known_as = request_id(headers.get("x-request-id"))
        REQUEST_ID.set(known_as)
        with request_span(scope["method"], headers, known_as) as span:
            await self._handle(scope, receive, send, headers, known_as, span)

    async def _handle(
        self, scope: Scope, receive: Receive, send: Send, headers: Headers, known_as: str, span: Span
    ) -> None:
        """Let a request through, or refuse it; and count it."""
        started, status = time.perf_counter(), _CLIENT_GONE  # if nothing is sent

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                sent = MutableHeaders(scope=message)
                sent["X-Request-ID"] = known_as
                for name, value in _SECURITY_HEADERS.items():
                    sent.setdefault(name, value)
            await send(message)

        try:
            principal = self._principal(scope, headers)
            self._rate.check(principal.id)
            self._check_body(scope, headers)
        except (ApiError, MemspanError) as error:
            await error_response(error)(scope, receive, send_with_headers)
        else:
            scope.setdefault("state", {})["principal"] = principal
            try:
                await self._app(scope, self._limited(receive), send_with_headers)
            except Exception as error:
                if status != _CLIENT_GONE:
                    raise  # what was begun is cut off, so that nobody takes it for whole
                await error_response(error)(scope, receive, send_with_headers)
        finally:
            self._ended(scope, status, time.perf_counter() - started, span)

    def _ended(self, scope: Scope, status: int, seconds: float, span: Span) -> None:
        route = getattr(scope.get("route"), "path", "none")
        responded(span, route, status)
        self._metrics.request(route, status, seconds)
        fields = {"method": scope["method"], "route": route, "status": status, "seconds": round(seconds, 3)}
        _log.info("%s %s %d", scope["method"], route, status, extra={"fields": fields})

    def _principal(self, scope: Scope, headers: Headers) -> Principal:
        """Who asks.

        Raises:
            ApiError: 401 without a good key; 403 by a name that is not this machine's.
        """
        client = scope.get("client")
        address = client[0] if client else "local"
        if self._keys is None:
            if not _LOCAL_HOST.fullmatch(headers.get("host", "")):
                raise ApiError(403, "a server without keys answers to localhost only", "forbidden_host")
            return Principal(address, frozenset(SCOPES))
        if scope["path"] in self._keyless and scope["method"] in ("GET", "HEAD"):
            return Principal(address, frozenset())
        kind, _, secret = headers.get("authorization", "").partition(" ")
        principal = self._keys.principal(secret.strip()) if kind.lower() == "bearer" else None
        if principal is None:
            error = ApiError(401, "a valid API key is needed: Authorization: Bearer msk_...", "invalid_api_key")
            error.headers = {"WWW-Authenticate": "Bearer"}
            raise error
        return principal

    def _check_body(self, scope: Scope, headers: Headers) -> None:
        """
        Raises:
            ApiError: 413 too large, 415 not JSON.
        """
        length = headers.get("content-length", "0")
        has_body = length != "0" or "transfer-encoding" in headers
        if not length.isascii() or not length.isdigit() or int(length) > self._settings.max_request_bytes:
            raise self._too_large()
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        # Also keeps web pages out: another kind is what they may send to a foreign server without asking it first.
        if has_body and scope["method"] not in ("GET", "HEAD", "OPTIONS") and kind != "application/json":
            raise ApiError(415, "a body is JSON: Content-Type: application/json", "unsupported_media_type")

    def _limited(self, receive: Receive) -> Receive:
        """The same, until a body is too large or comes too slowly."""
        received, whole, patience = 0, False, self._settings.patience
        began = asyncio.get_running_loop().time()

        async def counted() -> Message:
            nonlocal received, whole
            try:
                async with asyncio.timeout_at(None if whole else began + patience + received / _SLOWEST):
                    message = await receive()
            except TimeoutError:
                raise _too_slow() from None
            received, whole = received + len(message.get("body", b"")), not message.get("more_body", False)
            if received > self._settings.max_request_bytes:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> ApiError:
        most = self._settings.max_request_bytes
        return ApiError(413, f"a request has at most {most:,} bytes; send less at a time", "request_too_large")


def _too_slow() -> ApiError:
    error = ApiError(408, "the request did not come whole in time; send it again, at once", "request_timeout")
    error.headers = {"Connection": "close"}
    return error
