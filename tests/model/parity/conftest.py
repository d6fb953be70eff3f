"""The checkpoint converted for serving and for training, once for each `aux_loss_method`."""

from __future__ import annotations

import pytest
from released_numbers import Parity, convert_under, parity


@pytest.fixture(scope="session", params=["INFONCE", "INFONCE_DECOUPLE"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Parity:
    """The model that scores as the released serving code does."""
    return parity(request.param, convert_under(request.param, tmp_path_factory.mktemp("served")))


@pytest.fixture(scope="session", params=["INFONCE", "INFONCE_DECOUPLE"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Parity:
    """The model that scores as the released training code does: by cosine, whatever the method."""
    return parity(request.param, convert_under(request.param, tmp_path_factory.mktemp("trained"), "cosine"))
