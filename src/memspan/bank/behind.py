"""Encoding behind: documents whose texts are in the bank get their latents, a commit every few seconds.

Texts are found by their words meanwhile. The writer's lock is held for the commits alone, so others change the bank in
between: what is no longer pending when its turn comes is not encoded, and what was deleted while it was encoded is not
committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from functools import partial
from itertools import islice

from memspan.bank.bank import MemoryBank
from memspan.bank.commit import checked, place
from memspan.bank.encode import EncodingRun, Part, in_thread, windows
from memspan.bank.encoded import EncodedSegment, Origin, write_segments
from memspan.bank.encoders import Encoders
from memspan.bank.folder import segments_folder
from memspan.bank.locks import encoder_lock
from memspan.bank.segment import MAX_SEGMENT_BYTES
from memspan.bank.stored import num_pending, still_pending
from memspan.errors import BankError
from memspan.model.convert import LoadedModel

# How long a commit waits for another process that changes the bank.
_PATIENCE_SECONDS = 30.0

_Batches = list[list[Part]]


class BackgroundEncoder:
    """Encodes what is pending. One process of a bank does at a time."""

    def __init__(
        self,
        bank: MemoryBank,
        loaded: LoadedModel,
        encoders: Encoders,
        run: EncodingRun,
        commit_seconds: float,
        wanted: Callable[[str], bool] = lambda external_id: True,
        after: int = 0,
    ) -> None:
        """
        Args:
            wanted: which sources, by their external id.
            after: only documents of larger ids.
        """
        self._bank, self._loaded, self._encoders, self._run = bank, loaded, encoders, run
        self._commit_seconds, self._wanted, self._after = commit_seconds, wanted, after
        # Since the last commit: what this process was given to encode, and what several have encoded and written.
        self._given: list[Part] = []
        self._written: list[EncodedSegment] = []
        self._committing = False
        self._reached = 0
        self._ahead = _Ahead(lambda: iter(()))

    def encode(self, namespaces: Iterable[str]) -> bool:
        """Encode what is pending in some namespaces, unless asked to stop; False: another process does already.

        Raises:
            BankBusy: another process has been changing the bank for half a minute.
            BankError: the bank cannot be written; what was committed stays.
            RankError: another rank failed or was lost; what was committed stays.
        """
        waiting = [name for name in namespaces if num_pending(self._bank.catalog, name)]
        if not waiting:
            return True
        self._run.find_pending(self._bank.catalog, waiting)
        with encoder_lock(self._bank.folder) as is_ours:
            for name in waiting if is_ours else ():
                self._encode(name)
        return is_ours

    def _encode(self, namespace: str) -> None:
        self._run.committed()
        origin = Origin.of(self._bank, namespace)
        try:
            for batches in self._rounds(namespace):
                if self._encoders.num_ranks == 1:
                    self._given += (part for batch in batches for part in batch)
                self._written += self._encoders.encode(batches, origin)
                if self._run.report.interrupted:
                    break
                if self._is_due:
                    self._commit(origin)
        except BaseException as error:
            if not self._committing and not isinstance(error, BankError):
                self._commit(origin)
            raise
        finally:
            self._ahead.wait()
        self._commit(origin)

    @property
    def _is_due(self) -> bool:
        held = self._bank.manifest.row_bytes * sum(part.chunks for part in self._given if part.encoded is not None)
        return self._run.seconds_since_commit >= self._commit_seconds or held >= MAX_SEGMENT_BYTES

    def _rounds(self, namespace: str) -> Iterator[_Batches]:
        """What is encoded before a commit may be: a batch, or of several ranks a window each."""
        self._reached = self._after
        self._ahead = _Ahead(partial(self._windows, namespace))
        read, count = iter(self._ahead), self._encoders.num_ranks
        if count == 1:
            rounds = ([batch] for window in read for batch in self._run.batches(window))
        else:
            rounds = _together(read, count)
        for batches in rounds:
            ids = [part.document.document_id for batch in batches for part in batch]
            pending = still_pending(self._bank.catalog, ids)
            kept = ([part for part in batch if part.document.document_id in pending] for batch in batches)
            yield [batch for batch in kept if batch]

    def _windows(self, namespace: str) -> Iterator[list[Part]]:
        """What is pending and was not read yet, in `windows`."""
        catalog, template = self._bank.catalog, self._loaded.template
        for window in windows(catalog, namespace, template, self._run, self._reached, self._wanted):
            self._reached = window[-1].document.document_id
            yield window

    def _commit(self, origin: Origin) -> None:
        """Make what was encoded since the last commit routable."""
        done, self._given = [part for part in self._given if part.chunks], []
        written, self._written = self._written, []
        if not (done or written):
            return
        self._ahead.wait()
        self._committing = True
        written = checked(self._bank, written)
        with self._bank.locked(_PATIENCE_SECONDS):
            pending = still_pending(self._bank.catalog, [part.document.document_id for part in done])
            done = [part for part in done if part.document.document_id in pending]
            written += write_segments(segments_folder(self._bank.folder), origin, done)
            place(self._bank, written)
        self._committing = False
        self._run.committed()


class _Ahead:
    """Reads and tokenizes a window in a thread while the one before it is encoded."""

    def __init__(self, windows: Callable[[], Iterator[list[Part]]]) -> None:
        """
        Args:
            windows: what is left, asked for again at its end: more may have come meanwhile.
        """
        self._windows = windows
        self._next: Future[list[Part] | None] | None = None

    def __iter__(self) -> Iterator[list[Part]]:
        while first := next(windows := self._windows(), None):
            window: list[Part] | None = first
            while window is not None:
                self._next = in_thread(partial(next, windows, None))
                yield window
                window = self._next.result()

    def wait(self) -> None:
        """Wait until nothing is read: the catalog is about to change."""
        if self._next is not None:
            wait([self._next])


def _together(windows: Iterator[list[Part]], count: int) -> Iterator[Sequence[list[Part]]]:
    while some := list(islice(windows, count)):
        yield some
