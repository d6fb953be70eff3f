"""What routing costs over ranks: bytes that are read, bytes and collectives that travel. Counted, and seconds by them.

The terms are those of `memspan.routing.sharded`; tests hold them to what real ranks count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memspan.bank.manifest import Manifest
from memspan.routing.local import CANDIDATES_PER_SELECTED
from memspan.text.packing import even_shares

_ID, _SCORE, _SCALE, _LATENT = 8, 4, 4, 2


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions that are routed together.

    Attributes:
        questions, tokens: how many there are, and the routing tokens of each (B, T).
        top_k: documents that a question selects in an MSA layer.
        document_chunks: chunks of a document (C).
    """

    questions: int
    tokens: int
    top_k: int
    document_chunks: int


@dataclass(frozen=True, slots=True)
class RoutingCost:
    """Of routing some questions through all MSA layers, and reading the documents that they select.

    Attributes:
        key_bytes: routing keys in 8 bits that each rank reads.
        content_bytes: stored keys of candidates, and content of selected documents, that all ranks read together.
        received_bytes: payload that a rank receives, other than rank 0, which receives no queries.
        collectives: that all ranks take part in.
        steps: messages that wait for each other, over all collectives.
    """

    key_bytes: tuple[int, ...]
    content_bytes: int
    received_bytes: int
    collectives: int
    steps: int

    def seconds(self, memory: float, network: float, delay: float = 0.0) -> float:
        """The least time: of the rank that reads the most keys, then of what travels.

        Args:
            memory: bytes a second that a rank reads.
            network, delay: as for `network_seconds`.
        """
        return max(self.key_bytes) / memory + self.network_seconds(network, delay)

    def network_seconds(self, network: float, delay: float = 0.0) -> float:
        """The least time of what travels.

        Args:
            network: bytes a second that a rank receives.
            delay: seconds that a message takes from one rank to another.
        """
        return self.received_bytes / network + self.steps * delay


def coarse_key_bytes(manifest: Manifest) -> int:
    """Bytes of a chunk's routing keys in 8 bits, with their scales, over all MSA layers."""
    return len(manifest.msa_layers) * (manifest.key_width + _SCALE)


def routing_cost(manifest: Manifest, shards: Sequence[int], ranks: int, asked: Asked) -> RoutingCost:
    """What the usual case costs: more documents than candidates, and candidates that separate the best.

    Args:
        shards: chunks of every segment.
        ranks: how many divide them, as `ShardedMemory` does.
    """
    layers, selected = len(manifest.msa_layers), asked.questions * asked.top_k
    held = [sum(shards[place] for place in places) for places in even_shares(shards, ranks)]
    candidates = selected * CANDIDATES_PER_SELECTED
    row = 2 * manifest.key_width * _LATENT
    most = -(-selected // ranks)  # of one rank, where the selected are spread evenly
    owners = min(ranks, selected)
    foreign = selected - selected // ranks if ranks > 1 else 0
    received = received_bytes(manifest, ranks, asked, foreign * asked.document_chunks, most)
    return RoutingCost(
        key_bytes=tuple(chunks * coarse_key_bytes(manifest) for chunks in held),
        content_bytes=layers * asked.document_chunks * (candidates * row // 2 + selected * row),
        received_bytes=layers * received,
        collectives=layers * len(_collectives(owners, ranks)),
        steps=layers * sum(_collectives(owners, ranks)),
    )


def received_bytes(manifest: Manifest, ranks: int, asked: Asked, foreign_chunks: int, most_selected: int) -> int:
    """Payload of an MSA layer that a rank other than 0 receives. Rank 0 receives all but the queries (4 BTW bytes).

    Args:
        foreign_chunks: of the selected documents that other ranks hold.
        most_selected: the selected documents of the rank that holds most of them.
    """
    if ranks == 1:
        return 0
    queries = query_bytes(manifest, asked)
    candidates = asked.questions * asked.top_k * CANDIDATES_PER_SELECTED
    lengths = 3 * _ID + _ID * (asked.questions + most_selected)
    others = (ranks - 1) * (candidates * (_ID + _SCORE + _SCORE) + lengths)
    return queries + others + foreign_chunks * 2 * manifest.key_width * _LATENT


def query_bytes(manifest: Manifest, asked: Asked) -> int:
    """The queries of an MSA layer, in float32."""
    return asked.questions * asked.tokens * manifest.key_width * _SCORE


def _collectives(owners: int, ranks: int) -> list[int]:
    """Steps of every collective of an MSA layer: the queries; the candidates, after their number; the exact scores; the
    lengths of contents, and the contents of every owner."""
    if ranks == 1:
        return []
    gather, broadcast = ranks - 1, (ranks - 1).bit_length()
    return [broadcast, *[gather] * 4, *[broadcast] * owners]
