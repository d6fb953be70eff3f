from __future__ import annotations

import pytest
import torch

from memspan.ops import naive, scoring
from memspan.ops.scoring import (
    chunk_scores,
    document_scores,
    documents_above,
    exact_chunk_scores,
    exact_document_scores,
    fold_keys,
    fold_queries,
    has_float64,
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


@pytest.mark.parametrize("width", [1, 6, 128, 1024, 4096])
def test_exact_scores_are_the_float64_scores_within_a_ten_millionth_of_the_vectors_lengths(width: int) -> None:
    query_TW, key_CW = torch.randn(7, width), torch.randn(301, width).bfloat16()
    product_CT = key_CW.double() @ query_TW.double().T
    lengths_CT = key_CW.double().norm(dim=1)[:, None] * query_TW.double().norm(dim=1)
    error_C = (exact_chunk_scores(query_TW, key_CW).double() - product_CT.amax(1)).abs()
    assert torch.all(error_C <= 1e-7 * lengths_CT.amax(1))


def _awkward(count: int, width: int) -> torch.Tensor:
    """Vectors of numbers of all sizes, in which sums in float64 are rounded, and differ with their order."""
    exponents = torch.randint(-40, 40, (count, width))
    return torch.ldexp(torch.randn(count, width), exponents)


@pytest.mark.parametrize("width", [1, 3, 100, 128, 1000, 1024])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_exact_scores_do_not_depend_on_the_order_of_summing(width: int, dtype: torch.dtype) -> None:
    query_TW, key_CW = (
        _awkward(5, width),
        torch.cat([_awkward(60, width).to(dtype), torch.zeros(1, width, dtype=dtype)]),
    )
    key_CW = key_CW.nan_to_num(1.0, 1.0, 1.0)  # beyond float16
    scores = exact_chunk_scores(query_TW, key_CW)
    for _ in range(3):
        order = torch.randperm(width)
        assert torch.equal(exact_chunk_scores(query_TW[:, order], key_CW[:, order]), scores)
    # One after the other, which no library does.
    rounded = scoring._rounded_queries(query_TW), scoring._rounded_keys(key_CW)
    one_by_one = [max(sum((q * k).tolist()) for q in rounded[0]) for k in rounded[1]]
    assert torch.equal(torch.tensor(one_by_one, dtype=torch.float64).float(), scores) and scores[-1] == 0


def _ragged_documents(sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    rows_N = torch.tensor(sizes)
    return rows_N.cumsum(0) - rows_N, rows_N


@pytest.mark.parametrize("held", [1, 2**24])
def test_documents_score_on_a_device_as_their_chunks_do_on_the_cpu(
    held: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_KEYS_HELD", held)
    first_N, rows_N = _ragged_documents([1, 5, 2, 9, 1, 1, 3])
    query_BTW, key_CW = torch.randn(3, 4, 96), torch.randn(int(rows_N.sum()), 96).bfloat16()
    document_BK = torch.tensor([[0, 3, 6, 6], [5, 4, 3, 2], [1, 1, 1, 1]])
    found_BK = exact_document_scores(
        query_BTW.to(device), key_CW.to(device), first_N[document_BK].to(device), rows_N[document_BK].to(device), 9
    ).cpu()
    assert found_BK.dtype == torch.float32
    for found_K, query_TW, document_K in zip(found_BK, query_BTW, document_BK, strict=True):
        for score, place in zip(found_K, document_K, strict=True):
            rows_CW = key_CW[first_N[place] : first_N[place] + rows_N[place]]
            assert score == exact_chunk_scores(query_TW, rows_CW).max()


def test_documents_of_other_keys_neither_fail_nor_change_those_that_are_there() -> None:
    query_BTW, key_CW = torch.randn(1, 4, 32), torch.randn(6, 32)
    first_BK, rows_BK = torch.tensor([[-70, 0, 4, 500]]), torch.tensor([[3, 2, 2, 1]])
    found_K = exact_document_scores(query_BTW, key_CW, first_BK, rows_BK, 3)[0]
    for place, rows in ((1, slice(0, 2)), (2, slice(4, 6))):
        assert found_K[place] == exact_chunk_scores(query_BTW[0], key_CW[rows]).max()


def test_a_device_without_float64_is_known() -> None:
    assert has_float64(torch.device("cpu")) and not has_float64(torch.device("mps"))


def test_bfloat16_keys_score_cosines_within_five_thousandths(device: torch.device) -> None:
    query_BTHD, key_CGD = torch.randn(4, 16, 4, 16), torch.randn(500, 2, 16)
    query_BTW = fold_queries(query_BTHD, 2, "cosine").to(device)
    key_CW = fold_keys(key_CGD, "cosine").to(device)
    rounded = chunk_scores(query_BTW, key_CW.bfloat16())
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), chunk_scores(query_BTW, key_CW), rtol=0, atol=5e-3)
