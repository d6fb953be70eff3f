"""Frozen memory gives what encoding anew gives, and reaches the router key projections."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import tiny_loaded

from memspan.errors import MemspanError
from memspan.model.convert import LoadedModel
from memspan.model.lora import LoraSpec
from memspan.model.modeling import is_router
from memspan.text.questions import Question, passage
from memspan.train.batch import Collator, TrainBatch
from memspan.train.batch_settings import BatchSettings
from memspan.train.forward import LossTerms, LossWeights, Objective, training_forward
from memspan.train.frozen import FrozenMemory
from memspan.train.memory import encode_documents
from memspan.train.parameters import make_trainable
from memspan.types import Document

WORDS = "the otter lives in Oslo by a river and eats fish while ferries pass on their way to Bergen"


def some_documents(count: int = 9) -> list[Document]:
    rng = random.Random(1)
    return [passage(f"T{index}", " ".join(rng.choices(WORDS.split(), k=rng.randint(3, 40)))) for index in range(count)]


def build(loaded: LoadedModel, documents: list[Document], folder: Path, **options: int) -> FrozenMemory:
    collator = Collator(loaded.template, loaded.model.config, BatchSettings())
    return FrozenMemory.build(loaded.model, loaded.template, documents, collator.part, folder, **options)


def make_batch(loaded: LoadedModel, documents: list[Document], frozen: FrozenMemory) -> TrainBatch:
    """Two questions over all but the first two documents."""
    questions = [
        Question(str(index), f"Where is number {index}?", ("x",), (documents[3 + index],), tuple(documents[2:]))
        for index in range(2)
    ]
    settings = BatchSettings(negatives=len(documents), latent=1.0)
    collator = Collator(loaded.template, loaded.model.config, settings, document_ids=frozen.ids)
    return collator(questions, random.Random(2))


def losses(loaded: LoadedModel, batch: TrainBatch, frozen: FrozenMemory | None) -> tuple[LossTerms, dict]:
    model = loaded.model
    model.zero_grad()
    terms = training_forward(model, batch, Objective(), frozen=frozen)
    terms.total(LossWeights(1, 1)).backward()
    return terms, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def loaded() -> LoadedModel:
    loaded = tiny_loaded("qwen3", max_document_tokens=64)
    make_trainable(loaded.model, lora=LoraSpec(r"layers\.3.*q_proj", sides=("query",)))
    return loaded


@pytest.mark.parametrize("encode_tokens", [30, 8192])
def test_frozen_documents_give_the_losses_and_gradients_of_encoded_ones(
    loaded: LoadedModel, tmp_path: Path, encode_tokens: int
) -> None:
    documents = some_documents()
    frozen = build(loaded, documents, tmp_path, encode_tokens=encode_tokens)
    batch = make_batch(loaded, documents, frozen)
    assert batch.num_label_tokens and batch.num_routed_questions == 2
    (terms, grads), (expected, expected_grads) = (losses(loaded, batch, memory) for memory in (frozen, None))
    torch.testing.assert_close(terms.scores_LBN, expected.scores_LBN, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(terms.sums["lm"], expected.sums["lm"], atol=1e-5, rtol=1e-6)
    assert grads.keys() == expected_grads.keys() == {n for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert sum(is_router(name) for name in grads) == 4
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_what_is_kept_is_exactly_what_encoding_gives(loaded: LoadedModel, tmp_path: Path) -> None:
    """Bit for bit where the same sub-batches are encoded; after the routers have trained as well."""
    documents = some_documents()
    frozen = build(loaded, documents, tmp_path)
    for parameter in filter(lambda p: p.requires_grad, loaded.model.parameters()):
        parameter.add_(0.3 * torch.randn_like(parameter))
    named = zip(frozen.names, frozen.texts, strict=True)
    ids = [loaded.template.document(frozen.ids[name], text) for name, text in named]
    expected = encode_documents(loaded.model, ids, 8192)
    found = frozen.encoded(loaded.model, frozen.names)
    assert found.num_chunks == expected.num_chunks
    assert torch.equal(found.content_LC2GD, expected.content_LC2GD)
    # Keys are one matrix product of another shape.
    torch.testing.assert_close(found.router_keys_LCW, expected.router_keys_LCW, atol=1e-6, rtol=0)


def test_a_file_is_found_again_by_weights_texts_and_seed(loaded: LoadedModel, tmp_path: Path) -> None:
    documents = some_documents(3)
    calls: list[int] = []
    loaded.model.backbone.base_model.register_forward_pre_hook(lambda *_: calls.append(1))
    first = build(loaded, documents, tmp_path)
    assert calls and first.ids.keys() == {document.external_id for document in documents}
    calls.clear()
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if is_router(name) or "lora" in name:
                parameter.add_(1)
    again = build(loaded, documents, tmp_path)
    assert not calls and again.path == first.path and again.ids == first.ids
    others = [
        build(loaded, documents, tmp_path, seed=1),
        build(loaded, documents[:2], tmp_path),
        build(loaded, [*documents[:2], replace(documents[2], text="other")], tmp_path),
    ]
    assert len({other.path for other in others} | {first.path}) == 4 and others[0].ids != first.ids
    with torch.no_grad():
        loaded.model.get_parameter("backbone.model.layers.1.mlp.up_proj.weight").add_(0.1)
    assert build(loaded, documents, tmp_path).path != first.path
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("do", "error", "message"),
    [
        (lambda x, frozen, docs, path: build(x, [*docs, docs[0]], path), ValueError, "distinct names"),
        (lambda x, frozen, docs, path: build(x, [], path), ValueError, "distinct names"),
        (lambda x, frozen, docs, path: build(x, docs, path, max_id=2), ValueError, "ids from 1 to 2"),
        (lambda x, frozen, docs, path: frozen.encoded(x.model, ["nowhere"]), ValueError, "'nowhere' is not in"),
        (
            lambda x, frozen, docs, path: frozen.encoded(x.model.requires_grad_(True), frozen.names),
            ValueError,
            "embed_tokens.weight trains",
        ),
        (
            lambda x, frozen, docs, path: [frozen.path.write_bytes(b"cut"), build(x, docs, path)],
            MemspanError,
            "damaged",
        ),
        (
            lambda x, frozen, docs, path: [(path / "file").write_text(""), build(x, docs, path / "file")],
            MemspanError,
            "cannot write",
        ),
    ],
)
def test_what_cannot_be_says_why(
    loaded: LoadedModel, tmp_path: Path, do: Callable[..., object], error: type[Exception], message: str
) -> None:
    documents = some_documents(3)
    frozen = build(loaded, documents, tmp_path)
    with pytest.raises(error, match=message):
        do(loaded, frozen, documents, tmp_path)
