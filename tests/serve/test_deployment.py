"""The systemd unit and the container of docs/serving.md against the command, its options, and the repository."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import click
import pytest
from typer.main import get_command

from memspan.cli import app
from memspan.serve.settings import ServeSettings

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", DOCS, flags=re.DOTALL)
    return found


def unit() -> dict[str, str]:
    """The unit's settings; each is there once."""
    pairs = [line.split("=", 1) for line in block("systemd").splitlines() if "=" in line]
    assert len(dict(pairs)) == len(pairs)  # type: ignore[arg-type]
    return dict(pairs)  # type: ignore[arg-type]


def instructions(name: str) -> list[str]:
    """What follows an instruction of the Dockerfile, wherever it stands; continued lines are joined."""
    lines = block("dockerfile").replace("\\\n", " ").splitlines()
    return [line.split(" ", 1)[1] for line in lines if line.split(" ", 1)[0] == name]


def serve_command() -> click.Command:
    return get_command(app).commands["serve"]  # type: ignore[attr-defined]


def parsed(arguments: list[str]) -> ServeSettings:
    """The settings that arguments of `memspan serve` ask for. Nothing is run."""
    values = serve_command().make_context("serve", list(arguments)).params
    assert values["banks"]
    return ServeSettings(host=values["host"], port=values["port"], grace=values["grace"])


def assert_variables_are_known(assignments: str) -> dict[str, str]:
    given = dict(pair.split("=", 1) for pair in shlex.split(assignments))
    assert given.keys() <= {parameter.envvar for parameter in serve_command().params}
    return given


def test_the_unit_starts_what_the_command_takes() -> None:
    program, name, *arguments = shlex.split(unit()["ExecStart"])
    assert Path(program).name == "memspan" and name == "serve"
    settings = parsed(arguments)
    assert not settings.is_local
    given = assert_variables_are_known(unit()["Environment"])
    assert "MEMSPAN_KEYS" in given, "on other addresses than the machine's own it needs keys"
    writable = unit()["ReadWritePaths"]
    for path in (*given.values(), *(argument.split("=")[1] for argument in arguments if argument.startswith("notes="))):
        assert Path(path).is_relative_to(writable)
    assert int(unit()["TimeoutStopSec"]) > settings.grace + 1 and unit()["KillSignal"] == "SIGTERM"


def test_the_container_starts_what_the_command_takes() -> None:
    (command,) = instructions("CMD")
    program, name, *arguments = json.loads(command)
    assert (program, name) == ("memspan", "serve")
    settings = parsed(arguments)
    assert not settings.is_local and instructions("EXPOSE") == [str(settings.port)]
    (environment,), (volume,) = instructions("ENV"), instructions("VOLUME")
    given = assert_variables_are_known(environment)
    assert "MEMSPAN_KEYS" in given and all(Path(path).is_relative_to(volume) for path in given.values())
    assert f"-o memspan {volume}" in instructions("RUN")[0], "the volume is the user's who serves"


def test_the_container_is_built_of_what_is_there() -> None:
    copied = [name for line in instructions("COPY") for name in line.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"pyproject.toml", "src", project["readme"], *project["license-files"]} <= set(copied)
    (run,) = instructions("RUN")
    (extra,) = re.findall(r"'/src\[(\w+)\]'", run)
    assert extra in project["optional-dependencies"]
    (python,) = re.findall(r"python:(\d+)\.(\d+)", instructions("FROM")[0])
    assert project["requires-python"] == f">={'.'.join(python)}"


def test_systemd_knows_every_setting_of_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed")
    program = shlex.split(unit()["ExecStart"])[0]
    (tmp_path / "memspan.service").write_text(block("systemd").replace(program, "/bin/true"))
    done = subprocess.run([analyze, "verify", tmp_path / "memspan.service"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "memspan.service" not in done.stderr, done.stderr
