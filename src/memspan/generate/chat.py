"""Answers by another model: what was found goes before the question, in a message of a chat (see `prompts`)."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from memspan.errors import MemspanError
from memspan.events import RoundDone, RoundStarted
from memspan.generate.answerer import AnswerEnd, Answerer, CallPiece, Message, NextSearch, Searcher, ToolCaller
from memspan.generate.citing import CitationChecker
from memspan.generate.interleave import Interleave, Plan, QuestionState, Reply, look_up, next_documents, read_documents
from memspan.generate.lexical import next_query, said_before
from memspan.generate.passed import NOTHING_PASSED, Passed, add_delta
from memspan.generate.prompts import (
    TOKENS_PER_MESSAGE,
    answer_messages,
    documents_text,
    estimated_tokens,
    look_up_messages,
    num_fitting,
    room_of,
)
from memspan.generate.sampling import Sampling
from memspan.generate.selectors import RetrievingSelector, SearchQuery
from memspan.types import Evidence, Round

if TYPE_CHECKING:
    from memspan.generate.finder import Finder
    from memspan.generate.lexical import TextFinder
    from memspan.model.convert import LoadedModel
    from memspan.text.template import Context

# Where an answer's length is not given. Others are asked for whole sentences.
DEFAULT_SAMPLING = Sampling(max_new_tokens=512)

# Chats under way at the same time, of many that are asked together.
_CHATS = 8
_ENDED = object()
_NOTHING_WANTED = NextSearch(None)


def check_plan(plan: Plan, answerer: Answerer) -> None:
    """
    Raises:
        MemspanError: the plan needs the memory model to answer.
    """
    if isinstance(plan.chooser, RetrievingSelector):
        raise MemspanError(
            f"with the selector {plan.selector} the memory model reads and answers itself; name another selector, or "
            f"let no other model ({answerer.name}) answer"
        )
    if plan.route_answer or not plan.documents:
        what = "route_answer" if plan.route_answer else "an answer without texts (max_documents 0)"
        raise MemspanError(f"{answerer.name} reads no latents, which {what} takes; leave it out")


def answering_by(
    answerer: Answerer,
    loaded: LoadedModel | None,
    finder: Finder | TextFinder,
    plan: Plan,
    sampling: Sampling,
    passed: Passed = NOTHING_PASSED,
) -> Interleave:
    """The round loop of another model; see `ChatRetriever` for `loaded`."""
    reading = ChatRetriever(loaded, finder, plan, answerer, sampling, passed)
    return Interleave(finder, reading, ChatWriter(answerer, sampling, passed), plan)


class ChatRetriever:
    """Documents found by search, as many as another model has room for."""

    def __init__(
        self,
        loaded: LoadedModel | None,
        finder: Finder | TextFinder,
        plan: Plan,
        answerer: Answerer,
        sampling: Sampling,
        passed: Passed = NOTHING_PASSED,
    ) -> None:
        """
        Args:
            loaded: the memory model, which routes; None where the plan's selector needs none.
        """
        self._loaded, self._finder, self._plan, self._passed = loaded, finder, plan, passed
        self._answerer, self._room = answerer, room_of(answerer, sampling, passed)
        if plan.context_tokens is not None:
            self._room = min(self._room, plan.context_tokens)

    def round(
        self, asked: Sequence[QuestionState], number: int
    ) -> Iterator[tuple[QuestionState, RoundStarted | RoundDone | None]]:
        started = time.perf_counter()
        wanted: dict[int, NextSearch] = {}
        if number > 1 and isinstance(self._answerer, Searcher):
            for _ in self._wanted(self._answerer, asked, wanted):
                yield asked[0], None
            for one in asked:
                if (want := wanted.get(id(one))) is not None and want.query == "":
                    yield one, RoundStarted(number, one.question)
                    yield one, RoundDone(self._enough(one, number, want))
        asked = [one for one in asked if one.ended == "more"]
        looks = [self._look(one, wanted.get(id(one))) for one in asked]
        for one, look in zip(asked, looks, strict=True):
            yield one, RoundStarted(number, look.query)
        found = look_up(self._finder, self._plan, looks) if asked else []
        seconds = {"select": time.perf_counter() - started}
        for one, look, ranked in zip(asked, looks, found, strict=True):
            want = wanted.get(id(one), _NOTHING_WANTED)
            done = Round(number, self._plan.selector, look.query, ranked.routed, timings=seconds)
            done = replace(done, written=want.query or "", num_written_tokens=want.num_new_tokens)
            chosen = next_documents(one, ranked, self._plan, self._finder, look.query, self._loaded, seconds)
            yield one, RoundDone(self._read(one, chosen, replace(done, reranker=self._plan.rerank)))

    def _enough(self, one: QuestionState, number: int, want: NextSearch) -> Round:
        """The round in which the other model said that it has read enough."""
        done = Round(number, self._plan.selector, one.question, num_written_tokens=want.num_new_tokens)
        return one.close_round(self._plan, done, "enough", 0)

    def _wanted(
        self, searcher: Searcher, asked: Sequence[QuestionState], wanted: dict[int, NextSearch]
    ) -> Iterator[None]:
        """Ask the other model what to look up next for every question; `wanted` is given what it says."""
        chats = [(one, searcher.look_up(look_up_messages(one.question, one.evidence, one.history))) for one in asked]
        running = list(chats)
        try:
            while running:
                steps = [(one, chat, next(chat, _ENDED)) for one, chat in running]
                for one, _, step in steps:
                    if isinstance(step, NextSearch):
                        wanted[id(one)] = step
                        one.num_prompt_tokens += step.num_prompt_tokens
                        one.num_new_tokens += step.num_new_tokens
                running = [(one, chat) for one, chat, step in steps if step is None]
                yield
        finally:
            for _, chat in chats:
                _close(chat)

    def _look(self, one: QuestionState, want: NextSearch | None) -> SearchQuery:
        needs = self._plan.chooser.needs
        if want is not None and want.query:
            routed = self._loaded.template.context(want.query) if self._loaded is not None and needs.routing else None
            return SearchQuery(want.query, routed)
        query = next_query(one.question, one.newest) if needs.words else one.question
        return SearchQuery(query, self._routed(one) if needs.routing else None, said_before(one.history))

    def _routed(self, one: QuestionState) -> Context:
        """What routes: the question, after what was said and found before, as far as the memory model reads it."""
        from memspan.generate.context import fitted_context, fitted_history, room_for

        assert self._loaded is not None, "a selector that routes has a model"
        room = room_for(self._loaded, 1, None)
        history = fitted_history(self._loaded, one.history, room)
        newest = [*reversed(one.evidence)] if self._plan.route_tokens == "all" else one.newest
        return fitted_context(self._loaded, one.question, newest, room, history=history).context

    def _read(self, one: QuestionState, chosen: Sequence[Evidence], done: Round) -> Round:
        """Take the documents that fit."""
        used, tokens = self._fitting(one, chosen)
        text = documents_text([*one.evidence, *chosen[:used]])
        return read_documents(one, self._plan, done, chosen, used, text, tokens)

    def _fitting(self, one: QuestionState, chosen: Sequence[Evidence]) -> tuple[int, int]:
        """How many of the documents fit, the worst left out first, and the tokens they may take."""
        limit, used = self._plan.injected_tokens, len(chosen)
        given = one.question, one.evidence
        while used := num_fitting(*given, chosen[:used], one.history, self._room, self._passed):
            blocks = documents_text(chosen[:used])
            tokens = estimated_tokens([Message("user", blocks)]) - TOKENS_PER_MESSAGE
            if limit is None or one.injected_tokens + tokens <= limit:
                return used, tokens
            used -= 1
        return 0, 0


class ChatWriter:
    """Another model writes the answers, each in a chat of its own, several at a time; its marks are checked."""

    def __init__(self, answerer: Answerer, sampling: Sampling, passed: Passed = NOTHING_PASSED) -> None:
        self.answerer, self.marks = answerer.name, not passed.is_json
        self._answerer, self._sampling, self._passed = answerer, sampling, passed

    def write(self, asked: Sequence[QuestionState], seconds: dict[str, float]) -> Iterator[Sequence[Reply]]:
        started = time.perf_counter()
        first: float | None = None
        replies = [Reply(num_prompt_tokens=x.num_prompt_tokens, num_new_tokens=x.num_new_tokens) for x in asked]
        rows = [self._row(one, reply) for one, reply in zip(asked, replies, strict=True)]
        running = list(rows)
        try:
            while running:
                running = [row for row in running if next(row, _ENDED) is not _ENDED]
                if first is None and any(reply.text for reply in replies):
                    first = time.perf_counter()
                yield replies
        finally:
            for row in rows:
                row.close()
        ended = time.perf_counter()
        first = ended if first is None else first
        seconds |= {"prefill": first - started, "routing": 0.0, "fetch": 0.0, "decode": ended - first}

    def _row(self, one: QuestionState, reply: Reply) -> Generator[None]:
        """One answer, a step at a time."""
        marks = CitationChecker(one.evidence)
        messages = answer_messages(one.question, one.evidence, one.history, self._passed)
        with closing(_said(self._answerer, messages, self._sampling, reply, self._passed)) as pieces:
            for piece in pieces:
                reply.text = marks.add(piece) if self.marks else reply.text + piece
                yield
        if self.marks:
            reply.text = marks.add("", final=True)
            reply.removed_citations, reply.said_none = marks.removed, marks.said_none


def written_by(
    answerer: Answerer, asked: Sequence[Sequence[Message]], sampling: Sampling
) -> Iterator[tuple[int, Reply]]:
    """What another model writes to each of several chats, with its place, as it is done; several at a time."""
    replies = [Reply() for _ in asked]
    waiting = list(enumerate(asked))
    running: dict[int, Generator[str]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < _CHATS:
                place, messages = waiting.pop(0)
                running[place] = _said(answerer, messages, sampling, replies[place])
            for place, pieces in list(running.items()):
                piece = next(pieces, None)
                replies[place].text += piece or ""
                if piece is None:
                    del running[place]
                    yield place, replies[place]
    finally:
        for pieces in running.values():
            pieces.close()


def _said(
    answerer: Answerer,
    messages: Sequence[Message],
    sampling: Sampling,
    reply: Reply,
    passed: Passed = NOTHING_PASSED,
) -> Generator[str]:
    """What another model writes, piece by piece, empty while nothing comes; end and calls are noted in the reply."""
    reply.finish_reason = "stop"
    if passed and isinstance(answerer, ToolCaller):
        stream = answerer.call(messages, sampling, passed.fields)
    else:
        stream = answerer.stream(messages, sampling)
    try:
        for piece in stream:
            if isinstance(piece, CallPiece) and passed.fields.get("tools"):
                add_delta(reply.calls, piece.delta)
                reply.new_calls.append(piece.delta)
            if isinstance(piece, AnswerEnd):
                reply.finish_reason = piece.finish_reason
                reply.num_prompt_tokens += piece.num_prompt_tokens
                reply.num_new_tokens += piece.num_new_tokens
            yield piece if isinstance(piece, str) else ""
    finally:
        _close(stream)


def _close(iterator: object) -> None:
    close = getattr(iterator, "close", None)  # one that is no generator has none
    if close is not None:
        close()
