"""What a training run is made of, as typed values: the fields of a recipe. Checked when built, never changed.

`memspan.train.recipe` reads them from YAML; only `memspan.train.setup` turns them into models, data and optimisers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from memspan.model.lora import SIDES, LoraSpec
from memspan.train.batch_settings import BatchSettings
from memspan.train.forward import LossWeights, Objective
from memspan.train.schedule import SCHEDULES, Schedule


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The model a run begins with.

    Attributes:
        checkpoint: folder of an MSA checkpoint. Empty: `source` is converted, or the default backbone taken.
        source: plain decoder (folder, .gguf file or hub id) that the run converts first.
        adapter: folder of trained weights to begin with.
        msa_layers, chunk_size, top_k_docs, template, similarity: of the conversion of `source`; empty or 0: defaults
            (see `MSAConfig`).
        initial_routers: what routers begin as where no adapter gives them: the checkpoint's (random, if it was just
            converted), or whitened, from the states of some training texts (see `memspan.train.whiten`).
        score_bias: first value of the learned multiple of a document's routing score that is added to the attention
            logits of its chunks (see `MSAConfig`). Without: none is added. It trains where a group matches it.
        compute: number format of the forward and backward passes: bfloat16 (mixed precision) or float32. Trained
            weights are kept in float32 either way.
        frozen_dtype: number format in which weights that are not trained are kept.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        sharding: with several processes: none (DDP) or fsdp2, which also shares out weights and optimiser state.
    """

    checkpoint: str = ""
    source: str = ""
    adapter: str = ""
    msa_layers: tuple[int, ...] = ()
    chunk_size: int = 0
    top_k_docs: int = 0
    template: str = ""
    similarity: str = ""
    initial_routers: Literal["checkpoint", "whitened"] = "checkpoint"
    score_bias: float | None = None
    compute: Literal["float32", "bfloat16"] = "float32"
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    sharding: Literal["none", "fsdp2"] = "none"

    def __post_init__(self) -> None:
        _check(not (self.checkpoint and self.source), "name a checkpoint or a source to convert, not both")
        _check(
            self.initial_routers == "checkpoint" or not self.adapter,
            "initial_routers: whitened would throw away the routers of the adapter",
        )
        converted = (self.msa_layers, self.chunk_size, self.top_k_docs, self.template, self.similarity)
        _check(
            bool(self.source) or not any(converted),
            "msa_layers, chunk_size, top_k_docs, template and similarity belong to the conversion of a source; "
            "a checkpoint has its own",
        )
        _check(min(self.chunk_size, self.top_k_docs) >= 0, "chunk_size and top_k_docs must not be negative")
        _check(
            self.frozen_dtype == "float32" or self.compute == "bfloat16",
            "frozen_dtype bfloat16 needs compute bfloat16: the two cannot be multiplied otherwise",
        )


@dataclass(frozen=True, slots=True)
class DataSettings:
    """What is learned from, and what is held out of it.

    Attributes:
        mixture: folder that `memspan data mix` wrote: questions to train on, a hold-out with its bank, weights.
        one_source_per_batch: whether a batch is drawn from one source (its negatives are then of its own kind).
        holdout_questions: of every source's hold-out, at most; 0: all.
        holdout_documents: of the hold-out's bank, at most, the questions' own first; 0: all.
    """

    mixture: str = ""
    one_source_per_batch: bool = True
    holdout_questions: int = 0
    holdout_documents: int = 0

    def __post_init__(self) -> None:
        _check(min(self.holdout_questions, self.holdout_documents) >= 0, "data: counts must not be negative")


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """Parameters that train together.

    Attributes:
        name: for messages and metrics.
        match: regular expression, searched in a parameter's name; the first group that matches takes it.
        lr_factor: times the phase's learning rate.
        weight_decay: of AdamW.
    """

    name: str
    match: str
    lr_factor: float = 1.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_pattern(self.match)
        _check(self.lr_factor > 0, f"the lr_factor of group {self.name!r} must be above 0")
        _check(self.weight_decay >= 0, f"the weight_decay of group {self.name!r} must not be negative")


@dataclass(frozen=True)
class LoraSettings(LoraSpec):
    """Low-rank changes that train. `lr_factor`, `weight_decay`: see `GroupSettings`."""

    lr_factor: float = 1.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        LoraSpec.__post_init__(self)
        _check(self.lr_factor > 0 and self.weight_decay >= 0, "lr_factor of LoRA is above 0, weight_decay not below")


@dataclass(frozen=True, slots=True)
class UntilSettings:
    """A recall that a phase must reach by its last step; it ends as soon as an evaluation shows it.

    Attributes:
        metric: as `metrics.jsonl` calls it.
        value: reached at or above.
        min_steps: the phase does not end before.
    """

    value: float
    metric: str = "fused/recall@16"
    min_steps: int = 0


@dataclass(frozen=True, slots=True)
class PhaseSettings:
    """A stretch of a run with its own loss and learning rate.

    Attributes:
        steps: optimiser steps, at most.
        lr: highest learning rate; groups multiply it by their factor.
        schedule: shape of the learning rate over the phase.
        warmup_steps: over which it rises from 0.
        final_lr: share of `lr` that the schedule ends at.
        loss: weights of the parts of the loss; without it, routing alone.
        batch: what the samples have the model write, over how many documents. A recipe's own `batch` is what is not
            said here.
        until: recall that the phase must reach: the gate of a curriculum's step.
    """

    name: str
    steps: int
    lr: float
    schedule: Schedule = "cosine"
    warmup_steps: int = 0
    final_lr: float = 0.0
    loss: LossWeights = field(default_factory=lambda: LossWeights(lm=0.0, routing=1.0))
    batch: BatchSettings = field(default_factory=BatchSettings)
    until: UntilSettings | None = None

    def __post_init__(self) -> None:
        where = f"phase {self.name!r}: "
        _check(self.steps >= 1, f"{where}steps must be at least 1")
        _check(self.lr > 0, f"{where}lr must be above 0")
        _check(self.schedule in SCHEDULES, f"{where}schedule must be one of {', '.join(SCHEDULES)}")
        _check(0 <= self.warmup_steps <= self.steps, f"{where}warmup_steps must be in 0..{self.steps}")
        _check(0 <= self.final_lr <= 1, f"{where}final_lr must be in 0..1")
        weights, shares = self.loss, self.batch
        _check(max(weights.lm, weights.routing, weights.fused, weights.teacher) > 0, f"{where}all weights are 0")
        _check(
            (shares.answer + shares.latent + shares.generate > 0) == (weights.lm > 0),
            f"{where}loss.lm and the batch's shares of answer, latent, generate go together: above 0, or 0",
        )


@dataclass(frozen=True, slots=True)
class StepSettings:
    """What an optimiser step reads.

    Attributes:
        questions: in a micro-batch. Its documents are the memory of all of them (in-batch negatives).
        micro_batches: in a step, over all processes together; their number must divide it.
    """

    questions: int = 16
    micro_batches: int = 1

    def __post_init__(self) -> None:
        _check(min(self.questions, self.micro_batches) >= 1, "questions and micro_batches must be at least 1")


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW. `clip`: largest norm of all gradients together; 0: not clipped."""

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip: float = 1.0

    def __post_init__(self) -> None:
        _check(0 <= self.beta1 < 1 and 0 <= self.beta2 < 1, "beta1 and beta2 must be in [0, 1)")
        _check(self.eps > 0 and self.clip >= 0, "eps must be above 0 and clip not negative")


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """What is measured during a run, on the hold-out.

    Attributes:
        every: optimiser steps between evaluations.
        batch: questions run at once.
        generations: questions for which the model also writes, where the phase trains it to; 0: none.
        max_new_tokens: of those.
    """

    every: int = 100
    batch: int = 16
    generations: int = 0
    max_new_tokens: int = 48

    def __post_init__(self) -> None:
        _check(min(self.every, self.batch, self.max_new_tokens) >= 1, "evaluation: counts must be at least 1")
        _check(self.generations >= 0, "evaluation.generations must not be negative")


@dataclass(frozen=True, slots=True)
class GateSettings:
    """A condition that stops a run which does not learn. It is looked at in evaluations from step `after` on.

    Attributes:
        kind: "floor": `metric` must be at least `value`. "untrained": it must exceed the untrained router's by
            `value`. "falling": the training loss `metric` must be below `value` times what it was at first, both over
            `window` steps.
        after: the first step at which the gate may stop the run.
    """

    kind: Literal["floor", "untrained", "falling"]
    after: int
    metric: str = ""
    value: float = 0.0
    window: int = 20

    def __post_init__(self) -> None:
        _check(self.after >= 1, "a gate's `after` must be at least 1")
        if self.kind == "floor":
            _check(self.value > 0, "a gate of kind floor needs a value above 0")
        if self.kind == "falling":
            _check(0 < self.value <= 1, "a gate of kind falling needs a value in (0, 1]")
            _check(self.after >= 2 * self.window >= 2, "a falling gate's `after` must span its window twice")


@dataclass(frozen=True, slots=True)
class StoppingSettings:
    """Early stopping: the run ends after `patience` evaluations in which `metric` did not rise by `min_delta`.

    patience 0: the run goes on to its end. The best evaluation is remembered either way.
    """

    metric: str = "fused/recall@16"
    patience: int = 0
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        _check(self.patience >= 0 and self.min_delta >= 0, "patience and min_delta must not be negative")


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """`every`: optimiser steps between checkpoints. `keep`: of the newest; the best one is kept beside them."""

    every: int = 200
    keep: int = 2

    def __post_init__(self) -> None:
        _check(self.every >= 1 and self.keep >= 1, "checkpoints: every and keep must be at least 1")


@dataclass(frozen=True, slots=True)
class TeacherSettings:
    """Who scores documents for the routers to learn from: "bm25", or a sentence-transformers model."""

    name: str = "bm25"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole run.

    Attributes:
        train: groups of parameters that train; the others are frozen.
        frozen_memory: keep documents' pooled hidden states instead of encoding them in every step, for runs in which
            nothing trains that shapes them (routers, query side). "batch": a batch has its own documents; "all": every
            question is asked of all of the training data.
        product: what the run leaves behind: an adapter (trained weights alone) or a whole checkpoint.
        product_dtype: number format of its weights.
        trackers: beside metrics.jsonl: tensorboard, wandb, trackio.
        corpus: files or a folder of plain text: questions are made from it, in the place of `data.mixture`.
        threads: CPU threads of torch; 0: torch's choice.
    """

    name: str
    phases: tuple[PhaseSettings, ...]
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    train: tuple[GroupSettings, ...] = ()
    lora: LoraSettings | None = None
    step: StepSettings = field(default_factory=StepSettings)
    objective: Objective = field(default_factory=Objective)
    frozen_memory: Literal["", "batch", "all"] = ""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    gates: tuple[GateSettings, ...] = ()
    early_stopping: StoppingSettings = field(default_factory=StoppingSettings)
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    teacher: TeacherSettings | None = None
    trackers: tuple[str, ...] = ()
    product: Literal["adapter", "checkpoint"] = "adapter"
    product_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    corpus: str = ""
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        _check(bool(self.name), "a recipe needs a name")
        _check(bool(self.phases), "a recipe needs at least one phase")
        names = [phase.name for phase in self.phases]
        _check(len(set(names)) == len(names), f"two phases have one name: {', '.join(names)}")
        _check(bool(self.train or self.lora), "nothing trains: name groups under `train`, or `lora`")
        groups = [group.name for group in self.train]
        _check(len(set(groups)) == len(groups), f"two groups have one name: {', '.join(groups)}")
        _check(bool(self.data.mixture or self.corpus), "nothing to learn from: name data.mixture, or a corpus")
        teaches = any(phase.loss.teacher > 0 for phase in self.phases)
        _check(teaches == (self.teacher is not None), "loss.teacher and `teacher` go together")
        for phase in self.phases:
            anchored, where = phase.loss.anchor > 0, f"phase {phase.name!r}: "
            _check(anchored == (phase.batch.anchors > 0), f"{where}loss.anchor and batch.anchors go together")
            _check(not anchored or self.lora is not None, "loss.anchor compares with the backbone: it needs `lora`")
        one_sided = self.lora is not None and len(self.lora.sides) < len(SIDES)
        _check(self.product == "adapter" or not one_sided, "LoRA of one side makes an adapter, not product: checkpoint")
        if self.frozen_memory:
            sides = self.lora.sides if self.lora else ()
            _check("document" not in sides, "frozen_memory: LoRA must not train the document side")
            altered = any(phase.batch.counterfactual > 0 for phase in self.phases)
            _check(not altered, "frozen_memory: counterfactual documents are new in every batch; set the share to 0")

    @property
    def steps(self) -> int:
        """Optimiser steps of all phases."""
        return sum(phase.steps for phase in self.phases)
