"""Plain text and light markup, with the front matter (YAML or TOML) that may stand before it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from memspan.text.readers.formats import FORMATS, Content, DecodedText, find_key, is_text
from memspan.types import JSON

_CODE_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6}[ \t]+(?P<atx>.*?)[ \t]*#*[ \t\r]*$|^(?P<underlined>\S.*)\n=+[ \t\r]*$", re.MULTILINE)
_FRONT_MATTER = re.compile(
    r"\A(?:---[ \t]*\r?\n(?P<yaml>.*?)^(?:---|\.\.\.)|\+\+\+[ \t]*\r?\n(?P<toml>.*?)^\+\+\+)[ \t]*(?:\r?\n|\Z)",
    re.MULTILINE | re.DOTALL,
)
_LONGEST_FRONT_MATTER = 2**16


def read_markup(text: str) -> Content:
    """A text titled by its first heading."""
    heading = _HEADING.search(_CODE_FENCE.sub("", text))
    return Content(text, (heading["atx"] or heading["underlined"] or "") if heading else "")


def read_after_front_matter(text: str, read: Callable[[str], Content]) -> Content:
    """What `read` makes of a text, with the title and metadata of its front matter, which is left out of the text.

    What is no mapping in YAML or TOML is text, not front matter; so is one without a text after it.
    """
    values, body = front_matter(text)
    content = read(body if body.strip() else text)
    title_key = find_key(values, ("title",), lambda value: isinstance(value, str | int) and bool(str(value).strip()))
    title = content.title if title_key is None else str(values[title_key])
    others = {key: value for key, value in values.items() if key != title_key}
    return Content(content.text, title, {**content.metadata, **others})


def front_matter(text: str) -> tuple[Mapping[str, JSON], str]:
    """The values that stand before a text, and the text after them."""
    match = _FRONT_MATTER.match(text[:_LONGEST_FRONT_MATTER])
    if match is None:
        return {}, text
    try:
        found = tomllib.loads(match["toml"].replace("\r\n", "\n")) if match["yaml"] is None else _yaml(match["yaml"])
        values = json.loads(json.dumps(found, default=_iso))
    except (ValueError, TypeError, RecursionError, OverflowError):
        return {}, text
    is_values = isinstance(values, dict) and bool(values) and is_text(values)
    return (values, text[match.end() :]) if is_values else ({}, text)


def _iso(value: Any) -> str:
    """A date or time of TOML."""
    return value.isoformat()


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.load(text, _loader())
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


@cache
def _loader() -> Any:
    """YAML 1.2: dates stay as they are written, `no` is a word. Aliases are refused: they grow without end."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("an alias")
            return super().compose_node(parent, index)

    Loader.yaml_implicit_resolvers = {}
    for tag, pattern, first in (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
        ("float", r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+0123456789.")),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})\\Z"), first)
    return Loader


for _name in ("txt", "text"):
    FORMATS.register(_name, DecodedText(partial(read_after_front_matter, read=Content)))
for _name in ("md", "markdown", "rst"):
    FORMATS.register(_name, DecodedText(partial(read_after_front_matter, read=read_markup)))
