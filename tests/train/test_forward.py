"""A training step: what it computes is what serving computes, and every gradient is the slope of the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from batches import random_batch
from helpers import TensorMemory, ask_step, tiny_model

from memspan.model.modeling import MSAForCausalLM, is_router
from memspan.text.packing import length_batches
from memspan.train.batch import IGNORED, TrainBatch
from memspan.train.forward import LossTerms, LossWeights, Objective, training_forward

EVERYTHING = LossWeights(lm=0.7, routing=1.3, fused=0.4)


def run(model: MSAForCausalLM, batch: TrainBatch, **objective: object) -> LossTerms:
    return training_forward(model, batch, Objective(**objective))  # type: ignore[arg-type]


def gradients(model: MSAForCausalLM, terms: LossTerms, weights: LossWeights) -> dict[str, torch.Tensor]:
    model.zero_grad()
    terms.total(weights).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- what is computed -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_losses_are_those_of_whole_logits_and_of_naive_scores() -> None:
    """Several positives a question, none of them first in order of ids; everything computed anew, literally."""
    model, batch = tiny_model(), random_batch()
    terms = run(model, batch, temperature=0.3, fused_temperature=0.2)
    # TensorMemory's ids are indices: put the documents in the order of their ids, as a bank has them.
    order = torch.tensor(batch.document_ids).argsort()
    memory = TensorMemory(model, model.encode([batch.documents[index] for index in order]))
    packed = batch.contexts
    logits_BTV = model(packed.ids, position_ids=packed.positions, memory=ask_step(packed, memory)).logits
    expected = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), batch.labels_BT[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(terms.sums["lm"], expected)
    assert terms.counts["lm"] == 12 and terms.counts["routing"] == 3

    def eq5(score_N: torch.Tensor, positives: list[int], tau: float) -> float:
        e = torch.exp(score_N / tau)
        negatives = sum(e[n] for n in range(len(e)) if n not in positives)
        return float(sum(-torch.log(e[i] / (e[i] + negatives)) for i in positives) / len(positives))

    positives = [row.nonzero().flatten().tolist() for row in batch.positives_BN]
    naive_LB = [
        [eq5(score_N, p, 0.3) for score_N, p in zip(score_BN, positives, strict=True)] for score_BN in terms.scores_LBN
    ]
    assert float(terms.sums["routing"]) == pytest.approx(sum(map(sum, naive_LB)) / 2, rel=1e-5)
    by_layer = [float(loss) for loss in terms.routing_by_layer.values()]
    assert by_layer == pytest.approx([sum(losses) / 3 for losses in naive_LB], rel=1e-5)
    assert list(terms.routing_by_layer) == [2, 3]
    fused = [eq5(s, p, 0.2) for s, p in zip(terms.scores_LBN.mean(0), positives, strict=True)]
    assert float(terms.sums["fused"]) == pytest.approx(sum(fused), rel=1e-5)


def test_documents_that_are_no_candidates_do_not_count() -> None:
    model, batch = tiny_model(), random_batch()
    candidates_BN = batch.candidates_BN.clone()
    candidates_BN[:, 4] = False
    candidates_BN |= batch.positives_BN
    with_all, without = run(model, batch), run(model, replace(batch, candidates_BN=candidates_BN))
    assert torch.equal(with_all.scores_LBN, without.scores_LBN)
    assert float(without.sums["routing"]) < float(with_all.sums["routing"])


def test_positives_compete_only_when_coupled() -> None:
    model, batch = tiny_model(), random_batch()
    assert float(run(model, batch, decoupled=False).sums["routing"]) > float(run(model, batch).sums["routing"])


@torch.no_grad()
def test_a_question_alone_has_the_losses_it_has_among_others() -> None:
    """Other lengths, other padding, other sub-batches of documents."""
    model, batch = tiny_model(), random_batch()
    together = run(model, batch)
    lm = routing = 0.0
    for row in range(3):
        own = batch.contexts.take([row])
        alone = replace(
            batch,
            questions=batch.questions[row : row + 1],
            contexts=own,
            labels_BT=batch.labels_BT[row : row + 1, -own.ids.shape[1] :],
            positives_BN=batch.positives_BN[row : row + 1],
            candidates_BN=batch.candidates_BN[row : row + 1],
        )
        terms = run(model, alone, batch_tokens=13)
        torch.testing.assert_close(terms.scores_LBN[:, 0], together.scores_LBN[:, row])
        lm += float(terms.sums["lm"])
        routing += float(terms.sums["routing"])
    assert lm == pytest.approx(float(together.sums["lm"]), rel=1e-5)
    assert routing == pytest.approx(float(together.sums["routing"]), rel=1e-5)


def test_sub_batches_of_contexts_change_nothing() -> None:
    model, batch = tiny_model(), random_batch()
    longest = max(batch.contexts.lengths)
    assert len(list(length_batches(batch.contexts.lengths, longest))) > 1
    together, apart = (run(model, batch, batch_tokens=tokens) for tokens in (8192, longest))
    torch.testing.assert_close(apart.scores_LBN, together.scores_LBN)
    torch.testing.assert_close(apart.sums["lm"], together.sums["lm"])
    wanted, found = (gradients(model, terms, LossWeights(lm=1.0, routing=1.0)) for terms in (together, apart))
    torch.testing.assert_close(found, wanted)


def test_what_padding_holds_changes_nothing() -> None:
    model, batch = tiny_model(), random_batch()
    packed = batch.contexts
    assert not packed.valid.all()
    other = replace(packed, ids=packed.ids.masked_fill(~packed.valid, 77))
    before, after = run(model, batch), run(model, replace(batch, contexts=other))
    torch.testing.assert_close(after.scores_LBN, before.scores_LBN, rtol=0, atol=0)
    torch.testing.assert_close(after.sums["lm"], before.sums["lm"], rtol=0, atol=0)


def test_only_learned_tokens_count() -> None:
    """Tokens after the last learned one, and what the labels leave out, have no part in the loss or its gradient."""
    model, batch = tiny_model(), random_batch()
    labels_BT = batch.labels_BT.clone()
    labels_BT[:, -1] = IGNORED
    ids = batch.contexts.ids.clone()
    ids[:, -1] = 5
    masked = replace(batch, labels_BT=labels_BT)
    other = replace(masked, contexts=replace(batch.contexts, ids=ids))
    lm = LossWeights(lm=1.0, routing=0.0)
    first, second = (gradients(model, run(model, b), lm) for b in (masked, other))
    assert run(model, masked).counts["lm"] == 9
    assert torch.equal(run(model, masked).sums["lm"], run(model, other).sums["lm"])
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-6, atol=1e-6)


def test_a_batch_without_responses_never_computes_the_head() -> None:
    model, batch = tiny_model(), random_batch(responses=(0, 0, 0))
    model.get_output_embeddings().register_forward_hook(lambda *_: pytest.fail("the head was computed"))
    terms = run(model, batch)
    assert terms.counts["lm"] == 0 and float(terms.sums["lm"]) == 0
    assert all(is_router(n) or "embed" in n or "layers" in n for n in gradients(model, terms, EVERYTHING))


# --- gradients ------------------------------------------------------------------------------------------------------


def rms_norm(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return module.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)


@pytest.mark.parametrize(
    ("weights", "similarity"),
    [
        (LossWeights(lm=1, routing=0), "cosine"),
        (LossWeights(lm=0, routing=1), "cosine"),
        (LossWeights(lm=0, routing=0, fused=1), "cosine"),
        (EVERYTHING, "dot"),
    ],
    ids=["lm", "routing", "fused", "all"],
)
def test_gradients_are_the_slopes_of_the_loss(weights: LossWeights, similarity: str) -> None:
    """In float64, against finite differences, for every parameter: nothing on the way is detached or counted twice."""
    model = tiny_model("qwen3", dtype=torch.float64, similarity=similarity)
    for module in model.modules():
        if "RMSNorm" in type(module).__name__:  # the family's own rounds to float32 on the way
            module.forward = partial(rms_norm, module)
    batch = random_batch()

    def loss() -> torch.Tensor:
        return run(model, batch, temperature=0.5).total(weights)

    found = gradients(model, run(model, batch, temperature=0.5), weights)
    routers = [name for name in found if is_router(name)]
    assert len(routers) == (0 if weights.lm and not weights.routing else 4), "hard top-k gives no gradient by itself"
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if name not in found:
            continue
        direction = torch.randn_like(parameter)
        step = 1e-6
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            above = float(loss())
            parameter.add_(direction, alpha=-2 * step)
            below = float(loss())
            parameter.add_(direction, alpha=step)
        slope = float((found[name] * direction).sum())
        assert (above - below) / (2 * step) == pytest.approx(slope, rel=1e-4, abs=1e-7), name


def test_the_language_loss_reaches_the_documents() -> None:
    """Through K and V of what was selected: with the contexts' own way closed, gradients remain."""
    model, batch = tiny_model(), random_batch()
    documents = model.encode(batch.documents)
    content = documents.content_LC2GD.detach().requires_grad_()
    documents = replace(documents, content_LC2GD=content)
    memory = TensorMemory(model, documents)
    packed = batch.contexts
    logits = model(packed.ids, position_ids=packed.positions, memory=ask_step(packed, memory)).logits
    logits[:, -1].sum().backward()
    assert content.grad is not None and bool(content.grad.abs().sum((1, 2, 3, 4)).gt(0).all())


@pytest.mark.parametrize("responses", [(4, 2, 6), (0, 0, 0)])
def test_checkpointing_gives_the_same_gradients(responses: tuple[int, ...]) -> None:
    batch = random_batch(responses=responses)
    plain, saving = tiny_model().train(), tiny_model().train()
    saving.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    calls: list[int] = []
    first_layer: torch.nn.Module = saving.backbone.model.layers[0].mlp  # type: ignore[assignment,union-attr,index]
    first_layer.register_forward_pre_hook(lambda *_: calls.append(1))
    expected = gradients(plain, run(plain, batch), EVERYTHING)
    terms = run(saving, batch)
    before = len(calls)
    found = gradients(saving, terms, EVERYTHING)
    assert len(calls) == 2 * before, "every layer was computed again"
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-6)


def test_reentrant_checkpointing_is_refused() -> None:
    model = tiny_model().train()
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant"):
        run(model, random_batch())


def test_layers_below_the_first_trained_one_keep_nothing() -> None:
    model, batch = tiny_model(), random_batch()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.3." in name and is_router(name))
    seen: list[bool] = []
    layers: torch.nn.ModuleList = model.backbone.model.layers  # type: ignore[assignment,union-attr]
    layers[3].register_forward_pre_hook(lambda _, args: seen.append(args[0].requires_grad))
    saved: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(model, batch)
    of_routers = sum(saved)
    saved.clear()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(model.requires_grad_(True), batch)
    assert seen[:2] == [False, False] and 5 * of_routers < sum(saved)


def test_scores_are_computed_in_float32_under_autocast() -> None:
    model, batch = tiny_model(), random_batch()
    plain = run(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = run(model, batch)
    assert mixed.scores_LBN.dtype == torch.float32 and mixed.sums["lm"].dtype == torch.float32
    torch.testing.assert_close(mixed.scores_LBN, plain.scores_LBN, atol=0.03, rtol=0)
    assert not torch.equal(mixed.scores_LBN, mixed.scores_LBN.bfloat16().float())
    assert len(gradients(model, mixed, EVERYTHING)) == len(list(model.parameters()))


def test_routers_may_be_trained_in_float32_on_a_bfloat16_backbone() -> None:
    model, batch = tiny_model(dtype=torch.bfloat16), random_batch()
    for name, parameter in model.named_parameters():
        if is_router(name):
            parameter.data = parameter.data.float()
    found = gradients(model, run(model, batch), EVERYTHING)
    assert {grad.dtype for name, grad in found.items() if is_router(name)} == {torch.float32}


# --- what is refused, and settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [5, 6])
def test_a_batch_that_is_not_sparse_is_refused_unless_told(top_k: int) -> None:
    model, batch = tiny_model(top_k_docs=top_k, position_offset=2), random_batch()
    with pytest.raises(ValueError, match=rf"5 documents .*top_k_docs {top_k}\).*allow_dense"):
        run(model, batch)
    dense = run(model, batch, allow_dense=True)
    assert math.isfinite(float(dense.sums["lm"]))
    sparse = tiny_model(position_offset=2)
    assert float(run(sparse, batch).sums["lm"]) != float(dense.sums["lm"])


def test_without_memory_contexts_are_the_backbones_and_still_scored() -> None:
    model, batch = tiny_model(), random_batch()
    without = run(model, batch, use_memory=False)
    packed = batch.contexts
    logits = model(packed.ids, position_ids=packed.positions, memory=ask_step(packed, None)).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels_BT[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(without.sums["lm"], expected)
    # The first MSA layer has not read any memory yet: it scores the same.
    torch.testing.assert_close(without.scores_LBN[0], run(model, batch).scores_LBN[0])


def test_a_teacher_that_agrees_teaches_nothing() -> None:
    model, batch = tiny_model(msa_layers=[3]), random_batch()
    scores_BN = run(model, batch).scores_LBN[0]
    same = training_forward(model, batch, Objective(temperature=0.2, teacher_temperature=0.4), 2 * scores_BN + 3)
    assert float(same.sums["teacher"]) == pytest.approx(0, abs=1e-5) and same.counts["teacher"] == 3
    other_BN = scores_BN.flip(1)
    other_BN[0, 1] = -math.inf
    taught = training_forward(model, batch, Objective(), other_BN)
    assert float(taught.sums["teacher"]) > 0.01
    found = gradients(model, taught, LossWeights(lm=0, routing=0, teacher=1))
    assert all(bool(grad.isfinite().all()) for grad in found.values())
    assert any(bool(grad.any()) for name, grad in found.items() if is_router(name))


def test_totals_are_over_the_counts_given() -> None:
    terms = run(tiny_model(), random_batch())
    weights = LossWeights(lm=0.5, routing=2.0)
    expected = 0.5 * terms.sums["lm"] / 24 + 2.0 * terms.sums["routing"] / 9
    torch.testing.assert_close(terms.total(weights, {"lm": 24, "routing": 9}), expected)
    poisoned = replace(terms, sums={**terms.sums, "fused": torch.tensor(math.nan)})
    assert math.isfinite(float(poisoned.total(weights)))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Objective(temperature=0),
        lambda: LossWeights(lm=-1),
        lambda: replace(random_batch(), candidates_BN=torch.zeros(3, 5, dtype=torch.bool)),
        lambda: random_batch(document_ids=[1, 2, 3, 4, 4]),
        lambda: replace(random_batch(), positives_BN=torch.zeros(3, 4, dtype=torch.bool)),
    ],
)
def test_wrong_values_are_refused_when_built(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        wrong()
