"""Fixtures every test shares: few threads, fixed seeds, and a device where there is one."""

from __future__ import annotations

import os

import pytest
import torch

torch.set_num_threads(min(os.cpu_count() or 1, 2))


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)
