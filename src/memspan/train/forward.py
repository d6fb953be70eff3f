"""One training step's forward: documents are encoded, contexts run against them, losses come out (paper 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from memspan.model.modeling import MSAForCausalLM
from memspan.train.batch import TrainBatch

if TYPE_CHECKING:
    from memspan.train.frozen import FrozenMemory


@dataclass(frozen=True)
class LossWeights:
    """How much each loss counts. The paper's warm-up: lm 0.1, routing 1; then lm 1, routing 0.1.

    Attributes:
        lm: next-token loss of the responses.
        routing: eq. 5, averaged over MSA layers.
        fused: eq. 5 on the sum of a document's scores over all MSA layers, by which documents are ranked.
        teacher: divergence of the fused scores from a teacher's.
    """

    lm: float = 1.0
    routing: float = 0.1
    fused: float = 0.0
    teacher: float = 0.0

    def __post_init__(self) -> None:
        if min(self.lm, self.routing, self.fused, self.teacher) < 0:
            raise ValueError(f"loss weights must not be negative: {self}")


@dataclass(frozen=True)
class Objective:
    """What a step computes; checked when built.

    Attributes:
        temperature: tau of eq. 5.
        decoupled: positives do not compete with each other (eq. 5); else one softmax over all documents.
        fused_temperature: of the fused and the teacher's loss, for the mean of a document's scores over MSA layers.
        teacher_temperature: of the teacher's scores.
        use_memory: contexts attend to the documents routed to, as when serving.
        allow_dense: let a batch have no more documents than a layer selects; routing is then not sparse.
        encode_tokens: documents are encoded in sub-batches of at most so many padded tokens.
        frozen: cached documents, with the document side frozen; see `memspan.train.frozen`.
    """

    temperature: float = 0.1
    decoupled: bool = True
    fused_temperature: float = 0.1
    teacher_temperature: float = 0.1
    use_memory: bool = True
    allow_dense: bool = False
    encode_tokens: int = 8192
    frozen: FrozenMemory | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "fused_temperature", "teacher_temperature", "encode_tokens"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")


@dataclass(frozen=True)
class LossTerms:
    """Sums of a step's losses, and what they are sums over: counts of several steps or ranks can be added up.

    Attributes:
        lm_sum: negative log-likelihood of the learned tokens.
        num_tokens: how many those are.
        routing_sum: over questions, of the mean over MSA layers of eq. 5.
        num_questions: how many have a positive.
        routing_by_layer: mean over those questions, per MSA layer; detached.
        fused_sum: over questions; eq. 5 on fused scores.
        teacher_sum: over questions with a teacher; Kullback-Leibler divergence. 0 without one.
        scores_LBN: routing scores of the documents, detached, for metrics.
    """

    lm_sum: torch.Tensor
    num_tokens: int
    routing_sum: torch.Tensor
    num_questions: int
    routing_by_layer: dict[int, torch.Tensor]
    fused_sum: torch.Tensor
    teacher_sum: torch.Tensor
    scores_LBN: torch.Tensor

    def total(
        self, weights: LossWeights, num_tokens: int | None = None, num_questions: int | None = None
    ) -> torch.Tensor:
        """The weighted loss, a scalar.

        Args:
            num_tokens, num_questions: counts to divide by, over all steps and ranks that share one update (for DDP,
                which averages gradients, divided by the number of ranks). Default: this step's own.
        """
        tokens = max(1, self.num_tokens) if num_tokens is None else num_tokens
        questions = max(1, self.num_questions) if num_questions is None else num_questions
        routed = weights.routing * self.routing_sum + weights.fused * self.fused_sum
        return weights.lm * self.lm_sum / tokens + (routed + weights.teacher * self.teacher_sum) / questions


def training_forward(
    model: MSAForCausalLM,
    batch: TrainBatch,
    objective: Objective,
    teacher_scores_BN: torch.Tensor | None = None,
) -> LossTerms:
    """Run a batch and compute its losses. Gradients flow wherever parameters require them.

    Args:
        teacher_scores_BN: a teacher's scores of the batch's documents, `-inf` where it has none.

    Raises:
        ValueError: no more documents than a layer selects (see `Objective.allow_dense`), or reentrant checkpointing.
    """
    raise NotImplementedError
