from __future__ import annotations

import json
import random
import string
from pathlib import Path

import pytest
import torch

from memspan.bank import estimate as module
from memspan.bank.add import add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.estimate import estimate
from memspan.bank.segment import segment_paths
from memspan.model.convert import LoadedModel
from memspan.types import Document


def _corpus() -> list[Document]:
    generator = random.Random(0)
    texts = [" ".join(generator.choices(string.ascii_lowercase, k=generator.randint(1, 150))) for _ in range(12)]
    return [Document(str(number), text, title="A title" * (number % 2)) for number, text in enumerate(texts)]


def _latent_bytes(path: Path) -> int:
    """Size of the latents in a safetensors file, without its header and its index."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    offsets = [tensor["data_offsets"] for name, tensor in header.items() if name.startswith("layer_")]
    return sum(end - start for start, end in offsets)


def test_an_estimate_counts_what_adding_to_a_new_bank_then_reports(tmp_path: Path, loaded: LoadedModel) -> None:
    bank = MemoryBank.create(tmp_path / "bank", manifest_of(loaded))
    expected = estimate(loaded, iter(_corpus()))
    report = add_documents(bank, loaded, _corpus())
    assert expected.sources == report.added == 12
    assert expected.documents == report.documents > 12
    assert (expected.tokens, expected.chunks) == (report.tokens, report.chunks)
    keys = content = 0
    for _, files in bank.catalog.segments():
        keys_path, content_path = segment_paths(bank.folder / "segments", files.name)
        keys += _latent_bytes(keys_path)
        content += _latent_bytes(content_path)
    assert (expected.latent_bytes, expected.routing_key_bytes) == (keys + content, keys)


def test_time_is_tokens_over_the_measured_rate(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_tokens_per_second", lambda *_: 8.0)
    found = estimate(loaded, _corpus())
    assert (found.tokens_per_second, found.seconds) == (8.0, found.tokens / 8)


def test_the_rate_is_measured_on_whole_documents_of_a_bounded_sample(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SAMPLE_TOKENS", 200)
    samples: list[list[list[int]]] = []
    monkeypatch.setattr(module, "_tokens_per_second", lambda _, sample: samples.append(sample) or 1.0)
    estimate(loaded, _corpus())
    (sample,) = samples
    sizes = [len(ids) for ids in sample]
    assert sum(sizes[:-1]) < 200 <= sum(sizes)


def test_measuring_changes_neither_the_model_nor_the_generator(loaded: LoadedModel) -> None:
    weights = {name: parameter.clone() for name, parameter in loaded.model.named_parameters()}
    state = torch.get_rng_state()
    assert estimate(loaded, _corpus()).tokens_per_second > 0
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, weights[name]), name


def test_an_empty_corpus_takes_nothing(loaded: LoadedModel) -> None:
    found = estimate(loaded, [])
    assert (found.sources, found.documents, found.tokens, found.chunks) == (0, 0, 0, 0)
    assert (found.tokens_per_second, found.seconds, found.latent_bytes, found.catalog_bytes) == (0.0, 0.0, 0, 0)
