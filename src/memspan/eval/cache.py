"""Encoded memories that runs share: one folder per content and model in the user's cache, the longest unused go first.

KEY/bank/           the memories of a task, a namespace each
KEY/encoding.jsonl  a line for each memory: documents, tokens, seconds
KEY.lock            held by the run that uses them
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from memspan.bank.encode import manifest_of
from memspan.errors import EvaluationError
from memspan.eval.sets import MemoryPlan
from memspan.model.convert import LoadedModel
from memspan.places import cache_folder

_GOING = ".going"
_POLL_SECONDS = 0.5


def key_of(loaded: LoadedModel, memories: Mapping[str, MemoryPlan]) -> str:
    """A name for memories as one model encodes them; reads all documents. Their order counts, as their ids do."""
    made_by = manifest_of(loaded).as_json() | {"backbone": "", "dtype of the model": str(loaded.model.dtype)}
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode())
    for namespace, plan in memories.items():
        digest.update(json.dumps([namespace]).encode())
        for document in plan.documents:
            digest.update(json.dumps([document.external_id, document.content_hash]).encode())
    return digest.hexdigest()[:32]


@contextlib.contextmanager
def encoded_memories(key: str, tell: Callable[[str], None], should_stop: Callable[[], bool]) -> Iterator[Path | None]:
    """The folder of some memories, empty at first, for this run alone; None where it was stopped while it waited."""
    folder = _root() / key
    with _lock(folder, tell, should_stop) as is_ours:
        if is_ours:
            folder.mkdir(exist_ok=True)
            os.utime(folder)  # when it was used last
        yield folder if is_ours else None


def trim(budget: int) -> None:
    """Remove what was not used for longest, until at most `budget` bytes are left; what a run uses stays."""
    for folder in _root().glob(f"*{_GOING}"):  # a process was ended while it removed this
        shutil.rmtree(folder, ignore_errors=True)
    folders = [path for path in _root().iterdir() if path.is_dir()]
    total = 0
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        total += 0 if total + size > budget and _removed(folder) else size


def _root() -> Path:
    root = cache_folder() / "eval"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise EvaluationError(f"{root} cannot be made: {reason}; name another cache folder: MEMSPAN_CACHE") from error
    return root


@contextlib.contextmanager
def _lock(folder: Path, tell: Callable[[str], None], should_stop: Callable[[], bool]) -> Iterator[bool]:
    """Hold the lock of a folder; False where it was stopped while it waited for another run."""
    lock, waits = FileLock(folder.with_suffix(".lock")), False
    while not should_stop():
        try:
            lock.acquire(timeout=_POLL_SECONDS if waits else 0)
            break
        except Timeout:
            if not waits:
                tell("another run uses the same memory; waiting for it")
            waits = True
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _removed(folder: Path) -> bool:
    """Remove a folder that no run uses; False where one does."""
    try:
        with FileLock(folder.with_suffix(".lock"), timeout=0):
            going = folder.rename(folder.with_suffix(_GOING))  # whole or not: half a folder would pass for one
    except (Timeout, OSError):
        return False
    shutil.rmtree(going, ignore_errors=True)
    return True
