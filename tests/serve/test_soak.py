"""A short form of the long run (`make soak`): many clients that ask, go away, and change memories, all at once."""

from __future__ import annotations

import asyncio
import runpy
from pathlib import Path

import pytest
from serving import add_animals, client, serving, wait_for

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
