"""The tools and resources of `memspan mcp`, called by the protocol's own client, in memory and over HTTP."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2 as httpx
import pytest
import torch
from helpers import save_backbone
from mcp import Client, StdioServerParameters
from serving import wait_for

from memspan.model.convert import LoadedModel, convert
from memspan.serve.banks import ServedBank
from memspan.serve.engine import Engine
from memspan.serve.keys import KeyFile
from memspan.serve.mcp import make_mcp, mcp_app
from memspan.serve.run import Server, server_of
from memspan.serve.settings import ServeSettings

Call = Callable[..., Awaitable[Any]]


@pytest.fixture
def served(loaded: LoadedModel, tmp_path: Path) -> Iterator[tuple[ServedBank, Engine]]:
    bank = ServedBank("notes", tmp_path / "notes", loaded, 10)
    engine = Engine(loaded, max_batch=2, max_queue=4, timeout=60.0)
    yield bank, engine
    engine.close()
    bank.close()


async def _call(client: Client, name: str, **arguments: Any) -> Any:
    """What a tool returned, or the message of its refusal."""
    result = await client.call_tool(name, arguments)
    text = result.content[0].text if result.content else ""
    if result.is_error:
        return f"refused: {text}"
    found = result.structured_content
    return found["result"] if found is not None and set(found) == {"result"} else (found or json.loads(text))


async def _use(client: Client) -> None:
    names = {tool.name for tool in (await client.list_tools()).tools}
    assert names == {"remember", "recall", "ask", "forget", "list"}
    assert await _call(client, "recall", query="otter") == []
    for animal, city in (("otter", "Rome"), ("heron", "Oslo")):
        await _call(client, "remember", text=f"The {animal} lives in {city}.", title=animal, id=f"zoo/{animal} 1.md")
    (found,) = await _call(client, "recall", query="otter", limit=1)
    assert found["id"] == "zoo/otter 1.md" and found["text"] == "The otter lives in Rome."
    answer = await _call(client, "ask", question="Where does the heron live?", max_tokens=4)
    assert answer["sources"][0]["id"] == "zoo/heron 1.md" and isinstance(answer["answer"], str)
    page = await _call(client, "list", limit=1)
    (first,) = page["memories"]
    (second,) = (await _call(client, "list", after=page["next"]))["memories"]
    assert [first["title"], second["title"]] == ["otter", "heron"]
    (content,) = (await client.read_resource(found["uri"])).contents
    assert content.text == "The otter lives in Rome."  # type: ignore[union-attr]
    assert await _call(client, "forget", id="zoo/otter 1.md") == {"forgotten": True}
    for refused in (
        await _call(client, "forget", id="zoo/otter 1.md"),
        await _call(client, "remember", text=" "),
        await _call(client, "ask", question="x", max_documents=-1),
    ):
        assert refused.startswith("refused: ") and "/notes" not in refused
    with pytest.raises(Exception, match="no such memory"):
        await client.read_resource(found["uri"])


def test_tools_and_resources_in_memory(served: tuple[ServedBank, Engine]) -> None:
    async def run() -> None:
        async with Client(make_mcp(*served, "me")) as client:
            await _use(client)

    anyio.run(run)
    assert served[0].counts("default").sources == 0 and served[0].counts("me").sources == 1


def test_tools_and_resources_over_http(served: tuple[ServedBank, Engine]) -> None:
    with _http(served, None) as address:

        async def run() -> None:
            async with Client(f"{address}/mcp") as client:
                await _use(client)

        anyio.run(run)


def test_over_http_a_key_must_be_of_the_namespace(served: tuple[ServedBank, Engine], tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    statuses = []
    with _http(served, keys) as address:
        for scopes, namespaces in ((("read",), ("me",)), (("write",), ("you",)), (("write",), ("me",))):
            _, secret = keys.add("x", scopes, namespaces)
            headers = {"Authorization": f"Bearer {secret}", "Accept": "application/json, text/event-stream"}
            body = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            statuses.append(httpx.post(f"{address}/mcp", json=body, headers=headers).status_code)
        assert httpx.post(f"{address}/mcp", json={}).status_code == 401
    assert statuses[:2] == [403, 403] and statuses[2] not in (401, 403)


@pytest.mark.slow
def test_tools_and_resources_over_stdio(tmp_path: Path) -> None:
    """The command itself, as an agent starts it."""
    save_backbone(tmp_path / "plain")
    convert(str(tmp_path / "plain"), tmp_path / "model", dtype=torch.float32, chunk_size=4, top_k_docs=2)
    code = "from memspan.cli import app; app()"
    arguments = ["-c", code, "mcp", str(tmp_path / "notes"), "--model", str(tmp_path / "model")]
    environment = {name: os.environ[name] for name in ("PYTHONPATH", "PATH", "OMP_NUM_THREADS") if name in os.environ}

    async def run() -> None:
        parameters = StdioServerParameters(command=sys.executable, args=arguments, env=environment)
        async with Client(parameters) as client:
            await _call(client, "remember", text="The otter lives in Rome.", id="otter")
            (found,) = await _call(client, "recall", query="otter")
            assert found["id"] == "otter"

    anyio.run(run)


class _http:
    """A server of the tools in a thread of its own."""

    def __init__(self, served: tuple[ServedBank, Engine], keys: KeyFile | None) -> None:
        settings = ServeSettings(port=0, grace=1.0)
        self._server: Server = server_of(mcp_app(*served, "me", settings, keys), settings)

    def __enter__(self) -> str:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        wait_for(lambda: self._server.started)
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.handle_exit(15, None)
        self._thread.join(60)
        self._socket.close()
        assert not self._thread.is_alive()
