"""Selectors: who chooses the documents that are read. Everything that lists selectors, or asks one, reads `SELECTORS`.

A new selector is a class as below and a line at the end of this file; see `memspan.registry` for other packages'. What
depends on the selector (the default, `text_only`, arms of `memspan eval`) asks its `needs`, not its name. Nothing here
imports torch, so that commands list selectors, and search by words, without waiting for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from memspan.errors import MemspanError
from memspan.registry import Registry
from memspan.routing.ranking import (
    HISTORY_WEIGHT,
    Selected,
    chosen,
    fuse,
    fused_fits,
    scaled,
    weighted_sum,
    words_fits,
)
from memspan.types import LayerRouting

if TYPE_CHECKING:
    from memspan.generate.finder import Finder
    from memspan.generate.interleave import Plan
    from memspan.generate.lexical import TextFinder
    from memspan.generate.sampling import Sampling
    from memspan.generate.searched import ContextRetriever
    from memspan.generate.state import RoundState
    from memspan.model.convert import LoadedModel
    from memspan.text.template import Context


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """What is looked up: by its words (`query`), by routing a `context` (None where the selector routes nothing).

    Attributes:
        before: the newest turns of the conversation, whose words count less than those of `query`; see `by_words`.
    """

    query: str
    context: Context | None = None
    before: str = ""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A ranking of documents for one question, best first, with the routing behind it, if any.

    Of the ranking those are read that score at least half as well as the best. `Selected.fit` is what is shown as a
    document's score, and what `min_score` of a search is compared with; a selector that gives none has no `min_score`.
    """

    selected: Sequence[Selected]
    routed: tuple[LayerRouting, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a selector (or a reranker) works with.

    Attributes:
        model: it runs the model. If not, `memspan search` loads none, and a selector is given a `TextFinder`.
        routing: it routes each question; the answer attends to the latents that were routed to.
        words: it reads `SearchQuery.query`. In later rounds names are added to it that the texts found before hold.
        trained_router: it is an error to ask it of a model whose router is untrained.
        rounds: the model's template must have markers of rounds.
        packages: modules that must be installed, each with the command that does.
        baseline: it is there to be compared with. It can be named in programs, commands and arms of `memspan eval`;
            help and servers do not offer it.
    """

    model: bool = True
    routing: bool = False
    words: bool = True
    trained_router: bool = False
    rounds: bool = False
    packages: Mapping[str, str] = field(default_factory=dict)
    baseline: bool = False


@runtime_checkable
class RankingSelector(Protocol):
    """Ranks the documents of a memory; the best of them are put before the question."""

    needs: Needs

    def rank(self, finder: Finder, looks: Sequence[SearchQuery], depth: int) -> list[SearchResult]:
        """Rank documents for every look.

        Args:
            finder: of the documents that may be found: `search` by words, `documents` by their ids, all `ids`, and
                (with `Needs.model`) `route`, which finds none of the `unencoded`.
            depth: documents wanted of each ranking, where there are so many.
        """
        ...


@runtime_checkable
class RetrievingSelector(Protocol):
    """Chooses documents while it reads, round by round; it ranks none before."""

    needs: Needs

    def retriever(self, state: RoundState, finder: Finder, plan: Plan, sampling: Sampling) -> ContextRetriever: ...


SELECTORS: Registry[RankingSelector | RetrievingSelector] = Registry(
    "selector", "memspan.selectors", RankingSelector, RetrievingSelector
)


class Router:
    """The MSA layers' scores, summed up."""

    needs = Needs(routing=True, words=False)

    def rank(self, finder: Finder, looks: Sequence[SearchQuery], depth: int) -> list[SearchResult]:
        return [
            SearchResult(chosen(scaled(ranked), ranked, finder.router_fits(ranked, len(routed))), routed)
            for ranked, routed in finder.route(looks)
        ]


class Lexical:
    """Full-text search (BM25)."""

    needs = Needs(model=False)

    def rank(self, finder: Finder | TextFinder, looks: Sequence[SearchQuery], depth: int) -> list[SearchResult]:
        found = [by_words(finder, look, depth) for look in looks]
        return [SearchResult(chosen(scores, (), words_fits(scores))) for scores in found]


class Hybrid:
    """Both: a weighted sum of their scores."""

    needs = Needs(routing=True)

    def rank(self, finder: Finder, looks: Sequence[SearchQuery], depth: int) -> list[SearchResult]:
        found: list[SearchResult] = []
        for look, (ranked, routed) in zip(looks, finder.route(looks), strict=True):
            lexical = by_words(finder, look, depth)
            unencoded = finder.unencoded([document_id for document_id, _ in lexical])
            fits = fused_fits(lexical, finder.router_fits(ranked, len(routed)), unencoded)
            found.append(SearchResult(chosen(fuse(lexical, ranked, unencoded=unencoded), ranked, fits), routed))
        return found


class Generate:
    """The model itself, which names documents by their ids (paper 3.5)."""

    needs = Needs(routing=True, words=False, rounds=True)

    def retriever(self, state: RoundState, finder: Finder, plan: Plan, sampling: Sampling) -> ContextRetriever:
        from memspan.generate.named import GenerativeRetriever

        return GenerativeRetriever(state, finder, plan, sampling)


def by_words(finder: Finder | TextFinder, look: SearchQuery, depth: int) -> list[tuple[int, float]]:
    """Full-text search for a look: ids and scores, best first. The BM25 scores of both texts are added up: "When did
    she sign it?" finds what the turn before it spoke of, and a question of another subject its own."""
    found = finder.search(look.query, depth)
    if not look.before:
        return found
    return weighted_sum((1.0, found), (HISTORY_WEIGHT, finder.search(look.before, depth)))[:depth]


SELECTORS.register("router", Router())
SELECTORS.register("lexical", Lexical())
SELECTORS.register("hybrid", Hybrid())
SELECTORS.register("generate", Generate())
SELECTORS.register("dense", "memspan.generate.dense:Dense")
SELECTORS.register("fused", "memspan.generate.dense:Fused")
SELECTORS.register("rrf", "memspan.generate.dense:ReciprocalRanks")


def default_selector(router_trained: bool, reads_texts: bool = True) -> str:
    """`lexical` while a router is untrained (its scores mean nothing yet), `hybrid` after; where no text is read the
    router, since words alone find nothing but texts."""
    return "router" if not reads_texts else "hybrid" if router_trained else "lexical"


def ranking_selector(name: str) -> RankingSelector:
    """The selector of this name, which ranks.

    Raises:
        UnknownName: there is none.
        PluginError: it cannot be used; see `memspan.registry`.
    """
    if name in SELECTORS and isinstance(found := SELECTORS[name], RankingSelector):
        return found
    raise SELECTORS.none_of(selector_names(ranking=True, baselines=True), name)


def selector_names(ranking: bool = False, loaded: LoadedModel | None = None, baselines: bool = False) -> list[str]:
    """The selectors that are offered: all, or those that rank, or that a model can serve. Those of other packages that
    cannot be used are left out: whoever asks one of them meets its error."""
    names: list[str] = []
    for name in SELECTORS:
        with suppress(MemspanError):
            found = SELECTORS[name]
            if (baselines or not found.needs.baseline) and (isinstance(found, RankingSelector) or not ranking):
                if loaded is not None:
                    served_selector(name, loaded)
                names.append(name)
    return names


def served_selector(name: str, loaded: LoadedModel) -> RankingSelector | RetrievingSelector:
    """The selector of this name, which a model can serve.

    Raises:
        UnknownName: there is no such selector.
        MemspanError: the model's router is untrained, its template has no rounds, or a package is missing, and the
            selector needs it.
    """
    from memspan.text.rounds import RoundProtocol

    found = SELECTORS[name]
    check_packages(name)
    if found.needs.rounds:
        RoundProtocol(loaded.template)
    if found.needs.trained_router and not loaded.model.config.router_trained:
        raise MemspanError(
            f"the selector {name} needs a trained router, and this model's is untrained; load an adapter that trains "
            "it, or name another selector, as lexical"
        )
    return found


def check_packages(name: str, kinds: Registry[Any] = SELECTORS) -> None:
    """
    Raises:
        MemspanError: a package that the selector (or another entry with `needs`) needs is not installed.
    """
    for module, remedy in kinds[name].needs.packages.items():
        if find_spec(module) is None:
            raise MemspanError(f"the {kinds.kind} {name} needs {module}; install it: {remedy}")
