"""Moving tensors to the model's device and back: the one place that knows of page-locked memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Where torch holds on to page-locked memory until its copy is done.
_PAGE_LOCKED = ("cuda", "xpu")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of ordinary memory on a device; the tensor itself where it is there already.

    A copy to a GPU with memory of its own goes by way of page-locked memory and does not wait for itself: what is
    launched behind it on the same stream does. torch keeps such memory, and gives it out again only when the copy is
    done.
    """
    if device.type not in _PAGE_LOCKED or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def start_to_host(tensor: Tensor) -> Tensor:
    """A tensor on the CPU. From a GPU its copy is only begun: it is there when a later copy of the same stream is."""
    if tensor.device.type not in _PAGE_LOCKED:
        return tensor.cpu()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def launched(device: torch.device) -> Callable[[], None]:
    """What waits until all that was launched on a device so far is done."""
    if device.type not in _PAGE_LOCKED:
        return lambda: None
    event = torch.Event(device)
    event.record()
    return event.synchronize
