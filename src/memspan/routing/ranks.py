"""`Ranks`: processes that share a bank, and every collective they take part in: Memory Parallel, and encoding together.

All ranks call the same functions in the same order. What a rank receives is counted.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
from collections.abc import Iterator, Sequence
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import psutil
import torch
import torch.distributed as dist

from memspan.errors import RankError

DEFAULT_TIMEOUT = 60.0


class Ranks:
    """A group of processes, one of which is this.

    Attributes:
        rank, size: this one's number, and how many there are.
        received_bytes: payload that other ranks sent to this one, so far.
    """

    def __init__(self, group: dist.ProcessGroup | None, timeout: float, device: torch.device | None = None) -> None:
        """
        Args:
            group: None: the default group, which must have been made with this timeout.
            timeout: seconds after which a rank that does not answer is lost.
            device: where tensors of collectives must lie: the CPU for gloo, else this rank's GPU.
        """
        self._group, self._timeout, self._device = group, timeout, device or torch.device("cpu")
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.received_bytes = 0

    @classmethod
    def join(cls, device: torch.device, timeout: float = DEFAULT_TIMEOUT) -> Ranks:
        """Meet the other processes that `torchrun` started: over their GPUs (nccl, xccl) where each has one, else gloo.

        Sets `GLOO_SOCKET_IFNAME` where it is not set: gloo would take the address of this machine's name, which is a
        loopback address on many machines, and others could not reach it.

        Raises:
            RankError: they did not all come, or there are more on this machine than GPUs.
        """
        backend, where = dist.get_default_backend_for_device(device), None
        if not dist.is_backend_available(backend):
            backend = "gloo"
        with _told(timeout):
            if backend != "gloo":
                where = torch.device(device.type, own_gpu())
                torch.accelerator.set_device_index(where.index)
            elif (name := outer_interface()) is not None:
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        return cls(None, timeout, where)

    def broadcast(self, tensor: torch.Tensor, source: int = 0) -> torch.Tensor:
        """What rank `source` has, on the device of `tensor`, which has the same shape and dtype in all ranks."""
        if self.rank == source:
            flat = tensor.contiguous().view(-1).view(torch.uint8).to(self._device, copy=True)
        else:  # an accelerator is not waited for
            self.received_bytes += tensor.nbytes
            flat = torch.empty(tensor.nbytes, dtype=torch.uint8, device=self._device)
        with _told(self._timeout):
            dist.broadcast(flat, source, group=self._group)
        return flat.to(tensor.device).view(tensor.dtype).view(tensor.shape)

    def gather(self, *tensors: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        """The tensors of all ranks, in order; one-dimensional, of the types that these have. They travel together."""
        own = torch.cat([tensor.contiguous().view(torch.uint8) for tensor in tensors])
        sizes = torch.stack(self.gather_even(torch.tensor([tensor.nbytes for tensor in tensors])))
        missing = int(sizes.sum(1).max()) - len(own)
        padded = torch.nn.functional.pad(own, (0, missing))
        found = self.gather_even(padded) if len(padded) else [padded] * self.size
        parts = [theirs[: sum(of_rank)].split(of_rank) for theirs, of_rank in zip(found, sizes.tolist(), strict=True)]
        # A copy of each part, since numbers must begin where their type may.
        return [tuple(x.clone().view(like.dtype) for x, like in zip(one, tensors, strict=True)) for one in parts]

    def gather_even(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all ranks, in order, where they have one shape and type."""
        self.received_bytes += tensor.nbytes * (self.size - 1)
        given = tensor.contiguous().to(self._device)
        found = [torch.empty_like(given) for _ in range(self.size)]
        with _told(self._timeout):
            dist.all_gather(found, given, group=self._group)
        return [theirs.cpu() for theirs in found]

    def largest(self, tensor: torch.Tensor) -> torch.Tensor:
        """Elementwise maximum over ranks; float32 or int64, of one shape."""
        return torch.stack(self.gather_even(tensor)).amax(0)

    def deal(self, values: Sequence[Any] | None = None) -> Any:
        """This rank's own of the values that rank 0 has, one a rank; anything that can be pickled.

        Raises:
            RankError: a rank was lost, or did not answer in time. Ranks trust each other: values are unpickled.
        """
        packed = [_packed(value) for value in values or ()]
        lengths = self.broadcast(torch.tensor([len(x) for x in packed] or [0] * self.size))
        longest = int(lengths.max())
        own = torch.empty(longest, dtype=torch.uint8, device=self._device)
        padded = [torch.nn.functional.pad(x, (0, longest - len(x))).to(self._device) for x in packed]
        with _told(self._timeout):
            dist.scatter(own, padded or None, 0, group=self._group)
        if self.rank:
            self.received_bytes += longest
        return _unpacked(own[: int(lengths[self.rank])])

    def collect(self, value: Any) -> list[Any]:
        """The values of all ranks, in order; for values and errors see `deal`."""
        return [_unpacked(theirs) for (theirs,) in self.gather(_packed(value))]

    def check_equal(self, what: str, values: Sequence[str]) -> None:
        """See that all ranks have the same.

        Raises:
            RankError: they have not; names the first that differs, with both values.
        """
        for value in values:
            gathered = self.gather(torch.tensor(list(value.encode()), dtype=torch.uint8))
            first, *others = (bytes(theirs.tolist()).decode() for (theirs,) in gathered)
            for rank, other in enumerate(others, start=1):
                if other != first:
                    raise RankError(
                        f"the ranks differ in {what}: rank 0 has {first}, rank {rank} has {other}; "
                        "start all with the same bank, model and options"
                    )


def own_gpu() -> int:
    """The number of this process's GPU: that of the process on this machine.

    Raises:
        RankError: the machine has fewer GPUs than processes.
    """
    number, present = int(os.environ["LOCAL_RANK"]), torch.accelerator.device_count()
    if number >= present:
        raise RankError(
            f"process {number} of this machine has no GPU of its own: there are {present}; start at most {present} "
            "processes on it, or give --device cpu"
        )
    return number


def outer_interface() -> str | None:
    """The network interface by which this machine reaches that of rank 0; None where that is loopback, or not known."""
    try:
        place = os.environ.get("MASTER_ADDR", "localhost"), int(os.environ.get("MASTER_PORT", "1"))
        family, kind, protocol, _, address = socket.getaddrinfo(*place, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # sends nothing
            own = probe.getsockname()[0]
    except (OSError, ValueError):
        return None  # no such place: joining says so
    if ip_address(own.partition("%")[0]).is_loopback:
        return None
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, found in interfaces if own in (one.address for one in found)), None)


def _packed(value: Any) -> torch.Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


def _unpacked(data: torch.Tensor) -> Any:
    return pickle.loads(data.cpu().numpy().tobytes())


@contextlib.contextmanager
def _told(timeout: float) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as error:
        raise RankError(
            f"another rank was lost, or did not answer within {timeout:.0f} s ({str(error).splitlines()[0][:200]}); "
            "see what the other ranks say, and start them all again"
        ) from error
