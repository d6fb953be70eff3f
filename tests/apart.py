"""Tests in a network of their own: what they open there nobody else sees, and they may change it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from network import SLOW, Host, Link, on_hosts, own_network

__all__ = ["SLOW", "Host", "Link", "on_hosts", "run_in_own_network"]


def run_in_own_network(tests: Path) -> None:
    """Run a file of tests, which pytest does not collect itself, or skip where there can be no such network."""
    root = Path(__file__).parents[1]
    command = own_network(sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", str(tests))
    if command is None:
        pytest.skip("no process may have a network of its own here")
    mine = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=mine)
    assert done.returncode == 0 and " passed" in done.stdout and " skipped" not in done.stdout, (
        done.stdout + done.stderr
    )
