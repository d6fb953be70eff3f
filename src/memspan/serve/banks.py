"""The banks that a server answers from: opened once, read by any thread, changed by one writer each."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import Catalog, Counts, StoredSource
from memspan.bank.encode import manifest_of
from memspan.errors import BankBusy, MemspanError, UnknownDocument
from memspan.generate.memory import Memory
from memspan.model.convert import LoadedModel
from memspan.serve.engine import QueueFull, Stopping

Result = TypeVar("Result")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# How long a change waits for another process that writes, and how often it looks.
_BUSY_SECONDS, _BUSY_PAUSE = 10.0, 0.1
_SECONDS_PER_WRITE = 1.0


class ServedBank:
    """One bank. Questions are asked of a `memory`; every change goes through one queue, and no question waits for it.

    Args:
        folder: of the bank; an empty one is made where there is none.
        max_writes: changes that wait, at most.
    """

    def __init__(self, name: str, folder: Path, loaded: LoadedModel, max_writes: int) -> None:
        self.name = name
        bank = MemoryBank.open(folder) if MemoryBank.exists(folder) else MemoryBank.create(folder, manifest_of(loaded))
        self.folder, self._memory = bank.folder, Memory(bank, loaded)
        self._max_writes, self._num_writes = max_writes, 0
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix=f"memspan-writer-{name}")
        self._closing = False

    def memory(self, namespace: str) -> Memory:
        """A namespace, for asking and searching by one thread."""
        return self._memory.in_namespace(namespace)

    @property
    def num_writes(self) -> int:
        """Changes that wait or are being made."""
        return self._num_writes

    def write(self, namespace: str, change: Callable[[Memory], Result]) -> Future[Result]:
        """Queue a change; all changes of the bank are made one after the other, in the order given.

        Raises:
            QueueFull: too many wait.
            Stopping: the server stops.
        """
        with self._lock:
            if self._closing:
                raise Stopping
            if self._num_writes >= self._max_writes:
                raise QueueFull(_SECONDS_PER_WRITE * self._num_writes)
            self._num_writes += 1
        future = self._writer.submit(_patiently, change, self.memory(namespace))
        future.add_done_callback(self._done)
        return future

    def _done(self, future: Future) -> None:
        with self._lock:
            self._num_writes -= 1

    def get(self, namespace: str, external_id: str) -> StoredSource:
        """A memory, by the caller's id of it.

        Raises:
            UnknownDocument: there is none.
        """
        found = self.read(lambda catalog: catalog.source(namespace, external_id))
        if found is None:
            raise UnknownDocument(f"there is no document {external_id!r}")
        return found

    def counts(self, namespace: str | None = None) -> Counts:
        return self.read(lambda catalog: catalog.counts(namespace))

    def read(self, query: Callable[[Catalog], Result]) -> Result:
        """What a query gives of the catalog as it is now."""
        with self._memory.bank.pinned_catalog() as catalog:
            return query(catalog)

    def close(self) -> None:
        """Make the changes that wait, take no others, and close the bank."""
        with self._lock:
            self._closing = True
        self._writer.shutdown()
        self._memory.close()


def _patiently(change: Callable[[Memory], Result], memory: Memory) -> Result:
    """Make a change, waiting a while for another process that writes."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return change(memory)
        except BankBusy:
            if time.monotonic() > deadline:
                raise
            time.sleep(_BUSY_PAUSE)


def bank_folders(given: Iterable[str]) -> dict[str, Path]:
    """Banks by their names, given as FOLDER (whose name is then the bank's) or NAME=FOLDER.

    Raises:
        MemspanError: none, two of one name, or a name that cannot stand in a model's name.
    """
    folders: dict[str, Path] = {}
    for text in given:
        name, equals, rest = text.partition("=")
        folder = Path(rest if equals and _NAME.fullmatch(name) else text).expanduser()
        name = name if equals and _NAME.fullmatch(name) else folder.resolve().name
        if not _NAME.fullmatch(name):
            raise MemspanError(f"{name!r} cannot name a bank; name it yourself: NAME={folder}, of A-Z a-z 0-9 . _ -")
        if name in folders:
            raise MemspanError(f"two banks are called {name!r}; name one of them yourself: NAME={folder}")
        folders[name] = folder
    if not folders:
        raise MemspanError("no bank to serve; name its folder")
    return folders


def open_banks(given: Iterable[str], loaded: LoadedModel, max_writes: int) -> dict[str, ServedBank]:
    """Open banks; see `bank_folders` for how they are given.

    Raises:
        MemspanError: as there, or a bank cannot be opened.
    """
    opened: dict[str, ServedBank] = {}
    try:
        for name, folder in bank_folders(given).items():
            opened[name] = ServedBank(name, folder, loaded, max_writes)
    except BaseException:
        close_banks(opened)
        raise
    return opened


def close_banks(banks: Mapping[str, ServedBank]) -> None:
    for bank in banks.values():
        bank.close()
