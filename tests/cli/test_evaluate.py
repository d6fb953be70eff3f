"""`memspan eval` on a tiny model: every file it writes, figures worked out by hand, and going on after a stop."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import failed, memspan

from memspan.bank.add import add_documents
from memspan.eval import answering, niah, runner
from memspan.eval.tasks import TaskSettings

ANIMALS = ("otter Rome", "heron Oslo", "lynx Quito", "mole Lima")


def question(number: int, **changes: Any) -> dict[str, Any]:
    animal, city = ANIMALS[number].split()
    return {
        "id": f"q{number}",
        "question": f"In which city is the {animal}?",
        "answers": [city],
        "positives": [{"title": animal, "text": f"The {animal} lives in {city}."}],
        "negatives": [],
        "type": "single",
        "hops": 1,
        **changes,
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "set.jsonl"
    records = [*map(question, range(4)), question(0, id="none", answers=[], positives=[], type="unanswerable")]
    path.write_text("\n".join([*map(json.dumps, records), "broken"]) + "\n")
    return path


def evaluate(out: Path, *more: object) -> Any:
    done = memspan("eval", *more, "--out", out, "--max-new-tokens", 4)
    assert done.code == 0, done.err
    return json.loads((out / "result.json").read_text("utf-8")) | {"shown": done.out}


def scripted(monkeypatch: pytest.MonkeyPatch, reply: Any) -> None:
    """Answer by a rule instead of the tiny model: `reply(question, texts of the documents)`."""
    real = answering.answer

    def answer(loaded: Any, prompts: Any, *rest: Any) -> Any:
        texts = [[item.text for item in prompt.documents] for prompt in prompts]
        said = [reply(prompt.question, found) for prompt, found in zip(prompts, texts, strict=True)]
        return [replace(one, text=text) for one, text in zip(real(loaded, prompts, *rest), said, strict=True)]

    monkeypatch.setattr(answering, "answer", answer)


def read_aloud(asked: str, texts: list[str]) -> str:
    """A perfect reader: the city of the animal asked for, if a document before it tells."""
    animal = asked.rstrip("?").split()[-1]
    return next((text.rstrip(".").split()[-1] for text in texts if f"The {animal} " in text), "unknown")


def test_a_perfect_reader_scores_what_its_documents_allow(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, read_aloud)
    out = tmp_path / "run"
    result = evaluate(out, "jsonl", "--data", data, "--arms", "none,oracle,bm25@1,router@0,context", "--batch", 3)
    summaries = {summary["arm"]: summary for summary in result["summaries"]}
    em = {name: summary["scores"]["em"]["mean"] for name, summary in summaries.items()}
    assert em == {"none": 0, "oracle": 1, "bm25@1": 1, "router@0": 0, "context": 1}
    assert summaries["bm25@1"]["scores"]["recall@1"]["mean"] == 1
    said = {name: s["abstention"] for name, s in summaries.items()}
    abstention = {name: {k: said[name][k]["mean"] for k in said[name]} for name in ("none", "oracle")}
    assert abstention["none"] == {"precision": 1 / 5, "recall": 1}
    assert abstention["oracle"] == {"precision": 1, "recall": 1}
    documents = {name: summary["documents"]["mean"] for name, summary in summaries.items()}
    assert (documents["oracle"], documents["context"]) == (4 / 5, 4)
    assert result["differences"]["arms"]["oracle"][0]["mean"] == 1 and result["differences"]["from"] == "none"
    assert [bad["where"].rpartition("#")[2] for bad in result["malformed"]] == ["6"]
    assert len(result["rows"]) == 25 and result["refused"] == {}
    (memory,) = result["memories"]
    assert memory["sources"] == 4 and memory["memory_tokens"] > 0 and memory["complete"]
    assert result["config"]["sampling"]["max_new_tokens"] == 4 and result["machine"]["cores"]
    table = (out / "table.md").read_text("utf-8")
    assert "| `oracle` | 100.0 (100.0–100.0) |" in table and "1 malformed" in table
    assert table.strip() in result["shown"]
    routed = [row for row in result["rows"] if row["arm"] == "router@0"]
    assert all(set(row["layers"]) == {"2", "3"} for row in routed if row["answers"]), "of the evidence, by MSA layer"
    assert "each MSA layer routed to" in table and "| arm | 2 | 3 |" in table
    assert result["asked"]["bm25@1"]["questions"] == 5 and result["asked"]["bm25@1"]["cpu_seconds"] > 0


def test_a_stopped_run_goes_on_and_ends_as_an_unbroken_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("jsonl", "--data", data, "--arms", "none,bm25@2,router@2", "--batch", 2)
    whole = evaluate(tmp_path / "whole", *command)
    asked: list[int] = []
    real = answering.answer

    def dies(*arguments: Any) -> Any:
        asked.append(len(arguments[1]))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(answering, "answer", dies)
    out = tmp_path / "broken"
    assert memspan("eval", *command, "--out", out, "--max-new-tokens", 4).code == 130
    assert not (out / "result.json").exists()
    with (out / "rows.jsonl").open("a") as file:
        file.write('{"arm": "bm25@2", "id": "q0", "torn')
    encoded: list[object] = []
    monkeypatch.setattr(
        "memspan.generate.documents.add_documents", lambda *a, **k: encoded.append(a) or add_documents(*a, **k)
    )
    result = evaluate(out, *command)
    assert not encoded, "the bank is reused"
    assert sum(asked) - asked[3] == 15, "what was answered is not asked again"

    def told(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(({**row, "seconds": 0} for row in rows), key=lambda row: (row["arm"], row["id"]))

    assert told(result["rows"]) == told(whole["rows"])
    means = [[s["scores"] for s in found["summaries"]] for found in (result, whole)]
    assert means[0] == means[1]
    again = evaluate(out, *command)
    assert told(again["rows"]) == told(whole["rows"]) and len(asked) == 10


def test_needles_of_a_perfect_reader_and_of_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, lambda asked, texts: " ".join(texts))
    options = ("--questions", 3, "--arms", "none,oracle,bm25@1,context")
    for task, tokens in (("niah_single_1", 2000), ("vt", 400)):  # the tiny model has 512 positions
        result = evaluate(tmp_path / task, task, *options, "--memory-tokens", tokens)
        scores = {s["arm"]: s["scores"]["string_match"]["mean"] for s in result["summaries"]}
        assert (scores["none"], scores["oracle"]) == (0, 1), task
        assert len(result["memories"]) == 3, "every haystack is a memory of its own"
        assert all(0.9 * tokens < memory["memory_tokens"] <= tokens for memory in result["memories"])
        if task == "niah_single_1":
            assert scores["bm25@1"] == 1, "the key is a rare word"
            assert "room for" in result["refused"]["context"] and "context" not in scores
            assert "`context` was not run" in result["shown"]


@pytest.mark.parametrize("task", niah.TASKS)
def test_every_needle_task_from_the_command_to_its_score(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, lambda asked, texts: " ".join(texts))
    book = tmp_path / "book.txt"
    book.write_text(" ".join(f"The ship sailed on for day {day} under a grey sky." for day in range(200)))
    # Where the whole haystack is evidence, it must fit into the tiny model's 512 positions.
    tokens = 270 if task in ("niah_multivalue", "niah_multiquery", "vt") else 700
    options = ("--questions", 2, "--arms", "none,oracle", "--memory-tokens", tokens, "--haystack", book)
    result = evaluate(tmp_path / "run", task, *options)
    assert [s["scores"]["string_match"]["mean"] for s in result["summaries"]] == [0, 1], result["refused"]
    assert "asked in" in result["shown"] and result["main_score"] == "string_match"


def test_the_tiny_model_itself_answers_in_every_arm(data: Path, tmp_path: Path) -> None:
    result = evaluate(
        tmp_path / "run", "jsonl", "--data", data, "--questions", 2, "--arms", "hybrid@1,hybrid@1-latents"
    )
    assert all(0 < row["num_new_tokens"] <= 4 for row in result["rows"]) and len(result["rows"]) == 4


def test_what_does_not_go_together_is_named_before_a_model_is_loaded(
    data: Path, tmp_path: Path, no_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    assert "the tasks are jsonl" in failed("eval", "hotpot", "--out", out)
    assert "--data FILE" in failed("eval", "squad", "--out", out)
    assert "leave out --data" in failed("eval", "vt", "--data", data, "--out", out)
    assert "write one of none" in failed("eval", "vt", "--arms", "rag", "--out", out)
    assert "name each arm once" in failed("eval", "vt", "--arms", "bm25,bm25@5", "--out", out)
    assert "at least 1" in failed("eval", "vt", "--questions", 0, "--out", out)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as where it is not installed
    assert "pip install" in failed("eval", "vt", "--arms", "dense", "--out", out)
    assert not out.exists()


def test_a_run_is_not_mixed_with_another(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    evaluate(out, "jsonl", "--data", data, "--arms", "none", "--questions", 1)
    message = failed("eval", "jsonl", "--data", data, "--arms", "none", "--questions", 2, "--out", out)
    assert "settings.task.questions" in message and "name another folder" in message
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    assert "not a run of this command" in failed("eval", "jsonl", "--data", data, "--out", other)


def test_distractors_fill_the_memory(data: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text("\n".join(json.dumps({"id": f"d{n}", "text": f"Filler number {n}."}) for n in range(50)))
    options = ("jsonl", "--data", data, "--arms", "bm25@1", "--distractors", more)
    full = evaluate(tmp_path / "full", *options)["memories"][0]
    assert full["sources"] == 54
    some = evaluate(tmp_path / "some", *options, "--memory-tokens", full["memory_tokens"] // 2)["memories"][0]
    assert 4 < some["sources"] < 54 and some["memory_tokens"] <= full["memory_tokens"] // 2
    more.write_text("broken\n")
    assert "mend it" in failed("eval", *options, "--out", tmp_path / "bad")


def test_answers_are_as_long_as_the_task_wants() -> None:
    lengths = {name: TaskSettings(name).max_new_tokens for name in ("niah_single_1", "vt")}
    assert lengths == {"niah_single_1": 128, "vt": 30}
    assert TaskSettings("squad", "x").max_new_tokens == 32
    assert runner.RunSettings(TaskSettings("vt"), ("none",)).sampling.temperature == 0


def test_a_memory_budget_changes_no_result(data: Path, tmp_path: Path) -> None:
    def rows(name: str, *budget: object) -> list[Any]:
        found = evaluate(tmp_path / name, "jsonl", "--data", data, "--arms", "router@2", *budget)
        return [{**row, "seconds": None} for row in found["rows"]]

    command = ("eval", "jsonl", "--data", data, "--out", tmp_path / "small", "--arms", "router@2")
    assert "error: a memory budget of 0.00 GB is too small" in memspan(*command, "--memory-budget", "1MB").err
    assert rows("within", "--memory-budget", "100GB") == rows("without")


def test_a_wrong_budget_and_several_processes_are_refused_before_a_model_is_loaded(
    data: Path, tmp_path: Path, no_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("eval", "jsonl", "--data", data, "--out", tmp_path / "run")
    assert "6GB or 512MiB, not 'much'" in failed(*command, "--memory-budget", "much")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "without torchrun" in failed(*command)
    assert not (tmp_path / "run").exists()


def encoded_now(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with every memory that is encoded from now on."""
    seen: list[object] = []
    monkeypatch.setattr(
        "memspan.generate.documents.add_documents", lambda *a, **k: seen.append(a) or add_documents(*a, **k)
    )
    return seen


def test_runs_of_one_memory_share_its_encoding(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encoded_now(monkeypatch)
    bank = tmp_path / "bank.jsonl"
    passages = [{**question(n)["positives"][0], "external_id": f"b{n}", "source": "x"} for n in range(4)]
    bank.write_text("\n".join(map(json.dumps, [*passages, {"external_id": "d", "text": "Filler."}])))
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(question(2)))
    options = ("--distractors", bank, "--arms", "router@2,oracle")
    first = evaluate(tmp_path / "a", "jsonl", "--data", data, *options)
    again = evaluate(tmp_path / "b", "jsonl", "--data", data, *options, "--seed", 3)
    alone = evaluate(tmp_path / "c", "jsonl", "--data", other, *options)
    assert len(encoded) == 1 and not (tmp_path / "a" / "bank").exists()
    assert first["memories"] == again["memories"] == alone["memories"]
    assert all(row["used"] == ["b2"] for row in alone["rows"] if row["arm"] == "oracle")
    evaluate(tmp_path / "d", "jsonl", "--data", data, *options, "--memory-tokens", 1000)
    assert len(encoded) == 2, "a bounded memory is another one"
    evaluate(tmp_path / "e", "jsonl", "--data", other, *options, "--keep-banks", 0)
    assert len(encoded) == 2 and not [path for path in (tmp_path / "cache" / "eval").iterdir() if path.is_dir()]
    evaluate(tmp_path / "e", "jsonl", "--data", other, *options, "--keep-banks", 0)
    assert len(encoded) == 2, "a finished run is not made again"
    evaluate(tmp_path / "f", "jsonl", "--data", other, *options, "--keep-banks", "1KB")
    assert len(encoded) == 3, "they were removed"
    assert "6GB or 512MiB, not 'few'" in failed("eval", "vt", "--out", tmp_path / "g", "--keep-banks", "few")


def test_a_run_of_a_former_version_goes_on_with_its_own_bank(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("jsonl", "--data", data, "--arms", "bm25@2")
    out = tmp_path / "run"
    evaluate(out, *options)
    (kept,) = (path for path in (tmp_path / "cache" / "eval").iterdir() if path.is_dir())
    for name in ("bank", "encoding.jsonl"):
        (kept / name).rename(out / name)
    for name in ("rows.jsonl", "result.json"):
        (out / name).unlink()
    encoded = encoded_now(monkeypatch)
    assert len(evaluate(out, *options)["rows"]) == 5 and not encoded


def test_the_hours_are_said_after_the_first_questions(data: Path, tmp_path: Path) -> None:
    options = ("jsonl", "--data", data, "--arms", "none,bm25@1", "--max-new-tokens", 1, "--out")
    told = memspan("eval", *options, tmp_path / "a", "--batch", 2).err
    (hours,) = re.findall(r"(\d+) answers to come: about [\d.]+ hours", told)
    assert hours == "6" and told.index("bm25@1: 2 of 5") < told.index("to come") < told.index("none: 4 of 5")
    assert "to come" not in memspan("eval", *options, tmp_path / "b", "--batch", 8).err
