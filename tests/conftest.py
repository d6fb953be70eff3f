"""Fixtures every test shares: one thread, fixed seeds, a device where there is one, the real backbone made once."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Generator, Iterator
from datetime import timedelta
from pathlib import Path

import allowed_skips
import pytest
from filelock import FileLock

# Tensors are tiny: a second thread only waits, and on a busy machine makes the tests several times slower. Said before
# torch is imported, it holds for all its threads and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

from memspan.bank import clock
from memspan.model.runtime import pick_device

# What is started in the background, or by nohup, ignores these, and so would all that tests start and signal.
for _name, _handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if signal.getsignal(getattr(signal, _name, signal.SIGINT)) is signal.SIG_IGN:
        signal.signal(getattr(signal, _name), _handler)

_MOST_SECONDS = 900

# What tests must not be skipped for: `--skips`.
pytest_addoption = allowed_skips.pytest_addoption
pytest_sessionfinish = allowed_skips.pytest_sessionfinish
pytest_terminal_summary = allowed_skips.pytest_terminal_summary


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests wait for files, and for processes that they start."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with one long test begin first: at the end the other processes would wait for them."""
    items.sort(key=lambda item: item.path.name not in ("test_crash.py", "test_synthetic.py", "test_real.py"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """A test that hangs is a failure by name: its process is ended, some time after every thread's stack was shown
    (`faulthandler_timeout`). Neither needs Python's lock, which may be what is waited for."""
    if "PYTEST_XDIST_WORKER" not in os.environ or not hasattr(signal, "setitimer"):
        return (yield)
    signal.setitimer(signal.ITIMER_REAL, _MOST_SECONDS)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> list[timedelta]:
    """How far the bank's clock is ahead: the last of these."""
    ahead, real = [timedelta()], clock.now
    monkeypatch.setattr(clock, "now", lambda: real() + ahead[-1])
    return ahead


@pytest.fixture(params=sorted({"cpu", pick_device().type}))
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="session")
def real_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The real default backbone, converted by the command into a user's cache of its own, once for all processes."""
    # Imported late: the process that only deals the tests out needs none of it.
    from typer.testing import CliRunner

    from memspan.cli import app
    from memspan.model.convert import known_folder
    from memspan.model.shipped import DEFAULT_SOURCE

    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMSPAN_CACHE", str(shared / "cache"))
        folder = known_folder(DEFAULT_SOURCE)
        with FileLock(shared / "cache.lock"):
            if not folder.exists():
                result = CliRunner().invoke(app, ["convert", "--out", str(folder), "--json"])
                assert result.exit_code == 0, result.output
                assert json.loads(result.stdout)["msa_layers"] == list(range(15, 30))
        yield folder
