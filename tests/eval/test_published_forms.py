"""Published files, field by field, by small ones made after them: odd values, packing, errors that name the field."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from memspan.errors import CorpusError
from memspan.eval.formats import read_set
from memspan.text.questions import Question, QuestionSet

HOTPOT: dict[str, Any] = {
    "_id": "5a7a",
    "question": "Which river?",
    "answer": "Spree",
    "type": "bridge",
    "level": "hard",
    "supporting_facts": [["Ánn", 0], ["Berlin", 1]],
    "context": [
        ["Berlin", ["Berlin is old.", " It is on the Spree."]],
        ["Ánn", ["Ann's \u2028town."]],
        ["C", ["See."]],
    ],
}
MUSIQUE: dict[str, Any] = {
    "id": "2hop__1_2",
    "paragraphs": [
        {"idx": 0, "title": "A", "paragraph_text": "Second.", "is_supporting": True},
        {"idx": 1, "title": "B", "paragraph_text": "Other.", "is_supporting": False},
        {"idx": 2, "title": "C", "paragraph_text": "First.", "is_supporting": True},
    ],
    "question": "When?",
    "question_decomposition": [
        {"id": 1, "question": "q", "answer": "x", "paragraph_support_idx": 2},
        {"id": 2, "question": "#1 q", "answer": "1999", "paragraph_support_idx": 0},
    ],
    "answer": "1999",
    "answer_aliases": ["MCMXCIX", "1999"],
    "answerable": True,
}
SQUAD: dict[str, Any] = {
    "id": "56be",
    "question": "Where?",
    "answers": [{"text": "Köln", "answer_start": 3}, {"text": "in Köln", "answer_start": 0}],
    "is_impossible": False,
}
PAGE = '<H1> Ann </H1> <Table> <Tr> <Th_colspan="2"> Ann \'s age </Th> <Td> 7 < 8 . </Td> </Tr> </Table>'
NQ: dict[str, Any] = {
    "example_id": -7310031885225846803,
    "question_text": "how old is ann",
    "document_url": "https://en.wikipedia.org//w/index.php?title=Ann_B&amp;oldid=81",
    "document_text": PAGE,
    "long_answer_candidates": [{"start_token": 3, "end_token": 17, "top_level": True}],
    "annotations": [
        {
            "annotation_id": 1,
            "yes_no_answer": "NONE",
            "long_answer": {"start_token": 3, "end_token": 17, "candidate_index": 0},
            "short_answers": [{"start_token": 11, "end_token": 12}],
        }
    ],
}
NO_ANSWER = {
    "annotation_id": 2,
    "yes_no_answer": "NONE",
    "long_answer": {"start_token": -1, "end_token": -1, "candidate_index": -1},
    "short_answers": [],
}
LOCOMO: dict[str, Any] = {
    "sample_id": "conv-7",
    "conversation": {
        "speaker_a": "Ann",
        "speaker_b": "Bob",
        "session_1_date_time": "12:09 am on 13 September, 2023",
        "session_1": [
            {"speaker": "Ann", "dia_id": "D1:1", "text": "I moved in 2019."},
            {"speaker": "Bob", "dia_id": "D1:2", "img_url": ["u"], "blip_caption": "a photo of a cat", "query": "cat"},
        ],
        "session_2_date_time": "1:56 pm on 8 May, 2023",
        "session_3": [],
    },
    "observation": {},
    "qa": [{"question": "When?", "answer": 2019, "evidence": ["D1:1"], "category": 2}],
}
LONG: dict[str, Any] = {
    "question_id": "gpt4_1",
    "question_type": "multi-session",
    "question": "How many?",
    "answer": 3,
    "question_date": "2023/05/30 (Tue) 23:40",
    "haystack_dates": ["2023/05/21 (Sun) 10:00", "2023/05/20 (Sat) 02:21", "2023/05/22 (Mon) 01:00"],
    "haystack_session_ids": ["answer_1", "s2", "empty"],
    "haystack_sessions": [
        [{"role": "user", "content": "Two.", "has_answer": True}],
        [{"role": "user", "content": "Hi"}],
        [],
    ],
    "answer_session_ids": ["answer_1"],
}
POPQA = {"id": 42, "subj": "Ann", "question": "What is Ann's job?", "possible_answers": '["poet", "\\u00e9crivain", 7]'}
MARCO = {"query_id": 7, "query": "q", "answers": ["x"], "passages": [{"passage_text": "t", "is_selected": 1}]}
DUREADER = {"question_id": 7, "question": "q", "answers": ["x"], "documents": [{"paragraphs": ["a", "b"]}]}
PLAIN: dict[str, Any] = {"hotpotqa": HOTPOT, "musique": MUSIQUE, "nq": NQ, "locomo": LOCOMO, "longmemeval": LONG}


def changed(record: Any, *path: Any, to: Any = None, drop: bool = False) -> Any:
    """A copy of a record with the value at a path replaced, or left out."""
    copy = inner = deepcopy(record)
    for part in path[:-1]:
        inner = inner[part]
    if drop:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return copy


def squad_file(*questions: Any, **paragraph: Any) -> dict[str, Any]:
    return {
        "version": "v2.0",
        "data": [{"title": "T_1", "paragraphs": [{"context": "in Köln", "qas": [*questions], **paragraph}]}],
    }


def saved(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8", newline="")
    return path


def read(tmp_path: Path, format: str, *records: Any) -> QuestionSet:
    return read_set(saved(tmp_path / "x.jsonl", "\n".join(map(json.dumps, records))), format)


def reasons(found: QuestionSet) -> list[str]:
    return [bad.reason for bad in found.malformed]


def texts(question: Question) -> tuple[list[str], list[str]]:
    return [one.text for one in question.positives], [one.text for one in question.negatives]


# Fields ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "path", "reason"),
    [
        ("hotpotqa", ("_id",), "the key '_id' is missing"),
        ("hotpotqa", ("answer",), "the key 'answer' is missing"),
        ("hotpotqa", ("supporting_facts",), "the key 'supporting_facts' is missing"),
        ("hotpotqa", ("context", 1, 1), "context[1]"),
        ("musique", ("paragraphs", 2, "is_supporting"), "the key 'paragraphs[2].is_supporting' is missing"),
        ("musique", ("answer",), "the key 'answer' is missing"),
        ("nq", ("annotations", 0, "long_answer"), "the key 'annotations[0].long_answer' is missing"),
        ("nq", ("question_text",), "the key 'question_text' is missing"),
        ("nq", ("long_answer_candidates", 0, "top_level"), "long_answer_candidates[0].top_level"),
        ("locomo", ("sample_id",), "the key 'sample_id' is missing"),
        ("locomo", ("conversation", "session_1", 1, "dia_id"), "the key 'conversation.session_1[1].dia_id' is missing"),
        ("locomo", ("qa", 0, "category"), "the key 'category' is missing"),
        ("locomo", ("qa", 0, "answer"), "the key 'answer' is missing, or null"),
        ("longmemeval", ("haystack_dates",), "the key 'haystack_dates' is missing"),
        ("longmemeval", ("haystack_dates", 0), "haystack_dates 2"),
        ("longmemeval", ("haystack_sessions", 0, 0, "content"), "haystack_sessions[0][0].content"),
    ],
)
def test_a_missing_field_is_named_with_its_record(
    tmp_path: Path, format: str, path: tuple[Any, ...], reason: str
) -> None:
    good, name = (
        PLAIN[format],
        {"hotpotqa": "_id", "nq": "example_id", "locomo": "sample_id", "longmemeval": "question_id"},
    )
    other = {**good, name.get(format, "id"): "other"}
    bad = changed(good, *path, drop=True)
    found = read(tmp_path, format, other, bad)
    assert len(found.questions) == 1
    (malformed,) = found.malformed
    assert malformed.where.startswith(f"{tmp_path / 'x.jsonl'}#2") and reason in malformed.reason
    with pytest.raises(CorpusError, match=r"x\.jsonl#1.*check the file and the format"):
        read(tmp_path, format, bad)


@pytest.mark.parametrize(
    ("format", "path", "value", "reason"),
    [
        ("hotpotqa", ("answer",), None, "answer: must be a valid string, not 'None'"),
        ("hotpotqa", ("answer",), ["a"], "answer: must be a valid string"),
        ("hotpotqa", ("context", 0, 1), "One.", "context[0][1]: must be a valid list"),
        ("hotpotqa", ("supporting_facts", 1), ["Berlin"], "supporting_facts[1][1]"),
        ("musique", ("paragraphs",), {}, "paragraphs: must be a valid list"),
        ("musique", ("paragraphs", 1, "idx"), 0, "paragraphs: two have one idx"),
        ("musique", ("question_decomposition", 0, "paragraph_support_idx"), 9, "question_decomposition"),
        ("nq", ("annotations", 0, "short_answers", 0, "end_token"), 999, "tokens 11 to 999 of a document of 18 tokens"),
        ("nq", ("document_text",), 5, "document_text: must be a valid string"),
        ("locomo", ("qa", 0, "category"), 6, "category: must be a number from 1 to 5, not 6"),
        ("locomo", ("qa", 0, "answer"), None, "the key 'answer' is missing, or null"),
        ("locomo", ("qa", 0, "answer"), True, "answer[0]: must be a valid string, not 'True'"),
        ("locomo", ("qa", 0), "When?", "the record: "),
        ("locomo", ("conversation", "session_1_date_time"), "soon", "soon"),
        ("locomo", ("conversation", "session_1", 1, "dia_id"), "D1:01", "conversation.session_1: the dia_id 'D1:01'"),
        ("longmemeval", ("answer",), None, "answer: null"),
        ("longmemeval", ("answer_session_ids",), ["s9"], "answer_session_ids names 's9'"),
        ("longmemeval", ("answer_session_ids",), ["answer_1", "empty"], "answer_session_ids names 'empty'"),
        ("longmemeval", ("haystack_sessions", 1, 0, "content"), None, "haystack_sessions[1][0].content"),
        ("longmemeval", ("question_date",), "yesterday", "question_date: 'yesterday' is not a date"),
        ("longmemeval", ("haystack_dates", 0), "", "haystack_dates: '' is not a date"),
        ("locomo", ("conversation", "session_1_date_time"), 5, "conversation.session_1_date_time: 5 is not a date"),
        ("locomo", ("conversation", "session_1"), ["Hi"], "conversation.session_1[0]: must be an object, not 'Hi'"),
        ("hotpotqa", ("context",), {"title": "T", "sentences": [["One."]]}, "context: the column 'title' must be a"),
        ("hotpotqa", ("supporting_facts",), {"title": None, "sent_id": [0]}, "the column 'title' must be a list"),
        ("ms_marco", ("passages",), "t", "passages: must be a valid list"),
        ("ms_marco", ("passages", 0, "passage_text"), 5, "passages[0].passage_text: must be a valid string"),
        ("ms_marco", ("query",), None, "query: must be a valid string"),
        ("dureader", ("documents", 0, "paragraphs"), "abc", "documents[0].paragraphs: must be a valid list"),
        ("dureader", ("documents",), {}, "documents: must be a valid list"),
        ("dureader", ("question",), ["q"], "question: must be a valid string"),
    ],
)
def test_a_wrong_value_is_named_with_its_field(
    tmp_path: Path, format: str, path: tuple[Any, ...], value: Any, reason: str
) -> None:
    with pytest.raises(CorpusError) as caught:
        read(tmp_path, format, changed({**PLAIN, "ms_marco": MARCO, "dureader": DUREADER}[format], *path, to=value))
    assert reason in str(caught.value) and "x.jsonl#1" in str(caught.value)


# Sets -----------------------------------------------------------------------------------------------------------------


def test_sentences_of_hotpotqa_begin_with_a_blank_and_those_of_2wiki_do_not(tmp_path: Path) -> None:
    glued = changed(HOTPOT, "context", 0, 1, to=["Berlin is old.", "It is on the Spree.", ""])
    for record in (HOTPOT, glued):
        found = read(tmp_path, "2wikimultihopqa", record)
        assert texts(found.questions[0]) == (["Ann's \u2028town.", "Berlin is old. It is on the Spree."], ["See."])
        assert not found.malformed


def test_hotpotqa_as_a_table_of_columns_and_two_paragraphs_of_one_title(tmp_path: Path) -> None:
    columns = {
        **{key: HOTPOT[key] for key in ("question", "answer")},
        "id": "c",
        "context": {"title": ["Berlin", "Ánn", "Berlin"], "sentences": [["Old."], ["Town."], ["Other."]]},
        "supporting_facts": {"sent_id": [0, 0], "title": ["Berlin", "Ánn"]},
    }
    encoded = {**columns, "id": "e", **{key: json.dumps(HOTPOT[key]) for key in ("context", "supporting_facts")}}
    found = read(tmp_path, "hotpotqa", columns, encoded)
    assert [texts(one)[0][0] for one in found.questions] == ["Old.", "Ann's \u2028town."]
    assert texts(found.questions[0]) == (["Old.", "Town."], ["Other."])


def test_2wiki_accepts_the_names_of_the_answer_in_id_aliases(tmp_path: Path) -> None:
    saved(tmp_path / "id_aliases.json", '{"Q_id": "Q1", "aliases": ["River Spree"], "demonyms": ["Spreer"]}\n')
    record = {**HOTPOT, "answer_id": "Q1", "evidences": [], "entity_ids": "Q1_Q2"}
    found = read(tmp_path, "2wikimultihopqa", record, {**HOTPOT, "_id": "x", "answer_id": None})
    assert [one.answers for one in found.questions] == [("Spree", "River Spree", "Spreer"), ("Spree",)]


def test_musique_full_has_every_question_twice(tmp_path: Path) -> None:
    twin = changed(MUSIQUE, "answerable", to=False)
    twin["question_decomposition"][0]["paragraph_support_idx"] = None
    found = read(tmp_path, "musique", MUSIQUE, twin)
    first, second = found.questions
    assert (first.id, first.answers, first.hops, first.type) == ("2hop__1_2", ("1999", "MCMXCIX"), 2, "multi")
    assert texts(first) == (["First.", "Second."], ["Other."]), "in the order of the hops"
    assert (second.id, second.type, second.answers) == ("2hop__1_2-unanswerable", "unanswerable", ())
    assert texts(second) == ([], ["Second.", "Other.", "First."])
    assert not found.malformed
    assert reasons(read(tmp_path, "musique", MUSIQUE, MUSIQUE)) == ["the id '2hop__1_2' was read before"]


def test_squad_loses_one_question_and_not_an_article(tmp_path: Path) -> None:
    impossible = {"id": "n", "question": "Who?", "answers": [], "is_impossible": True, "plausible_answers": []}
    bad = [changed(SQUAD, "answers", drop=True), {**SQUAD, "id": 7, "answers": [{"answer_start": 1}]}, "no object"]
    path = saved(tmp_path / "s.json", squad_file(SQUAD, *bad, impossible))
    found = read_set(path, "squad")
    assert [(one.id, one.answers, one.positives[:1] and one.positives[0].title) for one in found.questions] == [
        ("56be", ("Köln", "in Köln"), "T 1"),
        ("n", (), ()),
    ]
    place = f"{path}#1.data[0].paragraphs[0].qas"
    assert [(one.where, one.reason) for one in found.malformed] == [
        (f"{place}[1]", "no answer"),
        (f"{place}[2]", "the key 'answers[0].text' is missing"),
        (f"{place}[3]", "not a JSON object of valid text"),
    ]


def test_squad_articles_without_their_lists_and_pretty_printed(tmp_path: Path) -> None:
    whole = squad_file(SQUAD)
    whole["data"] += [{"title": "U"}, 5, {"paragraphs": [{"qas": [{**SQUAD, "id": "q"}]}]}]
    path = saved(tmp_path / "s.json", json.dumps(whole, indent=1))
    found = read_set(path, "squad")
    assert [one.id for one in found.questions] == ["56be"]
    assert reasons(found) == ["no list under the key 'paragraphs'"] * 2 + ["the key 'context' is missing"]


def test_squad_as_a_table(tmp_path: Path) -> None:
    row = {
        "id": "a",
        "title": "T",
        "context": "in Köln",
        "question": "Where?",
        "answers": {"text": ["Köln"], "answer_start": [3]},
    }
    lone = {**row, "id": "c", "answers": {"text": "Köln", "answer_start": 3}}
    found = read(tmp_path, "squad", row, {**row, "id": "b", "answers": {"text": [], "answer_start": []}}, lone)
    answered = ("single", ("Köln",))
    assert [(one.type, one.answers) for one in found.questions] == [answered, ("unanswerable", ()), answered]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"aliases": ["x"]}, r"the key 'Q_id' is missing"),
        ({"Q_id": "Q1", "aliases": [{}]}, r"aliases\[0\]: must be a valid string"),
        ([], "not a JSON object"),
    ],
)
def test_an_error_in_the_names_beside_2wiki_is_named_by_its_file(tmp_path: Path, line: Any, reason: str) -> None:
    saved(tmp_path / "id_aliases.json", f'{{"Q_id": "Q0"}}\n{json.dumps(line)}\n')
    with pytest.raises(CorpusError, match=rf"id_aliases\.json#2: {reason}"):
        read(tmp_path, "2wikimultihopqa", {**HOTPOT, "answer_id": "Q1"})


def test_names_beside_2wiki_may_be_one_or_none(tmp_path: Path) -> None:
    saved(tmp_path / "id_aliases.json", '{"Q_id": "Q1", "aliases": "River Spree", "demonyms": null}')
    (question,) = read(tmp_path, "2wikimultihopqa", {**HOTPOT, "answer_id": "Q1"}).questions
    assert question.answers == ("Spree", "River Spree")


def test_a_column_that_marco_lacks_is_named(tmp_path: Path) -> None:
    columns = {name: {"0": value} for name, value in MARCO.items()} | {"answers": 5}
    with pytest.raises(CorpusError, match=r"\[0\]: the key 'answers' is missing"):
        read_set(saved(tmp_path / "dev.json", columns), "ms_marco")


def test_pages_of_triviaqa_are_a_list(tmp_path: Path) -> None:
    good = {"QuestionId": "1", "Question": "q?", "Answer": {"Value": "x"}}
    wrong = [{**good, "QuestionId": "2", "EntityPages": "Filename"}, {**good, "QuestionId": "3", "Answer": "x"}]
    found = read_set(saved(tmp_path / "t.json", {"Data": [good, *wrong]}), "triviaqa")
    assert [one.id for one in found.questions] == ["1"]
    assert reasons(found) == ["EntityPages: must be a valid list, not 'Filename'", "Answer: must be an object, not 'x'"]


def full_nq() -> dict[str, Any]:
    """The record with tokens and their bytes, as in the full form; `'s` and `.` follow without a blank."""
    tokens, at = [], 0
    for word in PAGE.split(" "):
        at += word not in ("'s", ".")
        tokens.append({"token": word.replace("_", " "), "html_token": word.startswith("<") and len(word) > 1})
        tokens[-1] |= {"start_byte": at, "end_byte": at + len(word)}
        at += len(word)
    rest = {key: value for key, value in NQ.items() if key != "document_text"}
    return {**rest, "document_tokens": tokens, "document_title": "Ann", "document_html": "<html>"}


def test_natural_questions_without_tags_and_with_the_title_of_the_page(tmp_path: Path) -> None:
    (found,) = read(tmp_path, "nq", NQ).questions
    assert (found.id, found.answers) == ("-7310031885225846803", ("7",))
    assert (texts(found), found.positives[0].title) == ((["Ann 's age 7 < 8 ."], []), "Ann B")
    (found,) = read(tmp_path, "nq", full_nq()).questions
    assert (texts(found), found.positives[0].title) == ((["Ann's age 7 < 8."], []), "Ann")


@pytest.mark.parametrize(
    ("annotations", "answers"),
    [
        ([NO_ANSWER, *NQ["annotations"], NO_ANSWER], ("7",)),
        ([NO_ANSWER] * 5, ()),
        ([], ()),
        ([{**NQ["annotations"][0], "short_answers": []}], ()),
        ([{**NQ["annotations"][0], "short_answers": [], "yes_no_answer": "YES"}], ("yes",)),
        ([{**NQ["annotations"][0], "yes_no_answer": None}], ("7",)),
    ],
)
def test_natural_questions_of_several_annotators(tmp_path: Path, annotations: Any, answers: tuple[str, ...]) -> None:
    (found,) = read(tmp_path, "nq", {**NQ, "annotations": annotations}).questions
    assert (found.answers, found.type) == (answers, "single" if answers else "unanswerable")


def test_nq_open_and_its_files_without_answers(tmp_path: Path) -> None:
    found = read(tmp_path, "nq", {"question": "when", "answer": ["1999", 2000]}, {"question": "no annotations"})
    assert [one.answers for one in found.questions] == [("1999", "2000")]
    assert reasons(found) == ["the key 'answer' is missing"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_popqa_keeps_its_answers_as_json_in_a_cell(tmp_path: Path, end: str) -> None:
    cells = [
        '"[""poet"", ""\\u00e9crivain"", 7]"',
        '"[]"',
        "poet",
        '"{""a"": 1}"',
        '"[null]"',
        '"[""a ""quoted"" b""]"',
    ]
    table = [f"{number}\tAnn\tQ{number}?\t{cell}" for number, cell in enumerate(cells)]
    text = end.join(["id\tsubj\tquestion\tpossible_answers", *table, "9\tAnn\tQ9?", ""])
    found = read_set(saved(tmp_path / "popQA.tsv", text), "popqa")
    assert [(one.id, one.answers) for one in found.questions] == [("0", ("poet", "écrivain", "7"))]
    assert [one.where.rpartition("#")[2] for one in found.malformed] == ["3", "4", "5", "6", "7", "8"]
    assert reasons(found)[0] == "no answer" and all("possible_answers" in reason for reason in reasons(found)[1:])
    (line,) = read(tmp_path, "popqa", POPQA).questions
    assert line.answers == ("poet", "écrivain", "7")


@pytest.mark.parametrize(
    ("item", "answers", "evidence", "type"),
    [
        ({"answer": 2019.5, "evidence": ["D1:1"], "category": 4}, ("2019.5",), ["D1:1"], "single"),
        ({"answer": ["Rex", "a dog"], "evidence": [], "category": "1"}, ("Rex", "a dog"), [], "single"),
        ({"answer": "Likely no; she said so", "evidence": None, "category": 3}, ("Likely no",), [], "single"),
        ({"answer": "a; b", "evidence": ["D1:1 D1:2"], "category": 1}, ("a; b",), ["D1:1", "D1:2"], "multi"),
        ({"answer": "x", "evidence": ["D:1:1", "D1:01", "D"], "category": 4}, ("x",), ["D1:1"], "single"),
        ({"answer": "x", "evidence": "D1:2", "category": 4}, ("x",), ["D1:2"], "single"),
        ({"adversarial_answer": "Rex", "evidence": ["D1:1"], "category": 5}, (), [], "unanswerable"),
        ({"answer": "Rex", "adversarial_answer": "R", "evidence": ["D1:1"], "category": 5}, (), [], "unanswerable"),
        ({"answer": None, "adversarial_answer": None, "category": 5}, (), [], "unanswerable"),
    ],
)
def test_questions_of_locomo(
    tmp_path: Path, item: dict[str, Any], answers: tuple[str, ...], evidence: list[str], type: str
) -> None:
    (found,) = read(tmp_path, "locomo", {**LOCOMO, "qa": [{"question": "Q?", **item}]}).questions
    assert (found.answers, found.type) == (answers, type)
    assert [one.external_id for one in found.positives] == [f"conv-7/{name}" for name in evidence]


def test_locomo_conversations_whole_in_a_file_and_of_one_id(tmp_path: Path) -> None:
    for indent in (None, 2):
        found = read_set(saved(tmp_path / "26.json", json.dumps(LOCOMO, indent=indent)), "locomo")
        assert [one.date for one in found.documents["conv-7"]] == ["2023-09-13T00:09:00"] * 2
        assert found.documents["conv-7"][1].text == "Bob: [shares a photo of a cat]"
    twice = read(tmp_path, "locomo", LOCOMO, LOCOMO, "no conversation")
    assert len(twice.questions) == 1
    assert reasons(twice) == ["the id 'conv-7' was read before", "not a JSON object"]


def test_longmemeval_sessions_that_are_empty_or_have_one_id(tmp_path: Path) -> None:
    turn, other = [{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": "Bye"}]
    record = {
        **LONG,
        "haystack_session_ids": ["answer_1", "s2", "s2", "s2"],
        "haystack_dates": [*LONG["haystack_dates"][:2], *LONG["haystack_dates"][1:]],
        "haystack_sessions": [LONG["haystack_sessions"][0], turn, turn, other],
    }
    abstains = {**LONG, "question_id": "q_abs", "answer": "You did not say.", "answer_session_ids": ["gone"]}
    found = read(tmp_path, "longmemeval", LONG, {**record, "question_id": 7}, abstains)
    assert not found.malformed
    first, _, none = found.questions
    assert (first.answers, first.date, first.positives[0].text) == (("3",), "2023-05-30T23:40:00", "user: Two.")
    assert [one.external_id for one in found.documents["gpt4_1"]] == ["gpt4_1/answer_1", "gpt4_1/s2"]
    assert [one.external_id for one in found.documents["7"]] == ["7/answer_1", "7/s2", "7/s2#2"]
    assert (none.type, none.answers, none.positives) == ("unanswerable", (), ())


# Files ----------------------------------------------------------------------------------------------------------------

PACKED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("format", PLAIN)
@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("shape", ["x.json", "x.jsonl", "longmemeval_s", "pretty.json"])
def test_a_file_is_read_whatever_its_name_and_packing(tmp_path: Path, format: str, packing: str, shape: str) -> None:
    record, indent = PLAIN[format], 2 if shape == "pretty.json" else None
    value = json.dumps(record if shape == "x.jsonl" else [record], ensure_ascii=False, indent=indent)
    path = tmp_path / f"{shape}{packing}"
    path.write_bytes(PACKED[packing](b"\xef\xbb\xbf" + value.encode() + b"\r\n"))
    found = read_set(path, format)
    assert len(found.questions) == 1 and not found.malformed


def archive(path: Path, files: dict[str, str]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, text in files.items():
                file.writestr(name, text)
    else:
        with tarfile.open(path, "w:gz") as file:
            for name, text in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(text.encode())
                file.addfile(info, io.BytesIO(text.encode()))
    return path


@pytest.mark.parametrize("name", ["data.zip", "data.tar.gz", "data.tgz"])
def test_an_archive_of_one_file_or_with_the_file_named(tmp_path: Path, name: str) -> None:
    one, other = json.dumps([HOTPOT, {}]), json.dumps([{**HOTPOT, "_id": "other"}])
    alone = archive(tmp_path / name, {"data/dev.json": one, "__MACOSX/._dev.json": "x"})
    found = read_set(alone, "hotpotqa")
    assert [question.id for question in found.questions] == ["5a7a"]
    assert found.malformed[0].where == f"{alone}[1]"
    several = archive(tmp_path / name, {"data/dev.json": one, "data/train.json": other})
    assert [question.id for question in read_set(several / "data" / "train.json", "hotpotqa").questions] == ["other"]
    for wrong in (several, several / "dev.json"):
        with pytest.raises(CorpusError, match=r"data/dev\.json, data/train\.json; name one as data\.[a-z.]+/FILE"):
            read_set(wrong, "hotpotqa")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.json.gz", b"no gzip"),
        ("x.zip", b"no zip"),
        ("x.json", b"[{]"),
        ("x.json", b""),
        ("x.json", b"[1]"),
        ("x", b"\0"),
    ],
)
def test_a_damaged_file_is_an_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match="check the file and the format"):
        read_set(tmp_path / name, "hotpotqa")


def test_a_set_is_read_no_further_than_its_questions_need(tmp_path: Path) -> None:
    records = [{**HOTPOT, "_id": str(number)} for number in range(3)]
    path = saved(tmp_path / "x.json", json.dumps(records)[:-1] + ", torn")
    assert [one.id for one in read_set(path, "hotpotqa", 2).questions] == ["0", "1"]
    with pytest.raises(CorpusError, match="not JSON"):
        read_set(path, "hotpotqa")
    talks = saved(tmp_path / "y.json", json.dumps([LOCOMO, {**LOCOMO, "sample_id": "b"}])[:-1] + ", torn")
    found = read_set(talks, "locomo", 1)
    assert (list(found.documents), len(found.questions)) == (["conv-7"], 1)
