"""Commands and tests in a network of their own: what they open there nobody else sees, and they may change it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from network import SLOW, Host, Link, on_hosts, own_network

__all__ = ["SLOW", "Host", "Link", "in_own_network", "on_hosts", "run_in_own_network"]


def in_own_network(*command: object) -> list[str]:
    """The command in a network namespace whose only interface is loopback, as root there and nowhere else; skips where
    the system lets nobody have one."""
    found = own_network(*map(str, command))
    if found is None:
        pytest.skip("no process may have a network of its own here")
    return found


def run_in_own_network(tests: Path) -> None:
    """Run a file of tests, which pytest does not collect itself."""
    command = in_own_network(sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", tests)
    mine = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=mine)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and " passed" in said and " skipped" not in said, said
