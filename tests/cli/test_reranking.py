"""`--rerank`: who ranks the first documents anew, in commands; which of them load the model; what is refused first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_server import chat_server, say
from command import failed, memspan

QUESTION = "Where does the otter of Rome live?"


def found(*arguments: object) -> list[str]:
    done = memspan("search", *arguments, "--json")
    assert done.code == 0, done.err
    return sorted(item["external_id"] for item in done.json)


@pytest.mark.parametrize("name", ["model", "likelihood"])
def test_search_and_ask_are_ranked_anew_by_the_model(bank: Path, name: str) -> None:
    assert found(bank, QUESTION, "--rerank", name) == found(bank, QUESTION, "--rerank", "none")
    assert found(bank, QUESTION, "--selector", "lexical", "--rerank", name) == found(
        bank, QUESTION, "--selector", "lexical"
    )
    done = memspan("ask", bank, QUESTION, "--rerank", name, "--rounds", 2, "--max-new-tokens", 2, "--json", "--trace")
    assert done.code == 0, done.err
    assert done.json["rounds"][0]["reranker"] == name and done.json["rounds"][0]["timings"]["rerank"] > 0


def test_words_and_another_model_need_no_memory_model_unless_it_ranks_anew(bank: Path, no_model: None) -> None:
    assert found(bank, QUESTION, "--selector", "lexical", "--rerank", "none")
    with chat_server() as other:
        other.plays = [say("At seven [1].")]
        named = ("--answer-with", other.url, "--answer-model", "big", "--selector", "lexical", "--json")
        assert memspan("ask", bank, QUESTION, *named, "--rerank", "none").json["answerer"] == "big"


@pytest.mark.parametrize("command", ["ask", "search", "serve", "mcp"])
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--rerank", "best"), "reranker must be one of none, model, likelihood, cross, not 'best'"),
        (("--rerank", "cross"), "the reranker cross needs a model: --cross-encoder FOLDER or NAME"),
        (("--rerank", "cross", "--cross-encoder", ""), "the reranker cross needs a model"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_model_is_loaded(
    bank: Path, no_model: None, command: str, options: tuple[str, ...], told: str
) -> None:
    question = (QUESTION,) if command in ("ask", "search") else ()
    assert told in failed(command, bank, *question, *options)


def test_a_cross_encoder_that_is_not_there_is_named(bank: Path, tmp_path: Path) -> None:
    message = failed("search", bank, QUESTION, "--rerank", "cross", "--cross-encoder", tmp_path / "none")
    assert f"the cross-encoder '{tmp_path / 'none'}' cannot be loaded" in message


def test_eval_ranks_anew_by_arms(bank: Path, tmp_path: Path, checkpoint: Path) -> None:
    data, out = tmp_path / "asked.jsonl", tmp_path / "run"
    documents = [{"title": name, "text": f"The {name} of Rome."} for name in ("otter", "heron", "lynx")]
    line = {"id": "q", "question": "Where is the otter?", "answers": ["Rome"], "type": "single", "hops": 1}
    data.write_text(json.dumps(line | {"positives": documents[:1], "negatives": documents[1:]}) + "\n", "utf-8")
    arms = ("bm25@1", "bm25@1+model", "bm25@2+rerank")
    asked = ("eval", "jsonl", "--data", data, "--out", out, "--max-new-tokens", 2, "--model", checkpoint)
    done = memspan(*asked, "--arms", ",".join(arms))
    assert done.code == 0, done.err
    result = json.loads((out / "result.json").read_text("utf-8"))
    assert [row["arm"] for row in result["rows"]] == list(arms) and not result["refused"]
    assert "--cross-encoder" in failed(*asked[:4], "--out", tmp_path / "two", "--arms", "bm25@1+cross")
