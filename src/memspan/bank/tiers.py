"""What of a bank is kept in memory (paper 3.4.2): routing keys of every segment, or of as many as a budget allows; and
the content of documents that were read last.

The other segments' keys are scored where they lie on disk, a layer at a time, and given back after each.
"""

from __future__ import annotations

import operator
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import psutil
import torch

from memspan.bank.moved import MovedKeys, MovedRows, Run
from memspan.bank.shard import Layout, Reader, Shard
from memspan.errors import BudgetError
from memspan.places import gigabytes

# Of content, kept unless a budget says less.
CACHE_BYTES = 2**28
# Of a budget's rest, what goes to content.
_CACHE_SHARE = 8
# For what a question takes while it is routed: coarse scores, candidates, content of the selected.
_SCRATCH_BYTES = 2**26


class TensorCache:
    """Tensors by key, those read last, of at most so many bytes. For any number of threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes, self.hits, self.misses = max_bytes, 0, 0, 0
        self._kept: OrderedDict[Hashable, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, key: Hashable, read: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What is kept under a key, or what `read` gives, which is then kept."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                self.hits += 1
                return found
            self.misses += 1
        read_now = read()
        with self._lock:
            if key not in self._kept and read_now.nbytes <= self.max_bytes:
                self._kept[key] = read_now
                self.bytes += read_now.nbytes
            self._shrink()
        return read_now

    def resize(self, max_bytes: int) -> None:
        with self._lock:
            self.max_bytes = max_bytes
            self._shrink()

    def _shrink(self) -> None:
        while self.bytes > self.max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.bytes -= dropped.nbytes


class Tiers:
    """Divides a budget of memory: for the whole process, what it holds already included; and that of an accelerator.

    Attributes:
        budget: in bytes; None: all routing keys are kept, and `CACHE_BYTES` of content.
        content: the cache.
    """

    def __init__(self, budget: int | None = None, device_budget: int | None = None) -> None:
        self.budget, self._moved = budget, MovedKeys(device_budget)
        self._moved_rows: tuple[tuple[Layout, torch.Tensor | None, int], MovedRows] | None = None
        self.content = TensorCache(CACHE_BYTES)
        self._base: int | None = None
        self._layout: tuple[list[torch.Tensor], Layout] | None = None
        self._barred: tuple[Layout, torch.Tensor, torch.Tensor | None] | None = None

    def layout(self, shards: Sequence[Shard]) -> Layout:
        """The layout of some shards; the last one is kept, since the next question is over the same."""
        documents = [shard.ids_N for shard in shards]
        known = self._layout
        if known is None or len(known[0]) != len(documents) or any(map(operator.is_not, known[0], documents)):
            known = self._layout = documents, Layout.of(shards)
        return known[1]

    def barred(self, layout: Layout, selectable_N: torch.Tensor) -> torch.Tensor | None:
        """Of every row of a layout whether it may not be selected, `[C]` bool; None where all may. The last is kept."""
        known = self._barred
        if known is None or known[0] is not layout or known[1] is not selectable_N:
            barred_C = None if bool(selectable_N.all()) else ~selectable_N[layout.document_C]
            known = self._barred = layout, selectable_N, barred_C
        return known[2]

    def resident(self, readers: Sequence[Reader], num_layers: int) -> list[bool]:
        """For every shard whether its routing keys stay in memory: the first ones, as far as the budget goes.

        Raises:
            BudgetError: the budget has no room for one tile (a layer of the largest segment) beside what the process
                holds already.
        """
        if self.budget is None:
            return [True] * len(readers)
        if self._base is None:
            self._base = resident_bytes()
        sizes = [reader.mapped_coarse_bytes for reader in readers]
        least = self._base + _SCRATCH_BYTES + max(sizes, default=0)
        if self.budget < least:
            raise BudgetError(
                f"a memory budget of {gigabytes(self.budget)} is too small; give at least "
                f"{gigabytes(least, up=True)}: the process takes {gigabytes(self._base)} without routing keys, a "
                f"question {gigabytes(_SCRATCH_BYTES)} and one tile of keys {gigabytes(max(sizes, default=0))}"
            )
        rest = self.budget - least
        cache = min(CACHE_BYTES, rest // _CACHE_SHARE)
        self.content.resize(cache)
        rest -= cache
        kept = []
        for size in sizes:
            kept.append(size * num_layers <= rest)
            rest -= size * num_layers if kept[-1] else 0
        return kept

    def move(self, readers: Sequence[Reader], layers: Sequence[int], device: torch.device) -> int:
        """See `MovedKeys.move`."""
        return self._moved.move(readers, layers, device)

    def runs(self, readers: Sequence[Reader]) -> list[Run]:
        """See `MovedKeys.runs`."""
        return self._moved.runs(readers)

    def moved_rows(
        self, layout: Layout, barred_C: torch.Tensor | None, num_rows: int, device: torch.device
    ) -> MovedRows:
        """What routing knows on the accelerator of the first rows of a layout; the last is kept."""
        known, given = self._moved_rows, (layout, barred_C, num_rows)
        if known is None or any(map(operator.is_not, known[0][:2], given)) or known[0][2] != num_rows:
            known = self._moved_rows = given, MovedRows.of(layout, barred_C, num_rows, device)
        return known[1]


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return psutil.Process().memory_info().rss
