"""Values from YAML or the command line become settings here and nowhere else: dataclasses that pydantic checks.

A settings class is a `pydantic.dataclasses.dataclass` with `STRICT`, whose annotations say what a field may be. What
needs two fields is checked in its `__post_init__`, by a `ValueError`. Every error names file, key and what it may be.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from memspan.errors import MemspanError

STRICT = ConfigDict(extra="forbid")

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Above0 = Annotated[float, Field(gt=0)]
AtLeast0 = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from error
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""A list of names, or one alone."""

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as a text; here it is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """The plain values of a text of YAML."""
    return yaml.load(text, _Loader)


def read_yaml(path: Path, error: type[MemspanError]) -> Any:
    """The plain values of a YAML file. Raises `error` where it cannot be read, or is none."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as reason:
        raise error(f"{path} cannot be read: {reason}") from reason
    except yaml.YAMLError as reason:
        raise error(f"{path} is not YAML: {reason}") from reason


def structured(cls: type[T], values: Any, where: str, error: type[MemspanError], key: str = "") -> T:
    """Settings of plain values, as YAML gives them.

    Args:
        where: the file that they are from, for messages.
        key: under which they stand there.

    Raises:
        MemspanError: of the class `error`; a key is unknown, missing or has a value that it cannot have.
    """
    try:
        # As JSON, lists are tuples, and nothing else is taken for what it is not.
        return TypeAdapter(cls).validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as invalid:
        found = min(
            invalid.errors(), key=lambda one: one["type"] != _UNKNOWN
        )  # a key that is lacking is often misspelt
        raise error(f"{where}: {_message(cls, found, key)}") from invalid


_UNKNOWN = "unexpected_keyword_argument"
# What pydantic calls them, and what people who write YAML do.
_WANTED = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "a text",
    "a valid boolean": "true or false",
    "a valid array": "a list",
    "an object": "a table of keys and values",
}


def _message(cls: type[Any], found: Any, prefix: str) -> str:
    place, kind, message = [part for part in found["loc"] if part != "[key]"], found["type"], str(found["msg"])
    key = ".".join(map(str, [prefix, *place] if prefix else place))
    if kind == _UNKNOWN:
        known = _keys(cls, place[:-1])
        close = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        return f"unknown key {key!r}; " + (f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}")
    if kind == "missing":
        return f"{key} is missing"
    if kind == "value_error":
        return f"{key}: {found['ctx']['error']}" if key else str(found["ctx"]["error"])
    if message.startswith("Input should be "):
        wanted = message.removeprefix("Input should be ")
        wanted = _WANTED.get(wanted, wanted)
        return f"{key or 'the whole'} must be {wanted}, not {found['input']!r}"
    return f"{key}: {message}"


def _keys(kind: Any, place: Sequence[str | int]) -> list[str]:
    """The keys of the table at a place in a class."""
    for part in place:
        if dataclasses.is_dataclass(kind):
            kind = get_type_hints(kind)[str(part)]
        else:  # an item of a tuple, or a value of a mapping
            kind = next(arg for arg in reversed(get_args(kind)) if arg is not Ellipsis)
        if get_origin(kind) in (Union, types.UnionType):
            kind = next(arg for arg in get_args(kind) if arg is not type(None))
    return [field.name for field in dataclasses.fields(kind)]
