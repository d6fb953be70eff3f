"""Docs are executed: the README runs, its commands exist, the help of the command is what docs/cli.md says."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import memspan
from memspan.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ memspan")]
    return [shlex.split(line)[1:] for line in lines]


def test_cli_reference_is_what_the_command_says() -> None:
    render = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))["render"]
    assert render() == (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), "run: python docs/make_cli.py"


def test_every_command_of_the_readme_exists_and_every_command_is_in_the_readme() -> None:
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert {words[0] for words in commands()} == known


def test_every_public_name_exists_and_has_a_docstring() -> None:
    for name in memspan.__all__:
        assert getattr(memspan, name).__doc__, name


def test_links_of_the_docs_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_placeholder_is_left_in_the_docs() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        assert not re.findall(r"README_[A-Z]+", page.read_text(encoding="utf-8")), page.name


@pytest.mark.slow
@pytest.mark.real
def test_the_readme_runs_as_it_is_written(
    real_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs on the default model: `real_checkpoint` has put it where it is looked for."""
    shutil.copytree(ROOT / "examples" / "notes", tmp_path / "examples" / "notes")
    monkeypatch.chdir(tmp_path)
    first, *others = blocks("python")
    exec(compile(first, "README.md", "exec"), {})
    shown = "".join(blocks("text"))
    # Word for word only where the number format is the same; the fact and its document everywhere.
    assert all("Mabli" in text and "['dog']" in text for text in (shown, capsys.readouterr().out))
    runner = CliRunner()
    for words in commands():
        if words[0] in ("add", "ask") and "BANK" not in words:
            result = runner.invoke(app, words)
            assert result.exit_code == 0, result.output
    for block in others:
        exec(compile(block, "README.md", "exec"), {})
    assert "Decision: the warehouse moves" in capsys.readouterr().out


def test_the_demo_has_its_documents_and_questions() -> None:
    demo = runpy.run_path(str(ROOT / "examples" / "demo.py"), run_name="demo")
    documents = {document.external_id for document in demo["corpus"]()}
    assert {"notes/people/owen-pritchard.md", "package:torch"} <= documents
    assert len(list(demo["read_questions"]())) == 15
