"""What a request must pass: key, scope, namespace, host, size, rate, kind; and what a response never says."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from serving import add_animals, client, error_of, question, serving, wait_for

from memspan.errors import BankError, MemspanError
from memspan.model.convert import LoadedModel
from memspan.serve.errors import ApiError
from memspan.serve.gate import RateLimit
from memspan.serve.keys import KeyFile
from memspan.serve.logs import JsonLines
from memspan.serve.run import Server

ROUTES = [
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/memspan/notes"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/memories"),
    ("POST", "/v1/memories"),
    ("POST", "/v1/memories/batch"),
    ("POST", "/v1/memories/conversation"),
    ("POST", "/v1/memories/search"),
    ("GET", "/v1/changes"),
    ("GET", "/v1/memories/x"),
    ("PATCH", "/v1/memories/x"),
    ("DELETE", "/v1/memories/x"),
    ("POST", "/v1/imports"),
    ("GET", "/v1/imports"),
    ("GET", "/v1/imports/x"),
    ("GET", "/v1/imports/x/events"),
    ("DELETE", "/v1/imports/x"),
    ("GET", "/v1/status"),
    ("GET", "/v1/documents"),
    ("GET", "/nowhere"),
]
READ, WRITE, ADMIN = "read", "write", "admin"
NEEDED = {
    "/metrics": ADMIN,
    "POST /v1/memories": WRITE,
    "POST /v1/memories/batch": WRITE,
    "POST /v1/memories/conversation": WRITE,
    "PATCH /v1/memories/x": WRITE,
    "DELETE /v1/memories/x": WRITE,
    "POST /v1/imports": WRITE,
    "DELETE /v1/imports/x": WRITE,
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": question(),
    "/v1/memories": {"text": "x"},
    "/v1/memories/batch": {"memories": [{"text": "x"}]},
    "/v1/memories/conversation": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/memories/search": {"query": "x"},
    "/v1/memories/x": {"text": "x"},
    "/v1/imports": {"memories": [{"text": "x"}]},
}


@pytest.fixture(scope="module")
def keyed(
    loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, str, dict[str, str]]]:
    """A server with keys: `read` and `write` of the namespace ann, `admin` of all, and small limits."""
    folder = tmp_path_factory.mktemp("keyed")
    keys = KeyFile(folder / "keys.json")
    secrets = {
        "read": keys.add("read", ("read",), ("ann",))[1],
        "write": keys.add("write", ("read", "write"), ("ann",))[1],
        "admin": keys.add("admin", ("admin",))[1],
    }
    with serving(loaded, folder / "notes", keys=keys, max_request_bytes=20_000) as (server, address):
        with client(address, secrets["admin"]) as http:
            add_animals(http, namespace="ann")
            add_animals(http, namespace="bob")
        yield server, address, secrets


def _as(keyed: tuple[Server, str, dict[str, str]], who: str) -> httpx.Client:
    return client(keyed[1], keyed[2].get(who, who))


def _send(http: httpx.Client, method: str, path: str, **more: Any) -> httpx.Response:
    body = BODIES.get(path) if method in ("POST", "PATCH") else None
    return http.request(method, path, json=body, **more)


@pytest.mark.parametrize("who", [None, "msk_0123456789ab_wrong", "Bearer"])
def test_no_route_answers_without_a_good_key(keyed: tuple[Server, str, dict[str, str]], who: str | None) -> None:
    with client(keyed[1], who) as http:
        for method, path in ROUTES:
            response = _send(http, method, path)
            if path in ("/health", "/ready"):
                assert response.json() == {"status": "ok"}, "it says nothing else"
                continue
            assert error_of(response, 401)["type"] == "authentication_error", (method, path)
            assert response.headers["WWW-Authenticate"] == "Bearer"
        # Refused before the body is read: what it holds does not matter.
        headers = {"Content-Type": "application/json"}
        error_of(http.post("/v1/memories", content=b"{", headers=headers), 401)


def test_every_route_of_the_description_is_tried_here(keyed: tuple[Server, str, dict[str, str]]) -> None:
    with _as(keyed, "read") as http:
        paths = http.get("/openapi.json").json()["paths"]
    described = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    tried = {
        (method, path.replace("memspan/notes", "{model}").replace("/x", "/{id}"))
        for method, path in ROUTES
        if path not in ("/openapi.json", "/nowhere")
    }
    assert described == tried


@pytest.mark.parametrize("who", ["read", "write"])
def test_a_key_may_do_what_its_scopes_say(keyed: tuple[Server, str, dict[str, str]], who: str) -> None:
    with _as(keyed, who) as http:
        for method, path in ROUTES:
            needed = NEEDED.get(f"{method} {path}", NEEDED.get(path, READ))
            response = _send(http, method, path)
            if needed == READ or (needed, who) == (WRITE, "write"):
                assert response.status_code not in (401, 403), (method, path)
            else:
                assert error_of(response, 403)["code"] == "missing_scope", (method, path)
    with _as(keyed, "read") as http:
        error_of(http.post("/v1/chat/completions", json=question(remember=True)), 403)


def test_no_key_crosses_into_another_namespace(keyed: tuple[Server, str, dict[str, str]]) -> None:
    with _as(keyed, "admin") as http:
        body = {"id": "secret", "text": "the otter password is swordfish", "namespace": "bob"}
        assert http.post("/v1/memories", json=body).status_code == 201
        job = http.post("/v1/imports", json={"memories": [{"text": "x"}], "namespace": "bob"}).json()["id"]
    with _as(keyed, "write") as http:
        bob = {"namespace": "bob"}
        for response in (
            http.post("/v1/chat/completions", json=question(memspan=bob)),
            http.post("/v1/memories", json={"text": "x", **bob}),
            http.post("/v1/memories/search", json={"query": "otter", **bob}),
            http.get("/v1/memories", params=bob),
            http.get("/v1/memories/secret", params=bob),
            http.patch("/v1/memories/secret", json={"text": "x", **bob}),
            http.delete("/v1/memories/secret", params=bob),
            http.post("/v1/imports", json={"memories": [{"text": "x"}], **bob}),
        ):
            assert error_of(response, 403)["code"] == "forbidden_namespace"
        error_of(http.get(f"/v1/imports/{job}"), 404)
        error_of(http.get("/v1/memories/secret"), 404)
        found = http.post("/v1/memories/search", json={"query": "otter password swordfish"}).json()["data"]
        assert found and all("swordfish" not in item["text"] for item in found)
        answer = http.post("/v1/chat/completions", json=question("otter password swordfish")).json()
        assert answer["memspan"]["namespace"] == "ann" and "swordfish" not in json.dumps(answer["memspan"]["evidence"])


def _least(schema: dict[str, Any], schemas: dict[str, Any]) -> Any:
    """A value with what a schema requires, and no more."""
    schema = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    if schema.get("type") == "object":
        return {name: _least(schema["properties"][name], schemas) for name in schema.get("required", ())}
    if schema.get("type") == "array":
        return [_least(schema["items"], schemas)]
    return schema.get("enum", [schema.get("const", "user" if "enum" in schema else "memspan/notes")])[0]


def test_every_described_route_denies_what_is_anothers(keyed: tuple[Server, str, dict[str, str]]) -> None:
    """Each route is called for another's namespace, wherever it takes one, and for another's ids."""
    with _as(keyed, "admin") as http:
        http.post("/v1/memories", json={"id": "theirs", "text": "swordfish", "namespace": "bob"})
        job = http.post("/v1/imports", json={"memories": [{"text": "x"}], "namespace": "bob"}).json()["id"]
        described = http.get("/openapi.json").json()
    schemas, denied = described["components"]["schemas"], []
    with _as(keyed, "write") as http:
        for path, methods in described["paths"].items():
            for method, operation in methods.items():
                query = {"namespace": "bob", "ids": 1}
                query = {
                    one["name"]: query[one["name"]] for one in operation.get("parameters", ()) if one["name"] in query
                }
                body = None
                if "requestBody" in operation:
                    schema = operation["requestBody"]["content"]["application/json"]["schema"]
                    place = {"namespace": "bob"}
                    body = {**_least(schema, schemas), **({"memspan": place} if "chat" in path else place)}
                    if "chat" in path:
                        body["messages"] = [{"role": "user", "content": "swordfish"}]
                url = path.replace("{model}", "memspan/notes").replace("{id}", job if "imports" in path else "theirs")
                response = http.request(method, url, params=query, json=body)
                assert "swordfish" not in response.text, (method, path)
                if query or body or "{id}" in path:
                    assert response.status_code == (404 if "{id}" in path and not (query or body) else 403), (
                        method,
                        path,
                    )
                    denied.append(f"{method} {path}")
                else:
                    assert path in ("/health", "/ready", "/metrics", "/v1/models", "/v1/models/{model}", "/v1/imports")
                    assert job not in response.text
    assert len(denied) == 16


def test_requests_that_are_too_large_are_refused(keyed: tuple[Server, str, dict[str, str]]) -> None:
    headers = {"Content-Type": "application/json"}
    with _as(keyed, "write") as http:
        large = json.dumps({"text": "x" * 20_000}).encode()
        assert error_of(http.post("/v1/memories", content=large, headers=headers), 413)["code"] == "request_too_large"

        def pieces() -> Iterator[bytes]:  # without a length that is known before
            yield b'{"text": "'
            for _ in range(30):
                yield b"x" * 1000
            yield b'"}'

        error_of(http.post("/v1/memories", content=pieces(), headers=headers), 413)


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"{", 400), (b"\xff\xfe{}", 400), (b'{"text": "\xff"}', 400), (b"[" * 9000, 400), (b"null", 400), (b"", 400)],
)
def test_bodies_that_are_no_json_are_refused(http: httpx.Client, content: bytes, status: int) -> None:
    for path in ("/v1/memories", "/v1/chat/completions"):
        response = http.post(path, content=content, headers={"Content-Type": "application/json"})
        assert error_of(response, status)["type"] == "invalid_request_error"
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        error_of(http.post("/v1/memories", content=b'{"text": "x"}', headers={"Content-Type": kind}), 415)


def test_without_keys_only_local_names_are_answered(http: httpx.Client) -> None:
    for host in ("localhost", "127.0.0.1:80", "[::1]:8000", "LOCALHOST:1"):
        assert http.get("/health", headers={"Host": host}).status_code == 200
    for host in (
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example:8000",
        "x:localhost",
    ):
        assert error_of(http.get("/health", headers={"Host": host}), 403)["code"] == "forbidden_host"


def test_headers_that_keep_browsers_away(http: httpx.Client) -> None:
    for response in (http.get("/health"), http.get("/nowhere"), http.post("/v1/memories", content=b"")):
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert not any(name.startswith("access-control") for name in response.headers)
        assert response.headers["Content-Type"].startswith("application/json")
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    response = http.options("/v1/memories", headers=preflight)
    assert response.status_code == 405 and "access-control-allow-origin" not in response.headers


def test_a_page_that_was_named_may_call(loaded: LoadedModel, tmp_path: Path) -> None:
    origins = ("https://good.example",)
    with serving(loaded, tmp_path / "notes", cors_origins=origins) as (_, address), client(address) as http:
        for origin, allowed in (("https://good.example", True), ("https://evil.example", False)):
            response = http.get("/health", headers={"Origin": origin})
            assert (response.headers.get("access-control-allow-origin") == origin) == allowed


def test_texts_of_documents_are_never_html(http: httpx.Client) -> None:
    body = {"id": "<script>", "text": "<script>alert(1)</script>", "namespace": "html", "bank": "other"}
    http.post("/v1/memories", json=body)
    response = http.get("/v1/memories/%3Cscript%3E", params={"namespace": "html", "bank": "other"})
    assert response.headers["Content-Type"] == "application/json" and response.json()["text"] == body["text"]


def test_no_path_of_a_request_reaches_the_file_system(http: httpx.Client) -> None:
    for path in ("/etc/passwd", "../../etc/passwd", "..%2F..%2Fetc%2Fpasswd", "%2e%2e/x", "file:///etc/passwd"):
        assert "root:" not in http.get(f"/v1/memories/{path}").text
        for body in ({"text": "x", "bank": path}, {"text": "x", "namespace": path}):
            response = http.post("/v1/memories", json=body)
            assert response.status_code in (201, 404)
    names = http.get("/v1/models").json()["data"]
    assert len(names) == 2


def test_rates_are_limited_for_each_client() -> None:
    now = [0.0]
    limit = RateLimit(3, clock=lambda: now[0])
    for _ in range(3):
        limit.check("a")
    with pytest.raises(ApiError) as refused:
        limit.check("a")
    assert refused.value.status_code == 429 and refused.value.headers == {"Retry-After": "20"}
    limit.check("b")
    now[0] = 20.0
    limit.check("a")
    with pytest.raises(ApiError):
        limit.check("a")


def test_a_key_is_limited_and_told_when_to_come_back(loaded: LoadedModel, tmp_path: Path) -> None:
    with serving(loaded, tmp_path / "notes", requests_per_minute=2) as (_, address), client(address) as http:
        assert [http.get("/health").status_code for _ in range(2)] == [200, 200]
        response = http.get("/health")
        assert error_of(response, 429)["type"] == "rate_limit_error" and int(response.headers["Retry-After"]) >= 1


def test_logs_hold_no_keys_and_no_texts(
    keyed: tuple[Server, str, dict[str, str]], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, "memspan")
    with _as(keyed, "write") as http:
        http.post("/v1/chat/completions", json=question("swordfish"))
        http.post("/v1/chat/completions", json=question("swordfish", stream=True))
        http.post("/v1/memories", json={"text": "swordfish", "id": "swordfish", "date": "swordfish"})
        http.get("/v1/memories/swordfish", params={"namespace": "swordfish"})
        http.post("/v1/memories", content=b'{"swordfish', headers={"Content-Type": "application/json"})
    with _as(keyed, "msk_swordfish_swordfish") as http:
        http.get("/v1/models")
    told = "".join(
        record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))
    )
    told += "".join(capfd.readouterr())
    assert "swordfish" not in told
    assert not any(secret in told for secret in keyed[2].values())


def test_no_path_goes_out_with_metadata(http: httpx.Client) -> None:
    """Whatever metadata say of a file's path, no folder of the server is told."""
    place = {"bank": "other", "namespace": "paths"}
    paths = ("/srv/secret/zoo.txt", "C:\\srv\\secret\\zoo.txt", "\\\\srv\\secret\\zoo.txt", "~/secret/zoo.txt")
    for n, path in enumerate((*paths, "file:///srv/secret/zoo.txt", "/srv/secret/zoo.txt/")):
        metadata = {"path": path, "file_path": path, "n": n, "url": "https://x.example/secret"}
        body = {"id": f"z{n}", "text": "The zoo.", "metadata": metadata, **place}
        told = {"path": "zoo.txt", "file_path": "zoo.txt", "n": n, "url": "https://x.example/secret"}
        assert http.post("/v1/memories", json=body).json()["metadata"] == told
        assert http.get(f"/v1/memories/z{n}", params=place).json()["metadata"] == told
    listed = http.get("/v1/memories", params=place).json()["data"]
    found = http.post("/v1/memories/search", json={"query": "zoo", **place}).json()["data"]
    cited = http.post("/v1/chat/completions", json=question("zoo", memspan=place)).json()["memspan"]["evidence"]
    assert listed and found and cited
    assert {one["metadata"]["path"] for one in (*listed, *found, *cited)} == {"zoo.txt"}
    body = {"id": "rel", "text": "The zoo.", "metadata": {"path": "zoo/a.txt", "x": {"path": "/a/b"}}, **place}
    assert http.post("/v1/memories", json=body).json()["metadata"] == body["metadata"], "relative ones stay"


@pytest.mark.parametrize("given", ["abc-1:2.3_Z", "x" * 128])
def test_a_request_keeps_the_id_it_came_with(http: httpx.Client, given: str) -> None:
    for path in ("/health", "/nowhere", "/v1/memories/none"):
        assert http.get(path, headers={"X-Request-ID": given}).headers["X-Request-ID"] == given
    with http.stream(
        "POST", "/v1/chat/completions", json=question(stream=True), headers={"X-Request-ID": given}
    ) as got:
        assert got.headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "\u00fc", "<script>"])
def test_other_requests_get_an_id(http: httpx.Client, given: str) -> None:
    ids = {http.get("/health", headers={"X-Request-ID": given.encode()}).headers["X-Request-ID"] for _ in range(2)}
    assert len(ids) == 2 and given not in ids and all(one.isalnum() for one in ids)


def test_what_goes_wrong_is_found_in_the_log_by_its_id_without_texts_and_paths(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("memspan.serve.banks.ServedBank.get", fail)
    errors = (
        RuntimeError("swordfish in /srv/secret/notes"),
        OSError(28, "No space left", "/srv/secret/notes/x"),
        BankError("/srv/secret/notes/catalog.sqlite is damaged; restore it"),
        BankError(r"C:\srv\secret\notes is damaged"),
        MemspanError("the budget in /srv/secret/notes is malformed"),
    )
    for error in errors:
        response = http.get("/v1/memories/x", headers={"X-Request-ID": "find-me"})
        assert "secret" not in response.text and "swordfish" not in response.text
        told = error_of(response, {RuntimeError: 500, OSError: 500, BankError: 503}.get(type(error), 400))["message"]
        assert "find-me" in told or type(error) is MemspanError
    assert "secret" not in caplog.text and "swordfish" not in caplog.text
    assert caplog.text.count("find-me") == 4 and "No space left" in caplog.text
    assert "test_gate.py" in caplog.text and "Traceback" not in caplog.text


def test_what_goes_wrong_while_decoding_tells_no_text(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("swordfish in /srv/secret/notes")

    monkeypatch.setattr("memspan.generate.batching.DecodingBatch.step", fail)
    for stream in (False, True):
        response = http.post("/v1/chat/completions", json=question(stream=stream))
        assert "swordfish" not in response.text and "internal_error" in response.text
    assert "swordfish" not in caplog.text and "secret" not in caplog.text and "RuntimeError" in caplog.text


def test_json_lines_tell_of_every_request(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "memspan.serve.gate")
    http.get("/v1/memories/a-secret-name", headers={"X-Request-ID": "find-me"})
    wait_for(lambda: any(record.name == "memspan.serve.gate" for record in caplog.records))
    record = next(record for record in caplog.records if record.name == "memspan.serve.gate")
    told = json.loads(JsonLines().format(record))
    assert (told["method"], told["route"], told["status"]) == ("GET", "/v1/memories/{id:text}", 404)
    assert told["level"] == "info" and told["request_id"] and "a-secret-name" not in json.dumps(told)


POST = b"POST /v1/memories HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /health HTTP/1.1\r\nHost: local",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Half: ",
        POST + b"Content-Type: application/json\r\nContent-Length: 20\r\n\r\n{",
        POST + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        POST + b"Content-Type: text/plain\r\nContent-Length: 20\r\n\r\n{",
    ],
    ids=["nothing", "half a line", "half the headers", "half a body", "half the chunks", "a body nobody reads"],
)
@pytest.mark.parametrize("drips", [False, True])
def test_half_a_request_is_ended(hasty: str, sent: bytes, drips: bool) -> None:
    """Also one of which a little more comes again and again."""
    host, port = hasty.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=0.05 if drips else 30) as connection:
        connection.sendall(sent)
        got, ended = b"", False
        deadline = time.monotonic() + 30
        while not ended:
            assert time.monotonic() < deadline, "it stays open"
            try:
                if drips:
                    connection.sendall(b"x" if b"GET" in sent or not sent else b" ")
                piece = connection.recv(4096)
                got, ended = got + piece, not piece
            except TimeoutError:
                continue
            except OSError:
                ended = True
    assert drips or b"POST" not in sent or b"HTTP/1.1 4" in got
    with client(hasty) as http:
        assert http.get("/health").status_code == 200
        assert http.post("/v1/memories", json={"text": "x"}).status_code == 201


@pytest.fixture(scope="module")
def hasty(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that waits a third of a second for a request."""
    with serving(loaded, tmp_path_factory.mktemp("hasty") / "notes", patience=0.3) as (_, address):
        yield address


def test_metrics_count_what_was_done(keyed: tuple[Server, str, dict[str, str]]) -> None:
    with _as(keyed, "admin") as http:
        for _ in range(2):
            http.post("/v1/chat/completions", json=question(memspan={"namespace": "ann"}))
        http.get("/v1/memories/a-secret-name")
        text = http.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    for stage in ("queue", "select", "prefill", "decode"):
        assert float(values[f'memspan_stage_seconds_count{{stage="{stage}"}}']) >= 2
    assert float(values['memspan_tokens_total{kind="completion"}']) >= 12
    assert float(values['memspan_bank_sources{bank="notes"}']) >= 8
    assert float(values['memspan_requests_total{route="/v1/chat/completions",status="200"}']) >= 2
    assert float(values['memspan_evidence_attended_share_count{selector="lexical"}']) >= 2
    assert float(values["memspan_queue_length"]) == 0.0
    assert "a-secret-name" not in text


def test_who_hangs_up_frees_the_place(loaded: LoadedModel, tmp_path: Path) -> None:
    """A client that goes away while its answer is streamed, and one that waits for a whole answer."""
    with serving(loaded, tmp_path / "notes", max_batch=1, max_new_tokens=5000) as (server, address):
        engine = server.config.app.state.service.engine  # type: ignore[union-attr]
        with client(address) as http:
            add_animals(http)
        for stream in (True, False):
            host, port = address.removeprefix("http://").split(":")
            body = json.dumps(question(stream=stream, max_tokens=5000)).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
                wait_for(lambda: engine.num_running == 1)
            wait_for(lambda: engine.num_running == 0)
        with client(address) as http:
            assert http.post("/v1/chat/completions", json=question()).status_code == 200


def test_a_stopping_server_finishes_what_runs_and_refuses_the_rest(loaded: LoadedModel, tmp_path: Path) -> None:
    with serving(loaded, tmp_path / "notes", max_batch=1) as (server, address), client(address) as http:
        add_animals(http)
        engine = server.config.app.state.service.engine  # type: ignore[union-attr]
        with http.stream("POST", "/v1/chat/completions", json=question(stream=True, max_tokens=300)) as response:
            lines = response.iter_lines()
            next(line for line in lines if line.startswith("data: "))
            with client(address) as other:
                other.get("/health")
                engine.drain()
                assert error_of(other.get("/ready"), 503)["code"] == "not_ready"
                assert error_of(other.post("/v1/chat/completions", json=question()), 503)["code"] == "stopping"
            server.handle_exit(15, None)
            rest = [line for line in lines if line.startswith("data: ")]
    assert rest[-1] == "data: [DONE]" and '"finish_reason": "length"' in rest[-2]
