"""Reading in a process of its own, which is ended when a file takes too long or brings the library down."""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from typing import IO, Any

from memspan.text.readers.formats import Unreadable

SECONDS_PER_FILE = 120.0
"""What a file may take. A PDF of 2,000 pages takes some 20 s."""

MAX_MEMORY_BYTES = 8 << 30
"""What the process may take, on systems that can say so."""

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from memspan.text.readers.isolated import serve; serve()"
)


class _Worker:
    """A process that calls functions by name, one after the other."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """
        Raises:
            Unreadable: the process took longer, or died.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        is_late = threading.Event()

        def end_late() -> None:
            is_late.set()
            self._process.kill()

        timer = threading.Timer(seconds, end_late)
        timer.start()
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = b""
        finally:
            timer.cancel()
        if is_late.is_set() or not line.endswith(b"\n"):
            self.end()
        if not line.endswith(b"\n"):
            late = f"takes longer than {seconds:.0f} s to read"
            raise Unreadable(late if is_late.is_set() else "brings its reader down; save it anew")
        return json.loads(line)

    @property
    def is_usable(self) -> bool:
        """Whether it lives, and is not that of the process that this one was forked from."""
        return self.pid == os.getpid() and self._process.poll() is None

    def end(self) -> None:
        if self.pid == os.getpid():
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()


_worker: _Worker | None = None
_lock = threading.Lock()


def isolated(function: str, *arguments: Any) -> Any:
    """What a function gives, called in the process.

    Args:
        function: as "module:name". It takes and gives JSON, and raises nothing but `Unreadable`.
        arguments: JSON.

    Raises:
        Unreadable: the function raised it, took longer than `SECONDS_PER_FILE`, or its process died.
    """
    global _worker
    with _lock:
        if _worker is None or not _worker.is_usable:
            _worker = _Worker()
            atexit.register(_worker.end)
        answer = _worker.ask({"function": function, "arguments": arguments}, SECONDS_PER_FILE)
    if "refused" in answer:
        raise Unreadable(answer["refused"])
    return answer["result"]


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    except (ImportError, ValueError, OSError):  # Windows, or a lower limit that is set already
        pass


def serve() -> None:
    """Answer the requests on standard input until it is closed. Signals to the whole group are for its parent."""
    for name in ("SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    _limit_memory()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin.buffer:
        _answer(json.loads(line), answers)


def _answer(request: dict[str, Any], answers: IO[bytes]) -> None:
    module, _, name = request["function"].partition(":")
    try:
        answer = {"result": getattr(importlib.import_module(module), name)(*request["arguments"])}
    except (Unreadable, OSError, MemoryError) as error:
        answer = {"refused": str(error) or type(error).__name__}
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()
