"""Docs are executed: the README runs, its commands exist, the help of the command is what docs/cli.md says."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
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
    for page in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_navigation_names_every_page() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    groups = {
        title: [page for entry in pages for page in entry.values()] for group in nav for title, pages in group.items()
    }
    assert list(groups) == ["Get started", "How-to", "Reference", "Explanation"]
    named = sorted(page for pages in groups.values() for page in pages)
    assert named == sorted(["index.md", "api.md", *(page.name for page in (ROOT / "docs").glob("*.md"))])


def test_pages_of_the_site_lead_to_each_other_and_to_files_beside_them(tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / "docs" / "make_site.py"))["write_pages"](tmp_path)
    for page in tmp_path.rglob("*.md"):
        for target in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file() and (page.parent / target).resolve().is_relative_to(tmp_path)
    assert "](serving.md)" in (tmp_path / "index.md").read_text(encoding="utf-8")
    assert "](../serving.md)" in (tmp_path / "javascript" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "recipes" / "data" / "facts.yaml").is_file()
    api = (tmp_path / "api.md").read_text(encoding="utf-8")
    assert all(f".{name}" in api for name in memspan.__all__ if name != "__version__")


@pytest.mark.slow
def test_the_site_is_built_without_a_warning() -> None:
    """Strict: a page, a heading or a public name that a link or the API page leads to must be there."""
    made = ROOT / "build" / "site"
    done = subprocess.run([sys.executable, ROOT / "docs" / "make_site.py"], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    api = (made / "api" / "index.html").read_text(encoding="utf-8")
    assert "Answer one question" in api and "Remember texts or documents" in api
    assert (made / "index.html").is_file() and (made / "LOG" / "index.html").is_file()


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
    files = [ROOT / "examples" / name for name in ("questions.jsonl", "package_questions.jsonl")]
    assert len(list(demo["read_questions"](files))) == 15
