"""Routers that find documents before anything is learned: both projections whiten a layer's states (not in the paper).

The states of a layer share a few directions of large variance that say nothing about what a text is about; cosines of
random projections see little else. Here the two router projections become one map, which leaves out the means of
documents and of questions, keeps the directions in which both vary most, and gives each the same weight:

    P    takes out the means of pooled documents, of question tokens, and of the questions' last tokens
    C    (cov(P documents) + cov(P question tokens)) / 2, with eigenvectors v_i and eigenvalues e_i, the largest first
    W_k  R [v_1 / sqrt(e_1), v_2 / sqrt(e_2), ...]^T P, R a random rotation that shares the directions out to the heads
    W_q  for every query head, W_k of its group and some noise, without which a group's heads would learn the same

Figures beside random and trained routers are in docs/LOG.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from memspan.model.memory_api import QueryStep
from memspan.model.modeling import MSAForCausalLM, routed_modules
from memspan.ops.pooling import valid_chunks
from memspan.text.packing import BATCH_TOKENS, length_batches, pack_contexts
from memspan.text.template import Context

# Directions of a smaller share of the mean variance are noise, and would be blown up.
_LEAST_SHARE = 1e-4
_STD = 0.04  # of the weights; cosines do not see it
_NOISE = 0.2  # share of it, of what tells query heads apart


@torch.no_grad()
def whiten_routers(
    model: MSAForCausalLM,
    documents: Sequence[Sequence[int]],
    contexts: Sequence[Context],
    *,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
) -> None:
    """Set the router projections of every MSA layer, from the states of some documents and questions.

    Args:
        documents: token ids in their template, a few hundred at least; more than the hidden size of chunks is better.
        contexts: questions alone; need not be about these documents.
        seed: of the rotations.
        batch_tokens: run at a time.

    Raises:
        ValueError: there are fewer than two documents or questions.
    """
    if min(len(documents), len(contexts)) < 2:
        raise ValueError("whitening needs the states of several documents and questions")
    pooled = _document_states(model, documents, batch_tokens)
    asked = _question_states(model, contexts, batch_tokens)
    generator = torch.Generator().manual_seed(seed)
    for attention in routed_modules(model):
        num_heads, num_kv_heads, head_dim = attention.router_heads
        tokens_XF, last_BF = asked[attention.layer_idx]
        weight_WF = whitening(pooled[attention.layer_idx], tokens_XF, last_BF, num_kv_heads * head_dim, generator)
        key_GDF = weight_WF.view(num_kv_heads, head_dim, -1)
        attention.router_k_proj.weight.copy_(weight_WF)
        query_WF = key_GDF.repeat_interleave(num_heads // num_kv_heads, dim=0).flatten(0, 1)
        noise_WF = torch.randn(query_WF.shape, generator=generator)
        attention.router_q_proj.weight.copy_(query_WF + _NOISE * _STD * noise_WF)


def whitening(
    documents_XF: torch.Tensor, tokens_XF: torch.Tensor, last_BF: torch.Tensor, width: int, generator: torch.Generator
) -> torch.Tensor:
    """The map of the module's docstring, `[width, F]` float32.

    Args:
        documents_XF: pooled states of documents. tokens_XF: states of question tokens. last_BF: of the last of each.
    """
    # In float64, so on the CPU: not every device has it.
    documents_XF, tokens_XF, last_BF = (states.cpu().double() for states in (documents_XF, tokens_XF, last_BF))
    means_F3 = torch.stack([documents_XF.mean(0), tokens_XF.mean(0), last_BF.mean(0)], dim=1)
    basis_F3, _ = torch.linalg.qr(means_F3)
    keep_FF = torch.eye(len(basis_F3), dtype=torch.double) - basis_F3 @ basis_F3.T
    spread_FF = (torch.cov((documents_XF @ keep_FF).T) + torch.cov((tokens_XF @ keep_FF).T)) / 2
    values_F, vectors_FF = torch.linalg.eigh(spread_FF)
    kept = (values_F > _LEAST_SHARE * values_F.mean()).nonzero()[:, 0][-width:]
    white_RF = (vectors_FF[:, kept] * values_F[kept].rsqrt()).T @ keep_FF
    rotation_WR = torch.randn(width, len(kept), generator=generator, dtype=torch.double)
    rotation_WR = torch.linalg.qr(rotation_WR).Q
    weight_WF = rotation_WR @ white_RF
    return (weight_WF / weight_WF.std() * _STD).float()


def _document_states(
    model: MSAForCausalLM, documents: Sequence[Sequence[int]], batch_tokens: int
) -> dict[int, torch.Tensor]:
    """Per MSA layer the pooled inputs of its router, `[chunks, F]`."""
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in model.config.layers}
    for indices in length_batches([len(document) for document in documents], batch_tokens):
        step = model.record([documents[index] for index in indices])
        for layer, pooled in step.recorded.items():
            assert pooled.hidden_BCF is not None, "an MSA layer records its pooled input"
            valid_BC = valid_chunks(step.lengths_B, pooled.hidden_BCF.shape[1], step.chunk_size)
            found[layer].append(pooled.hidden_BCF[valid_BC].float())
    return {layer: torch.cat(states) for layer, states in found.items()}


def _question_states(
    model: MSAForCausalLM, contexts: Sequence[Context], batch_tokens: int
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Per MSA layer its input at the tokens that route, `[tokens, F]`, and at the last of each question, `[B, F]`."""
    tokens: dict[int, list[torch.Tensor]] = {layer: [] for layer in model.config.layers}
    last: dict[int, list[torch.Tensor]] = {layer: [] for layer in model.config.layers}
    for indices in length_batches([len(context.ids) for context in contexts], batch_tokens):
        packed = pack_contexts([contexts[index] for index in indices], model.config.offset).to(model.device)
        step = QueryStep(valid_BS=packed.padding_mask)
        with _inputs(model) as entering:
            model.backbone.base_model(packed.ids, position_ids=packed.positions, memory=step, use_cache=False)
        T = packed.ids.shape[1]
        last_B = (packed.routes * torch.arange(T, device=packed.routes.device)).argmax(1)
        for layer, hidden_BTF in entering.items():
            tokens[layer].append(hidden_BTF[packed.routes].float())
            last[layer].append(hidden_BTF[torch.arange(len(last_B), device=last_B.device), last_B].float())
    return {layer: (torch.cat(tokens[layer]), torch.cat(last[layer])) for layer in tokens}


@contextmanager
def _inputs(model: MSAForCausalLM) -> Iterator[dict[int, torch.Tensor]]:
    """What enters the attention of every MSA layer in the forward that is run inside."""
    found: dict[int, torch.Tensor] = {}

    def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found[module.layer_idx] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in routed_modules(model)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
