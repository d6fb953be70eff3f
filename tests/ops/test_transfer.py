"""Tensors on their way to the model's device."""

from __future__ import annotations

import pytest
import torch

from memspan.ops.transfer import to_device

CPU = torch.device("cpu")


def test_what_is_there_already_is_not_copied() -> None:
    tensor = torch.randn(3, 4)
    assert to_device(tensor, CPU) is tensor


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_to_a_gpu_hold_what_was_handed_in() -> None:
    cuda = torch.device("cuda")
    # What was handed in is gone before any copy need be done.
    copies = [to_device(torch.full((1024, 257), float(number)), cuda) for number in range(50)]
    for number, copy in enumerate(copies):
        assert copy.is_cuda and bool((copy == number).all())
    assert to_device(torch.empty(0, 3), cuda).shape == (0, 3)
    assert to_device(copies[0], cuda) is copies[0]
    assert torch.equal(to_device(torch.arange(6).view(2, 3).T, cuda).cpu(), torch.arange(6).view(2, 3).T)
