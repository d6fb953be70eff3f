"""One training step's forward: documents are encoded, contexts run against them, losses come out (paper 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from memspan.model.memory_api import AskStep
from memspan.model.modeling import MSAForCausalLM
from memspan.ops.losses import distillation_loss, routing_loss
from memspan.text.packing import BATCH_TOKENS, PackedContexts, length_batches
from memspan.train.anchor import anchor_loss
from memspan.train.batch import IGNORED, TrainBatch
from memspan.train.memory import BatchMemory, encode_documents
from memspan.types import EncodedDocuments

if TYPE_CHECKING:
    from memspan.train.frozen import FrozenMemory


@dataclass(frozen=True)
class LossWeights:
    """How much each loss counts. The paper's warm-up: lm 0.1, routing 1; then lm 1, routing 0.1.

    Attributes:
        lm: next-token loss of the responses.
        routing: eq. 5, averaged over MSA layers.
        fused: eq. 5 on the mean of a document's scores over all MSA layers, by which documents are ranked.
        teacher: divergence of the scores from a teacher's, averaged over MSA layers.
        anchor: divergence from the backbone on plain text (`memspan.train.anchor`); needs `BatchSettings.anchors`.
    """

    lm: float = 1.0
    routing: float = 0.1
    fused: float = 0.0
    teacher: float = 0.0
    anchor: float = 0.0

    def __post_init__(self) -> None:
        if min(self.lm, self.routing, self.fused, self.teacher, self.anchor) < 0:
            raise ValueError(f"loss weights must not be negative: {self}")


@dataclass(frozen=True)
class Objective:
    """What a step computes; checked when built.

    Attributes:
        temperature: tau of eq. 5, and of a document's scores beside a teacher's.
        decoupled: positives do not compete with each other (eq. 5); else one softmax over all documents.
        fused_temperature: tau of the fused loss.
        teacher_temperature: what a teacher's scores are divided by.
        use_memory: contexts attend to the documents routed to, as when serving.
        allow_dense: let a batch have no more documents than a layer selects; routing is then not sparse.
        batch_tokens: documents are encoded, and contexts run, in sub-batches of at most so many padded tokens.
        frozen: cached documents, with the document side frozen; see `memspan.train.frozen`.
    """

    temperature: float = 0.1
    decoupled: bool = True
    fused_temperature: float = 0.1
    teacher_temperature: float = 0.1
    use_memory: bool = True
    allow_dense: bool = False
    batch_tokens: int = BATCH_TOKENS
    frozen: FrozenMemory | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "fused_temperature", "teacher_temperature", "batch_tokens"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")


@dataclass(frozen=True)
class LossTerms:
    """Sums of a step's losses, and what they are sums over: those of several steps or ranks can be added up.

    Attributes:
        lm_sum: negative log-likelihood of the learned tokens.
        num_tokens: how many those are.
        routing_sum: over questions, of the mean over MSA layers of eq. 5.
        num_questions: how many have a positive.
        routing_by_layer: mean over those questions, per MSA layer; detached.
        fused_sum: over those questions; eq. 5 on fused scores.
        teacher_sum: over all questions of the batch. 0 without a teacher.
        num_taught: how many questions had a teacher.
        anchor_sum: over the tokens of the anchors. 0 without any.
        num_anchored: how many those are.
        scores_LBN: routing scores of the documents, detached, for metrics.
    """

    lm_sum: torch.Tensor
    num_tokens: int
    routing_sum: torch.Tensor
    num_questions: int
    routing_by_layer: dict[int, torch.Tensor]
    fused_sum: torch.Tensor
    teacher_sum: torch.Tensor
    num_taught: int
    anchor_sum: torch.Tensor
    num_anchored: int
    scores_LBN: torch.Tensor

    def total(
        self,
        weights: LossWeights,
        num_tokens: int | None = None,
        num_questions: int | None = None,
        num_taught: int | None = None,
        num_anchored: int | None = None,
    ) -> torch.Tensor:
        """The weighted loss, a scalar. A loss of weight 0 has no part in it, not even as NaN.

        Args:
            num_tokens, num_questions, num_taught, num_anchored: counts to divide by, over all steps and ranks that
                share an update (for DDP, which averages gradients, divided by the number of ranks). Default: this
                step's own.
        """
        tokens, questions, taught, anchored = (
            max(1, own) if given is None else given
            for own, given in (
                (self.num_tokens, num_tokens),
                (self.num_questions, num_questions),
                (self.num_taught, num_taught),
                (self.num_anchored, num_anchored),
            )
        )
        parts = (
            (weights.lm, self.lm_sum, tokens),
            (weights.routing, self.routing_sum, questions),
            (weights.fused, self.fused_sum, questions),
            (weights.teacher, self.teacher_sum, taught),
            (weights.anchor, self.anchor_sum, anchored),
        )
        terms = [weight * loss / count for weight, loss, count in parts if weight]
        return torch.stack(terms).sum() if terms else self.lm_sum * 0


def training_forward(
    model: MSAForCausalLM,
    batch: TrainBatch,
    objective: Objective,
    teacher_scores_BN: torch.Tensor | None = None,
) -> LossTerms:
    """Run a batch and compute its losses. Gradients flow wherever parameters require them.

    Layers under the first trained one keep nothing for a backward. A batch without learned tokens never computes the
    language-model head. Under DDP or FSDP call this from the forward of the module that is wrapped.

    Args:
        teacher_scores_BN: a teacher's scores of the batch's documents, `-inf` where it has none.

    Raises:
        ValueError: no more documents than a layer selects (see `Objective.allow_dense`), or reentrant checkpointing.
    """
    _refuse_reentrant(model)
    config = model.config
    if objective.use_memory and not objective.allow_dense and len(batch.documents) <= config.top_k_docs:
        raise ValueError(
            f"a batch of {len(batch.documents)} documents is no more than a layer selects (top_k_docs "
            f"{config.top_k_docs}), so routing would not be sparse: use more documents, or say allow_dense"
        )
    lm_sum, scores_LBN = _asked(model, batch, _documents(model, batch, objective), objective)

    def losses(scores_BN: torch.Tensor, temperature: float) -> torch.Tensor:
        return routing_loss(
            scores_BN, batch.positives_BN, temperature, objective.decoupled, valid_BN=batch.candidates_BN
        )

    routing_LB = torch.stack([losses(scores_BN, objective.temperature) for scores_BN in scores_LBN])
    num_questions = batch.num_routed_questions
    by_layer_L = routing_LB.detach().sum(1) / max(1, num_questions)
    teacher_sum, num_taught = lm_sum.new_zeros(()), 0
    if teacher_scores_BN is not None:
        tau, num_taught = (objective.temperature, objective.teacher_temperature), len(batch.questions)
        taught = [distillation_loss(x, teacher_scores_BN, *tau, batch.candidates_BN) for x in scores_LBN]
        teacher_sum = torch.stack(taught).mean(0).sum()
    return LossTerms(
        lm_sum=lm_sum,
        num_tokens=batch.num_label_tokens,
        routing_sum=routing_LB.mean(0).sum(),
        num_questions=num_questions,
        routing_by_layer=dict(zip(config.layers, by_layer_L.unbind(), strict=True)),
        fused_sum=losses(scores_LBN.mean(0), objective.fused_temperature).sum(),
        teacher_sum=teacher_sum,
        num_taught=num_taught,
        anchor_sum=anchor_loss(model, batch.anchors) if batch.anchors else lm_sum.new_zeros(()),
        num_anchored=batch.num_anchor_tokens,
        scores_LBN=scores_LBN.detach(),
    )


def _documents(model: MSAForCausalLM, batch: TrainBatch, objective: Objective) -> EncodedDocuments:
    if objective.frozen is not None:
        return objective.frozen.encoded(model, batch.document_names)
    return encode_documents(model, batch.documents, objective.batch_tokens)


def _asked(
    model: MSAForCausalLM, batch: TrainBatch, documents: EncodedDocuments, objective: Objective
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the contexts in sub-batches of like length: the summed language loss, and the scores `[L, B, N]`."""
    groups = list(length_batches(batch.contexts.lengths, objective.batch_tokens))
    lm_sum, scores = torch.zeros((), device=batch.labels_BT.device), []
    for rows in groups:
        contexts = batch.contexts.take(rows)
        labels_BT = batch.labels_BT[rows, -contexts.ids.shape[1] :]
        memory = BatchMemory(documents, batch.document_ids, model.config, attend=objective.use_memory)
        lm_sum = lm_sum + _language_loss(model, contexts, labels_BT, memory)
        scores.append(torch.stack([memory.scores[layer] for layer in model.config.layers]))
    order_B = torch.tensor([row for rows in groups for row in rows]).argsort().to(lm_sum.device)
    return lm_sum, torch.cat(scores, dim=1)[:, order_B]


def _language_loss(
    model: MSAForCausalLM, contexts: PackedContexts, labels_BT: torch.Tensor, memory: BatchMemory
) -> torch.Tensor:
    """Run the contexts, which asks `memory`; the summed loss of the learned tokens, 0 where there are none."""
    step = AskStep(contexts.padding_mask, contexts.sees_memory, contexts.routes, memory)
    inputs = {"position_ids": contexts.positions, "memory": step, "use_cache": False}
    next_BT = labels_BT[:, 1:]
    columns_T = (next_BT != IGNORED).any(0).nonzero()[:, 0]
    if not len(columns_T):
        model.backbone.base_model(contexts.ids, **inputs)
        return torch.zeros((), device=labels_BT.device)
    logits_BTV = model(contexts.ids, logits_to_keep=columns_T, **inputs).logits
    next_BT = next_BT[:, columns_T]
    learned_BT = next_BT != IGNORED
    logits_XV = logits_BTV[learned_BT]
    wide = torch.promote_types(logits_XV.dtype, torch.float32)
    return F.cross_entropy(logits_XV.to(wide), next_BT[learned_BT], reduction="sum")


def _refuse_reentrant(model: MSAForCausalLM) -> None:
    """Reentrant checkpointing gives no gradient to what a layer leaves in a step: keys, content, scores."""
    for module in model.backbone.modules():
        if module.training and getattr(module, "gradient_checkpointing", False):
            options = getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {})
            if options.get("use_reentrant", True):
                raise ValueError(
                    "reentrant gradient checkpointing would silently lose the gradients of routing and memory; enable "
                    'it with gradient_checkpointing_kwargs={"use_reentrant": False}'
                )
