"""Waiting for files to change."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from memspan.text.folders import Given

# A change is told when nothing has changed for so long, and at the latest after the other.
_QUIET_MS, _PATIENCE_MS = 400, 5000
_POLL_MS = 200


def changes(paths: Iterable[Path], should_stop: Callable[[], bool]) -> Iterator[None]:
    """Yield at once, and then whenever files under some paths changed and have been left alone for a moment.

    Ends when `should_stop` says so. Folders that are not there (a share that is not mounted) are watched by looking:
    it yields when they come.
    """
    import watchfiles

    given = [Given.of(path, patterns=True) for path in paths]
    watched: set[str] = set()
    pending = True
    while not should_stop():
        there = {one.folder for one in given if os.path.isdir(one.folder)}
        if pending or there != watched:
            watched = there
            yield
        pending = False
        if not there:
            _pause()
            continue
        # The watcher begins before the next look, so that nothing is missed between the two.
        for found in watchfiles.watch(
            *there, debounce=_PATIENCE_MS, step=_QUIET_MS, rust_timeout=_POLL_MS, yield_on_timeout=True,
            raise_interrupt=False, watch_filter=None,
        ):
            if found:
                yield
            if should_stop() or {one.folder for one in given if os.path.isdir(one.folder)} != watched:
                break
