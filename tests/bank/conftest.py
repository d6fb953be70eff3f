"""What many tests of banks share: an empty bank, a catalog, a tiny model that cuts texts early."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from helpers import tiny_loaded

from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import Catalog
from memspan.bank.encode import manifest_of
from memspan.generate.memory import Memory
from memspan.model.convert import LoadedModel


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded(max_document_tokens=64)


@pytest.fixture
def bank(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemoryBank]:
    """An empty bank: of the module's MANIFEST, or else of its model `loaded`."""
    manifest = getattr(request.module, "MANIFEST", None) or manifest_of(request.getfixturevalue("loaded"))
    with closing(MemoryBank.create(tmp_path / "bank", manifest)) as made:
        yield made


@pytest.fixture
def memory(bank: MemoryBank, loaded: LoadedModel) -> Memory:
    return Memory(bank, loaded)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with closing(Catalog(tmp_path / "catalog.sqlite", create=True)) as catalog:
        yield catalog
