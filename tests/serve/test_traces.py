"""Traces: a span of every request and of its stages, with nothing in them that a person wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from serving import SOURCE, add_animals, client, error_of, question, serving, wait_for

from memspan.generate.memory import Memory
from memspan.model.convert import LoadedModel
from memspan.serve.engine import Engine, QueueFull
from memspan.serve.keys import KeyFile

SECRET = "swordfish"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """What all spans of this process are sent to; a process has one provider."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture(scope="module")
def traced(
    exporter: InMemorySpanExporter, loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    folder = tmp_path_factory.mktemp(f"traced-{SECRET}")
    keys = KeyFile(folder / "keys.json")
    _, secret = keys.add("all", ("write",))
    with serving(loaded, folder / "notes", keys=keys) as (_, address):
        with client(address, secret) as http:
            add_animals(http)
        yield address, secret


@pytest.fixture
def http(traced: tuple[str, str], exporter: InMemorySpanExporter) -> Iterator[httpx.Client]:
    exporter.clear()
    with client(*traced) as http:
        yield http


def spans_of(exporter: InMemorySpanExporter, request_id: str) -> tuple[ReadableSpan, list[ReadableSpan]]:
    """A request's span, once it has ended, and those within it, in the order of their ends."""

    def request() -> list[ReadableSpan]:
        ended = exporter.get_finished_spans()
        return [one for one in ended if one.attributes and one.attributes.get("memspan.request_id") == request_id]

    wait_for(request)
    (found,) = request()
    ended = exporter.get_finished_spans()
    return found, [one for one in ended if one.parent and one.parent.span_id == found.context.span_id]


@pytest.mark.parametrize("stream", [False, True])
def test_a_question_has_a_span_and_its_stages_follow_one_another(
    http: httpx.Client, exporter: InMemorySpanExporter, stream: bool
) -> None:
    response = http.post("/v1/chat/completions", json=question(stream=stream))
    assert response.status_code == 200
    request, stages = spans_of(exporter, response.headers["X-Request-ID"])
    assert request.name == "POST /v1/chat/completions" and request.kind is SpanKind.SERVER
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "memspan.request_id": response.headers["X-Request-ID"],
    }
    assert [one.name for one in stages] == ["wait", "find", "read", "write"]
    assert stages[1].attributes and stages[1].attributes["memspan.documents"] == 1
    assert stages[3].attributes and stages[3].attributes["gen_ai.usage.output_tokens"] == 6


def test_rounds_have_a_span_each(http: httpx.Client, exporter: InMemorySpanExporter) -> None:
    asked = question(memspan={"rounds": 2, "documents_per_round": 1})
    response = http.post("/v1/chat/completions", json=asked)
    rounds = len(response.json()["memspan"]["rounds"])
    _, stages = spans_of(exporter, response.headers["X-Request-ID"])
    assert [one.name for one in stages] == ["wait", *["find", "read"] * rounds, "write"] and rounds == 2


@pytest.mark.parametrize(
    ("method", "path", "body", "stage"),
    [
        ("POST", "/v1/memories/search", {"query": "otter"}, "find"),
        ("POST", "/v1/memories", {"id": "a/b", "text": "x"}, "change"),
        ("POST", "/v1/memories/batch", {"memories": [{"text": "y"}]}, "change"),
        ("PATCH", "/v1/memories/animals/newt", {"title": "t"}, "change"),
        ("DELETE", "/v1/memories/a/b", None, "change"),
    ],
)
def test_what_finds_and_what_changes_has_its_stage(
    http: httpx.Client, exporter: InMemorySpanExporter, method: str, path: str, body: Any, stage: str
) -> None:
    response = http.request(method, path, json=body)
    assert response.status_code < 300, response.text
    request, (found,) = spans_of(exporter, response.headers["X-Request-ID"])
    assert found.name == stage and request.name.startswith(f"{method} /v1/memories")


def test_nothing_that_a_person_wrote_is_in_a_span(
    http: httpx.Client, exporter: InMemorySpanExporter, traced: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of requests that go well nor of those that fail; nor the server's folder, nor its keys."""

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"{SECRET} at /srv/{SECRET}/notes")

    where = json.dumps({SECRET: 1})
    http.post("/v1/memories", json={"id": SECRET, "text": SECRET, "title": SECRET, "metadata": {SECRET: SECRET}})
    http.post("/v1/chat/completions", json=question(SECRET, remember=True))
    http.get(f"/v1/memories/{SECRET}")
    http.get(f"/v1/memories/no-{SECRET}")
    http.get("/v1/memories", params={"where": where})
    http.get(f"/{SECRET}", params={SECRET: SECRET}, headers={"User-Agent": SECRET})
    http.request(SECRET.upper(), "/v1/memories")
    http.post("/v1/memories/search", json={"query": SECRET, "where": {SECRET: {"$no": 1}}})
    http.post("/v1/memories", content=SECRET.encode(), headers={"Content-Type": "application/json"})
    http.get("/v1/models", headers={"Authorization": f"Bearer msk_{SECRET}"})
    http.delete(f"/v1/memories/{SECRET}")
    monkeypatch.setattr(Memory, "search", broken)
    last = http.post("/v1/memories/search", json={"query": SECRET}, headers={"X-Request-ID": "last"})
    error_of(last, 500)
    request, (stage,) = spans_of(exporter, "last")
    assert request.status.status_code is stage.status.status_code is StatusCode.ERROR
    told = " ".join(span.to_json() for span in exporter.get_finished_spans()).lower()
    assert SECRET not in told and traced[1].lower() not in told and len(told) > 1000
    assert all(not span.events for span in exporter.get_finished_spans())
    scopes = {span.instrumentation_scope.name for span in exporter.get_finished_spans() if span.instrumentation_scope}
    assert scopes == {"memspan"}, "FastAPI's own spans hold paths and queries"


def test_a_request_is_a_part_of_its_callers_trace(http: httpx.Client, exporter: InMemorySpanExporter) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "mine"}
    http.post("/v1/chat/completions", json=question(), headers=headers)
    request, stages = spans_of(exporter, "mine")
    assert request.parent and f"{request.parent.span_id:016x}" == PARENT
    assert {f"{one.context.trace_id:032x}" for one in (request, *stages)} == {TRACE}


@pytest.mark.parametrize("wrong", ["", "00-zz-11-01", "x" * 5000, f"00-{'0' * 32}-{PARENT}-01"])
def test_a_wrong_parent_is_no_parent(http: httpx.Client, exporter: InMemorySpanExporter, wrong: str) -> None:
    assert http.get("/v1/models", headers={"traceparent": wrong, "X-Request-ID": "wrong"}).status_code == 200
    assert spans_of(exporter, "wrong")[0].parent is None


def test_a_question_that_is_refused_or_given_up_ends_its_stages(
    http: httpx.Client, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with http.stream("POST", "/v1/chat/completions", json=question(stream=True, max_tokens=1000)) as response:
        next(line for line in response.iter_lines() if '"content": "' in line and '"content": ""' not in line)
    _, stages = spans_of(exporter, response.headers["X-Request-ID"])
    assert [one.name for one in stages][-1] == "write" and stages[-1].status.status_code is StatusCode.ERROR

    def full(*_: Any) -> Any:
        raise QueueFull(1.0)

    monkeypatch.setattr(Engine, "submit", full)
    response = http.post("/v1/chat/completions", json=question())
    request, (wait,) = spans_of(exporter, response.headers["X-Request-ID"])
    assert error_of(response, 429) and wait.name == "wait" and wait.status.status_code is StatusCode.ERROR
    assert request.status.status_code is StatusCode.UNSET, "the client's to mend"


def test_the_sdk_is_imported_by_who_asks_for_it_alone() -> None:
    code = (
        "import sys, memspan.serve.app; print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_without_the_extra_traces_are_refused_by_its_name(tmp_path: Path) -> None:
    """Before the model is loaded."""
    code = (
        "import sys; sys.modules['opentelemetry.sdk.trace'] = None\n"
        f"sys.argv = ['memspan', 'serve', {str(tmp_path / 'bank')!r}, '--traces']\n"
        "from memspan.cli import app; app()"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True)
    assert done.returncode == 1 and "memspan[otel]" in done.stderr, done.stderr
    assert not (tmp_path / "bank").exists()
