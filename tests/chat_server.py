"""A server of chat completions that plays what it is given: answers in pieces, refusals, streams that break."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 40, "completion_tokens": 7, "total_tokens": 47}
Play = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    """One connection; what a play writes to."""

    chat: ChatServer

    def do_GET(self) -> None:
        self.chat.headers.append(dict(self.headers))
        if self.chat.models is None:
            return self.refuse(404, {})
        self.reply(200, "application/json", json.dumps(self.chat.models).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.chat.lock:
            self.chat.asked.append({**body, "path": self.path})
            self.chat.headers.append(dict(self.headers))
            play = self.chat.plays.pop(0) if len(self.chat.plays) > 1 else self.chat.plays[0]
        with contextlib.suppress(ConnectionError):
            play(self, body)

    def reply(self, status: int, kind: str, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, body: Any, **headers: str) -> None:
        self.reply(status, "application/json", json.dumps(body).encode(), **headers)

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()

    def send(self, value: Any) -> None:
        data = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        self.wfile.write(f"data: {data}\n\n".encode())
        self.wfile.flush()

    def piece(self, text: str | None, finish: str | None = None) -> None:
        delta = {} if text is None else {"content": text}
        self.send({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    def log_message(self, *_: Any) -> None:
        pass


class ChatServer:
    """Plays the first of `plays` for a request and the next one for the next; the last one for all that follow.

    Attributes:
        models: what `/v1/models` says; None: there is no such route.
        asked: bodies of the requests, with their paths.
        headers: of all requests.
        gone: set when a client hangs up on the play `until_gone`.
    """

    def __init__(self) -> None:
        self.plays: list[Play] = [say("Nothing.")]
        self.models: Any = {"object": "list", "data": [{"id": "m", "max_model_len": 8192}]}
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock, self.gone = threading.Lock(), threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("_Handler", (Handler,), {"chat": self}))
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def said(self) -> str:
        """Everything the newest request says to the model."""
        return "\n".join(message["content"] or "" for message in self.asked[-1]["messages"])


@contextlib.contextmanager
def chat_server() -> Iterator[ChatServer]:
    server = ChatServer()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()


def say(*pieces: str, usage: Any = USAGE, finish: str | None = "stop", done: bool = True) -> Play:
    """An answer in pieces."""

    def play(handler: Handler, _: dict[str, Any]) -> None:
        handler.begin()
        handler.send({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for piece in pieces:
            handler.piece(piece)
        if finish:
            handler.piece(None, finish)
        if usage is not None:
            handler.send({"choices": [], "usage": usage})
        if done:
            handler.send("[DONE]")

    return play


def whole(text: Any) -> Play:
    """An answer that does not stream, though it was asked to."""
    body = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}], "usage": USAGE}
    return lambda handler, _: handler.refuse(200, body)


def call(arguments: Any, name: str = "look_up") -> Play:
    """A tool call."""
    function = {"name": name, "arguments": arguments}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": function}],
    }
    body = {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": USAGE}
    return lambda handler, _: handler.refuse(200, body)


def calls(*deltas: dict[str, Any], text: str = "", finish: str | None = "tool_calls") -> Play:
    """Calls of tools, streamed in pieces as they are given here."""

    def play(handler: Handler, _: dict[str, Any]) -> None:
        handler.begin()
        handler.send({"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]})
        if text:
            handler.piece(text)
        for delta in deltas:
            handler.send({"choices": [{"index": 0, "delta": {"tool_calls": [delta]}}]})
        handler.piece(None, finish)
        handler.send({"choices": [], "usage": USAGE})
        handler.send("[DONE]")

    return play


def refuse(status: int, body: Any = None, **headers: str) -> Play:
    said = {"error": {"message": "not now"}} if body is None else body
    return lambda handler, _: handler.refuse(status, said, **headers)


def drop(*pieces: str) -> Play:
    """A connection that breaks: at once, or after some pieces."""

    def play(handler: Handler, _: dict[str, Any]) -> None:
        if pieces:
            handler.begin()
            for piece in pieces:
                handler.piece(piece)
        handler.wfile.flush()
        handler.close_connection = True
        handler.connection.close()

    return play


def raw(*parts: str) -> Play:
    """A stream as it is written here."""

    def play(handler: Handler, _: dict[str, Any]) -> None:
        handler.begin()
        for part in parts:
            handler.wfile.write(part.encode())
            handler.wfile.flush()

    return play


def event(text: str, **choice: Any) -> str:
    """An event with a piece of an answer."""
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}, **choice}]})}\n\n"


def after(event: threading.Event, play: Play) -> Play:
    """A server that writes nothing until something has happened."""

    def waiting(handler: Handler, body: dict[str, Any]) -> None:
        event.wait(30)
        play(handler, body)

    return waiting


def until_gone(handler: Handler, _: dict[str, Any]) -> None:
    """An answer that never ends by itself."""
    handler.begin()
    try:
        for _ in range(3000):
            handler.piece("on ")
            time.sleep(0.01)
    except OSError:
        handler.chat.gone.set()
