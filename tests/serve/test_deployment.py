"""The systemd unit of docs/serving.md, the container and its compose file against the command and the repository."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from dockerfile_parse import DockerfileParser
from typer.main import get_command

from memspan.cli import app
from memspan.serve.api.health import PATHS
from memspan.serve.settings import ServeSettings

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def block(language: str, of: str = "") -> str:
    """The only block of a language that holds some text."""
    (found,) = (text for text in re.findall(rf"```{language}\n(.*?)```", DOCS, flags=re.DOTALL) if of in text)
    return found


def unit() -> dict[str, str]:
    """The unit's settings; each is there once."""
    pairs = [line.split("=", 1) for line in block("systemd").splitlines() if "=" in line]
    assert len(dict(pairs)) == len(pairs)  # type: ignore[arg-type]
    return dict(pairs)  # type: ignore[arg-type]


def instructions(name: str) -> list[str]:
    """What follows an instruction of the Dockerfile, wherever it stands; continued lines are joined."""
    parsed = DockerfileParser(fileobj=io.BytesIO((ROOT / "Dockerfile").read_bytes())).structure
    return [step["value"] for step in parsed if step["instruction"] == name]


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))["services"]


def serve_command() -> click.Command:
    return get_command(app).commands["serve"]  # type: ignore[attr-defined]


def parsed(arguments: list[str]) -> ServeSettings:
    """The settings that arguments of `memspan serve` ask for. Nothing is run."""
    values = serve_command().make_context("serve", list(arguments)).params
    assert values["banks"]
    return ServeSettings(**{name: values[name] for name in ("host", "port", "grace", "publish")})


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
    assert f"-o memspan {volume}" in instructions("RUN")[-1], "the volume is the user's who serves"
    assert instructions("USER") == ["memspan"]
    (health,) = instructions("HEALTHCHECK")
    assert f"127.0.0.1:{settings.port}/ready" in health and "/ready" in PATHS, "it is asked without a key"


def test_the_container_is_built_of_what_is_there_and_gets_nothing_else() -> None:
    copied = [name for line in instructions("COPY") if "--from" not in line for name in line.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"pyproject.toml", "src", project["readme"], *project["license-files"]} <= set(copied)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[0] == "*" and {line[1:] for line in ignored if line.startswith("!")} == set(copied)
    (extras,) = re.findall(r"\.whl\)\[([\w,]+)\]", instructions("RUN")[-1])
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    (python,) = {tuple(re.findall(r"python:(\d+)\.(\d+)", image)[0]) for image in instructions("FROM")}
    assert project["requires-python"] == f">={'.'.join(python)}"


def test_the_compose_file_runs_the_container_as_it_is_made() -> None:
    (service,) = compose().values()
    assert service["build"] == "." and (ROOT / "Dockerfile").exists()
    (port,), (exposed,) = service["ports"], instructions("EXPOSE")
    address, _, inside = port.rsplit(":", 2)
    assert address == "127.0.0.1" and inside == exposed, "other machines come by a proxy with TLS"
    (volume,) = service["volumes"]
    assert volume.partition(":")[2] == instructions("VOLUME")[0]
    assert int(service["stop_grace_period"].removesuffix("s")) > ServeSettings().grace + 1
    assert not {"command", "entrypoint", "user", "privileged"} & service.keys(), "as the image says"


def test_readers_of_the_compose_file_read_what_its_writer_publishes() -> None:
    (writer,) = compose().values()
    added = compose("compose.readers.yaml")
    assert added.keys() == {*compose(), "readers"}
    readers = added["readers"]
    for service in added.values():
        assert service["command"][:2] == ["memspan", "serve"]
    writes, reads = (parsed(service["command"][2:]) for service in (added["memspan"], readers))
    assert json.loads(instructions("CMD")[0])[2:] == [*added["memspan"]["command"][2:-2]], "as the image, and published"
    assert readers["command"][2] == f"notes={writes.publish}" and reads.publish is None
    (volume,) = writer["volumes"]
    assert readers["volumes"] == [f"{volume}:ro"], "it has the keys, and what is published"
    assert Path(str(writes.publish)).is_relative_to(volume.partition(":")[2]) and not reads.is_local
    assert readers["ports"][0].startswith("127.0.0.1:") and readers["ports"][0].endswith(f":{reads.port}")
    assert "-" in readers["ports"][0], "each of several has a port of its own"
    same = ("init", "restart", "stop_grace_period", "cap_drop", "security_opt", "image")
    assert all(readers[name] == writer[name] for name in same)
    assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text(encoding="utf-8"), "readers wait until the writer is ready"


def test_commands_of_the_compose_file_are_commands() -> None:
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8") + block("text", "docker compose")
    found = re.findall(r"run --rm memspan memspan (.*?)(?:\s{2,}|$)", text, flags=re.MULTILINE)
    assert len(found) == 2
    for line in found:
        group, name, *arguments = shlex.split(line)
        get_command(app).commands[group].commands[name].make_context(name, list(arguments))  # type: ignore[attr-defined]


def test_systemd_knows_every_setting_of_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed")
    program = shlex.split(unit()["ExecStart"])[0]
    (tmp_path / "memspan.service").write_text(block("systemd").replace(program, "/bin/true"))
    done = subprocess.run([analyze, "verify", tmp_path / "memspan.service"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "memspan.service" not in done.stderr, done.stderr
