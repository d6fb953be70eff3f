"""Another language model that writes answers: what memspan asks of one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from memspan.generate.sampling import Sampling


class Message(NamedTuple):
    """One message of a chat: "system", "user", "assistant" or "tool", and what it says.

    Attributes:
        fields: what else it has, as OpenAI writes it: `tool_calls`, `tool_call_id`.
    """

    role: str
    text: str
    fields: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """The end of an answer: "stop" or "length" (or another word of the endpoint's), and tokens as its server counts
    them, 0 where it does not."""

    finish_reason: str = "stop"
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a call of a tool, as OpenAI streams it: the first of a call has its number, id, type and name."""

    delta: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NextSearch:
    """What another model wants to look up next.

    Attributes:
        query: empty: it has read enough. None: it named nothing that can be searched for.
    """

    query: str | None
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0


@runtime_checkable
class Searcher(Protocol):
    """An answerer that can lead rounds: it says, by a tool call, what to look up next."""

    def look_up(self, messages: Sequence[Message]) -> Iterator[NextSearch | None]:
        """Yield None while nothing is known yet, and at last what is wanted; nothing where it can call no tools."""
        ...


@runtime_checkable
class ToolCaller(Protocol):
    """An answerer that tools, and the form of its answer, can be passed on to."""

    def call(
        self, messages: Sequence[Message], sampling: Sampling, fields: Mapping[str, Any]
    ) -> Iterator[str | CallPiece | AnswerEnd | None]:
        """As `Answerer.stream`, with further fields of a request; yields pieces of calls, too."""
        ...


class Answerer(Protocol):
    """Another model that writes answers: `Memory.open(answerer=...)`.

    Attributes:
        name: what it is called in answers.
        context: tokens that it has room for, its answer included.
    """

    @property
    def name(self) -> str: ...

    @property
    def context(self) -> int: ...

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str | AnswerEnd | None]:
        """Yield the answer's text piece by piece, None while there is none yet, and at last (or never) its end.

        Closing the iterator ends the answer.
        """
        ...


def check_answerer(given: object) -> None:
    """
    Raises:
        TypeError: it lacks what an answerer has. Nothing of it is asked.
    """
    parts = ("name", "context", "stream")
    if missing := [part for part in parts if inspect.getattr_static(given, part, None) is None]:
        raise TypeError(
            f"an answerer has {', '.join(parts)}; {type(given).__name__} lacks {', '.join(missing)} (an endpoint is "
            "memspan.Endpoint(URL, MODEL))"
        )
