"""The context to answer in: the question with as much of the evidence before it as there is room for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from memspan.dates import date_key
from memspan.errors import QuestionError
from memspan.generate.decode import context_room
from memspan.generate.finder import passages_of
from memspan.generate.passed import turns_of
from memspan.model.convert import LoadedModel
from memspan.text.template import Context
from memspan.types import Evidence, Turn


class FittedContext(NamedTuple):
    """A context, how many of the documents that were found are in it, and the tokens those take."""

    context: Context
    used: int
    tokens: int


def room_for(loaded: LoadedModel, max_new_tokens: int, context_tokens: int | None) -> int:
    """Tokens a context may have: as many as the model has room for beside an answer, or fewer where that is wished."""
    room = context_room(loaded, max_new_tokens)
    return room if context_tokens is None else min(room, context_tokens)


def fitted_context(
    loaded: LoadedModel,
    question: str,
    found: Sequence[Evidence],
    room: int,
    *,
    before: Sequence[Evidence] = (),
    silent: Collection[int] = (),
    injected_tokens: int | None = None,
    history: Sequence[Turn] = (),
    grounded: bool = False,
) -> FittedContext:
    """Put documents before a question, the oldest first, so that of two that disagree the later is read last.

    Whatever of `found` does not fit is left out, the worst first. A question that is too long by itself is not refused
    here.

    Args:
        found: documents to put in, best first.
        room: tokens of the whole context, at most.
        before: documents that were put in before; they stay in.
        silent: ids of documents of `before` that do not route.
        injected_tokens: of the texts of `found`, at most; None: only `room` bounds them.
        history: what was said before.
        grounded: further documents are read from latents.
    """
    template = loaded.template
    used = len(found)
    while True:
        new = found[:used]
        dated = sorted([*before, *new], key=lambda item: (date_key(item.date), item.document_id))
        context = template.context(question, passages_of(dated), silent, history, grounded)
        tokens = template.count_tokens(template.passages(passages_of(new))) if new else 0
        if not used or (len(context.ids) <= room and (injected_tokens is None or tokens <= injected_tokens)):
            return FittedContext(context, used, tokens)
        used -= 1


def question_of(messages: Sequence[tuple[str, str]]) -> tuple[str, list[Turn]]:
    """The question of a conversation, its last message, and what was said before it.

    Where tools were called for the last question, and have answered, their results stand before it.

    Args:
        messages: role and text of each, oldest first; what is not an "assistant"'s or "tool"'s is asked or told.

    Raises:
        QuestionError: the last message is not a user's, or empty.
    """
    *before, (role, question) = messages or [("", "")]
    asked = max((place for place, (said_by, _) in enumerate(before) if said_by == "user"), default=-1)
    if role == "tool" and asked >= 0:
        (role, question), before = before[asked], [*before[:asked], *messages[asked + 1 :]]
    if role != "user" or not question.strip():
        raise QuestionError("the last message must be a user's, and not empty")
    return question, turns_of(before)


def fitted_history(loaded: LoadedModel, history: Sequence[Turn], room: int) -> tuple[Turn, ...]:
    """The newest turns that take no more than half the room; what has no answer (instructions) always stays.

    Args:
        room: tokens of the whole context, at most.
    """
    kept = list(history)
    while len(loaded.template.history(kept)) > room // 2:
        oldest = next((place for place, turn in enumerate(kept) if turn.answer), None)
        if oldest is None:
            break
        del kept[oldest]
    return tuple(kept)
