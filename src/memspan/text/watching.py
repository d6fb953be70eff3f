"""Waiting for files to change."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from memspan.text.folders import IGNORE_FILE, GivenPath, relative_path

# A change is told when nothing has changed for the one, and at the latest after the other.
_QUIET_MS, _PATIENCE_MS, _POLL_MS = 400, 5000, 200


def changes(paths: Iterable[Path], should_stop: Callable[[], bool], besides: Sequence[Path] = ()) -> Iterator[None]:
    """Yield once, and then whenever files under some paths have changed and were left alone for a moment.

    It ends when `should_stop` says so, and goes on where a folder is gone and comes back (a share that is mounted).

    Args:
        besides: folders in those paths whose changes do not count. Nor do those of hidden files and folders.
    """
    import watchfiles

    folders = {GivenPath.of(path, patterns=True).folder for path in paths}
    others = [os.path.realpath(path) for path in besides]
    is_first = True
    while not should_stop():
        there = {folder for folder in folders if os.path.isdir(folder)}
        if not there:
            time.sleep(_POLL_MS / 1000)
            continue
        # The first time is told when the watcher has begun, so that no change is missed between the two.
        for found in watchfiles.watch(
            *there,
            watch_filter=lambda _, path: counts(path, folders, others),
            debounce=_PATIENCE_MS,
            step=_QUIET_MS,
            rust_timeout=_POLL_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
        ):
            if found or is_first:
                is_first = False
                yield
            if should_stop() or there != {folder for folder in folders if os.path.isdir(folder)}:
                is_first = True
                break


def counts(path: str, folders: Iterable[str], besides: Iterable[str]) -> bool:
    """Whether a change of a file in some folders is one to be told; see `changes`."""
    inside = next((found for folder in folders if (found := relative_path(path, folder)) is not None), "")
    is_hidden = any(part.startswith(".") and part != IGNORE_FILE for part in inside.split("/"))
    return not is_hidden and all(relative_path(path, other) is None for other in besides)
