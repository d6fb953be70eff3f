"""One ranking of documents over all MSA layers: for evidence, for the text that is injected, for metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memspan.routing.source import Candidates


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
