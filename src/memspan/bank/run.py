"""`EncodingRun`: encoding on its way, counted and reported batch by batch, until it is done or asked to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from memspan.bank.encode import Part, batches, encode_batch
from memspan.model.convert import LoadedModel
from memspan.types import AddReport

Progress = Callable[[AddReport], None]


class EncodingRun:
    """Encoding on its way: what is done is counted and reported here."""

    def __init__(
        self, loaded: LoadedModel, progress: Progress, should_stop: Callable[[], bool], batch_tokens: int
    ) -> None:
        self.report = AddReport()
        self._loaded, self._progress, self._should_stop = loaded, progress, should_stop
        self._batch_tokens = batch_tokens
        self._started = self._last_commit = time.monotonic()

    @property
    def seconds_since_commit(self) -> float:
        return time.monotonic() - self._last_commit

    def committed(self) -> None:
        self._last_commit = time.monotonic()

    def count(self, **more: int) -> None:
        """Add to the report's numbers."""
        numbers = {name: getattr(self.report, name) + number for name, number in more.items()}
        self.report = replace(self.report, seconds=time.monotonic() - self._started, **numbers)

    def batches(self, parts: Sequence[Part]) -> list[list[Part]]:
        """Parts as they are encoded together."""
        return list(batches(parts, self._batch_tokens))

    def encode(self, batches: Iterable[Sequence[Part]]) -> None:
        """Encode batch by batch, unless asked to stop."""
        for batch in batches:
            if self.report.interrupted:
                return
            encode_batch(self._loaded, batch)
            self.count_batch(batch)
            self.report_progress()

    def count_batch(self, batch: Sequence[Part]) -> None:
        """Add a batch that is encoded to the report's numbers."""
        self.count(
            documents=len(batch),
            tokens=sum(part.document.tokens for part in batch),
            characters=sum(part.document.span.length for part in batch),
            chunks=sum(part.chunks for part in batch),
        )

    def report_progress(self) -> None:
        """Report how far it is, and ask whether to go on."""
        self._progress(self.report)
        if self._should_stop():
            self.interrupt()

    def interrupt(self) -> None:
        """Encode nothing more."""
        self.report = replace(self.report, interrupted=True)
