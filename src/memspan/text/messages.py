"""Messages as chat APIs write them (OpenAI's chat and responses, Anthropic's, Gemini's): who said what, and when."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from memspan.dates import normal_date

ASKERS = ("user", "human")
"""Roles of who is served; all others answer, call tools, or give what tools returned."""

_ROLES = (*ASKERS, "assistant", "model", "system", "developer", "tool", "function")
_INSTRUCTIONS = ("system", "developer")
THOUGHTS = ("thinking", "redacted_thinking", "reasoning")
"""Types of parts that hold what a model thought, which is no part of what was said."""
CALLS = ("tool_use", "server_tool_use", "function_call", "custom_tool_call", "tool_call")
"""Types of parts that call a tool."""
_RESULTS = ("tool_result", "function_call_output", "custom_tool_call_output", "function_response")
TIMES = ("timestamp", "created_at", "create_time", "createdAt", "time")
"""Keys that hold when something was said."""
_MILLISECONDS = 1e11
"""From this number on a time is in milliseconds since 1970."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """What somebody said.

    Attributes:
        role: as the API calls it; "tool" of what a tool returned.
        who: the name, or else the role.
        when: ISO 8601; empty where it is not known.
    """

    role: str
    who: str
    text: str
    when: str = ""


def called(name: str, arguments: Any) -> str:
    """How a call of a tool is written."""
    given = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f"Called {name or 'a tool'}({given})"


def returned(name: str, result: str) -> str:
    """How what a tool returned is written."""
    return f"{name or 'The tool'} returned: {result}"


def is_message(value: Any) -> bool:
    """Whether a JSON value is a message, by its keys and its role."""
    return isinstance(value, dict) and value.get("role") in _ROLES and ("content" in value or "parts" in value)


def read_messages(messages: Iterable[Any]) -> list[Utterance]:
    """What was said, in order, without instructions and thoughts. Pictures and the like are named: `(image)`.

    Raises:
        ValueError: one is no message; says which, and why.
    """
    if isinstance(messages, str | bytes | Mapping):
        raise ValueError(f"messages are a list, also of one, not {type(messages).__name__}")
    said = list[Utterance]()
    for place, message in enumerate(messages):
        try:
            said += _of_message(message)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"message {place}: {error}") from None
    return said


def exchanges(said: Sequence[Utterance]) -> list[list[Utterance]]:
    """What was said in pieces: whatever is asked or told, with all that was answered to it."""
    found: list[list[Utterance]] = []
    for one in said:
        if not found or one.role in ASKERS:
            found.append([])
        found[-1].append(one)
    return found


def _of_message(message: Any) -> Iterator[Utterance]:
    if not isinstance(message, Mapping):
        raise ValueError(
            f'a message is an object as {{"role": "user", "content": "..."}}, not {type(message).__name__}'
        )
    when, kind = _when(message), message.get("type")
    if kind in THOUGHTS:
        return
    if kind in CALLS or kind in _RESULTS or (isinstance(kind, str) and "role" not in message and kind != "message"):
        yield from _merged([replace(one, when=when) for one in _of_part(message, "assistant", "assistant")])
        return
    role = message.get("role")
    if not isinstance(role, str) or not role.strip():
        raise ValueError("it has no role, as user or assistant")
    if role in _INSTRUCTIONS:
        return
    name = message.get("name")
    role = "tool" if role == "function" else role
    who = name if isinstance(name, str) and name.strip() else role
    said = [one for part in _parts(message) for one in _of_part(part, role, who)]
    calls = [*(message.get("tool_calls") or ()), *([one] if (one := message.get("function_call")) else ())]
    said += [Utterance(role, who, call_text(call)) for call in calls]
    yield from _merged([replace(one, when=when) for one in said])


def _parts(message: Mapping[str, Any]) -> list[Any]:
    content = message.get("content", message.get("parts"))
    if content is None:
        return [message["refusal"]] if isinstance(message.get("refusal"), str) else []
    if isinstance(content, str | Mapping):
        return [content]
    if not isinstance(content, Sequence):
        raise ValueError(f"its content is a text or a list of parts, not {type(content).__name__}")
    return list(content)


def _of_part(part: Any, role: str, who: str) -> Iterator[Utterance]:
    if isinstance(part, str):
        yield Utterance(role, who, part)
        return
    if not isinstance(part, Mapping):
        raise ValueError(f"a part of its content is a text or an object, not {type(part).__name__}")
    kind = part.get("type")
    text = part.get("text") if isinstance(part.get("text"), str) else part.get("refusal")
    if kind in THOUGHTS:
        return
    if kind in CALLS:
        yield Utterance(role, who, call_text(part))
    elif kind in _RESULTS:
        result = part.get("output", part.get("content"))
        inner = [result] if isinstance(result, str | Mapping) else list(result or ())
        yield from (replace(one, role="tool", who="tool") for piece in inner for one in _of_part(piece, "tool", "tool"))
    elif isinstance(text, str):
        yield Utterance(role, who, text)
    else:
        yield Utterance(role, who, f"({_name_of(kind)})")


def _name_of(kind: Any) -> str:
    """What stands for a part that is no text: `image` of `input_image` and `image_url`."""
    name = kind if isinstance(kind, str) and kind else "something else than text"
    return name.removeprefix("input_").removeprefix("output_").removesuffix("_url")


def call_text(call: Any) -> str:
    """How a call of a tool is written that an API gives as an object.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(call, Mapping):
        raise ValueError(f"a call of a tool is an object, not {type(call).__name__}")
    inner = next((call[key] for key in ("function", "custom") if isinstance(call.get(key), Mapping)), call)
    arguments = next((inner[key] for key in ("arguments", "input", "args") if key in inner), "")
    return called(str(inner.get("name") or ""), arguments)


def _merged(said: Sequence[Utterance]) -> Iterator[Utterance]:
    """Pieces that one said one after the other are one; what is blank is none."""
    kept: list[Utterance] = []
    for one in said:
        if not one.text.strip():
            continue
        if kept and (kept[-1].role, kept[-1].who) == (one.role, one.who):
            kept[-1] = replace(one, text=f"{kept[-1].text}\n{one.text}")
        else:
            kept.append(one)
    return iter(kept)


def _when(message: Mapping[str, Any]) -> str:
    """When a message was written: by `date`, which must be one, or by another key that holds a time."""
    if (date := message.get("date")) is not None:
        return normal_date(date)
    found = (time_of(message[key]) for key in TIMES if key in message)
    return next(filter(None, found), "")


def time_of(value: Any) -> str:
    """An ISO 8601 time, or seconds or milliseconds since 1970, as an ISO time; empty where it is none."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return normal_date(value)
    try:
        seconds = float("nan" if isinstance(value, bool) else value)
        seconds = seconds / 1000 if abs(seconds) >= _MILLISECONDS else seconds
        return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat(timespec="seconds")
    except (TypeError, ValueError, OverflowError, OSError):
        return ""
