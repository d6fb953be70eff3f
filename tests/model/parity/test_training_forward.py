"""The forward that trains gives the released code's training losses (README.md beside this file)."""

from __future__ import annotations

import torch
from released_numbers import LAYERS, PREFIX, Parity, assert_close

from memspan.text.packing import pack_contexts
from memspan.train.batch import TrainBatch
from memspan.train.forward import LossTerms, LossWeights, Objective, training_forward


def batch_of(parity: Parity, row: int, labels: str) -> TrainBatch:
    """A packed row of the released code: its documents, its question and response."""
    ids_T, docs_T = parity["train/input_ids"][row], parity["train/doc_ids"][row]
    valid_T = parity["train/attention_mask"][row] == 1
    N = int(docs_T.max())
    active_T = (docs_T < 1) & valid_T
    num_routing = int(((docs_T == 0) & valid_T).sum())
    packed = pack_contexts([parity.context(ids_T[active_T].tolist()[PREFIX:], num_routing)], parity.model.config.offset)
    names = tuple(str(number) for number in range(1, N + 1))
    return TrainBatch(
        documents=tuple(tuple(ids_T[docs_T == number].tolist()) for number in range(1, N + 1)),
        document_names=names,
        document_ids=tuple(range(1, N + 1)),
        document_texts=names,
        questions=("",),
        contexts=packed,
        labels_BT=parity[labels][row, active_T][None],
        positives_BN=parity["train/aux_labels"][row, :N][None] == 1,
        candidates_BN=torch.ones(1, N, dtype=torch.bool),
    )


def run(parity: Parity, labels: str = "train/labels") -> list[LossTerms]:
    objective = Objective(temperature=0.1, decoupled=parity.method == "INFONCE_DECOUPLE")
    return [training_forward(parity.model, batch_of(parity, row, labels), objective) for row in range(2)]


def test_scores_are_the_released_ones(trained: Parity) -> None:
    for row, terms in enumerate(run(trained)):
        for place, layer in enumerate(LAYERS):
            expected_N = trained[f"train/doc_scores/layer{layer}"][row, 1:]
            assert_close(terms.scores_LBN[place, 0], expected_N[expected_N.isfinite()])


def test_losses_are_the_released_ones(trained: Parity) -> None:
    """Means over both rows' tokens, and over questions and MSA layers. The answer loss is its own labels' mean."""
    terms = run(trained)
    counts = {name: sum(t.counts[name] for t in terms) for name in terms[0].counts}

    def total(weights: LossWeights) -> torch.Tensor:
        return torch.stack([t.total(weights, counts) for t in terms]).sum()

    assert_close(total(LossWeights(lm=1, routing=0)), trained["train/lm_loss"])
    assert_close(total(LossWeights(lm=0, routing=1)), trained["train/aux_loss"])
    answers = [
        t for row, t in enumerate(run(trained, "train/answer_labels")) if trained["train/train_qa_samples"][row] == 1
    ]
    answer = torch.stack([t.sums["lm"] for t in answers]).sum() / sum(t.counts["lm"] for t in answers)
    assert_close(answer, trained["train/answer_loss"])
    assert_close(total(LossWeights(lm=1, routing=0.1)) + answer, trained["train/loss"])


def test_the_language_loss_alone_gives_routers_no_gradient(trained: Parity) -> None:
    """As in the released code (`router_grad_from_lm_loss_only`)."""
    assert all(
        v is None for v in trained.facts["runs"][trained.method]["train"]["router_grad_from_lm_loss_only"].values()
    )
    torch.stack([t.total(LossWeights(lm=1, routing=0)) for t in run(trained)]).sum().backward()
    grads = {name: p.grad for name, p in trained.model.named_parameters()}
    trained.model.zero_grad()
    assert all((grad is None) == ("router" in name) for name, grad in grads.items())
