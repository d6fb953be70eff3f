"""`memspan serve` as a process of its own: what SIGTERM does to an answer that is being written."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
from serving import add_animals, client, process, question

GRACE = 4
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no signal that asks a process to end")


def begun(response: httpx.Response) -> Iterator[str]:
    """The data of a stream behind its first piece of text."""
    values = (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))
    next(value for value in values if '"content": "' in value and '"content": ""' not in value)
    return values


def asked(http: httpx.Client, max_tokens: int) -> contextlib.AbstractContextManager[httpx.Response]:
    """A stream of an answer that is as long as it may be."""
    body = question(stream=True, max_tokens=max_tokens, stream_options={"include_usage": True})
    return http.stream("POST", "/v1/chat/completions", json=body)


@pytest.mark.slow
def test_sigterm_finishes_answers_within_the_grace_and_ends_the_others(
    endless_checkpoint: Path, tmp_path: Path
) -> None:
    options = ("--grace", GRACE, "--max-new-tokens", 100_000)
    with process(endless_checkpoint, tmp_path / "notes", *options) as (server, address), client(address) as http:
        add_animals(http)
        with asked(http, 90_000) as long, asked(http, 20) as short:
            ending = begun(long)
            finishing = begun(short)
            server.send_signal(signal.SIGTERM)
            started = time.monotonic()
            *_, usage, last = finishing
            assert last == "[DONE]"
            assert json.loads(usage)["usage"]["completion_tokens"] == 20
            *_, error, last = ending
            assert last == "[DONE]"
            assert json.loads(error)["error"]["code"] == "stopping"
            assert time.monotonic() - started > GRACE - 0.5, "it had its grace"
        assert server.wait(30) == 0, "stopped as it was told"
    assert not list((tmp_path / "notes" / "readers").iterdir()), "the bank was closed"
