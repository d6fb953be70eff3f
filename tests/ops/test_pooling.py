from __future__ import annotations

import pytest
import torch

from memspan.ops import naive
from memspan.ops.pooling import num_chunks, pool_chunks, valid_chunks

P = 4
LENGTHS = [1, P - 1, P, P + 1, 2 * P, 3 * P - 1, 3 * P + 1]


def _documents(dtype: torch.dtype = torch.float64, width: int = 5) -> tuple[list[torch.Tensor], torch.Tensor]:
    return [torch.randn(length, width, dtype=dtype) for length in LENGTHS], torch.tensor(LENGTHS)


def _pad(documents: list[torch.Tensor], fill: float, extra: int = 0) -> torch.Tensor:
    longest = max(len(document) for document in documents) + extra
    rows = [torch.nn.functional.pad(d, (0, 0, 0, longest - len(d)), value=fill) for d in documents]
    return torch.stack(rows)


@pytest.mark.parametrize("length", LENGTHS)
def test_one_document_pools_as_the_naive_loop_does(length: int, device: torch.device) -> None:
    x_TF = torch.randn(length, 5, dtype=torch.float64, device=device)
    fast = pool_chunks(x_TF[None], torch.tensor([length], device=device), P)[0]
    torch.testing.assert_close(fast, naive.pool_chunks(x_TF, P), rtol=0, atol=1e-12)


@pytest.mark.parametrize("extra", [0, 1, P, 2 * P + 1])
@pytest.mark.parametrize("fill", [float("nan"), float("inf"), 1e30])
def test_ragged_batch_pools_as_every_document_alone_whatever_its_padding_holds(
    fill: float, extra: int, device: torch.device
) -> None:
    documents, lengths = _documents()
    pooled = pool_chunks(_pad(documents, fill, extra).to(device), lengths.to(device), P).cpu()
    valid = valid_chunks(lengths, pooled.shape[1], P)
    for row, keep, document in zip(pooled, valid, documents, strict=True):
        torch.testing.assert_close(row[keep], naive.pool_chunks(document, P), rtol=0, atol=1e-12)
    assert torch.equal(pooled[~valid], torch.zeros_like(pooled[~valid]))


def test_gradients_equal_the_naive_loops_and_are_zero_in_the_padding() -> None:
    documents, lengths = _documents()
    leaves = [document.clone().requires_grad_() for document in documents]
    padded = _pad(documents, float("nan")).requires_grad_()
    pooled = pool_chunks(padded, lengths, P)
    weights = torch.randn_like(pooled)
    (pooled * weights).sum().backward()
    expected = [naive.pool_chunks(leaf, P) for leaf in leaves]
    torch.stack([(e * w[: len(e)]).sum() for e, w in zip(expected, weights, strict=True)]).sum().backward()
    for row, leaf in zip(padded.grad, leaves, strict=True):
        torch.testing.assert_close(row[: len(leaf)], leaf.grad, rtol=0, atol=1e-12)
        assert torch.equal(row[len(leaf) :], torch.zeros_like(row[len(leaf) :]))


def test_bfloat16_is_summed_in_float32_and_rounded_once() -> None:
    x_BTF = (100 + torch.randn(1, 48, 500)).bfloat16()  # 48: rounding before a division by 64 would not show
    pooled = pool_chunks(x_BTF, torch.tensor([48]), 48)
    assert pooled.dtype == torch.bfloat16
    assert torch.equal(pooled[0, 0], x_BTF[0].double().mean(0).float().bfloat16())


@pytest.mark.parametrize("length", LENGTHS)
def test_num_chunks_and_valid_chunks_count_what_the_loop_yields(length: int) -> None:
    expected = len(naive.pool_chunks(torch.zeros(length, 1), P))
    assert num_chunks(length, P) == expected
    assert int(valid_chunks(torch.tensor([length]), 10, P).sum()) == expected
