"""docs/training.md is true: its commands are ones the program has, its recipes and keys exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from memspan.cli import app
from memspan.train.recipe import load_recipe

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
LINES = [line[2:] for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_page_is_understood(line: str) -> None:
    words = shlex.split(line, comments=True)
    command, *rest = words[words.index("memspan") + 1 :]
    parser = get_command(app).commands[command]  # type: ignore[attr-defined]
    parser.make_context(command, list(rest))
    if command == "train":
        recipe, *changes = rest
        load_recipe(ROOT / recipe, changes)


def test_every_recipe_is_named() -> None:
    assert all(f"`{path.stem}`" in TEXT for path in (ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("change", re.findall(r"`([a-z_.]+=[^`]+)`", TEXT))
def test_every_change_of_the_page_is_one(change: str) -> None:
    recipe = "stages" if "warmup" in change else "distill"
    load_recipe(
        ROOT / "recipes" / f"{recipe}.yaml", [*change.split(), *(["corpus=docs/"] if recipe == "distill" else [])]
    )
