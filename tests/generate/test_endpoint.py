"""An endpoint of another model, against a server that plays every way to answer badly."""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from chat_server import ChatServer, after, chat_server, drop, event, raw, refuse, say, until_gone, whole

from memspan.errors import AnswererError
from memspan.generate.answerer import AnswerEnd, Answerer, Message
from memspan.generate.completions import context_in
from memspan.generate.endpoint import Endpoint, key_from_environment
from memspan.generate.sampling import Sampling

ASKED = [Message("system", "Be brief."), Message("user", "Who?")]
KEY = "sk-secret-0123456789"
DONE = "data: [DONE]\n\n"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as served:
        yield served


def endpoint(server: ChatServer, **fields: Any) -> Endpoint:
    return Endpoint(server.url, "m", **{"key": KEY, "wait": 0.001, "timeout": 20.0, **fields})


def said(server: ChatServer, sampling: Sampling | None = None, **fields: Any) -> tuple[str, AnswerEnd]:
    pieces = [x for x in endpoint(server, **fields).stream(ASKED, sampling or Sampling()) if x is not None]
    (end,) = [piece for piece in pieces if isinstance(piece, AnswerEnd)]
    assert pieces[-1] is end
    return "".join(piece for piece in pieces if isinstance(piece, str)), end


def test_an_answer_streams_with_its_tokens(server: ChatServer) -> None:
    server.plays = [say("An", " otter", "\u2028🦦", finish="length")]
    assert said(server) == ("An otter\u2028🦦", AnswerEnd("length", 40, 7))
    (body,) = server.asked
    assert body["path"] == "/v1/chat/completions" and body["stream"] is True
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    assert server.headers[-1]["Authorization"] == f"Bearer {KEY}"
    as_one: Answerer = endpoint(server)
    assert as_one.name == "m"


@pytest.mark.parametrize(
    "play",
    [
        whole("An otter"),
        say("An otter", usage={"total_tokens": 3}),
        say("An otter", usage=None),
        say("An otter", finish=None),
        say("An otter", done=False),
        raw(": ping\r\n\r\n", "event: message\r\n", event("An otter").replace("\n", "\r\n"), DONE),
        raw(event("An otter"), "data:[DONE]\n\n"),
        raw(event("An "), event("otter")[:20], event("otter")[20:], DONE),
        raw(event("").replace('"content"', '"reasoning_content"'), event("An otter", finish_reason="stop")),
    ],
)
def test_ways_to_say_the_same(server: ChatServer, play: Any) -> None:
    server.plays = [play]
    text, end = said(server)
    assert text == "An otter" and end.finish_reason == "stop" and end.num_new_tokens in (0, 7)


@pytest.mark.parametrize(
    "first",
    [
        [refuse(429)],
        [refuse(429, Retry_After="0")],
        [refuse(500), refuse(503)],
        [refuse(502, "<html>bad gateway</html>")],
        [drop()],
        [drop(), refuse(529), drop()],
    ],
)
def test_what_fails_for_now_is_asked_again(server: ChatServer, first: list[Any]) -> None:
    server.plays = [*first, say("Well.")]
    assert said(server)[0] == "Well." and len(server.asked) == len(first) + 1


@pytest.mark.parametrize(
    ("play", "calls", "message"),
    [
        (refuse(500), 4, "HTTP 500: not now"),
        (refuse(429, Retry_After="3600"), 1, "HTTP 429"),
        (refuse(401, {"error": {"message": f"bad key {KEY}"}}), 1, r"bad key \*\*\*.*MEMSPAN_ANSWER_KEY"),
        (refuse(404, {"detail": "no model m"}), 1, "no model m"),
        (refuse(400, {"error": "context length exceeded"}), 1, "context length exceeded"),
        (refuse(400, ["odd"]), 1, "odd"),
        (drop(), 4, "Protocol"),
        (drop("An ", "ott"), 1, "broke off"),
        (say("An ott", finish=None, done=False), 1, "broke off"),
        (raw("data: {not json}\n\n"), 1, "no JSON"),
        (raw('data: {"error": {"message": "overloaded"}}\n\n'), 1, "overloaded"),
        (raw(event("An"), 'data: {"error": "gone"}\n\n'), 1, "broke off.*gone"),
        (raw("data: [1]\n\n"), 1, "sent an error"),
        (raw(""), 4, "ended before"),
        (lambda handler, _: handler.reply(200, "text/html", b"<html>login</html>"), 1, "no JSON.*<html>"),
    ],
)
def test_what_gives_no_answer_is_an_error_that_says_why(
    server: ChatServer, play: Any, calls: int, message: str
) -> None:
    server.plays = [play]
    with pytest.raises(AnswererError, match=message) as caught:
        said(server)
    assert len(server.asked) == calls
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "odd",
    [
        "null",
        '{"choices":[]}',
        '{"choices":["x"]}',
        '{"choices":{"a":1}}',
        '{"choices":[{"delta":"x"}]}',
        '{"choices":[{"delta":{"content":[1]}}],"usage":"none"}',
    ],
)
def test_events_of_odd_shapes_break_nothing(server: ChatServer, odd: str) -> None:
    server.plays = [raw(f"data: {odd}\n\n", event("Well."), DONE)]
    if odd == "null":
        with pytest.raises(AnswererError, match="sent an error"):
            said(server)
    else:
        assert said(server)[0] == "Well."


def test_no_character_comes_in_halves(server: ChatServer) -> None:
    halves = ["\\ud83e", "\\udda6 is \\ud83e", "x"]
    server.plays = [raw(*(event("TEXT").replace("TEXT", half) for half in halves), DONE)]
    pieces = [x for x in endpoint(server).stream(ASKED, Sampling()) if isinstance(x, str)]
    assert "".join(pieces) == "🦦 is \ufffdx" and all(piece.encode() for piece in pieces)


def test_a_slow_first_byte_is_waited_for_as_long_as_it_may_take(server: ChatServer) -> None:
    begin = threading.Event()
    server.plays = [after(begin, say("Late."))]
    stream = endpoint(server).stream(ASKED, Sampling())
    assert [next(stream) for _ in range(5)] == [None] * 5, "others have their turn meanwhile"
    begin.set()
    assert "Late." in list(stream)
    begin.clear()
    with pytest.raises(AnswererError, match=r"nothing came for 0\.05 s"):
        said(server, timeout=0.05)
    assert len(server.asked) == 2, "a time-out is not asked again"
    begin.set()


def test_closing_the_stream_ends_the_request(server: ChatServer) -> None:
    server.plays = [until_gone]
    stream = endpoint(server).stream(ASKED, Sampling())
    assert any(piece == "on " or (piece and str(piece).startswith("on ")) for piece in stream)
    stream.close()  # type: ignore[attr-defined]
    assert server.gone.wait(20)


@pytest.mark.parametrize(
    ("complaint", "changed"),
    [
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", {"max_completion_tokens": 9}),
        ("temperature does not support 0 with this model", {"max_tokens": 9}),
        ("unknown field stream_options", {"temperature": 0, "max_tokens": 9}),
    ],
)
def test_a_request_is_written_anew_for_models_that_know_other_fields(
    server: ChatServer, complaint: str, changed: dict[str, Any]
) -> None:
    server.plays = [refuse(400, {"error": {"message": complaint}}), say("Well.")]
    assert said(server, Sampling(9))[0] == "Well."
    now = {name: server.asked[1].get(name) for name in ("max_tokens", "max_completion_tokens", "temperature")}
    assert {name: value for name, value in now.items() if value is not None} == changed


def test_instructions_go_before_the_question_where_a_template_has_no_system_role(server: ChatServer) -> None:
    server.plays = [refuse(400, {"error": "System role not supported"}), say("Well.")]
    assert said(server)[0] == "Well."
    assert server.asked[1]["messages"] == [{"role": "user", "content": "Be brief.\n\nWho?"}]


def test_sampling_is_passed_on(server: ChatServer) -> None:
    said(server, Sampling(9, 0.5, 0.9, 3, ("end",)))
    found = {name: server.asked[0][name] for name in ("max_tokens", "temperature", "top_p", "seed", "stop")}
    assert found == {"max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["end"]}
    said(server, Sampling(9))
    assert not {"top_p", "seed", "stop"} & server.asked[1].keys(), "fields that say nothing are left out"


@pytest.mark.parametrize(
    ("models", "context"),
    [
        ({"data": [{"id": "x", "max_model_len": 1}, {"id": "m", "max_model_len": 8192}]}, 8192),
        ({"data": [{"id": "file.gguf", "meta": {"n_ctx_train": 2048}}]}, 2048),
        ({"data": [{"id": "m", "meta": {"n_ctx": 512, "n_ctx_train": 2048}}]}, 512),
        ({"data": [{"id": "m", "context_length": 32768}]}, 32768),
        ({"data": [{"id": "x", "context_length": 1}, {"id": "y"}]}, None),
        ({"data": [{"id": "m", "max_model_len": "many"}]}, None),
        ({"data": ["m"]}, None),
        (["m"], None),
        (None, None),
    ],
)
def test_the_context_is_asked_for(
    server: ChatServer, models: Any, context: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    assert context_in(models, "m") == context
    server.models = models
    found = endpoint(server)
    assert found.context == (context or 4096) and found.context == found.context
    assert len(server.headers) == 1, "it is asked for once"
    assert ("--answer-context" in caplog.text) is (context is None), "what is not known is not guessed silently"
    assert endpoint(server, room=77).context == 77 and len(server.headers) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"url": "localhost:8000"}, "must be a URL"),
        ({"url": "ftp://h/v1"}, "must be a URL"),
        ({"url": "http://"}, "must be a URL"),
        ({"url": "http://me:pass@h/v1"}, "no password"),
        ({"url": "http://h/v1?key=1"}, "no password"),
        ({"model": " "}, "name the model"),
        ({"key": "sk-\nx"}, "the key"),
        ({"key": "schlüssel"}, "the key"),
        ({"room": 0}, "above 0"),
        ({"timeout": 0}, "above 0"),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AnswererError, match=message) as caught:
        Endpoint(**{"url": "http://h/v1", "model": "m", **fields})
    assert "pass@" not in str(caught.value) or fields["url"].startswith("http://me"), "no secret is shown"


def test_nobody_there_and_no_name(server: ChatServer) -> None:
    nobody = Endpoint("http://127.0.0.1:9/v1", "m", retries=1, wait=0.001)
    for call in (lambda: list(nobody.stream(ASKED, Sampling())), lambda: nobody.context, lambda: nobody.ask("x")):
        with pytest.raises(AnswererError, match=r"m at http://127\.0\.0\.1:9/v1 gave no answer"):
            call()


def test_the_key_comes_from_the_environment_and_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMSPAN_ANSWER_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", " of-openai ")
    assert key_from_environment() == "of-openai"
    monkeypatch.setenv("MEMSPAN_ANSWER_KEY", KEY)
    assert key_from_environment() == KEY
    found = Endpoint("http://h/v1", "m", KEY)
    assert KEY not in repr(found) and KEY not in str(found) and KEY not in json.dumps(found.name)


def test_many_at_a_time(server: ChatServer) -> None:
    server.plays = [say(*"many words here")]
    shared, found = endpoint(server, parallel=4), list[str]()

    def ask() -> None:
        found.append(shared.ask("x"))

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == ["many words here"] * 12
