"""Hosts on one machine (Linux): processes with a network namespace each, whose cables end in one switch.

The process that makes them is root in a network of its own: `own_network` gives the command that starts it so. The
switch is a bridge of the kernel. With slow links it is a process that holds every frame back, since few kernels have
tc's netem.
"""

from __future__ import annotations

import ctypes
import heapq
import itertools
import multiprocessing
import os
import select
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil
import torch
import torch.distributed as dist

_FORK: Any = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_TUNSETIFF, _TAP_WITHOUT_HEADER = 0x400454CA, 0x1002
_CABLE = "eth0"
_MOST_SECONDS = 600.0


def own_network(*command: str) -> list[str] | None:
    """The command in a network namespace whose only interface is loopback, as root there and nowhere else; None where
    the system lets nobody have one."""
    made = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    allowed = shutil.which("unshare") and shutil.which("ip")
    if not allowed or subprocess.run([*made, "true"], check=False, capture_output=True).returncode:
        return None
    return [*made, *command]


@dataclass(frozen=True, slots=True)
class Link:
    """A cable: seconds that a frame takes, and bits a second."""

    seconds: float
    bits_per_second: float


SLOW = Link(0.005, 1e9)


class Host:
    """A host, as its own process sees it.

    Attributes:
        rank: its number.
    """

    def __init__(self, rank: int, switch: Connection) -> None:
        self.rank, self._switch = rank, switch

    @staticmethod
    def received_bytes() -> int:
        """What came over the cable so far, headers included."""
        return psutil.net_io_counters(pernic=True)[_CABLE].bytes_recv

    def plug(self, rank: int, state: str) -> None:
        """Pull a host's cable out of the switch ("down"), or put it back ("up")."""
        self._switch.send((state, rank))
        self._switch.recv()


def on_hosts(do: Callable[[Host], Any], count: int, link: Link | None = None) -> list[Any]:
    """What `do` returns on each of some hosts, where the environment is that of a process that `torchrun` started.

    Args:
        link: of every host. Default: as fast as the kernel.
    """
    hosts, pipes, switch = [], [], None
    for rank in range(count):
        ours, theirs = _FORK.Pipe()
        hosts.append(_FORK.Process(target=_host, args=(do, rank, count, theirs)))
        hosts[-1].start()
        theirs.close()  # so that a host which ends without a word is noticed
        pipes.append(ours)
    try:
        switch = _plug([host.pid for host in hosts], pipes, link)
        return _served(pipes)
    finally:
        for process in [*hosts, *([switch] if switch else [])]:
            process.join(20 if process is not switch else 0)
            process.kill()
            process.join()
        for name in [*_bridges(count, link), *(f"port{rank}" for rank in range(count))]:
            _ip("link", "del", name, check=False)  # a port also goes with its host, some time later


def _host(do: Callable[[Host], Any], rank: int, count: int, pipe: Connection) -> None:
    """The process of a host."""
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "no network namespace")
    pipe.send("apart")
    pipe.recv()
    _ip("link", "set", "lo", "up")
    _ip("addr", "add", f"10.7.0.{rank + 1}/24", "dev", _CABLE)
    _ip("link", "set", _CABLE, "up")
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "10.7.0.1", "MASTER_PORT": "29511",
    }  # fmt: skip
    pipe.send(("done", do(Host(rank, pipe))))
    if dist.is_initialized():
        dist.destroy_process_group()


def _bridges(count: int, link: Link | None) -> list[str]:
    return [f"switch{rank}" for rank in range(count if link else 1)]


def _plug(pids: Sequence[int], pipes: Sequence[Connection], link: Link | None) -> Any:
    """Join the hosts, and let them go on; gives the process of a slow switch."""
    names = _bridges(len(pids), link)
    for name in names:
        _ip("link", "add", name, "type", "bridge")
        _ip("link", "set", name, "up")
    taps = [_tap(f"tap{rank}", name) for rank, name in enumerate(names)] if link else []
    for rank, (pid, pipe) in enumerate(zip(pids, pipes, strict=True)):
        assert pipe.recv() == "apart"
        _ip("link", "add", "name", f"port{rank}", "type", "veth", "peer", "name", _CABLE, "netns", pid)
        _ip("link", "set", f"port{rank}", "master", names[rank % len(names)], "up")
    switch = _FORK.Process(target=_forward, args=(taps, link), daemon=True) if link else None
    if switch:
        switch.start()
    for tap in taps:
        os.close(tap)
    for pipe in pipes:
        pipe.send("go")
    return switch


def _served(pipes: Sequence[Connection]) -> list[Any]:
    """Pull and plug cables as hosts ask for it, until all are done; None of a host that ended without a word."""
    found: dict[Connection, Any] = {}
    end = time.monotonic() + _MOST_SECONDS
    while len(found) < len(pipes) and time.monotonic() < end:
        for pipe in wait([pipe for pipe in pipes if pipe not in found], 1.0):
            assert isinstance(pipe, Connection)
            try:
                kind, value = pipe.recv()
            except EOFError:
                kind, value = "done", None
            if kind == "done":
                found[pipe] = value
            else:
                _ip("link", "set", f"port{value}", kind)
                pipe.send(kind)
    return [found.get(pipe) for pipe in pipes]


def _tap(name: str, bridge: str) -> int:
    """A port of a bridge whose frames a program reads and writes."""
    import fcntl  # Windows has none

    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP_WITHOUT_HEADER))
    _ip("link", "set", name, "master", bridge, "up")
    return tap


def _forward(taps: Sequence[int], link: Link) -> None:
    """Carry frames between the taps, each as late as the cable makes it."""
    free = dict.fromkeys(taps, 0.0)
    known: dict[bytes, int] = {}
    numbers, waiting = itertools.count(), list[tuple[float, int, int, bytes]]()
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for tap in select.select(taps, [], [], pause)[0]:
            frame = os.read(tap, 2**16)
            known[frame[6:12]] = tap
            free[tap] = max(free[tap], time.monotonic()) + 8 * len(frame) / link.bits_per_second
            meant = known.get(frame[:6])
            for other in [meant] if meant is not None else [one for one in taps if one != tap]:
                heapq.heappush(waiting, (free[tap] + link.seconds, next(numbers), other, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, other, frame = heapq.heappop(waiting)
            os.write(other, frame)


def _ip(*words: object, check: bool = True) -> None:
    subprocess.run(["ip", *map(str, words)], check=check, stderr=None if check else subprocess.DEVNULL)
