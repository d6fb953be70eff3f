"""Commands as functions: options that make one value, exit codes, known errors, packages that an extra brings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer
from command import failed
from typer.testing import CliRunner

from memspan.cli.app import OptionGroup, command
from memspan.errors import MemspanError


def _pair(low: Annotated[int, typer.Option(help="Least.")] = 1, high: int = 2) -> tuple[int, int]:
    if low > high:
        raise MemspanError("low is above high")
    return low, high


@command
def _sum(name: str, *, pair: Annotated[tuple[int, int], OptionGroup(_pair)], twice: bool = False) -> int:
    """Print a sum."""
    typer.echo(f"{name} {sum(pair) * (2 if twice else 1)}")
    return pair[0]


app = typer.Typer()
app.command()(_sum)


@pytest.mark.parametrize(
    ("arguments", "code", "out"),
    [
        ("x --low 0", 0, "x 2\n"),
        ("x --low 0 --high 5 --twice", 0, "x 10\n"),
        ("x", 1, "x 3\n"),
        ("x --low 3 --high 3", 3, "x 6\n"),
    ],
)
def test_a_group_is_its_options_and_what_a_command_returns_its_exit_code(arguments: str, code: int, out: str) -> None:
    done = CliRunner().invoke(app, arguments.split())
    assert (done.exit_code, done.stdout) == (code, out)


def test_an_error_of_a_group_is_an_error_of_the_command() -> None:
    done = CliRunner().invoke(app, ["x", "--low", "3"])
    assert (done.exit_code, done.stderr) == (1, "error: low is above high\n")


def test_help_shows_the_options_of_a_group_and_not_the_group() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert all(text in shown for text in ("--low", "Least.", "--high", "--twice")) and "pair" not in shown


@pytest.mark.parametrize(("name", "module", "extra"), [("serve", "app", "serve"), ("mcp", "mcp", "mcp")])
def test_what_an_extra_brings_is_named_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, f"memspan.serve.{module}", None)  # as where it cannot be imported
    assert f"pip install 'memspan[{extra}]'" in failed(name, tmp_path / "bank")
