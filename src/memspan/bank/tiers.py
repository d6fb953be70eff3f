"""What of a bank is kept in memory (paper 3.4.2): routing keys of every segment, or of as many as a budget allows; and
the content of documents that were read last.

The other segments' keys are scored where they lie on disk, a layer at a time, and given back after each.
"""

from __future__ import annotations

import logging
import operator
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from weakref import WeakKeyDictionary

import psutil
import torch

from memspan.bank.shard import Layout, Reader, Shard
from memspan.errors import BudgetError
from memspan.ops.coarse import CoarseKeys
from memspan.ops.transfer import to_device
from memspan.places import gigabytes

_log = logging.getLogger(__name__)

# Of content, kept unless a budget says less.
CACHE_BYTES = 2**28
# Of a budget's rest, what goes to content.
_CACHE_SHARE = 8
# For what a question takes while it is routed: coarse scores, candidates, content of the selected.
_SCRATCH_BYTES = 2**26
# What an accelerator keeps free for weights' copies, prompts and their K and V: so much, and a share of its memory.
_LEAST_RESERVE, _RESERVED_SHARE = 2**31, 0.2
# Of keys, on accelerators that do not say how much memory is free.
_UNKNOWN_DEVICE_BYTES = 2**32


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
        device_budget: bytes of keys that an accelerator keeps; None: what is free there at first, less a reserve.
        content: the cache.
    """

    def __init__(self, budget: int | None = None, device_budget: int | None = None) -> None:
        self.budget, self.device_budget = budget, device_budget
        self._room: int | None = None
        self._moved: WeakKeyDictionary[Reader, dict[int, CoarseKeys]] = WeakKeyDictionary()
        self._moved_rows: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None] | None = None
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
        """Have an accelerator keep the routing keys of the first readers, in 8 bits, as far as its budget goes.

        Returns:
            Of how many it does.

        Raises:
            BudgetError: the budget was given and has no room for the first of them.
        """
        if self._room is None:
            self._room = free_bytes(device) if self.device_budget is None else self.device_budget
        rest = self._room
        for place, reader in enumerate(readers):
            size = self._bytes_moved(reader, len(layers))
            if self.device_budget is not None and size > self.device_budget and not place:
                raise BudgetError(
                    f"a GPU memory budget of {gigabytes(self.device_budget)} has no room for the routing keys of "
                    f"one segment; give at least {gigabytes(size, up=True)}, or --device cpu"
                )
            if size > rest:
                return place
            if reader not in self._moved:
                try:
                    self._moved[reader] = {layer: _moved(reader, layer, device) for layer in layers}
                except torch.OutOfMemoryError:
                    _log.warning("%s has no room for %s of keys; they stay on the CPU", device, gigabytes(size))
                    self._room -= rest  # what did not fit is not tried again
                    return place
            rest -= size
        return len(readers)

    def _bytes_moved(self, reader: Reader, num_layers: int) -> int:
        """What the keys of a reader take on an accelerator, where they are or would be."""
        if reader in self._moved:
            return sum(keys.nbytes for keys in self._moved[reader].values())
        # bfloat16 becomes int8, and a scale a row.
        return reader.keys_bytes // 2 + 4 * int(reader.documents_N4[:, 2].sum()) * num_layers

    def moved_keys(self, reader: Reader, layer: int) -> CoarseKeys:
        """Keys that an accelerator keeps since `move`."""
        return self._moved[reader][layer]

    def moved_rows(
        self, layout: Layout, barred_C: torch.Tensor | None, shards: Sequence[Shard], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Of the rows of the first shards of a layout, on the accelerator: their documents, and `barred`; kept."""
        known, C = self._moved_rows, sum(len(shard.document_C) for shard in shards)
        if known is None or known[0] is not layout.document_C or known[1] is not barred_C or len(known[2]) != C:
            document_C = to_device(layout.document_C[:C].int(), device)
            kept_C = None if barred_C is None else to_device(barred_C[:C], device)
            known = self._moved_rows = layout.document_C, barred_C, document_C, kept_C
        return known[2], known[3]


def free_bytes(device: torch.device) -> int:
    """Memory of an accelerator that may go to routing keys: what is free now, less a reserve for answering."""
    if device.type != "cuda":
        return _UNKNOWN_DEVICE_BYTES
    free, total = torch.cuda.mem_get_info(device)
    return max(0, free - max(_LEAST_RESERVE, int(total * _RESERVED_SHARE)))


def _moved(reader: Reader, layer: int, device: torch.device) -> CoarseKeys:
    """A layer's keys on an accelerator; those of a file need not stay in memory beside it."""
    keys = reader.coarse_keys(layer)
    moved = CoarseKeys(to_device(keys.key_CW, device), to_device(keys.scale_C, device))
    reader.give_back_coarse(layer)
    return moved


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return psutil.Process().memory_info().rss
