"""Questions about made-up facts, in several wordings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from memspan.cli import app
from memspan.errors import DataError
from memspan.train.data.facts import FactSpec, from_facts, load_facts
from memspan.train.data.files import read_training

FACTS = Path(__file__).parents[3] / "recipes" / "data" / "facts.yaml"
HOME = {
    "questions": ["Where does {name} live?"],
    "told": ["{name}: I live in {value}.", "{name} lives in {value}.", "{name}: Home: {value}."],
    "values": ["Oslo", "Rome"],
}
SPEC: dict[str, Any] = {
    "names": {"people": ["Ada", "Ben"], "rooms": ["the hall"]},
    "chatter": ["It rains."],
    "facts": [
        HOME,
        {
            "questions": ["How long is {name}?"],
            "told": ["{name}: {value} m.", "{value} metres: {name}"],
            "names": "rooms",
            "numbers": [4, 7, 1],
        },
    ],
}


def spec(tmp_path: Path, **changes: Any) -> FactSpec:
    path = tmp_path / "facts.yaml"
    path.write_text(yaml.safe_dump({**SPEC, **changes}), encoding="utf-8")
    return load_facts(path)


def test_a_fact_of_every_kind_is_made_up_for_every_name_in_several_wordings(tmp_path: Path) -> None:
    made = from_facts(spec(tmp_path), "zoo")
    assert [question.question for question in made] == [
        "Where does Ada live?", "Where does Ben live?", "How long is the hall?"
    ]  # fmt: skip
    assert [len(question.positives) for question in made] == [3, 3, 2]
    assert made[2].answers[0] in ("4", "5", "6")
    for question in made:
        (value,) = question.answers
        texts = [document.text for document in question.positives]
        assert len(set(texts)) == len(texts) and all(value in text for text in texts)
        assert (question.type, question.hops, question.source) == ("single", 1, "zoo")


def test_chatter_stands_beside_a_fact_and_behind_who_speaks(tmp_path: Path) -> None:
    texts = {
        document.text
        for seed in range(40)
        for question in from_facts(spec(tmp_path, seed=seed), "zoo")
        for document in question.positives
    }
    wanted = {
        "Ada: I live in Rome.", "Ada: I live in Rome. It rains.", "Ada: It rains. I live in Rome.",
        "Ada: It rains. Home: Rome.", "Ada lives in Rome. It rains.", "It rains. Ada lives in Rome.",
    }  # fmt: skip
    assert wanted <= texts
    assert not any(text.startswith("It rains. Ada:") for text in texts)


def test_the_same_seed_makes_the_same_facts(tmp_path: Path) -> None:
    assert from_facts(spec(tmp_path), "zoo") == from_facts(spec(tmp_path), "zoo")
    assert from_facts(spec(tmp_path), "zoo") != from_facts(spec(tmp_path, seed=1), "zoo")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"facts": [{**HOME, "told": ["{name}: I live in {value}."]}]}, "two wordings"),
        ({"facts": [{**HOME, "told": ["{name}: I live in {value}.", "In {value}."]}]}, "each with {name} and {value}"),
        ({"facts": [{**HOME, "questions": ["Where?"]}]}, "questions, each with {name}"),
        ({"facts": [{**HOME, "values": ["Oslo"]}]}, "two values"),
        ({"facts": [{**HOME, "values": [], "numbers": [1, 2]}]}, "a first one, a bound and a step"),
        ({"facts": [{**HOME, "names": "towns"}]}, "no list of names 'towns'; the lists are people, rooms"),
        ({"facts": [{**HOME, "told_by": "Ada"}]}, r"unknown key 'facts.0.told_by'; did you mean 'told'"),
        ({"facts": "Oslo"}, r"facts must be a list, not 'Oslo'"),
        ({"wordings": 1}, "wordings must be greater than or equal to 2, not 1"),
    ],
)
def test_a_table_that_is_none_says_why(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        spec(tmp_path, **changes)


def test_a_file_that_is_none_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_facts(tmp_path / "none.yaml")


def test_the_command_makes_the_facts_of_the_recipe(tmp_path: Path) -> None:
    out = tmp_path / "facts.jsonl.gz"
    words = ["data", "build", str(FACTS), "--from", "facts", "--out", str(out), "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    made = read_training([out]).questions
    assert shown["questions"] == len(made) > 900 and shown["skipped"] == 0
    assert len({question.question for question in made}) == len(made)
    assert {question.source for question in made} == {"facts"}
