"""`Snapshot`: what one namespace of a bank held at one moment; text, full-text index and latents agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from memspan.bank.catalog import Catalog, StoredDocument
from memspan.bank.manifest import Manifest
from memspan.bank.scope import EVERYTHING, Scope
from memspan.bank.shard import Shard
from memspan.bank.tiers import TensorCache, Tiers


class Snapshot:
    """Made by `MemoryBank.snapshot`; a context manager. For one thread at a time.

    What is committed while it is open is not seen. It keeps files that the bank no longer needs on disk, and the log
    of the catalog from being emptied, so do not keep one for ever.

    Attributes:
        namespace: whose documents these are; no others can be reached from here.
        commit: the number of changes the bank had seen.
        shards: its segments, with the documents that live.
        tiers: what of the bank is kept in memory.
        catalog: as it was then.
        num_pending: live documents that are not encoded yet: they are found by words only.
    """

    def __init__(
        self,
        namespace: str,
        commit: int,
        manifest: Manifest,
        shards: Sequence[Shard],
        catalog: Catalog,
        close: Callable[[], None],
        tiers: Tiers,
        masks: TensorCache,
        num_pending: int,
    ) -> None:
        """
        Args:
            masks: those that snapshots of this commit and namespace have made, by scope.
        """
        self.namespace, self.commit, self.manifest, self.shards = namespace, commit, manifest, tuple(shards)
        self.catalog, self._close, self.tiers = catalog, close, tiers
        self._masks, self.num_pending = masks, num_pending
        self._open = True

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._close()

    @property
    def num_documents(self) -> int:
        """Live documents, encoded or not."""
        return self.num_pending + sum(int(shard.live_N.sum()) for shard in self.shards)

    def holds(self, scope: Scope = EVERYTHING) -> bool:
        """Whether any document, encoded or not, is in a scope. Raises as `selectable_mask` does."""
        return bool(self.selectable_mask(scope).any()) or bool(self.catalog.page(self.namespace, 0, 1, scope))

    def ids(self, scope: Scope = EVERYTHING) -> list[int]:
        """Live documents in a scope, encoded or not, in the order they were added. Raises as `selectable_mask` does."""
        if self.num_pending or scope.is_past:
            return self.catalog.ids_in_scope(self.namespace, scope).tolist()
        ids_N = torch.cat([torch.empty(0, dtype=torch.int64), *(shard.ids_N for shard in self.shards)])
        return ids_N[self.selectable_mask(scope)].sort().values.tolist()

    def search(self, question: str, limit: int, scope: Scope = EVERYTHING) -> list[tuple[int, float]]:
        """Full-text search: ids and BM25 scores, best first."""
        assert self._open, "a closed snapshot shows nothing"
        return self.catalog.search(self.namespace, question, limit, scope)

    def documents(self, ids: Sequence[int], scope: Scope = EVERYTHING) -> list[StoredDocument]:
        """Documents of a scope by their ids, in the order given; others are left out."""
        assert self._open, "a closed snapshot shows nothing"
        return self.catalog.documents(self.namespace, ids, scope)

    def selectable_mask(self, scope: Scope = EVERYTHING) -> torch.Tensor:
        """For every encoded document, shard after shard, whether it is in the scope, `[N]` bool.

        Raises:
            FilterError: nothing matches, and no document has a field that the filter names.
        """
        expired = self.catalog.last_expiry(self.namespace)
        return self._masks.get((scope, expired), lambda: self._selectable_mask(scope, expired is not None))

    def _selectable_mask(self, scope: Scope, some_expired: bool) -> torch.Tensor:
        masks = [torch.ones_like(shard.live_N) if scope.is_past else shard.live_N for shard in self.shards]
        if scope or some_expired:
            allowed = torch.from_numpy(self.catalog.ids_in_scope(self.namespace, scope))
            masks = [live_N & shard.contains_mask(allowed) for live_N, shard in zip(masks, self.shards, strict=True)]
        return torch.cat(masks) if masks else torch.empty(0, dtype=torch.bool)
