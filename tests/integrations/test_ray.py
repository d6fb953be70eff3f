"""Encoding and serving on Ray, in a network of its own: Ray opens ports on every interface that it sees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from own_network import in_own_network

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["ray_cluster.py", "ray_serving.py"])
def test_workers_and_replicas_do_what_one_process_would_and_lose_nothing_when_they_are_killed(file: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    tests = Path(__file__).with_name(file)
    command = in_own_network(sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", tests)
    mine = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=mine)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
