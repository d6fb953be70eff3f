"""Encoding on Ray, in a network of its own: Ray opens ports on every interface that it sees."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CLUSTER = Path(__file__).with_name("ray_cluster.py")
# A namespace whose only interface is loopback; root in it, and nowhere else.
OWN_NETWORK = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


@pytest.mark.slow
def test_workers_encode_what_one_process_would_and_lose_nothing_when_they_are_killed() -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    tools = shutil.which("unshare") and shutil.which("ip")
    if not tools or subprocess.run([*OWN_NETWORK, "true"], check=False).returncode:
        pytest.skip("no process may have a network of its own here")
    command = [*OWN_NETWORK, sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", str(CLUSTER)]
    mine = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CLUSTER.parents[2], env=mine)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
