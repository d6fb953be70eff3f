"""The banks that a server answers from: opened once, read by any thread, changed by one writer each."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from os import PathLike
from typing import TypeVar

from memspan.bank.add import encode_pending
from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import Catalog, Counts, StoredSource
from memspan.bank.encode import manifest_of
from memspan.bank.ledger import Ledger
from memspan.bank.scope import EVERYTHING, Scope
from memspan.errors import BankBusy, MemspanError, UnknownDocument
from memspan.generate.answerer import Answerer
from memspan.generate.memory import Memory
from memspan.model.convert import LoadedModel
from memspan.places import BankPlace
from memspan.serve.engine import QueueFull, Stopping
from memspan.serve.publishing import Publishing

Result = TypeVar("Result")

_log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# How long a change waits for another process that writes, and how often it looks.
_BUSY_SECONDS, _BUSY_PAUSE = 10.0, 0.1
_SECONDS_PER_WRITE = 1.0
# How long it may go unnoticed that a file is newer than its memory.
_STALE_SECONDS = 30.0
# Tokens encoded at a time between questions: some tenths of a second on a CPU; and how long each batch makes way for
# questions, at most.
_BEHIND_TOKENS = 512
_LONGEST_PAUSE, _ENGINE_PAUSE = 1.0, 0.01


class ServedBank:
    """One bank. Questions are asked of a `memory`; every change goes through one queue, and no question waits for it.

    What is added is found by its words at once. It is encoded behind, in the same queue, while no question is answered
    and no change waits.

    Args:
        place: the bank; an empty one is made where there is none. One that was published is only read.
        max_writes: changes that wait, at most.
        answerer: another model that answers; None: the bank's own.
    """

    def __init__(
        self, name: str, place: BankPlace, loaded: LoadedModel, max_writes: int, answerer: Answerer | None = None
    ) -> None:
        self.name = name
        bank = MemoryBank.open_or_create(place, manifest_of(loaded))
        self.folder, self._memory = bank.folder, Memory(bank, loaded, answerer=answerer)
        self._stale: dict[str, tuple[int, float, int]] = {}
        self._memory.later = True
        self._is_asked: Callable[[], bool] | None = None
        self._publishing: Publishing | None = None
        self._encoding = False
        self._max_writes, self._num_writes = max_writes, 0
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix=f"memspan-writer-{name}")
        self._closing = False

    def memory(self, namespace: str, own_model: bool = False) -> Memory:
        """A namespace, for asking and searching by one thread.

        Args:
            own_model: the bank's own model answers, although there is another one that does.
        """
        memory = self._memory.in_namespace(namespace)
        if own_model:
            memory.answerer = None
        return memory

    @property
    def num_writes(self) -> int:
        """Changes that wait or are being made."""
        return self._num_writes

    def write(self, namespace: str, change: Callable[[Memory], Result]) -> Future[Result]:
        """Queue a change; all changes of the bank are made one after the other, in the order given.

        Raises:
            ReadOnlyBank: the bank was published, and is only read here.
            QueueFull: too many wait.
            Stopping: the server stops.
        """
        self.check_owned()
        with self._lock:
            if self._closing:
                raise Stopping
            if self._num_writes >= self._max_writes:
                raise QueueFull(_SECONDS_PER_WRITE * self._num_writes)
            self._num_writes += 1
        future = self._writer.submit(_patiently, change, self.memory(namespace))
        future.add_done_callback(self._done)
        return future

    def check_owned(self) -> None:
        """
        Raises:
            ReadOnlyBank: the bank was published, and is only read here.
        """
        self._memory.bank.check_owned("changed")

    def _done(self, future: Future) -> None:
        with self._lock:
            self._num_writes -= 1
        self._encode_soon()

    def encode_behind(self, is_asked: Callable[[], bool]) -> None:
        """Begin to encode what is pending, now and after every change.

        Args:
            is_asked: whether questions are being answered, which encoding makes way for.
        """
        if not self._memory.bank.is_published:
            self._is_asked = is_asked
            self._encode_soon()

    def publish_behind(self, url: str) -> None:
        """Begin to publish the bank, now and after every change.

        Raises:
            MemspanError: it cannot be published there.
        """
        self._publishing = Publishing(self._memory.bank, url)

    def _encode_soon(self) -> None:
        with self._lock:
            if self._closing or self._encoding or self._is_asked is None:
                return
            self._encoding = True
            self._writer.submit(self._encode)

    def _encode(self) -> None:
        """Encode until nothing is pending, or a change waits, or the server stops."""
        again = _BUSY_SECONDS
        try:
            options = {"should_stop": self._makes_way, "batch_tokens": _BEHIND_TOKENS}
            report = encode_pending(self._memory.bank, self._memory.loaded, **options)
            again = 0.0 if report.pending else None
        except BankBusy:  # another process encodes, or changes the bank
            pass
        except Exception:
            _log.exception("the memories of %s could not be encoded", self.name)
        self._encoding = False
        if again == 0.0:
            self._encode_soon()
        elif again is not None:
            timer = threading.Timer(again, self._encode_soon)
            timer.daemon = True
            timer.start()

    def _makes_way(self) -> bool:
        """Wait a little while questions are answered; then, whether a change waits or the server stops."""
        until = time.monotonic() + _LONGEST_PAUSE
        while not (ends := self._closing or self._num_writes > 0) and time.monotonic() < until:
            if self._is_asked is None or not self._is_asked():
                break
            time.sleep(_ENGINE_PAUSE)
        return ends

    def get(self, namespace: str, external_id: str, scope: Scope = EVERYTHING) -> StoredSource:
        """A memory, by the caller's id of it.

        Raises:
            UnknownDocument: there is none in the scope.
        """
        found = self.read(lambda catalog: catalog.source(namespace, external_id, scope))
        if found is None:
            raise UnknownDocument(f"there is no document {external_id!r}")
        return found

    def counts(self, namespace: str | None = None) -> Counts:
        return self.read(lambda catalog: catalog.counts(namespace))

    def stale(self, namespace: str) -> int:
        """How many files are newer than their memory, or gone; looked up again after a while, or a change."""
        with self._memory.bank.pinned_catalog() as catalog:
            commit, now = catalog.commits(), time.monotonic()
            known = self._stale.get(namespace)
            if known is None or known[0] != commit or now > known[1]:
                known = self._stale[namespace] = commit, now + _STALE_SECONDS, len(Ledger(catalog, namespace).stale())
        return known[2]

    def read(self, query: Callable[[Catalog], Result]) -> Result:
        """What a query gives of the catalog as it is now."""
        with self._memory.bank.pinned_catalog() as catalog:
            return query(catalog)

    def close(self) -> None:
        """Make the changes that wait, take no others, and close the bank."""
        with self._lock:
            self._closing = True
        self._writer.shutdown()
        if self._publishing is not None:
            self._publishing.close()
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


def bank_places(given: Iterable[str | PathLike[str]]) -> dict[str, BankPlace]:
    """Banks by their names, given as FOLDER or URL (whose last part is then the bank's name) or NAME=FOLDER.

    Raises:
        MemspanError: none, two of one name, or a name that cannot stand in a model's name.
    """
    places: dict[str, BankPlace] = {}
    for one in map(BankPlace.of, given):
        name, equals, rest = one.name.partition("=")
        is_named = bool(equals and _NAME.fullmatch(name))
        place = replace(one, name=rest if is_named else one.name)
        name = name if is_named else place.folder.resolve().name
        if not _NAME.fullmatch(name):
            raise MemspanError(f"{name!r} cannot name a bank; name it yourself: NAME={place}, of A-Z a-z 0-9 . _ -")
        if name in places:
            raise MemspanError(f"two banks are called {name!r}; name one of them yourself: NAME={place}")
        places[name] = place
    if not places:
        raise MemspanError("no bank to serve; name its folder")
    return places


def open_banks(
    given: Iterable[str | PathLike[str]],
    loaded: LoadedModel,
    max_writes: int,
    answerer: Answerer | None = None,
    publish: str | None = None,
) -> dict[str, ServedBank]:
    """Open banks; see `bank_places` for how they are given.

    Args:
        publish: the URL where the first is published after every change; None: nowhere.

    Raises:
        MemspanError: as there, or a bank cannot be opened or published.
    """
    opened: dict[str, ServedBank] = {}
    try:
        for name, place in bank_places(given).items():
            opened[name] = ServedBank(name, place, loaded, max_writes, answerer)
        if publish is not None:
            next(iter(opened.values())).publish_behind(publish)
    except BaseException:
        close_banks(opened)
        raise
    return opened


def close_banks(banks: Mapping[str, ServedBank]) -> None:
    for bank in banks.values():
        bank.close()
