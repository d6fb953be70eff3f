"""The command as tests run it."""

from __future__ import annotations

import json
import re
from typing import Any

from typer.testing import CliRunner

from memspan.cli import app

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
runner = CliRunner()


class Done:
    """How a run of the command ended."""

    def __init__(self, result: Any) -> None:
        self.code: int = result.exit_code
        self.out: str = result.stdout
        self.err: str = result.stderr
        # Whatever ended it was said: nothing but an exit came out of the command.
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        for text in (self.out, self.err):
            assert "Traceback" not in text
            assert not ANSI.search(text), "no colours without a terminal"

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def memspan(*arguments: object, stdin: str | bytes | None = None) -> Done:
    return Done(runner.invoke(app, [str(argument) for argument in arguments], input=stdin))


def failed(*arguments: object, stdin: str | bytes | None = None) -> str:
    """Run a command that must end with a named error; return its message."""
    done = memspan(*arguments, stdin=stdin)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")
    return done.err
