"""A short form of the long run (`make soak`): many clients that ask, go away, and change memories, all at once."""

from __future__ import annotations

import asyncio
import runpy
from pathlib import Path
from typing import Any

import pytest
from chat_server import Handler, call, chat_server, refuse, say
from serving import add_animals, client, serving, wait_for

from memspan.generate.endpoint import Endpoint
from memspan.model.convert import LoadedModel

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "serve.py"


def test_many_clients_meet_no_error_and_leave_nothing_behind(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARK.parent)  # it imports others from there
    run_mixed = runpy.run_path(str(BENCHMARK))["run_mixed"]
    with serving(loaded, tmp_path / "notes") as (server, address):
        with client(address) as http:
            add_animals(http)
        load = asyncio.run(run_mixed(address, 12, 8, rounds=5))
        service = server.config.app.state.service  # type: ignore[union-attr]
        wait_for(lambda: service.engine.num_running == service.engine.num_waiting == 0)
        assert load.errors == []
        assert sum(load.done.values()) == 12 * 5 and len(load.done) == 3
        assert len(load.seconds) == 12, "everybody was answered"
        assert service.bank("notes").counts().sources == 4
        assert len(service.engine._batch) == 0


def test_many_clients_of_another_model_meet_no_error_either(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some questions call a tool, some are refused for now and asked again, some clients go away."""
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    run_mixed = runpy.run_path(str(BENCHMARK))["run_mixed"]

    def play(handler: Handler, body: dict[str, Any]) -> None:
        with handler.chat.lock:
            busy = len(handler.chat.asked) % 7 == 0
        answer = call("{}", body["tools"][0]["function"]["name"]) if body.get("tools") else say("It is so ", "[1].")
        (refuse(429, Retry_After="0") if busy else answer)(handler, body)

    with chat_server() as other:
        other.plays = [play]
        endpoint = Endpoint(other.url, "big", room=8192, wait=0.001, retries=20)
        with serving(loaded, tmp_path / "notes", answerer=endpoint) as (server, address):
            with client(address) as http:
                add_animals(http)
            load = asyncio.run(run_mixed(address, 12, 8, rounds=5, tools=True, patience=60))
            service = server.config.app.state.service  # type: ignore[union-attr]
            wait_for(lambda: service.engine.num_running == service.engine.num_waiting == 0)
            assert load.errors == [] and sum(load.done.values()) == 12 * 5
            assert len(load.seconds) == 12 and service.bank("notes").counts().sources == 4
