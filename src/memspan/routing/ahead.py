"""Content on its way to an accelerator before a layer asks for it: the next one often selects the same documents."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from memspan.errors import MemspanError
from memspan.ops.transfer import start_to_device

_log = logging.getLogger(__name__)

_Copies = tuple[list[int], Callable[[], torch.Tensor]]


class ContentAhead:
    """Reads the content of documents in a thread, and copies it on a stream of its own, while a layer is computed.

    Args:
        read: gives K and V of documents in an MSA layer, `[rows, 2, G, D]` each, on the CPU; from any thread.
        device: where they go.
    """

    def __init__(self, read: Callable[[int, Sequence[int]], list[torch.Tensor]], device: torch.device) -> None:
        self._read, self._device = read, device
        self._begun: tuple[int, Sequence[int], Future[_Copies]] | None = None

    def start(self, layer: int, ids: Sequence[int]) -> None:
        """Begin for a layer: nothing waits for it but `take`."""
        self._begun = (layer, ids, _threads().submit(self._copy, layer, ids)) if ids else None

    def take(self, layer: int) -> dict[int, torch.Tensor]:
        """What was begun for a layer, by document, on the device; what another was begun for is given up."""
        begun, self._begun = self._begun, None
        if begun is None or begun[2].cancel() or begun[0] != layer:
            return {}
        try:
            lengths, copied = begun[2].result()
        except (MemspanError, OSError, RuntimeError) as error:  # whoever needs it reads it, and meets the error
            _log.info("content was not read ahead: %s", error)
            return {}
        return dict(zip(begun[1], copied().split(lengths), strict=True))

    def _copy(self, layer: int, ids: Sequence[int]) -> _Copies:
        contents = self._read(layer, ids)
        return [len(rows) for rows in contents], start_to_device(torch.cat(contents), self._device)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2, "memspan-content")
