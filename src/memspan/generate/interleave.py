"""The round loop (paper 3.5, Memory Interleave): look into the memory, read, look again, answer.

Who chooses what is read: a selector that ranks documents, whose texts stand before the question; or one that reads by
itself, as the model that names documents by their ids (`memspan.generate.selectors`).

New text changes every state of the MSA layers, so they run for the whole active context in every round; the layers
below them run for its new tokens alone, where it grew at its end (`memspan.generate.state`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from memspan.errors import MemspanError
from memspan.generate.context import fitted_context, room_for
from memspan.generate.decode import Decoding
from memspan.generate.finder import Finder, first_query, next_query, passages_of, routing_of, with_layers
from memspan.generate.sampling import Sampling
from memspan.generate.selectors import SELECTORS, Found, Look, RankingSelector, ReadingSelector
from memspan.generate.state import RoundState
from memspan.model.convert import LoadedModel
from memspan.model.memory_api import LayerMemory
from memspan.routing.local import Recalled
from memspan.routing.ranking import keep_adaptively
from memspan.text.rounds import ROUTE_TOKENS, RouteTokens
from memspan.text.template import Context
from memspan.types import Answer, Done, Event, Evidence, LayerRouting, Round, RoundDone, RoundStarted, TextWritten, Turn

# Documents scored below this share of the best one's score are left out.
MIN_SHARE = 0.5
DOCUMENTS_PER_ROUND = 2  # where there are several rounds; measured, see docs/LOG.md

Ended = Literal["more", "enough", "nothing", "room", "limit"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How to look things up; checked when built.

    Attributes:
        selector: who chooses documents.
        rounds: looks into the memory, at most.
        documents: texts put before the model in all rounds, at most; 0: it answers from the latents alone.
        documents_per_round: at most; None: `documents` in a single round, 2 in each of several.
        injected_tokens: of all texts put in, at most; None: what the model has room for.
        route_tokens: what routes beside the question in later rounds: "all" texts found so far (as in the paper), or
            the "newest" (as in the released code).
        constrain_ids: the model can name only what was routed to; False: whatever it writes is parsed.
        context_tokens: of a whole context, at most; None: what the model has room for.
        text_only: the answer is written from the texts alone; latents only help to find them, if at all.
        route_answer: the whole context routes once more for the answer, texts included (as in the paper; always so with
            a selector that reads by itself). False: the answer attends to what the last look-up was routed to, and
            after a look-up that routes nothing (`lexical`) to no latents.

    Raises:
        UnknownName: there is no such selector.
        MemspanError: a number is too small, or the options contradict each other.
    """

    selector: str
    rounds: int
    documents: int
    documents_per_round: int | None = None
    injected_tokens: int | None = None
    route_tokens: RouteTokens = "all"
    constrain_ids: bool = True
    context_tokens: int | None = None
    text_only: bool = False
    route_answer: bool = False

    def __post_init__(self) -> None:
        leasts = {"rounds": 1, "documents": 0, "documents_per_round": 1, "injected_tokens": 0, "context_tokens": 1}
        for name, least in leasts.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise MemspanError(f"{name} must be at least {least}, not {value}")
        if self.route_tokens not in ROUTE_TOKENS:
            raise MemspanError(f"route_tokens must be one of {', '.join(ROUTE_TOKENS)}, not {self.route_tokens!r}")
        reads, routes = isinstance(self.chooser, ReadingSelector), self.chooser.needs.routing
        if self.text_only and (self.route_answer or reads):
            what = f"the selector {self.selector}" if reads else "route_answer"
            raise MemspanError(f"text_only leaves the latents out, which {what} reads; leave one of them out")
        if not self.documents and (self.text_only or not (routes or self.route_answer)):
            what = "text_only" if self.text_only else f"the selector {self.selector}, which routes nothing,"
            raise MemspanError(f"without documents {what} leaves nothing to answer from; allow at least one document")

    @property
    def chooser(self) -> RankingSelector | ReadingSelector:
        return SELECTORS[self.selector]

    @property
    def per_round(self) -> int:
        if self.documents_per_round is not None:
            return self.documents_per_round
        return self.documents if self.rounds == 1 else min(self.documents, DOCUMENTS_PER_ROUND)


@dataclass(slots=True)
class Asked:
    """One question on its way: what was found for it so far. `ended` is "more" while another round may follow."""

    question: str
    history: Sequence[Turn] = ()
    evidence: list[Evidence] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    injected_tokens: int = 0
    ended: Ended = "more"

    @property
    def newest(self) -> tuple[Evidence, ...]:
        return self.rounds[-1].chosen if self.rounds else ()

    def room_for(self, plan: Plan) -> int:
        """Documents that may still be put in, in the next round."""
        return min(plan.per_round, plan.documents - len(self.evidence))

    def close_round(self, plan: Plan, done: Round, ended: Ended, tokens: int) -> Round:
        """Take a round, and say how it goes on."""
        self.evidence += done.chosen
        self.injected_tokens += tokens
        if ended == "more" and (len(self.rounds) + 1 == plan.rounds or len(self.evidence) == plan.documents):
            ended = "limit"
        self.ended = ended
        self.rounds.append(replace(done, ended=ended, num_injected_tokens=tokens))
        return self.rounds[-1]


class Reading(Protocol):
    """How documents get read: one round for some questions at a time, then the contexts to answer in."""

    def round(self, asked: Sequence[Asked], number: int) -> Iterator[tuple[Asked, Event | None]]:
        """Look once for every question; each closes a round of it. None: a token was decoded."""
        ...

    def context(self, asked: Asked) -> Context:
        """The context to answer in."""
        ...

    def routed(self, asked: Asked) -> Sequence[LayerRouting] | None:
        """What the answer attends to, of every question alike; empty: to no latents. None: its context routes."""
        ...


class SearchedReading:
    """Documents found by search, put before the question: the oldest first, so that of two that disagree the later is
    read last. Whatever of them does not fit is left out, the worst first."""

    def __init__(self, loaded: LoadedModel, finder: Finder, plan: Plan, sampling: Sampling) -> None:
        self._loaded, self._finder, self._plan, self._needs = loaded, finder, plan, plan.chooser.needs
        self._room = room_for(loaded, sampling.max_new_tokens, plan.context_tokens)
        self._contexts: dict[int, Context] = {}

    def round(self, asked: Sequence[Asked], number: int) -> Iterator[tuple[Asked, Event]]:
        started = time.perf_counter()
        looks = [self._look(one) for one in asked]
        for one, look in zip(asked, looks, strict=True):
            yield one, RoundStarted(number, look.query)
        found = self._finder.rank(self._plan.selector, looks, self._plan.documents)
        seconds = {"select": time.perf_counter() - started}
        for one, look, ranked in zip(asked, looks, found, strict=True):
            done = Round(number, self._plan.selector, look.query, ranked.routed, timings=seconds)
            yield one, RoundDone(self._read(one, ranked, done))

    def context(self, asked: Asked) -> Context:
        return self._contexts.get(id(asked)) or self._first_context(asked)

    def routed(self, asked: Asked) -> Sequence[LayerRouting] | None:
        if self._plan.route_answer:
            return None
        return () if self._plan.text_only else asked.rounds[-1].routed

    def _first_context(self, asked: Asked) -> Context:
        return self._loaded.template.context(asked.question, history=asked.history)

    def _look(self, one: Asked) -> Look:
        context = None
        if self._needs.routing:
            context = self._contexts[id(one)] if one.evidence else self._first_context(one)
        if not self._needs.words:
            return Look(one.question, context)
        return Look(next_query(first_query(one.question, one.history), one.newest), context)

    def _read(self, one: Asked, found: Found, done: Round) -> Round:
        """Put in the documents that matter and fit."""
        read = {item.document_id for item in one.evidence}
        new = [item for item in found.selected if item.document_id not in read]
        chosen = self._finder.evidence(keep_adaptively(new, max(0, one.room_for(self._plan)), MIN_SHARE))
        read_ids = [item.document_id for item in one.evidence] if self._plan.route_tokens == "newest" else ()
        limit = None if self._plan.injected_tokens is None else self._plan.injected_tokens - one.injected_tokens
        context, used, tokens = fitted_context(
            self._loaded,
            one.question,
            chosen,
            self._room,
            before=one.evidence,
            silent=read_ids,
            injected_tokens=limit,
            history=one.history,
        )
        self._contexts[id(one)] = context
        text = self._loaded.template.passages(passages_of(chosen[:used]))
        done = replace(done, chosen=tuple(chosen[:used]), injected=text, left_out=len(chosen) - used)
        ended: Ended = "more" if used else "room" if chosen else "nothing" if one.room_for(self._plan) else "limit"
        return one.close_round(self._plan, done, ended, tokens)


def reading_of(state: RoundState, finder: Finder, plan: Plan, sampling: Sampling) -> Reading:
    """How the documents that a plan's selector chooses get read."""
    if isinstance(plan.chooser, ReadingSelector):
        return plan.chooser.reading(state, finder, plan, sampling)
    return SearchedReading(state.loaded, finder, plan, sampling)


class Interleave:
    """A batch of questions, from looking things up to their answers."""

    def __init__(self, state: RoundState, finder: Finder, reading: Reading, plan: Plan, sampling: Sampling) -> None:
        self._state, self._finder, self._reading, self._plan, self._sampling = state, finder, reading, plan, sampling

    def run(self, questions: Sequence[str], history: Sequence[Turn] = ()) -> Iterator[tuple[int, Event | None]]:
        """Yield events, each with the place of its question; the last of each question holds its answer.

        None comes after every token that is decoded, for whoever drives several questions by turns.

        Args:
            history: what was said before each of the questions.
        """
        started, received = time.perf_counter(), self._finder.received_bytes
        asked = [Asked(question, history) for question in questions]
        places = {id(one): place for place, one in enumerate(asked)}
        for number in range(1, self._plan.rounds + 1):
            for one, event in self._reading.round([one for one in asked if one.ended == "more"], number):
                yield places[id(one)], event
            if all(one.ended != "more" for one in asked):
                break
        contexts = [self._reading.context(one) for one in asked]
        selected_at = time.perf_counter()
        keys = [id(one) for one in asked]
        decoding = self._state.decode(contexts, self._memory(asked), self._sampling, questions=keys)
        prefilled_at, shown = selected_at, [0] * len(asked)
        for step, _ in enumerate(self._state.run(decoding)):
            if step == 0:
                prefilled_at = time.perf_counter()
            for place, row in enumerate(decoding.rows):
                if len(row.text) > shown[place]:
                    yield place, TextWritten(row.text[shown[place] :])
                    shown[place] = len(row.text)
            yield 0, None
        timings = {
            "select": selected_at - started,
            **{stage: decoding.clock.seconds.get(stage, 0.0) for stage in ("prefill", "routing", "fetch")},
            "decode": time.perf_counter() - prefilled_at,
        }
        received = self._finder.received_bytes - received
        for place, one in enumerate(asked):
            answer = self._answer(one, contexts[place], decoding, place, timings)
            yield place, Done(replace(answer, received_bytes=received))

    def _memory(self, asked: Sequence[Asked]) -> LayerMemory | None:
        """What the answers attend to."""
        routed = [found for one in asked if (found := self._reading.routed(one)) is not None]
        if len(routed) < len(asked):
            return self._finder.memory
        return Recalled(self._finder.memory, routed) if any(routed) else None

    def _answer(self, one: Asked, context: Context, decoding: Decoding, place: int, timings: dict) -> Answer:
        row, routed = decoding.rows[place], routing_of(decoding.retrieved, place)
        return Answer(
            question=one.question,
            text=row.text.strip(),
            evidence=with_layers(one.evidence, routed),
            selector=self._plan.selector,
            finish_reason=row.finish_reason or "length",
            num_prompt_tokens=len(context.ids),
            num_new_tokens=len(row.ids),
            timings=timings,
            rounds=tuple(one.rounds),
            routed=routed,
        )
