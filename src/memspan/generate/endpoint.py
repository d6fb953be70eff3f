"""Another language model, behind any endpoint that speaks OpenAI's chat completions: Ollama, llama.cpp, vLLM, an API.

Its answers stream. What the endpoint refuses for now (429, 5xx, no connection) is asked again, each time after twice
the wait, or after as long as it says, as long as nothing of the answer has come. A key goes into the request's header
alone: into no message, no log and no representation.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import random
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from memspan.errors import AnswererError, AnswererRefused
from memspan.generate.answerer import AnswerEnd, CallPiece, Message, NextSearch
from memspan.generate.completions import (
    LOOK_UP,
    EndpointRefusal,
    adapt,
    check,
    context_in,
    parsed,
    pieces_of,
    request_body,
    wanted_in,
)
from memspan.generate.sampling import Sampling

if TYPE_CHECKING:
    import httpx2

_log = logging.getLogger(__name__)

KEY_VARIABLES = ("MEMSPAN_ANSWER_KEY", "OPENAI_API_KEY")
# Where the endpoint does not say how much its model reads.
DEFAULT_CONTEXT = 4096
_LONGEST_WAIT = 30.0
_CONNECT_SECONDS = 10.0
# Seconds that a step waits for text; other questions of the same thread have their turn after it.
_STEP_SECONDS = 0.002
_LONGEST_REASON = 300
_CALL_TOKENS = 256
_WRONG = (400, 422)

_Piece = str | CallPiece | AnswerEnd | None


class _NoTools(AnswererError):
    """The endpoint, or its model, takes no tools."""


@dataclass(frozen=True)
class Endpoint:
    """A model behind an endpoint, an `Answerer`; for any thread.

    Attributes:
        url: up to and with its version, as in `http://localhost:8000/v1`.
        key: empty where none is needed.
        room: tokens that the model has room for; None: as the endpoint says, or else 4096.
        timeout: seconds without a byte.
        retries: of a call that failed for now, each after twice the `wait` in seconds.
        parallel: calls under way at the same time.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    room: int | None = None
    timeout: float = 120.0
    retries: int = 3
    wait: float = 1.0
    parallel: int = 32

    def __post_init__(self) -> None:
        """
        Raises:
            AnswererError: the URL is none, or holds a password; the key cannot be sent; a number is too small.
        """
        host, _, _ = self.url.partition("://")[2].partition("/")
        if not self.url.startswith(("http://", "https://")) or not host:
            raise AnswererError(f"the endpoint must be a URL as http://localhost:8000/v1, not {self.url!r}")
        if "@" in host or "?" in self.url:
            raise AnswererError(f"the endpoint's URL must hold no password or key; set {KEY_VARIABLES[0]} instead")
        if not (self.key.isascii() and self.key.isprintable() and self.key == self.key.strip()):
            raise AnswererError("the key of the endpoint has white space or characters that no key has; set it again")
        if not self.model.strip():
            raise AnswererError("name the model at the endpoint")
        if (self.room is not None and self.room < 1) or self.timeout <= 0 or self.retries < 0 or self.parallel < 1:
            raise AnswererError("context, timeout and parallel calls must be above 0, and retries not negative")

    @property
    def name(self) -> str:
        return self.model

    @property
    def context(self) -> int:
        """Tokens that the model has room for; the endpoint is asked once.

        Raises:
            AnswererError: the endpoint cannot be reached, or refuses the key.
        """
        return self._context if self.room is None else self.room

    @cached_property
    def _context(self) -> int:
        found = self._run(self._models()).result()
        if found is None:
            _log.warning(
                "%s does not say how much %s reads; %d tokens are taken, say otherwise with --answer-context",
                *(self.url, self.model, DEFAULT_CONTEXT),
            )
        return DEFAULT_CONTEXT if found is None else found

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str | AnswerEnd | None]:
        """See `Answerer`. It was given no tools, so calls of some are passed over.

        Raises:
            AnswererError: the endpoint gave no answer, or the answer broke off; says why.
        """
        with closing(self.call(messages, sampling, {})) as pieces:
            for piece in pieces:
                if not isinstance(piece, CallPiece):
                    yield piece

    def call(self, messages: Sequence[Message], sampling: Sampling, fields: Mapping[str, Any]) -> Generator[_Piece]:
        """See `ToolCaller`.

        Raises:
            AnswererRefused: the endpoint refused the request, and there are fields.
            AnswererError: as for `stream`.
        """
        pieces: queue.SimpleQueue[_Piece] = queue.SimpleQueue()
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        body = {**request_body(self.model, messages, sampling), **streamed, **fields}
        has_more = bool(fields) or any(message.fields for message in messages)
        work = self._run(self._answer(body, pieces, has_more))
        work.add_done_callback(lambda _: pieces.put(None))
        try:
            while True:
                try:
                    piece = pieces.get(timeout=_STEP_SECONDS)
                except queue.Empty:
                    yield None
                    continue
                if piece is None:
                    break
                yield piece
            work.result()
        finally:
            work.cancel()

    def ask(self, prompt: str, max_tokens: int = 1024) -> str:
        """The model's whole reply to a prompt, at temperature 0.

        Raises:
            AnswererError: as for `stream`.
        """
        messages = [Message("user", prompt)]
        body = request_body(self.model, messages, Sampling(max_new_tokens=max_tokens))
        pieces: queue.SimpleQueue[_Piece] = queue.SimpleQueue()
        self._run(self._answer(body, pieces)).result()
        found = [pieces.get() for _ in range(pieces.qsize())]
        return "".join(piece for piece in found if isinstance(piece, str))

    def look_up(self, messages: Sequence[Message]) -> Iterator[NextSearch | None]:
        """See `Searcher`. An endpoint that takes no tools is asked once.

        Raises:
            AnswererError: as for `stream`.
        """
        if self._without_tools.is_set():
            return
        body = request_body(self.model, messages, Sampling(_CALL_TOKENS)) | {"tools": [LOOK_UP], "tool_choice": "auto"}
        work = self._run(self._patiently(lambda: self._call(body), lambda: False, body))
        try:
            while not wait([work], _STEP_SECONDS).done:
                yield None
            yield work.result()
        except _NoTools as error:
            self._without_tools.set()
            _log.warning("%s; further rounds search for names in the texts that were found", error)
        finally:
            work.cancel()

    @cached_property
    def _without_tools(self) -> threading.Event:
        """Set where the endpoint refused tools."""
        return threading.Event()

    async def _call(self, body: dict[str, Any]) -> NextSearch:
        reply = await self._client.post(f"{self.url.rstrip('/')}/chat/completions", json=body)
        try:
            await check(reply)
        except EndpointRefusal as error:
            if "tool" in error.reason.lower() and error.status not in (401, 403, 429):
                raise _NoTools(f"{self.model} at {self.url} calls no tools") from None
            raise
        try:
            return wanted_in(parsed(reply.text))
        except ValueError:  # search leads this round
            return NextSearch(None)

    def _run(self, work: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, _loop())

    @cached_property
    def _client(self) -> httpx2.AsyncClient:
        import httpx2

        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx2.Limits(max_connections=self.parallel)
        timeout = httpx2.Timeout(self.timeout, connect=_CONNECT_SECONDS, pool=None)
        return httpx2.AsyncClient(headers=headers, limits=limits, timeout=timeout)

    async def _models(self) -> int | None:
        import httpx2

        try:
            reply = await self._client.get(f"{self.url.rstrip('/')}/models", timeout=_CONNECT_SECONDS)
            if reply.status_code in (401, 403):
                await check(reply)
            return context_in(parsed(reply.text), self.model) if reply.is_success else None
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.InvalidURL, EndpointRefusal) as error:
            raise self._error(str(error) or type(error).__name__) from None
        except (httpx2.HTTPError, ValueError):  # it may answer all the same
            return None

    async def _answer(self, body: dict[str, Any], pieces: queue.SimpleQueue[_Piece], has_more: bool = False) -> None:
        begun = False

        async def answer() -> None:
            nonlocal begun
            async with self._client.stream("POST", f"{self.url.rstrip('/')}/chat/completions", json=body) as reply:
                await check(reply)
                async for piece in pieces_of(reply):
                    begun = begun or isinstance(piece, str | CallPiece)
                    pieces.put(piece)

        await self._patiently(answer, lambda: begun, body, has_more)

    async def _patiently(
        self, call: Any, begun: Any, body: dict[str, Any] | None = None, has_more: bool = False
    ) -> Any:
        """Call, and call again where the endpoint fails for now and nothing has come yet.

        Args:
            has_more: the request holds what somebody else wrote.

        Raises:
            AnswererRefused: what they wrote may be wrong.
            AnswererError: it gives nothing.
        """
        import httpx2

        attempt = 0
        while True:
            wait: float | None = self.wait * 2**attempt * (1 + random.random() / 4)
            try:
                return await call()
            except EndpointRefusal as error:
                if body is not None and adapt(body, error):
                    continue
                if has_more and error.status in _WRONG:
                    reason = error.reason.replace(self.key, "***") if self.key else error.reason
                    raise AnswererRefused(f"{self.model} refused the request: {reason[:_LONGEST_REASON]}") from None
                reason = str(error)
                if error.status < 500 and error.status != 429:
                    wait = None
                elif error.retry_after is not None and wait is not None:
                    wait = max(wait, error.retry_after)
            except httpx2.ReadTimeout:
                reason, wait = f"nothing came for {self.timeout:g} s", None
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                reason = f"{type(error).__name__}: {error}"
            except ValueError as error:  # what it sent is no answer
                reason, wait = str(error), None
            if begun():
                raise self._error(f"its answer broke off ({reason})")
            if wait is None or wait > _LONGEST_WAIT or attempt == self.retries:
                raise self._error(reason)
            attempt += 1
            await asyncio.sleep(wait)

    def _error(self, reason: str) -> AnswererError:
        reason = (reason.replace(self.key, "***") if self.key else reason)[:_LONGEST_REASON]
        return AnswererError(
            f"{self.model} at {self.url} gave no answer: {reason}; check the endpoint, the model's name and the key "
            f"({' or '.join(KEY_VARIABLES)})"
        )


def key_from_environment() -> str:
    """The key of an endpoint: of MEMSPAN_ANSWER_KEY, else of OPENAI_API_KEY; empty where neither is set."""
    return next((found for name in KEY_VARIABLES if (found := os.environ.get(name, "").strip())), "")


_lock = threading.Lock()
_running: list[asyncio.AbstractEventLoop] = []


def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all endpoints, in a thread of its own: there a request ends at once when it is given up."""
    with _lock:
        if not _running:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="memspan-endpoints", daemon=True).start()
            _running.append(loop)
        return _running[0]
