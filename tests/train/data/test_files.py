"""Files of questions: what is refused, what comes back as it was written."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from made import question, questions, written

from memspan.errors import CorpusError, DataError
from memspan.text.questions import Question, passage
from memspan.train.data.files import read_training, write_json, write_lines, write_questions

RICH = question(
    3,
    positives=(passage("A", "One Zürich\u2028two."), passage("", "Three.")),
    negatives=(passage("B", "Four."),),
    type="multi",
    hops=2,
    answers=("one", "two"),
)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    given = [RICH, question(1), question(2, type="pair", answers=(), hops=None)]
    assert write_questions(tmp_path / "deep" / name, given) == 3
    assert read_training([tmp_path / "deep" / name]).questions == tuple(given)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [name], "nothing else is left"


def test_the_same_questions_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_questions(tmp_path / name, questions(20))
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_one_percent_of_malformed_lines_is_named_and_more_is_refused(tmp_path: Path) -> None:
    good = questions(99)
    read = read_training([written(tmp_path / "x.jsonl", [*good[:50], "no json", *good[50:]])])
    assert len(read.questions) == 99
    assert [bad.where for bad in read.malformed] == [f"{tmp_path / 'x.jsonl'}#51"]
    path = written(tmp_path / "y.jsonl", [*good[:98], "no json", '{"id": 1}'])
    with pytest.raises(
        DataError, match=r"y\.jsonl: 2 of 100 lines are malformed, more than 1%.*y\.jsonl#99: not a JSO"
    ):
        read_training([path])


def test_a_damaged_file_is_not_hidden_by_a_good_one(tmp_path: Path) -> None:
    big, small = (
        written(tmp_path / "big.jsonl", questions(1000)),
        written(tmp_path / "s.jsonl", [question(1001), "bad"]),
    )
    with pytest.raises(DataError, match=r"s\.jsonl: 1 of 2 lines"):
        read_training([big, small])


def test_files_that_are_none_or_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no file"):
        read_training([tmp_path / "absent.jsonl"])
    with pytest.raises(CorpusError, match="empty"):
        read_training([written(tmp_path / "x.jsonl", [])])


def test_an_id_in_two_files_is_refused(tmp_path: Path) -> None:
    one, two = (written(tmp_path / name, [question(1)]) for name in ("a.jsonl", "b.jsonl"))
    with pytest.raises(DataError, match=r"b\.jsonl: the id 'zoo-1' was read before"):
        read_training([one, two])


def test_sources_come_from_the_line_the_file_or_the_caller(tmp_path: Path) -> None:
    path = written(tmp_path / "birds.v2.jsonl.gz", [question(1), question(2, source="")])
    assert [found.source for found in read_training([path]).questions] == ["zoo", "birds"]
    assert [found.source for found in read_training([path], "mine").questions] == ["mine", "mine"]


def test_a_passage_of_several_questions_is_one_object(tmp_path: Path) -> None:
    shared = passage("T", "Text.")
    path = written(tmp_path / "x.jsonl", [question(1, positives=(shared,)), question(2, negatives=(shared,))])
    first, second = read_training([path]).questions
    assert first.positives[0] is second.negatives[0]


def test_a_file_that_fails_halfway_leaves_the_old_one(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", [question(1)])
    before = path.read_bytes()

    def failing() -> Iterator[Question]:
        yield question(2)
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        write_questions(path, failing())
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["x.jsonl"]


def test_other_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.json: lines are written as \.jsonl"):
        write_lines(tmp_path / "x.json", [])


def test_json_for_people_and_packed_lines(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": "Zürich"})
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == {"a": "Zürich"}
    write_lines(tmp_path / "x.jsonl.gz", [{"a": 1}])
    assert gzip.decompress((tmp_path / "x.jsonl.gz").read_bytes()) == b'{"a": 1}\n'
