"""Many connections that send nothing, half a request, or go away: others are answered, and nothing is left of them."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from serving import add_animals, client, question, serving, wait_for

from memspan.model.convert import LoadedModel
from memspan.serve import run
from memspan.serve.run import Server, most_connections

ASK = json.dumps(question(stream=True, max_tokens=4000)).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
WHOLE = HEAD + f"Content-Length: {len(ASK)}\r\n\r\n".encode() + ASK
SENT = {
    "idle": b"",
    "half a line": b"GET /hea",
    "half the headers": HEAD,
    "half a body": HEAD + b"Content-Length: 1000\r\n\r\n{",
    "answered, then idle": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@contextlib.contextmanager
def crowd(address: str, count: int, *sent: bytes) -> Iterator[list[socket.socket]]:
    """So many connections, each of which has sent one of some beginnings, in turn."""
    host, port = address.removeprefix("http://").split(":")
    with contextlib.ExitStack() as opened:
        connections = []
        for number in range(count):
            connection = opened.enter_context(socket.create_connection((host, int(port)), timeout=30))
            connection.sendall(sent[number % len(sent)])
            connections.append(connection)
        yield connections


def drop(connections: list[socket.socket]) -> None:
    """Go away at once, without a farewell (a reset)."""
    for connection in connections:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if psutil.WINDOWS else "ii", 1, 0))
        connection.close()


def num_open(server: Server) -> int:
    return len(server.server_state.connections)


def assert_everything_works(http: Any) -> None:
    """A question, a stream, a search, a change: each with its own status."""
    assert http.post("/v1/chat/completions", json=question()).status_code == 200
    with http.stream("POST", "/v1/chat/completions", json=question(stream=True)) as response:
        assert [line for line in response.iter_lines() if line][-1] == "data: [DONE]"
    assert http.post("/v1/memories/search", json={"query": "otter"}).status_code == 200
    assert http.post("/v1/memories", json={"id": "crowd", "text": "A crowd."}).status_code == 201
    assert http.delete("/v1/memories/crowd").status_code == 200


@pytest.fixture
def roomy() -> None:
    """Room for both ends of 1,000 connections in this process."""
    if most_connections() < 2200:
        pytest.skip("this process may not open 2,200 files")


@pytest.mark.slow
def test_a_thousand_connections_harm_nobody_and_leave_nothing(
    loaded: LoadedModel, tmp_path: Path, roomy: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Idle ones, slow ones, and some that go away in the middle of an answer or of their request."""
    with serving(loaded, tmp_path / "notes", patience=20.0, max_new_tokens=4000) as (server, address):
        engine = server.config.app.state.service.engine  # type: ignore[union-attr]
        with client(address) as http:
            add_animals(http)
            assert_everything_works(http)
        wait_for(lambda: num_open(server) == 0)
        before = psutil.Process().num_handles() if psutil.WINDOWS else psutil.Process().num_fds()
        with crowd(address, 1000, *SENT.values()) as connections, client(address) as http:
            wait_for(lambda: num_open(server) >= 800)  # those that were answered are closed after five seconds
            assert_everything_works(http)
            with crowd(address, 8, WHOLE) as asking:
                wait_for(lambda: engine.num_running == 8)
                drop(asking)
            wait_for(lambda: not engine.is_asked)
            drop(connections[:500])
            assert_everything_works(http)
            statuses = http.get("/metrics").text
        wait_for(lambda: num_open(server) == 0)
        assert 'status="5' not in statuses
        if not psutil.WINDOWS:
            # A bank keeps the connections to its catalog that its readers have needed at a time.
            wait_for(lambda: psutil.Process().num_fds() <= before + 32)
    assert not caplog.records, [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("kind", list(SENT))
def test_where_there_are_too_many_the_longest_waiting_goes(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """And none that is being answered: neither a stream, nor one whose body is on its way."""
    monkeypatch.setattr(run, "most_connections", lambda: 20)
    with serving(loaded, tmp_path / "notes", patience=60.0, max_new_tokens=4000) as (server, address):
        with client(address) as http:
            add_animals(http)
        engine = server.config.app.state.service.engine  # type: ignore[union-attr]
        with crowd(address, 1, WHOLE) as (stream,):
            wait_for(lambda: engine.num_running == 1)
            with crowd(address, 60, SENT[kind]) as connections, client(address) as http:
                wait_for(lambda: num_open(server) <= 20)
                with contextlib.suppress(ConnectionResetError):
                    while connections[0].recv(4096):
                        pass
                assert_everything_works(http)
            assert engine.num_running == 1 and stream.recv(4096).startswith(b"HTTP/1.1 200")
    assert not server.config.http_protocol_class.waiting, "nothing is left of them"  # type: ignore[attr-defined]


def test_requests_sent_at_once_are_answered_in_order(animals: tuple[Server, str]) -> None:
    """Also behind one another on one connection, in pieces."""
    whole = SENT["answered, then idle"]
    with crowd(animals[1], 1, whole * 3 + whole[:20]) as (connection,):
        connection.sendall(whole[20:] + whole.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        got = b"".join(iter(lambda: connection.recv(4096), b""))
    assert got.count(b"HTTP/1.1 200") == 5


@pytest.mark.parametrize(
    ("soft", "hard", "limit", "room"),
    [(1024, 4096, 4096, 3840), (256, 256, 256, 128), (100_000, 200_000, 100_000, 65_280), (512, -1, 65_536, 65_280)],
)
def test_a_server_takes_the_files_it_may_have_and_keeps_some(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, limit: int, room: int
) -> None:
    resource = pytest.importorskip("resource")
    limits = [(soft, resource.RLIM_INFINITY if hard < 0 else hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    assert most_connections() == room and limits[-1][0] == limit

    def refuse(*_: Any) -> None:
        raise ValueError("current limit exceeds maximum limit")

    limits[:] = [(1024, resource.RLIM_INFINITY)]
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert most_connections() == 768


def test_the_first_token_is_sent_before_another_is_written(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine writes no further token until the client has the text of the first: nothing holds it back."""
    with serving(loaded, tmp_path / "notes", max_new_tokens=100) as (server, address), client(address) as http:
        add_animals(http)
        batch = server.config.app.state.service.engine._batch  # type: ignore[union-attr]
        step, arrived, in_time = batch.step, threading.Event(), []

        def step_when_read() -> None:
            if not in_time and len(batch) and batch._members[0][0].row.text.strip():
                in_time.append(arrived.wait(30))
            step()

        monkeypatch.setattr(batch, "step", step_when_read)
        with http.stream("POST", "/v1/chat/completions", json=question(stream=True, max_tokens=20)) as response:
            for line in response.iter_lines():
                if '"content": "' in line and '"content": ""' not in line:
                    arrived.set()
        assert in_time == [True]
