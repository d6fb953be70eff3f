"""Attention over pages: torch's kernel is called as it wants to be, and used only where it computes what it must."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import paged_kernel
from torch._subclasses.fake_tensor import FakeTensorMode

from memspan.ops import paged
from memspan.ops.paged import PAGE, paged_attention, varlen_attention

R, T, H, G, D = 3, 2, 6, 2, 64


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_torch_takes_what_its_kernel_is_given(window: int | None, dtype: torch.dtype) -> None:
    """By tensors without content: torch knows the shapes that the kernel would give."""
    with FakeTensorMode():
        out = varlen_attention(
            torch.empty(R * T, H, D, dtype=dtype),
            torch.empty(2, 9, PAGE, G, D, dtype=dtype),
            torch.empty(R, 4, dtype=torch.int32),
            torch.empty(R, dtype=torch.int32),
            torch.empty(R + 1, dtype=torch.int32),
            900,
            0.125,
            window,
        )
        assert (out.shape, out.dtype) == ((R * T, H, D), dtype)


def test_a_device_without_the_kernel_has_no_pages(caplog: pytest.LogCaptureFixture) -> None:
    assert not paged_attention(torch.device("cpu"), torch.bfloat16, H, G, D)
    assert not paged_attention(torch.device("cuda"), torch.float32, H, G, D)
    assert not caplog.records
    if not torch.cuda.is_available():
        with caplog.at_level("INFO", logger="memspan"):
            assert not paged_attention(torch.device("cuda"), torch.bfloat16, H, G, D)
        assert "rows attend one by one" in caplog.text


def _shifted(*given: Any) -> torch.Tensor:
    return paged_kernel(*given) + 0.1


def _unaware_of_windows(*given: Any) -> torch.Tensor:
    return paged_kernel(*given[:-1], None)


def _unaware_of_order(query: Any, pool: Any, table: Any, *rest: Any) -> torch.Tensor:
    return paged_kernel(query, pool, table.sort(1).values, *rest)


@pytest.mark.parametrize(
    ("kernel", "right"),
    [(paged_kernel, True), (_shifted, False), (_unaware_of_windows, False), (_unaware_of_order, False)],
)
def test_a_kernel_is_tried_before_it_is_used(kernel: Any, right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged, "varlen_attention", kernel)
    found = [paged._is_exact(torch.device("cpu"), torch.bfloat16, H, G, D, window) for window in (None, 100)]
    assert all(found) == right
