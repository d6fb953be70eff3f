"""Chat completions: OpenAI's form, streamed and not, the conversation, citations, what is remembered."""

from __future__ import annotations

import json
from typing import Any

import httpx2 as httpx
import pytest
from serving import chunks, error_of, question

from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.serve.run import Server


def _memory(server: Server, bank: str = "notes", namespace: str = "default") -> Memory:
    return server.config.app.state.service.bank(bank).memory(namespace)  # type: ignore[union-attr]


def test_models_are_the_banks(http: httpx.Client) -> None:
    models = http.get("/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["memspan/notes", "memspan/other"]
    assert http.get("/v1/models/memspan/other").json() == models["data"][1]
    assert error_of(http.get("/v1/models/memspan/none"), 404)["code"] == "model_not_found"


def test_an_answer_is_what_the_library_answers(animals: tuple[Server, str], http: httpx.Client) -> None:
    expected = _memory(animals[0]).ask("Where does the otter live?", sampling=Sampling(max_new_tokens=6))
    got = http.post("/v1/chat/completions", json=question()).json()
    (choice,) = got["choices"]
    assert choice["message"]["content"] == expected.text and choice["finish_reason"] == "length"
    assert got["object"] == "chat.completion" and got["model"] == "memspan/notes"
    assert got["usage"]["prompt_tokens"] == expected.num_prompt_tokens
    assert got["usage"]["completion_tokens"] == expected.num_new_tokens == 6
    trace = got["memspan"]
    assert [item["document_id"] for item in trace["evidence"]] == [item.document_id for item in expected.evidence]
    assert trace["evidence"][0]["id"] == "animals/otter" and trace["evidence"][0]["text"] == "The otter lives in Rome."
    assert trace["routed"] == [], "the router is untrained, so documents are found by their words"
    assert trace["rounds"][0]["chosen"] == [item.document_id for item in expected.evidence]
    assert {"queue", "select", "prefill", "routing", "fetch", "decode"} == set(trace["timings"])
    body = {**question(), "memspan": {"selector": "router", "route_answer": True}}
    routed = http.post("/v1/chat/completions", json=body).json()["memspan"]["routed"]
    assert [len(layer["document_ids"]) for layer in routed] == [2, 2]


def test_sentences_that_no_memory_supports_are_not_annotated_and_said_to_be_so(http: httpx.Client) -> None:
    found = http.post("/v1/chat/completions", json=question()).json()
    assert found["choices"][0]["message"]["annotations"] == [], "this model writes no words"
    text, cited = found["choices"][0]["message"]["content"], found["memspan"]["citations"]
    assert all(not one["supported"] and one["evidence"] is None and one["id"] is None for one in cited)
    assert all(text[one["span"]["start"] : one["span"]["end"]] for one in cited)
    assert (found["memspan"]["answerer"], found["memspan"]["removed_citations"]) == ("", 0)


def test_a_stream_says_what_the_whole_answer_says(http: httpx.Client) -> None:
    whole = http.post("/v1/chat/completions", json=question()).json()
    body = question(stream=True, stream_options={"include_usage": True})
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        found = chunks(response)
    assert {chunk["object"] for chunk in found} == {"chat.completion.chunk"} and len({c["id"] for c in found}) == 1
    *parts, last, usage = found
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in parts)
    assert text.strip() == whole["choices"][0]["message"]["content"]
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["choices"][0]["delta"]["annotations"] == whole["choices"][0]["message"]["annotations"]
    assert last["memspan"]["evidence"] == whole["memspan"]["evidence"]
    started, done = [chunk["memspan"] for chunk in parts if "memspan" in chunk]
    assert started == {"started": {"number": 1, "query": done["round"]["query"]}} and done["round"]["number"] == 1
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]


@pytest.mark.parametrize("way", ["field", "model"])
def test_a_bank_is_chosen_by_the_models_name_or_a_field(http: httpx.Client, way: str) -> None:
    body = question(model="memspan/other") if way == "model" else question(memspan={"bank": "other"})
    assert error_of(http.post("/v1/chat/completions", json=body), 400)["code"] == "empty_memory"
    assert http.post("/v1/chat/completions", json=question(model="memspan")).json()["memspan"]["bank"] == "notes"


def test_earlier_turns_are_read_and_searched_with(animals: tuple[Server, str], http: httpx.Client) -> None:
    options: dict[str, Any] = {"selector": "lexical", "max_documents": 1}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who is in Oslo?"},
        {"role": "assistant", "content": [{"type": "text", "text": "A heron, in the city of Oslo."}]},
        {"role": "user", "content": "and what lives there?"},
    ]
    body = question(messages=messages, memspan=options)
    got = http.post("/v1/chat/completions", json=body).json()
    assert [item["id"] for item in got["memspan"]["evidence"]] == ["animals/heron"]
    alone = http.post("/v1/chat/completions", json=question(messages=messages[-1:], memspan=options)).json()
    template = _memory(animals[0]).loaded.template
    for text in ("Be brief.", "Who is in Oslo?", "A heron, in the city of Oslo."):
        assert got["usage"]["prompt_tokens"] > alone["usage"]["prompt_tokens"] + template.count_tokens(text)


def test_options_reach_the_question(http: httpx.Client) -> None:
    def ask(**fields: Any) -> dict[str, Any]:
        return http.post("/v1/chat/completions", json=question(**fields)).json()

    assert ask(memspan={"selector": "router", "rounds": 3})["memspan"]["rounds"][0]["selector"] == "router"
    assert ask(memspan={"max_documents": 0})["memspan"]["evidence"] == []
    for selector in ("router", "lexical", "hybrid"):
        best = ask(memspan={"selector": selector})["memspan"]["evidence"][0]
        assert ask(memspan={"selector": selector, "min_score": best["score"]})["memspan"]["evidence"][0] == best
        trace = ask(memspan={"selector": selector, "min_score": 1})["memspan"]
        assert (trace["answered"], trace["evidence"]) == (False, [])
    for wrong in (1.1, -1, "high", {"least": 1}):
        refused = http.post("/v1/chat/completions", json=question(memspan={"min_score": wrong}))
        assert error_of(refused, 400)["param"] == "memspan.min_score"
    refused = http.post("/v1/chat/completions", json=question(memspan={"min_score": 0.5, "route_answer": True}))
    assert "leave one of them out" in error_of(refused, 400)["message"]
    only = ask(memspan={"where": {"n": 3}, "selector": "router"})["memspan"]["evidence"]
    assert [item["id"] for item in only] == ["animals/newt"]
    one, two, other = (ask(temperature=1.5, seed=seed)["choices"][0]["message"]["content"] for seed in (1, 1, 2))
    assert one == two != other
    first = ask(max_tokens=20)["choices"][0]["message"]["content"]
    cut = ask(max_completion_tokens=20, stop=[first[3:5]])["choices"][0]
    assert cut["finish_reason"] == "stop" and first.startswith(cut["message"]["content"])


def test_a_turn_is_remembered_with_its_answer(http: httpx.Client) -> None:
    place = {"namespace": "talks", "bank": "other"}
    assert http.post("/v1/memories", json={"text": "The mole digs.", **place}).status_code == 201
    body = question("The mole is called Ada.", remember=True, memspan={**place, "session": "s1"})
    got = http.post("/v1/chat/completions", json=body).json()
    said, answered = got["memspan"]["remembered"]
    assert said.startswith("s1/")
    stored = http.get(f"/v1/memories/{said}", params=place).json()
    assert stored["text"] == "user: The mole is called Ada." and stored["metadata"]["session"] == "s1"
    assert http.get(f"/v1/memories/{answered}", params=place).json()["metadata"]["speaker"] == "assistant"
    again = http.post("/v1/chat/completions", json=question("What is the name of Ada?", memspan=place)).json()
    assert said in [item["id"] for item in again["memspan"]["evidence"]]
    assert again["memspan"]["remembered"] == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "  "}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"memspan": {"selctor": "router"}}, "memspan.selctor"),
        ({"memspan": {"namespace": "\n"}}, "namespace"),
        ({"memspan": {"where": {"n": {"~": 1}}}}, None),
        ({"memspan": {"as_of": "soon"}}, None),
        ({"memspan": {"selector": "generate"}}, None),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, None),
        ({"messages": [{"role": "user", "content": "word " * 20_000}]}, None),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    content = json.dumps(question(**fields))
    for stream in (False, True):
        body = json.dumps({**json.loads(content), "stream": stream})
        response = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
        error = error_of(response, 400)
        assert error["type"] == "invalid_request_error" and error["param"] == param


def test_an_unknown_model_is_not_found(http: httpx.Client) -> None:
    for body in (question(model="gpt-x"), question(model="memspan/none"), question(memspan={"bank": "none"})):
        assert error_of(http.post("/v1/chat/completions", json=body), 404)["type"] == "not_found_error"
