"""Mixtures: the same for the same seed, disjoint from their hold-out, and read back as they were written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from made import pair, question, questions, written

from memspan.errors import DataError
from memspan.text.questions import passage
from memspan.train.data import clean as reasons
from memspan.train.data.holdout import HoldoutSettings, holdout_bank, split_holdout
from memspan.train.data.matching import normal_text, passage_hash
from memspan.train.data.mix import Mixture, load_mixture, mix, mixture_of, read_mixture, write_mixture


@pytest.fixture
def root(tmp_path: Path) -> Path:
    written(tmp_path / "a.jsonl", questions(100))
    written(tmp_path / "deep" / "b.jsonl.gz", [pair(number, id=f"b-{number}", source="x") for number in range(90, 144)])
    return tmp_path


def spec(**changes: Any) -> dict[str, Any]:
    sources = {"one": {"files": "a.jsonl"}, "two": {"files": ["deep/b.jsonl.gz"]}}
    return {"sources": sources, "holdout": {"questions": 5, "bank": 30, "max_share": 0.5}, **changes}


def made(root: Path, values: Mapping[str, Any]) -> Mixture:
    return mix(mixture_of(dict(values)), root)


def test_a_mixture_is_clean_disjoint_and_counted(root: Path) -> None:
    mixture = made(root, spec())
    held = {normal_text(found.question) for found in mixture.holdout}
    assert len(mixture.holdout) == 10 and {found.source for found in mixture.holdout} == {"one", "two"}
    assert not held & {normal_text(found.question) for found in mixture.train}
    evidence = {passage_hash(document) for found in mixture.holdout for document in found.positives}
    assert not evidence & {passage_hash(document) for found in mixture.train for document in found.positives}
    report: Any = mixture.report
    assert report["two"]["dropped"] == {reasons.SAME_QUESTION: 10}, "90 to 99 are in the first source too"
    for name in ("one", "two"):
        counts = report[name]
        assert counts["train"] == sum(found.source == name for found in mixture.train)
        left = counts["held_out"] + counts["shares_passage_with_holdout"] + counts["above_cap"] + counts["train"]
        assert counts["kept"] == left
    assert {found.id for found in mixture.train} | {found.id for found in mixture.holdout} <= (
        {f"zoo-{number}" for number in range(100)} | {f"b-{number}" for number in range(100, 144)}
    )


def test_the_same_seed_is_the_same_mixture_and_another_is_another(root: Path) -> None:
    first, again, other = (made(root, spec(cap=20, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert [found.id for found in first.train] != sorted(found.id for found in first.train), "shuffled"
    assert {found.id for found in first.train} != {found.id for found in other.train}
    assert {found.id for found in first.holdout} != {found.id for found in other.holdout}


def test_caps_are_of_the_mixture_or_of_a_source(root: Path) -> None:
    values = spec(cap=20)
    values["sources"]["two"]["cap"] = 7
    mixture = made(root, values)
    counts = {name: sum(found.source == name for found in mixture.train) for name in ("one", "two")}
    assert counts == {"one": 20, "two": 7}
    assert mixture.weights == pytest.approx({"one": 20 / 27, "two": 7 / 27})


def test_weights_are_given_for_all_or_for_none(root: Path) -> None:
    values = spec()
    values["sources"]["one"]["weight"] = 3
    with pytest.raises(DataError, match="without one are two"):
        mixture_of(values)
    values["sources"]["two"]["weight"] = 1
    assert made(root, values).weights == {"one": 0.75, "two": 0.25}


def test_a_passage_held_out_of_one_source_is_trained_on_in_none(tmp_path: Path) -> None:
    same = [question(number, id=f"b-{number}", question=f"Who lives in city {number}?") for number in range(40)]
    written(tmp_path / "a.jsonl", questions(40))
    written(tmp_path / "b.jsonl", same)
    sources = {name: {"files": f"{name}.jsonl"} for name in ("a", "b")}
    mixture = made(tmp_path, {"sources": sources, "holdout": {"questions": 4, "bank": 0}})
    evidence = {document.external_id for found in mixture.holdout for document in found.positives}
    assert len(mixture.holdout) == 8
    assert not evidence & {document.external_id for found in mixture.train for document in found.positives}
    report: Any = mixture.report
    assert (
        report["a"]["shares_passage_with_holdout"] + report["b"]["shares_passage_with_holdout"]
        == 2 * len(evidence) - 8
        > 0
    )


def test_lines_of_some_sources_only(root: Path) -> None:
    written(
        root / "mixed.jsonl", [question(1, source="good"), *questions(30, 2, source="good"), question(50, source="no")]
    )
    values = {"sources": {"m": {"files": "mixed.jsonl", "only": ["good"]}}, "holdout": {"questions": 1}}
    assert "zoo-50" not in {found.id for found in made(root, values).train}
    values["sources"]["m"]["only"] = ["absent"]
    with pytest.raises(DataError, match="no line of m is of absent; its lines are of good, no"):
        made(root, values)


def test_evaluation_questions_are_left_out(root: Path) -> None:
    mixture = mix(mixture_of(spec()), root, [question(7, id="dev-7")])
    assert "zoo-7" not in {found.id for found in (*mixture.train, *mixture.holdout)}
    report: Any = mixture.report
    assert report["one"]["dropped"] == {reasons.LEAKED: 1}


def test_mined_negatives_are_of_the_source_and_never_of_the_holdout(root: Path) -> None:
    mixture = made(root, spec(mine={"count": 3, "max_overlap": 1.0}))
    own = {d.external_id for found in mixture.train if found.source == "one" for d in found.positives}
    negatives = {d.external_id for found in mixture.train if found.source == "one" for d in found.negatives}
    assert negatives and negatives <= own
    assert all(len(found.negatives) <= 3 for found in mixture.train)


def test_a_mixture_is_read_as_it_was_written(root: Path) -> None:
    mixture = made(root, spec(mine={"count": 2}))
    write_mixture(mixture, root / "out")
    found = read_mixture(root / "out")
    assert (found.train, found.holdout, found.weights) == (mixture.train, mixture.holdout, mixture.weights)
    assert found.bank == tuple(item.document for item in mixture.bank)
    first = (root / "out" / "train.jsonl.gz").read_bytes()
    write_mixture(mixture, root / "out")
    assert (root / "out" / "train.jsonl.gz").read_bytes() == first
    report = json.loads((root / "out" / "mixture.json").read_text("utf-8"))
    assert report["sources"]["two"]["examples"][reasons.SAME_QUESTION][0]["id"] == "b-90"


def test_a_folder_without_a_whole_mixture(root: Path) -> None:
    with pytest.raises(DataError, match=r"holds no whole mixture.*memspan data mix"):
        read_mixture(root)


def test_nothing_left_is_an_error_that_names_the_source(root: Path) -> None:
    written(root / "c.jsonl", [question(1, answers=("Atlantis",))])
    with pytest.raises(DataError, match="nothing of the source three is left"):
        made(root, {"sources": {"three": {"files": "c.jsonl"}}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("no table", "the whole must be a table of keys and values"),
        ({"sources": {}}, "at least one source"),
        ({"sources": {"a": {"files": []}}}, "sources.a.files: .* at least 1 item"),
        ({"sources": {"a": {}}}, "sources.a.files is missing"),
        ({"sources": {"a": {"files": "x", "wieght": 1}}}, "unknown key 'sources.a.wieght'; did you mean 'weight'?"),
        ({"sources": {"a": {"files": "x", "weight": 0}}}, "sources.a.weight must be greater than 0, not 0"),
        ({"sources": {"a": {"files": "x", "cap": "many"}}}, "sources.a.cap must be a whole number, not 'many'"),
        ({"sources": {"a": {"files": "x", "abstractive": 1}}}, "abstractive must be true or false, not 1"),
        ({"sources": {"a": {"files": "x", "cap": True}}}, "cap must be a whole number, not True"),
        ({"sources": {"a": {"files": [1]}}}, "sources.a.files.0 must be a text, not 1"),
        ({"sources": {"a": {"files": "x"}}, "seeed": 1}, "unknown key 'seeed'; did you mean 'seed'?"),
        ({"sources": {"a": {"files": "x"}}, "clean": {"min_latin": 2}}, "clean.min_latin must be less than or equal"),
        ({"sources": {"a": {"files": "x"}}, "holdout": 5}, "holdout must be a table"),
    ],
)
def test_every_key_of_a_mixture_is_checked(tmp_path: Path, values: Any, message: str) -> None:
    (tmp_path / "m.yaml").write_text(json.dumps(values))  # JSON is YAML
    with pytest.raises(DataError, match=rf"m\.yaml: .*{message}"):
        load_mixture(tmp_path / "m.yaml")


def test_what_is_no_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("sources: [")
    with pytest.raises(DataError, match=r"m\.yaml is not YAML"):
        load_mixture(tmp_path / "m.yaml")
    with pytest.raises(DataError, match=r"absent\.yaml cannot be read"):
        load_mixture(tmp_path / "absent.yaml")


def test_the_same_questions_stay_held_out_when_a_source_grows() -> None:
    small, big = questions(80), questions(120)
    held = {found.id for found in split_holdout(small, 8, seed=0).holdout}
    assert held == {found.id for found in split_holdout(small[::-1], 8, seed=0).holdout}
    kept = {found.id for found in split_holdout(big, 12, seed=0).holdout}
    assert len(held) == 8 and len(kept & held) >= 6
    assert {found.id for found in split_holdout(small, 8, seed=1).holdout} != held


def test_a_small_source_keeps_most_of_its_questions() -> None:
    assert len(split_holdout(questions(30), 64, 0, max_share=0.1).holdout) == 3
    assert split_holdout(questions(5), 64, 0, max_share=0.1).holdout == ()


def test_questions_about_a_held_out_passage_are_not_trained_on() -> None:
    shared = question(0).positives
    given = [question(number, positives=shared) for number in range(20)] + questions(20, 20)
    split = split_holdout(given, 8, seed=0, max_share=0.5)
    assert {found.id for found in split.holdout} & {f"zoo-{number}" for number in range(20)}
    assert not {found.id for found in split.train} & {f"zoo-{number}" for number in range(20)}
    assert split.left_out == 40 - len(split.train) - len(split.holdout) > 0


def test_a_bank_holds_all_evidence_once_and_fills_up_evenly() -> None:
    distractors = tuple(passage("", f"Distractor {number}.") for number in range(50))
    holdout = [*questions(5), question(5, positives=question(4).positives, negatives=distractors)]
    train = {"a": questions(60, 10), "b": questions(60, 80, source="b")}
    bank = holdout_bank(holdout, train, 45, seed=0)
    texts = [item.document.text for item in bank]
    assert len(bank) == len(set(texts)) == 45
    assert {document.text for found in holdout for document in found.positives} <= set(texts)
    assert sum(text.startswith("Distractor") for text in texts) == 20
    by_source = [sum(item.source == name for item in bank) for name in ("a", "b")]
    assert by_source == [10, 10]
    assert len(holdout_bank(holdout, train, 2, seed=0)) == 5, "evidence is never cut"
    assert holdout_bank(holdout, train, 45, seed=0) == bank != holdout_bank(holdout, train, 45, seed=1)


@pytest.mark.parametrize("wrong", [{"questions": -1}, {"max_share": 1.0}, {"bank": -1}])
def test_holdout_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HoldoutSettings(**wrong)
