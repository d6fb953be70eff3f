"""The routing loss: documents a question needs must outscore the others (paper 3.3, eq. 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def routing_loss(
    scores_BN: Tensor, positives_BN: Tensor, temperature: float, decoupled: bool = True, valid_BN: Tensor | None = None
) -> Tensor:
    """Contrastive loss of every question's document scores, `[B]` float32 (or wider); eq. 5 where `decoupled`.

    With s = scores / temperature, P the positives and N the negatives of a question:

        decoupled:      -1/|P| * sum over i in P of log( exp(s_i) / (exp(s_i) + sum over j in N of exp(s_j)) )
        not decoupled:  -1/|P| * sum over i in P of log( exp(s_i) / sum over all documents j of exp(s_j) )

    Decoupled, other positives are not in the denominator; else positives compete in one softmax. Averaging over
    questions and MSA layers is the caller's matter. A question without positives gets 0, and no gradient: leave it out
    of the mean. Without negatives the decoupled loss is 0.

    Args:
        scores_BN: as `memspan.ops.scoring.document_scores` gives them; -inf where a question has no such document.
        positives_BN: bool, the documents the question needs.
        temperature: tau, above 0. The paper does not state it; the authors' script has 0.1.
        decoupled: whether to follow eq. 5.
        valid_BN: False for documents to leave out (padding). They count as absent, as those scored -inf do, whatever
            their scores hold.

    Raises:
        ValueError: the temperature is not positive, a shape differs, or a positive document is absent.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    if scores_BN.shape != positives_BN.shape or (valid_BN is not None and valid_BN.shape != scores_BN.shape):
        raise ValueError("scores, positives and valid must have one shape [B, N]")
    present_BN = scores_BN != float("-inf")
    if valid_BN is not None:
        present_BN = present_BN & valid_BN
    if bool((positives_BN & ~present_BN).any()):
        raise ValueError("a positive document is absent (not valid, or scored -inf): it cannot be learned")

    dtype = torch.promote_types(scores_BN.dtype, torch.float32)
    # Absent documents are replaced before anything is computed with them: inf and NaN would reach the gradients.
    logits_BN = scores_BN.masked_fill(~present_BN, 0).to(dtype) / temperature
    rivals_BN = present_BN & ~positives_BN if decoupled else present_BN
    rival_sum_B1 = logits_BN.masked_fill(~rivals_BN, float("-inf")).logsumexp(1, keepdim=True)
    # -log(e^s / (e^s + e^r)) = softplus(r - s), which is r - s to the last bit of float64 from 40 on.
    loss_BN = F.softplus(rival_sum_B1 - logits_BN, threshold=40) if decoupled else rival_sum_B1 - logits_BN
    return loss_BN.masked_fill(~positives_BN, 0).sum(1) / positives_BN.sum(1).clamp(min=1)


def distillation_loss(
    scores_BN: Tensor, teacher_BN: Tensor, temperature: float, teacher_temperature: float, valid_BN: Tensor
) -> Tensor:
    """Kullback-Leibler divergence of the scores' softmax from a teacher's, over a question's documents, `[B]`.

    Args:
        teacher_BN: a teacher's scores in its own unit; -inf for documents it does not know, which are left out.
        temperature, teacher_temperature: what either is divided by.
        valid_BN: False for documents to leave out. A question with fewer than two documents left gets 0.
    """
    present_BN = valid_BN & (teacher_BN != float("-inf"))
    dtype = torch.promote_types(scores_BN.dtype, torch.float32)

    def log_shares(values_BN: Tensor, tau: float) -> Tensor:
        # A large finite number, not -inf: 0 * inf would be NaN, here and in the gradient.
        logits_BN = (values_BN.masked_fill(~present_BN, 0).to(dtype) / tau).masked_fill(~present_BN, -1e30)
        return F.log_softmax(logits_BN, dim=1)

    wanted_BN = log_shares(teacher_BN, teacher_temperature)
    difference_BN = wanted_BN - log_shares(scores_BN, temperature)
    return (wanted_BN.exp() * difference_BN).masked_fill(~present_BN, 0).sum(1)
