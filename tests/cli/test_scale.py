"""`memspan eval scale` and `memspan report` on a tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from command import failed, memspan
from test_evaluate import ANIMALS, evaluate, question, read_aloud, scripted

from memspan.bank.add import add_documents
from memspan.errors import EvaluationError
from memspan.eval import answering
from memspan.eval.scale import parse_sizes, plan_steps
from memspan.text.questions import Question, QuestionSet, passage
from memspan.types import Document


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "animals.jsonl"
    own = [{"title": "", "text": f"The {animal.split()[0]} sleeps all day."} for animal in ANIMALS]
    records = [question(number, negatives=[own[number]]) for number in range(4)]
    path.write_text("\n".join(map(json.dumps, records)) + "\n")
    return path


@pytest.fixture
def distractors(tmp_path: Path) -> Path:
    path = tmp_path / "more.jsonl"
    path.write_text(
        "\n".join(json.dumps({"id": f"d{n}", "text": f"Filler number {n} of the otter."}) for n in range(99))
    )
    return path


def grown(out: Path, data: Path, distractors: Path, *more: object, sizes: str = "128,1K") -> dict[str, Any]:
    command = ("scale", "--data", data, "--sizes", sizes, "--distractors", distractors, *more)
    done = memspan("eval", *command, "--out", out, "--max-new-tokens", 4)
    assert done.code == 0, done.err
    return json.loads((out / "scale.json").read_text("utf-8")) | {"told": done.err, "shown": done.out}


def test_the_same_questions_while_the_memory_grows(
    data: Path, distractors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, read_aloud)
    encoded: list[str] = []
    monkeypatch.setattr(
        "memspan.generate.documents.add_documents",
        lambda bank, loaded, documents, **k: add_documents(bank, loaded, noted(documents, encoded), **k),
    )
    found = grown(tmp_path / "run", data, distractors, "--arms", "none,oracle,bm25@1,context")
    assert len(encoded) == len(set(encoded)), "every document is encoded once"
    first, second = found["curve"]["bm25@1"]
    assert (first["size"], second["size"]) == (128, 1024) and first["tokens"] <= 128 < second["tokens"] <= 1024
    scores = {arm: [p["scores"]["f1"]["mean"] for p in points] for arm, points in found["curve"].items()}
    assert scores["oracle"] == [1, 1] and scores["none"] == [0, 0]
    assert first["degradation"]["mean"] == 0 and found["curve"]["none"][1]["degradation"] is None
    assert scores["context"] == [1.0], "what does not fit is left out of the curve"
    rows = {
        size: (tmp_path / "run" / "points" / size / "rows.jsonl").read_text().count("\n") for size in ("128", "1024")
    }
    assert rows == {"128": 16, "1024": 12}
    points = [json.loads((tmp_path / "run" / "points" / size / "result.json").read_text()) for size in ("128", "1024")]
    (small,), (large,) = (point["memories"] for point in points)
    assert (small["memory_tokens"], large["memory_tokens"]) == (first["tokens"], second["tokens"])
    assert large["sources"] == len(encoded) > small["sources"]
    assert re.search(r"tokens to encode at [\d,]+ a second: about 0\.0 hours", found["told"])
    assert "| `bm25@1` |" in found["shown"] and "| 128 |" in found["shown"] and "1K" in found["shown"]


def noted(documents: Any, names: list[str]) -> Any:
    for document in documents:
        names.append(document.external_id)
        yield document


def test_a_stopped_curve_goes_on(
    data: Path, distractors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = ("--arms", "bm25@2,router@2", "--batch", 2)
    whole = grown(tmp_path / "whole", data, distractors, *arms)
    calls: list[int] = []
    real = answering.answer

    def dies(*arguments: Any) -> Any:
        calls.append(len(arguments[1]))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(answering, "answer", dies)
    options = ("scale", "--data", data, "--sizes", "128,1K", "--distractors", distractors, *arms)
    assert memspan("eval", *options, "--out", tmp_path / "run", "--max-new-tokens", 4).code == 130
    found = grown(tmp_path / "run", data, distractors, *arms)
    assert found["curve"] == whole["curve"] and sum(calls) - calls[5] == 16
    message = failed("eval", *options[:-2], "--out", tmp_path / "run", "--seed", 3)
    assert "seed" in message


def test_what_fits_no_size_is_said(data: Path, distractors: Path, tmp_path: Path) -> None:
    def refusal(sizes: str) -> str:
        options = ("--data", data, "--distractors", distractors, "--sizes", sizes, "--arms", "none")
        return failed("eval", "scale", *options, "--out", tmp_path / sizes)

    assert "ask fewer --questions" in refusal("20,1K")
    assert "more --distractors" in refusal("256,1M")
    for sizes in ("256", "1K,256", "256,big", "256,256"):
        with pytest.raises(EvaluationError, match="size"):
            parse_sizes(sizes)
    assert parse_sizes("16K,1M, 10M") == (16_384, 2**20, 10 * 2**20)


def test_evidence_comes_before_the_distractors() -> None:
    evidence, own = passage("", "a b"), passage("", "c d")
    others = [Document("twin", "a b"), Document("x", "e f"), Document("y", "g h")]
    found = QuestionSet((Question("1", "?", ("x",), (evidence,), (own,)), Question("2", "?", ("x",), (evidence,))))
    steps = plan_steps(found, others, lambda text: len(text.split()), [3, 5, 8])
    assert [[document.text for document in step.documents] for step in steps] == [["a b"], ["c d"], ["e f", "g h"]]
    assert [step.tokens for step in steps] == [2, 4, 8]
    talk = QuestionSet((Question("1", "?", ("x",), (evidence,), namespace="c"),), {"c": (own,)})
    with pytest.raises(EvaluationError, match="question set"):
        plan_steps(talk, [], len, [3, 5])


def test_runs_side_by_side(data: Path, distractors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, read_aloud)
    evaluate(tmp_path / "run", "jsonl", "--data", data, "--arms", "none,bm25@1,hybrid@5,hybrid@5-latents,hybrid@0")
    evaluate(tmp_path / "needle", "niah_single_1", "--questions", 2, "--memory-tokens", 1024, "--arms", "none,oracle")
    grown(tmp_path / "scale", data, distractors, "--arms", "bm25@1")
    grades = {"score": {"mean": 4.25, "low": 4.0, "high": 4.5, "count": 4}, "unscored": 0}
    (tmp_path / "run" / "judge.json").write_text(json.dumps({"arms": {"hybrid@5": grades, "hybrid@0": grades}}))
    out = tmp_path / "report"
    done = memspan("report", *(tmp_path / name for name in ("run", "needle", "scale")), "--out", out)
    assert done.code == 0, done.err
    text = (out / "report.md").read_text("utf-8")
    assert "0M parameters" in text and "4,000M" in text
    assert "| animals | llama 0M, router untrained | 4.25 (4.00–4.50) | 4.25 (4.00–4.50) |" in text
    assert "| animals | Grades of the judge, 0 to 5 | `hybrid@0` | 4.25 (4.00–4.50) | +0.00 |" in text
    assert "### f1" in text and "100.0 (100.0–100.0)" in text
    assert "Of 1 of the 8 subtasks: niah_single_1." in text and "| niah_single_1 | 1K | `oracle` |" in text
    assert "| `scale bm25@1` |" in text and "degradation" in text
    assert "no finished run" in failed("report", tmp_path / "nowhere", "--out", out)
    pytest.importorskip("matplotlib")
    assert (out / "figure1.png").stat().st_size > 5000 and (out / "figure4.png").stat().st_size > 5000
