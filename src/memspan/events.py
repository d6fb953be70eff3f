"""What happens while a question is answered, in order: rounds, pieces of text, and the whole answer at last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memspan.types import Answer, Round


@dataclass(frozen=True, slots=True)
class RoundStarted:
    """An event: a round begins, with this query."""

    number: int
    query: str


@dataclass(frozen=True, slots=True)
class RoundDone:
    """An event: documents were chosen and their text went in."""

    round: Round


@dataclass(frozen=True, slots=True)
class TextWritten:
    """An event: a further piece of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class CallWritten:
    """An event: a further piece of a call of a tool, as OpenAI streams it."""

    delta: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Done:
    """An event, the last one: the whole answer."""

    answer: Answer


Event = RoundStarted | RoundDone | TextWritten | CallWritten | Done
