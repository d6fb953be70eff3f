"""Imports: many memories added in the background, a few at a time, so that single changes get in between."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from memspan.errors import MemspanError
from memspan.generate.memory import Memory
from memspan.serve.banks import ServedBank
from memspan.serve.engine import QueueFull, Stopping
from memspan.serve.errors import ApiError, api_error
from memspan.types import AddReport, Document

_SLICE = 32
_MOST_RUNNING = 8
_MOST_KEPT = 200
_QUEUE_PAUSE = 0.5


@dataclass(eq=False)
class Import:
    """One import.

    Attributes:
        status: running, done, failed or cancelled.
        done: memories dealt with so far.
        error: why it failed.
    """

    bank: ServedBank
    namespace: str
    total: int
    id: str = field(default_factory=lambda: f"import-{secrets.token_hex(8)}")
    status: str = "running"
    done: int = 0
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    error: str | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def tell(self) -> None:
        """Wake up who watches."""
        before, self.changed = self.changed, asyncio.Event()
        before.set()

    async def watch(self) -> AsyncIterator[Import]:
        """Yield it now, and whenever something has changed, until it has ended."""
        while True:
            changed = self.changed
            yield self
            if self.status != "running":
                return
            await changed.wait()


class Imports:
    """The imports of a server. Those that have ended are forgotten when there are many."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, Import] = OrderedDict()

    def start(self, bank: ServedBank, namespace: str, documents: Sequence[Document]) -> Import:
        """Begin to add documents.

        Raises:
            ApiError: 429, too many imports run.
        """
        running = sum(job.status == "running" for job in self._jobs.values())
        if running >= _MOST_RUNNING:
            raise ApiError(429, f"{running} imports run already; wait for one", "too_many_imports", retry_after=10)
        job = Import(bank, namespace, len(documents))
        self._jobs[job.id] = job
        ended = [name for name, one in self._jobs.items() if one.status != "running"]
        for name in ended[: max(0, len(self._jobs) - _MOST_KEPT)]:
            del self._jobs[name]
        job.task = asyncio.create_task(_run(job, documents))
        return job

    def get(self, job_id: str) -> Import | None:
        return self._jobs.get(job_id)

    def stop(self) -> None:
        """Stop what runs after the slice it is at; what was added stays. From any thread."""
        for job in list(self._jobs.values()):
            if job.task is not None and not job.task.done():
                job.task.get_loop().call_soon_threadsafe(job.task.cancel)


async def _run(job: Import, documents: Sequence[Document]) -> None:
    try:
        for start in range(0, len(documents), _SLICE):
            part = documents[start : start + _SLICE]
            report = await _add(job, part)
            job.done += len(part)
            job.added += report.added
            job.updated += report.updated
            job.unchanged += report.unchanged
            job.tell()
        job.status = "done"
    except asyncio.CancelledError:
        job.status = "cancelled"
    except MemspanError as error:
        job.status, job.error = "failed", api_error(error).detail
    finally:
        if job.status == "running":
            job.status, job.error = "failed", "something went wrong in the server; its log says what"
        job.tell()


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
            raise asyncio.CancelledError from None
