"""Recipes: a training run as a YAML file, read into typed settings, with changes by dotted keys."""

from __future__ import annotations

import runpy
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import to_jsonable_python

from memspan.errors import RecipeError
from memspan.train.batch_settings import BatchSettings
from memspan.train.settings import Recipe
from memspan.train.structure import parse_yaml, read_yaml, structured

_BATCH = "batch"


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: a YAML file.
        overrides: as `phases.warmup.lr=1e-3`: dotted keys; items of lists by their number or their `name`. An item
            that is given the value null is taken out: `phases.warmup=null`.

    Raises:
        RecipeError: the file cannot be read; a key is unknown, missing or given a value of another type; or the
            settings contradict each other.
    """
    values = read_yaml(path, RecipeError)
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold keys and values, as `name: my-run`")
    for override in overrides:
        _override(values, override)
    return recipe_of(values, str(path))


def recipe_of(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from plain values, as YAML gives them; its plug-ins are read first. Raises `RecipeError`."""
    for plugin in [plugins] if isinstance(plugins := values.get("plugins", ()), str) else plugins:
        _read_plugin(str(Path(plugin).expanduser().resolve()))
    return structured(Recipe, _spread_batch(values, where), where, RecipeError)


@cache
def _read_plugin(path: str) -> None:
    """Run a file of Python, once in a process."""
    try:
        runpy.run_path(path)
    except OSError as error:
        raise RecipeError(f"the plug-in {path} cannot be read: {error}") from error


def plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON values; `recipe_of` reads them back."""
    return to_jsonable_python(recipe)


def _spread_batch(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Give every phase the settings of the recipe's own `batch` that the phase does not set itself."""
    spread = dict(values)
    common = spread.pop(_BATCH, None)
    phases = values.get("phases")
    if common is not None:
        structured(BatchSettings, common, where, RecipeError, _BATCH)
        if isinstance(phases, list) and all(isinstance(phase, dict) for phase in phases):
            spread["phases"] = [{**phase, _BATCH: {**common, **(phase.get(_BATCH) or {})}} for phase in phases]
    return spread


def _override(values: dict[str, Any], text: str) -> None:
    """Put one `dotted.key=value` into a recipe's values, in place."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"{text!r} is no override; write KEY=VALUE, as phases.warmup.lr=1e-3")
    *parents, last = key.strip().split(".")
    holder: Any = values
    for depth, part in enumerate(parents):
        holder = _descend(holder, part, ".".join(parents[: depth + 1]))
    try:
        parsed = parse_yaml(value) if value.strip() else ""
    except yaml.YAMLError as error:
        raise RecipeError(f"the value of {text!r} is not YAML: {error}") from error
    if not isinstance(holder, list):
        holder[last] = parsed
    elif parsed is None:
        del holder[_place(holder, last, key)]
    else:
        holder[_place(holder, last, key)] = parsed


def _descend(holder: Any, part: str, key: str) -> Any:
    if isinstance(holder, list):
        return holder[_place(holder, part, key)]
    child = holder.get(part)
    if child is None:
        child = holder[part] = {}
    if not isinstance(child, dict | list):
        raise RecipeError(f"{key} is a value, and has no keys of its own")
    return child


def _place(items: list[Any], part: str, key: str) -> int:
    """Place of a list's item, by number or by name."""
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    known = ", ".join(str(name) for name in names if name) or f"0..{len(items) - 1}"
    raise RecipeError(f"{key}: there is no item {part!r}; there are {known}")
