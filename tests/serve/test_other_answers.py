"""A server whose answers another model writes: over HTTP, streamed and not, many at a time, and to agents."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from chat_server import ChatServer, after, chat_server, refuse, say, until_gone
from mcp import Client
from serving import add_animals, chunks, client, error_of, question, serving, serving_another, wait_for

from memspan.generate.endpoint import Endpoint
from memspan.model.convert import LoadedModel
from memspan.serve.banks import ServedBank
from memspan.serve.engine import Engine
from memspan.serve.mcp import make_mcp
from memspan.types import Document

KEY = "sk-secret-9876"


@pytest.fixture(scope="module")
def _served(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ChatServer, str]]:
    with serving_another(loaded, tmp_path_factory.mktemp("other"), KEY) as served:
        yield served


@pytest.fixture
def other(_served: tuple[ChatServer, str]) -> ChatServer:
    _served[0].asked.clear()
    _served[0].gone.clear()
    return _served[0]


@pytest.fixture
def http(_served: tuple[ChatServer, str]) -> Iterator[httpx.Client]:
    with client(_served[1]) as http:
        yield http


def ask(http: httpx.Client, text: str = "Where does the otter live?", **fields: Any) -> httpx.Response:
    return http.post("/v1/chat/completions", json=question(text, max_tokens=50, **fields))


def test_sentences_are_annotated_where_they_stand(http: httpx.Client, other: ChatServer) -> None:
    other.plays = [say("\n🦦 The otter lives", " in Rome [1]. It sings [1]. Lynx"), say("No.")]
    found = ask(http).json()
    message, trace = found["choices"][0]["message"], found["memspan"]
    assert message["content"] == "🦦 The otter lives in Rome [1]. It sings. Lynx"
    (one,) = [annotation["url_citation"] for annotation in message["annotations"]]
    assert message["content"][one["start_index"] : one["end_index"]] == "🦦 The otter lives in Rome"
    assert one["url"] == "memspan://notes/default/animals/otter" and one["title"] == "otter"
    assert [(c["supported"], c["evidence"], c["id"]) for c in trace["citations"]][:2] == [
        (True, 1, "animals/otter"),
        (False, None, None),
    ]
    assert (trace["answerer"], trace["removed_citations"], trace["answered"]) == ("big", 1, True)
    assert found["usage"] == {"prompt_tokens": 40, "completion_tokens": 7, "total_tokens": 47}
    assert other.asked[0]["max_tokens"] == 50 and other.headers[-1]["Authorization"] == f"Bearer {KEY}"


def test_a_stream_is_the_same_piece_by_piece(http: httpx.Client, other: ChatServer) -> None:
    other.plays = [say(*"The otter lives in Rome [1].", finish="length")]
    whole = ask(http).json()
    with http.stream("POST", "/v1/chat/completions", json=question(max_tokens=50, stream=True)) as response:
        found = chunks(response)
    deltas = [chunk["choices"][0]["delta"] for chunk in found]
    assert "".join(delta.get("content", "") for delta in deltas) == "The otter lives in Rome [1]."
    assert deltas[-1]["annotations"] == whole["choices"][0]["message"]["annotations"] != []
    assert found[-1]["choices"][0]["finish_reason"] == "length"


def test_the_banks_own_model_answers_where_that_is_asked(http: httpx.Client, other: ChatServer) -> None:
    other.plays = [say("The otter lives in Rome.")]
    found = ask(http, memspan={"own_model": True, "selector": "router", "route_answer": True}).json()
    assert found["memspan"]["answerer"] == "" and other.asked == []
    assert ask(http, memspan={"own_model": False}).json()["memspan"]["answerer"] == "big" and len(other.asked) == 1
    assert error_of(ask(http, memspan={"own_model": "no model"}), 400)["param"] == "memspan.own_model"


def test_nothing_found_is_said(http: httpx.Client, other: ChatServer) -> None:
    other.plays = [say("The documents do not say. [0]")]
    assert ask(http).json()["memspan"]["answered"] is False
    assert ask(http, "Zebra", memspan={"selector": "lexical"}).json()["memspan"]["answered"] is False
    assert "No document was found." in other.said


def test_a_model_that_gives_none_is_a_502_that_shows_nothing(
    http: httpx.Client, other: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    other.plays = [refuse(401, {"error": {"message": f"wrong key {KEY}"}})]
    error = error_of(ask(http), 502)
    assert error["code"] == "answerer_failed" and other.url not in error["message"]
    assert "wrong key ***" in caplog.text and KEY not in caplog.text
    other.plays = [say("Well.")]
    assert ask(http).json()["choices"][0]["message"]["content"] == "Well."


def test_an_answer_has_the_room_of_the_model_that_writes_it(loaded: LoadedModel, tmp_path: Path) -> None:
    with chat_server() as other:
        other.plays = [say("Well.")]
        endpoint = Endpoint(other.url, "big", room=1000)
        with serving(loaded, tmp_path / "notes", answerer=endpoint) as (_, address), client(address) as http:
            add_animals(http)
            (model,) = http.get("/v1/models").json()["data"]
            assert (model["context_length"], model["max_output_tokens"]) == (1000, 1000)
            assert ask(http, max_completion_tokens=-1).status_code == 200
            assert 200 < other.asked[-1]["max_tokens"] < 500, "half of the room beside the question"
            assert error_of(ask(http, "word " * 1000), 400)["code"] == "context_length_exceeded"
            assert len(other.asked) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_is_not_there_is_a_502_before_a_stream_begins(
    loaded: LoadedModel, tmp_path: Path, stream: bool
) -> None:
    endpoint = Endpoint("http://127.0.0.1:9/v1", "big", retries=0)
    with serving(loaded, tmp_path / "notes", answerer=endpoint) as (_, address), client(address) as http:
        add_animals(http)
        assert error_of(ask(http, stream=stream), 502)["code"] == "answerer_failed"
        assert error_of(http.get("/v1/models"), 502)["code"] == "answerer_failed"
        assert http.post("/v1/memories/search", json={"query": "otter"}).status_code == 200


def test_a_client_that_leaves_ends_the_request(http: httpx.Client, other: ChatServer) -> None:
    other.plays = [until_gone]
    with http.stream("POST", "/v1/chat/completions", json=question(max_tokens=50, stream=True)) as response:
        lines = response.iter_lines()  # the connection ends with it
        assert next(lines)
        wait_for(lambda: other.asked)
    assert other.gone.wait(30)


def test_answers_are_waited_for_together(_served: tuple[ChatServer, str], other: ChatServer) -> None:
    """Eight questions are under way at the same time: none is answered before all have been asked."""
    all_there, asked = threading.Event(), threading.Semaphore(0)

    def play(handler: Any, body: dict[str, Any]) -> None:
        asked.release()
        if len(other.asked) >= 8:
            all_there.set()
        after(all_there, say(body["messages"][-1]["content"].rpartition("Question: ")[2]))(handler, body)

    other.plays = [play]

    def one(number: int) -> str:
        with client(_served[1]) as http:
            return ask(http, f"Question {number}?").json()["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == [f"Question {number}?" for number in range(8)]


def test_agents_are_answered_with_marks(loaded: LoadedModel, tmp_path: Path, other: ChatServer) -> None:
    import anyio

    other.plays = [say("The otter lives in Rome. Dogs bark.")]
    bank = ServedBank("notes", tmp_path / "notes", loaded, 10, Endpoint(other.url, "big", room=8192))
    bank.write("default", lambda memory: memory.add([Document("zoo", "The otter lives in Rome.")])).result()
    engine = Engine(loaded, max_batch=2, max_queue=4, timeout=60.0)

    async def use() -> dict[str, Any]:
        async with Client(make_mcp(bank, engine, "default")) as agent:
            result = await agent.call_tool("ask", {"question": "Where does the otter live?"})
            return result.structured_content or json.loads(result.content[0].text)  # type: ignore[union-attr]

    found = anyio.run(use)
    engine.close()
    bank.close()
    assert found["answer"] == "The otter lives in Rome. Dogs bark." and found["answered"] is True
    assert found["cited"] == "The otter lives in Rome. [1] Dogs bark."
