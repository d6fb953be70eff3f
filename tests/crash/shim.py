"""Python's side of `faults.c`: compile it, load it into this process, arm it."""

from __future__ import annotations

import ctypes
import enum
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

EXIT_CRASHED = 77
_SOURCE = Path(__file__).with_name("faults.c")


class Mode(enum.IntEnum):
    """What happens at the n-th call that a mode counts; in step with `faults.c`."""

    COUNT = 0  # nothing
    CRASH = 1  # the process ends before the n-th call of any kind
    TORN = 2  # half of the n-th write is done, then the process ends
    FULL = 3  # ENOSPC from the n-th call that may need space, and from all later ones
    FULL_ONCE = 4  # ENOSPC from that call alone
    SHORT = 5  # the n-th write writes half, and says so
    SYNC_ERROR = 6  # EIO from the n-th fsync or fdatasync


def unavailable() -> str | None:
    """Why faults cannot be made here, or None if they can."""
    if sys.platform != "linux":
        return f"faults are made by a seccomp filter, which Linux has and {sys.platform} has not"
    if platform.machine() not in ("x86_64", "aarch64"):
        return f"faults.c knows x86-64 and 64-bit ARM, not {platform.machine()}"
    if _compiler() is None:
        return "there is no C compiler (cc) to compile faults.c with"
    return None


def compile_library(folder: Path) -> Path:
    """Compile `faults.c` into a folder."""
    library = folder / "faults.so"
    compiler = _compiler()
    assert compiler, "ask unavailable() first"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]
    subprocess.run([*command, "-o", str(library), str(_SOURCE)], check=True)
    return library


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CC", "cc"))


class Shim:
    """Faults in this process and those it forks. There is no way back: load it only where nothing else must run.

    Raises:
        OSError: the system refuses the seccomp filter.
    """

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        error = self._library.faults_install()
        if error:
            raise OSError(error, f"the seccomp filter is refused: {os.strerror(error)}")

    def arm(self, root: Path, mode: Mode, nth: int = 0, trace: Path | None = None) -> None:
        """Count calls under `root` from now on; write what they change to `trace`, which lies outside it."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        descriptor = os.open(trace, flags) if trace else -1
        self._library.faults_arm(os.fsencode(root.resolve()), int(mode), nth, descriptor)

    def disarm(self) -> None:
        self._library.faults_disarm()

    def relent(self) -> None:
        """No more faults; counting and tracing go on."""
        self._library.faults_relent()

    def fired(self) -> int:
        """The number, among all calls, of the first that failed; 0 if none did."""
        return self._library.faults_fired()

    def mark(self) -> None:
        """Say in the trace that what was done so far has been acknowledged."""
        self._library.faults_mark()
