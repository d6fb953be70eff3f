"""Questions: what makes one, and the project's own form of them in files, packed or not."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from memspan.errors import CorpusError
from memspan.text.questions import UNDATED, Question, passage, read_questions
from memspan.train.data.files import write_questions


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def lines(*records: Any) -> str:
    return "\n".join(record if isinstance(record, str) else json.dumps(record) for record in records) + "\n"


OWN = {
    "id": "s-1",
    "source": "s",
    "question": "Who?",
    "answers": ["Ann", "Anna"],
    "positives": [{"title": "A", "text": "Ann did."}, {"title": "", "text": "She did."}],
    "negatives": [{"title": "B", "text": "Bob did not."}],
    "type": "multi",
    "hops": 2,
}


def test_the_own_form_and_what_is_malformed_in_it(tmp_path: Path) -> None:
    bad = [
        "not json",
        '["a list"]',
        {**OWN, "id": "s-2", "question": " "},
        {**OWN, "id": "s-3", "answers": []},
        {**OWN, "id": "s-4", "positives": [{"title": "A"}]},
        {**OWN, "id": "s-5", "answers": "Ann"},
        OWN,
        {**OWN, "id": "s-6", "type": "several"},
        {**OWN, "id": "s-7", "hops": "two"},
    ]
    pair = {**OWN, "id": "s-9", "type": "pair", "answers": []}
    found = read_questions(written(tmp_path / "x.jsonl", lines(OWN, *bad, pair)))
    first, second = found.questions
    assert first == Question(
        id="s-1",
        question="Who?",
        answers=("Ann", "Anna"),
        positives=(passage("A", "Ann did."), passage("", "She did.")),
        negatives=(passage("B", "Bob did not."),),
        type="multi",
        hops=2,
        source="s",
    )
    assert first.needs_all and second.id == "s-9"
    assert [int(bad.where.rpartition("#")[2]) for bad in found.malformed] == list(range(2, 11))
    reasons = [bad.reason for bad in found.malformed]
    assert reasons[2:] == [
        "the question is empty",
        "no answer",
        "the key 'text' is missing",
        "answers must be a list",
        "the id 's-1' was read before",
        "no type 'several'; the types are single, multi, yesno, pair, unanswerable, all",
        "hops must be a number from 1, or null, not 'two'",
    ]


def test_only_id_question_and_answers_are_always_needed(tmp_path: Path) -> None:
    (found,) = read_questions(
        written(tmp_path / "x.jsonl", lines({"id": 7, "question": " Who? ", "answers": [" Ann ", "Ann", ""]}))
    ).questions
    assert found == Question("7", "Who?", ("Ann",), ())
    assert (found.type, found.hops, found.source, found.negatives) == ("single", None, "", ())


def test_passages_may_have_dates(tmp_path: Path) -> None:
    said = [{"title": "", "text": "In Ghent.", "date": day} for day in ("2025-01-10", "2025-05-30T10:00:00+02:00")]
    dated = {**OWN, "positives": said[1:], "negatives": said[:1]}
    (found,) = read_questions(written(tmp_path / "x.jsonl", lines(dated))).questions
    (later,), (earlier,) = found.positives, found.negatives
    assert (earlier.date, later.date) == ("2025-01-10", "2025-05-30T10:00:00+02:00")
    assert len({later.external_id, earlier.external_id, passage("", "In Ghent.").external_id}) == 3
    write_questions(tmp_path / "again.jsonl", [found])
    assert read_questions(tmp_path / "again.jsonl").questions == (found,)

    wrong = {**OWN, "positives": [{"title": "", "text": "In Ghent.", "date": "yesterday"}]}
    found = read_questions(written(tmp_path / "x.jsonl", lines(OWN, {**wrong, "id": "s-2"})))
    assert "is not a date" in found.malformed[0].reason


@pytest.mark.parametrize(("name", "known", "number"), [("contradictions", "known", 50), ("changes", "before", 30)])
def test_the_sets_of_the_examples_say_what_they_are_to_say(name: str, known: str, number: int) -> None:
    path = Path(__file__).parents[2] / "examples" / f"{name}.jsonl"
    found = read_questions(path)
    assert len(found.questions) == number and not found.malformed
    for question, line in zip(found.questions, path.read_text(encoding="utf-8").splitlines(), strict=True):
        former = json.loads(line)[known].casefold()
        (positive,) = question.positives
        assert question.answers[0].casefold() in positive.text.casefold()
        for before in question.negatives:
            assert former in before.text.casefold() and question.answers[0].casefold() not in before.text.casefold()
            assert before.date is not None and positive.date is not None and before.date < positive.date


def test_packed_files_read_as_plain_ones(tmp_path: Path) -> None:
    # The line separator inside a text is no end of a line.
    record = {**OWN, "positives": [{"title": "", "text": "one\u2028two"}]}
    text = json.dumps(record, ensure_ascii=False) + "\n" + json.dumps({**OWN, "id": "s-2"}) + "\n"
    plain = read_questions(written(tmp_path / "x.jsonl", text))
    assert [question.id for question in plain.questions] == ["s-1", "s-2"] and not plain.malformed
    for name, open_ in (("x.jsonl.gz", gzip.open), ("x.jsonl.xz", lzma.open)):
        with open_(tmp_path / name, "wt", encoding="utf-8") as file:
            file.write(text)
        assert read_questions(tmp_path / name) == plain
    assert read_questions(written(tmp_path / "x.json", text)) == plain


def test_a_file_that_holds_no_question_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="check the file"):
        read_questions(tmp_path / "missing.jsonl")
    with pytest.raises(CorpusError, match=r"holds no question .*#1: not a JSON"):
        read_questions(written(tmp_path / "e.jsonl", "oops\n"))
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(lines(OWN).encode())[:40])
    with pytest.raises(CorpusError, match="check the file"):
        read_questions(tmp_path / "torn.jsonl.gz")


def test_a_passage_is_named_by_its_content() -> None:
    first, again = passage("A", "text"), passage("A", "text")
    assert first == again and first.date == UNDATED
    assert len({first.external_id, passage("At", "ext").external_id, passage("", "A text").external_id}) == 3


def test_a_question_needs_words_and_an_answer_unless_its_kind_has_none() -> None:
    with pytest.raises(ValueError, match="no answer"):
        Question("q", "What?", (), ())
    with pytest.raises(ValueError, match="empty"):
        Question("q", " ", ("x",), ())
    for kind in ("pair", "unanswerable"):
        assert not Question("q", "What?", (), (), type=kind).needs_all
