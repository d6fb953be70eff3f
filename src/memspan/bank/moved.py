"""Routing keys that an accelerator keeps: those of the first readers, in 8 bits and, where there is room, as stored."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, repeat
from weakref import WeakKeyDictionary

import torch

from memspan.bank.segment import LATENT_DTYPE
from memspan.bank.shard import Layout, Reader
from memspan.errors import BudgetError
from memspan.ops.coarse import CoarseKeys
from memspan.ops.scoring import has_float64
from memspan.ops.transfer import to_device
from memspan.places import gigabytes

_log = logging.getLogger(__name__)

# What an accelerator keeps free for weights' copies, prompts and their K and V: so much, and a share of its memory.
_LEAST_RESERVE, _RESERVED_SHARE = 2**31, 0.2
# Of keys, on accelerators that do not say how much memory is free.
_UNKNOWN_DEVICE_BYTES = 2**32


@dataclass(frozen=True, slots=True)
class _Pool:
    """Keys of some readers by MSA layer, one reader behind the other: one call scores them all.

    Attributes:
        coarse: in 8 bits.
        stored: as the bank has them, `[rows, W]`; empty where there is no room for them.
    """

    coarse: dict[int, CoarseKeys]
    stored: dict[int, torch.Tensor]

    @property
    def nbytes(self) -> int:
        return sum(kept.nbytes for kept in (*self.coarse.values(), *self.stored.values()))


@dataclass(frozen=True, slots=True)
class Run:
    """Rows of several readers that lie together on an accelerator.

    Attributes:
        first, last: its first row, counted over all readers, and the one after its last.
        has_stored: whether the stored keys are there, too.
    """

    pool: _Pool
    start: int
    first: int
    last: int

    @property
    def has_stored(self) -> bool:
        return bool(self.pool.stored)

    def coarse(self, layer: int) -> CoarseKeys:
        keys = self.pool.coarse[layer]
        return CoarseKeys(keys.key_CW[self._rows], keys.scale_C[self._rows])

    def stored(self, layer: int) -> torch.Tensor:
        return self.pool.stored[layer][self._rows]

    @property
    def _rows(self) -> slice:
        return slice(self.start, self.start + self.last - self.first)


@dataclass(frozen=True, slots=True)
class MovedRows:
    """What routing knows on an accelerator of the rows whose keys are there, the first of a layout.

    Attributes:
        document_C: the document of a row, int32.
        barred_C: rows that must not be selected; None: there are none.
        first_N, rows_N: a document's first row, and how many it has, int32.
        most_rows: of a document.
    """

    document_C: torch.Tensor
    barred_C: torch.Tensor | None
    first_N: torch.Tensor
    rows_N: torch.Tensor
    most_rows: int

    @classmethod
    def of(cls, layout: Layout, barred_C: torch.Tensor | None, num_rows: int, device: torch.device) -> MovedRows:
        document_C = layout.document_C[:num_rows]
        rows_N = torch.bincount(document_C)
        first_N = rows_N.cumsum(0) - rows_N
        moved = (to_device(one.int(), device) for one in (document_C, first_N, rows_N))
        document_C, first_N, counts_N = moved
        barred_C = None if barred_C is None else to_device(barred_C[:num_rows], device)
        return cls(document_C, barred_C, first_N, counts_N, int(rows_N.max()) if len(rows_N) else 0)


class MovedKeys:
    """Has an accelerator keep routing keys within a budget. For any number of threads.

    Attributes:
        budget: bytes of keys; None: what is free there at first, less a reserve.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        self._room: int | None = None
        self._places: WeakKeyDictionary[Reader, tuple[_Pool, int, int]] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._told = False

    def move(self, readers: Sequence[Reader], layers: Sequence[int], device: torch.device) -> int:
        """Have an accelerator keep the routing keys of the first readers, in 8 bits, as far as the budget goes; and of
        those that are new the stored ones, as far as the rest goes, where the bank has them on this machine.

        Returns:
            Of how many readers it keeps keys.

        Raises:
            BudgetError: the budget was given and has no room for the first of them.
        """
        with self._lock:
            if self._room is None:
                self._room = free_bytes(device) if self.budget is None else self.budget
            new = [reader for reader in readers if reader not in self._places]
            if new and new[0] is readers[0]:
                self._check_room(_coarse_bytes(new[0], len(layers)))
            if new:
                self._move(new, self._room - self._used, layers, device)
            return next((place for place, reader in enumerate(readers) if reader not in self._places), len(readers))

    def _move(self, new: list[Reader], room: int, layers: Sequence[int], device: torch.device) -> None:
        sizes = list(accumulate((_coarse_bytes(reader, len(layers)) for reader in new), initial=0))
        if sizes[-1] > room and not self._told:
            self._told = True
            given = "GPU memory budget" if self.budget is not None else "memory that is free there"
            _log.warning(
                "%s has no room for all routing keys: %s are wanted, and the %s leaves %s; "
                "the others are scored on the CPU",
                *(device, gigabytes(sizes[-1], up=True), given, gigabytes(room)),
            )
        new = new[: sum(size <= room for size in sizes[1:])]
        rest = room - sizes[len(new)]
        sizes = accumulate(reader.keys_bytes if reader.has_stored else rest + 1 for reader in new)
        count = sum(size <= rest for size in sizes) if has_float64(device) else 0
        if self._add(new[:count], layers, device, with_stored=True):
            self._add(new[count:], layers, device, with_stored=False)

    def runs(self, readers: Sequence[Reader]) -> list[Run]:
        """Where the keys of readers lie that were moved."""
        runs, first = list[Run](), 0
        for reader in readers:
            pool, start, rows = self._places[reader]
            before = runs[-1] if runs else None
            if before is not None and before.pool is pool and before.start + before.last - before.first == start:
                runs[-1] = replace(before, last=before.last + rows)
            else:
                runs.append(Run(pool, start, first, first + rows))
            first += rows
        return runs

    @property
    def _used(self) -> int:
        """Bytes of all keys that are there; a pool leaves with the last of its readers."""
        pools = {id(pool): pool for pool, _, _ in self._places.values()}
        return sum(pool.nbytes for pool in pools.values())

    def _check_room(self, least: int) -> None:
        if self.budget is not None and least > self.budget:
            raise BudgetError(
                f"a GPU memory budget of {gigabytes(self.budget)} has no room for the routing keys of "
                f"one segment; give at least {gigabytes(least, up=True)}, or --device cpu"
            )

    def _add(
        self, readers: Sequence[Reader], layers: Sequence[int], device: torch.device, *, with_stored: bool
    ) -> bool:
        """Move keys of readers, of the first half of them where memory runs out. Returns whether it did not."""
        is_all = True
        while readers:
            rows = [_num_rows(reader) for reader in readers]
            starts = list(accumulate(rows, initial=0))
            try:
                pool = _Pool({layer: _coarse(readers, starts, layer, device) for layer in layers}, {})
            except torch.OutOfMemoryError:
                size = sum(_coarse_bytes(reader, len(layers)) for reader in readers)
                _log.warning("%s has no room for %s of keys; they stay on the CPU", device, gigabytes(size))
                readers, is_all = readers[: len(readers) // 2], False
                continue
            if with_stored and is_all:
                _add_stored(pool, readers, starts, device)
            self._places.update(zip(readers, zip(repeat(pool), starts, rows, strict=False), strict=True))
            break
        if not is_all:
            self._room = self._used  # what did not fit is not tried again
        return is_all


def free_bytes(device: torch.device) -> int:
    """Memory of an accelerator that may go to routing keys: what is free now, less a reserve for answering."""
    if device.type != "cuda":
        return _UNKNOWN_DEVICE_BYTES
    free, total = torch.cuda.mem_get_info(device)
    return max(0, free - reserved_bytes(total))


def reserved_bytes(total: int) -> int:
    """What an accelerator with so much memory keeps free for answering."""
    return max(_LEAST_RESERVE, int(total * _RESERVED_SHARE))


def _num_rows(reader: Reader) -> int:
    return int(reader.documents_N4[:, 2].sum())


def _coarse_bytes(reader: Reader, num_layers: int) -> int:
    """What the keys of a reader take on an accelerator: bfloat16 becomes int8, and a scale a row."""
    return reader.keys_bytes // 2 + 4 * _num_rows(reader) * num_layers


def _coarse(readers: Sequence[Reader], starts: Sequence[int], layer: int, device: torch.device) -> CoarseKeys:
    """A layer's keys of readers; those of a file need not stay in memory beside them."""
    width = readers[0].coarse_keys(layer).key_CW.shape[1]
    key_CW = torch.empty(starts[-1], width, dtype=torch.int8, device=device)
    scale_C = torch.empty(starts[-1], device=device)
    for reader, first, last in zip(readers, starts, starts[1:], strict=False):
        keys = reader.coarse_keys(layer)
        key_CW[first:last].copy_(to_device(keys.key_CW, device))
        scale_C[first:last].copy_(to_device(keys.scale_C, device))
        reader.give_back_coarse(layer)
    return CoarseKeys(key_CW, scale_C)


def _add_stored(pool: _Pool, readers: Sequence[Reader], starts: Sequence[int], device: torch.device) -> None:
    """Move the stored keys of a pool's readers, too, if memory does not run out."""
    try:
        for layer, coarse in pool.coarse.items():
            pool.stored[layer] = key_CW = torch.empty_like(coarse.key_CW, dtype=LATENT_DTYPE)
            for reader, first in zip(readers, starts, strict=False):
                for part_CW in reader.stored_keys(layer):
                    key_CW[first : first + len(part_CW)].copy_(to_device(part_CW, device))
                    first += len(part_CW)
    except torch.OutOfMemoryError:
        pool.stored.clear()
        _log.warning("%s has no room for keys as they are stored; candidates are scored exactly on the CPU", device)
