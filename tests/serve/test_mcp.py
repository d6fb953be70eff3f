"""The tools and resources of `memspan mcp`, called by the protocol's own client, in memory and over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
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

from memspan.errors import CheckpointError
from memspan.model.convert import LoadedModel, convert
from memspan.serve.banks import ServedBank
from memspan.serve.engine import Engine
from memspan.serve.keys import KeyFile
from memspan.serve.logs import keep_private
from memspan.serve.mcp import Loading, loading_mcp, make_mcp, mcp_app
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


async def _call(client: Client, name: str, /, **arguments: Any) -> Any:
    """What a tool returned, or the message of its refusal."""
    result = await client.call_tool(name, arguments)
    text = result.content[0].text if result.content else ""
    if result.is_error:
        return f"refused: {text}"
    found = result.structured_content
    return found["result"] if found is not None and set(found) == {"result"} else (found or json.loads(text))


async def _use(client: Client) -> None:
    names = {tool.name for tool in (await client.list_tools()).tools}
    assert names == {"remember", "remember_conversation", "recall", "ask", "about", "changes", "forget", "list"}
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


def _in_memory(served: tuple[ServedBank, Engine], use: Callable[[Client], Awaitable[None]]) -> None:
    async def run() -> None:
        async with Client(make_mcp(*served, "me")) as client:
            await use(client)

    anyio.run(run)


def test_tools_say_what_they_take_give_and_do(served: tuple[ServedBank, Engine]) -> None:
    async def use(client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        for tool in tools.values():
            assert tool.output_schema and tool.output_schema["type"] == "object", tool.name
            assert tool.input_schema["additionalProperties"] is False
            assert all(one.get("description") for one in tool.input_schema["properties"].values()), tool.name
            assert tool.description and "Use it" in tool.description and tool.annotations
            assert tool.annotations.open_world_hint is False
        reading = {name for name, tool in tools.items() if tool.annotations and tool.annotations.read_only_hint}
        assert reading == {"recall", "ask", "list", "about", "changes"}
        for name in ("remember", "forget"):
            kind = tools[name].annotations
            assert kind and kind.destructive_hint and kind.idempotent_hint
        for name in ("recall", "ask", "list", "about"):
            assert {"where", "as_of"} <= set(tools[name].input_schema["properties"])

    _in_memory(served, use)


def test_tools_filter(served: tuple[ServedBank, Engine]) -> None:
    async def use(client: Client) -> None:
        for n, (text, date) in enumerate(
            (("The otter lives in Rome.", "2020-01-01"), ("The otter moved.", "2024-01-01"))
        ):
            metadata = {"n": n, "path": "/srv/secret/otter.txt"}
            await _call(client, "remember", text=text, id=str(n), date=date, metadata=metadata)
        for filters, ids in (({"where": {"n": 1}}, ["1"]), ({"as_of": "2021-01-01"}, ["0"]), ({}, ["0", "1"])):
            found = await _call(client, "recall", query="otter", **filters)
            assert sorted(one["id"] for one in found) == ids
            assert all(one["metadata"] == {"n": int(one["id"]), "path": "otter.txt"} for one in found)
            assert [one["id"] for one in (await _call(client, "list", **filters))["memories"]] == ids
            answer = await _call(client, "ask", question="Where is the otter?", max_tokens=2, **filters)
            assert sorted(one["id"] for one in answer["sources"]) == ids
        for least, some in ((0, True), (1, False)):
            assert bool(await _call(client, "recall", query="otter", min_score=least)) is some
            answer = await _call(client, "ask", question="Where is the otter?", max_tokens=2, min_score=least)
            assert bool(answer["sources"]) is some and (some or not answer["answered"])
        for wrong in (2, "high"):
            for name, arguments in (("recall", {"query": "x"}), ("ask", {"question": "x"})):
                assert "refused: min_score" in await _call(client, name, **arguments, min_score=wrong)
        for name, arguments in (("recall", {"query": "x"}), ("ask", {"question": "x"}), ("list", {})):
            assert "no document has a field 'nowhere'" in await _call(client, name, **arguments, where={"nowhere": 1})
            assert "soon" in await _call(client, name, **arguments, as_of="soon")

    _in_memory(served, use)


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("recall", {"query": "x", "namespace": "you"}, "recall has no argument 'namespace'; this server is of one"),
        ("remember", {"text": "x", "metdata": {}}, "remember has no argument 'metdata'; did you mean 'metadata'?"),
        ("forget", {"id": "x", "zzz": 1}, "forget has no argument 'zzz'; it takes id"),
        ("forget", {}, "id: Field required"),
        ("forget", {"id": ""}, "id: String should have at least 1 character"),
        ("forget", {"id": "never seen"}, "there is no such memory in this namespace"),
        ("recall", {"query": "x", "limit": 0}, "limit: Input should be greater than or equal to 1"),
        ("recall", {"query": ["x"]}, "query: Input should be a valid string"),
        ("recall", {"query": " "}, "empty"),
        ("ask", {"question": "x"}, "there is no memory to ask"),
        ("remember", {"text": "a\0b"}, "NUL"),
        ("remember", {"text": "x", "date": "soon"}, "'soon' is not a date"),
        ("remember", {"text": "x", "metadata": [1]}, "metadata: Input should be"),
        ("remembre", {"text": "x"}, "there is no tool 'remembre'; there are remember"),
    ],
)
def test_errors_are_sentences(
    served: tuple[ServedBank, Engine], name: str, arguments: dict[str, Any], told: str
) -> None:
    async def use(client: Client) -> None:
        refusal = await _call(client, name, **arguments)
        assert refusal.startswith("refused: ") and told in refusal, refusal
        for dump in ("pydantic", "http", "Error executing", "\n", "input_value", "Arguments"):
            assert dump not in refusal, refusal

    _in_memory(served, use)


def test_what_goes_wrong_inside_tells_nothing(
    served: tuple[ServedBank, Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keep_private()

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("swordfish in /srv/secret")

    monkeypatch.setattr("memspan.generate.memory.Memory.search", fail)

    async def use(client: Client) -> None:
        refusal = await _call(client, "recall", query="x")
        assert "its log says why" in refusal and "swordfish" not in refusal and "secret" not in refusal

    _in_memory(served, use)
    assert "RuntimeError" in caplog.text and "swordfish" not in caplog.text


def test_it_answers_before_there_is_a_model(served: tuple[ServedBank, Engine]) -> None:
    """Initialising and listing tools wait for nothing; a tool waits until the model is there, and then works."""
    begun, there = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def opened() -> Iterator[tuple[ServedBank, Engine]]:
        begun.set()
        assert there.wait(30)
        yield served

    async def run() -> None:
        with contextlib.closing(Loading(opened)) as loading:
            async with Client(loading_mcp(loading, "me")) as client:
                assert len((await client.list_tools()).tools) == 8 and not there.is_set()
                await anyio.to_thread.run_sync(begun.wait, 30)
                assert begun.is_set(), "it is loaded behind the first answer, before it is needed"
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_remember, client)
                    assert len((await client.list_tools()).tools) == 8 and not there.is_set()
                    there.set()

    anyio.run(run)
    assert served[0].counts("me").sources == 1


async def _remember(client: Client) -> None:
    assert (await _call(client, "remember", text="x", id="y"))["id"] == "y"


def test_a_model_that_cannot_be_loaded_is_named_by_every_tool() -> None:
    @contextlib.contextmanager
    def opened() -> Iterator[tuple[ServedBank, Engine]]:
        raise CheckpointError("/srv/secret/model is no checkpoint; convert one")
        yield

    async def run() -> None:
        with contextlib.closing(Loading(opened)) as loading:
            async with Client(loading_mcp(loading, "me")) as client:
                for _ in range(2):
                    refusal = await _call(client, "recall", query="x")
                    assert refusal == "refused: model is no checkpoint; convert one"

    anyio.run(run)


def test_the_tools_alone_import_no_model() -> None:
    """What stands between the start of the command and its first answer."""
    code = "import sys, memspan.serve.mcp; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


TALK = [
    {"role": "user", "name": "Ann", "content": "Where does the otter live?", "date": "2026-03-01T10:00:00Z"},
    {"role": "assistant", "content": [{"type": "text", "text": "In Rome."}]},
]


def test_conversations_changes_and_all_about_somebody(served: tuple[ServedBank, Engine]) -> None:
    async def use(client: Client) -> None:
        kept = await _call(client, "remember_conversation", messages=TALK, session="s")
        assert len(kept["ids"]) == kept["added"] == 1
        assert await _call(client, "remember_conversation", messages=TALK, session="s") == {**kept, "added": 0}
        await _call(client, "remember", text="The otter digs.", id="otter", date="2020-01-01")
        newest, oldest = await _call(client, "about", name="Otter")
        assert (newest["text"], newest["date"]) == (
            "Ann: Where does the otter live?\nassistant: In Rome.",
            "2026-03-01T10:00:00",
        )
        assert oldest["id"] == "otter" and "score" not in oldest and newest["metadata"]["session"] == "s"
        assert await _call(client, "about", name="otter", limit=1, offset=1) == [oldest]
        assert await _call(client, "about", name="otter", where={"session": "s"}) == [newest]
        found = await _call(client, "changes", since="1h")
        assert [(one["kind"], one["id"]) for one in found["changes"]] == [("added", kept["ids"][0]), ("added", "otter")]
        await _call(client, "forget", id="otter")
        later = await _call(client, "changes", after_commit=found["commit"])
        assert [(one["kind"], one["id"]) for one in later["changes"]] == [("deleted", "otter")]
        assert (await _call(client, "changes", after_commit=later["commit"]))["changes"] == []

    _in_memory(served, use)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("remember_conversation", {"messages": []}, "messages"),
        ("remember_conversation", {"messages": [{"content": "x"}]}, "message 0: it has no role"),
        ("remember_conversation", {"messages": TALK, "date": "soon"}, "not a date"),
        ("changes", {}, "one of since and after_commit"),
        ("changes", {"since": "1h", "after_commit": 0}, "one of since and after_commit"),
        ("changes", {"since": "soon"}, "as 7d or 12h"),
        ("changes", {"after_commit": 10**6}, "last commit"),
        ("about", {"name": " "}, "the question is empty"),
        ("about", {"name": "x", "nmae": "x"}, "did you mean 'name'"),
    ],
)
def test_what_the_tools_of_time_cannot_do_is_said(
    served: tuple[ServedBank, Engine], name: str, arguments: dict[str, Any], says: str
) -> None:
    async def use(client: Client) -> None:
        await _call(client, "remember", text="The otter digs.")
        refused = await _call(client, name, **arguments)
        assert refused.startswith("refused: ") and says in refused, refused

    _in_memory(served, use)


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
