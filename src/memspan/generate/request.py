"""What is asked, checked: questions with their options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from memspan.bank.scope import Scope
from memspan.errors import MemspanError
from memspan.generate.answerer import Answerer, ToolCaller
from memspan.generate.chat import DEFAULT_SAMPLING, check_plan
from memspan.generate.interleave import Plan
from memspan.generate.lexical import check_limit, check_questions
from memspan.generate.passed import NOTHING_PASSED, Passed
from memspan.generate.prompts import fitted_turns, room_of
from memspan.generate.rerank import NONE, Means, check_reranker
from memspan.generate.sampling import GREEDY, Sampling
from memspan.generate.selectors import SELECTORS, RetrievingSelector, check_packages, default_selector, served_selector
from memspan.text.rounds import RouteTokens
from memspan.types import Turn

if TYPE_CHECKING:
    from memspan.model.convert import LoadedModel

MAX_DOCUMENTS = 5
# Rounds of a model that says itself when it has read enough.
MAX_ROUNDS = 4


class AskOptions(TypedDict, total=False):
    """How to ask.

    Keys:
        selector: router, lexical, hybrid, generate (the model names documents itself; its template needs markers
            of rounds), or another of `memspan.generate.selectors`; default: lexical while the router is untrained,
            hybrid after; router where max_documents is 0 and the bank keeps no tokens.
        max_documents: documents that are read, at most (fewer where fewer matter). 0: the model answers from its
            compressed memory alone; of a bank that keeps tokens it reads five documents from these.
        max_texts: of each round's documents so many, the best, as text; the model reads the others from the keys and
            values that the bank keeps of their tokens (`content_chunk` of `Memory.open`).
        rounds: looks into the memory, at most. Default: 1; 4 for generate.
        documents_per_round, max_injected_tokens, route_tokens, constrain_ids, text_only, route_answer: see `Plan`
            (`memspan.generate.interleave`; `max_injected_tokens` is its `injected_tokens`).
        rerank: who ranks the first documents anew before the best are read: none (the default), model (the memory
            model's attention), likelihood, cross, or another of `memspan.generate.rerank`.
        cross_encoder: of `rerank="cross"`: a folder, or a name of the hub.
        min_score: documents that score less, 0 to 1, are not read; where none is left, nothing was found. See
            `Evidence.score`.
        sampling: how to decode. Default: 64 tokens, 512 of another model, greedy.
        where: only documents whose metadata match; see `memspan.bank.scope.Scope.parse`.
        as_of, known_at: what was valid at that day or moment; what the bank held then; see there.
        passed: what is passed on to another model as it is: tools, a form of the answer, calls of tools.
        history: what was said before, oldest first. The oldest turns are left out where all take more than half of
            what the model has room for.
    """

    selector: str | None
    max_documents: int
    max_texts: int | None
    rounds: int | None
    documents_per_round: int | None
    max_injected_tokens: int | None
    route_tokens: RouteTokens
    constrain_ids: bool
    text_only: bool
    route_answer: bool
    rerank: str | None
    cross_encoder: str | None
    min_score: float | None
    sampling: Sampling
    where: Mapping[str, Any] | None
    as_of: str | None
    known_at: str | None
    passed: Passed
    history: Sequence[Turn]


@dataclass(frozen=True, slots=True)
class Request:
    """Questions asked together."""

    questions: Sequence[str]
    plan: Plan
    sampling: Sampling
    scope: Scope
    history: Sequence[Turn]
    passed: Passed = NOTHING_PASSED

    @classmethod
    def of(
        cls,
        loaded: LoadedModel | None,
        questions: Sequence[str],
        options: AskOptions,
        answerer: Answerer | None = None,
    ) -> Request:
        """
        Args:
            loaded: the memory model; None: a selector is named that needs none, and an `answerer` answers.
            answerer: the other model that answers.

        Raises:
            QuestionError: a question is empty, is not text, or does not fit into the model.
            FilterError: the scope is malformed.
            MemspanError: there is no such selector or reranker, or the model cannot serve it.
        """
        max_documents, max_texts = _limits(loaded, options, answerer)
        trained = loaded is not None and loaded.model.config.router_trained
        selector = options.get("selector") or default_selector(trained, reads_texts=max_documents != 0)
        reads = isinstance(_served(selector, loaded), RetrievingSelector)
        if isinstance(questions, str) or not all(isinstance(question, str) for question in questions):
            raise TypeError("a question is one text for ask, and ask_batch takes a list of texts")
        history = options.get("history", ())
        check_questions(questions, [text for turn in history for text in (turn.question, turn.answer)])
        rounds = options.get("rounds")
        plan = Plan(
            selector,
            (MAX_ROUNDS if reads else 1) if rounds is None else rounds,
            max_documents,
            options.get("documents_per_round"),
            options.get("max_injected_tokens"),
            options.get("route_tokens", "all"),
            options.get("constrain_ids", True),
            text_only=options.get("text_only", False),
            route_answer=options.get("route_answer", False),
            rerank=options.get("rerank") or NONE,
            cross_encoder=options.get("cross_encoder"),
            texts=max_texts,
            min_score=options.get("min_score"),
        )
        check_reranker(plan.rerank, Means(loaded, plan.cross_encoder))
        sampling = options.get("sampling", GREEDY if answerer is None else DEFAULT_SAMPLING)
        if not isinstance(sampling, Sampling):
            raise TypeError(f"sampling is a Sampling, as Sampling(max_new_tokens=32), not {sampling!r}")
        scope = Scope.parse(options.get("where"), options.get("as_of"), options.get("known_at"))
        passed = options.get("passed", NOTHING_PASSED)
        if passed and not isinstance(answerer, ToolCaller):
            raise MemspanError("tools and forms of an answer are for another model that takes them; leave passed out")
        if answerer is not None:
            check_plan(plan, answerer)
            room = room_of(answerer, sampling, passed)
            for question in questions:
                history = fitted_turns(question, history, room, answerer.name, passed)
        elif loaded is not None:
            history = _fitted(loaded, questions, history, sampling, plan)
        return cls(questions, plan, sampling, scope, history, passed)


def _limits(loaded: LoadedModel | None, options: AskOptions, answerer: Answerer | None) -> tuple[int, int | None]:
    """Documents that are read, and how many of them as text (None: all), at most.

    Raises:
        QuestionError, TypeError: as of `check_limit`.
        MemspanError: nothing but texts can be read.
    """
    keeps_tokens = answerer is None and loaded is not None and loaded.content is not None
    max_documents, max_texts = options.get("max_documents", MAX_DOCUMENTS), options.get("max_texts")
    check_limit("max_documents", max_documents)
    if max_texts is not None:
        check_limit("max_texts", max_texts)
        if not keeps_tokens:
            reason = "the bank keeps no tokens of documents" if answerer is None else "another model reads texts"
            raise MemspanError(
                f"{reason}; leave max_texts out, or let the bank's own model answer from a bank that was encoded with "
                "--content-chunk 4 (memspan add, memspan reencode)"
            )
    elif keeps_tokens and max_documents == 0:
        return MAX_DOCUMENTS, 0
    return max_documents, max_texts


def _served(selector: str, loaded: LoadedModel | None) -> object:
    """The selector, which can be served with this model or without any."""
    if loaded is not None:
        return served_selector(selector, loaded)
    check_packages(selector)
    assert not SELECTORS[selector].needs.model, "without a model, a selector is asked that needs none"
    return SELECTORS[selector]


def _fitted(
    loaded: LoadedModel, questions: Sequence[str], history: Sequence[Turn], sampling: Sampling, plan: Plan
) -> Sequence[Turn]:
    """The turns that the memory model has room for.

    Raises:
        QuestionError: a question does not fit.
    """
    from memspan.generate.context import fitted_history, room_for
    from memspan.generate.decode import check_fits

    if history:
        history = fitted_history(loaded, history, room_for(loaded, sampling.max_new_tokens, plan.context_tokens))
    for question in questions:
        context = loaded.template.context(question, history=history)
        check_fits(loaded, len(context.ids), sampling.max_new_tokens)
    return history
