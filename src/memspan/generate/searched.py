"""Reading what a search finds, and answering from it with the memory model (paper 3.5).

New text changes every state of the MSA layers, so they run for the whole active context in every round; the layers
below them run for its new tokens alone, where it grew at its end (`memspan.generate.state`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from memspan.events import Event, RoundDone, RoundStarted
from memspan.generate.context import fitted_context, room_for
from memspan.generate.finder import Finder, passages_of, routing_of
from memspan.generate.interleave import (
    Interleave,
    Plan,
    QuestionState,
    Reply,
    Retriever,
    look_up,
    next_documents,
    read_documents,
)
from memspan.generate.lexical import next_query, said_before
from memspan.generate.sampling import Sampling
from memspan.generate.selectors import RetrievingSelector, SearchQuery
from memspan.generate.state import RoundState
from memspan.model.convert import LoadedModel
from memspan.model.memory_api import LayerMemory
from memspan.routing.local import ReplayedMemory
from memspan.text.template import Context
from memspan.types import Evidence, LayerRouting, Round


class ContextRetriever(Retriever, Protocol):
    """A reading that makes the contexts in which the memory model answers."""

    def context(self, asked: QuestionState) -> Context:
        """The context to answer in."""
        ...

    def routed(self, asked: QuestionState) -> Sequence[LayerRouting] | None:
        """What the answer attends to, of every question alike; empty: to no latents. None: its context routes."""
        ...


class SearchRetriever:
    """Documents found by search, put before the question: the oldest first, so that of two that disagree the later is
    read last. Whatever of them does not fit is left out, the worst first."""

    def __init__(self, loaded: LoadedModel, finder: Finder, plan: Plan, sampling: Sampling) -> None:
        self._loaded, self._finder, self._plan, self._needs = loaded, finder, plan, plan.chooser.needs
        self._room = room_for(loaded, sampling.max_new_tokens, plan.context_tokens)
        self._contexts: dict[int, Context] = {}

    def round(self, asked: Sequence[QuestionState], number: int) -> Iterator[tuple[QuestionState, Event]]:
        started = time.perf_counter()
        looks = [self._look(one) for one in asked]
        for one, look in zip(asked, looks, strict=True):
            yield one, RoundStarted(number, look.query)
        found = look_up(self._finder, self._plan, looks)
        seconds = {"select": time.perf_counter() - started}
        for one, look, ranked in zip(asked, looks, found, strict=True):
            chosen = next_documents(one, ranked, self._plan, self._finder, look.query, self._loaded, seconds)
            done = Round(number, self._plan.selector, look.query, ranked.routed, timings=seconds)
            yield one, RoundDone(self._read(one, chosen, replace(done, reranker=self._plan.rerank)))

    def context(self, asked: QuestionState) -> Context:
        return self._contexts.get(id(asked)) or self._first_context(asked)

    def routed(self, asked: QuestionState) -> Sequence[LayerRouting] | None:
        if self._plan.route_answer:
            return None
        # Of a bank that keeps tokens, documents are read as such, or as text.
        reads_none = self._plan.text_only or self._loaded.content is not None
        return () if reads_none else asked.rounds[-1].routed

    def _first_context(self, asked: QuestionState) -> Context:
        return self._loaded.template.context(asked.question, history=asked.history)

    def _look(self, one: QuestionState) -> SearchQuery:
        context = None
        if self._needs.routing:
            context = self._contexts[id(one)] if one.evidence else self._first_context(one)
        if not self._needs.words:
            return SearchQuery(one.question, context)
        return SearchQuery(next_query(one.question, one.newest), context, said_before(one.history))

    def _read(self, one: QuestionState, chosen: Sequence[Evidence], done: Round) -> Round:
        """Put in the documents that fit."""
        texts, latents = self._divided(chosen)
        one.latents += [item.document_id for item in latents]
        before = [item for item in one.evidence if item.document_id not in one.latents]
        read_ids = [item.document_id for item in one.evidence] if self._plan.route_tokens == "newest" else ()
        limit = None if self._plan.injected_tokens is None else self._plan.injected_tokens - one.injected_tokens
        context, used, tokens = fitted_context(
            self._loaded,
            one.question,
            texts,
            self._room,
            before=before,
            silent=read_ids,
            injected_tokens=limit,
            history=one.history,
            grounded=bool(one.latents),
        )
        self._contexts[id(one)] = context
        text = self._loaded.template.passages(passages_of(texts[:used]))
        in_order = [item for item in chosen if item in texts[:used] or item in latents]
        left_out = [item for item in chosen if item not in in_order]
        return read_documents(one, self._plan, done, [*in_order, *left_out], len(in_order), text, tokens)

    def _divided(self, chosen: Sequence[Evidence]) -> tuple[Sequence[Evidence], Sequence[Evidence]]:
        """Documents to be put in as text, and those to be read from their latents; what has none yet is put in."""
        if self._plan.texts is None:
            return chosen, ()
        pending = self._finder.unencoded([item.document_id for item in chosen])
        texts = [item for place, item in enumerate(chosen) if place < self._plan.texts or item.document_id in pending]
        return texts, [item for item in chosen if item not in texts]


def retriever_of(state: RoundState, finder: Finder, plan: Plan, sampling: Sampling) -> ContextRetriever:
    """How the documents that a plan's selector chooses get read."""
    if isinstance(plan.chooser, RetrievingSelector):
        return plan.chooser.retriever(state, finder, plan, sampling)
    return SearchRetriever(state.loaded, finder, plan, sampling)


def answering(
    state: RoundState, finder: Finder, plan: Plan, sampling: Sampling, reading: ContextRetriever | None = None
) -> Interleave:
    """The round loop of the memory model.

    Args:
        reading: None: as the plan's selector reads.
    """
    reading = reading or retriever_of(state, finder, plan, sampling)
    return Interleave(finder, reading, ModelWriter(state, finder, reading, sampling), plan)


class ModelWriter:
    """The memory model writes the answers, from contexts with texts and from latents."""

    answerer, marks = "", False

    def __init__(self, state: RoundState, finder: Finder, reading: ContextRetriever, sampling: Sampling) -> None:
        self._state, self._finder, self._reading, self._sampling = state, finder, reading, sampling

    def write(self, asked: Sequence[QuestionState], seconds: dict[str, float]) -> Iterator[Sequence[Reply]]:
        contexts = [self._reading.context(one) for one in asked]
        prefilled_at = time.perf_counter()
        keys = [id(one) for one in asked]
        read = [one.latents for one in asked]
        found, fetched = None, 0.0
        if any(read):
            found = self._finder.memory.read(read)
            fetched = time.perf_counter() - prefilled_at
        memory = self._memory(asked) if found is None else None
        decoding = self._state.decode(contexts, memory, self._sampling, questions=keys, read=found)
        replies = [Reply(num_prompt_tokens=len(context.ids)) for context in contexts]
        for step, _ in enumerate(self._state.run(decoding)):
            if step == 0:
                prefilled_at = time.perf_counter()
            for reply, row in zip(replies, decoding.rows, strict=True):
                reply.text, reply.finish_reason, reply.num_new_tokens = row.text, row.finish_reason, len(row.ids)
            yield replies
        for place, reply in enumerate(replies):
            reply.routed = routing_of(decoding.retrieved, place)
        for stage in ("prefill", "routing", "fetch"):
            seconds[stage] = decoding.clock.seconds.get(stage, 0.0)
        seconds["fetch"] += fetched
        seconds["decode"] = time.perf_counter() - prefilled_at

    def _memory(self, asked: Sequence[QuestionState]) -> LayerMemory | None:
        """What the answers attend to."""
        routed = [found for one in asked if (found := self._reading.routed(one)) is not None]
        if len(routed) < len(asked):
            return self._finder.memory
        attended = any(layer.document_ids for found in routed for layer in found)
        return ReplayedMemory(self._finder.memory, routed) if attended else None
