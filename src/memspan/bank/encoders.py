"""`Encoders`: several processes that encode for one bank. Rank 0 reads the corpus and commits, every rank encodes.

    rank 0 (`Encoders`)                        the others (`encode_for_first`)
    deals the batches of a round          ->   encode theirs, and keep the latents
    collects what each rank encoded       <-
    ... more rounds
    asks for segments                     ->   write NAME.keys, NAME.content (and NAME.coarse)
    collects where documents stand        <-
    commits all segments in one transaction, then goes on

Rank 0 alone holds the writer's lock and opens the catalog; the others only write segment files into its folder. While
it commits (and merges, and sweeps) they wait, and have no file that is not part of that commit. Batches and ids are
those of one process, so the latents are the same to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from memspan.bank.bank import MAX_SEGMENT_BYTES
from memspan.bank.encode import EncodingRun, Part, manifest_of
from memspan.bank.folder import WrittenSegments, segment_paths, segments_folder
from memspan.bank.segment import SegmentWriter
from memspan.errors import BankError, RankError
from memspan.model.convert import LoadedModel
from memspan.text.packing import even_shares
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
class _Task:
    """What a rank is to do next.

    Attributes:
        batches: to encode.
        write: write what was encoded since the last time.
        end: nothing more; the report of the whole run.
        error: nothing more; what rank 0 failed with.
    """

    batches: Sequence[list[Part]] = ()
    write: bool = False
    end: AddReport | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a rank did of its task.

    Attributes:
        chunks: of every document, batch by batch; fewer batches than were asked for where it was interrupted.
        error: what it failed with.
    """

    chunks: Sequence[Sequence[int]] = ()
    interrupted: bool = False
    written: WrittenSegments | None = None
    error: str = ""


class Encoders:
    """The processes that encode, as the one that adds sees them: itself alone, or the ranks of a group.

    A context: at its end the other ranks hear how it ended.

    Attributes:
        num_ranks: how many processes they are.
        in_step: whether the others wait for the next task. False for good once a rank failed or was lost: what they
            encoded since the last commit is lost, too.
    """

    def __init__(self, run: EncodingRun, group: ProcessGroup | None, folder: Path, fingerprint: str) -> None:
        """
        Args:
            group: of which this is rank 0; the others call `encode_for_first`. None: no others.
            folder: of the bank.
            fingerprint: of the model's encoder; the same on all ranks.

        Raises:
            RankError: the ranks have different models; a rank was lost (also from all methods).
        """
        assert group is None or group.rank == 0, "rank 0 adds, the others encode for it"
        self._run, self._group, self._folder = run, group, folder
        self.num_ranks = 1 if group is None else group.size
        self.in_step = True
        if group is not None:
            group.check_equal(_MODELS, [fingerprint])

    def __enter__(self) -> Encoders:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._group is None or not self.in_step:
            return
        task = _Task(end=self._run.report) if error is None else _Task(error=_error_text(error))
        with contextlib.nullcontext() if error is None else contextlib.suppress(RankError):
            self._group.deal([task] * self.num_ranks)

    def encode(self, batches: Sequence[list[Part]]) -> None:
        """Encode some batches, unless asked to stop. Without any, the ranks only hear of each other."""
        if self._group is not None:
            padded = [len(batch) * max(len(part.ids) for part in batch) for batch in batches]
            self._encode_together([[batches[i] for i in share] for share in even_shares(padded, self.num_ranks)])
        else:
            self._run.encode(batches)
            if not batches:
                self._run.report_progress()

    def _encode_together(self, shares: Sequence[Sequence[list[Part]]]) -> None:
        def own() -> _Outcome:
            self._run.encode(shares[0])
            return _Outcome(interrupted=self._run.report.interrupted)

        done = self._do([_Task(), *(_Task(share) for share in shares[1:])], own)
        for share, theirs in zip(shares[1:], done[1:], strict=True):
            for batch, chunks in zip(share, theirs.chunks, strict=False):
                for part, part_chunks in zip(batch, chunks, strict=True):
                    part.chunks = part_chunks
                self._run.count_batch(batch)
        if any(theirs.interrupted for theirs in done):
            self._run.interrupt()
        self._run.report_progress()

    def write(self) -> list[WrittenSegments]:
        """Have the other ranks write segments of what they encoded.

        Raises:
            BankError: they are not in the bank's folder, as seen from here.
        """
        if self._group is None:
            return []
        tasks = [_Task(write=True)] * self.num_ranks
        written = [done.written for done in self._do(tasks, _Outcome) if done.written is not None]
        for files in (files for found in written for files in found.segments):
            paths = segment_paths(segments_folder(self._folder), files.name)
            for path, size in zip(paths, (files.keys_bytes, files.content_bytes), strict=True):
                if not path.is_file() or path.stat().st_size != size:
                    raise BankError(f"another rank wrote {path.name}, but it is not here; let all use the same folder")
        return written

    def _do(self, tasks: Sequence[_Task], own: Callable[[], _Outcome]) -> list[_Outcome]:
        assert self._group is not None, "there are other ranks"
        self.in_step = False
        self._group.deal(tasks)
        done = _together(self._group, own)
        self.in_step = True
        return done


def encode_for_first(
    folder: str | Path, loaded: LoadedModel, group: ProcessGroup, *, should_stop: Callable[[], bool] = lambda: False
) -> AddReport:
    """What every rank but 0 does while that one adds documents (`add_documents` with this group).

    Encodes the documents that it is dealt, and writes segments into the bank's folder; nothing else of the bank is
    touched.

    Args:
        folder: of the bank; rank 0 must see the files that are written there.
        should_stop: asked after every batch; when True, all ranks stop, and rank 0 commits what is encoded.

    Returns:
        The report of the whole run.

    Raises:
        RankError: a rank failed or was lost, or the ranks have different models.
    """
    manifest = manifest_of(loaded)
    group.check_equal(_MODELS, [manifest.encoder_fingerprint])
    path = segments_folder(Path(folder).expanduser())
    share = _Share(
        EncodingRun(loaded, should_stop=should_stop),
        SegmentWriter(path, manifest.msa_layers, MAX_SEGMENT_BYTES),
    )
    while True:
        task: _Task = group.deal()
        if task.end is not None:
            return task.end
        if task.error:
            raise _failed(0, task.error)
        _together(group, partial(share.do, task))


class _Share:
    """What one rank but 0 encodes and writes."""

    def __init__(self, run: EncodingRun, segments: SegmentWriter) -> None:
        self._run, self._segments = run, segments

    def do(self, task: _Task) -> _Outcome:
        if task.write:
            return _Outcome(written=WrittenSegments(*self._segments.finish()))
        self._run.encode(task.batches)
        batches = [batch for batch in task.batches if batch[0].chunks]
        for part in (part for batch in batches for part in batch):
            part.write(self._segments)
        return _Outcome([[part.chunks for part in batch] for batch in batches], self._run.report.interrupted)


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
