"""What the tests of the server share: a tiny model, and a server with a bank of four animals that no test changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch
from helpers import ENDOFTEXT, save_backbone
from serving import add_animals, client, endless_model, serving

from memspan.model.convert import LoadedModel, convert
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


@pytest.fixture(scope="package")
def endless_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that never ends an answer by itself, with room for very long ones."""
    folder = tmp_path_factory.mktemp("endless")
    backbone = save_backbone(folder / "plain")
    with torch.no_grad():
        backbone.lm_head.weight[ENDOFTEXT:] = 0
    backbone.config.max_position_embeddings = 100_000
    backbone.save_pretrained(folder / "plain")
    convert(str(folder / "plain"), folder / "msa", dtype=torch.float32, chunk_size=4, top_k_docs=2)
    return folder / "msa"
