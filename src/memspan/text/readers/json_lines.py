"""JSON, one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from memspan.text.readers.formats import FORMATS, BadRecord, Record, Records, checked
from memspan.types import JSON


def read_json_lines(lines: Iterable[str]) -> Iterator[Record | BadRecord]:
    """Yield a record for each line that is not blank; the lines are counted from 1."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            values = parse_json_object(line)
            yield BadRecord(number, "not a JSON object") if values is None else checked(Record(number, values))


def parse_json_object(line: str) -> dict[str, JSON] | None:
    """Return the object, or None where `line` is anything else. NaN and Infinity are no JSON."""
    try:
        value = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


for _name in ("jsonl", "ndjson"):
    FORMATS.register(_name, Records(read_json_lines))
