"""`Encoders`: several processes that encode for one bank. Rank 0 reads the corpus and commits, every rank encodes.

    rank 0 (`Encoders`)                        the others (`encode_for_first`)
    deals a task to each rank             ->   encode it, and write a segment (`Encoder`)
    collects the rows of the manifest     <-
    ... and commits them every few seconds

Rank 0 alone opens the catalog. Tasks and ids are those of one process, so the latents are the same to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from memspan.bank.encode import EncodingRun, Part, manifest_of
from memspan.bank.encoded import EncodedSegment, EncodingTask, Origin
from memspan.bank.encoder import Encoder, task_of
from memspan.errors import RankError
from memspan.model.convert import LoadedModel
from memspan.types import AddReport

_MODELS = "their models"


class ProcessGroup(Protocol):
    """Processes that call the same functions in the same order (`memspan.routing.ranks.Ranks`).

    Raises:
        RankError: from every method: a process was lost, or did not answer in time.
    """

    rank: int
    size: int

    def check_equal(self, what: str, values: Sequence[str]) -> None:
        """See that all ranks have the same."""
        ...

    def deal(self, values: Sequence[Any] | None = None) -> Any:
        """This rank's own of the values that rank 0 has, one a rank."""
        ...

    def collect(self, value: Any) -> list[Any]:
        """The values of all ranks, in order."""
        ...


@dataclass(frozen=True, slots=True)
class _Order:
    """What a rank is to do next.

    Attributes:
        task: to encode; None: nothing this time.
        end: nothing more; the report of the whole run.
        error: nothing more; what rank 0 failed with.
    """

    task: EncodingTask | None = None
    end: AddReport | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a rank did of its order.

    Attributes:
        segments: fewer documents than were asked for where it was interrupted.
        error: what it failed with.
    """

    segments: Sequence[EncodedSegment] = ()
    interrupted: bool = False
    error: str = ""


class Encoders:
    """The processes that encode, as the one that adds sees them: itself alone, or the ranks of a group.

    A context: at its end the other ranks hear how it ended.

    Attributes:
        num_ranks: how many processes they are.
    """

    def __init__(self, run: EncodingRun, group: ProcessGroup | None, folder: Path, loaded: LoadedModel) -> None:
        """
        Args:
            group: of which this is rank 0; the others call `encode_for_first`. None: no others.
            folder: of the bank.

        Raises:
            RankError: the ranks have different models; a rank was lost (also from all methods).
        """
        assert group is None or group.rank == 0, "rank 0 adds, the others encode for it"
        self._run, self._group = run, None if group is None or group.size == 1 else group
        self._encoder = None if self._group is None else Encoder(loaded, bank=folder)
        self.num_ranks = 1 if group is None else group.size
        self._in_step = True  # the others wait for the next order; not for good once a rank failed or was lost
        if group is not None:
            group.check_equal(_MODELS, [manifest_of(loaded).encoder_fingerprint])

    def __enter__(self) -> Encoders:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._group is None or not self._in_step:
            return
        order = _Order(end=self._run.report) if error is None else _Order(error=_error_text(error))
        with contextlib.nullcontext() if error is None else contextlib.suppress(RankError):
            self._group.deal([order] * self.num_ranks)

    def hear(self) -> None:
        """Report how far it is; the ranks hear of each other."""
        if self._group is None:
            self._run.report_progress()
        else:
            self._encode_together([])

    def encode(self, parts: Sequence[list[Part]], origin: Origin) -> list[EncodedSegment]:
        """Encode, unless asked to stop: batches alone, or of several ranks a window each.

        Returns:
            What several ranks have written. Alone the parts have their latents, and nothing is written.
        """
        if self._group is None:
            self._run.encode(parts)
            return []
        return self._encode_together([task_of(origin, self._run.batch_tokens, window) for window in parts])

    def _encode_together(self, tasks: Sequence[EncodingTask]) -> list[EncodedSegment]:
        assert self._group is not None and self._encoder is not None, "there are other ranks"
        orders = [*map(_Order, tasks), *[_Order()] * (self.num_ranks - len(tasks))]
        self._in_step = False
        self._group.deal(orders)
        done = _together(self._group, partial(_do, orders[0], self._encoder, self._run))
        self._in_step = True
        for theirs in done[1:]:
            for segment in theirs.segments:
                self._run.count_encoded(segment.sizes)
        if any(theirs.interrupted for theirs in done):
            self._run.interrupt()
        self._run.report_progress()
        return [segment for theirs in done for segment in theirs.segments]


def encode_for_first(
    folder: str | Path, loaded: LoadedModel, group: ProcessGroup, *, should_stop: Callable[[], bool] = lambda: False
) -> AddReport:
    """What every rank but 0 does while that one adds documents (`add_documents` with this group).

    Encodes the tasks that it is dealt, and writes segments into the bank's folder; nothing else of the bank is touched.

    Args:
        folder: of the bank; rank 0 must see the files that are written there.
        should_stop: asked after every batch; when True, all ranks stop, and rank 0 commits what is encoded.

    Returns:
        The report of the whole run.

    Raises:
        RankError: a rank failed or was lost, or the ranks have different models.
    """
    group.check_equal(_MODELS, [manifest_of(loaded).encoder_fingerprint])
    run, encoder = EncodingRun(loaded, should_stop=should_stop), Encoder(loaded, bank=folder)
    while True:
        order: _Order = group.deal()
        if order.end is not None:
            return order.end
        if order.error:
            raise _failed(0, order.error)
        _together(group, partial(_do, order, encoder, run))


def _do(order: _Order, encoder: Encoder, run: EncodingRun) -> _Outcome:
    segments = [] if order.task is None else encoder.encode(order.task, run)
    return _Outcome(segments, run.report.interrupted)


def _together(group: ProcessGroup, own: Callable[[], _Outcome]) -> list[_Outcome]:
    """Do one's own task, and hear what all did of theirs.

    Raises:
        RankError: on all ranks, where one of them failed; names it, and why.
    """
    try:
        done = own()
    except Exception as error:
        with contextlib.suppress(RankError):
            group.collect(_Outcome(error=_error_text(error)))
        raise _failed(group.rank, _error_text(error)) from error
    found = group.collect(done)
    for rank, theirs in enumerate(found):
        if theirs.error:
            raise _failed(rank, theirs.error)
    return found


def _error_text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _failed(rank: int, error: str) -> RankError:
    return RankError(
        f"rank {rank} failed ({error}). What was committed is safe; start all ranks again: adding continues there"
    )
