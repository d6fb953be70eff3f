"""The paper's equations as loops: the slow, obvious reference for tests and benchmarks, never to serve."""

from __future__ import annotations

import torch
from torch import Tensor


def pool_chunks(x_TF: Tensor, chunk_size: int) -> Tensor:
    """Mean of every `chunk_size` tokens of one unpadded document, `[C, F]` (paper 3.2)."""
    return torch.stack([x_TF[start : start + chunk_size].mean(0) for start in range(0, len(x_TF), chunk_size)])


def chunk_scores(query_THD: Tensor, key_CGD: Tensor, similarity: str) -> Tensor:
    """Eq. 2 for one question: max over tokens of the mean over heads of the similarity, `[C]`."""
    T, H, D = query_THD.shape
    C, G, _ = key_CGD.shape
    scores = torch.empty(T, C, dtype=query_THD.dtype)
    for t in range(T):
        for c in range(C):
            heads = []
            for h in range(H):
                q, k = query_THD[t, h], key_CGD[c, h // (H // G)]
                dot = torch.dot(q, k)
                heads.append({"cosine": dot / (q.norm() * k.norm()), "dot": dot * D**-0.5}[similarity])
            scores[t, c] = torch.stack(heads).mean()
    return scores.amax(0)


def select_documents(chunk_score_C: Tensor, document_C: list[int], k: int) -> list[int]:
    """Top-k documents of one question by the best of their chunks, ties broken by id."""
    best: dict[int, float] = {}
    for score, document in zip(chunk_score_C.tolist(), document_C, strict=True):
        best[document] = max(score, best.get(document, float("-inf")))
    return sorted(best, key=lambda document: (-best[document], document))[:k]


def memory_attention(
    query_THD: Tensor,
    key_SGD: Tensor,
    value_SGD: Tensor,
    memory_key_MGD: Tensor,
    memory_value_MGD: Tensor,
    sees_memory_T: list[bool],
    scaling: float,
) -> Tensor:
    """Eq. 3-4 for one unpadded question: softmax over [memory ; local], causal in the local part, `[T, H, D]`."""
    T, H, _ = query_THD.shape
    S, G, _ = key_SGD.shape
    out = torch.empty_like(query_THD)
    for t in range(T):
        last = S - T + t + 1
        for h in range(H):
            g = h // (H // G)
            keys, values = key_SGD[:last, g], value_SGD[:last, g]
            if sees_memory_T[t]:
                keys = torch.cat([memory_key_MGD[:, g], keys])
                values = torch.cat([memory_value_MGD[:, g], values])
            weights = torch.softmax(keys @ query_THD[t, h] * scaling, dim=0)
            out[t, h] = weights @ values
    return out
