"""What a chat request holds for another model alone: tools that it may call, the form of its answer, and calls of tools
with their results in the conversation. It is passed on as it was sent; the memory model reads none of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memspan.generate.answerer import Message
from memspan.types import Turn

JSON_FORMATS = ("json_object", "json_schema")
# Bytes of UTF-8 that a token holds at least, on average: of English it holds four, of Chinese a character.
BYTES_PER_TOKEN = 3
_SPEAKERS = ("user", "assistant", "tool", "function")
_ASKED_FOR_JSON = """\
Answer from the documents alone, with the JSON that is asked for and nothing else, without numbers of documents. Where
documents disagree, the later date holds."""
_MAY_CALL = """
Where a tool serves the question better than the documents, call it. What tools return counts as documents do, without a
number."""


@dataclass(frozen=True, slots=True)
class ChatTurn(Turn):
    """A turn in which tools were called.

    Attributes:
        messages: all that was said in it, in order.
    """

    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Passed:
    """What is passed on with a question.

    Attributes:
        fields: of the request: `tools`, `tool_choice`, `parallel_tool_calls`, `response_format`.
        after: what was said after the question: calls of tools and their results.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    after: tuple[Message, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.fields or self.after)

    @property
    def is_json(self) -> bool:
        """Whether the answer is to be JSON, in which nothing may be marked."""
        return self.fields.get("response_format", {}).get("type") in JSON_FORMATS

    @property
    def tokens(self) -> int:
        """What the fields take of a model's room at most, nearly always."""
        return len(json.dumps(self.fields)) // BYTES_PER_TOKEN if self.fields else 0

    def instructions(self, usual: str, reading: str) -> str:
        """What another model is told.

        Args:
            usual: of a question without tools or format.
            reading: how documents stand in the question.
        """
        told = f"{reading}\n{_ASKED_FOR_JSON}" if self.is_json else usual
        return told + _MAY_CALL if self.fields.get("tools") else told


NOTHING_PASSED = Passed()


def turns_of(messages: Iterable[tuple[str, str]]) -> list[Turn]:
    """Messages (role and text) as turns; instructions, and what was never answered, are turns without an answer."""
    turns: list[Turn] = []
    for role, text in ((role, text.strip()) for role, text in messages):
        if not text:
            continue
        if role not in ("assistant", "tool"):
            turns.append(Turn(text))
        elif turns and not turns[-1].answer:
            turns[-1] = Turn(turns[-1].question, text)
        else:
            turns.append(Turn("", text))
    return turns


def conversation_of(said: Sequence[tuple[Message, str]]) -> tuple[list[Turn], tuple[Message, ...]]:
    """What was said before the last question of a conversation, and after it.

    Args:
        said: messages, and what each says in words; one is a "user"'s.
    """
    asked = max(place for place, (message, _) in enumerate(said) if message.role == "user")
    parts: list[list[tuple[Message, str]]] = [[]]
    for one in said[:asked]:
        if one[0].role == "user":
            parts.append([])
        parts[-1].append(one)
    turns = [turn for part in parts for turn in _turns_of(part)]
    return turns, tuple(message for message, _ in said[asked + 1 :])


def _turns_of(part: Sequence[tuple[Message, str]]) -> Iterable[Turn]:
    """The turns of a user's message and what followed it."""
    if not any(message.fields for message, _ in part):
        return turns_of(("tool" if message.role == "function" else message.role, text) for message, text in part)
    question, rest = (part[0][1], part[1:]) if part[0][0].role == "user" else ("", part)
    answer = "\n".join(text for _, text in rest if text)
    messages = [message if message.role in _SPEAKERS else message._replace(role="user") for message, _ in part]
    return [ChatTurn(question, answer, tuple(messages))]


def add_delta(calls: list[dict[str, Any]], delta: Mapping[str, Any]) -> None:
    """Add a piece of a call, as it is streamed, to the calls so far."""
    if delta["index"] == len(calls):
        calls.append({name: dict(part) if isinstance(part, Mapping) else part for name, part in delta.items()})
        del calls[-1]["index"]
        return
    kind, field_name = ("custom", "input") if "custom" in delta else ("function", "arguments")
    calls[delta["index"]][kind][field_name] += delta[kind][field_name]
