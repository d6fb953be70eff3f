"""`Trainer`: a run from its first step to its last, stopped and resumed as if it had not been.

OUT/recipe.json       the recipe, with everything that was overridden
OUT/metrics.jsonl     a line per step and per evaluation
OUT/checkpoints/      see `memspan.train.checkpoint`
OUT/run.lock          held while a process works in OUT
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from filelock import FileLock, Timeout

from memspan.errors import CheckpointError, NotLearning, TrainingError
from memspan.files import write_text
from memspan.model.modeling import MSAForCausalLM, is_router
from memspan.train.checkpoint import Checkpoint, CheckpointStore
from memspan.train.data.stream import ExampleStream
from memspan.train.frozen import FrozenMemory
from memspan.train.gates import History, check_gates, check_phase, out_of_patience, phase_reached
from memspan.train.parallel import Runner, agreed, assign, layer_classes_of, like, make_accelerator, prepared, whole
from memspan.train.parameters import ParameterGroup
from memspan.train.progress import RouterProgress
from memspan.train.recipe import plain
from memspan.train.schedule import lr_share
from memspan.train.settings import Objective, PhaseSettings, Recipe
from memspan.train.step import Collate, MicroBatch, TeacherScores, accumulate, micro_batches, refuse_bad
from memspan.train.trackers import MetricsFile

RECIPE_FILE, METRICS_FILE, CHECKPOINTS = "recipe.json", "metrics.jsonl", "checkpoints"
# What may differ when a run is resumed: how it is watched, and what is still to come.
_CHANGEABLE = {
    "checkpoints",
    "evaluation",
    "gates",
    "early_stopping",
    "trackers",
    "phases",
    "product",
    "product_dtype",
}
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")

Ended = Literal["done", "stopped early", "interrupted"]


@dataclass(frozen=True)
class RunParts:
    """What a run is made of; `memspan.train.setup` makes it of a recipe.

    Attributes:
        groups: what trains (see `choose_parameters`).
        collate: per phase, in order.
        stream: of this process (rank and world are its own matter).
    """

    model: MSAForCausalLM
    groups: tuple[ParameterGroup, ...]
    collate: tuple[Collate, ...]
    stream: ExampleStream
    objective: Objective
    evaluator: RouterProgress | None = None
    teacher: TeacherScores | None = None
    frozen: FrozenMemory | None = None


@dataclass(frozen=True, slots=True)
class RunEvent:
    """What a run reports after every step and every evaluation."""

    step: int
    steps: int
    phase: str
    kind: Literal["train", "evaluation"]
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended.

    Attributes:
        reason: in words, where it stopped early.
        best_step: of the last phase's best evaluation; the last step where nothing was evaluated.
    """

    ended: Ended
    steps: int
    best_step: int
    reason: str = ""
    references: Mapping[str, float] | None = None
    evaluations: Sequence[Mapping[str, float]] = ()


@dataclass(frozen=True, slots=True)
class _Position:
    """Where a run stands: `step` of the run and `phase_step` of the phase are done."""

    step: int = 0
    phase: int = 0
    phase_step: int = 0
    phase_done: bool = False


class Trainer:
    """Runs a recipe's phases in a folder.

    Raises (on `run`):
        TrainingError: the folder holds another run, a number is not finite.
        NotLearning: a gate stopped the run; its checkpoint is written.
        CheckpointError: a checkpoint cannot be written or read.
    """

    def __init__(
        self,
        recipe: Recipe,
        parts: RunParts,
        out: Path,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        tell: Callable[[RunEvent], None] = lambda _: None,
        cpu: bool = False,
    ) -> None:
        """
        Args:
            should_stop: asked after every step; then the run is saved and left.
            tell: hears of every step; in the first process only.
            cpu: use no GPU though there is one.
        """
        self.recipe, self.parts, self.out = recipe, parts, out
        self._should_stop, self._tell = should_stop, tell
        self.accelerator = make_accelerator(recipe.model, layer_classes_of(parts.model), recipe.trackers, out, cpu)
        world = self.accelerator.num_processes
        if recipe.step.micro_batches % world:
            raise TrainingError(
                f"{recipe.step.micro_batches} micro-batches cannot be shared out to {world} processes; set "
                f"step.micro_batches to a multiple of {world}"
            )
        self._prepare()
        self.store = CheckpointStore(out / CHECKPOINTS, recipe.checkpoints.keep)
        self.metrics = MetricsFile(out / METRICS_FILE)
        self.history, self._at = History(), _Position()
        self._saved_step = -1

    def _prepare(self) -> None:
        model = self.parts.model
        if self.recipe.model.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
        self.runner = prepared(self.accelerator, model)
        # Sharding puts others in their place, so parameters are looked up afterwards.
        self.model = cast(Runner, self.accelerator.unwrap_model(self.runner)).model
        self.parameters = dict(self.model.named_parameters())
        settings = self.recipe.optimizer
        groups = [
            {"params": [self.parameters[name] for name in group.parameters], "weight_decay": group.weight_decay}
            for group in self.parts.groups
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(settings.beta1, settings.beta2), eps=settings.eps)

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """What trains, by name."""
        return {name: self.parameters[name] for group in self.parts.groups for name in group.parameters}

    @property
    def kept(self) -> dict[str, torch.nn.Parameter]:
        """What a checkpoint keeps, by name: what trains, and all routers, which may have begun whitened."""
        return {name: p for name, p in self.parameters.items() if is_router(name)} | self.trained

    def run(self, resume: bool = False) -> RunResult:
        """Train to the end of the last phase, or until something ends the run.

        Args:
            resume: go on from the newest checkpoint of `out`, if there is one.
        """
        with self._locked():
            self._begin(resume)
            try:
                ended, reason = self._loop()
            except NotLearning:
                self._save()
                raise
            finally:
                for tracker in self.accelerator.trackers:
                    tracker.finish()
            self._save()
        done = self._at.step
        return RunResult(ended, done, self._best_step(), reason, self.history.references, self.history.evaluations)

    def _loop(self) -> tuple[Ended, str]:
        while True:
            phase = self._phase()
            if phase is None:
                return "done", ""
            stop = self._train_step(phase)
            reason = self._evaluate(phase) if self._evaluation_due(phase) else ""
            if reason:
                return "stopped early", reason
            if self._at.step % self.recipe.checkpoints.every == 0:
                self._save()
            if stop:
                return "interrupted", ""

    def _phase(self) -> PhaseSettings | None:
        """The phase to go on with: the next one, where this is done."""
        while self._at.phase < len(self.recipe.phases):
            phase = self.recipe.phases[self._at.phase]
            if not self._at.phase_done and self._at.phase_step < phase.steps:
                return phase
            if not self._at.phase_done and self.history.evaluations:
                check_phase(phase, self.history)
            self._at = replace(self._at, phase=self._at.phase + 1, phase_step=0, phase_done=False)
        return None

    def _train_step(self, phase: PhaseSettings) -> bool:
        """One optimizer step. Returns whether some process was asked to stop."""
        started = time.perf_counter()
        batches = self._draw()
        self._set_lr(phase)
        losses = accumulate(
            self.accelerator,
            self.runner,
            batches,
            self.parts.objective,
            phase.loss,
            self.parts.teacher,
            self.parts.frozen,
            self._should_stop,
        )
        norm = self._clip()
        refuse_bad(self.accelerator, [] if torch.isfinite(norm) else [", ".join(b.questions) for b in batches])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._at = replace(self._at, step=self._at.step + 1, phase_step=self._at.phase_step + 1)
        self.history.add_losses({name: losses.values[name] for name in losses.values if name.count("/") == 1})
        rates = {f"lr/{g.name}": s["lr"] for g, s in zip(self.parts.groups, self.optimizer.param_groups, strict=True)}
        seconds = {"seconds": time.perf_counter() - started}
        self._report(phase, "train", {**losses.values, "grad_norm": float(norm), **rates, **seconds})
        return losses.stop

    def _draw(self) -> list[MicroBatch]:
        settings, accelerator = self.recipe, self.accelerator
        collate, place = self.parts.collate[self._at.phase], (accelerator.process_index, accelerator.num_processes)
        count, stream = settings.step.micro_batches, self.parts.stream
        return micro_batches(lambda: next(stream), collate, settings.seed, self._at.step, count, *place)

    def _set_lr(self, phase: PhaseSettings) -> None:
        share = lr_share(self._at.phase_step, phase.steps, phase.schedule, phase.warmup_steps, phase.final_lr)
        for group, settings in zip(self.parts.groups, self.optimizer.param_groups, strict=True):
            settings["lr"] = phase.lr * group.lr_factor * share

    def _clip(self) -> torch.Tensor:
        limit = self.recipe.optimizer.clip or float("inf")
        return whole(cast(torch.Tensor, self.accelerator.clip_grad_norm_(list(self.trained.values()), limit))).cpu()

    def _evaluation_due(self, phase: PhaseSettings) -> bool:
        if self.parts.evaluator is None:
            return False
        return self._at.step % self.recipe.evaluation.every == 0 or self._at.phase_step == phase.steps

    def _evaluate(self, phase: PhaseSettings) -> str:
        """Measure, look at gates, keep the best. Returns why the run should stop early."""
        assert self.parts.evaluator is not None, "evaluations are due where there is an evaluator"
        values = self._measured(lambda model: self.parts.evaluator.measure(model, phase))  # type: ignore[union-attr]
        self.history.evaluations.append({"step": float(self._at.step), "phase": float(self._at.phase), **values})
        self._report(phase, "evaluation", values)
        reached = phase_reached(phase, self._at.phase_step, self.history)
        self._at = replace(self._at, phase_done=reached)
        check_gates(self.recipe.gates, self.history)
        if self._best_step() == self._at.step:
            self._save()
        return out_of_patience(self.recipe.early_stopping, self.history)

    def _measured(self, measure: Callable[[MSAForCausalLM], dict[str, float]]) -> dict[str, float]:
        """Run a measurement in every process (sharded weights need them all); all go by the first one's figures."""
        self.model.eval()
        with torch.no_grad():
            values = agreed(self.accelerator, self.runner(measure))
        self.model.train()
        return values

    def _best_step(self) -> int:
        if not self.history.evaluations:
            return self._at.step
        return int(self.history.evaluations[self.history.best(self.recipe.early_stopping.metric)]["step"])

    def _report(self, phase: PhaseSettings, kind: Literal["train", "evaluation"], values: Mapping[str, float]) -> None:
        if not self.accelerator.is_main_process:
            return
        self.metrics.write({"step": self._at.step, "kind": kind, "phase": phase.name, **values})
        if self.recipe.trackers:
            self.accelerator.log(dict(values), step=self._at.step)
        self._tell(RunEvent(self._at.step, self.recipe.steps, phase.name, kind, values))

    # Beginning, saving, resuming -------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other runs out of the folder."""
        if not self.accelerator.is_main_process:
            yield
            return
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.out / "run.lock", timeout=0):
                yield
        except Timeout as error:
            raise TrainingError(f"another process is training in {self.out}; name another --out") from error

    def _begin(self, resume: bool) -> None:
        found = bool(self.store.steps())
        if found and not resume:
            raise TrainingError(f"{self.out} holds a run already; go on with it (--resume), or name another --out")
        if found:
            self._resume()
        elif self.parts.evaluator is not None:
            evaluator = self.parts.evaluator
            self.history.references = self._measured(evaluator.references)
        if self.accelerator.is_main_process:
            self.metrics.keep_until(self._at.step)
            if not found and self.history.references:
                self.metrics.write({"step": 0, "kind": "references", **self.history.references})
            write_text(self.out / RECIPE_FILE, json.dumps(plain(self.recipe), indent=2) + "\n")
        if self.recipe.trackers:
            self.accelerator.init_trackers(self.recipe.name)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        checkpoint = self.store.load()
        self._refuse_other_recipe(checkpoint.state["recipe"])
        saved, kept = checkpoint.trained, self.kept
        wrong = [n for n, p in kept.items() if n not in saved or saved[n].shape != p.shape] + [*saved.keys() - kept]
        if wrong:
            raise CheckpointError(f"the checkpoint of {self.out} is of another shape: it does not fit {wrong[0]}")
        for name, parameter in kept.items():
            assign(parameter, saved[name])
            if f"{name}/step" in checkpoint.optimizer:
                self.optimizer.state[parameter] = self._moments(name, parameter, checkpoint.optimizer)
        self._at = _Position(**checkpoint.state["position"])
        self._saved_step = self._at.step
        self.history = History(**checkpoint.state["history"])
        self.parts.stream.load_state_dict(checkpoint.state["stream"])

    def _moments(
        self, name: str, parameter: torch.Tensor, saved: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        moments = {moment: saved[f"{name}/{moment}"] for moment in _MOMENTS}
        return {key: value.clone() if key == "step" else like(parameter, value) for key, value in moments.items()}

    def _refuse_other_recipe(self, saved: Mapping[str, Any]) -> None:
        ours = plain(self.recipe)
        changed = [key for key in ours if key not in _CHANGEABLE and not _same(ours[key], saved.get(key))]
        if changed:
            raise TrainingError(
                f"the run in {self.out} began with another recipe ({', '.join(changed)} differ); resume with that one, "
                f"{self.out / RECIPE_FILE}, or name another --out"
            )

    def _save(self) -> None:
        """Write a checkpoint of this step, once. Parameters are gathered by all processes, and written by the first."""
        if self._saved_step == self._at.step:
            return
        kept = {name: whole(parameter) for name, parameter in self.kept.items()}
        optimizer: dict[str, torch.Tensor] = {}
        for name, parameter in self.trained.items():
            state = self.optimizer.state.get(parameter, {})
            optimizer |= {f"{name}/{moment}": whole(state[moment]) for moment in _MOMENTS if moment in state}
        state = {
            "step": self._at.step,
            "position": asdict(self._at),
            "history": asdict(self.history),
            "stream": self.parts.stream.state_dict(),
            "recipe": plain(self.recipe),
        }
        failure = ""
        if self.accelerator.is_main_process:
            try:
                self.store.save(Checkpoint(kept, optimizer, state), self._best_step())
            except CheckpointError as error:
                failure = str(error)
        failure = agreed(self.accelerator, failure)
        if failure:
            raise CheckpointError(failure)
        self._saved_step = self._at.step


def _same(ours: Any, saved: Any) -> bool:
    """Whether settings are equal to saved ones; a key that settings no longer have does not count."""
    if isinstance(ours, dict) and isinstance(saved, dict):
        return all(_same(value, saved.get(key)) for key, value in ours.items())
    return ours == saved
