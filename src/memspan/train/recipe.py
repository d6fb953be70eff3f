"""Recipes: a training run as a YAML file, read into typed settings. Unknown keys are refused by name."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from memspan.errors import RecipeError
from memspan.train.batch_settings import BatchSettings
from memspan.train.settings import Recipe

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
    values = _read_yaml(path)
    for override in overrides:
        _override(values, override)
    return recipe_of(values, str(path))


def recipe_of(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from plain values, as YAML gives them. Raises `RecipeError`."""
    return _build(Recipe, _spread_batch(values, where), where, "")


def plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON values; `recipe_of` reads them back."""
    return _as_json(recipe)


def _as_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: _as_json(getattr(value, name)) for name in _settable(type(value))}
    return [_as_json(item) for item in value] if isinstance(value, tuple) else value


def _settable(cls: type[Any]) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """The fields of a dataclass that a recipe may name, with their types.

    A field of type Any holds an object that is made when the run begins.
    """
    hints = get_type_hints(cls, localns={"FrozenMemory": Any})
    fields = dataclasses.fields(cls)
    return {field.name: (field, hints[field.name]) for field in fields if Any not in get_args(hints[field.name])}


def _spread_batch(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Give every phase the settings of the recipe's own `batch` that the phase does not set itself."""
    spread = dict(values)
    common = spread.pop(_BATCH, None)
    phases = values.get("phases")
    if common is not None:
        _build(BatchSettings, common, where, _BATCH)
        if isinstance(phases, list) and all(isinstance(phase, dict) for phase in phases):
            spread["phases"] = [{**phase, _BATCH: {**common, **(phase.get(_BATCH) or {})}} for phase in phases]
    return spread


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold keys and values, as `name: my-run`")
    return values


def _override(values: dict[str, Any], text: str) -> None:
    """Put one `dotted.key=value` into a recipe's values, in place."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"{text!r} is no override; write KEY=VALUE, as phases.warmup.lr=1e-3")
    *parents, last = key.strip().split(".")
    holder: Any = values
    for depth, part in enumerate(parents):
        holder = _descend(holder, part, ".".join(parents[: depth + 1]))
    parsed = yaml.safe_load(value) if value.strip() else ""
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


def _build(cls: type[Any], values: Any, where: str, key: str) -> Any:
    """A dataclass from a mapping."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where}: {key or 'a recipe'} must hold keys and values, not {values!r}")
    fields = _settable(cls)
    for name in values:
        if name not in fields:
            raise RecipeError(f"{where}: unknown key {_dotted(key, str(name))!r}{_nearest(str(name), fields)}")
    given = {name: _value(fields[name][1], value, where, _dotted(key, name)) for name, value in values.items()}
    lacking = [name for name, (field, _) in fields.items() if name not in given and _required(field)]
    if lacking:
        raise RecipeError(f"{where}: {_dotted(key, lacking[0])} is missing")
    try:
        return cls(**given)
    except ValueError as error:
        raise RecipeError(f"{where}: {f'{key}: ' if key else ''}{error}") from error


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def _dotted(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _value(kind: Any, value: Any, where: str, key: str) -> Any:
    """A value as its field's type wants it."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        inner = next(arg for arg in args if arg is not type(None))
        return None if value is None else _value(inner, value, where, key)
    if origin is Literal:
        if value not in args:
            raise RecipeError(f"{where}: {key} must be one of {', '.join(map(str, args))}, not {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise RecipeError(f"{where}: {key} must be a list, not {value!r}")
        return tuple(_value(args[0], item, where, f"{key}.{place}") for place, item in enumerate(value))
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, where, key)  # type: ignore[arg-type]
    return _scalar(kind, value, where, key)


def _scalar(kind: type, value: Any, where: str, key: str) -> Any:
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = float(value)  # YAML 1.1 reads 1e-4 as a text
    if type(value) is not kind:
        wanted = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[kind]
        raise RecipeError(f"{where}: {key} must be {wanted}, not {value!r}")
    return value
