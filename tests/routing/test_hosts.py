"""Memory Parallel over hosts, in a network of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_hosts_find_what_one_finds_and_a_lost_one_is_an_error() -> None:
    if sys.platform != "linux":
        pytest.skip("no process may have a network of its own here")
    from apart import run_in_own_network

    run_in_own_network(Path(__file__).with_name("hosts_apart.py"))
