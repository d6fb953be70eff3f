"""Fixtures every test shares: one thread, fixed seeds, and a device where there is one."""

from __future__ import annotations

import pytest
import torch

# Tensors are tiny: a second thread only waits, and on a busy machine makes the tests several times slower.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)
