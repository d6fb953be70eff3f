"""The tables of docs/evaluation.md: their commands exist, what is finished is not made again, the examples are data."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memspan.cli import app
from memspan.eval.formats import read_set
from memspan.eval.runner import RunSettings
from memspan.eval.tasks import TaskSettings

SCRIPT = Path(__file__).parents[1] / "docs" / "make_tables.py"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def ran(made: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were run; each writes the result of its folder, unless it is one that fails."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        named = {"--json": "", "--out": "scale.json" if "scale" in command else "result.json"}
        for option, name in named.items():
            if option in command:
                result = Path(command[command.index(option) + 1]) / name
                result.parent.mkdir(parents=True, exist_ok=True)
                result.write_text("{}")
                if option == "--out":
                    result.with_name("table.md").write_text("| a |\n")
        return subprocess.CompletedProcess(command, 0, "printed\n")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_the_small_form_is_made_once_from_the_examples(
    made: dict[str, Any], ran: list[list[str]], tmp_path: Path
) -> None:
    assert made["main"](["--small", "--out", str(tmp_path)]) == 0
    assert len(ran) > 12 and {"add", "eval"} <= {command[3] for command in ran if command[1] == "-m"}
    written = (tmp_path / "tables.md").read_text("utf-8")
    for part in (
        "$ memspan eval jsonl",
        "$ python benchmarks/needles.py",
        "printed",
        "| a |",
        "## longmemeval",
        "## scale",
    ):
        assert part in written, part
    (tmp_path / "qa-examples" / "result.json").unlink()
    before = len(ran)
    assert made["main"](["--small", "--out", str(tmp_path)]) == 0
    assert [command[3:5] for command in ran[before:]] == [["eval", "jsonl"]]


def test_a_command_that_fails_ends_it_with_its_code(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 7, ""))
    assert made["main"](["--small", "--out", str(tmp_path)]) == 7
    assert not (tmp_path / "tables.md").exists()


def test_the_examples_are_questions_haystacks_and_conversations(made: dict[str, Any], tmp_path: Path) -> None:
    made["write_example_data"](tmp_path)
    questions = read_set(tmp_path / "dev" / "examples_dev.jsonl", "jsonl")
    talks = read_set(tmp_path / "longmemeval_s.jsonl", "longmemeval")
    assert not questions.malformed and not talks.malformed
    assert {one.type for one in talks.questions} == {"single", "multi", "unanswerable"}
    assert all(one.positives for one in (*questions.questions, *talks.questions) if one.answers)


@pytest.mark.parametrize("small", [True, False])
def test_every_command_is_one(
    made: dict[str, Any], tmp_path: Path, small: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    from typer.main import get_command

    made["write_example_data"](tmp_path)
    (tmp_path / "locomo10.json").write_text("[]")
    assert made["main"](["--out", str(tmp_path / "out"), "--data", str(tmp_path), "--list", *["--small"][:small]]) == 0
    listed = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert {words[2] for words in listed if words[1] == "eval"} >= {"jsonl", "vt", "niah_multikey_3", "scale", "locomo"}
    known = {option for one in get_command(app).commands["eval"].params for option in one.opts}  # type: ignore[attr-defined]
    for words in (words for words in listed if words[1] == "eval"):
        assert {word for word in words if word.startswith("--")} <= known
        task = words[2] if words[2] not in ("scale", "jsonl") else "vt"
        data = None if task in ("vt",) or task.startswith("niah") else "x"
        RunSettings(TaskSettings(task, data), tuple(words[words.index("--arms") + 1].split(",")))
    assert len({re.sub(r"--out \S+", "", " ".join(words)) for words in listed}) == len(listed)


def test_without_data_the_remedy_is_named(
    made: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        made["main"](["--out", str(tmp_path)])
    assert "--data" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        made["main"](["--out", str(tmp_path), "--data", str(tmp_path / "missing")])
    assert "holds none of the files" in capsys.readouterr().err


def test_the_script_needs_no_model_to_list(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--small", "--list", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 and "memspan eval" in done.stdout, done.stderr
