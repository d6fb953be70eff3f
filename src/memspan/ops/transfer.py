"""Moving tensors to the model's device and back: the one place that knows of page-locked memory."""

from __future__ import annotations

import functools
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


@functools.cache
def copy_stream(device: torch.device) -> torch.Stream | None:
    """The stream of copies that run beside what a device computes; None where there are no streams."""
    return torch.Stream(device) if device.type in _PAGE_LOCKED else None


def start_to_device(tensor: Tensor, device: torch.device) -> Callable[[], Tensor]:
    """Begin a copy to a device on a stream of its own, from any thread.

    Returns:
        What gives the copy. The stream that is current then waits for it on the device; the CPU does not.
    """
    stream = copy_stream(device)
    if stream is None:
        moved = to_device(tensor, device)
        return lambda: moved
    with stream:
        moved = to_device(tensor, device)
        done = stream.record_event()

    def copied() -> Tensor:
        current = torch.accelerator.current_stream(device)
        current.wait_event(done)
        moved.record_stream(current)  # its memory is the other stream's, which must not give it out before
        return moved

    return copied


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
