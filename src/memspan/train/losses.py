"""The losses of a step by name: the sum over a batch, and what it is a sum over. Packages and `plugins` add others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from memspan.model.modeling import MSAForCausalLM
from memspan.ops.losses import distillation_loss, routing_loss
from memspan.registry import Registry
from memspan.train.anchor import anchor_loss
from memspan.train.batch import TrainBatch

if TYPE_CHECKING:
    from memspan.train.settings import Objective


@dataclass(frozen=True)
class Outputs:
    """What the forward of a batch has computed.

    Attributes:
        lm_sum: negative log-likelihood of the learned tokens.
        scores_LBN: routing scores of the documents, with gradients.
        teacher_scores_BN: a teacher's, `-inf` where it has none; None without a teacher.
    """

    model: MSAForCausalLM
    batch: TrainBatch
    objective: Objective
    lm_sum: torch.Tensor
    scores_LBN: torch.Tensor
    teacher_scores_BN: torch.Tensor | None = None

    def routing(self, scores_LBN: torch.Tensor, temperature: float) -> torch.Tensor:
        """Eq. 5 of every question in every layer, `[L, B]`: at once, as each time a device is waited for."""
        wanted, valid = (
            x.expand_as(scores_LBN).flatten(0, 1) for x in (self.batch.positives_BN, self.batch.candidates_BN)
        )
        loss = routing_loss(scores_LBN.flatten(0, 1), wanted, temperature, self.objective.decoupled, valid_BN=valid)
        return loss.view(scores_LBN.shape[:2])

    @cached_property
    def routing_LB(self) -> torch.Tensor:
        """Eq. 5 of every question in every MSA layer."""
        return self.routing(self.scores_LBN, self.objective.temperature)


@dataclass(frozen=True)
class Loss:
    """One loss.

    Attributes:
        sum: over a batch, a scalar with gradients.
        count: what it is a sum over, of a batch that has a teacher's scores or not. 0: the batch has nothing for it.
    """

    sum: Callable[[Outputs], torch.Tensor]
    count: Callable[[TrainBatch, bool], int]


def _teacher(out: Outputs) -> torch.Tensor:
    if out.teacher_scores_BN is None:
        return out.lm_sum.new_zeros(())
    tau = out.objective.temperature, out.objective.teacher_temperature
    wanted_BN, candidates_BN = out.teacher_scores_BN, out.batch.candidates_BN
    return torch.stack([distillation_loss(x, wanted_BN, *tau, candidates_BN) for x in out.scores_LBN]).mean(0).sum()


def _anchor(out: Outputs) -> torch.Tensor:
    return anchor_loss(out.model, out.batch.anchors) if out.batch.anchors else out.lm_sum.new_zeros(())


def _routed(batch: TrainBatch, _: bool) -> int:
    return batch.num_routed_questions


LOSSES: Registry[Loss] = Registry("loss", "memspan.losses", Loss)
"""A recipe weighs those beside the first five as `loss: {other: {NAME: 0.5}}`."""

LOSSES.register("lm", Loss(lambda out: out.lm_sum, lambda batch, _: batch.num_label_tokens))
LOSSES.register("routing", Loss(lambda out: out.routing_LB.mean(0).sum(), _routed))
LOSSES.register(
    "fused",
    Loss(lambda out: out.routing(out.scores_LBN.mean(0, keepdim=True), out.objective.fused_temperature).sum(), _routed),
)
LOSSES.register("teacher", Loss(_teacher, lambda batch, taught: len(batch.questions) if taught else 0))
LOSSES.register("anchor", Loss(_anchor, lambda batch, _: sum(map(len, batch.anchors))))


def counts(batch: TrainBatch, taught: bool) -> dict[str, int]:
    """What each loss is a sum over in a batch.

    Args:
        taught: whether a teacher scores its documents.
    """
    return {name: LOSSES[name].count(batch, taught) for name in LOSSES}
