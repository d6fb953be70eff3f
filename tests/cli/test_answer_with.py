"""`--answer-with`: another model answers in commands; which of them load the memory model; what is shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, chat_server, refuse, say
from command import failed, memspan

QUESTION = "Where does the otter of Rome live?"
KEY = "sk-secret-5555"


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    for name in ("MEMSPAN_ANSWER_KEY", "OPENAI_API_KEY", "MEMSPAN_ANSWER_WITH", "MEMSPAN_ANSWER_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with chat_server() as served:
        yield served


def with_other(served: ChatServer) -> tuple[str, str, str, str]:
    return "--answer-with", served.url, "--answer-model", "big"


def test_ask_shows_what_every_sentence_rests_on(bank: Path, other: ChatServer, no_model: None) -> None:
    other.plays = [say("The otter lives at number seven [1]. It has wings [1].")]
    done = memspan("ask", bank, QUESTION, "--selector", "lexical", *with_other(other))
    assert done.code == 0, done.err
    text, first, second, evidence, footer = done.out.splitlines()
    assert text == "The otter lives at number seven [1]. It has wings."
    assert first == "  “The otter lives at number seven” [1] notes/otter.txt[0:40]"
    assert second == "  “It has wings.” no document that was read says so"
    assert evidence.startswith("  1. [3] otter  (notes/otter.txt[0:40]")
    assert "written by big; 40 + 7 tokens" in footer and "1 citations without support left out" in footer
    assert other.headers[-1]["Authorization"] == f"Bearer {KEY}" and KEY not in done.out + done.err
    assert other.asked[0]["model"] == "big" and other.asked[0]["max_tokens"] == 512


def test_ask_as_json_and_several_questions(bank: Path, other: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMSPAN_ANSWER_WITH", other.url)
    monkeypatch.setenv("MEMSPAN_ANSWER_MODEL", "big")
    other.plays = [say("The documents do not say. [0]"), refuse(400, {"error": "odd"}), say("At seven [1].")]
    done = memspan("ask", bank, "--selector", "lexical", "--json", stdin=f"{QUESTION}\n\nwhy?\n{QUESTION}\n")
    first, second = map(json.loads, done.out.splitlines())
    assert (first["answered"], first["answerer"], first["text"]) == (False, "big", "The documents do not say.")
    assert second["answered"] is True and second["citations"][0]["external_id"] == "notes/otter.txt"
    assert second["citations"][0]["span"] == {"start": 0, "end": 8}
    assert "error: big at" in done.err and "odd" in done.err


def test_nothing_found_is_an_answer(bank: Path, other: ChatServer) -> None:
    other.plays = [say("Nothing was found. [0]")]
    done = memspan("ask", bank, "Zebra?", "--selector", "lexical", *with_other(other))
    assert done.code == 0 and "  no answer: nothing was found" in done.out
    own = memspan("ask", bank, "Zebra?", "--selector", "lexical", "--max-new-tokens", 4, "--json").json
    assert (own["answered"], own["answerer"], own["evidence"]) == (False, "", [])


def test_the_memory_model_finds_where_the_selector_routes(bank: Path, other: ChatServer) -> None:
    other.plays = [say("At number seven [1].")]
    done = memspan("ask", bank, QUESTION, "--selector", "hybrid", *with_other(other), "--trace", "--json")
    assert done.json["text"].startswith("At number seven") and done.json["rounds"][0]["routed"]
    assert memspan("ask", bank, QUESTION, *with_other(other), "--answer-context", 900).code == 0


def test_a_summary_by_another_model(bank: Path, other: ChatServer) -> None:
    other.plays = [say("The otter of Rome lives at number seven.\nThe lynx of Quito sleeps all day.")]
    done = memspan("summarize", bank, *with_other(other), "--json")
    assert [one["sources"][0]["external_id"] for one in done.json["statements"]] == [
        "notes/otter.txt",
        "notes/lynx.txt",
    ]
    assert done.json["num_new_tokens"] == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--answer-model", "m"), "need --answer-with URL"),
        (("--answer-context", 9), "need --answer-with URL"),
        (("--answer-with", "http://h/v1"), "needs --answer-model NAME"),
        (("--answer-with", "h", "--answer-model", "m"), "must be a URL"),
        (("--answer-with", "http://a:b@h/v1", "--answer-model", "m"), "no password"),
        (("--answer-with", "http://h/v1", "--answer-model", "m", "--answer-context", 0), "above 0"),
        (
            ("--answer-with", "http://127.0.0.1:9/v1", "--answer-model", "m"),
            "m at http://127.0.0.1:9/v1 gave no answer",
        ),
        (
            ("--answer-with", "http://h/v1", "--answer-model", "m", "--answer-context", 500),
            "lower max_new_tokens",
        ),
    ],
)
def test_half_a_model_is_an_error(bank: Path, other: ChatServer, options: tuple[Any, ...], message: str) -> None:
    said = failed("ask", bank, QUESTION, "--selector", "lexical", *options)
    assert message in said and "a:b" not in said.replace("http://a:b@h/v1", "")


def test_what_it_refuses_is_said_without_the_key(bank: Path, other: ChatServer) -> None:
    other.plays = [refuse(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}})]
    said = failed("ask", bank, QUESTION, "--selector", "lexical", *with_other(other))
    assert "HTTP 401" in said and "***" in said and KEY not in said


def test_a_run_with_another_reader(tmp_path: Path, other: ChatServer) -> None:
    data = tmp_path / "set.jsonl"
    records = [
        {
            "id": f"q{number}",
            "question": f"In which city is the {animal}?",
            "answers": [city],
            "positives": [{"title": animal, "text": f"The {animal} lives in {city}."}],
            "negatives": [],
            "type": "single",
            "hops": 1,
        }
        for number, (animal, city) in enumerate([("otter", "Rome"), ("heron", "Oslo")])
    ]
    records.append({**records[0], "id": "none", "answers": [], "positives": [], "type": "unanswerable"})
    data.write_text("\n".join(map(json.dumps, records)))

    def read(handler: Any, body: dict[str, Any]) -> None:
        said = body["messages"][-1]["content"]
        animal = said.rpartition("the ")[2].rstrip("?")
        known = f"The {animal} lives in " in said
        text = said.partition(f"The {animal} lives in ")[2].partition(".")[0]
        say(f"{text} [1]" if known else "No idea [0]")(handler, body)

    other.plays = [read]
    arms = ("--arms", "none,bm25@2,oracle,router@0,bm25@2+rounds,generate")
    command = ("eval", "jsonl", "--data", data, "--out", tmp_path / "run", *arms, *with_other(other))
    done = memspan(*command)
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    assert result["config"]["answerer"] == {"name": "big", "context": 8192} and KEY not in json.dumps(result)
    rows = {(row["arm"], row["id"]): row for row in result["rows"]}
    assert rows["bm25@2", "q0"]["text"] == "Rome" and rows["bm25@2", "q0"]["scores"]["em"] == 1
    assert rows["oracle", "q1"]["text"] == "Oslo" and rows["oracle", "q1"]["num_prompt_tokens"] == 40
    assert rows["none", "q0"]["text"] == "No idea" and rows["none", "q0"]["abstained"] is True
    assert rows["bm25@2+rounds", "q1"]["text"] == "Oslo"
    assert {"router@0", "generate@5"} == {name.partition("+")[0] for name in result["refused"]}
    assert "reads no latents" in result["refused"]["router@0"]
    calls = len(other.asked)
    assert memspan(*command).code == 0 and len(other.asked) == calls, "what is answered is not asked again"
    assert "another answerer" in failed(*command[:-1], "bigger")
    assert "another answerer" in failed(*command[:-4])
