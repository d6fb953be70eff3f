"""A served bank at a URL: its changes are published behind what is served, for readers on other machines."""

from __future__ import annotations

import logging
import threading
import time

from memspan.bank.publish import publish, published_before
from memspan.bank.texts import TextBank
from memspan.errors import MemspanError
from memspan.serve.logs import without_folders

_log = logging.getLogger(__name__)

# How often a change is looked for, how soon a failure is tried again, and how many times as long as a publication the
# pause after it is, so that publishing a large bank leaves the machine to its questions.
_LOOK_SECONDS, _AGAIN_SECONDS, _PAUSE = 0.5, 5.0, 4.0


class Publishing:
    """Publishes a bank, now and after every change, in a thread of its own. Changes of other processes count as well.

    A publication that fails is logged and tried again, and readers go on with the edition before.
    """

    def __init__(self, bank: TextBank, url: str) -> None:
        """
        Raises:
            ReadOnlyBank: the bank was published, and is only read here.
            MemspanError: it cannot be published there; see `memspan.bank.publish.publish`.
        """
        bank.check_owned("published")
        published_before(bank, url)
        self._bank, self._url = bank, url
        self._commit, self._problem = -1, ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memspan-publishing", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, between two files. The next start publishes the rest."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
            began = time.monotonic()
            try:
                self._publish_changes()
                pause = max(_LOOK_SECONDS, _PAUSE * (time.monotonic() - began))
            except _Stopped:
                return
            except MemspanError as error:
                if str(error) != self._problem:
                    _log.warning("the bank is not published: %s", without_folders(str(error)))
                self._problem, pause = str(error), _AGAIN_SECONDS
            except Exception:
                _log.exception("the bank could not be published")
                pause = _AGAIN_SECONDS

    def _publish_changes(self) -> None:
        with self._bank.pinned_catalog() as catalog:
            commit = catalog.commits()
        if commit != self._commit:
            self._commit = publish(self._bank, self._url, progress=self._check_stopping).commit
            self._problem = ""

    def _check_stopping(self, done: int, total: int) -> None:
        if self._stopping.is_set():
            raise _Stopped


class _Stopped(Exception):
    """The bank is closed."""
