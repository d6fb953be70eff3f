"""One optimizer step: micro-batches of all processes, one loss over their global counts (paper 3.3).

The LM loss is divided by the learned tokens of the whole step, the routing losses by its questions, over all
micro-batches and processes: how a step is cut into micro-batches and ranks does not change its gradients.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import torch
from accelerate import Accelerator

from memspan.errors import TrainingError
from memspan.model.modeling import MSAForCausalLM
from memspan.text.questions import Question
from memspan.train.batch import TrainBatch
from memspan.train.forward import training_forward
from memspan.train.frozen import FrozenMemory
from memspan.train.losses import LOSSES, counts
from memspan.train.parallel import gathered, summed
from memspan.train.settings import LossWeights, Objective

Collate = Callable[[Sequence[Question], Random], TrainBatch]
TeacherScores = Callable[[TrainBatch], torch.Tensor]
"""A teacher's scores of a batch's documents, `[B, N]`."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A batch with the questions it was made of, for messages, and the seed of its forward."""

    questions: tuple[str, ...]
    batch: TrainBatch
    seed: int


@dataclass(frozen=True, slots=True)
class StepLosses:
    """Means over a whole step, all processes together; `stop`: whether one of them was asked to stop."""

    values: Mapping[str, float]
    stop: bool


def micro_batches(
    draw: Callable[[], Sequence[Question]], collate: Collate, seed: int, step: int, count: int, rank: int, world: int
) -> list[MicroBatch]:
    """This process's micro-batches of a step.

    What is random in the one numbered n (of all processes) comes from the run's seed, the step and n, so that a
    resumed run, and one of another number of processes, makes the same.

    Args:
        draw: this process's next questions.
        count: micro-batches of the step, over all processes.
    """
    found = []
    for number in range(rank, count, world):
        questions, key = draw(), f"{seed}:{step}:{number}"
        batch = collate(questions, Random(key))
        names = tuple(question.id for question in questions)
        found.append(MicroBatch(names, batch, int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")))
    return found


def accumulate(
    accelerator: Accelerator,
    runner: torch.nn.Module,
    batches: Sequence[MicroBatch],
    objective: Objective,
    weights: LossWeights,
    teacher: TeacherScores | None = None,
    frozen: FrozenMemory | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> StepLosses:
    """Compute a step's gradients, summed over processes, without clipping them or changing a parameter.

    Args:
        runner: the prepared `Runner`.
        batches: of this process; every process has as many.
        frozen: see `training_forward`.

    Raises:
        TrainingError: a loss is not finite; the message names the questions of the batch.
    """
    own = [counts(micro.batch, teacher is not None) for micro in batches]
    found = summed(accelerator, [sum(count[name] for count in own) for name in LOSSES])
    shared = {name: round(count) for name, count in zip(LOSSES, found, strict=True)}
    sums: dict[str, float] = {}
    bad: list[str] = []
    for place, micro in enumerate(batches):
        last = place == len(batches) - 1
        torch.manual_seed(micro.seed)
        with contextlib.nullcontext() if last else accelerator.no_sync(runner):
            taught_by = teacher(micro.batch).to(accelerator.device) if teacher and weights.teacher else None
            arguments = (micro.batch.to(accelerator.device), objective, weights, shared, taught_by, frozen)
            loss, shown = runner(_losses, *arguments)
            # DDP and FSDP average over processes; a sum over their micro-batches is wanted.
            accelerator.backward(loss * accelerator.num_processes)
        for name, value in shown.items():
            sums[name] = sums.get(name, 0.0) + value
        if not all(map(math.isfinite, (*shown.values(), float(loss.detach())))):
            bad.append(", ".join(micro.questions))
    refuse_bad(accelerator, bad)
    names = sorted(sums)
    *totals, stop = summed(accelerator, [*(sums[name] for name in names), float(should_stop())])
    # Of a step in which nothing routes (or is written) there is no mean, rather than one of 0.
    values = {
        name: total / count for name, total in zip(names, totals, strict=True) if (count := shared[name.split("/")[1]])
    }
    return StepLosses(values, stop > 0)


def refuse_bad(accelerator: Accelerator, bad: Sequence[str]) -> None:
    """Stop all processes where one of them has met a number that is not finite.

    Args:
        bad: question ids of this process's batches that gave one.
    """
    found = [questions for process in gathered(accelerator, list(bad)) for questions in process]
    if found:
        raise TrainingError(
            f"the loss or its gradient is not a finite number, in the batch of these questions: {'; '.join(found)}. "
            "The last checkpoint is from before that; lower the learning rate, or leave the questions out, and resume"
        )


def _losses(
    model: MSAForCausalLM,
    batch: TrainBatch,
    objective: Objective,
    weights: LossWeights,
    shared: Mapping[str, int],
    teacher_scores_BN: torch.Tensor | None,
    frozen: FrozenMemory | None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """A micro-batch's part of the step's loss, and the sums that are shown."""
    terms = training_forward(model, batch, objective, teacher_scores_BN, frozen)
    loss = terms.total(weights, shared)
    if not loss.requires_grad:  # only the LM loss counts, and nothing is written in this batch
        loss = loss + 0 * next(p for p in model.parameters() if p.requires_grad).sum()
    shown = {"routing", "fused", *(name for name in LOSSES if weights.of(name))}
    sums = {f"loss/{name}": terms.sums[name] for name in shown}
    by_layer = terms.routing_by_layer.items()
    sums |= {f"loss/routing/{layer}": mean * terms.counts["routing"] for layer, mean in by_layer}
    return loss, {name: float(value.detach()) for name, value in sums.items()}
