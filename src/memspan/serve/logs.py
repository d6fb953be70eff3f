"""What a server logs: no text of a memory or a request, no absolute path; with the id of the request it is about."""

from __future__ import annotations

import json
import logging
import re
import secrets
import traceback
from contextvars import ContextVar
from pathlib import PurePath

REQUEST_ID: ContextVar[str] = ContextVar("memspan_request_id", default="-")

_GOOD_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_FOLDERS = re.compile(r"""(?<![\w./\\:-])(?:[A-Za-z]:)?[\\/]{1,2}(?:[^\s\\/"'`:;,()\[\]]+[\\/]+)+""")
_MOST_FRAMES = 8
# Others that tell of errors with a traceback.
_LOGGERS = (
    *("uvicorn.error", "asyncio"),
    *(f"memspan.serve.{name}" for name in ("banks", "engine", "errors", "imports", "publishing")),
)


def request_id(given: str | None) -> str:
    """The id that a request came with, if it is one; else a new one."""
    return given if given and _GOOD_ID.fullmatch(given) else secrets.token_hex(8)


def without_folders(text: str) -> str:
    """A message in which of every absolute path only the last part is left."""
    return _FOLDERS.sub("", text)


def place_of(error: BaseException) -> str:
    """The kind of an error and where it was raised. Its message may hold a text, so that is left out."""
    frames = traceback.extract_tb(error.__traceback__)[-_MOST_FRAMES:]
    places = " < ".join(f"{'/'.join(PurePath(one.filename).parts[-2:])}:{one.lineno}" for one in reversed(frames))
    reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
    return f"{type(error).__name__}{reason} at {places or 'an unknown place'}"


class _Private(logging.Filter):
    """Puts the place of an error where its message and traceback would stand."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            record.msg, record.args = f"{without_folders(record.getMessage()).strip()}: {place_of(error)}", ()
            record.exc_info = record.exc_text = None
        return True


_PRIVATE = _Private()


def keep_private() -> None:
    """Let the loggers of a server tell no texts and paths. Calling it again does nothing."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_PRIVATE)


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        _PRIVATE.filter(record)
        told = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": REQUEST_ID.get(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        return json.dumps(told)


def set_up(as_json: bool) -> None:
    """Log to standard error: warnings as text, or every request and warning as JSON lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonLines() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    handler.addFilter(_PRIVATE)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    if as_json:
        logging.getLogger("memspan.serve.gate").setLevel(logging.INFO)
