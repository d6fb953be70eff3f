"""Tests that are skipped without leave fail the run: a skip that nobody expects is a test that nobody runs.

    pytest --skips tests/skips/everywhere.txt --skips tests/skips/linux.txt

A file holds one regular expression a line, for the whole reason of a skip; `#` begins a comment. Without `--skips`
nothing is changed.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--skips",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="reasons for which tests may be skipped; any other skip fails the run",
    )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if unexpected(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for where, reason in unexpected(config):
        terminalreporter.write_line(f"SKIPPED without leave {where}: {reason}", red=True)


def unexpected(config: pytest.Config) -> list[tuple[str, str]]:
    """Skipped tests, and files, whose reasons are in none of the given files; in the process that reports."""
    files, reporter = config.getoption("skips"), config.pluginmanager.get_plugin("terminalreporter")
    if not files or reporter is None:
        return []
    lines = [line.strip() for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    allowed = [re.compile(line) for line in lines if line and not line.startswith("#")]
    found = [(report.nodeid, _reason(report)) for report in reporter.stats.get("skipped", ())]
    return sorted({(where, reason) for where, reason in found if not any(r.fullmatch(reason) for r in allowed)})


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    _, _, text = report.longrepr  # type: ignore[misc]  # of a skip: file, line, "Skipped: reason"
    return str(text).removeprefix("Skipped: ")
