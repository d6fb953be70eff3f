"""Conversations as documents, and files of messages as chat APIs write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from memspan.text.messages import TIMES, is_message, read_messages, time_of
from memspan.text.readers.formats import TEXT_KEYS, Content, FilePart, Unreadable, find_key, is_text
from memspan.types import JSON

_MAX_BYTES = 512 << 20
"""Of a file of conversations, which is read as a whole."""

_SESSIONS = ("conversation_id", "session_id", "thread_id", "session")
_IDS = ("id", *_SESSIONS, "uuid", "custom_id")
_TITLES = ("title", "name")
_DATES = ("date", *TIMES)


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """A message. `when` is an ISO date and time, empty where it is not known; `clock` as it is shown."""

    when: str
    clock: str
    who: str
    text: str

    def __str__(self) -> str:
        said = f"{self.who}: {self.text}" if self.who else self.text
        return f"[{self.clock}] {said}" if self.clock else said


def conversation(said: Sequence[ChatMessage], title: str, /, **metadata: JSON) -> Content:
    people: list[JSON] = [*dict.fromkeys(one.who for one in said if one.who)]
    text = clean("\n".join(map(str, said)))
    when = next((one.when for one in said if one.when), "")
    return Content(text, title, {"participants": people, **({"date": when} if when else {}), **metadata})


def by_day(said: Iterable[ChatMessage], title: str, **metadata: JSON) -> Iterator[FilePart]:
    """A document for each day, called by its date."""
    for day, of_day in groupby(said, key=lambda one: one.when[:10]):
        yield FilePart(day, conversation(list(of_day), f"{title}, {day}", date=day, **metadata))


def clean(text: str) -> str:
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def another_name(name: str, number: int, names: set[str]) -> str:
    """The name of a part, with its number where another has the name; it joins the names."""
    name = f"{name}-{number}" if name in names else name
    names.add(name)
    return name


def whole_json(path: Path) -> Any:
    if path.stat().st_size > _MAX_BYTES:
        raise Unreadable(f"a chat of more than {_MAX_BYTES >> 20} MiB; export it in parts")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"malformed JSON: {error}") from error


def clock(when: str) -> str:
    return when[:16].replace("T", " ")


# Messages -------------------------------------------------------------------------------------------------------------


def messages_reader(path: Path) -> Callable[[Path], Iterator[FilePart]] | None:
    """How a JSON file is read that holds messages (`[{"role": ..., "content": ...}]`), conversations
    (`{"messages": [...]}`), or lines of either; None where it does not."""
    try:
        if path.suffix.lower() == ".json":
            whole = whole_json(path)
            values = whole if isinstance(whole, list) and whole else [whole]
            first, read = values[0], lambda _: _read_messages(values)
        else:
            with path.open("rb") as file:
                first = json.loads(next((line for line in file if line.strip()), b""))
            read = lambda path: _read_messages(_lines(path))  # noqa: E731
    except (ValueError, RecursionError, Unreadable):
        return None
    return read if is_message(first) or _messages_of(first) is not None else None


def _read_messages(values: Sequence[Any]) -> Iterator[FilePart]:
    """A document for each conversation; the file's own where it is one."""
    names = set[str]()
    for number, one in enumerate(found := list(_conversations(values)), start=1):
        name = str(number) if isinstance(one, Unreadable) else _name_of(one, str(number))
        name = another_name(name, number, names)
        yield FilePart("" if len(found) == 1 else name, one if isinstance(one, Unreadable) else _content(one))


def _conversations(values: Sequence[Any]) -> Iterator[Mapping[str, Any] | Unreadable]:
    """The conversations of a file, each as an object that has `messages`."""
    loose: dict[str, list[Any]] = {}
    for number, value in enumerate(values, start=1):
        if isinstance(value, dict) and "role" in value:
            loose.setdefault(_name_of({key: value.get(key) for key in _SESSIONS}, ""), []).append(value)
        elif isinstance(value, Unreadable):
            yield value
        elif (messages := _messages_of(value)) is None:
            yield Unreadable(f"item {number} is no message and no conversation")
        else:
            yield {**(value if isinstance(value, dict) else {}), "messages": messages}
    for name, messages in loose.items():
        yield {"id": name, "messages": messages}


def _lines(path: Path) -> list[Any]:
    values: list[Any] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                values.append(Unreadable(f"line {number}: malformed JSON: {error}"))
    return values


def _messages_of(value: Any) -> list[Any] | None:
    """The messages of a conversation; None of anything else, also of a record that has a text."""
    if isinstance(value, dict) and not find_key(value, TEXT_KEYS):
        value = value.get("messages")
    return value if isinstance(value, list) and value and is_message(value[0]) else None


def _name_of(conversation: Mapping[str, Any], default: str) -> str:
    name = next((conversation[key] for key in _IDS if conversation.get(key) not in (None, "")), default)
    return str(name).replace("/", "_") if isinstance(name, str | int) else default


def _content(one: Mapping[str, Any]) -> Content | Unreadable:
    try:
        said = read_messages(one["messages"])
    except ValueError as error:
        return Unreadable(str(error))
    if not said:
        return Unreadable("a conversation without text")
    title = next((one[key] for key in _TITLES if isinstance(one.get(key), str)), "")
    when = next(filter(None, (time_of(one[key]) for key in _DATES if key in one)), "")
    own = one.get("metadata")
    values = {**one, **(own if isinstance(own, dict) else {})}
    kept = {key: value for key, value in values.items() if isinstance(value, str | int | float) and is_text(value)}
    lines = [ChatMessage(one.when, clock(one.when), one.who, one.text) for one in said]
    metadata = {key: value for key, value in kept.items() if key not in (*_TITLES, *_DATES)}
    return conversation(lines, clean(title), **{**metadata, **({"date": when} if when else {})})
