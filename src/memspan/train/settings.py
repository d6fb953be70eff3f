"""What a training run is made of, as typed values: the fields of a recipe. Checked when built, never changed.

`memspan.train.recipe` reads them from YAML; only `memspan.train.setup` turns them into models, data and optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from memspan.model.lora import SIDES, LoraSpec
from memspan.text.packing import BATCH_TOKENS
from memspan.train.batch_settings import BatchSettings
from memspan.train.losses import LOSSES
from memspan.train.schedule import Schedule
from memspan.train.structure import STRICT, Above0, AtLeast0, Count, Names, Pattern, Positive, Share


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, slots=True, config=STRICT)
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
        compute: number format of the forward and backward passes: bfloat16 (mixed precision) or float32. Trained
            weights are kept in float32 either way.
        frozen_dtype: number format in which weights that are not trained are kept.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        sharding: with several processes: none (DDP) or fsdp2, which also shares out weights and optimizer state.
    """

    checkpoint: str = ""
    source: str = ""
    adapter: str = ""
    msa_layers: tuple[int, ...] = ()
    chunk_size: Count = 0
    top_k_docs: Count = 0
    template: str = ""
    similarity: str = ""
    initial_routers: Literal["checkpoint", "whitened"] = "checkpoint"
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
        _check(
            self.frozen_dtype == "float32" or self.compute == "bfloat16",
            "frozen_dtype bfloat16 needs compute bfloat16: the two cannot be multiplied otherwise",
        )


@dataclass(frozen=True, slots=True, config=STRICT)
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
    holdout_questions: Count = 0
    holdout_documents: Count = 0


@dataclass(frozen=True, slots=True, config=STRICT)
class GroupSettings:
    """Parameters that train together.

    Attributes:
        name: for messages and metrics.
        match: regular expression, searched in a parameter's name; the first group that matches takes it.
        lr_factor: times the phase's learning rate.
        weight_decay: of AdamW.
    """

    name: str
    match: Pattern
    lr_factor: Above0 = 1.0
    weight_decay: AtLeast0 = 0.0


@dataclass(frozen=True, config=STRICT)
class LoraSettings(LoraSpec):
    """Low-rank changes that train. `lr_factor`, `weight_decay`: see `GroupSettings`."""

    lr_factor: Above0 = 1.0
    weight_decay: AtLeast0 = 0.0


@dataclass(frozen=True, slots=True, config=STRICT)
class LossWeights:
    """How much each loss counts. The paper's warm-up: lm 0.1, routing 1; then lm 1, routing 0.1.

    Attributes:
        lm: next-token loss of the responses.
        routing: eq. 5, averaged over MSA layers.
        fused: eq. 5 on the mean of a document's scores over all MSA layers, by which documents are ranked.
        teacher: divergence of the scores from a teacher's, averaged over MSA layers.
        anchor: divergence from the model as it was (`memspan.train.anchor`); needs `BatchSettings.anchors`.
        other: of losses that packages or the recipe's plug-ins register (`memspan.train.losses`), by name.
    """

    lm: AtLeast0 = 1.0
    routing: AtLeast0 = 0.1
    fused: AtLeast0 = 0.0
    teacher: AtLeast0 = 0.0
    anchor: AtLeast0 = 0.0
    other: Mapping[str, AtLeast0] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.other:
            _check(name in LOSSES, f"there is no loss {name!r}; name the file that registers it under `plugins`")

    def of(self, name: str) -> float:
        """The weight of a loss by its name."""
        return self.other.get(name) or getattr(self, name, 0.0)


@dataclass(frozen=True, slots=True, config=STRICT)
class Objective:
    """What a step computes; checked when built.

    Attributes:
        temperature: tau of eq. 5, and of a document's scores beside a teacher's.
        decoupled: positives do not compete with each other (eq. 5); else one softmax over all documents.
        fused_temperature: tau of the fused loss.
        teacher_temperature: what a teacher's scores are divided by.
        use_memory: contexts attend to the documents routed to, as when serving.
        allow_dense: let a batch have no more documents than a layer selects; routing is then not sparse.
        batch_tokens: documents are encoded, and contexts run, in sub-batches of at most so many padded tokens.
    """

    temperature: Above0 = 0.1
    decoupled: bool = True
    fused_temperature: Above0 = 0.1
    teacher_temperature: Above0 = 0.1
    use_memory: bool = True
    allow_dense: bool = False
    batch_tokens: Positive = BATCH_TOKENS


@dataclass(frozen=True, slots=True, config=STRICT)
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


@dataclass(frozen=True, slots=True, config=STRICT)
class PhaseSettings:
    """A stretch of a run with its own loss and learning rate.

    Attributes:
        steps: optimizer steps, at most.
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
    steps: Positive
    lr: Above0
    schedule: Schedule = "cosine"
    warmup_steps: Count = 0
    final_lr: Share = 0.0
    loss: LossWeights = field(default_factory=lambda: LossWeights(lm=0.0, routing=1.0))
    batch: BatchSettings = field(default_factory=BatchSettings)
    until: UntilSettings | None = None

    def __post_init__(self) -> None:
        where = f"phase {self.name!r}: "
        _check(self.warmup_steps <= self.steps, f"{where}warmup_steps must be in 0..{self.steps}")
        weights, shares = self.loss, self.batch
        _check(any(weights.of(name) for name in LOSSES if name != "anchor"), f"{where}all weights are 0")
        _check(
            (shares.answer + shares.latent + shares.generate > 0) == (weights.lm > 0),
            f"{where}loss.lm and the batch's shares of answer, latent, generate go together: above 0, or 0",
        )


@dataclass(frozen=True, slots=True, config=STRICT)
class StepSettings:
    """What an optimizer step reads.

    Attributes:
        questions: in a micro-batch. Its documents are the memory of all of them (in-batch negatives).
        micro_batches: in a step, over all processes together; their number must divide it.
    """

    questions: Positive = 16
    micro_batches: Positive = 1


@dataclass(frozen=True, slots=True, config=STRICT)
class OptimizerSettings:
    """AdamW. `clip`: largest norm of all gradients together; 0: not clipped."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: Above0 = 1e-8
    clip: AtLeast0 = 1.0


@dataclass(frozen=True, slots=True, config=STRICT)
class EvaluationSettings:
    """What is measured during a run, on the hold-out.

    Attributes:
        every: optimizer steps between evaluations.
        batch: questions run at once.
        generations: questions for which the model also writes, where the phase trains it to; 0: none.
        max_new_tokens: of those.
    """

    every: Positive = 100
    batch: Positive = 16
    generations: Count = 0
    max_new_tokens: Positive = 48


@dataclass(frozen=True, slots=True, config=STRICT)
class GateSettings:
    """A condition that stops a run which does not learn. It is looked at in evaluations from step `after` on.

    Attributes:
        kind: "floor": `metric` must be at least `value`. "untrained": it must exceed the untrained router's by
            `value`. "falling": the training loss `metric` must be below `value` times what it was at first, both over
            `window` steps.
        after: the first step at which the gate may stop the run.
    """

    kind: Literal["floor", "untrained", "falling"]
    after: Positive
    metric: str = ""
    value: float = 0.0
    window: int = 20

    def __post_init__(self) -> None:
        if self.kind == "floor":
            _check(self.value > 0, "a gate of kind floor needs a value above 0")
        if self.kind == "falling":
            _check(0 < self.value <= 1, "a gate of kind falling needs a value in (0, 1]")
            _check(self.after >= 2 * self.window >= 2, "a falling gate's `after` must span its window twice")


@dataclass(frozen=True, slots=True, config=STRICT)
class StoppingSettings:
    """Early stopping: the run ends after `patience` evaluations in which `metric` did not rise by `min_delta`.

    patience 0: the run goes on to its end. The best evaluation is remembered either way.
    """

    metric: str = "fused/recall@16"
    patience: Count = 0
    min_delta: AtLeast0 = 0.0


@dataclass(frozen=True, slots=True, config=STRICT)
class CheckpointSettings:
    """`every`: optimizer steps between checkpoints. `keep`: of the newest; the best one is kept beside them."""

    every: Positive = 200
    keep: Positive = 2


@dataclass(frozen=True, slots=True, config=STRICT)
class TeacherSettings:
    """Who scores documents for the routers to learn from: "bm25", or a sentence-transformers model."""

    name: str = "bm25"


@dataclass(frozen=True, slots=True, config=STRICT)
class Recipe:
    """A whole run.

    Attributes:
        train: groups of parameters that train; the others are frozen.
        frozen_memory: "batch" keeps documents' pooled hidden states instead of encoding them in every step, for runs in
            which nothing trains that shapes them (routers, query side).
        product: what the run leaves behind: an adapter (trained weights alone) or a whole checkpoint.
        product_dtype: number format of its weights.
        trackers: beside metrics.jsonl: tensorboard, wandb, trackio.
        plugins: Python files, read first; they may register losses of their own (`memspan.train.losses.LOSSES`).
        corpus: files or a folder of plain text: questions are made from it, in the place of `data.mixture`.
    """

    name: str
    phases: tuple[PhaseSettings, ...]
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    train: tuple[GroupSettings, ...] = ()
    lora: LoraSettings | None = None
    step: StepSettings = field(default_factory=StepSettings)
    objective: Objective = field(default_factory=Objective)
    frozen_memory: Literal["", "batch"] = ""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    gates: tuple[GateSettings, ...] = ()
    early_stopping: StoppingSettings = field(default_factory=StoppingSettings)
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    teacher: TeacherSettings | None = None
    trackers: tuple[str, ...] = ()
    product: Literal["adapter", "checkpoint"] = "adapter"
    product_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    plugins: Names = ()
    corpus: str = ""
    seed: int = 0

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
            _check(not anchored or self.lora is not None, "loss.anchor compares with the model before: it needs `lora`")
        one_sided = self.lora is not None and len(self.lora.sides) < len(SIDES)
        _check(self.product == "adapter" or not one_sided, "LoRA of one side makes an adapter, not product: checkpoint")
        if self.frozen_memory:
            sides = self.lora.sides if self.lora else ()
            _check("document" not in sides, "frozen_memory: LoRA must not train the document side")
            altered = any(phase.batch.counterfactual > 0 for phase in self.phases)
            _check(not altered, "frozen_memory: counterfactual documents are new in every batch; set the share to 0")

    @property
    def steps(self) -> int:
        """Optimizer steps of all phases."""
        return sum(phase.steps for phase in self.phases)
