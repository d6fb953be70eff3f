"""A network of its own for a program that opens ports on every interface that it sees."""

from __future__ import annotations

import shutil
import subprocess

import pytest

# A namespace whose only interface is loopback; root in it, and nowhere else.
_PREFIX = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def in_own_network(*command: object) -> list[str]:
    """The command that runs another one in such a network; skips the test where there can be none."""
    tools = shutil.which("unshare") and shutil.which("ip")
    if not tools or subprocess.run([*_PREFIX, "true"], check=False).returncode:
        pytest.skip("no process may have a network of its own here")
    return [*_PREFIX, *map(str, command)]
