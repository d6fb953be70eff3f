"""Rows and summaries against what is worked out by hand."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from memspan.eval.answering import GeneratedAnswer
from memspan.eval.arms import parse_arm
from memspan.eval.metrics import Interval
from memspan.eval.ranking import Ranking
from memspan.eval.scoring import Row, as_json, compare, main_score, score, summarise
from memspan.text.questions import Question, passage
from memspan.types import Document, Evidence, Span

A, B, C = passage("A", "one"), passage("B", "two"), passage("C", "three")
BM25, NONE = parse_arm("bm25@5"), parse_arm("none")


def ranking(*documents: Document) -> Ranking:
    found = [
        Evidence(place, document.external_id, document.title, document.text, Span(0, 3), 1.0, None, {}, "")
        for place, document in enumerate(documents)
    ]
    return Ranking(tuple(found), 0.5)


def answered(text: str, *used: Document) -> GeneratedAnswer:
    return GeneratedAnswer(text, tuple(document.external_id for document in used), "stop", 10, 4, 0.25, 1.0)


def test_a_question_that_needs_all_documents() -> None:
    question = Question("q", "Who?", ("Ann Lee",), (A, B), type="multi")
    filler = [passage("", f"filler {number}") for number in range(9)]
    row = score(question, BM25, ranking(*filler[:4], B, *filler[4:], A), answered("Ann", B))
    assert row.scores == {
        "em": 0,
        "f1": pytest.approx(2 / 3),
        "substring": 0,
        "recall@1": 0,
        "recall@5": 0.5,
        "recall@16": 1,
        "all_found@1": 0,
        "all_found@5": 0,
        "all_found@16": 1,
        "empty": 0,
        "malformed": 0,
    }
    assert row.gold_ranks == (11, 5)
    assert row.seconds == {"select": 0.5, "prefill": 0.25, "decode": 1.0}


def test_of_alternatives_any_one_will_do() -> None:
    question = Question("q", "Who?", ("Ann",), (A, B), type="single")
    scores = score(question, BM25, ranking(B, C), answered("Ann", B)).scores
    assert scores["recall@1"] == scores["all_found@1"] == scores["em"] == 1


def test_what_is_not_known_is_not_scored() -> None:
    pair = score(Question("q", "text", (), (A,), type="pair"), BM25, ranking(A), answered(""))
    assert set(pair.scores) == {f"{name}@{k}" for name in ("recall", "all_found") for k in (1, 5, 16)} | {
        "empty",
        "malformed",
    }
    assert pair.scores["empty"] == 1
    none = score(Question("q", "Who?", ("Ann",), (A,)), NONE, ranking(), answered("Ann"))
    assert set(none.scores) == {"em", "f1", "substring", "empty", "malformed"} and none.ranked == none.gold_ranks == ()
    needle = score(Question("q", "Which?", ("12", "34"), (A,), type="all"), NONE, ranking(), answered("12"))
    assert needle.scores["string_match"] == 0.5 and "f1" not in needle.scores


def test_the_recall_of_each_layer_by_itself() -> None:
    def routed(kind: str, layers: dict[int, frozenset[str]]) -> Row:
        question = Question("q", "Who?", ("Ann",), (A, B), type=kind)  # type: ignore[arg-type]
        return score(question, parse_arm("router"), replace(ranking(C), layers=layers), answered("Ann"))

    both, one, none = frozenset({A.external_id, B.external_id}), frozenset({B.external_id}), frozenset[str]()
    rows = [routed("multi", {2: both, 10: one}), routed("multi", {2: none, 10: one})]
    assert rows[0].layers == {"2": 1, "10": 0.5} and routed("single", {2: one, 10: none}).layers == {"2": 1, "10": 0}
    summary = summarise("router@5", [replace(row, id=str(place)) for place, row in enumerate(rows)])
    assert [(layer, found.mean) for layer, found in summary.layers.items()] == [("2", 0.5), ("10", 0.5)]
    assert Row.from_json(json.loads(json.dumps(as_json(rows[0])))) == rows[0]


def test_rows_come_back_from_json_as_they_were() -> None:
    row = score(Question("q", "Who?", ("Ann",), (A,), type="multi"), BM25, ranking(C), answered("Bob", C))
    assert row.gold_ranks == (None,)
    assert Row.from_json(json.loads(json.dumps(as_json(row)))) == row


def rows() -> list[Row]:
    multi = [Question(f"m{n}", "Who?", ("Ann",), (A, B), type="multi") for n in range(4)]
    none = Question("u", "Who?", (), (), type="unanswerable")
    found = [ranking(A, B), ranking(A), ranking(C, A), ranking(C)]
    texts = ["Ann", "Ann", "Bob", ""]
    made = [score(q, BM25, r, answered(t, A)) for q, r, t in zip(multi, found, texts, strict=True)]
    return [*made, score(none, BM25, ranking(C), answered("I don't know.", A, B))]


def test_a_summary_averages_what_there_is() -> None:
    summary = summarise("bm25@5", rows())
    means = {name: interval.mean for name, interval in summary.scores.items()}
    assert (means["em"], means["empty"], means["malformed"]) == (0.5, 0.2, 0)
    assert means["recall@1"] == pytest.approx((0.5 + 0.5 + 0 + 0) / 4)
    assert means["recall@5"] == pytest.approx((1 + 0.5 + 0.5 + 0) / 4)
    assert means["all_found@5"] == 0.25
    assert (summary.scores["em"].count, summary.scores["empty"].count) == (4, 5)
    assert [(hop, interval.mean) for hop, interval in summary.hops.items()] == [("hop 1", 0.75), ("hop 2", 0.25)]
    said = summary.abstention
    assert said.precision and said.recall and (said.precision.mean, said.recall.mean, said.recall.count) == (1, 1, 1)
    assert (summary.questions, summary.documents.mean, summary.prompt_tokens) == (5, 1.2, 10)
    assert summary == summarise("bm25@5", rows()[::-1]), "the order of the rows does not matter"
    with pytest.raises(ValueError, match="no rows"):
        summarise("x", [])


def test_arms_are_compared_on_the_questions_both_answered() -> None:
    first, second = rows(), rows()[1:]
    difference = compare(first, second, "em")
    assert difference is not None and difference[0].mean == 0 and difference[0].count == 3
    question = Question("m2", "Who?", ("Ann",), (A,), type="multi")
    better = [score(question, BM25, ranking(), answered("Ann"))]
    difference = compare(better, first, "em")
    assert difference is not None and (difference[0].mean, difference[0].count) == (1, 1)
    assert compare(first, [], "em") is None
    assert main_score(first) == "f1"


def test_a_perfect_reader_scores_everything_and_a_guesser_chance() -> None:
    """On every type of question; needle tasks have their own such test."""
    generator = random.Random(0)
    memory = [passage("", f"text {number}") for number in range(40)]
    kinds = {"single": 1, "multi": 2, "yesno": 2, "all": 2}
    for kind, count in kinds.items():
        perfect, guessed = [], []
        for number in range(400):
            answers = (generator.choice(("yes", "no")),) if kind == "yesno" else (f"Ann {number}",)
            gold = tuple(generator.sample(memory, count))
            question = Question(str(number), "Who?", answers, gold, type=kind)  # type: ignore[arg-type]
            perfect.append(score(question, BM25, ranking(*gold), answered(" ".join(answers))))
            guess = generator.choice(("yes", "no")) if kind == "yesno" else f"Ann {generator.randrange(400)}"
            guessed.append(score(question, BM25, ranking(*generator.sample(memory, 16)), answered(guess)))
        best, chance = summarise("bm25@5", perfect).scores, summarise("bm25@5", guessed).scores
        named = {"string_match"} if kind == "all" else {"em", "f1", "substring"}
        assert all(best[name].mean == 1 for name in {*named, "recall@5", "all_found@16"}), kind
        assert all(best[name].mean == 0 for name in ("empty", "malformed"))
        assert near(chance["recall@5"], 5 / 40) and near(chance["recall@16"], 16 / 40), kind
        assert near(chance["all_found@16"], 16 / 40 if count == 1 else 16 / 40 * 15 / 39), kind
        assert near(chance["string_match" if kind == "all" else "em"], 0.5 if kind == "yesno" else 1 / 400), kind


def near(found: Interval, expected: float) -> bool:
    return found.low - 0.02 <= expected <= found.high + 0.02
