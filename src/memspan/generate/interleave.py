"""The round loop (paper 3.5, Memory Interleave): look into the memory, read, look again, answer.

Who chooses what is read: a selector that ranks documents, whose texts stand before the question; or one that reads by
itself, as the model that names documents by their ids (`memspan.generate.selectors`).

What is read is then answered from, by the memory model or another one. Nothing here imports torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from memspan.errors import MemspanError
from memspan.events import CallWritten, Done, Event, TextWritten
from memspan.generate.citing import abstains, citations_of
from memspan.generate.lexical import check_min_score, fitting
from memspan.generate.rerank import NONE, RERANKED, Means, check_name, reranked
from memspan.generate.selectors import SELECTORS, RankingSelector, RetrievingSelector, SearchQuery, SearchResult
from memspan.routing.ranking import keep_adaptively
from memspan.text.rounds import ROUTE_TOKENS, RouteTokens
from memspan.text.statements import about_other_keys
from memspan.text.template import encoded_text
from memspan.types import Answer, Citation, Evidence, LayerRouting, Round, Turn

if TYPE_CHECKING:
    from memspan.generate.finder import Finder
    from memspan.generate.lexical import TextFinder
    from memspan.model.convert import LoadedModel

# Documents scored below this share of the best one's score are left out.
MIN_SHARE = 0.5
DOCUMENTS_PER_ROUND = 2  # where there are several rounds; measured, see docs/LOG.md

# Characters of what was said before a question that a reranker reads.
_LONGEST_BEFORE = 400

RoundEnd = Literal["more", "enough", "nothing", "room", "limit"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How to look things up; checked when built.

    Attributes:
        selector: who chooses documents.
        rounds: looks into the memory, at most.
        documents: read in all rounds, at most; 0: it answers from the latents alone.
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
        rerank: who ranks the first documents anew (`memspan.generate.rerank`), or "none". As many are read as without.
        cross_encoder: of the reranker `cross`: a folder, or a name of the hub.
        texts: of the documents of a round so many, the best, are put in as text; the model reads the others from their
            latents, of a bank that keeps tokens. None: all are put in as text.
        min_score: documents that score less (0 to 1) are read neither as texts nor as latents; see `Evidence.score`.

    Raises:
        UnknownName: there is no such selector or reranker.
        MemspanError: a number is too small, or the options contradict each other.
        ValueError, TypeError: as of `check_min_score`.
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
    rerank: str = NONE
    cross_encoder: str | None = None
    texts: int | None = None
    min_score: float | None = None

    def __post_init__(self) -> None:
        leasts = {
            "texts": 0,
            "rounds": 1,
            "documents": 0,
            "documents_per_round": 1,
            "injected_tokens": 0,
            "context_tokens": 1,
        }
        for name, least in leasts.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise MemspanError(f"{name} must be at least {least}, not {value}")
        if self.route_tokens not in ROUTE_TOKENS:
            raise MemspanError(f"route_tokens must be one of {', '.join(ROUTE_TOKENS)}, not {self.route_tokens!r}")
        reads, routes = isinstance(self.chooser, RetrievingSelector), self.chooser.needs.routing
        if self.text_only and (self.route_answer or reads):
            what = f"the selector {self.selector}" if reads else "route_answer"
            raise MemspanError(f"text_only leaves the latents out, which {what} reads; leave one of them out")
        if not self.documents and (self.text_only or not (routes or self.route_answer)):
            what = "text_only" if self.text_only else f"the selector {self.selector}, which routes nothing,"
            raise MemspanError(f"without documents {what} leaves nothing to answer from; allow at least one document")
        if self.texts is not None and (self.text_only or self.route_answer or reads):
            what = "text_only" if self.text_only else "route_answer" if self.route_answer else self.selector
            raise MemspanError(
                f"{what} leaves no document to be read from its latents; leave max_texts out, and allow at least one "
                "document"
            )
        check_name(self.rerank)
        if self.rerank != NONE and (reads or not self.documents):
            what = f"the selector {self.selector} ranks" if reads else "an answer without documents has"
            raise MemspanError(f"{what} no documents that could be ranked anew; leave rerank={self.rerank!r} out")
        check_min_score(self.min_score)
        if self.min_score is not None and (reads or self.route_answer):
            what = f"the selector {self.selector}" if reads else "route_answer"
            raise MemspanError(f"{what} attends to latents of any score, and min_score to some; leave one of them out")

    @property
    def chooser(self) -> RankingSelector | RetrievingSelector:
        return SELECTORS[self.selector]

    @property
    def per_round(self) -> int:
        if self.documents_per_round is not None:
            return self.documents_per_round
        return self.documents if self.rounds == 1 else min(self.documents, DOCUMENTS_PER_ROUND)


@dataclass(slots=True)
class QuestionState:
    """One question on its way: what was found for it so far. `ended` is "more" while another round may follow.

    Attributes:
        latents: documents of `evidence` that are read from their latents.
        num_prompt_tokens, num_new_tokens: that another model read and wrote to lead rounds.
    """

    question: str
    history: Sequence[Turn] = ()
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    evidence: list[Evidence] = field(default_factory=list)
    latents: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    injected_tokens: int = 0
    ended: RoundEnd = "more"

    @property
    def newest(self) -> tuple[Evidence, ...]:
        return self.rounds[-1].chosen if self.rounds else ()

    def room_for(self, plan: Plan) -> int:
        """Documents that may still be put in, in the next round."""
        return min(plan.per_round, plan.documents - len(self.evidence))

    def close_round(self, plan: Plan, done: Round, ended: RoundEnd, tokens: int) -> Round:
        """Take a round, and say how it goes on."""
        self.evidence += done.chosen
        self.injected_tokens += tokens
        if ended == "more" and (len(self.rounds) + 1 == plan.rounds or len(self.evidence) == plan.documents):
            ended = "limit"
        self.ended = ended
        self.rounds.append(replace(done, ended=ended, num_injected_tokens=tokens))
        return self.rounds[-1]


def read_documents(
    one: QuestionState, plan: Plan, done: Round, chosen: Sequence[Evidence], used: int, injected: str, tokens: int
) -> Round:
    """Close a round in which the first `used` of the chosen documents were put in, as the text `injected`."""
    done = replace(done, chosen=tuple(chosen[:used]), injected=injected, left_out=len(chosen) - used)
    ended: RoundEnd = "more" if used else "room" if chosen else "nothing" if one.room_for(plan) else "limit"
    return one.close_round(plan, done, ended, tokens)


def look_up(finder: Finder | TextFinder, plan: Plan, looks: Sequence[SearchQuery]) -> list[SearchResult]:
    """What a plan's selector finds for every look, as far as it scores enough.

    Raises:
        MemspanError: as of `fitting`.
    """
    ranked = finder.rank(plan.selector, looks, plan.documents)
    return [fitting(found, plan.min_score, plan.selector) for found in ranked]


def next_documents(
    one: QuestionState,
    found: SearchResult,
    plan: Plan,
    finder: Finder | TextFinder,
    query: str,
    loaded: LoadedModel | None,
    seconds: dict[str, float],
) -> list[Evidence]:
    """The documents of a ranking to read next, best first: those that matter and were not read yet.

    A reranker says which of the first are read, the ranking's scores how many. For what is left out of these see
    `about_question`.

    Args:
        loaded: the memory model; None: there is none, and the plan needs none.
        seconds: `rerank` is added to, where there is a reranker.
    """
    read = {item.document_id for item in one.evidence}
    new = [item for item in found.selected if item.document_id not in read]
    kept = keep_adaptively(new, max(0, one.room_for(plan)), MIN_SHARE)
    if plan.rerank == NONE:
        return about_question(one.question, finder.evidence(kept))
    started = time.perf_counter()
    ranked = reranked(
        plan.rerank, query, finder.evidence(new[: max(RERANKED, len(kept))]), Means(loaded, plan.cross_encoder)
    )
    seconds["rerank"] = seconds.get("rerank", 0.0) + time.perf_counter() - started
    return about_question(one.question, ranked[: len(kept)])


def about_question(question: str, found: Sequence[Evidence]) -> list[Evidence]:
    """Documents without those that say of another subject what one of them says of the question's: they are mistaken
    for it ("The price of Amber is 289", "The price of Beryl is 199")."""
    others = about_other_keys(question, [encoded_text(item.title, item.text) for item in found])
    return [item for place, item in enumerate(found) if place not in others]


class Retriever(Protocol):
    """How documents get read: one round for some questions at a time."""

    def round(self, asked: Sequence[QuestionState], number: int) -> Iterator[tuple[QuestionState, Event | None]]:
        """Look once for every question; each closes a round of it. None: a token was decoded."""
        ...


@dataclass(slots=True)
class Reply:
    """An answer on its way. `text` is what may be shown so far; for the rest see `Answer`.

    Attributes:
        said_none: whether it said, by a mark, that the documents do not say.
        calls: of tools, so far. new_calls: pieces of them that were not told yet.
    """

    text: str = ""
    finish_reason: str | None = None
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    routed: tuple[LayerRouting, ...] = ()
    removed_citations: int = 0
    said_none: bool = False
    calls: list[dict[str, Any]] = field(default_factory=list)
    new_calls: list[Mapping[str, Any]] = field(default_factory=list)


class Writer(Protocol):
    """Writes answers: the memory model (`memspan.generate.searched`), or another one (`memspan.generate.chat`).

    Attributes:
        answerer: the other model's name; empty: the memory model.
        marks: whether the text has numbers of documents.
    """

    answerer: str
    marks: bool

    def write(self, asked: Sequence[QuestionState], seconds: dict[str, float]) -> Iterator[Sequence[Reply]]:
        """Yield the replies to all questions, in order, after every step; they are the same objects, growing.

        Args:
            seconds: is given what prefill, routing, fetch and decode took.
        """
        ...


class Interleave:
    """A batch of questions, from looking things up to their answers."""

    def __init__(self, finder: Finder | TextFinder, reading: Retriever, writer: Writer, plan: Plan) -> None:
        self._finder, self._reading, self._writer, self._plan = finder, reading, writer, plan

    def run(self, questions: Sequence[str], history: Sequence[Turn] = ()) -> Iterator[tuple[int, Event | None]]:
        """Yield events, each with the place of its question; the last of each question holds its answer.

        None comes after every token that is decoded, for whoever drives several questions by turns.

        Args:
            history: what was said before each of the questions.
        """
        started, received = time.perf_counter(), self._finder.received_bytes
        asked = [QuestionState(question, history) for question in questions]
        yield from self._look_up(asked)
        seconds = {"select": time.perf_counter() - started}
        replies: Sequence[Reply] = ()
        shown = [0] * len(asked)
        for replies in self._writer.write(asked, seconds):
            for place, (reply, text) in enumerate((reply, reply.text.lstrip()) for reply in replies):
                if len(text) > shown[place]:
                    yield place, TextWritten(text[shown[place] :])
                    shown[place] = len(text)
                while reply.new_calls:
                    yield place, CallWritten(reply.new_calls.pop(0))
            yield 0, None
        received = self._finder.received_bytes - received
        for place, (one, reply) in enumerate(zip(asked, replies, strict=True)):
            yield place, Done(replace(self._answer(one, reply, seconds), received_bytes=received))

    def _look_up(self, asked: Sequence[QuestionState]) -> Iterator[tuple[int, Event | None]]:
        """The rounds of all questions."""
        places = {id(one): place for place, one in enumerate(asked)}
        for number in range(1, self._plan.rounds + 1):
            for one, event in self._reading.round([one for one in asked if one.ended == "more"], number):
                yield places[id(one)], event
            if all(one.ended != "more" for one in asked):
                break

    def _answer(self, one: QuestionState, reply: Reply, seconds: Mapping[str, float]) -> Answer:
        evidence, text = with_layers(one.evidence, reply.routed), reply.text.strip()
        ended = reply.finish_reason or "length"
        citations = () if reply.calls else citations_of(text, evidence, marked=self._writer.marks)
        found = evidence or any(layer.document_ids for layer in reply.routed)
        is_none = not found or not text or (reply.said_none and not any(c.supported for c in citations))
        return Answer(
            question=one.question,
            text=text,
            evidence=evidence,
            selector=self._plan.selector,
            finish_reason="tool_calls" if reply.calls and ended != "length" else ended,
            num_prompt_tokens=reply.num_prompt_tokens,
            num_new_tokens=reply.num_new_tokens,
            timings=seconds,
            rounds=tuple(one.rounds),
            routed=reply.routed,
            answered=bool(reply.calls) or not (is_none or _abstains(text, citations)),
            citations=citations,
            removed_citations=reply.removed_citations,
            answerer=self._writer.answerer,
            tool_calls=tuple(reply.calls),
        )


def _abstains(text: str, citations: Sequence[Citation]) -> bool:
    """Whether an answer says that it has none, and nothing else that a document supports."""
    said = (text[one.span.start : one.span.end] for one in citations if one.supported)
    return abstains(text) and all(map(abstains, said))


def with_layers(items: Iterable[Evidence], routed: Sequence[LayerRouting]) -> tuple[Evidence, ...]:
    """Evidence with the number of MSA layers that attended to its document while answering; if none did, as it was."""
    if not routed:
        return tuple(items)
    return tuple(replace(x, layers=sum(x.document_id in layer.document_ids for layer in routed)) for x in items)
