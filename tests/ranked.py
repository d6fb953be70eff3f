"""Several ranks, as tests run them: forked processes, gloo on loopback."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from helpers import FORK

from memspan.errors import RankError
from memspan.routing.ranks import Ranks

TIMEOUT = 20.0


def in_processes(do: Callable[[Ranks], Any], ranks: int, timeout: float = TIMEOUT) -> list[Any]:
    """What `do` returns in each of some processes, or the `RankError` it raises; None of one that was killed."""

    def joined() -> Any:
        try:
            return do(Ranks.join(torch.device("cpu"), timeout))
        except RankError as error:
            return error

    return as_started_by_torchrun(joined, ranks)


def as_started_by_torchrun(do: Callable[[], Any], ranks: int) -> list[Any]:
    """What `do` returns in each of some processes that have not met yet; None of one that was killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipes = [FORK.Pipe() for _ in range(ranks)]

    def child(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        pipes[rank][1].send(do())
        if dist.is_initialized():
            dist.destroy_process_group()

    processes = [FORK.Process(target=child, args=(rank,)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for _, theirs in pipes:
        theirs.close()  # so that a process which ends without a word is noticed
    try:
        return [_received(ours) for ours, _ in pipes]
    finally:
        for process in processes:
            process.join(20)
            process.kill()
            process.join()


def _received(pipe: Connection) -> Any:
    try:
        return pipe.recv() if pipe.poll(120) else None
    except EOFError:
        return None
