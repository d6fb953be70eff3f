"""`ShardedMemory`: Memory Parallel (paper 3.4.2). Every rank holds the routing keys and content of some segments: on
its accelerator, if it has one, as many of its keys as one process would keep there.

The router query is rank 0's. Every rank scores its own shards and sends its best documents; from these all choose the
same candidates, by the rule of one process: coarse scores are exact integer sums, and exact scores do not depend on the
shape of the call. The owners of the candidates score them exactly, the owners of the selected send their content. So N
ranks select, score and attend to exactly what one does. Weights are replicated, and every rank decodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memspan.bank.manifest import Manifest
from memspan.bank.segment import LATENT_DTYPE
from memspan.bank.snapshot import Snapshot
from memspan.errors import RankError
from memspan.routing.local import MOST_CANDIDATES, SourceMemory, best
from memspan.routing.ranks import Ranks
from memspan.routing.source import Candidates, LocalSource, accelerator
from memspan.text.packing import even_shares


class ShardedSource:
    """The documents of all ranks, as every rank sees them."""

    def __init__(self, local: LocalSource, manifest: Manifest, ranks: Ranks) -> None:
        self._local, self._ranks = local, ranks
        self._row_shape = manifest.content_shape[-3:]
        self._owner: dict[int, int] = {}
        # All ranks score the same questions together: as many as the one with the most rows can.
        self._at_once = -int(ranks.largest(torch.tensor([-local.questions_at_once])))
        self._count = 0

    @property
    def questions_at_once(self) -> int:
        return self._at_once

    def leading(self, layer: int, query_BTW: torch.Tensor, count: int) -> list[Candidates]:
        """See `Source.leading`."""
        self._count = count
        query_BTW = self._ranks.broadcast(query_BTW)
        return self._shared([best(found, count) for found in self._local.leading(layer, query_BTW, count)])

    def above(self, bounds: Sequence[float]) -> list[Candidates]:
        """See `Source.above`; of each rank no more than could be looked at."""
        most = max(self._count, MOST_CANDIDATES)
        return self._shared([best(found, most) for found in self._local.above(bounds)])

    def exact(self, layer: int, ids: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """See `Source.exact`."""
        mine = [torch.tensor([self._owner[i] == self._ranks.rank for i in x.tolist()], dtype=torch.bool) for x in ids]
        scored = self._local.exact(layer, [ids_K[mine_K] for ids_K, mine_K in zip(ids, mine, strict=True)])
        scores = [torch.full((len(ids_K),), float("-inf")) for ids_K in ids]
        for scores_K, mine_K, own in zip(scores, mine, scored, strict=True):
            scores_K[mine_K] = own
        return list(self._ranks.largest(torch.cat(scores)).split([len(ids_K) for ids_K in ids]))

    def content(self, layer: int, ids: Sequence[int]) -> list[torch.Tensor]:
        """See `Source.content`. Sent by the owners, each at once."""
        self._find(ids)
        of_rank: dict[int, list[int]] = {}
        for document_id in ids:
            of_rank.setdefault(self._owner[document_id], []).append(document_id)
        if not of_rank:
            return []
        own = self._local.content(layer, of_rank.get(self._ranks.rank, []))
        most = max(map(len, of_rank.values()))
        lengths = self._ranks.gather_even(torch.tensor([len(rows) for rows in own] + [0] * (most - len(own))))
        found: dict[int, torch.Tensor] = {}
        for rank, theirs in sorted(of_rank.items()):
            rows = lengths[rank][: len(theirs)].tolist()
            sent = torch.empty(sum(rows), *self._row_shape, dtype=LATENT_DTYPE)
            if rank == self._ranks.rank:
                sent = torch.cat(own)
            found.update(zip(theirs, self._ranks.broadcast(sent, rank).split(rows), strict=True))
        return [found[document_id] for document_id in ids]

    def _find(self, ids: Sequence[int]) -> None:
        """Ask all ranks who has documents that no question was routed to."""
        unknown = [document_id for document_id in ids if document_id not in self._owner]
        if unknown:
            held = torch.tensor([self._ranks.rank if self._local.holds(document_id) else -1 for document_id in unknown])
            self._owner.update(zip(unknown, self._ranks.largest(held).tolist(), strict=True))

    def prefetch(self, layer: int, ids: Sequence[int]) -> None:
        """See `Source.prefetch`."""
        own = [document_id for document_id in ids if self._owner[document_id] == self._ranks.rank]
        self._local.prefetch(layer, own)

    def _shared(self, own: list[Candidates]) -> list[Candidates]:
        """What all ranks found for every question."""
        counts = torch.tensor([len(found.ids) for found in own])
        parts = torch.cat([found.ids for found in own]), torch.cat([found.scores for found in own])
        counts, ids, scores = zip(*self._ranks.gather(counts, *parts), strict=True)
        for rank, ids_K in enumerate(ids):
            self._owner.update(dict.fromkeys(ids_K.tolist(), rank))
        ids_of = [x.split(counts_B.tolist()) for x, counts_B in zip(ids, counts, strict=True)]
        scores_of = [x.split(counts_B.tolist()) for x, counts_B in zip(scores, counts, strict=True)]
        return [
            Candidates(torch.cat([x[row] for x in ids_of]), torch.cat([x[row] for x in scores_of]))
            for row in range(len(own))
        ]


class ShardedMemory(SourceMemory):
    """The documents of a bank, over ranks that have all opened it.

    Attributes:
        ranks: the processes; counts what this one received.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        top_k: int,
        ranks: Ranks,
        *,
        selectable_N: torch.Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        """
        Args:
            snapshot: of the bank; all ranks must see the same commit.
            top_k, device: as for `SourceMemory`.
            selectable_N: for every document of the snapshot's shards whether it may be selected. Default: the live.

        Raises:
            RankError: the ranks have different banks or see different states of one; or there are more than segments.
        """
        manifest, shards = snapshot.manifest, snapshot.shards
        ranks.check_equal("what the bank holds", [f"commit {snapshot.commit} of {snapshot.namespace!r}"])
        ranks.check_equal("the bank's encoder", [manifest.encoder_fingerprint])
        ranks.check_equal("the documents selected per layer", [str(top_k)])
        if 0 < len(shards) < ranks.size:
            raise RankError(
                f"there are {ranks.size} ranks for {len(shards)} segments (small ones count together); "
                f"start at most {len(shards)}"
            )
        if selectable_N is None:
            selectable_N = snapshot.selectable_mask()
        masks = selectable_N.split([len(shard.ids_N) for shard in shards])
        mine = even_shares([len(shard.document_C) for shard in shards], ranks.size)[ranks.rank]
        source = LocalSource(
            [shards[place] for place in mine],
            manifest.msa_layers,
            torch.cat([selectable_N[:0], *(masks[place] for place in mine)]),
            tiers=snapshot.tiers,
            keys_on=accelerator(device),
        )
        self.ranks = ranks
        super().__init__(ShardedSource(source, manifest, ranks), manifest, top_k, device)
