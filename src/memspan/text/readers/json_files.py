"""JSON: one object a line (`.jsonl`), or in a `.json` file also an array of objects, or one object."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from memspan.text.readers.formats import FORMATS, BadRecord, Record, Records, Unreadable, checked
from memspan.text.readers.opening import LONGEST_TEXT, MIB
from memspan.types import JSON

_NO_OBJECT = "not a JSON object"
_DECODER = json.JSONDecoder()
_BLANKS = " \t\r\n"


def read_json_lines(lines: Iterable[str]) -> Iterator[Record | BadRecord]:
    """Yield a record for each line that is not blank; the lines are counted from 1."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            values = parse_json_object(line)
            yield BadRecord(number, _NO_OBJECT) if values is None else checked(Record(number, values))


def parse_json_object(line: str) -> dict[str, JSON] | None:
    """Return the object, or None where `line` is anything else. NaN and Infinity are no JSON."""
    try:
        value = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def read_json(pieces: Iterable[str]) -> Iterator[Record | BadRecord]:
    """Yield the records of a `.json` file, counted from 1: the items of its array, or its objects.

    An object that is the whole file is record 0. An array is read item by item.

    Raises:
        Unreadable: it is not JSON, or something else than objects.
    """
    text = _Values(pieces)
    first = text.next_character()
    if first == "[":
        yield from _items(text)
    elif first == "{":
        value = text.value()
        if not text.next_character():
            yield _record(0, value)
            return
        yield _record(1, value)
        yield from text.rest_as_lines() if text.is_line else _further(text)
    elif first:
        raise Unreadable("neither JSON objects nor an array of them; to read it as a text, name --format txt")


def wrapped(values: Mapping[str, JSON]) -> list[JSON] | None:
    """The one array of objects in an object, at most three objects deep: `{"data": [...]}`."""
    level: list[Mapping[str, JSON]] = [values]
    for _ in range(3):
        inner = [value for one in level for value in one.values()]
        arrays = [value for value in inner if isinstance(value, list) and value and isinstance(value[0], dict)]
        if arrays:
            return arrays[0] if len(arrays) == 1 else None
        level = [value for value in inner if isinstance(value, dict)]
    return None


def items_of(values: Iterable[JSON]) -> Iterator[Record | BadRecord]:
    """A record for each item of an array, counted from 1."""
    return (_record(number, value) for number, value in enumerate(values, start=1))


def _items(text: _Values) -> Iterator[Record | BadRecord]:
    text.skip()
    number = 0
    while text.next_character() != "]":
        number += 1
        value = text.value()
        if number == 1 and not isinstance(value, dict):
            raise Unreadable("an array, but not of JSON objects; to read it as a text, name --format txt")
        yield _record(number, value)
        if text.next_character() == ",":
            text.skip()
        elif text.next_character() != "]":
            raise Unreadable(f"not JSON after item {number}")
    text.skip()
    if text.next_character():
        raise Unreadable(f"goes on after its array of {number} items")


def _further(text: _Values) -> Iterator[Record | BadRecord]:
    number = 1
    while text.next_character():
        number += 1
        yield _record(number, text.value())


def _record(number: int, value: JSON) -> Record | BadRecord:
    return checked(Record(number, value)) if isinstance(value, dict) else BadRecord(number, _NO_OBJECT)


class _Values:
    """JSON values one after the other, from pieces of text that end anywhere; no more is kept than one value needs.

    Attributes:
        is_line: the last value stands on one line, alone.
    """

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces, self._text, self._at, self.is_line = iter(pieces), "", 0, False

    def next_character(self) -> str:
        """The next one that is not blank; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANKS:
                self._at += 1
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def skip(self) -> None:
        """Pass over the next character."""
        self._at += 1

    def value(self) -> JSON:
        """
        Raises:
            Unreadable: it is no JSON value, or too long, or too deep.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                if end < len(self._text) or not self._more():
                    after = self._text[end : end + 3].lstrip(" \t\r")
                    self.is_line = "\n" not in self._text[self._at : end] and after.startswith("\n")
                    self._at = end
                    return value
            except RecursionError as error:
                raise Unreadable("JSON that is nested too deep") from error
            except ValueError as error:
                if len(self._text) - self._at > LONGEST_TEXT:
                    message = f"not JSON, or one value of more than {LONGEST_TEXT // MIB} MiB; write one object a line"
                    raise Unreadable(message) from error
                if not self._more():
                    raise Unreadable(f"not JSON: {error}") from error

    def rest_as_lines(self) -> Iterator[Record | BadRecord]:
        """The records of the lines that follow."""
        number = 1
        rest = ""
        for piece in chain([self._text[self._at :].lstrip(" \t\r").removeprefix("\n")], self._pieces, ["\n"]):
            *lines, rest = (rest + piece).split("\n")
            for line in lines:
                number += 1
                if line.strip():
                    values = parse_json_object(line)
                    yield BadRecord(number, _NO_OBJECT) if values is None else checked(Record(number, values))
            if len(rest) > LONGEST_TEXT:
                raise Unreadable(f"line {number + 1} is longer than {LONGEST_TEXT // MIB} MiB; split it")

    def _more(self) -> bool:
        """Read as much again as there is, so that a long value is not tried at every piece."""
        found, size = [self._text[self._at :]], 0
        for piece in self._pieces:
            found.append(piece)
            size += len(piece)
            if size >= len(found[0]):
                break
        if size:
            self._text, self._at = "".join(found), 0
        return size > 0


FORMATS.register("json", Records(read_json, in_lines=False))
for _name in ("jsonl", "ndjson"):
    FORMATS.register(_name, Records(read_json_lines))
