from __future__ import annotations

import pytest
import torch

from memspan.ops import naive
from memspan.ops.scoring import (
    chunk_scores,
    document_scores,
    documents_above,
    exact_chunk_scores,
    fold_keys,
    fold_queries,
    leading_documents,
    routing_queries,
    top_documents,
)

HEADS = [(4, 4), (4, 2), (9, 3), (4, 1)]
B, T, C, D = 2, 5, 11, 6


def _random(H: int, G: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(B, T, H, D, dtype=dtype), torch.randn(C, G, D, dtype=dtype)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize(("H", "G"), HEADS)
def test_grouped_dot_product_is_the_literal_mean_over_heads(
    H: int, G: int, similarity: str, device: torch.device
) -> None:
    query_BTHD, key_CGD = _random(H, G)
    folded = fold_queries(query_BTHD.to(device), G, similarity), fold_keys(key_CGD.to(device), similarity)
    expected = torch.stack([naive.chunk_scores(query_THD, key_CGD, similarity) for query_THD in query_BTHD])
    torch.testing.assert_close(chunk_scores(*folded).cpu(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize(("H", "G"), HEADS)
def test_gradients_equal_those_of_the_literal_formula(H: int, G: int, similarity: str) -> None:
    query_BTHD, key_CGD = (x.requires_grad_() for x in _random(H, G))
    weights = torch.randn(B, C, dtype=torch.float64)
    fast = chunk_scores(fold_queries(query_BTHD, G, similarity), fold_keys(key_CGD, similarity))
    gradients = torch.autograd.grad((fast * weights).sum(), (query_BTHD, key_CGD))
    slow = torch.stack([naive.chunk_scores(query_THD, key_CGD, similarity) for query_THD in query_BTHD])
    expected = torch.autograd.grad((slow * weights).sum(), (query_BTHD, key_CGD))
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_low_precision_router_outputs_are_folded_in_float32() -> None:
    query_BTHD, key_CGD = (x.bfloat16() for x in _random(4, 2, torch.float32))
    for similarity in ("cosine", "dot"):
        assert torch.equal(fold_queries(query_BTHD, 2, similarity), fold_queries(query_BTHD.float(), 2, similarity))
        assert torch.equal(fold_keys(key_CGD, similarity), fold_keys(key_CGD.float(), similarity))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_tokens_that_do_not_route_never_matter(poison: float) -> None:
    query_BTW, key_CW = torch.randn(3, T, 8), torch.randn(C, 8)
    mask_BT = torch.tensor([[0, 0, 1, 1, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 1]], dtype=torch.bool)
    poisoned = torch.where(mask_BT.unsqueeze(-1), query_BTW, poison)
    scores = chunk_scores(routing_queries(poisoned, mask_BT), key_CW)
    for row, query_TW, mask_T in zip(scores, query_BTW, mask_BT, strict=True):
        torch.testing.assert_close(row, (key_CW @ query_TW[mask_T].T).amax(1), rtol=0, atol=1e-5)


def test_tokens_that_do_not_route_get_no_gradient() -> None:
    query_BTW = torch.randn(1, T, 8).requires_grad_()
    mask_BT = torch.tensor([[False, True, False, True, False]])
    chunk_scores(routing_queries(query_BTW, mask_BT), torch.randn(C, 8)).sum().backward()
    assert torch.equal(query_BTW.grad.abs().sum(-1) > 0, mask_BT)


def test_a_question_without_a_routing_token_is_refused() -> None:
    mask_BT = torch.tensor([[True] * T, [False] * T])
    with pytest.raises(ValueError, match="routing token"):
        routing_queries(torch.randn(2, T, 8), mask_BT)


def test_the_best_documents_are_the_naive_selection_with_ties_broken_by_id() -> None:
    ids = [40, 7, 23, 5, 31]  # not in order: a tie must go to the smaller id, not to the first row
    document_C = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4])
    score_BC = torch.tensor(
        [
            [0.1, 0.9, 0.9, 0.2, 0.9, 0.3, 0.5, -1.0, -2.0],
            [0.5] * 9,
            [-0.5, -0.1, -0.3, -0.1, -0.2, -0.9, -0.3, -0.1, -0.7],
            [-9.0, -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0],
        ]
    )
    score_BN = document_scores(score_BC, document_C, len(ids))
    for k in range(1, 7):
        for score_N, score_C in zip(score_BN, score_BC, strict=True):
            chosen, scores = top_documents(score_N, torch.tensor(ids), k)
            assert chosen.tolist() == naive.select_documents(score_C, [ids[d] for d in document_C], k)
            best = [max(s for s, d in zip(score_C.tolist(), document_C, strict=True) if ids[d] == i) for i in chosen]
            assert scores.tolist() == best


def test_selection_does_not_depend_on_the_order_of_the_rows() -> None:
    ids_N = torch.randperm(50)
    score_N = torch.randint(0, 4, (50,)).float()  # many ties
    order = torch.randperm(50)
    first, second = top_documents(score_N, ids_N, 20), top_documents(score_N[order], ids_N[order], 20)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_documents_that_are_masked_or_have_no_chunks_are_never_selected() -> None:
    score_BN = document_scores(torch.tensor([[0.3, float("-inf"), 0.1]]), torch.tensor([0, 2, 3]), 5)
    ids, scores = top_documents(score_BN[0], torch.arange(10, 15), 5)
    assert ids.tolist() == [10, 13]
    torch.testing.assert_close(scores, torch.tensor([0.3, 0.1]), rtol=0, atol=0)


@pytest.mark.parametrize("values", ["distinct", "ties", "barred", "one document"])
@pytest.mark.parametrize("num_chunks", [0, 1, 7, 128, 1000, 5000])
def test_the_leading_documents_hold_the_best_whatever_the_tie_break(num_chunks: int, values: str) -> None:
    score_C = torch.randn(num_chunks)
    document_C = torch.randint(0, 2, (num_chunks,)).cumsum(0)
    if values == "ties":
        score_C = score_C.round()
    elif values == "barred":
        score_C[torch.rand(num_chunks) < 0.9] = float("-inf")
    elif values == "one document":  # the best chunks are all of one long document
        document_C[num_chunks // 5 :] = document_C[num_chunks // 5 : num_chunks // 5 + 1]
        score_C[num_chunks // 5 :] += 10
    num_documents = int(document_C[-1]) + 1 if num_chunks else 0
    score_N = document_scores(score_C[None], document_C, num_documents)[0]
    for count in (1, 3, 40):
        documents, scores = leading_documents(score_C, document_C, count)
        assert torch.equal(scores, score_N[documents]) and scores.isfinite().all()
        assert documents.tolist() == sorted(set(documents.tolist()))
        rest_N = score_N.clone()
        rest_N[documents] = float("-inf")
        assert len(documents) >= min(count, int(score_N.isfinite().sum()))
        assert not len(documents) or not len(rest_N) or rest_N.max() < scores.min()
        assert num_chunks < 5000 or values != "distinct" or len(documents) < 1000, "little is looked at"


def test_documents_above_a_bound_are_all_that_reach_it() -> None:
    score_C, document_C = torch.tensor([0.5, 0.1, 0.4, 0.5, float("-inf")]), torch.tensor([0, 0, 2, 3, 3])
    assert [x.tolist() for x in documents_above(score_C, document_C, 0.5)] == [[0, 3], [0.5, 0.5]]
    assert documents_above(score_C, document_C, float("-inf"))[0].tolist() == [0, 2, 3]
    assert documents_above(score_C, document_C, float("inf"))[0].tolist() == []


def test_exact_scores_of_a_chunk_are_bitwise_the_same_alone_and_in_any_company() -> None:
    query_TW, key_CW = torch.randn(7, 128), torch.randn(301, 128)
    together = exact_chunk_scores(query_TW, key_CW)
    alone = torch.cat([exact_chunk_scores(query_TW, row[None]) for row in key_CW])
    assert torch.equal(together, alone)
    for size in (2, 17, 64):
        assert torch.equal(together, torch.cat([exact_chunk_scores(query_TW, tile) for tile in key_CW.split(size)]))
    chosen = torch.randperm(301)[:53]
    assert torch.equal(together[chosen], exact_chunk_scores(query_TW, key_CW[chosen]))


def test_exact_scores_do_not_depend_on_repeated_or_reordered_query_tokens() -> None:
    query_TW, key_CW = torch.randn(7, 128), torch.randn(301, 128)
    longer = torch.cat([query_TW.flip(0), query_TW[:1].expand(9, -1)])
    assert torch.equal(exact_chunk_scores(query_TW, key_CW), exact_chunk_scores(longer, key_CW))


def test_exact_scores_are_the_float64_scores_rounded_to_float32() -> None:
    query_TW, key_CW = torch.randn(7, 128), torch.randn(301, 128)
    expected = torch.stack([(query_TW.double() * row.double()).sum(-1).amax() for row in key_CW])
    torch.testing.assert_close(exact_chunk_scores(query_TW, key_CW).double(), expected, rtol=1e-7, atol=1e-8)


def test_bfloat16_keys_score_cosines_within_five_thousandths(device: torch.device) -> None:
    query_BTHD, key_CGD = torch.randn(4, 16, 4, 16), torch.randn(500, 2, 16)
    query_BTW = fold_queries(query_BTHD, 2, "cosine").to(device)
    key_CW = fold_keys(key_CGD, "cosine").to(device)
    rounded = chunk_scores(query_BTW, key_CW.bfloat16())
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), chunk_scores(query_BTW, key_CW), rtol=0, atol=5e-3)
