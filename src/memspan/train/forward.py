"""One training step's forward: documents are encoded, contexts run against them, losses come out (paper 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from memspan.model.memory_api import QueryStep
from memspan.model.modeling import MSAForCausalLM
from memspan.ops.transfer import to_device
from memspan.text.packing import PackedContexts, length_batches
from memspan.train.batch import IGNORED, TrainBatch
from memspan.train.frozen import FrozenMemory
from memspan.train.losses import LOSSES, Outputs, counts
from memspan.train.memory import BatchMemory, encode_documents
from memspan.train.settings import LossWeights, Objective
from memspan.types import EncodedDocuments

__all__ = ["LossTerms", "LossWeights", "Objective", "training_forward"]

# Of logits in float32: 256 MB of them.
_LOGITS_AT_ONCE = 2**26


@dataclass(frozen=True)
class LossTerms:
    """Sums of a step's losses, and what they are sums over: those of several steps or ranks can be added up.

    Attributes:
        sums: by the names of `LOSSES`.
        counts: see `memspan.train.losses`.
        routing_by_layer: mean over the questions that route, per MSA layer; detached.
        scores_LBN: routing scores of the documents, detached, for metrics.
    """

    sums: Mapping[str, torch.Tensor]
    counts: Mapping[str, int]
    routing_by_layer: dict[int, torch.Tensor]
    scores_LBN: torch.Tensor

    def total(self, weights: LossWeights, shared: Mapping[str, int] | None = None) -> torch.Tensor:
        """The weighted loss, a scalar. A loss of weight 0 has no part in it, not even as NaN.

        Args:
            shared: counts to divide by, over all steps and ranks that share an update (for DDP, which averages
                gradients, divided by the number of ranks). Of what is not named, this step's own.
        """
        divided_by = {**self.counts, **(shared or {})}
        weighted = [(name, weight) for name in LOSSES if (weight := weights.of(name))]
        terms = [weight * self.sums[name] / max(1, divided_by[name]) for name, weight in weighted]
        return torch.stack(terms).sum() if terms else self.sums["lm"] * 0


def training_forward(
    model: MSAForCausalLM,
    batch: TrainBatch,
    objective: Objective,
    teacher_scores_BN: torch.Tensor | None = None,
    frozen: FrozenMemory | None = None,
) -> LossTerms:
    """Run a batch and compute its losses. Gradients flow wherever parameters require them.

    Layers under the first trained one keep nothing for a backward. A batch without learned tokens never computes the
    language-model head. Under DDP or FSDP call this from the forward of the module that is wrapped.

    Args:
        teacher_scores_BN: a teacher's scores of the batch's documents, `-inf` where it has none.
        frozen: documents encoded before, where the document side is frozen.

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
    if frozen is None:
        documents = encode_documents(model, batch.documents, objective.batch_tokens)
    else:
        documents = frozen.encoded(model, batch.document_names)
    lm_sum, scores_LBN = _asked(model, batch, documents, objective)

    out = Outputs(model, batch, objective, lm_sum, scores_LBN, teacher_scores_BN)
    by_layer_L = out.routing_LB.detach().sum(1) / max(1, batch.num_routed_questions)
    return LossTerms(
        sums={name: LOSSES[name].sum(out) for name in LOSSES},
        counts=counts(batch, teacher_scores_BN is not None),
        routing_by_layer=dict(zip(config.layers, by_layer_L.unbind(), strict=True)),
        scores_LBN=scores_LBN.detach(),
    )


def _asked(
    model: MSAForCausalLM, batch: TrainBatch, documents: EncodedDocuments, objective: Objective
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the contexts in sub-batches of like length: the summed language loss, and the scores `[L, B, N]`."""
    groups = list(length_batches(batch.contexts.lengths, objective.batch_tokens))
    lm_sum, scores = torch.zeros((), device=batch.labels_BT.device), []
    for rows in groups:
        contexts = batch.contexts.take(rows)
        rows_R = to_device(torch.tensor(rows), batch.labels_BT.device)
        labels_BT = batch.labels_BT[rows_R, -contexts.ids.shape[1] :]
        memory = BatchMemory(documents, batch.document_ids, model.config, attend=objective.use_memory)
        lm_sum = lm_sum + _language_loss(model, contexts, labels_BT, memory)
        scores.append(torch.stack([memory.scores[layer] for layer in model.config.layers]))
    order_B = torch.tensor([row for rows in groups for row in rows]).argsort().to(lm_sum.device)
    return lm_sum, torch.cat(scores, dim=1)[:, order_B]


def _language_loss(
    model: MSAForCausalLM, contexts: PackedContexts, labels_BT: torch.Tensor, memory: BatchMemory
) -> torch.Tensor:
    """Run the contexts, which asks `memory`; the summed loss of the learned tokens, 0 where there are none."""
    step = QueryStep(contexts.padding_mask, contexts.sees_memory, contexts.routes, memory)
    inputs = {"position_ids": contexts.positions, "memory": step, "use_cache": False}
    next_BT = labels_BT[:, 1:]
    columns_T = (next_BT != IGNORED).any(0).nonzero()[:, 0]
    if not len(columns_T):
        model.backbone.base_model(contexts.ids, **inputs)
        return torch.zeros((), device=labels_BT.device)
    logits_BTV = model(contexts.ids, logits_to_keep=columns_T, **inputs).logits
    next_BT = next_BT[:, columns_T]
    learned_BT = next_BT != IGNORED
    return _summed_loss(logits_BTV[learned_BT], next_BT[learned_BT])


def _summed_loss(logits_XV: torch.Tensor, target_X: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in float32, of some tokens at a time where the vocabulary is large.

    Wide logits, and what their backward needs, are there for those tokens alone, and are computed again in it.
    """
    wide = torch.promote_types(logits_XV.dtype, torch.float32)

    def loss(logits_XV: torch.Tensor, target_X: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits_XV.to(wide), target_X, reduction="sum")

    rows = max(1, _LOGITS_AT_ONCE // logits_XV.shape[1])
    if len(logits_XV) <= rows:
        return loss(logits_XV, target_X)
    parts = zip(logits_XV.split(rows), target_X.split(rows), strict=True)
    return torch.stack([cast(torch.Tensor, checkpoint(loss, *part, use_reentrant=False)) for part in parts]).sum()


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
