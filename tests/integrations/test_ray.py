"""Encoding on Ray, in a network of its own: Ray opens ports on every interface that it sees."""

from __future__ import annotations

from pathlib import Path

import pytest
from apart import run_in_own_network


@pytest.mark.slow
def test_workers_encode_what_one_process_would_and_lose_nothing_when_they_are_killed() -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    run_in_own_network(Path(__file__).with_name("ray_cluster.py"))
