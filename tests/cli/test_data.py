"""`memspan data` as a user meets it, and docs/training-data.md command by command."""

from __future__ import annotations

import gzip
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from command import failed, memspan
from made import pair, question, questions, written

PAGE = (Path(__file__).parents[2] / "docs" / "training-data.md").read_text(encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    return [json.loads(line) for line in text.decode().splitlines()]


def test_the_page_runs_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    faq = [f"How does the {name} open?,The {name} opens with the {key} key.\n" for name, key in enumerate("abcdefghij")]
    (tmp_path / "faq.csv").write_text("Question,Answer\n" + "".join(faq))
    (tmp_path / "handbook").mkdir()
    for page in range(4):
        rules = (
            f"Rule {page} {line} says that every visitor of room {line} signs the book {page}." for line in range(60)
        )
        (tmp_path / "handbook" / f"{page}.md").write_text(f"# Rules of house {page}\n\n{' '.join(rules)}\n")
    written(tmp_path / "dev.jsonl", [pair(1), pair(2, question="How does the 3 open?")])
    (yaml,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "mixture.yaml").write_text(yaml)
    lines = [
        line for block in re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()
    ]
    assert len(lines) == 7
    (tmp_path / "recipes").symlink_to(Path(__file__).parents[2] / "recipes")
    for line in lines:
        done = memspan(*shlex.split(line.removeprefix("$ memspan ")))
        assert (done.code, done.err) == (0, "") or "mix " in line, line
    assert all(len(line["positives"]) > 1 for line in read(tmp_path / "data" / "facts.jsonl.gz"))
    cleaned = read(tmp_path / "data" / "clean.jsonl.gz")
    assert len([line for line in cleaned if line["source"] == "faq"]) == 9, "one stands in dev.jsonl"
    assert all(line["negatives"] for line in read(tmp_path / "data" / "hard.jsonl.gz"))
    kept = {line["source"] for line in read(tmp_path / "data" / "mixed" / "train.jsonl.gz")}
    assert kept == {"faq", "handbook"}
    assert json.loads((tmp_path / "data" / "mixed" / "mixture.json").read_text())["weights"]["faq"] == pytest.approx(
        2 / 3
    )


def test_the_example_of_the_form_is_one(tmp_path: Path) -> None:
    (example,) = re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)
    path = written(tmp_path / "x.jsonl", [json.dumps(json.loads(example))])
    found = memspan("data", "stats", path, "--json").json["sources"]["zoo"]
    assert (found["types"], found["hops"]) == ({"multi": 1}, {"2": 1})


def test_build_tells_what_the_files_are_by_themselves(tmp_path: Path) -> None:
    form = written(tmp_path / "a.jsonl", questions(3))
    pairs = written(tmp_path / "b.jsonl", [{"title": "Otter", "body": "It swims."}])
    text = tmp_path / "c.txt"
    text.write_text(" ".join(f"The otter number {number} swims in the wide river." for number in range(40)))
    for path, kind, source in ((form, "questions", "zoo"), (pairs, "pairs", "b"), (text, "text", "c")):
        done = memspan("data", "build", path, "--out", tmp_path / "out" / f"{kind}.jsonl", "--json")
        assert (done.code, done.json["from"], done.json["skipped"]) == (0, kind, 0)
        lines = read(tmp_path / "out" / f"{kind}.jsonl")
        assert len(lines) == done.json["questions"] > 0 and lines[0]["source"] == source


def test_what_build_passes_over_is_named(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text(" ".join(f"The otter {n} swims in the wide river." for n in range(40)))
    (tmp_path / "docs" / "b.bin").write_bytes(b"\0")
    done = memspan("data", "build", tmp_path / "docs", "--task", "cloze", "--out", tmp_path / "x.jsonl")
    assert done.code == 3
    assert f"skipped {tmp_path / 'docs' / 'b.bin'}: unsupported file type" in done.err


def test_build_with_wrong_options(tmp_path: Path) -> None:
    path = written(tmp_path / "b.jsonl", [{"title": "Otter", "body": "It swims."}])
    out = ("--out", tmp_path / "x.jsonl")
    assert "--from takes questions, pairs, text" in failed("data", "build", path, "--from", "magic", *out)
    assert "--bank goes with plain text" in failed("data", "build", path, "--bank", tmp_path / "y.jsonl", *out)
    assert "name both columns" in failed("data", "build", path, "--query", "title", *out)
    assert "written as .jsonl" in failed("data", "build", path, "--out", tmp_path / "x.csv")
    assert "tasks.0 must be 'cloze' or 'title', not 'guess'" in failed("data", "build", path, "--task", "guess", *out)


def test_clean_reports_by_source_and_reason(tmp_path: Path) -> None:
    given = [*questions(5), question(6, answers=("Atlantis",)), question(7, positives=(), source="other")]
    path = written(tmp_path / "x.jsonl", given)
    done = memspan("data", "clean", path, "--out", tmp_path / "y.jsonl")
    assert "zoo: 5 of 6 kept\n  1 dropped: answer not in any positive\n    zoo-6: Where does gecko" in done.out
    found = memspan("data", "clean", path, "--out", tmp_path / "y.jsonl", "--abstractive", "zoo", "--json").json
    assert found["kept"] == 6 and found["sources"]["other"]["dropped"] == {"no positives": 1}
    assert [line["id"] for line in read(tmp_path / "y.jsonl")] == [*(f"zoo-{number}" for number in range(5)), "zoo-6"]


def test_clean_of_everything_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", questions(3))
    out = ("--out", tmp_path / "y.jsonl")
    assert "3 question of an evaluation set" in failed("data", "clean", path, "--against", path, *out)
    assert not (tmp_path / "y.jsonl").exists()
    refused = failed("data", "clean", path, "--min-latin", 3, *out)
    assert "the options: min_latin must be less than or equal to 1, not 3.0" in refused


def test_lengths_are_tokens_of_a_model(tmp_path: Path, checkpoint: Path) -> None:
    path = written(tmp_path / "x.jsonl", questions(3))
    words, tokens = (
        memspan("data", "stats", path, *options, "--json").json["sources"]["zoo"]["question_lengths"]["total"]
        for options in ((), ("--model", checkpoint))
    )
    assert tokens > words == 3 * 6
    assert "holds no tokenizer" in failed("data", "stats", path, "--model", tmp_path)


def test_stats_finds_leaks(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", questions(5))
    dev = written(tmp_path / "dev.jsonl", [question(2, id="dev-2"), question(9, positives=question(3).positives)])
    done = memspan("data", "stats", path, "--against", dev)
    assert done.code == 1
    assert "1 leaks: the same question\n  zoo-2 = dev-2\n0 leaks: the same id\n2 passages in common" in done.out
    assert memspan("data", "stats", path, "--against", dev, "--json").json["leakage"]["passages"] == 2
    assert memspan("data", "stats", path, "--against", written(tmp_path / "e.jsonl", [question(40)])).code == 0


def test_a_pattern_names_several_evaluation_sets_and_their_unreadable_lines_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", questions(5))
    for number in (1, 3):
        others = [question(100 * number + n, id=f"other-{number}-{n}") for n in range(number * 99)]  # 1% may be broken
        written(tmp_path / f"{number}_dev.jsonl", [question(number, id=f"dev-{number}"), *others])
    with (tmp_path / "3_dev.jsonl").open("a", encoding="utf-8") as file:
        file.write("{broken\n")
    done = memspan("data", "stats", path, "--against", tmp_path / "*_dev.jsonl")
    assert done.code == 1 and "2 leaks: the same question" in done.out
    assert "3_dev.jsonl#299: not a JSON object" in done.err
    kept = memspan("data", "clean", path, "--against", tmp_path / "*_dev.jsonl", "--out", tmp_path / "y.jsonl")
    assert "3 of 5 kept" in kept.out and "3_dev.jsonl#299" in kept.err
    assert "no_*.jsonl" in failed("data", "stats", path, "--against", tmp_path / "no_*.jsonl")


def test_mine_adds_what_is_no_answer(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", questions(30))
    more = written(tmp_path / "c.jsonl", [{"text": "Where the heron number 1 does not live.", "title": "t"}])
    out = tmp_path / "y.jsonl"
    found = memspan("data", "mine", path, "--corpus", more, "--count", 2, "--out", out, "--json").json
    assert (found["questions"], found["passages"]) == (30, 31) and found["added"] > 0
    assert "does not live" in json.dumps(read(out)[1]["negatives"])
    assert all(line["answers"][0] not in document["text"] for line in read(out) for document in line["negatives"])


def test_malformed_lines_are_named_by_every_command(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", [*questions(120), "no json"])
    for command in ("clean", "mine"):
        done = memspan("data", command, path, "--out", tmp_path / "y.jsonl")
        assert done.code == 3 and f"skipped {path}#121: not a JSON object" in done.err
    assert "2 of 3 lines are malformed" in failed("data", "stats", written(path, [question(1), "no", "json"]))
