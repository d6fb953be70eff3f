"""Which tokens of a document are kept: those that the model looks at most while it repeats the text.

The question is not known when a document is encoded, so the repetition stands for all questions (KVzip, arXiv
2505.23416). A layer keeps the same tokens for all of its heads, so that their keys and values are rows of one tensor.
"""

from __future__ import annotations

from torch import Tensor


def attention_received(query_HQD: Tensor, key_GSD: Tensor, scaling: float) -> Tensor:
    """How much the queries of a repetition look at every token of a document, `[S]`, float32.

    For every group of heads the largest share of attention that any of its queries gives the token; the mean of these
    over the groups.

    Args:
        query_HQD, key_GSD: rotated, of one layer; H is a multiple of G.
        scaling: of their products.
    """
    query_GQD = query_HQD.reshape(len(key_GSD), -1, query_HQD.shape[-1]).float()
    logits_GQS = (query_GQD @ key_GSD.float().mT).mul_(scaling)
    return logits_GQS.softmax(-1).amax(1).mean(0)


def kept_tokens(received_S: Tensor, count: int) -> Tensor:
    """The places of the `count` tokens that received most (all, where there are fewer), in order."""
    return received_S.topk(min(count, len(received_S))).indices.sort().values
