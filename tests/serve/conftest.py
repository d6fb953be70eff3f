"""What the tests of the server share: a tiny model, and a server with a bank of four animals that no test changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
from serving import add_animals, client, endless_model, serving

from memspan.model.convert import LoadedModel
from memspan.serve.run import Server


@pytest.fixture(scope="package")
def loaded() -> LoadedModel:
    return endless_model()


@pytest.fixture(scope="package")
def animals(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A server of two banks, `notes` with animals and `other`, without keys; and its address."""
    folder = tmp_path_factory.mktemp("banks")
    with serving(loaded, folder / "notes", f"other={folder / 'second'}", max_batch=4) as (server, address):
        with client(address) as http:
            add_animals(http)
        yield server, address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; see `browsing`."""
    from browsing import chromium

    with chromium() as found:
        yield found


@pytest.fixture
def http(animals: tuple[Server, str]) -> Iterator[httpx.Client]:
    """A client of that server."""
    with client(animals[1]) as http:
        yield http
