"""Rounds in which the model itself names the documents it wants to read (paper 3.5)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from memspan.events import Event, RoundDone, RoundStarted
from memspan.generate.constrain import FreeIds, Guide, RoutedIds
from memspan.generate.context import room_for
from memspan.generate.decode import Decoding, Generated, check_fits
from memspan.generate.finder import Finder, passages_of, routing_of
from memspan.generate.interleave import Plan, QuestionState, RoundEnd
from memspan.generate.sampling import Sampling
from memspan.generate.state import RoundState
from memspan.routing.local import SourceMemory
from memspan.routing.ranking import Selected, chosen
from memspan.text.rounds import ParsedRound, RoundProtocol, Transcript
from memspan.text.template import Context
from memspan.types import Evidence, Round

# What a document's id takes at most, in a round's limit of tokens: ten digits and the brackets.
_TOKENS_PER_ID = 12


class GenerativeRetriever:
    """The model writes ids and a delimiter, the system puts in those documents' texts; see `memspan.text.rounds`.

    What the model writes stays in its context as it wrote it; what it leaves open (no delimiter, an end of sequence
    in its place) the system closes, so that every context is one the model was trained on. Documents are put in in
    the order they are named; those that do not fit, or are over a limit, are left out from the last up.
    """

    def __init__(self, state: RoundState, finder: Finder, plan: Plan, sampling: Sampling) -> None:
        self._protocol = RoundProtocol(state.loaded.template)
        self._state, self._finder, self._plan = state, finder, plan
        self._answer_tokens = sampling.max_new_tokens
        limit = _TOKENS_PER_ID * max(1, plan.per_round) + len(self._protocol.round_end)
        # The answer's stop strings do not end a list of ids.
        self._sampling = replace(sampling, max_new_tokens=limit, stop=())
        self._room = room_for(state.loaded, sampling.max_new_tokens, plan.context_tokens)
        self._transcripts: dict[int, Transcript] = {}

    def round(self, asked: Sequence[QuestionState], number: int) -> Iterator[tuple[QuestionState, Event | None]]:
        for one in asked:
            self._start(one)
            if not self._may_write(one):
                one.ended = "limit" if one.room_for(self._plan) < 1 else "room"
        asked = [one for one in asked if one.ended == "more"]
        if not asked:
            return
        for one in asked:
            yield one, RoundStarted(number, one.question)
        started = time.perf_counter()
        contexts = [self._transcripts[id(one)].context(self._plan.route_tokens) for one in asked]
        memory = self._finder.memory
        guides = [self._guide(one, row, lambda: decoding) for row, one in enumerate(asked)]
        decoding = self._state.decode(contexts, memory, self._sampling, guides, [id(one) for one in asked])
        seconds: dict[str, float] = {}
        for _ in self._state.run(decoding):
            seconds.setdefault("prefill", time.perf_counter() - started)
            yield asked[0], None
        seconds["decode"] = time.perf_counter() - started - seconds["prefill"]
        for row, one in enumerate(asked):
            routed = routing_of(decoding.retrieved, row)
            done = Round(number, self._plan.selector, one.question, routed, timings=seconds)
            yield one, RoundDone(self._read(one, decoding.rows[row], done, self._scores(memory, row)))

    def routed(self, asked: QuestionState) -> None:
        """The context to answer in routes anew: the model has named documents by what its own words routed to."""
        return None

    def context(self, asked: QuestionState) -> Context:
        self._start(asked)
        transcript = self._transcripts[id(asked)]
        if not (asked.rounds and asked.ended == "enough" and asked.rounds[-1].written.endswith(self._end_text)):
            transcript = transcript.add("model", self._protocol.retrieval_end)
        return transcript.add("system", self._protocol.final(asked.question)).context(self._plan.route_tokens)

    @property
    def _end_text(self) -> str:
        return self._protocol.spec.retrieval_end

    def _start(self, one: QuestionState) -> None:
        """
        Raises:
            QuestionError: the question with its answer does not fit into the model.
        """
        if id(one) not in self._transcripts:
            self._transcripts[id(one)] = self._protocol.start(one.question, one.history)
            check_fits(self._state.loaded, self._closed_length(one, 0), self._answer_tokens)

    def _closed_length(self, one: QuestionState, more: int) -> int:
        """Tokens of the context to answer in, if `more` are added to what there is and retrieval ends then."""
        closing = len(self._protocol.retrieval_end) + len(self._protocol.final(one.question))
        return len(self._transcripts[id(one)]) + more + closing

    def _may_write(self, one: QuestionState) -> bool:
        """Whether there may be another round: documents are left to read, and there is room to name one."""
        room = self._closed_length(one, self._sampling.max_new_tokens) <= self._room
        return one.room_for(self._plan) >= 1 and room

    def _guide(self, one: QuestionState, row: int, decoding: Callable[[], Decoding]) -> Guide:
        if not self._plan.constrain_ids:
            return FreeIds(self._protocol)

        def allowed() -> set[int]:
            routed = {x for found in decoding().retrieved.values() for x in found.doc_ids[row]}
            return routed - {item.document_id for item in one.evidence}

        return RoutedIds(self._protocol, allowed, one.room_for(self._plan))

    def _scores(self, memory: SourceMemory, row: int) -> dict[int, Selected]:
        """What was routed to, with the score over all MSA layers."""
        ranked = self._finder.ranking(memory, row)
        fits = self._finder.router_fits(ranked, len(memory.candidates))
        return {found.document_id: found for found in chosen([(x.document_id, x.score) for x in ranked], ranked, fits)}

    def _read(self, one: QuestionState, row: Generated, done: Round, scores: dict[int, Selected]) -> Round:
        """Parse what the model wrote, and put in what it named."""
        # An end of sequence is no part of a round: the model has read enough.
        written = row.ids[:-1] if row.finish_reason == "stop" else row.ids
        text = self._protocol.text(written)
        named = self._protocol.parse(text)
        ids = [] if row.finish_reason == "stop" else list(named.ids)
        read = {item.document_id for item in one.evidence}
        new = [document_id for document_id in ids if document_id not in read]
        known = self._finder.in_scope(new)
        nowhere = [Selected(document_id, 0.0, 0) for document_id in known]
        wanted = self._finder.evidence([scores.get(found.document_id, found) for found in nowhere])
        if named.end != "retrieval" and row.finish_reason != "stop" and not named.end:
            written = [*written, *self._protocol.round_end]
        self._transcripts[id(one)] = self._transcripts[id(one)].add("model", written)
        chosen, tokens = self._fit(one, wanted)
        if chosen:
            self._transcripts[id(one)] = self._transcripts[id(one)].add("texts", tokens)
        done = replace(
            done,
            chosen=tuple(chosen),
            written=text,
            injected=self._state.loaded.template.passages(passages_of(chosen)),
            num_written_tokens=len(row.ids),
            malformed=named.malformed,
            unknown=len(new) - len(known),
            repeated=named.repeated + len(ids) - len(new),
            left_out=len(wanted) - len(chosen),
        )
        return one.close_round(self._plan, done, _ending(named, row, wanted, chosen), len(tokens) if chosen else 0)

    def _fit(self, one: QuestionState, wanted: Sequence[Evidence]) -> tuple[list[Evidence], list[int]]:
        """The first of the wanted documents that fit and are within the limits, and what to put in for them."""
        chosen = list(wanted[: one.room_for(self._plan)])
        limit = self._plan.injected_tokens
        while chosen:
            tokens = self._protocol.texts(passages_of(chosen))
            within = limit is None or one.injected_tokens + len(tokens) <= limit
            if within and self._closed_length(one, len(tokens)) <= self._room:
                return chosen, tokens
            chosen.pop()
        return [], []


def _ending(named: ParsedRound, row: Generated, wanted: Sequence[Evidence], chosen: Sequence[Evidence]) -> RoundEnd:
    if named.end == "retrieval" or row.finish_reason == "stop":
        return "enough"
    if chosen:
        return "more"
    return "room" if wanted else "nothing"
