"""OpenTelemetry traces: a span for every request, and in it one for each stage. No text, path, id or key is in them.

Without the SDK, or where nobody has set it up, spans cost nothing and go nowhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from opentelemetry import propagate, trace

from memspan import __version__
from memspan.events import CallWritten, Done, Event, RoundDone, RoundStarted, TextWritten

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig

# FastAPI's own spans hold paths and queries, and its logs the messages of errors.
WITHOUT_FASTAPIS: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}

_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_tracer = trace.get_tracer("memspan", __version__)


@contextlib.contextmanager
def request_span(method: str, headers: Mapping[str, str], request_id: str) -> Iterator[trace.Span]:
    """A span of a request, and of what is done for it; a part of the caller's trace where it names one."""
    method = method if method in _METHODS else "_OTHER"
    with _tracer.start_as_current_span(
        method,
        propagate.extract(headers),
        trace.SpanKind.SERVER,
        {"http.request.method": method, "memspan.request_id": request_id},
        record_exception=False,  # its message may hold a text
        set_status_on_exception=False,
    ) as span:
        yield span


def responded(span: trace.Span, route: str, status: int) -> None:
    """Say which route a request came to, and how it ended."""
    span.set_attributes({"http.route": route, "http.response.status_code": status})
    if span.is_recording():
        span.update_name(f"{span.attributes['http.request.method']} {route}")  # type: ignore[attr-defined]
    if status >= 500:
        span.set_status(trace.StatusCode.ERROR)


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """A span of the part of a request that a block is."""
    with _tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as span:
        try:
            yield
        except BaseException:
            span.set_status(trace.StatusCode.ERROR)
            raise


class AnswerStages:
    """The spans of a question, from its events: `wait` for its turn, `find` (each round), `read` and `write`.

    Made where the request's span is the current one; the rest is for one thread.
    """

    def __init__(self) -> None:
        self._request = trace.set_span_in_context(trace.get_current_span())
        self._name, self._span = "", trace.INVALID_SPAN
        self._enter("wait")

    def take(self, event: Event | object) -> None:
        """An event has come; what is no event is the end of a question without an answer."""
        match event:
            case RoundStarted():
                self._enter("find")
            case RoundDone(round=done):
                self._span.set_attributes({"memspan.selector": done.selector, "memspan.documents": len(done.chosen)})
                self._enter("read")
            case TextWritten() | CallWritten():
                self._enter("write")
            case Done(answer=answer):
                used = {"input": answer.num_prompt_tokens, "output": answer.num_new_tokens}
                self._span.set_attributes({f"gen_ai.usage.{side}_tokens": count for side, count in used.items()})
                self._span.end()
            case _:
                self.fail()

    def fail(self) -> None:
        """The question has ended without an answer. Nothing happens to one that has ended."""
        if self._span.is_recording():
            self._span.set_status(trace.StatusCode.ERROR)
            self._span.end()

    def _enter(self, name: str) -> None:
        if name != self._name:
            if self._span.is_recording():
                self._span.end()
            self._name, self._span = name, _tracer.start_span(name, self._request)


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Send spans by OTLP over HTTP, as the environment says: `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME` ...

    Raises:
        ImportError: the extra `otel` is not installed.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME") or "memspan"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()
