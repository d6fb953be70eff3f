"""`Finder`: which documents of a snapshot match, by whatever selector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import torch
from transformers import DynamicCache

from memspan.bank.catalog import StoredDocument
from memspan.bank.scope import Scope
from memspan.bank.snapshot import Snapshot
from memspan.bank.stored import still_pending
from memspan.errors import NotEncoded
from memspan.generate.decode import check_fits, prefill
from memspan.generate.lexical import SEARCH_DEPTH, chosen_evidence, nothing_stored
from memspan.generate.selectors import Needs, SearchQuery, SearchResult, ranking_selector
from memspan.model.convert import LoadedModel
from memspan.ops.similarity import SIMILARITIES
from memspan.places import quoted
from memspan.routing.local import LocalMemory, SourceMemory
from memspan.routing.ranking import Ranked, Selected, rank_documents, router_fits
from memspan.routing.ranks import Ranks
from memspan.routing.sharded import ShardedMemory
from memspan.text.packing import pack_contexts
from memspan.text.template import Passage, shown_passage
from memspan.types import Evidence, LayerRouting, Retrieved


class Finder:
    """Finds documents of one snapshot, within a scope."""

    def __init__(self, loaded: LoadedModel, snapshot: Snapshot, scope: Scope, ranks: Ranks | None = None) -> None:
        """
        Args:
            ranks: the processes that share the bank, if there are several.
        """
        self._loaded, self._snapshot, self._scope, self._ranks = loaded, snapshot, scope, ranks

    @property
    def received_bytes(self) -> int:
        """What other ranks sent to this process so far; 0 where it is the only one."""
        return 0 if self._ranks is None else self._ranks.received_bytes

    @cached_property
    def memory(self) -> SourceMemory:
        """What the MSA layers route over; made when something routes."""
        config, device = self._loaded.model.config, self._loaded.model.device
        selectable_N = self._snapshot.selectable_mask(self._scope)
        if self._ranks is not None:
            return ShardedMemory(
                self._snapshot, config.top_k_docs, self._ranks, selectable_N=selectable_N, device=device
            )
        shards, manifest, tiers = self._snapshot.shards, self._snapshot.manifest, self._snapshot.tiers
        return LocalMemory(shards, manifest, config.top_k_docs, selectable_N=selectable_N, device=device, tiers=tiers)

    @property
    def bank(self) -> object:
        """The open bank, by whose life whatever a selector keeps of it is bounded (a key for a weak dictionary)."""
        return self._snapshot.tiers

    def rank(self, selector: str, looks: Sequence[SearchQuery], depth: int) -> list[SearchResult]:
        """Rank documents for every look, at least `depth` by full-text search (where so many match)."""
        return ranking_selector(selector).rank(self, looks, max(depth, SEARCH_DEPTH))

    def search(self, query: str, limit: int) -> list[tuple[int, float]]:
        """Full-text search: ids and BM25 scores, best first."""
        return self._snapshot.search(query, limit, self._scope)

    def documents(self, ids: Sequence[int]) -> list[StoredDocument]:
        """Documents of the scope by their ids, in the order given."""
        return self._snapshot.documents(ids, self._scope)

    def unencoded(self, ids: Sequence[int]) -> set[int]:
        """Those of the ids whose documents have no latents yet, which routing cannot find."""
        return still_pending(self._snapshot.catalog, ids) if self._snapshot.num_pending else set()

    def route(self, looks: Sequence[SearchQuery]) -> list[tuple[list[Ranked], tuple[LayerRouting, ...]]]:
        """Route the contexts of looks, and rank what the MSA layers considered."""
        contexts = [look.context for look in looks if look.context is not None]
        assert len(contexts) == len(looks), "a routed look has a context"
        for context in contexts:
            check_fits(self._loaded, len(context.ids), 0)
        model, memory = self._loaded.model, self.memory
        packed = pack_contexts(contexts, self._loaded.offset).to(model.device)
        retrieved: dict[int, Retrieved] = {}
        prefill(model, packed, memory, retrieved, DynamicCache(config=model.config.text_config))
        return [(self.ranking(memory, row), routing_of(retrieved, row)) for row in range(len(contexts))]

    def ranking(self, memory: SourceMemory, row: int) -> list[Ranked]:
        """The ranking over all MSA layers of what a memory considered for one question."""
        considered = {layer: found[row] for layer, found in memory.candidates.items()}
        return rank_documents(considered, self._loaded.model.config.top_k_docs)

    def router_fits(self, ranked: Sequence[Ranked], num_layers: int) -> dict[int, float] | None:
        """How well routed documents fit, 0 to 1; None where the model's similarity has no bound."""
        is_bounded = getattr(SIMILARITIES[self._loaded.model.config.similarity], "bounded", False)
        return router_fits(ranked, num_layers) if is_bounded else None

    def ids(self) -> list[int]:
        """The live documents in the scope, encoded or not, in the order they were added."""
        return self._snapshot.ids(self._scope)

    def in_scope(self, document_ids: Sequence[int]) -> list[int]:
        """Those of the ids that are of documents in the scope, in order."""
        shards, wanted_K = self._snapshot.shards, torch.tensor(document_ids, dtype=torch.int64)
        masks = self._snapshot.selectable_mask(self._scope).split([len(shard.ids_N) for shard in shards])
        there: set[int] = set()
        for shard, mask_N in zip(shards, masks, strict=True):
            found_K, places_K = shard.find(wanted_K)
            there.update(wanted_K[found_K[mask_N[places_K]]].tolist())
        return [document_id for document_id in document_ids if document_id in there]

    def evidence(self, selected: Sequence[Selected]) -> list[Evidence]:
        """The stored documents that were chosen, in order."""
        return chosen_evidence(selected, self.documents([found.document_id for found in selected]))


def routing_of(retrieved: Mapping[int, Retrieved], row: int) -> tuple[LayerRouting, ...]:
    """What every MSA layer routed one question of a batch to."""
    return tuple(
        LayerRouting(layer, found.doc_ids[row], found.scores[row]) for layer, found in sorted(retrieved.items())
    )


def passages_of(items: Iterable[Evidence]) -> list[Passage]:
    """Documents as they are put before the model."""
    return [shown_passage(x.document_id, x.title, x.text, x.date) for x in items]


def holds_any(snapshot: Snapshot, scope: Scope, place: str) -> bool:
    """Whether a scope holds anything of a snapshot of this bank.

    Raises:
        EmptyBank: nothing is stored, whatever the scope.
    """
    if not snapshot.holds():
        raise nothing_stored(place, snapshot.namespace)
    return snapshot.holds(scope)


def check_encoded(snapshot: Snapshot, scope: Scope, needs: Needs, place: str) -> None:
    """
    Raises:
        NotEncoded: documents are found by latents alone, and none has any yet.
    """
    if needs.routing and not needs.words and not snapshot.selectable_mask(scope).any():
        raise NotEncoded(
            f"none of the documents in {place} that may be found is encoded yet; encode them with: "
            f"memspan encode {quoted(place)}, or ask with a selector that finds words (lexical, hybrid)"
        )
