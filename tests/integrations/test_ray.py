"""Encoding and serving on Ray, in a network of its own: Ray opens ports on every interface that it sees."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_network import run_in_own_network


@pytest.mark.slow
@pytest.mark.parametrize("file", ["ray_cluster.py", "ray_serving.py"])
def test_workers_and_replicas_do_what_one_process_would_and_lose_nothing_when_they_are_killed(file: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    run_in_own_network(Path(__file__).with_name(file))
