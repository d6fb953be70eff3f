"""What a reader's replica answers itself, and what it passes on to the writer; without a cluster."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed")
serve = importlib.import_module("ray.serve")

from ray.exceptions import RayActorError  # noqa: E402

from memspan.errors import MemspanError  # noqa: E402
from memspan.integrations import ray_serve  # noqa: E402
from memspan.integrations.ray_serve import application  # noqa: E402
from memspan.serve.app import with_routes  # noqa: E402
from memspan.serve.errors import ApiError  # noqa: E402
from memspan.serve.settings import ServeSettings  # noqa: E402

DOCS = Path(__file__).parents[2] / "docs" / "serving.md"
CHAT = "/v1/chat/completions"


class Writer:
    """A handle of a writer. Its response has no end where `ends` is false."""

    def __init__(self, error: Exception | None = None, ends: bool = True) -> None:
        self.error, self.ends = error, ends
        self.given: list[tuple[dict[str, Any], bytes]] = []
        self.cancelled = False

    def options(self, **_: Any) -> Writer:
        return self

    def remote(self, scope: dict[str, Any], body: bytes) -> Writer:
        self.given.append((scope, body))
        return self

    def cancel(self) -> None:
        self.cancelled = True

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        if self.error is not None:
            raise self.error
        yield {"type": "http.response.start", "status": 201, "headers": []}
        yield {"type": "http.response.body", "body": b"written", "more_body": not self.ends}
        if not self.ends:
            await asyncio.Future()


def respond(
    writer: Writer, method: str, path: str, parts: list[bytes], gone: bool = False
) -> tuple[list[bytes], list[dict[str, Any]]]:
    """What the reader's own application was given, and what was sent."""
    own: list[bytes] = []
    sent: list[dict[str, Any]] = []
    messages = [{"type": "http.request", "body": part, "more_body": n < len(parts)} for n, part in enumerate(parts, 1)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        own.append(body)

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        return {"type": "http.disconnect"} if gone else await asyncio.Future()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "app": object(), "state": {}}
    scope["headers"] = [(b"x-request-id", b"theirs"), (b"authorization", b"Bearer msk_x")]
    asyncio.run(ray_serve._Passing(app, writer)(scope, receive, send))  # type: ignore[arg-type]
    return own, sent


@pytest.mark.parametrize(
    ("method", "path", "body", "passed"),
    [
        ("GET", "/v1/memories", {}, False),
        ("GET", "/v1/memories/imports", {}, False),
        ("HEAD", "/health", {}, False),
        ("OPTIONS", "/v1/memories", {}, False),
        ("POST", "/v1/memories/search", {"query": "x"}, False),
        ("POST", CHAT, {"messages": []}, False),
        ("POST", CHAT, {"remember": False}, False),
        ("POST", CHAT, {"remember": None}, False),
        ("POST", CHAT, [], False),
        ("POST", CHAT, "remember", False),
        ("POST", CHAT, {"remember": True, "stream": True}, True),
        ("POST", CHAT, {"remember": "yes"}, True),
        ("POST", "/v1/memories", {"text": "x"}, True),
        ("POST", "/v1/memories/batch", {"memories": []}, True),
        ("POST", "/v1/memories/conversation", {"messages": []}, True),
        ("PATCH", "/v1/memories/search", {"text": "x"}, True),
        ("DELETE", "/v1/memories/search", {}, True),
        ("DELETE", "/v1/memories/a/b", {}, True),
        ("POST", "/v1/imports", {"memories": []}, True),
        ("GET", "/v1/imports", {}, True),
        ("GET", "/v1/imports/1/events", {}, True),
        ("DELETE", "/v1/imports/1", {}, True),
        ("PUT", "/v1/anything", {}, True),
    ],
)
def test_what_changes_a_memory_is_passed_on(method: str, path: str, body: Any, passed: bool) -> None:
    writer, data = Writer(), json.dumps(body).encode()
    own, sent = respond(writer, method, path, [data[:3], data[3:]])
    assert own == ([] if passed else [data])
    if not passed:
        assert not writer.given and not sent
        return
    ((scope, given),) = writer.given
    assert given == data and b"".join(one.get("body", b"") for one in sent) == b"written" and sent[0]["status"] == 201
    assert "app" not in scope and "state" not in scope, "only what travels"
    names = [name for name, _ in scope["headers"]]
    assert names.count(b"x-request-id") == 1 and (b"authorization", b"Bearer msk_x") in scope["headers"]


@pytest.mark.parametrize("body", [b"{", b"", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_refused_by_the_reader(body: bytes) -> None:
    writer = Writer()
    assert respond(writer, "POST", CHAT, [body]) == ([body], []) and not writer.given


def test_a_writer_that_is_not_there_is_a_named_refusal() -> None:
    with pytest.raises(ApiError) as refused:
        respond(Writer(RayActorError()), "POST", "/v1/memories", [b"{}"])
    assert (refused.value.status_code, refused.value.code) == (503, "writer_lost")
    assert "Retry-After" in (refused.value.headers or {})


def test_a_client_that_goes_away_ends_the_writers_response() -> None:
    writer = Writer(ends=False)
    respond(writer, "POST", "/v1/memories", [b"{}"], gone=True)
    assert writer.cancelled


def test_every_route_that_changes_something_is_known_to_need_the_writer() -> None:
    """A new route is answered by readers only if it is a GET; the one POST that reads is named."""
    paths = {path: methods.keys() for path, methods in with_routes().openapi()["paths"].items()}
    posts = sorted(path for path, methods in paths.items() if "post" in methods)
    reads = [path for path in posts if ray_serve._reads({"method": "POST", "path": path})]
    assert reads == ["/v1/memories/search"] and CHAT in posts


@pytest.mark.parametrize("readers", [(0, 1), (3, 2), (-1, -1)])
def test_wrong_numbers_of_replicas_are_refused(readers: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="readers are at least one"):
        application("notes.bank", "s3://bucket/notes", keys="keys.json", readers=readers)
    with pytest.raises(ValueError, match="more readers in place of workers"):
        application("notes.bank", "s3://bucket/notes", keys="keys.json", settings=ServeSettings(workers=2))
    with pytest.raises(MemspanError, match="cannot name a bank"):
        application("/srv/ä b.bank", "s3://bucket/notes", keys="keys.json")
    for bank in ("s3://bucket/notes", "notes=s3://bucket/notes"):
        with pytest.raises(MemspanError, match="is a URL; make the bank in a folder"):
            application(bank, "s3://bucket/notes", keys="keys.json")
    with pytest.raises(MemspanError, match="name of the bank is empty"):
        application("notes.bank", "", keys="keys.json")


def test_relative_paths_are_those_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    app = application("n=a/b.bank", "published", keys="keys.json", model="model", adapter="memspan-smollm2-135m")
    (served, _) = app._bound_deployment.init_args
    assert (served.name, served.place.folder, served.keys) == ("n", tmp_path / "a" / "b.bank", tmp_path / "keys.json")
    assert served.url == str(tmp_path / "published") and served.model == tmp_path / "model"
    assert served.adapter == "memspan-smollm2-135m", "a name stays one"


def test_replicas_without_keys_do_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from helpers import tiny_loaded

    loaded = tiny_loaded()
    monkeypatch.setattr(ray_serve, "load", lambda *_, **__: loaded)
    app = application(tmp_path / "notes", str(tmp_path / "published"), keys=tmp_path / "keys.json")
    (served, _) = app._bound_deployment.init_args
    with pytest.raises(MemspanError, match="needs API keys"):
        served.app(True)
    assert not (tmp_path / "notes").exists() and not (tmp_path / "published").exists()


def test_the_page_shows_what_the_function_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (
        one for one in re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL) if "ray" in one
    )
    ran: list[Any] = []
    monkeypatch.setattr(serve, "run", ran.append)
    exec(compile(code, DOCS.name, "exec"), {})
    (app,) = ran
    config = app._bound_deployment._deployment_config
    assert (config.autoscaling_config.min_replicas, config.autoscaling_config.max_replicas) == (1, 8)
    assert config.autoscaling_config.target_ongoing_requests == ServeSettings().max_batch
    (_, writer) = app._bound_deployment.init_args
    assert writer._bound_deployment._deployment_config.num_replicas == 1


def test_ray_serve_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "memspan.integrations.ray_serve")
    monkeypatch.setitem(sys.modules, "ray.serve.exceptions", None)
    with pytest.raises(ImportError, match=r"pip install 'memspan\[ray\]'"):
        importlib.import_module("memspan.integrations.ray_serve")
