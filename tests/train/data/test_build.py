"""Questions from pairs and from plain text."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from made import written

from memspan.errors import CorpusError, DataError
from memspan.text.questions import passage
from memspan.text.splitter import split_text
from memspan.text.terms import plain_words
from memspan.train.data.pairs import PairColumns, from_pairs
from memspan.train.data.texts import TextSettings, from_texts, num_words


@pytest.mark.parametrize(
    ("query", "document"), [("query", "document"), ("question", "answer"), ("title", "body"), ("title", "text")]
)
def test_known_pairs_are_recognised(tmp_path: Path, query: str, document: str) -> None:
    path = written(tmp_path / "x.jsonl", [{query: "The otter", document: "It swims.", "more": 1}])
    (found,) = from_pairs([path], "zoo").questions
    assert (found.question, found.positives) == ("The otter", (passage("", "It swims."),))
    assert (found.type, found.answers, found.source, found.hops) == ("pair", (), "zoo", 1)


def test_columns_are_named_in_tables_and_packed_lines_alike(tmp_path: Path) -> None:
    record = {"q": "Who swims?", "d": "The otter swims.", "t": "Otter", "a": "otter", "n": "The heron flies."}
    table = tmp_path / "x.csv"
    table.write_text(",".join(record) + "\n" + ",".join(record.values()) + "\n", encoding="utf-8")
    tabs = tmp_path / "x.tsv"
    tabs.write_text("\t".join(record) + "\n" + "\t".join(record.values()) + "\n", encoding="utf-8")
    packed = tmp_path / "x.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(record).encode()))
    columns = PairColumns("q", "d", title="t", answer="a", negative="n")
    (found,) = from_pairs([table], "zoo", columns).questions
    assert found.positives == (passage("Otter", "The otter swims."),)
    assert (found.answers, found.negatives, found.type) == (("otter",), (passage("", "The heron flies."),), "single")
    for path in (tabs, packed):
        assert from_pairs([path], "zoo", columns).questions == (found,)


def test_ids_are_of_the_content_and_a_repeated_pair_is_one(tmp_path: Path) -> None:
    one = {"query": "a b", "document": "c d"}
    path = written(tmp_path / "x.jsonl", [one, {"query": "e", "document": "c d"}, one])
    moved = written(tmp_path / "y.jsonl", [one])
    first, second = from_pairs([path], "zoo").questions
    assert first.id != second.id and first.positives == second.positives
    assert from_pairs([moved], "zoo").questions == (first,)


def test_lines_without_a_pair_are_named_and_many_are_refused(tmp_path: Path) -> None:
    good = [{"query": f"q {number}", "document": f"d {number}"} for number in range(120)]
    read = from_pairs([written(tmp_path / "x.jsonl", [*good, {"query": "q", "document": " "}])], "zoo")
    assert len(read.questions) == 120
    assert [bad.where for bad in read.malformed] == [f"{tmp_path / 'x.jsonl'}#121"]
    bad = written(tmp_path / "y.jsonl", [{"name": "a", "wording": "b"}])
    with pytest.raises(DataError, match=r"y\.jsonl#1: no pair of columns among name, wording; name them with --query"):
        from_pairs([bad], "zoo")
    with pytest.raises(DataError, match="the key 'absent' is missing"):
        from_pairs([bad], "zoo", PairColumns("name", "absent"))


def test_files_that_are_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no file"):
        from_pairs([tmp_path / "absent.csv"], "zoo")
    (tmp_path / "x.csv").write_bytes(b"\x00\x01")
    with pytest.raises(DataError, match="cannot be read as pairs: binary"):
        from_pairs([tmp_path / "x.csv"], "zoo")


def test_columns_are_checked() -> None:
    with pytest.raises(DataError, match="both columns"):
        PairColumns(query="q")
    with pytest.raises(DataError, match="not to be what it is found by"):
        PairColumns("title", "body", title="title")


def prose(sentences: int, seed: int = 0) -> str:
    """Sentences of seven made-up words."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abdegilmnoprstu", k=6)) for _ in range(60)]
    return " ".join(f"{' '.join(rng.choices(words, k=7)).capitalize()}." for _ in range(sentences))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    for number in range(6):
        title = f"About Subject {number}"
        (tmp_path / "docs" / f"{number}.md").write_text(f"# {title}\n\n{prose(40, number)}\n", encoding="utf-8")
    return tmp_path / "docs"


def made(folder: Path, **settings: Any) -> Any:
    return from_texts([folder], "docs", TextSettings(**{"passage_words": 60, "min_passage_words": 10, **settings}))


def test_a_sentence_finds_the_passage_it_was_taken_out_of(folder: Path) -> None:
    found = made(folder, tasks=("cloze",), keep=0.0)
    assert len(found.questions) >= 20
    texts = "".join(path.read_text("utf-8") for path in sorted(folder.iterdir()))
    for question in found.questions:
        (positive,) = question.positives
        assert question.question in texts and question.question not in positive.text
        assert positive.title.startswith("About Subject") and question.type == "pair"
        assert 10 <= num_words(positive.text) <= 60


def test_the_rest_of_the_passage_is_there_as_it_was(folder: Path) -> None:
    texts = [path.read_text("utf-8") for path in sorted(folder.iterdir())]
    whole = {text[span.start : span.end] for text in texts for span in split_text(text, num_words, 60)}
    for question in made(folder, tasks=("cloze",), keep=0.0).questions:
        words = sorted(plain_words(question.question) + plain_words(question.positives[0].text))
        assert any(sorted(plain_words(text)) == words for text in whole)


def test_some_sentences_stay(folder: Path) -> None:
    def stays(keep: float) -> float:
        found = made(folder, tasks=("cloze",), keep=keep).questions
        return sum(question.question in question.positives[0].text for question in found) / len(found)

    assert stays(0.0) == 0 and stays(1.0) == 1
    assert 0.2 < stays(0.5) < 0.8


@pytest.mark.parametrize("settings", [{}, {"per_passage": 3}, {"keep": 0.5}, {"neighbours": 5}])
def test_no_negative_or_other_passage_holds_a_sentence_that_was_taken(folder: Path, settings: dict[str, Any]) -> None:
    found = made(folder, **settings)
    everywhere = {document.external_id: document for q in found.questions for document in (*q.positives, *q.negatives)}
    everywhere.update((document.external_id, document) for document in found.passages)
    for question in found.questions:
        own = {document.external_id for document in question.positives}
        others = [document for name, document in everywhere.items() if name not in own]
        assert not any(question.question in document.text for document in others)
        assert not own & {document.external_id for document in question.negatives}


def test_a_title_finds_a_text_that_does_not_have_it(folder: Path) -> None:
    found = made(folder, tasks=("title",))
    assert [question.question for question in found.questions] == [f"About Subject {number}" for number in range(6)]
    for question in found.questions:
        (positive,) = question.positives
        assert positive.title == "" and question.question not in positive.text
        assert all(document.title for document in question.negatives)


def test_neighbours_are_the_nearest_passages_of_the_same_text(folder: Path) -> None:
    found = made(folder, tasks=("title",), neighbours=2)
    order = [document.external_id for document in found.passages]
    for question in found.questions:
        place = order.index(question.positives[0].external_id)
        assert [document.external_id for document in question.negatives] == order[place + 1 : place + 3]
    assert not any(question.negatives for question in made(folder, neighbours=0).questions)


def test_the_seed_decides_and_files_do_not_disturb_each_other(folder: Path) -> None:
    first = made(folder)
    assert made(folder) == first
    assert {q.question for q in made(folder, seed=1).questions} != {q.question for q in first.questions}
    (folder / "0.md").unlink()
    assert {q.id for q in made(folder).questions} < {q.id for q in first.questions}


def test_other_scripts_are_counted_by_their_characters(tmp_path: Path) -> None:
    sentence = "彼は毎日とても早く起きて川まで歩いてゆく{0}。"
    (tmp_path / "x.txt").write_text("".join(sentence.format("一二三四五六七八"[n % 8]) for n in range(30)), "utf-8")
    found = from_texts([tmp_path / "x.txt"], "x", TextSettings(tasks=("cloze",), passage_words=100, max_words=40))
    assert len(found.questions) >= 3


def test_texts_that_give_nothing_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("Too short.")
    with pytest.raises(DataError, match=r"gave no question \(they are too short\)"):
        from_texts([tmp_path / "x.txt"], "x")
    (tmp_path / "y.txt").write_bytes(b"\0")
    with pytest.raises(DataError, match=r"y\.txt: binary"):
        from_texts([tmp_path / "y.txt"], "x")
    with pytest.raises(CorpusError, match="does not exist"):
        from_texts([tmp_path / "absent"], "x")


@pytest.mark.parametrize(
    "wrong",
    [{"tasks": ()}, {"tasks": ("guess",)}, {"min_words": 9, "max_words": 8}, {"keep": 2}, {"per_passage": 0}],
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TextSettings(**wrong)
