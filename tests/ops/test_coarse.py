from __future__ import annotations

import pytest
import torch

from memspan.ops import integers
from memspan.ops.coarse import (
    CoarseKeys,
    coarse_scores,
    join_keys,
    quantize_keys,
    quantize_queries,
)
from memspan.ops.integers import key_levels, query_levels
from memspan.ops.scoring import chunk_scores

SHAPES = [(1, 1, 1, 16), (1, 5, 77, 16), (3, 4, 301, 192), (2, 7, 64, 1024), (1, 2, 9, 4000)]


def _scores(query_BTW: torch.Tensor, keys: CoarseKeys) -> torch.Tensor:
    out_BC = torch.full((len(query_BTW), len(keys.scale_C)), float("nan"))
    coarse_scores(quantize_queries(query_BTW), keys, out_BC)
    return out_BC


@pytest.mark.parametrize(("B", "T", "C", "W"), SHAPES)
def test_a_coarse_score_is_the_product_of_the_rounded_numbers_exactly(B: int, T: int, C: int, W: int) -> None:
    query_BTW, keys = torch.randn(B, T, W), quantize_keys(torch.randn(C, W))
    queries = quantize_queries(query_BTW)
    integers_BTC = queries.query_BTW.double() @ keys.key_CW.double().T
    assert integers_BTC.abs().max() <= 2**24
    best_BC = integers_BTC.amax(1).float()
    assert torch.equal(_scores(query_BTW, keys), best_BC * keys.scale_C * queries.scale_B[:, None])


def test_neither_tile_nor_batch_nor_number_of_rows_changes_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    query_BTW, key_CW = torch.randn(3, 5, 192), torch.randn(301, 192).bfloat16()
    keys = quantize_keys(key_CW)
    whole = _scores(query_BTW, keys)
    for tile in (1, 2, 16, 17, 300, 1000):
        monkeypatch.setattr(integers, "_LEAST_TILE", tile)
        monkeypatch.setattr(integers, "_TILE_BYTES", 1)
        assert torch.equal(_scores(query_BTW, keys), whole)
    monkeypatch.undo()
    for row in range(3):
        assert torch.equal(_scores(query_BTW[row : row + 1], keys)[0], whole[row])
    parts = [quantize_keys(part_CW) for part_CW in key_CW.split([1, 100, 200])]
    assert torch.equal(torch.cat([_scores(query_BTW, part) for part in parts], 1), whole)
    joined = join_keys(parts)
    assert torch.equal(joined.key_CW, keys.key_CW) and torch.equal(joined.scale_C, keys.scale_C)


def test_rounding_costs_three_hundredths_of_the_spread_of_scores() -> None:
    query_BTW, key_CW = torch.randn(2, 8, 192), torch.randn(5000, 192)
    error = _scores(query_BTW, quantize_keys(key_CW)) - chunk_scores(query_BTW, key_CW)
    assert error.std() < 0.035 * chunk_scores(query_BTW, key_CW).std()


@pytest.mark.parametrize("width", [1, 16, 192, 1024, 1041, 2048, 100_000])
def test_levels_are_as_many_as_sum_exactly(width: int) -> None:
    levels = key_levels(width)
    assert levels**2 * width <= 2**24 and (levels == 127 or (levels + 1) ** 2 * width > 2**24)
    assert query_levels(width) == min(levels, 63)  # two products with 255 fit into 16 bits


def test_rows_and_questions_of_zeros_score_zero() -> None:
    keys = quantize_keys(torch.cat([torch.zeros(1, 16), torch.randn(2, 16)]))
    assert _scores(torch.randn(1, 2, 16), keys)[0, 0] == 0
    assert not _scores(torch.zeros(1, 2, 16), keys).any()
