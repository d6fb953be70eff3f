"""One ranking of documents: over all MSA layers, by full-text search, or by both; and how many of it are chosen.

Who ranks stands in `memspan.generate.selectors`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # search by words alone needs no torch
    from memspan.routing.source import Candidates

# Share of the router's score in `hybrid`; measured by benchmarks/retrieval.py on held-out questions, see docs/LOG.md.
ROUTER_WEIGHT = 0.4
# Weight of the words of a conversation's newest turns beside those of the question; see docs/LOG.md.
HISTORY_WEIGHT = 0.2
# The BM25 score that counts 0.5 of 1; measured on the example notes, see docs/LOG.md.
_HALF_BM25 = 8.0


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document with its score over all MSA layers and the number of layers that chose it (had it in their top k)."""

    document_id: int
    score: float
    layers: int


def rank_documents(candidates: Mapping[int, Candidates], top_k: int) -> list[Ranked]:
    """Fuse one question's routing over MSA layers: the sum over layers of the document's score there.

    A layer that did not consider a document counts with the lowest score it did consider, which bounds the
    document's from above. Best first, ties by id.

    Args:
        candidates: per MSA layer what it considered (`LocalMemory.candidates`).
        top_k: documents a layer attends to.
    """
    scores: dict[int, float] = {}
    layers: dict[int, int] = {}
    floor_total = 0.0
    for found in candidates.values():
        ids, values = found.ids.tolist(), found.scores.tolist()
        if not ids:
            continue
        floor_total += values[-1]
        for place, (document_id, value) in enumerate(zip(ids, values, strict=True)):
            # Scores are kept relative to each layer's floor, so that absence adds nothing.
            scores[document_id] = scores.get(document_id, 0.0) + value - values[-1]
            layers[document_id] = layers.get(document_id, 0) + (place < top_k)
    ranked = [Ranked(document_id, floor_total + score, layers[document_id]) for document_id, score in scores.items()]
    return sorted(ranked, key=lambda found: (-found.score, found.document_id))


@dataclass(frozen=True, slots=True)
class Selected:
    """A chosen document.

    Attributes:
        score: by which it was ranked; comparable within one ranking only.
        layers: how many MSA layers routed to it; None where nothing was routed.
        fit: how well it fits the question, 0 to 1: the same whatever else was found. None: its selector does not say.
    """

    document_id: int
    score: float
    layers: int | None
    fit: float | None = None


def chosen(
    scores: Sequence[tuple[int, float]], routed: Sequence[Ranked], fits: Mapping[int, float] | None = None
) -> list[Selected]:
    """Documents with their scores as chosen ones, in order.

    Args:
        routed: the ranking over MSA layers; empty where nothing was routed.
        fits: of each document. None is said to fit better than one that is ranked before it.
    """
    layers = {found.document_id: found.layers for found in routed}
    absent, least, selected = 0 if routed else None, 1.0, list[Selected]()
    for document_id, score in scores:
        least = least if fits is None else min(least, fits[document_id])
        fit = None if fits is None else least
        selected.append(Selected(document_id, score, layers.get(document_id, absent), fit))
    return selected


def router_fits(routed: Sequence[Ranked], num_layers: int) -> dict[int, float]:
    """How well documents fit by cosines: their mean over MSA layers, one that points away being 0."""
    return {found.document_id: min(1.0, max(0.0, found.score / num_layers)) for found in routed}


def words_fits(lexical: Sequence[tuple[int, float]]) -> dict[int, float]:
    """How well documents fit by words: their BM25 score, which has no bound, bent to 0..1."""
    return {document_id: score / (score + _HALF_BM25) for document_id, score in lexical}


def fused_fits(
    lexical: Sequence[tuple[int, float]], of_router: Mapping[int, float] | None, unencoded: Collection[int] = ()
) -> dict[int, float] | None:
    """How well documents fit by both, as `fuse` adds them up. None: the router does not say."""
    if of_router is None:
        return None
    of_words = words_fits(lexical)
    of_router = {**of_router, **dict(_of_words_alone(of_words.items(), unencoded))}
    return {
        document_id: (1 - ROUTER_WEIGHT) * of_words.get(document_id, 0.0)
        + ROUTER_WEIGHT * of_router.get(document_id, 0.0)
        for document_id in of_words.keys() | of_router.keys()
    }


def fuse(
    lexical: Sequence[tuple[int, float]],
    routed: Sequence[Ranked],
    router_weight: float = ROUTER_WEIGHT,
    unencoded: Collection[int] = (),
) -> list[tuple[int, float]]:
    """Convex combination of both scores. Scores, not ranks: rank fusion makes the best noise of one list a best hit.

    A BM25 score is divided by the best one's (0 is its natural floor); for the router's see `scaled`. What only one of
    both found is 0 for the other.

    Args:
        unencoded: documents that the router cannot find yet; their words count for both.
    """
    of_words = [(document_id, score / lexical[0][1]) for document_id, score in lexical]
    of_router = [*scaled(routed), *_of_words_alone(of_words, unencoded)]
    return weighted_sum((1 - router_weight, of_words), (router_weight, of_router))


def _of_words_alone(of_words: Iterable[tuple[int, float]], unencoded: Collection[int]) -> list[tuple[int, float]]:
    return [(document_id, score) for document_id, score in of_words if document_id in unencoded]


def weighted_sum(*rankings: tuple[float, Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """One ranking of several, each with its weight, best first; a document that one lacks has the score 0 there."""
    total: dict[int, float] = {}
    for weight, ranking in rankings:
        for document_id, score in ranking:
            total[document_id] = total.get(document_id, 0.0) + weight * score
    return sorted(total.items(), key=lambda item: (-item[1], item[0]))


def scaled(routed: Sequence[Ranked]) -> list[tuple[int, float]]:
    """Router scores from 1 for the best to 0 for the last one considered: a sum of cosines has no floor of its own."""
    if not routed:
        return []
    best, floor = routed[0].score, routed[-1].score
    spread = best - floor
    return [(found.document_id, (found.score - floor) / spread if spread else 1.0) for found in routed]


def keep_adaptively(selected: Sequence[Selected], at_most: int, share: float) -> list[Selected]:
    """As many of the best documents as matter: those scored at least `share` of the best, `at_most` of them."""
    if not selected:
        return []
    threshold = selected[0].score * share if selected[0].score > 0 else float("-inf")
    return [found for found in selected[:at_most] if found.score >= threshold]
