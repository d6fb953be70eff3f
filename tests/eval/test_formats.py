"""Every format by a sample written for this test: what is read, and what of it is named as malformed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memspan.errors import CorpusError
from memspan.eval.formats import FORMATS, read_set
from memspan.text.questions import Question


def written(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    return path


def lines(*records: Any) -> str:
    return "\n".join(record if isinstance(record, str) else json.dumps(record) for record in records) + "\n"


def only(path: Path, format: str) -> Question:
    found = read_set(path, format)
    assert not found.malformed
    (question,) = found.questions
    return question


def shown(question: Question) -> tuple[list[str], list[str]]:
    return [document.text for document in question.positives], [document.text for document in question.negatives]


def test_hotpotqa_and_2wiki(tmp_path: Path) -> None:
    record = {
        "_id": "h1",
        "question": "Which?",
        "answer": "yes",
        "type": "comparison",
        "level": "hard",
        "supporting_facts": [["B", 0], ["A", 1], ["B", 1]],
        "context": [["A", ["One. ", "Two."]], ["C", ["Other."]], ["B", ["Three."]]],
    }
    path = written(tmp_path / "h.json", [record, {**record, "_id": "h2", "supporting_facts": [["Z", 0]]}])
    for format in ("hotpotqa", "2wikimultihopqa"):
        found = read_set(path, format)
        (question,) = found.questions
        assert shown(question) == (["Three.", "One. Two."], ["Other."])
        assert (question.type, question.hops, question.answers) == ("yesno", 2, ("yes",))
        ((where, reason),) = [(bad.where, bad.reason) for bad in found.malformed]
        assert where == f"{path}[1]" and reason.startswith("supporting_facts names 'Z', which context lacks")
    assert only(written(tmp_path / "i.json", [{**record, "answer": "Ann"}]), "hotpotqa").type == "multi"


def test_squad_with_questions_that_have_no_answer(tmp_path: Path) -> None:
    answerable = {"id": "a", "question": "Q1?", "answers": [{"text": "x", "answer_start": 0}] * 2}
    impossible = {"id": "b", "question": "Q2?", "answers": [], "is_impossible": True, "plausible_answers": []}
    paragraphs = [{"context": "x is here", "qas": [answerable, impossible]}]
    path = written(tmp_path / "s.json", {"version": "v2.0", "data": [{"title": "T_1", "paragraphs": paragraphs}]})
    first, second = read_set(path, "squad").questions
    assert (first.answers, shown(first), first.positives[0].title) == (("x",), (["x is here"], []), "T 1")
    assert (second.type, shown(second)) == ("unanswerable", ([], ["x is here"]))


@pytest.mark.parametrize("full", [False, True])
def test_natural_questions(tmp_path: Path, full: bool) -> None:
    words = ["<P>", "Ann", "lives", "here", "</P>", "<P>", "Bob", "</P>"]
    record: dict[str, Any] = {
        "example_id": 7,
        "question_text": "who lives here",
        "long_answer_candidates": [
            {"start_token": 0, "end_token": 5, "top_level": True},
            {"start_token": 5, "end_token": 8, "top_level": True},
            {"start_token": 6, "end_token": 7, "top_level": False},
        ],
        "annotations": [
            {
                "yes_no_answer": "NONE",
                "long_answer": {"start_token": 0, "end_token": 5, "candidate_index": 0},
                "short_answers": [{"start_token": 1, "end_token": 2}],
            }
        ],
    }
    if full:
        record["document_title"] = "House"
        record["document_tokens"] = [{"token": word, "html_token": word.startswith("<")} for word in words]
    else:
        record["document_text"] = " ".join(words)
    question = only(written(tmp_path / "q.jsonl", lines(record)), "nq")
    assert (question.id, question.answers, shown(question)) == ("7", ("Ann",), (["Ann lives here"], ["Bob"]))
    assert question.positives[0].title == ("House" if full else "")
    record["annotations"][0] |= {"long_answer": {"start_token": -1, "end_token": -1}, "short_answers": []}
    none = only(written(tmp_path / "r.jsonl", lines(record)), "nq")
    assert (none.type, shown(none)) == ("unanswerable", ([], ["Ann lives here", "Bob"]))


def test_nq_open_has_no_documents(tmp_path: Path) -> None:
    question = only(written(tmp_path / "o.jsonl", lines({"question": "who?", "answer": ["Ann", "A."]})), "nq")
    assert (question.answers, question.positives) == (("Ann", "A."), ())


def test_popqa(tmp_path: Path) -> None:
    text = (
        'id\tsubj\tquestion\tpossible_answers\n42\tAnn\tWhat does Ann do?\t"[""poet"", ""writer""]"\n43\tB\tQ?\toops\n'
    )
    found = read_set(written(tmp_path / "p.tsv", text), "popqa")
    assert [(q.id, q.answers) for q in found.questions] == [("42", ("poet", "writer"))]
    assert [bad.where for bad in found.malformed] == [f"{tmp_path / 'p.tsv'}#3"]


def test_triviaqa_with_its_evidence_files(tmp_path: Path) -> None:
    written(tmp_path / "evidence" / "wikipedia" / "Ann.txt", "Ann wrote it.")
    record = {
        "Question": "Who wrote it?",
        "QuestionId": "tc_1",
        "Answer": {"Value": "Ann", "Aliases": ["Anna", "Ann"]},
        "EntityPages": [{"Filename": "Ann.txt", "Title": "Ann"}, {"Filename": "Gone.txt", "Title": "Gone"}],
    }
    path = written(tmp_path / "qa" / "wikipedia-dev.json", {"Data": [record], "Version": 1.0})
    question = only(path, "triviaqa")
    assert (question.answers, shown(question)) == (("Ann", "Anna"), (["Ann wrote it."], []))


def test_narrativeqa(tmp_path: Path) -> None:
    written(
        tmp_path / "third_party" / "wikipedia" / "summaries.csv",
        'document_id,set,summary\nd1,test,"A story, told."\n',
    )
    table = "document_id,set,question,answer1,answer2\nd1,test,What?,A story,a tale\nd9,test,What?,x,y\n"
    found = read_set(written(tmp_path / "qaps.csv", table), "narrativeqa")
    assert [(q.answers, shown(q)[0]) for q in found.questions] == [(("A story", "a tale"), ["A story, told."])]
    assert found.malformed[0].reason == "the key 'd9' is missing"


@pytest.mark.parametrize("columns", [False, True])
def test_ms_marco(tmp_path: Path, columns: bool) -> None:
    passages = [
        {"is_selected": 0, "passage_text": "no", "url": "u"},
        {"is_selected": 1, "passage_text": "yes", "url": "u"},
    ]
    rows = [
        {"query": "q one", "query_id": 1, "answers": ["yes it is"], "passages": passages},
        {"query": "q two", "query_id": 2, "answers": ["No Answer Present."], "passages": passages[:1]},
    ]
    if columns:
        value: Any = {name: {str(index): row[name] for index, row in enumerate(rows)} for name in rows[0]}
        path = written(tmp_path / "dev_v2.1.json", value)
    else:
        path = written(tmp_path / "dev_v1.1.json", lines(*rows))
    first, second = read_set(path, "ms_marco").questions
    assert (first.id, first.answers, shown(first)) == ("1", ("yes it is",), (["yes"], ["no"]))
    assert (second.type, second.answers, shown(second)) == ("unanswerable", (), ([], ["no"]))


def test_dureader(tmp_path: Path) -> None:
    record = {
        "question_id": 186358,
        "question": "北京在哪里",
        "question_type": "ENTITY",
        "answers": ["在华北。"],
        "documents": [
            {"title": "北京", "paragraphs": ["别的", "北京在华北。"], "is_selected": True, "most_related_para": 1},
            {"title": "上海", "paragraphs": ["上海在华东。"], "is_selected": False, "most_related_para": 0},
        ],
    }
    question = only(written(tmp_path / "d.json", lines(record)), "dureader")
    assert shown(question) == (["北京在华北。"], ["别的", "上海在华东。"])
    assert question.positives[0].title == "北京"


def test_locomo_turns_are_dated_documents(tmp_path: Path) -> None:
    record = {
        "sample_id": "conv-1",
        "conversation": {
            "speaker_a": "Ann",
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_1": [
                {"speaker": "Ann", "dia_id": "D1:1", "text": "I got a dog."},
                {"speaker": "Bob", "dia_id": "D1:2", "text": "Look", "blip_caption": "a photo of a cat"},
            ],
            "session_2_date_time": "9:00 am on 1 June, 2023",
            "session_2": [{"speaker": "Ann", "dia_id": "D2:1", "text": "Its name is Rex."}],
        },
        "qa": [
            {"question": "Name?", "answer": "Rex", "evidence": ["D1:1; D2:1", "D9:9"], "category": 1},
            {"question": "Year?", "answer": 2023, "evidence": ["D1:1"], "category": 2},
            {"question": "Cat's name?", "adversarial_answer": "Rex", "evidence": ["D2:1"], "category": 5},
            {"question": "No answer key?", "evidence": [], "category": 4},
        ],
    }
    found = read_set(written(tmp_path / "locomo.json", [record, {**record, "sample_id": "c2"}]), "locomo")
    turns = found.documents["conv-1"]
    assert [(turn.text, turn.date) for turn in turns] == [
        ("Ann: I got a dog.", "2023-05-08T13:56:00"),
        ("Bob: Look [shares a photo of a cat]", "2023-05-08T13:56:00"),
        ("Ann: Its name is Rex.", "2023-06-01T09:00:00"),
    ]
    several, dated, none = found.questions[:3]
    assert [document.external_id for document in several.positives] == ["conv-1/D1:1", "conv-1/D2:1"]
    assert (several.type, several.hops, several.namespace) == ("multi", 2, "conv-1")
    assert (dated.answers, dated.type) == (("2023",), "single")
    assert (none.type, none.answers, none.positives) == ("unanswerable", (), ())
    assert len(found.questions) == 6 and len(found.malformed) == 2
    assert set(found.first(3).documents) == {"conv-1"}


def test_longmemeval_sessions_are_dated_documents(tmp_path: Path) -> None:
    record = {
        "question_id": "q1",
        "question_type": "single-session-user",
        "question": "What pet?",
        "answer": "a dog",
        "question_date": "2023/05/30 (Tue) 23:40",
        "haystack_session_ids": ["s1", "s2"],
        "haystack_dates": ["2023/05/20 (Sat) 02:21", "2023/05/21 (Sun) 10:00"],
        "haystack_sessions": [
            [
                {"role": "user", "content": "I got a dog.", "has_answer": True},
                {"role": "assistant", "content": "Nice."},
            ],
            [{"role": "user", "content": "Hello."}],
        ],
        "answer_session_ids": ["s1"],
    }
    uneven = {**record, "question_id": "q2", "haystack_dates": []}
    found = read_set(written(tmp_path / "l.json", [record, uneven, {**record, "question_id": "q3_abs"}]), "longmemeval")
    first, none = found.questions
    assert [(d.text, d.date) for d in found.documents["q1"]] == [
        ("user: I got a dog.\nassistant: Nice.", "2023-05-20T02:21:00"),
        ("user: Hello.", "2023-05-21T10:00:00"),
    ]
    assert (first.date, first.answers, first.positives[0].external_id) == ("2023-05-30T23:40:00", ("a dog",), "q1/s1")
    assert (none.type, none.positives) == ("unanswerable", ())
    assert len(found.malformed) == 1 and found.malformed[0].where.endswith("[1]")


def test_what_cannot_be_read_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="the formats are jsonl"):
        read_set(tmp_path, "csv")
    for format in FORMATS:
        with pytest.raises(CorpusError, match="check the file"):
            read_set(tmp_path / "missing.json", format)
    with pytest.raises(CorpusError, match=r"holds no question .*#1: not a JSON"):
        read_set(written(tmp_path / "e.jsonl", "oops\n"), "jsonl")
    with pytest.raises(CorpusError, match="check the file and the format"):
        read_set(written(tmp_path / "e.json", {"version": 1}), "squad")
