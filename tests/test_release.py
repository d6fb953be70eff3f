"""The parts of a release: one version, the files around it, and a wheel that works where nothing else of this is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from datetime import date
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import save_backbone
from typer.testing import CliRunner

import memspan
from memspan.cli import app
from memspan.model.convert import convert

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MOST_BYTES = 45 * 2**20
"""Of a wheel: two adapters of 19 MB, and a package index takes 100 MB."""


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_versions_agree() -> None:
    citation, client = yaml.safe_load(page("CITATION.cff")), yaml.safe_load(page("javascript/package.json"))
    lock = yaml.safe_load(page("javascript/package-lock.json"))
    newest = re.findall(r"^## (\S+) \((\S+)\)$", page("CHANGELOG.md"), re.MULTILINE)[0]
    assert newest == (memspan.__version__, str(citation["date-released"]))
    versions = [memspan.__version__, citation["version"], client["version"], lock["version"]]
    assert {*versions, lock["packages"][""]["version"]} == {memspan.__version__}
    assert re.fullmatch(r"\d+\.\d+\.\d+", memspan.__version__)
    assert PROJECT["tool"]["setuptools"]["dynamic"] == {"version": {"attr": "memspan.version.VERSION"}}


def test_the_command_says_its_version() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"memspan {memspan.__version__}\n")


def test_the_version_needs_no_command_and_is_none_itself() -> None:
    assert CliRunner().invoke(app, ["--version", "ask"]).exit_code == 0
    assert CliRunner().invoke(app, ["ask", "--version"]).exit_code == 2


def test_the_citation_is_one() -> None:
    """The keys that the Citation File Format 1.2.0 requires, of the work and of what it refers to."""
    citation = yaml.safe_load(page("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0" and isinstance(citation["date-released"], date)
    assert citation["license"] == PROJECT["project"]["license"] and citation["message"]
    for work in (citation, *citation["references"]):
        assert work["title"] and work["type"]
        assert all("name" in one or {"given-names", "family-names"} <= one.keys() for one in work["authors"])


def actions(value: Any) -> Iterable[str]:
    """The actions that the steps of a workflow use."""
    for job in value["jobs"].values():
        yield from (step["uses"] for step in job["steps"] if "uses" in step)


def test_the_workflow_builds_the_source_and_a_wheel_per_system_and_publishes_a_tag_alone() -> None:
    workflow = yaml.safe_load(page(".github/workflows/release.yml"))
    jobs = workflow["jobs"]
    assert workflow[True] == {"push": {"tags": ["v*"]}, "workflow_dispatch": None}
    assert jobs["publish"]["if"] == "startsWith(github.ref, 'refs/tags/v')"
    assert set(jobs["publish"]["needs"]) == set(jobs) - {"publish"}
    systems = {runner.partition("-")[0] for runner in jobs["wheel"]["strategy"]["matrix"]["runner"]}
    assert systems == {"ubuntu", "macos", "windows"}
    assert all("@" in action for action in actions(workflow))
    # One wheel per system serves every Python that the project takes, as `cp311-abi3` says.
    built = PROJECT["tool"]["cibuildwheel"]["build"]
    assert f">=3.{built.removeprefix('cp3').removesuffix('-*')}" == PROJECT["project"]["requires-python"]
    assert PROJECT["tool"]["distutils"]["bdist_wheel"]["py-limited-api"] == built.removesuffix("-*")


def kept(folder: str) -> set[str]:
    """The files below a folder of the repository, from that folder, that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT / folder, capture_output=True, check=True, encoding="utf-8")
    return {name for name in done.stdout.split("\0") if (ROOT / folder / name).is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is made of it, of a copy without anything that was built."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in kept("."):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    assert done.returncode == 0, done.stdout + done.stderr
    (source,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return source, wheel


@pytest.mark.slow
def test_the_source_can_be_built_and_has_no_tests(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "src/memspan/ops/amx.c", "src/memspan/py.typed"} <= names
    assert {f"src/{name}" for name in kept("src")} <= names
    assert not [name for name in names if name.startswith(("tests/", "build/", "benchmarks/"))]
    assert built[0].name == f"memspan-{memspan.__version__}.tar.gz" and built[0].stat().st_size < MOST_BYTES


@pytest.mark.slow
def test_the_wheel_has_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        about = Parser().parsestr(archive.read(metadata).decode("utf-8"))
    package = {name for name in names if ".dist-info/" not in name}
    compiled = {name for name in package if re.fullmatch(r"memspan/ops/_amx\.\S*(so|pyd)", name)}
    assert package - compiled == kept("src") - {"memspan/ops/amx.c"}
    wanted = ("py.typed", "serve/static/index.html", "text/languages.tsv")
    assert {f"memspan/{name}" for name in wanted} <= package
    assert {name.split("/")[2] for name in package if name.endswith("adapter.safetensors")} == {
        "memspan-qwen2.5-coder-0.5b",
        "memspan-smollm2-135m",
    }
    assert (about["Version"], about["License-Expression"]) == (memspan.__version__, "Apache-2.0")
    assert set(about.get_all("Provides-Extra") or ()) == set(PROJECT["project"]["optional-dependencies"])
    assert re.search(r"-cp311-abi3-\w+\.whl$", built[1].name)
    assert 20 * 2**20 < built[1].stat().st_size < MOST_BYTES


@pytest.mark.slow
def test_the_installed_wheel_remembers_and_finds(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Installed into a folder that comes before this environment's packages, and run from another one."""
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, built[1]]
    subprocess.run(pip, check=True, capture_output=True)
    command = shutil.which("memspan", path=os.pathsep.join(str(target / name) for name in ("bin", "Scripts")))
    assert command is not None
    environment = os.environ | {"PYTHONPATH": str(target), "MEMSPAN_CACHE": str(tmp_path / "cache")}

    def run(*words: str | Path) -> str:
        done = subprocess.run([command, *words], env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    program = [sys.executable, "-c", "import memspan; print(memspan.__file__)"]
    home = subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8").stdout
    assert Path(home.strip()).is_relative_to(target)
    assert run("--version") == f"memspan {memspan.__version__}\n"
    assert "Remember documents" in run("--help")
    save_backbone(tmp_path / "plain")
    convert(str(tmp_path / "plain"), tmp_path / "model", chunk_size=4, top_k_docs=2)
    (tmp_path / "note.txt").write_text("The otter of Rome lives at number seven.", encoding="utf-8")
    run("add", "bank", "note.txt", "--model", tmp_path / "model")
    assert "note.txt" in run("search", "bank", "Where does the otter live?", "--selector", "lexical")
