"""A server in a thread of its own, on a free port of this machine, and a client of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
from chat_server import ChatServer, chat_server
from helpers import tiny_loaded

from memspan.generate.answerer import Answerer
from memspan.generate.endpoint import Endpoint
from memspan.model.convert import LoadedModel
from memspan.serve.keys import KeyFile
from memspan.serve.run import Server, make_server
from memspan.serve.settings import ServeSettings
from memspan.serve.workers import WorkerSetup

SOURCE = Path(__file__).parents[2] / "src"
ANIMALS = {"otter": "Rome", "heron": "Oslo", "lynx": "Quito", "newt": "Bern"}


def endless_model() -> LoadedModel:
    """A tiny model that never ends an answer by itself, with room for long questions."""
    loaded = tiny_loaded()
    loaded.template.stop_ids = frozenset()
    loaded.model.generation_config.eos_token_id = None
    loaded.model.config.text_config.max_position_embeddings = 8192
    return loaded


@contextlib.contextmanager
def serving_another(loaded: LoadedModel, folder: Path, key: str) -> Iterator[tuple[ChatServer, str]]:
    """Run a server with some animals whose answers another model writes; yields that model and the address."""
    with chat_server() as other:
        endpoint = Endpoint(other.url, "big", key, wait=0.001, room=8192)
        with serving(loaded, folder / "notes", answerer=endpoint, max_batch=8) as (_, address):
            with client(address) as http:
                add_animals(http)
            yield other, address


@contextlib.contextmanager
def serving(
    loaded: LoadedModel,
    *banks: Path | str,
    keys: KeyFile | None = None,
    answerer: Answerer | None = None,
    setup: WorkerSetup | None = None,
    **settings: Any,
) -> Iterator[tuple[Server, str]]:
    """Run a server; yields it and its address. It is stopped at the end, as a signal would."""
    server = make_server(loaded, map(str, banks), ServeSettings(port=0, **settings), keys, answerer, setup)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        wait_for(lambda: server.started or not thread.is_alive())
        assert server.started, "the server did not start"
        try:
            yield server, f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.handle_exit(15, None)
            thread.join(60)
            assert not thread.is_alive(), "the server did not stop"


@contextlib.contextmanager
def process(checkpoint: Path, bank: Path, *options: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server, once it listens, and its address. It is killed if it does not end."""
    command = [sys.executable, "-m", "memspan", "serve", f"notes={bank}", "--model", checkpoint, "--port", 0, *options]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    environment.pop("MEMSPAN_KEYS", None)
    server = subprocess.Popen([*map(str, command)], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        told = next((found for line in server.stderr if (found := re.search(r"http://[\d.:]+", line))), None)
        assert told, "the server did not start"
        yield server, told[0]
    finally:
        server.kill()
        server.communicate()


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait until something holds; it must, sooner or later."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def client(address: str, key: str | None = None) -> httpx.Client:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=address, headers=headers, timeout=60)


def add_animals(http: httpx.Client, **place: Any) -> None:
    memories = [
        {"id": f"animals/{animal}", "text": f"The {animal} lives in {city}.", "title": animal, "metadata": {"n": n}}
        for n, (animal, city) in enumerate(ANIMALS.items())
    ]
    response = http.post("/v1/memories/batch", json={"memories": memories, **place})
    assert response.status_code == 201, response.text
    wait_for(lambda: not pending(http, **place))


def pending(http: httpx.Client, **place: Any) -> int:
    """Documents of a namespace that are not encoded yet, as far as the client may know."""
    status = http.get("/v1/status", params={k: v for k, v in place.items() if k == "namespace"})
    return sum(bank["pending"] for bank in status.json()["banks"]) if status.status_code == 200 else 0


def question(text: str = "Where does the otter live?", **fields: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": "memspan/notes", "messages": [{"role": "user", "content": text}], "max_tokens": 6, **fields}


def chunks(response: httpx.Response) -> list[Any]:
    """The values of a stream of server-sent events, without the last word."""
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a response, which must have OpenAI's form."""
    assert response.status_code == status, (response.status_code, response.text)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["code"]
    return error
