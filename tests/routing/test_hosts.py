"""Memory Parallel over hosts, in a network of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_network import run_in_own_network


@pytest.mark.slow
def test_hosts_find_what_one_finds_and_a_lost_one_is_an_error() -> None:
    run_in_own_network(Path(__file__).with_name("hosts_apart.py"))
