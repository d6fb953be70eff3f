"""Scores and losses of a training step are those of the released code (paper 3.3; README.md beside this file)."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import TensorMemory, ask_step
from hypothesis import given, settings
from hypothesis import strategies as st
from released_numbers import LAYERS, PREFIX, Parity, assert_close

from memspan.model.memory_api import EncodeStep
from memspan.model.modeling import MSAForCausalLM
from memspan.ops.losses import routing_loss
from memspan.ops.scoring import chunk_scores, document_scores, fold_queries, routing_queries
from memspan.text.packing import pack_contexts
from memspan.types import EncodedDocuments, Retrieved

TAU = 0.1


class ScoringMemory(TensorMemory):
    """A `TensorMemory` that keeps the score of every document, by layer."""

    def __init__(self, model: MSAForCausalLM, documents: EncodedDocuments) -> None:
        super().__init__(model, documents)
        self.scores: dict[int, torch.Tensor] = {}

    def route(self, layer: int, router_query_BTHD: torch.Tensor, query_mask_BT: torch.Tensor) -> Retrieved:
        config = self.config
        query_BTW = fold_queries(router_query_BTHD, config.num_kv_heads, config.similarity)
        key_CW = self.documents.router_keys_LCW[config.layers.index(layer)]
        score_BC = chunk_scores(routing_queries(query_BTW, query_mask_BT), key_CW)
        score_BN = document_scores(score_BC, self.document_C, len(self.documents.num_chunks))
        self.scores[layer] = score_BN[0]
        return super().route(layer, router_query_BTHD, query_mask_BT)


class Step:
    """A training step's forward: every row's documents alone, then its question and response against them."""

    @torch.no_grad()
    def __init__(self, parity: Parity) -> None:
        self.parity = parity
        ids_BT, docs_BT = parity["train/input_ids"], parity["train/doc_ids"]
        self.valid_BT = parity["train/attention_mask"] == 1
        self.hidden_BTF = torch.zeros_like(parity["train/last_hidden"])
        self.scores_LBN = torch.full((len(LAYERS), *parity["train/aux_labels"].shape), -math.inf)
        for row, (ids_T, docs_T, valid_T) in enumerate(zip(ids_BT, docs_BT, self.valid_BT, strict=True)):
            self._run(row, ids_T, docs_T, valid_T)

    def _run(self, row: int, ids_T: torch.Tensor, docs_T: torch.Tensor, valid_T: torch.Tensor) -> None:
        model = self.parity.model
        documents = [ids_T[docs_T == number].tolist() for number in range(1, int(docs_T.max()) + 1)]
        for number, ids in enumerate(documents, 1):
            step = EncodeStep(torch.tensor([len(ids)]), model.config.chunk_size)
            out = model.backbone.base_model(torch.tensor([ids]), memory=step, use_cache=False)
            self.hidden_BTF[row, docs_T == number] = out.last_hidden_state[0]

        active_T = (docs_T < 1) & valid_T
        num_routing = int(((docs_T == 0) & valid_T).sum())
        context = self.parity.context(ids_T[active_T].tolist()[PREFIX:], num_routing)
        packed = pack_contexts([context], model.config.offset)
        assert torch.equal(packed.positions[0], self.parity["train/position_ids"][row, active_T])
        memory = ScoringMemory(model, model.encode(documents))
        out = model.backbone.base_model(
            packed.ids, position_ids=packed.positions, memory=ask_step(packed, memory), use_cache=False
        )
        self.hidden_BTF[row, active_T] = out.last_hidden_state[0]
        for place, layer in enumerate(LAYERS):
            self.scores_LBN[place, row, : len(documents)] = memory.scores[layer]

    def language_loss(self, labels_BT: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of next tokens over the labels that are not ignored."""
        logits_BTV = self.hidden_BTF[:, :-1] @ self.parity.lm_head_VF.T
        return F.cross_entropy(logits_BTV.flatten(0, 1), labels_BT[:, 1:].flatten())

    def routing_loss(self) -> torch.Tensor:
        """Mean over MSA layers and rows."""
        labels_BN = self.parity["train/aux_labels"]
        decoupled = self.parity.method == "INFONCE_DECOUPLE"
        losses = [
            routing_loss(scores_BN, labels_BN == 1, TAU, decoupled, valid_BN=labels_BN >= 0)
            for scores_BN in self.scores_LBN
        ]
        return torch.stack(losses).mean()


@pytest.fixture(scope="module")
def step(trained: Parity) -> Step:
    return Step(trained)


@pytest.mark.parametrize("layer", LAYERS)
def test_documents_score_alike_in_training(step: Step, layer: int) -> None:
    """Column 0 there is no document; an absent one scores -inf."""
    expected_BN = step.parity[f"train/doc_scores/layer{layer}"]
    assert expected_BN[:, 0].isneginf().all()
    assert_close(step.scores_LBN[LAYERS.index(layer)], expected_BN[:, 1:])


def test_every_token_has_the_same_hidden_state_in_training(step: Step) -> None:
    """Of documents, which see only themselves, and of the active context."""
    expected_BTF = step.parity["train/last_hidden"]
    assert_close(step.hidden_BTF[step.valid_BT], expected_BTF[step.valid_BT])


def test_losses_are_the_released_ones(step: Step) -> None:
    parity = step.parity
    lm, reconstruction = (step.language_loss(parity[f"train/{name}"]) for name in ("labels", "reconstruction_labels"))
    answer_BT = parity["train/answer_labels"].masked_fill(parity["train/train_qa_samples"][:, None] != 1, -100)
    answer, aux = step.language_loss(answer_BT), step.routing_loss()
    assert_close(aux, parity["train/aux_loss"])
    assert_close(lm, parity["train/lm_loss"])
    assert_close(reconstruction, parity["train/reconstruction_loss"])
    assert_close(answer, parity["train/answer_loss"])
    assert_close(lm + 0.1 * aux + answer, parity["train/loss"])


# --- the routing loss by itself -------------------------------------------------------------------------------------


def naive_loss(scores_N: torch.Tensor, positives: set[int], absent: set[int], decoupled: bool) -> torch.Tensor:
    """Eq. 5 for one question, literally; without `decoupled` the positives share one softmax."""
    present = [n for n in range(len(scores_N)) if n not in absent]
    terms = []
    for i in positives:
        rivals = [n for n in present if n == i or n not in positives] if decoupled else present
        e = torch.exp(scores_N / TAU)
        terms.append(-torch.log(e[i] / torch.stack([e[n] for n in rivals]).sum()))
    return torch.stack(terms).mean()


@st.composite
def questions(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, positives and valid documents, float64, of a few questions: each has a positive."""
    B, N = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    positives_BN = torch.rand(B, N, generator=generator) < 0.4
    positives_BN[:, draw(st.integers(0, N - 1))] = True
    valid_BN = positives_BN | (torch.rand(B, N, generator=generator) < 0.6)
    return torch.rand(B, N, generator=generator, dtype=torch.float64) * 2 - 1, positives_BN, valid_BN


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("hole", [-math.inf, math.nan, 1e30])
@given(question=questions())
@settings(max_examples=25, deadline=None)
def test_the_loss_and_its_gradient_are_the_naive_ones(
    decoupled: bool, hole: float, question: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    """Whatever the scores of absent documents hold."""
    scores_BN, positives_BN, valid_BN = question
    naive_BN = scores_BN.clone().requires_grad_()
    expected_B = torch.stack(
        [
            naive_loss(
                row_N, set(positive.nonzero().flatten().tolist()), set((~v).nonzero().flatten().tolist()), decoupled
            )
            for row_N, positive, v in zip(naive_BN, positives_BN, valid_BN, strict=True)
        ]
    )
    expected_B.sum().backward()
    found_BN = scores_BN.masked_fill(~valid_BN, hole).requires_grad_()
    given_valid_BN = None if hole == -math.inf else valid_BN
    found_B = routing_loss(found_BN, positives_BN, TAU, decoupled, given_valid_BN)
    found_B.sum().backward()
    torch.testing.assert_close(found_B, expected_B, rtol=1e-9, atol=1e-12)
    assert naive_BN.grad is not None and found_BN.grad is not None
    torch.testing.assert_close(found_BN.grad, naive_BN.grad.masked_fill(~valid_BN, 0), rtol=1e-9, atol=1e-12)


def test_another_positive_is_a_rival_only_where_they_are_coupled() -> None:
    """The second positive scores highest by far. Decoupled, each loses to the negative only."""
    scores_BN, positives_BN = torch.tensor([[0.5, 0.9, 0.1]]), torch.tensor([[True, True, False]])
    each = [math.log(1 + math.exp(-4)), math.log(1 + math.exp(-8))]
    assert float(routing_loss(scores_BN, positives_BN, TAU)) == pytest.approx(sum(each) / 2, rel=1e-5)
    assert float(routing_loss(scores_BN, positives_BN, TAU, decoupled=False)) > 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("decoupled", [True, False])
def test_scores_far_apart_neither_overflow_nor_vanish(dtype: torch.dtype, decoupled: bool) -> None:
    scores_BN = torch.tensor([[-100.0, 100.0], [100.0, -100.0]], dtype=dtype, requires_grad=True)
    positives_BN = torch.tensor([[True, False], [True, False]])
    loss_B = routing_loss(scores_BN, positives_BN, 0.01, decoupled)
    assert loss_B.dtype == torch.float32
    torch.testing.assert_close(loss_B, torch.tensor([20000.0, 0.0]))
    loss_B.sum().backward()
    assert scores_BN.grad is not None
    torch.testing.assert_close(scores_BN.grad.float(), torch.tensor([[-100.0, 100.0], [0.0, 0.0]]))


@pytest.mark.parametrize("decoupled", [True, False])
def test_nothing_to_learn_gives_neither_loss_nor_gradient(decoupled: bool) -> None:
    """No positive, no document at all, and no negative (where positives do not compete)."""
    scores_BN = torch.tensor([[0.3, 0.2], [0.3, 0.2]], requires_grad=True)
    nothing_BN = torch.zeros(2, 2, dtype=torch.bool)
    valid_BN = torch.tensor([[True, True], [False, False]])
    loss_B = routing_loss(scores_BN, nothing_BN, TAU, decoupled, valid_BN)
    loss_B = loss_B + routing_loss(scores_BN[:, :1], ~nothing_BN[:, :1], TAU, decoupled)
    loss_B.sum().backward()
    assert loss_B.tolist() == [0.0, 0.0]
    assert scores_BN.grad is not None and not scores_BN.grad.any()


def test_what_cannot_be_learned_is_refused() -> None:
    scores_BN, positives_BN = torch.tensor([[0.1, -math.inf]]), torch.tensor([[False, True]])
    with pytest.raises(ValueError, match="a positive document is absent"):
        routing_loss(scores_BN, positives_BN, TAU)
    with pytest.raises(ValueError, match="a positive document is absent"):
        routing_loss(torch.zeros(1, 2), positives_BN, TAU, valid_BN=~positives_BN)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        routing_loss(torch.zeros(1, 2), positives_BN, 0.0)
    with pytest.raises(ValueError, match="one shape"):
        routing_loss(torch.zeros(1, 3), positives_BN, TAU)
