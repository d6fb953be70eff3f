"""Ray: the rows of a dataset become documents of a bank, and the workers of a cluster encode them.

This process reads the dataset, adds its texts, deals tasks and commits; workers hold the model, and write segments into
the bank's folder, which all must see under the same path. A worker that is lost is started again by Ray, and its tasks
are done again, to the same files.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from memspan.bank.encode import COMMIT_SECONDS, EncodingRun, Progress
from memspan.bank.encoded import EncodedSegment, EncodingTask, parsed
from memspan.bank.encoder import Encoder, encoding_tasks
from memspan.bank.locks import encoder_lock
from memspan.errors import BankBusy, BankError, MemspanError, RankError
from memspan.generate.memory import Memory
from memspan.model.runtime import encode_tokens
from memspan.text.corpus import found_documents, read_stream
from memspan.types import AddReport, Document, Skipped

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
try:
    import pyarrow
    import ray
    import ray.data
    from ray.exceptions import RayError
except ImportError as error:
    raise ImportError(f"Ray is not installed ({error.name}): pip install 'memspan[ray]'") from error

if TYPE_CHECKING:
    from ray.data import Dataset

# Tokens that are dealt before all of them are encoded: they wait in Ray's store, 5 bytes each.
_ROUND_TOKENS = 2**26
_FAILURES = (RayError, ConnectionError, RuntimeError, ValueError, OSError)


def encode(
    dataset: Dataset | None,
    bank: str | os.PathLike[str] | Memory,
    *,
    namespace: str = "default",
    model: str | Path | None = None,
    adapter: str | Path | None = None,
    dtype: str | None = None,
    workers: int = 2,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    address: str | None = None,
    batch_tokens: int | None = None,
    progress: Progress = lambda report: None,
    should_stop: Callable[[], bool] = lambda: False,
    commit_seconds: float = COMMIT_SECONDS,
) -> AddReport:
    """Add the rows of a dataset to a bank, and encode all that a namespace has pending on a Ray cluster.

    Run again, it continues. The report's `skipped` lists rows that are no documents. Where Ray is not connected yet, it
    is for the time of the call.

    Args:
        dataset: of rows as in JSON lines: `text` (`content`, `body`), `id`, `title`, `date`; other columns are
            metadata. A row without an id is known by its content. None: only encode.
        bank: its folder, which is made where there is none; or a memory, with its own namespace and model.
        model, adapter, dtype: see `memspan.model.convert.load`. Workers load the same.
        workers: how many processes encode.
        num_cpus, num_gpus: of each worker.
        address: of the cluster, as "auto" or "ray://host:10001". None: RAY_ADDRESS, or else Ray on this machine.
        batch_tokens: padded tokens per forward. Default: 2,048, or 16,384 for workers with a GPU.
        progress, should_stop, commit_seconds: as for `memspan.bank.add.add_documents`.

    Raises:
        RankError: there is no such cluster; workers have no memspan, another version, model or folder, or failed. What
            was committed stays.
        BankBusy: another process encodes this bank.
        BankError: the bank cannot be written; what was committed stays.
    """
    if workers < 1:
        raise ValueError(f"at least one worker encodes, not {workers}")
    with contextlib.ExitStack() as stack:
        if isinstance(bank, Memory):
            memory = bank
        else:
            memory = Memory.open(bank, model, adapter=adapter, namespace=namespace, create=True, dtype=dtype)
            stack.callback(memory.close)
        stack.enter_context(_connected(address, workers, num_cpus, num_gpus))
        skipped: list[Skipped] = []
        documents = found_documents(skipped, () if dataset is None else _read(dataset))
        report = memory.add(documents, later=True, progress=progress, should_stop=should_stop)
        if not report.interrupted:
            device = torch.device("cuda" if num_gpus else "cpu")
            run = EncodingRun(memory.loaded, progress, should_stop, batch_tokens or encode_tokens(device))
            pool = _Pool(memory, dtype, workers, num_cpus, num_gpus)
            report = report.and_then(_encode_pending(memory, run, pool, commit_seconds))
        return replace(report, skipped=tuple(skipped))


def _encode_pending(memory: Memory, run: EncodingRun, pool: _Pool, commit_seconds: float) -> AddReport:
    """Encode what is pending of a memory's namespace, a commit every few seconds."""
    bank, namespaces = memory.bank, [memory.namespace]
    if not run.find_pending(bank.catalog, namespaces).pending:
        return run.report
    with encoder_lock(bank.folder) as is_ours:
        if not is_ours:
            raise BankBusy(f"another process encodes {bank.folder}; wait for it, or end it")
        options: dict[str, Any] = {"namespaces": namespaces, "batch_tokens": run.batch_tokens}
        tasks = encoding_tasks(bank, memory.loaded, **options)
        written: list[EncodedSegment] = []
        try:
            for segments in pool.encode(tasks):
                written += segments
                for segment in segments:
                    run.count_encoded(segment.sizes)
                run.report_progress()
                if run.report.interrupted:
                    break
                if run.seconds_since_commit >= commit_seconds:
                    bank.commit(written)
                    written = []
                    run.committed()
        except BankError:
            raise
        except BaseException:
            bank.commit(written)
            raise
        bank.commit(written)
    return run.find_pending(bank.catalog, namespaces)


class _Worker:
    """What a worker's process holds: the model. Errors that have a name come back as values."""

    def __init__(self, bank: str, model: str, adapter: str, dtype: str | None, device: str | None) -> None:
        self._options = {"model": model, "adapter": adapter, "bank": bank, "dtype": dtype, "device": device}
        self._encoder: Encoder | None = None

    def __call__(self, batch: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
        try:
            self._encoder = self._encoder or Encoder(**self._options)  # type: ignore[arg-type]
            rows = [json.dumps(self._encoder(json.loads(task))) for task in batch["task"]]
        except MemspanError as error:
            return {"rows": [""], "error": [f"{type(error).__name__}: {error}"]}
        return {"rows": rows, "error": [""] * len(rows)}


class _Pool:
    """Workers on a cluster."""

    def __init__(self, memory: Memory, dtype: str | None, workers: int, num_cpus: float, num_gpus: float) -> None:
        """
        Raises:
            RankError: workers cannot load the model.
        """
        names = memory.loaded.names
        if names is None:
            raise RankError("workers load the model from its folder, and this one has none; save it, and load it again")
        folder = str(memory.bank.folder.absolute())
        self._arguments = (folder, names.model, names.adapter, dtype, None if num_gpus else "cpu")
        self._workers, self._num_cpus, self._num_gpus = workers, num_cpus, num_gpus

    def encode(self, tasks: Iterator[EncodingTask]) -> Iterator[list[EncodedSegment]]:
        """Encode tasks; gives the segments of one as soon as it is done, in any order.

        Raises:
            RankError: a worker failed, and not because it was lost.
        """
        for first in tasks:
            yield from self._round(chain([first], tasks))

    def _round(self, tasks: Iterator[EncodingTask]) -> Iterator[list[EncodedSegment]]:
        blocks, tokens = [], 0
        for task in tasks:
            blocks.append(ray.put(pyarrow.table({"task": [json.dumps(task.as_json())]})))
            tokens += sum(len(document.tokens) for document in task.documents)
            if tokens >= _ROUND_TOKENS:
                break
        dataset = ray.data.from_arrow_refs(blocks)
        dataset.context.enable_progress_bars = False
        encoded = dataset.map_batches(
            _Worker,
            fn_constructor_args=self._arguments,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(self._workers, len(blocks))),
            num_cpus=self._num_cpus,
            num_gpus=self._num_gpus,
        )
        with _named("a worker failed"):
            for row in encoded.iter_rows():
                if row["error"]:
                    raise RankError(f"a worker cannot encode ({row['error']}); nothing that was committed is lost")
                yield [parsed(EncodedSegment, one, "a worker's row") for one in json.loads(row["rows"])]


@contextlib.contextmanager
def _connected(address: str | None, workers: int, num_cpus: float, num_gpus: float) -> Iterator[None]:
    """Ray, connected for a time unless it is already.

    Raises:
        RankError: there is no such cluster.
    """
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address is None and "RAY_ADDRESS" not in os.environ:
        options |= {"include_dashboard": False, "num_cpus": max(1, round(workers * num_cpus + 0.5))}
        options |= {"address": "local"} | ({"num_gpus": workers * num_gpus} if num_gpus else {})
    else:
        options["address"] = address
    with _named("Ray cannot be reached"):
        ray.init(**options)
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Ray's own errors as `RankError`s."""
    try:
        yield
    except MemspanError:
        raise
    except _FAILURES as error:
        reason = " ".join(str(error).strip().split("\n")[-1].split())[:300]
        raise RankError(
            f"{what} ({type(error).__name__}: {reason}); nothing that was committed is lost, so run it again"
        ) from error


def _read(dataset: Dataset) -> Iterator[Document | Skipped]:
    """The documents of a dataset, read as JSON lines are."""
    with _named("the dataset cannot be read"):
        for number, row in enumerate(dataset.iter_rows(), start=1):
            try:
                values = json.loads(json.dumps(row, default=_plain), parse_constant=lambda _: None)
            except UnicodeDecodeError:
                yield Skipped(f"row {number}", "a column holds bytes that are no text in UTF-8; leave it out")
                continue
            line = json.dumps(values)
            name = f"row:{hashlib.sha256(line.encode()).hexdigest()[:32]}"
            for found in read_stream(io.StringIO(line), name):
                yield Skipped(f"row {number}", found.reason) if isinstance(found, Skipped) else found


def _plain(value: Any) -> Any:
    """A value of numpy, or of another kind, as JSON has it.

    Raises:
        UnicodeDecodeError: bytes that are no text.
    """
    if isinstance(value, bytes):
        return value.decode()
    if getattr(getattr(value, "dtype", None), "kind", "") == "M":  # nanoseconds would be a number
        value = value.astype(str)
    return value.tolist() if hasattr(value, "tolist") else str(value)
