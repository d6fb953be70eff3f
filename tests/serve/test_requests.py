"""Chat requests as clients send them: what is taken, what is refused by name, and what the words of a refusal say."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import httpx2 as httpx
import pytest
from clients import REQUESTS
from serving import add_animals, chunks, client, error_of, question, serving, wait_for

from memspan.model.convert import LoadedModel
from memspan.serve.api.chat import _checked
from memspan.serve.chat_request import ChatRequest
from memspan.serve.run import Server
from memspan.serve.settings import ServeSettings

URL = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("body", REQUESTS.values(), ids=REQUESTS)
def test_what_clients_send_is_answered(loaded: LoadedModel, http: httpx.Client, body: dict[str, Any]) -> None:
    response = http.post(URL, json={"model": "memspan/notes", "memspan": {"max_documents": 1}, "max_tokens": 4, **body})
    assert response.status_code == 200, response.text
    trace = chunks(response)[-2:] if body.get("stream") else [response.json()]
    found = next(item["memspan"] for item in trace if "memspan" in item)
    assert [item["id"] for item in found["evidence"]] == ["animals/otter"], "it is the last user's question"


def _image(**part: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]}]}


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [{"type": "function", "function": {"name": "x"}}]}, "tools", "calls no tools"),
    ({"tools": "x"}, "tools", "calls no tools"),
    ({"tool_choice": "required"}, "tool_choice", "calls no tools"),
    ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "calls no tools"),
    ({"functions": [{"name": "x"}]}, "functions", "calls no tools"),
    ({"function_call": {"name": "x"}}, "function_call", "calls no tools"),
    ({"response_format": {"type": "json_object"}}, "response_format", "plain text"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format", "plain text"),
    ({"n": 2}, "n", "one answer"),
    ({"n": 0}, "n", "one answer"),
    ({"logit_bias": {"50256": -100}}, "logit_bias", "likelier"),
    ({"logprobs": True}, "logprobs", "probabilities"),
    ({"top_logprobs": 3}, "top_logprobs", "probabilities"),
    ({"modalities": ["text", "audio"]}, "modalities", "hears and speaks"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio", "hears and speaks"),
    ({"frequency_penalty": 0.5}, "frequency_penalty", "penalties"),
    ({"presence_penalty": -2}, "presence_penalty", "penalties"),
    ({"store": True}, "store", "remember"),
    ({"web_search_options": {}}, "web_search_options", "the memory"),
    (_image(type="image_url", image_url={"url": "data:image/png;base64,x"}), "messages.0.content", "'image_url'"),
    (_image(type="input_image", image_url="x"), "messages.0.content", "'input_image'"),
    (_image(type="input_audio", input_audio={}), "messages.0.content", "'input_audio'"),
    (_image(type="file", file={}), "messages.0.content", "'file'"),
    (_image(text="x"), "messages.0.content", "without a type"),
    (_image(type="text", text=5), "messages.0.content", "reads text alone"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "a text"),
    ({"messages": [{"role": "user", "content": "x", "images": ["x"]}]}, "messages.0.images", "no images"),
    ({"messages": [{"role": "user", "content": "x", "contnt": "y"}]}, "messages.0.contnt", "'content'"),
    ({"namespace": "me"}, "namespace", '{"memspan": {"namespace": ...}}'),
    ({"where": {"n": 1}}, "where", '{"memspan": {"where": ...}}'),
    ({"max_documents": 3}, "max_documents", '{"memspan": {"max_documents": ...}}'),
    ({"temprature": 1}, "temprature", "'temperature'"),
    ({"top_k": 4}, "top_k", "'top_p'"),
    ({"zzz": 1}, "zzz", "/openapi.json"),
    ({"memspan": {"max_docs": 1}}, "memspan.max_docs", "'max_documents'"),
    ({"stream_options": {"usage": True}}, "stream_options.usage", "no such field"),
]


@pytest.mark.parametrize(("fields", "param", "told"), REFUSED, ids=[param for _, param, _ in REFUSED])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_done_is_refused_by_name(
    http: httpx.Client, fields: dict[str, Any], param: str, told: str, stream: bool
) -> None:
    error = error_of(http.post(URL, json=question(stream=stream, **fields)), 400)
    assert error["param"] == param and told in error["message"], error
    assert "pydantic" not in error["message"] and "Input should be" not in error["message"]
    assert error["code"] in ("unsupported_value", "unknown_field")


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "a\ud800b"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "\udfff"}]}]},
        {"messages": [{"role": "system", "content": "\ud83d"}, {"role": "user", "content": "x"}]},
        {"stop": ["\ud800"]},
        {"user": "\ud800"},
        {"metadata": {"\ud800": 1}},
        {"memspan": {"session": "\ud800"}, "remember": True},
        {"memspan": {"where": {"n": "\ud800"}}},
        {"memspan": {"namespace": "\ud800"}},
        {"\ud800": 1},
    ],
)
def test_half_characters_are_refused_wherever_they_stand(http: httpx.Client, fields: dict[str, Any]) -> None:
    error_of(http.post(URL, content=json.dumps(question(**fields)), headers=JSON), 400)


@pytest.mark.parametrize("path", ["/v1/memories", "/v1/memories/search", "/v1/imports"])
def test_half_characters_are_refused_by_other_routes(http: httpx.Client, path: str) -> None:
    for text in ("\ud800", "x\udc00"):
        body = {"query": text} if path.endswith("search") else {"memories": [{"text": "x", "title": text}]}
        body = {"text": "x", "metadata": {"a": [text]}} if path.endswith("memories") else body
        error_of(http.post(path, content=json.dumps(body), headers=JSON), 400)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_any_number_of_tokens_means_as_many_as_there_are(loaded: LoadedModel, tmp_path: Any, name: str) -> None:
    with serving(loaded, tmp_path / "notes", max_new_tokens=9) as (_, address), client(address) as http:
        add_animals(http)
        body = {name: value for name, value in question().items() if name != "max_tokens"}
        for fields in ({}, {name: -1}, {name: 0}, {name: None}, {name: 10}, {name: 10**30}):
            answer = http.post(URL, json={**body, **fields}).json()
            assert answer["usage"]["completion_tokens"] == 9 and answer["choices"][0]["finish_reason"] == "length"
        assert http.post(URL, json={**body, name: 2}).json()["usage"]["completion_tokens"] == 2


def test_an_answer_leaves_room_for_evidence(animals: tuple[Server, str], http: httpx.Client) -> None:
    """Where the model's room is less than the server allows, an answer takes half of it at most."""
    service = animals[0].config.app.state.service  # type: ignore[union-attr]
    memory, long = service.bank("notes").memory("default"), "word " * 1000
    loaded, large = memory.loaded, dataclasses.replace(service, settings=ServeSettings(max_new_tokens=100_000))
    _, options = _checked(ChatRequest.model_validate(question(long, max_tokens=-1)), memory, large)
    asked = len(loaded.template.context(long).ids)
    room = loaded.model.config.text_config.max_position_embeddings - loaded.model.config.offset
    assert options["sampling"].max_new_tokens == (room - asked) // 2
    assert error_of(http.post(URL, json=question(long * 4)), 400)["code"] == "context_length_exceeded"


def test_seeds_of_minus_one_are_other_ones(http: httpx.Client) -> None:
    texts = {
        http.post(URL, json=question(seed=seed, temperature=2, max_tokens=12)).json()["choices"][0]["message"][
            "content"
        ]
        for seed in (-1, -1, -1, None)
    }
    assert len(texts) > 1


def test_calls_and_results_of_tools_are_read_as_dialogue(http: httpx.Client, animals: tuple[Server, str]) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": '{"city": "Oslo"}'}}
    custom = {"id": "2", "type": "custom", "custom": {"name": "shell", "input": "ls"}}
    messages = [
        {"role": "user", "content": "Who is there?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [call, custom]},
        {"role": "tool", "tool_call_id": "1", "name": "look_up", "content": "the heron"},
        {"role": "user", "content": "Where does the otter live?"},
    ]
    read = [message.text for message in ChatRequest.model_validate(question(messages=messages)).messages]
    assert read[1] == 'I look.\nCalled look_up({"city": "Oslo"})\nCalled shell(ls)'
    assert read[2] == "look_up returned: the heron"
    got = http.post(URL, json=question(messages=messages)).json()
    alone = http.post(URL, json=question(messages=messages[-1:])).json()
    template = animals[0].config.app.state.service.bank("notes").memory("default").loaded.template  # type: ignore[union-attr]
    more = sum(template.count_tokens(text) for text in read[:3])
    assert got["usage"]["prompt_tokens"] > alone["usage"]["prompt_tokens"] + more
    behind = http.post(URL, json=question(messages=[messages[3], *messages[1:3]])).json()
    assert behind["memspan"]["evidence"][0]["id"] == "animals/otter"
    for wrong in (messages[:2], messages[2:3], [{"role": "tool", "content": "x"}]):
        assert error_of(http.post(URL, json=question(messages=wrong)), 400)["param"] == "messages"


def test_a_model_says_how_much_it_reads(http: httpx.Client) -> None:
    (notes, _) = http.get("/v1/models").json()["data"]
    assert 8000 < notes["context_length"] <= 8192 and notes["max_output_tokens"] == 1024


@pytest.mark.parametrize(
    ("path", "instead"),
    [
        ("/v1/responses", "/v1/chat/completions"),
        ("/v1/responses/resp_1/input_items", "/v1/chat/completions"),
        ("/v1/completions", "/v1/chat/completions"),
        ("/v1/embeddings", "/v1/memories"),
        ("/v1/embeddings/", "/v1/memories"),
        ("/v1/images", "/openapi.json"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_is_not_here_says_what_is(http: httpx.Client, path: str, instead: str, method: str) -> None:
    error = error_of(http.request(method, path, json={"input": "x"} if method == "POST" else None), 404)
    assert instead in error["message"] and error["code"] == "route_not_found"


@pytest.mark.parametrize("keep_alive", [0.02, 0.0])
def test_a_stream_that_waits_for_its_turn_has_begun(loaded: LoadedModel, tmp_path: Any, keep_alive: float) -> None:
    """Status, headers and a first chunk are there while another question is being answered; comments keep it open."""
    with serving(loaded, tmp_path / "notes", max_batch=1, max_new_tokens=4000, keep_alive=keep_alive) as (
        server,
        address,
    ):
        engine = server.config.app.state.service.engine  # type: ignore[union-attr]
        with client(address) as http, client(address) as other:
            add_animals(http)
            with http.stream("POST", URL, json=question(stream=True, max_tokens=4000)) as running:
                wait_for(lambda: engine.num_running == 1)
                with other.stream("POST", URL, json=question(stream=True)) as waiting:
                    assert waiting.status_code == 200
                    lines = waiting.iter_lines()
                    assert '"role": "assistant"' in next(lines)
                    assert engine.num_waiting == 1
                    if keep_alive:
                        assert next(line for line in lines if line.startswith(":"))
                    running.close()
                    rest = list(lines)
    assert rest[-2] == "data: [DONE]" or "data: [DONE]" in rest
    assert keep_alive or not any(line.startswith(":") for line in rest)
