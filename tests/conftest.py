"""Fixtures every test shares: one thread, fixed seeds, and a device where there is one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import allowed_skips
import pytest
import torch
from typer.testing import CliRunner

from memspan.cli import app
from memspan.model.convert import default_folder
from memspan.model.runtime import pick_device

# What tests must not be skipped for: `--skips`.
pytest_addoption = allowed_skips.pytest_addoption
pytest_sessionfinish = allowed_skips.pytest_sessionfinish
pytest_terminal_summary = allowed_skips.pytest_terminal_summary

# Tensors are tiny: a second thread only waits, and on a busy machine makes the tests several times slower.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=sorted({"cpu", pick_device().type}))
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="session")
def real_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The real default backbone, converted by the command into a user's cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMSPAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = default_folder()
        result = CliRunner().invoke(app, ["convert", "--out", str(folder), "--json"])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["msa_layers"] == list(range(15, 30))
        yield folder
