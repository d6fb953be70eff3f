"""Records of published files in typed form: what a field must be stands in a dataclass, and errors name the field."""

from __future__ import annotations

import functools
import json
import re
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, TypeAdapter, ValidationError

T = TypeVar("T")


def _as_text(value: Any) -> Any:
    """A number as text, and a text without white space around it; anything else as it is."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value).strip() if is_number or isinstance(value, str) else value


def as_list(value: Any) -> Any:
    """A list as it is, one alone as a list, and null as none."""
    return [] if value is None else value if isinstance(value, list) else [value]


def _decoded(value: Any) -> Any:
    """What a text is the JSON of; some files keep lists in texts."""
    return json.loads(value) if isinstance(value, str) else value


def _rows(value: Any) -> Any:
    """Rows of a title and a value, also where a file keeps columns: `{"title": [...], "sentences": [...]}`."""
    if not isinstance(value, dict):
        return value
    if lone := next((name for name, column in value.items() if not isinstance(column, list)), None):
        raise ValueError(f"the column {lone!r} must be a list")
    names = sorted(value, key=lambda name: name != "title")
    return list(zip(*(value[name] for name in names), strict=True))


Text = Annotated[str, BeforeValidator(_as_text)]
"""A text or a number."""

Texts = Annotated[list[Text], BeforeValidator(as_list)]
"""Texts or numbers: a list, one alone, or null for none."""

JsonTexts = Annotated[list[Text], BeforeValidator(_decoded)]
"""Texts or numbers: a list, or a text that is the JSON of one."""

Paragraphs = Annotated[list[tuple[Text, list[str]]], BeforeValidator(_rows), BeforeValidator(_decoded)]
Facts = Annotated[list[tuple[Text, int]], BeforeValidator(_rows), BeforeValidator(_decoded)]


_adapter = functools.cache(TypeAdapter[Any])


def read_as(kind: type[T], record: Any, where: str = "") -> T:
    """A record, or a part of one, as a dataclass. Fields that the class lacks are passed over.

    Args:
        where: the field that the part is, for messages.

    Raises:
        ValueError: a field is missing, or has a value that it cannot have; the message names it.
    """
    try:
        return _adapter(kind).validate_python(record)
    except ValidationError as invalid:
        found = invalid.errors()[0]
        place = where
        for part in found["loc"]:
            place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
        if found["type"] == "missing":
            raise ValueError(f"the key {place!r} is missing") from invalid
        message = found["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        message = re.sub("a dictionary or an instance of .*", "an object", message)
        raise ValueError(f"{place or 'the record'}: {message}, not {str(found['input'])[:60]!r}") from invalid
