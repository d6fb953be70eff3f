"""Routing scores (paper eq. 2), written once for training, serving and sharding.

    S[c] = max over query tokens t of mean over heads h of sim(q[t, h], key[c, group(h)])

The mean over grouped-query heads is ONE dot product of width W = G*D: scale each query head as `sim` wants it, sum the
heads of a group, divide by H; scale each key head; then q_TW @ key_CW. `memspan.ops.naive` holds the literal formula.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from memspan.ops.similarity import SIMILARITIES

# Chunks of which only the best is looked at when a bound is sought.
_BLOCK = 128
# Bits of a sum that float64 holds exactly, and how many more of them a query gets than a key, which is bfloat16.
_SUM_BITS, _MORE_FOR_QUERIES = 53, 5
# The bits of a float64 that are its exponent; the others are zero in a power of two.
_EXPONENT = 0x7FF0000000000000
# Exact products held at once: 2 MiB of them.
_PRODUCTS_HELD = 2**18
# Numbers of keys that a device holds in float64 at once: 128 MiB of them.
_KEYS_HELD = 2**24


def fold_queries(query_BTHD: Tensor, num_kv_heads: int, similarity: str) -> Tensor:
    """Router queries as the left side of the grouped dot product: `[B, T, W]`, float32 (or wider).

    Args:
        query_BTHD: output of the router query projection, heads ordered so that head h uses key head h // (H/G).
        num_kv_heads: G.
        similarity: a name of `memspan.ops.similarity`.
    """
    B, T, H, D = query_BTHD.shape
    query_BTHD = SIMILARITIES[similarity].query(query_BTHD.to(torch.promote_types(query_BTHD.dtype, torch.float32)))
    groups_BTGD = query_BTHD.view(B, T, num_kv_heads, H // num_kv_heads, D).sum(3) / H
    return groups_BTGD.reshape(B, T, num_kv_heads * D)


def fold_keys(key_CGD: Tensor, similarity: str) -> Tensor:
    """Pooled router keys as the right side of the grouped dot product: `[..., W]` from `[..., G, D]`.

    Pooling comes first, then what the similarity makes of a head. Computed in float32 or wider.
    """
    return SIMILARITIES[similarity].key(key_CGD.to(torch.promote_types(key_CGD.dtype, torch.float32))).flatten(-2)


def routing_places(mask_BT: Tensor) -> Tensor:
    """Where the tokens that route stand, `[B, R]`: of every question in order, then its first one again and again.

    So no mask is needed in the max over tokens, and other tokens are not multiplied.

    Raises:
        ValueError: a question has no routing token at all.
    """
    num_routing_B = mask_BT.sum(1)
    if not bool(num_routing_B.all()):
        raise ValueError("every question needs at least one routing token")
    place_BR = mask_BT.int().argsort(dim=1, descending=True, stable=True)[:, : int(num_routing_B.max())]
    is_one_BR = torch.arange(place_BR.shape[1], device=mask_BT.device) < num_routing_B.unsqueeze(1)
    return torch.where(is_one_BR, place_BR, place_BR[:, :1])


def take_tokens(query_BT: Tensor, place_BR: Tensor) -> Tensor:
    """What of each question stands at some places, `[B, R, ...]` of `[B, T, ...]`."""
    places = place_BR.view(*place_BR.shape, *[1] * (query_BT.ndim - 2))
    return query_BT.gather(1, places.expand(-1, -1, *query_BT.shape[2:]))


def routing_queries(query_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The queries of the tokens that route, `[B, R, ...]`; see `routing_places`."""
    return take_tokens(query_BT, routing_places(mask_BT))


def chunk_scores(query_BTW: Tensor, key_CW: Tensor) -> Tensor:
    """Score of every chunk for every question, `[B, C]`: the max over query tokens of the grouped dot product.

    Computed in the keys' dtype. Differentiable; for training, and for what fits in memory at once. Serving takes the
    two passes of `memspan.ops.coarse` and `exact_chunk_scores`.

    Args:
        query_BTW: folded queries in which every token routes (see `routing_queries`).
        key_CW: folded keys.
    """
    B, T, W = query_BTW.shape
    query_WQ = query_BTW.reshape(B * T, W).to(key_CW.dtype).T
    return (key_CW @ query_WQ).view(-1, B, T).amax(-1).T


@functools.cache
def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64 (Metal does not); tried once."""
    try:
        return bool(
            (torch.ones(2, 2, dtype=torch.float64, device=device) @ torch.ones(2, 1).double().to(device))[0] == 2
        )
    except (RuntimeError, TypeError, NotImplementedError):
        return False


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no wider one."""
    return torch.float64 if has_float64(device) else torch.float32


def exact_chunk_scores(query_TW: Tensor, key_CW: Tensor) -> Tensor:
    """Scores of a few chunks for one question, `[C]` float32: the same bits in any batch, tile, shard and device.

    Results of GEMMs change with device, library and shape of the call, as sums are rounded while they are made. So
    queries and keys are first rounded to multiples of a power of two, a vector by its own largest number: so finely
    that cosines change by less than 1e-7, and so coarsely that float64 holds every product and every sum exactly, in
    any order. Products of a few chunks are held at a time, so a long question over many candidates takes no more memory
    than others.
    """
    query_WT = _rounded_queries(query_TW).T
    rows = max(1, _PRODUCTS_HELD // query_WT.shape[1])
    return torch.cat([(_rounded_keys(part_CW) @ query_WT).amax(-1) for part_CW in key_CW.split(rows)]).float()


def exact_document_scores(
    query_BTW: Tensor, key_CW: Tensor, first_BK: Tensor, rows_BK: Tensor, most_rows: int
) -> Tensor:
    """Scores of K documents for every question, `[B, K]` float32: the max over chunks of `exact_chunk_scores`.

    Nothing waits for the device that the tensors are on.

    Args:
        key_CW: stored keys.
        first_BK, rows_BK: a document's first row and its number of rows. Where it has rows outside of the keys, its
            score is that of other rows.
        most_rows: of a document.
    """
    B, _, W = query_BTW.shape
    query_BWT = _rounded_queries(query_BTW).transpose(1, 2)
    offset_R = torch.arange(most_rows, device=key_CW.device)
    at_once, scores = max(1, _KEYS_HELD // (B * most_rows * W)), list[Tensor]()
    for part_BK, count_BK in zip(first_BK.split(at_once, 1), rows_BK.split(at_once, 1), strict=True):
        row_BKR = part_BK[..., None] + torch.minimum(offset_R, count_BK[..., None] - 1)  # the last row again and again
        keys_XW = _rounded_keys(key_CW.index_select(0, row_BKR.clamp(0, len(key_CW) - 1).flatten()))
        products_BXT = keys_XW.view(B, -1, W) @ query_BWT
        scores.append(products_BXT.amax(-1).view(row_BKR.shape).amax(-1).float())
    return torch.cat(scores, 1)


def _rounded_queries(query_TW: Tensor) -> Tensor:
    return _rounded(query_TW, (_bits(query_TW) + _MORE_FOR_QUERIES + 1) // 2)


def _rounded_keys(key_CW: Tensor) -> Tensor:
    return _rounded(key_CW, (_bits(key_CW) - _MORE_FOR_QUERIES) // 2)


def _bits(vectors: Tensor) -> int:
    """Of a product, so that a sum of so many is exact."""
    return _SUM_BITS - math.ceil(math.log2(vectors.shape[-1]))


def _rounded(vectors: Tensor, bits: int) -> Tensor:
    """Vectors (the last dimension) in float64, every number a multiple of a power of two that is less than 2**bits
    times in the vector's largest."""
    largest = vectors.abs().amax(-1, keepdim=True).double()
    power = (largest.view(torch.int64) & _EXPONENT).view(torch.float64)  # at most the largest number, and over its half
    # Beside so large a number there is no room for finer ones.
    anchor = power * (1.5 * 2.0 ** (_SUM_BITS - bits))
    return (vectors.double() + anchor).sub_(anchor)


def document_scores(score_BC: Tensor, document_C: Tensor, num_documents: int) -> Tensor:
    """Score of every document, `[B, N]`: the max over its chunks; -inf for a document without chunks.

    Args:
        score_BC: chunk scores.
        document_C: index (0..N-1) of the document of each chunk.
        num_documents: N.
    """
    score_BN = score_BC.new_full((len(score_BC), num_documents), float("-inf"))
    return score_BN.scatter_reduce(1, document_C.expand_as(score_BC), score_BC, "amax", include_self=True)


def leading_documents(score_C: Tensor, document_C: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices and scores of the documents with the best chunks for one question, in the order of their rows.

    At least `count` of them where so many are there, and everything that scores as well as the last: so the best
    `count` by any tie-break are among them. The work is a few passes over the scores; only what leads is sorted.

    Args:
        score_C: chunk scores; -inf for what must not be selected.
        document_C: index of the document of each chunk, ascending.
    """
    wanted = 2 * count
    while True:
        bound = _bound(score_C, wanted)
        documents_K, scores_K = documents_above(score_C, document_C, bound)
        if len(documents_K) >= count or bound == float("-inf"):
            return documents_K, scores_K
        wanted *= 4


def leading_of_batch(
    score_BC: Tensor, document_C: Tensor, count: int, exact: Callable[[Tensor], Tensor] | None = None
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """`leading_documents` of every question, from scores on an accelerator, which is waited for once as a rule.

    Args:
        exact: exact scores of documents, by their indices `[B, K]`, on the accelerator.

    Returns:
        Indices, scores and exact scores (NaN without `exact`) of documents, on the CPU, in the order of the indices.
    """
    wanted = 2 * count
    while True:
        score_BK, row_BK = score_BC.topk(min(wanted, score_BC.shape[1]))
        document_BK = document_C[row_BK].int()
        exact_BK = torch.full_like(score_BK, math.nan) if exact is None else exact(document_BK)
        # One copy: the bits of float32 beside the indices.
        bits = torch.stack([document_BK, score_BK.view(torch.int32), exact_BK.view(torch.int32)]).cpu()
        document_BK, score_BK, exact_BK = bits[0], *bits[1:].view(torch.float32)
        is_all = wanted >= score_BC.shape[1]
        # Rows that score as the last one does may be missing.
        kept_BK = score_BK > (float("-inf") if is_all else score_BK[:, -1:])
        parts = zip(document_BK.long(), score_BK, exact_BK, kept_BK, strict=True)
        found = [
            _by_document(document_K[kept], score_K[kept], exact_K[kept]) for document_K, score_K, exact_K, kept in parts
        ]
        last_B = score_BK[:, -1].tolist() if score_BK.shape[1] else []
        if is_all or all(
            len(ids) >= count or last == float("-inf") for (ids, *_), last in zip(found, last_B, strict=True)
        ):
            return found
        wanted *= 4


def _by_document(document_K: Tensor, *scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every document once, in order, with its best score of each kind."""
    documents, owner_K = torch.unique(document_K, return_inverse=True)
    best, exact = document_scores(torch.stack(scores), owner_K, len(documents))
    return documents, best, exact


def documents_above(score_C: Tensor, document_C: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Indices and scores of the documents of which a chunk scores at least `bound`, as `leading_documents`."""
    chunks = ((score_C >= bound) & (score_C > float("-inf"))).nonzero()[:, 0]
    documents_K, owner = torch.unique_consecutive(document_C[chunks], return_inverse=True)
    return documents_K, document_scores(score_C[chunks][None], owner, len(documents_K))[0]


def _bound(score_C: Tensor, count: int) -> float:
    """A score that at least `count` chunks reach, and not many more: the maxima of blocks stand for the chunks."""
    whole = len(score_C) - len(score_C) % _BLOCK
    if count * _BLOCK > whole:
        return float("-inf") if count >= len(score_C) else float(score_C.topk(count).values[-1])
    return float(score_C[:whole].view(-1, _BLOCK).amax(1).topk(count).values[-1])


def top_documents(score_N: Tensor, ids_N: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Ids and scores of the best k documents of one question, ordered by score, then by id.

    Documents scored -inf (masked) are never returned, so fewer than k may come back.
    """
    if 0 < k < len(score_N):  # sort only what can be among them, ties with the last one included
        kept = (score_N >= score_N.topk(k).values[-1]).nonzero()[:, 0]
        score_N, ids_N = score_N[kept], ids_N[kept]
    order = torch.argsort(ids_N)
    order = order[torch.argsort(score_N[order], descending=True, stable=True)][:k]
    order = order[torch.isfinite(score_N[order])]
    return ids_N[order], score_N[order]
