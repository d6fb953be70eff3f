"""Commands and tests in a network of their own: what they open there nobody else sees, and they may change it."""

from __future__ import annotations

import os
import re
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
    # In the last line of pytest: what a library prints at its end may hold the words, too.
    assert done.returncode == 0 and re.search(r"\d passed", said) and not re.search(r"\d skipped", said), said
