"""What most tests of memories share: a tiny model, an empty memory, a bank of a module's documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import tiny_loaded

from memspan.bank.add import add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.generate.memory import Memory
from memspan.model.convert import LoadedModel


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


@pytest.fixture
def memory(tmp_path: Path, loaded: LoadedModel) -> Iterator[Memory]:
    """A memory of an empty bank."""
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(loaded)), loaded) as memory:
        yield memory


@pytest.fixture(scope="module")
def filled(request: pytest.FixtureRequest, loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of the module's DOCUMENTS, which no test changes."""
    folder = tmp_path_factory.mktemp("filled")
    bank = MemoryBank.create(folder, manifest_of(loaded))
    add_documents(bank, loaded, request.module.DOCUMENTS)
    bank.close()
    return folder
