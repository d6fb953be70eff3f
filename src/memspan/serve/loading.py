"""A bank with its engine, opened behind what answers already."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memspan.serve.banks import ServedBank
    from memspan.serve.engine import Engine

Served = tuple["ServedBank", "Engine"]


class Loading:
    """A bank with its engine, opened in a thread of its own when it is first wanted.

    Args:
        opened: opens both; left when this is closed.
    """

    def __init__(self, opened: Callable[[], AbstractContextManager[Served]]) -> None:
        self._opened, self._stack = opened, ExitStack()
        self._served: Future[Served] = Future()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Open them; nothing happens where that has begun. For one thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._open, name="memspan-loading", daemon=True)
            self._thread.start()

    async def served(self) -> Served:
        """Both, once they are open.

        Raises:
            Exception: what kept them from being opened.
        """
        self.begin()
        return await asyncio.shield(asyncio.wrap_future(self._served))

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join()
        self._stack.close()

    def _open(self) -> None:
        try:
            self._served.set_result(self._stack.enter_context(self._opened()))
        except BaseException as error:
            self._served.set_exception(error)
