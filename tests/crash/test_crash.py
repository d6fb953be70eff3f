"""No fault below Python harms a bank: see `harness` for what strikes, `checks` for what must hold after.

With MEMSPAN_CRASH_THOROUGH set, every single call is tried for real: minutes instead of one or two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from harness import KINDS
from scenarios import BROKEN, SCENARIOS
from shim import compile_library, unavailable

import memspan

_HERE = Path(__file__).parent
_LEAST_STATES = 1000
_SECONDS = 3600
pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

# A process that does nothing but load the shim: containers may refuse the filter.
_PROBE = "import sys; from pathlib import Path; from shim import Shim; Shim(Path(sys.argv[1]))"

_Report = dict[str, dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiled = compile_library(tmp_path_factory.mktemp("faults"))
    probe = subprocess.run([sys.executable, "-c", _PROBE, str(compiled)], cwd=_HERE, capture_output=True, text=True)
    if "seccomp filter is refused" in probe.stderr:
        pytest.skip(probe.stderr.splitlines()[-1])
    assert probe.returncode == 0, probe.stderr
    return compiled


@pytest.fixture(scope="module")
def report(library: Path, tmp_path_factory: pytest.TempPathFactory) -> _Report:
    """What the harness found: by scenario, by fault."""
    return _run_harness(library, tmp_path_factory.mktemp("crash"))


def _run_harness(library: Path, folder: Path, *arguments: str) -> _Report:
    path = folder / "report.json"
    sources = [Path(memspan.__file__).parents[1], _HERE.parent]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sources)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, _HERE / "harness.py", "--library", library, "--folder", folder, "--report", path]
    command += arguments
    if os.environ.get("MEMSPAN_CRASH_THOROUGH"):
        command.append("--thorough")
    run = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=_SECONDS)
    assert run.returncode == 0, run.stderr
    by_scenario: _Report = defaultdict(dict)
    for findings in json.loads(path.read_text())["findings"]:
        by_scenario[findings["scenario"]][findings["fault"]] = findings
    return by_scenario


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_bank_stands_every_fault(report: _Report, name: str) -> None:
    violations = [violation for findings in report[name].values() for violation in findings["violations"]]
    assert not violations, f"{len(violations)} violations:\n" + "\n".join(violations[:20])
    assert {fault for fault, findings in report[name].items() if findings["points"]} == {*sum(KINDS.values(), ())}


def test_enough_different_states_were_looked_at(report: _Report) -> None:
    assert sum(findings["checked"] for name in SCENARIOS for findings in report[name].values()) >= _LEAST_STATES


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_operation_is_found_out(report: _Report, name: str) -> None:
    _, kind = BROKEN[name]
    found = [fault for fault in KINDS[kind] if report[name][fault]["violations"]]
    assert found, f"{name} harms a bank, and no fault of the kind {kind} shows it"


@pytest.mark.slow
def test_a_bank_on_a_network_folder_stands_every_fault_too(library: Path, tmp_path: Path) -> None:
    """There the catalog has a rollback journal. An operation that does not sync it is found out as well."""
    report = _run_harness(library, tmp_path, "--network", "update", "compact and erase", "catalog never synced")
    broken = report.pop("catalog never synced")
    assert any(broken[fault]["violations"] for fault in KINDS["power"])
    found = [violation for by_fault in report.values() for one in by_fault.values() for violation in one["violations"]]
    assert not found, f"{len(found)} violations:\n" + "\n".join(found[:20])
    assert len(report) == 2 and all(one["points"] for by_fault in report.values() for one in by_fault.values())
