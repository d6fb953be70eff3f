"""Loading the model that a command works with, in one process or in each of several."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable
from contextlib import closing

import torch
from transformers.utils import logging as transformers_logging

from memspan.bank.remembered import names_for
from memspan.bank.texts import TextBank
from memspan.cli.choices import ModelChoice
from memspan.cli.process import started_by_torchrun
from memspan.generate.memory import Memory
from memspan.model.convert import LoadedModel, load
from memspan.model.runtime import pick_device
from memspan.routing.ranks import DEFAULT_TIMEOUT, Ranks, own_gpu

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


def load_model(choice: ModelChoice, banks: Iterable[os.PathLike[str]]) -> LoadedModel:
    """See `ModelChoice.load`."""
    path, adapter = choice.path, choice.adapter
    bank = next(filter(TextBank.exists, banks), None)
    if bank is not None:
        with closing(TextBank.open(bank)) as opened:
            path, adapter = names_for(opened, path, adapter)
    return load(
        path,
        adapter=adapter,
        dtype=choice.dtype,
        device=choice.device,
        weights=choice.weights,
        content_chunk=choice.content_chunk,
    )


def open_memory(choice: ModelChoice, bank: os.PathLike[str], namespace: str, create: bool) -> Memory:
    """See `ModelChoice.open`."""
    return Memory.open(
        bank,
        choice.path,
        adapter=choice.adapter,
        namespace=namespace,
        create=create,
        dtype=choice.dtype,
        device=choice.device,
        weights=choice.weights,
        content_chunk=choice.content_chunk,
        memory_budget=choice.memory_budget,
        answerer=choice.answerer,
        gpu_memory_budget=choice.gpu_memory_budget,
        ranks=None if create else joined_ranks(pick_device(choice.device)),
    )


def on_own_gpu(choice: ModelChoice) -> ModelChoice:
    """The choice on this rank's own GPU, where it is to be on one."""
    device = pick_device(choice.device)
    if device.type == "cpu" or device.index is not None:
        return choice
    return dataclasses.replace(choice, device=f"{device.type}:{own_gpu()}")


def joined_ranks(device: torch.device, timeout: float = DEFAULT_TIMEOUT) -> Ranks | None:
    """The processes that `torchrun` started, if it started several. Only the first prints."""
    if not started_by_torchrun():
        return None
    ranks = Ranks.join(device, timeout)
    if ranks.rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the process ends)
    return ranks
