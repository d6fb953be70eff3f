"""One ranking of documents: over all MSA layers, by full-text search, or by both; and how many of it are chosen.

Who ranks stands in `memspan.generate.selectors`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # search by words alone needs no torch
    from memspan.routing.source import Candidates

# Share of the router's score in `hybrid`; measured by benchmarks/retrieval.py on held-out questions, see docs/LOG.md.
ROUTER_WEIGHT = 0.4


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
    """A chosen document. `layers`: how many MSA layers routed to it; None where nothing was routed."""

    document_id: int
    score: float
    layers: int | None


def chosen(scores: Sequence[tuple[int, float]], routed: Sequence[Ranked]) -> list[Selected]:
    """Documents with their scores as chosen ones, in order.

    Args:
        routed: the ranking over MSA layers; empty where nothing was routed.
    """
    layers = {found.document_id: found.layers for found in routed}
    absent = 0 if routed else None
    return [Selected(document_id, score, layers.get(document_id, absent)) for document_id, score in scores]


def fuse(
    lexical: Sequence[tuple[int, float]], routed: Sequence[Ranked], router_weight: float = ROUTER_WEIGHT
) -> list[tuple[int, float]]:
    """Convex combination of both scores. Scores, not ranks: rank fusion makes the best noise of one list a best hit.

    A BM25 score is divided by the best one's (0 is its natural floor); for the router's see `scaled`.
    """
    parts = [(document_id, (1 - router_weight) * score / lexical[0][1]) for document_id, score in lexical]
    parts += [(document_id, router_weight * score) for document_id, score in scaled(routed)]
    fused: dict[int, float] = {}
    for document_id, score in parts:
        fused[document_id] = fused.get(document_id, 0.0) + score
    return sorted(fused.items(), key=lambda item: (-item[1], item[0]))


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
