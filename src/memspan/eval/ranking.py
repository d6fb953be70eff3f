"""Which documents an arm's retriever finds for questions, and what each MSA layer routed to on the way."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from memspan.bank.catalog import StoredDocument
from memspan.bank.scope import EVERYTHING
from memspan.errors import EvaluationError, MemspanError
from memspan.eval.arms import Arm
from memspan.generate.finder import Finder
from memspan.generate.interleave import MIN_SHARE, about_question
from memspan.generate.lexical import evidence_of
from memspan.generate.memory import Memory
from memspan.generate.rerank import NONE, Means, reranked
from memspan.generate.selectors import RankingSelector, RetrievingSelector, SearchQuery, served_selector
from memspan.model.convert import LoadedModel
from memspan.routing.ranking import Selected, keep_adaptively
from memspan.text.questions import Question
from memspan.types import Evidence, LayerRouting

RANKED_DEPTH = 16
"""How far rankings are kept: the deepest recall that is reported."""
RERANK_DEPTH = 100
"""Documents of a ranking that are ranked anew."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The documents found for a question, best first, and the seconds it took.

    Attributes:
        layers: per MSA layer, external ids of the question's evidence that the layer routed to; empty where nothing
            was routed.
        routed: what every MSA layer routed the question to.
        selected: the documents as they were ranked; of a retriever's own ranking.
    """

    documents: tuple[Evidence, ...]
    seconds: float
    layers: Mapping[int, frozenset[str]] = field(default_factory=dict)
    routed: tuple[LayerRouting, ...] = ()
    selected: Sequence[Selected] = ()


class Ranker:
    """Rankings for arms. What the arms of one retriever have in common is found once.

    Args:
        arms: all that will ask.
        depth: documents that are ranked anew.
        cross_encoder: of the option +cross.
    """

    def __init__(self, arms: Sequence[Arm], depth: int = RERANK_DEPTH, cross_encoder: str | None = None) -> None:
        self._rerank_depth, self._cross_encoder = depth, cross_encoder
        self._depths: dict[str, int] = {}
        for arm in arms:
            wanted = max(RANKED_DEPTH, arm.documents or 0, 0 if arm.rerank == NONE else depth)
            self._depths[arm.retriever] = max(wanted, self._depths.get(arm.retriever, 0))
        self._known: dict[tuple[str, str], Ranking] = {}

    def rank(self, memory: Memory, arm: Arm, questions: Sequence[Question]) -> list[Ranking]:
        """What the arm finds for questions of one memory; empty for an arm that ranks nothing, or reads in rounds.

        Raises:
            EvaluationError: the memory is empty, the model cannot serve the arm's selector or reranker.
        """
        if arm.retriever == "oracle":
            return [_oracle(memory, question) for question in questions]
        if not arm.ranks or arm.reads_in_rounds:
            return [Ranking((), 0.0)] * len(questions)
        new = [question for question in questions if (arm.retriever, question.id) not in self._known]
        if new:
            self._known |= {(arm.retriever, one.id): found for one, found in zip(new, self._first(memory, arm, new))}  # noqa: B905
        found = [self._known[arm.retriever, question.id] for question in questions]
        if arm.rerank != NONE:
            return [self._anew(memory, arm, question, one) for question, one in zip(questions, found, strict=True)]
        if not arm.adaptive:
            return found
        return [_adaptive(*pair, arm.documents or 0) for pair in zip(questions, found, strict=True)]

    def _first(self, memory: Memory, arm: Arm, questions: Sequence[Question]) -> list[Ranking]:
        """The retriever's own rankings, deep enough for all arms."""
        check_not_empty(memory)
        depth, started = self._depths[arm.retriever], time.perf_counter()
        template, needs = memory.loaded.template, served(memory.loaded, arm).needs
        looks = [
            SearchQuery(one.question, template.context(one.question) if needs.routing else None) for one in questions
        ]
        with memory.bank.snapshot(memory.namespace) as snapshot:
            finder = Finder(memory.loaded, snapshot, EVERYTHING)
            ranked = finder.rank(arm.selector, looks, depth)
            documents = [tuple(finder.evidence(one.selected[:depth])) for one in ranked]
        seconds = (time.perf_counter() - started) / len(questions)
        return [
            Ranking(items, seconds, layers_found(memory, question, one.routed), one.routed, one.selected)
            for question, items, one in zip(questions, documents, ranked, strict=True)
        ]

    def _anew(self, memory: Memory, arm: Arm, question: Question, ranking: Ranking) -> Ranking:
        started, means = time.perf_counter(), Means(memory.loaded, self._cross_encoder)
        try:
            documents = reranked(arm.rerank, question.question, ranking.documents, means, self._rerank_depth)
        except MemspanError as error:
            raise EvaluationError(f"the arm {arm.name}: {error}") from error
        seconds = ranking.seconds + time.perf_counter() - started
        return replace(ranking, documents=tuple(documents), seconds=seconds)


def _adaptive(question: Question, ranking: Ranking, at_most: int) -> Ranking:
    """The ranking without what `memspan ask` would not read either, for a low score or another subject."""
    kept = len(keep_adaptively(ranking.selected, at_most, MIN_SHARE))
    return replace(ranking, documents=tuple(about_question(question.question, ranking.documents[:kept])))


def _oracle(memory: Memory, question: Question) -> Ranking:
    parts = [part for gold in question.positives for part in _parts(memory, gold.external_id)]
    return Ranking(tuple(map(evidence_of, parts)), 0.0)


def layers_found(memory: Memory, question: Question, routed: Sequence[LayerRouting]) -> dict[int, frozenset[str]]:
    """Per MSA layer the evidence of a question that the layer routed to, a part of a document for all of it."""
    if not routed:
        return {}
    names = {part.id: gold.external_id for gold in question.positives for part in _parts(memory, gold.external_id)}
    return {one.layer: frozenset(names[x] for x in one.document_ids if x in names) for one in routed}


def _parts(memory: Memory, external_id: str) -> list[StoredDocument]:
    return memory.bank.catalog.documents_of(memory.namespace, external_id)


def served(loaded: LoadedModel, arm: Arm) -> RankingSelector | RetrievingSelector:
    """The arm's selector.

    Raises:
        EvaluationError: the model cannot serve it.
    """
    try:
        return served_selector(arm.selector, loaded)
    except MemspanError as error:
        raise EvaluationError(str(error)) from error


def check_not_empty(memory: Memory) -> None:
    """
    Raises:
        EvaluationError: the memory holds no documents.
    """
    if not memory.bank.catalog.counts(memory.namespace).documents:
        raise EvaluationError(f"the memory {memory.namespace!r} holds no documents; give some: --distractors FILES")
