"""Imports: many memories added in the background, a few at a time, so that single changes get in between.

An accepted import outlives the server: its memories lie in the bank's folder, `imports/ID.jsonl`, until all are added,
and its progress in `imports/ID.json`. A restarted server continues behind the last slice that is recorded there.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fastapi.concurrency import run_in_threadpool
from filelock import FileLock, Timeout

from memspan.files import remove, write_text
from memspan.generate.memory import Memory
from memspan.serve.banks import ServedBank
from memspan.serve.engine import QueueFull, Stopping
from memspan.serve.errors import ApiError, api_error
from memspan.types import AddReport, Document

_log = logging.getLogger(__name__)

_SLICE = 32
_MOST_RUNNING = 8
_MOST_KEPT = 200
_QUEUE_PAUSE = 0.5
_KEPT = ("id", "namespace", "total", "created", "status", "done", "added", "updated", "unchanged", "error")


@dataclass(eq=False)
class Import:
    """One import.

    Attributes:
        status: running, done, failed or cancelled.
        done: memories dealt with so far.
        error: why it failed.
        paused: the server stops; it goes on when the server is back.
    """

    bank: ServedBank
    namespace: str
    total: int
    id: str = field(default_factory=lambda: f"import-{secrets.token_hex(8)}")
    created: str = field(
        default_factory=lambda: datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
    )
    status: str = "running"
    done: int = 0
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    error: str | None = None
    paused: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        folder = self.bank.folder / "imports"
        self._state, self._memories = folder / f"{self.id}.json", folder / f"{self.id}.jsonl"
        self._lock = FileLock(folder / f"{self.id}.lock", blocking=False, thread_local=False)

    def keep(self, documents: Iterable[Document]) -> None:
        """Write it down, so that it outlives the server.

        Raises:
            ReadOnlyBank: the bank is only read here.
            ApiError: 503, it cannot be written.
        """
        self.bank.check_owned()
        lines = (json.dumps(dataclasses.asdict(document)) + "\n" for document in documents)
        try:
            self._memories.parent.mkdir(exist_ok=True)
            self.begin()
            write_text(self._memories, "".join(lines), private=True)
            self.save()
        except OSError as error:
            raise ApiError(503, f"the import cannot be kept ({error.strerror})", "not_kept", retry_after=60) from error

    def begin(self) -> bool:
        """Take it on; False: another server of this bank has it."""
        try:
            self._lock.acquire()
        except Timeout:
            return False
        return True

    def documents(self) -> list[Document]:
        """The memories as they were given.

        Raises:
            ApiError: their file is gone or damaged.
        """
        try:
            with self._memories.open(encoding="utf-8") as lines:
                return [Document(**json.loads(line)) for line in lines]
        except (OSError, ValueError, TypeError) as error:
            raise ApiError(500, "its memories cannot be read any more; import them again", "import_lost") from error

    def run(self, documents: Sequence[Document] | None) -> None:
        """Add the documents in a task of its own; None: those that are kept."""
        self.task = asyncio.create_task(_run(self, documents))
        self.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Let go of its files, but for what is to go on later."""
        if self.status == "running" and not self.paused:
            self.status = "cancelled"
        try:
            self.save()
            if self.status != "running":
                remove(self._memories)
        except OSError as error:
            _log.error("how far the import %s is cannot be written (%s)", self.id, error.strerror)
        self._lock.release()
        self.tell()

    def save(self) -> None:
        """Write down how far it is."""
        write_text(self._state, json.dumps({name: getattr(self, name) for name in _KEPT}), private=True)

    def forget(self) -> None:
        """Leave no trace of one that has ended."""
        for path in (self._state, self._memories, Path(self._lock.lock_file)):
            remove(path)

    def tell(self) -> None:
        """Wake up who watches."""
        before, self.changed = self.changed, asyncio.Event()
        before.set()

    async def watch(self) -> AsyncIterator[Import]:
        """Yield it now, and whenever something has changed, until it has ended or the server stops."""
        while True:
            changed = self.changed
            yield self
            if self.status != "running" or self.paused:
                return
            await changed.wait()


class Imports:
    """The imports of a server. Those that have ended are forgotten when there are many."""

    def __init__(self) -> None:
        self._jobs: dict[str, Import] = {}

    async def start(self, bank: ServedBank, namespace: str, documents: Sequence[Document]) -> Import:
        """Begin to add documents; they are safe on disk when it returns.

        Raises:
            ApiError: 429, too many imports run; 503, they cannot be written.
        """
        running = sum(job.status == "running" for job in self._jobs.values())
        if running >= _MOST_RUNNING:
            raise ApiError(429, f"{running} imports run already; wait for one", "too_many_imports", retry_after=10)
        job = Import(bank, namespace, len(documents))
        self._jobs[job.id] = job
        try:
            await run_in_threadpool(job.keep, documents)
        except BaseException:
            del self._jobs[job.id]
            raise
        job.run(documents)
        self._forget_some()
        return job

    async def resume(self, banks: Iterable[ServedBank]) -> None:
        """Go on with what an earlier server had accepted, and know again what it had ended."""
        for bank in banks:
            for job in await run_in_threadpool(_kept, bank):
                self._jobs[job.id] = job
                if job.status == "running":
                    job.run(None)

    def _forget_some(self) -> None:
        ended = [job for job in self._jobs.values() if job.status != "running"]
        for job in ended[: max(0, len(self._jobs) - _MOST_KEPT)]:
            del self._jobs[job.id]
            job.forget()

    def all(self) -> list[Import]:
        """The newest first."""
        return list(reversed(self._jobs.values()))

    def get(self, job_id: str) -> Import | None:
        return self._jobs.get(job_id)

    def stop(self) -> None:
        """Pause what runs after the slice it is at; what was added stays. From any thread."""
        for job in list(self._jobs.values()):
            if job.task is not None and not job.task.done():
                job.paused = True
                job.task.get_loop().call_soon_threadsafe(job.task.cancel)


def _kept(bank: ServedBank) -> list[Import]:
    """The imports in a bank's folder, oldest first, that no other server has. A damaged one is named in the log."""
    found = []
    for path in (bank.folder / "imports").glob("import-*.json"):
        try:
            state = {name: value for name, value in json.loads(path.read_text("utf-8")).items() if name in _KEPT}
            job = Import(bank, **state)
            assert job.id == path.stem and isinstance(job.done, int), "it is of another import"
        except (OSError, ValueError, TypeError, AttributeError, AssertionError) as error:
            _log.error("the import %s cannot be read (%s); import it again", path.stem, type(error).__name__)
            continue
        if job.status != "running" or job.begin():
            found.append(job)
    return sorted(found, key=lambda job: job.created)


async def _run(job: Import, documents: Sequence[Document] | None) -> None:
    try:
        documents = await run_in_threadpool(job.documents) if documents is None else documents
        for start in range(job.done, len(documents), _SLICE):
            part = documents[start : start + _SLICE]
            report = await _add(job, part)
            job.done += len(part)
            job.added += report.added
            job.updated += report.updated
            job.unchanged += report.unchanged
            await run_in_threadpool(job.save)
            job.tell()
        job.status = "done"
    except Exception as error:
        job.status, job.error = "failed", api_error(error).detail


async def _add(job: Import, part: Sequence[Document]) -> AddReport:
    """Add some documents, waiting for a place in the bank's queue."""

    def change(memory: Memory) -> AddReport:
        return memory.add(part)

    while True:
        try:
            return await asyncio.wrap_future(job.bank.write(job.namespace, change))
        except QueueFull:
            await asyncio.sleep(_QUEUE_PAUSE)
        except Stopping:
            job.paused = True
            raise asyncio.CancelledError from None
