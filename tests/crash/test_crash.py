"""No fault below Python harms a bank: see `harness` for what strikes, `checks` for what must hold after.

Every kind of fault strikes some scenarios at once; the slow tests try all scenarios and many more calls, in a minute or
two, and with MEMSPAN_CRASH_THOROUGH set every single call, for real.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from harness import KINDS, Sampling
from scenarios import BROKEN, SCENARIOS
from shim import compile_library, unavailable

import memspan

_HERE = Path(__file__).parent
_LEAST_STATES = {Sampling.QUICK: 200, Sampling.USUAL: 1000, Sampling.THOROUGH: 1000}
_MORE = Sampling.THOROUGH if os.environ.get("MEMSPAN_CRASH_THOROUGH") else Sampling.USUAL
# One of those that make a bank, change it (at once, and in texts and latents), and remove files of it.
_QUICK = ("create in new folders", "update", "remember", "commit what others encoded", "compact and erase")
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


def _each(quick: Iterable[str], more: Iterable[str]) -> pytest.MarkDecorator:
    """Run a test for the names that are tried quickly, and among the slow tests for more."""
    cases = [pytest.param(Sampling.QUICK, name, id=f"quick-{name}") for name in quick]
    cases += [pytest.param(_MORE, name, id=name, marks=pytest.mark.slow) for name in more]
    return pytest.mark.parametrize(("sampling", "name"), cases)


@pytest.fixture(scope="module")
def report_of(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sampling], _Report]:
    """What the harness finds with a sampling: by scenario, by fault. It runs once for each."""

    failures: dict[Sampling, AssertionError] = {}

    @functools.cache
    def run(sampling: Sampling) -> _Report:
        if sampling in failures:  # it takes minutes: not once more for every test
            raise failures[sampling]
        names = (*_QUICK, *BROKEN) if sampling is Sampling.QUICK else ()
        try:
            return _run_harness(library, tmp_path_factory.mktemp("crash"), sampling, *names)
        except AssertionError as error:
            failures[sampling] = error
            raise

    return run


def _run_harness(library: Path, folder: Path, sampling: Sampling, *arguments: str) -> _Report:
    path = folder / "report.json"
    sources = [Path(memspan.__file__).parents[1], _HERE.parent]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sources)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, _HERE / "harness.py", "--library", library, "--folder", folder, "--report", path]
    command += ["--sampling", sampling.value, *arguments]
    run = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=_SECONDS)
    assert run.returncode == 0, run.stderr
    by_scenario: _Report = defaultdict(dict)
    for findings in json.loads(path.read_text())["findings"]:
        by_scenario[findings["scenario"]][findings["fault"]] = findings
    return by_scenario


@_each(_QUICK, SCENARIOS)
def test_a_bank_stands_every_fault(report_of: Callable[[Sampling], _Report], sampling: Sampling, name: str) -> None:
    report = report_of(sampling)
    violations = [violation for findings in report[name].values() for violation in findings["violations"]]
    assert not violations, f"{len(violations)} violations:\n" + "\n".join(violations[:20])
    assert {fault for fault, findings in report[name].items() if findings["points"]} == {*sum(KINDS.values(), ())}


@pytest.mark.parametrize("sampling", [Sampling.QUICK, pytest.param(_MORE, marks=pytest.mark.slow)])
def test_enough_different_states_were_looked_at(report_of: Callable[[Sampling], _Report], sampling: Sampling) -> None:
    report = report_of(sampling)
    looked = sum(findings["checked"] for name in report.keys() & SCENARIOS for findings in report[name].values())
    assert looked >= _LEAST_STATES[sampling]


@_each(BROKEN, BROKEN)
def test_a_broken_operation_is_found_out(
    report_of: Callable[[Sampling], _Report], sampling: Sampling, name: str
) -> None:
    report, (_, kind) = report_of(sampling), BROKEN[name]
    found = [fault for fault in KINDS[kind] if report[name][fault]["violations"]]
    assert found, f"{name} harms a bank, and no fault of the kind {kind} shows it"


@pytest.mark.slow
def test_a_bank_on_a_network_folder_stands_every_fault_too(library: Path, tmp_path: Path) -> None:
    """There the catalog has a rollback journal. An operation that does not sync it is found out as well."""
    report = _run_harness(library, tmp_path, _MORE, "--network", "update", "compact and erase", "catalog never synced")
    broken = report.pop("catalog never synced")
    assert any(broken[fault]["violations"] for fault in KINDS["power"])
    found = [violation for by_fault in report.values() for one in by_fault.values() for violation in one["violations"]]
    assert not found, f"{len(found)} violations:\n" + "\n".join(found[:20])
    assert len(report) == 2 and all(one["points"] for by_fault in report.values() for one in by_fault.values())
