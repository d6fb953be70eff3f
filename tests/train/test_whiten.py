"""Whitened routers: the map is the one described, and finds documents that random routers do not."""

from __future__ import annotations

import pytest
import torch
from helpers import tiny_model

from memspan.model.modeling import routed_modules
from memspan.text.template import Context
from memspan.train.whiten import whiten_routers, whitening
from memspan.types import Span


def _states(seed: int, num: int, width: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99), dtype=torch.double)
    mixing = torch.eye(width, dtype=torch.double) + 0.1 * mixing
    return (torch.randn(num, width, generator=generator, dtype=torch.double) @ mixing + 5 * mixing[0]).float()


def test_the_map_leaves_out_the_means_and_whitens_what_is_left() -> None:
    documents, tokens = _states(1, 400), _states(2, 600)
    last = tokens[:50]
    weight = whitening(documents, tokens, last, 6, torch.Generator().manual_seed(0)).double()
    assert weight.shape == (6, 12)
    for mean in (documents.mean(0), tokens.mean(0), last.mean(0)):
        assert (weight @ mean.double()).norm() < 1e-4 * weight.norm() * mean.double().norm()
    spread = (torch.cov((documents.double() @ weight.T).T) + torch.cov((tokens.double() @ weight.T).T)) / 2
    torch.testing.assert_close(spread / spread.diagonal().mean(), torch.eye(6).double(), atol=1e-4, rtol=0)


def test_the_directions_of_largest_variance_are_kept() -> None:
    scales = torch.tensor([10.0, 8.0, 6.0, 0.5, 0.4, 0.3, 0.2, 0.1])
    generator = torch.Generator().manual_seed(3)
    documents, tokens, last = (torch.randn(5000, 8, generator=generator) * scales for _ in range(3))
    documents[:, 5] += 50
    tokens[:, 6] += 50
    last[:, 7] += 50
    weight = whitening(documents, tokens, last, 2, torch.Generator().manual_seed(0))
    assert weight[:, :2].norm() > 10 * weight[:, 2:].norm()


def test_more_width_than_directions_is_a_map_of_lower_rank() -> None:
    weight = whitening(_states(1, 400), _states(2, 400), _states(3, 40), 20, torch.Generator().manual_seed(0))
    assert weight.shape == (20, 12) and torch.linalg.matrix_rank(weight) == 9
    assert torch.isfinite(weight).all()


def _model_and_texts() -> tuple:
    model = tiny_model()
    generator = torch.Generator().manual_seed(5)
    texts = [torch.randint(3, 500, (14,), generator=generator).tolist() for _ in range(60)]
    return model, texts, [Context(tuple([7, 8, *text[3:9], 9]), Span(2, 8)) for text in texts]


def test_query_heads_have_nearly_the_map_of_their_group_and_layers_differ() -> None:
    model, documents, contexts = _model_and_texts()
    whiten_routers(model, documents, contexts)
    weights = []
    for attention in routed_modules(model):
        query = attention.router_q_proj.weight.view(2, 2, 16, -1)
        key = attention.router_k_proj.weight.view(2, 16, -1)
        for head in query.unbind(1):  # equal heads would have equal gradients for ever
            assert torch.nn.functional.cosine_similarity(head.flatten(), key.flatten(), dim=0) > 0.95
        assert not torch.equal(query[:, 0], query[:, 1])
        weights.append(key)
    assert not torch.equal(*weights)
    before = [p.clone() for p in model.parameters()]
    whiten_routers(model, documents, contexts)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), "seeded"


def test_padding_and_batches_do_not_matter() -> None:
    model, documents, contexts = _model_and_texts()
    documents = [document[: 5 + index % 10] for index, document in enumerate(documents)]
    whiten_routers(model, documents, contexts, batch_tokens=10_000)
    wanted = [module.router_k_proj.weight.clone() for module in routed_modules(model)]
    whiten_routers(model, documents, contexts, batch_tokens=16)
    for weight, module in zip(wanted, routed_modules(model), strict=True):
        torch.testing.assert_close(module.router_k_proj.weight, weight, atol=2e-3, rtol=1e-2)


def test_too_little_to_measure_is_refused() -> None:
    model, documents, contexts = _model_and_texts()
    with pytest.raises(ValueError, match="several documents and questions"):
        whiten_routers(model, documents[:1], contexts)
