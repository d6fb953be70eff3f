"""Who uses a bank: the one writer, and the readers whose snapshots still need files that the bank no longer does.

writer.lock, writer.pid    held by the writer; its pid
encoder.lock               held by the process that encodes what is pending
readers/PID-...            one per open bank that reads: locked while its process lives, in it the number of the commit
                           that its oldest snapshot sees ("idle" without one)

Locks are the operating system's: they end with the process that held them.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from memspan.errors import BankBusy, BankError

try:
    import fcntl
except ImportError:  # no registry of readers then: files in use cannot be unlinked on such systems anyway
    fcntl = None

LOCK, HOLDER, ENCODER_LOCK, READERS = "writer.lock", "writer.pid", "encoder.lock", "readers"
PUBLISH_LOCK, FETCH_LOCK = "publish.lock", "fetch.lock"
_IDLE = "idle"
_EVERYTHING = -1  # a snapshot on its way: which commit it will see is not known yet


@contextlib.contextmanager
def writer_lock(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the writer's lock of a bank's folder.

    Args:
        patience: seconds to wait for who holds it.

    Raises:
        BankBusy: another process (or another part of this one) holds it; its pid is named.
        BankError: the folder cannot be written.
    """
    holder = folder / HOLDER
    with _locked(folder / LOCK, patience) as is_ours:
        if not is_ours:
            raise BankBusy(f"another writer ({_holder(holder)}) is changing {folder}; wait for it")
        with contextlib.suppress(OSError):  # on a full disk: only a message is poorer without it
            holder.write_text(str(os.getpid()), "utf-8")
        yield


def publish_lock(folder: Path, patience: float) -> contextlib.AbstractContextManager[None]:
    """Be the one process that publishes a bank. Arguments and errors as for `writer_lock`."""
    return _only_one(folder / PUBLISH_LOCK, patience, f"another process is publishing {folder}; wait for it")


def fetch_lock(folder: Path, patience: float = -1.0) -> contextlib.AbstractContextManager[None]:
    """Be the one that fetches files of a published bank into its cache.

    Args:
        patience: seconds to wait for another one; less than 0: as long as it takes.

    Raises:
        BankBusy: another one fetches.
        BankError: the folder cannot be written.
    """
    return _only_one(folder / FETCH_LOCK, patience, f"another process fetches files into {folder}")


@contextlib.contextmanager
def _only_one(path: Path, patience: float, busy: str) -> Iterator[None]:
    with _locked(path, patience) as is_ours:
        if not is_ours:
            raise BankBusy(busy)
        yield


@contextlib.contextmanager
def encoder_lock(folder: Path) -> Iterator[bool]:
    """Be the one process that encodes what a bank has pending; gives whether it is this one.

    Raises:
        BankError: the folder cannot be written.
    """
    with _locked(folder / ENCODER_LOCK, 0.0) as is_ours:
        yield is_ours


@contextlib.contextmanager
def _locked(path: Path, patience: float) -> Iterator[bool]:
    if not path.parent.is_dir():
        raise BankError(f"{path.parent} is gone")
    lock = FileLock(path, timeout=patience)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    except OSError as error:
        raise BankError(f"{path.parent} cannot be written: {error}") from error
    try:
        yield True
    finally:
        lock.release()


def _holder(path: Path) -> str:
    """Who holds the lock, for the message that a second writer gets."""
    try:
        return f"pid {path.read_text('utf-8', 'replace').strip()}"
    except OSError:
        return "its pid is unknown"


class Registration:
    """One open bank among the readers of its folder. In a folder that cannot be written there is none, silently.

    A reader that is not registered still reads safely: its files stay mapped when they are unlinked. It only cannot be
    waited for.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / READERS / f"{os.getpid()}-{uuid.uuid4().hex}"
        self._held: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._descriptor = _lock_new_file(self._path)
        self._write()

    @property
    def name(self) -> str:
        return self._path.name

    def close(self) -> None:
        with self._lock:
            if self._descriptor is not None:
                with contextlib.suppress(OSError):  # the folder may be read-only by now; a writer clears it away
                    self._path.unlink(missing_ok=True)
                os.close(self._descriptor)
                self._descriptor = None

    def announce(self) -> None:
        """Before a snapshot is taken: keep every file."""
        self._change(add=_EVERYTHING)

    def hold(self, commit: int) -> None:
        """The announced snapshot sees this commit."""
        self._change(add=commit, remove=_EVERYTHING)

    def withdraw(self) -> None:
        """The announced snapshot was not taken."""
        self._change(remove=_EVERYTHING)

    def release(self, commit: int) -> None:
        """A snapshot of this commit is done."""
        self._change(remove=commit)

    def _change(self, add: int | None = None, remove: int | None = None) -> None:
        with self._lock:
            if add is not None:
                self._held[add] += 1
            if remove is not None:
                self._held[remove] -= 1
                self._held += Counter()  # drops what is held no more
            self._write()

    def _write(self) -> None:
        if self._descriptor is not None:
            oldest = min(self._held) if self._held else _IDLE
            with contextlib.suppress(OSError):  # a full disk; 20 bytes are overwritten in place, so hardly
                os.pwrite(self._descriptor, f"{oldest:<20}".encode(), 0)


def _lock_new_file(path: Path) -> int | None:
    """Make a file and hold a lock on it; None where that is not possible."""
    if fcntl is None:
        return None
    try:
        path.parent.mkdir(exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():
                return descriptor
            os.close(descriptor)  # before it was locked, a writer took it for that of a dead process
    except OSError:
        return None


def holders(folder: Path) -> dict[str, int]:
    """Registered readers with a snapshot: their names and the commits they see; the dead are cleared away."""
    found: dict[str, int] = {}
    for path in sorted((folder / READERS).glob("*")) if fcntl else ():
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                continue  # not ours
            if _is_dead(descriptor):
                path.unlink(missing_ok=True)
                continue
            text = os.pread(descriptor, 20, 0).strip()
            if text != _IDLE.encode():
                # Empty: a reader that is just registering.
                found[path.name] = int(text) if re.fullmatch(rb"\d+", text) else _EVERYTHING
        finally:
            os.close(descriptor)
    return found


def pids(names: Iterable[str]) -> str:
    """The processes of some registrations, for messages."""
    return ", ".join(sorted({name.partition("-")[0] for name in names}))


def _is_dead(descriptor: int) -> bool:
    assert fcntl is not None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # NFS gives no other lock on what is open to read
    except OSError:
        return False
    return True
