"""Checkpoints of a run: everything that is needed to go on as if it had never stopped.

A checkpoint is a folder `step-00000200/` under the run's `checkpoints/`:

    trained.safetensors     the trained parameters and all routers (float32), by name; what else is frozen is not kept
    optimizer.safetensors   AdamW's moments and step count, by parameter name
    state.json              step, phase, place in the data, figures so far; format version

Random numbers have no state of their own: they are drawn from the run's seed and the step. No file is a pickle.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from memspan.errors import CheckpointError
from memspan.files import PARTIAL_SUFFIX, whole_folder

FORMAT = 1
_TRAINED, _OPTIMIZER, _STATE = "trained.safetensors", "optimizer.safetensors", "state.json"
_PREFIX = "step-"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        trained: parameters by name, and routers, which may have begun whitened.
        optimizer: `NAME/exp_avg`, `NAME/exp_avg_sq` and `NAME/step` of every parameter that has been updated.
        state: JSON values; `step` is among them.
    """

    trained: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run, in one folder. One process writes."""

    def __init__(self, folder: Path, keep: int) -> None:
        """`keep`: of the newest; the best is kept beside them."""
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, ascending."""
        names = [path.name for path in self.folder.glob(f"{_PREFIX}*")] if self.folder.is_dir() else []
        return sorted(int(name.removeprefix(_PREFIX)) for name in names if name.removeprefix(_PREFIX).isdigit())

    def path(self, step: int) -> Path:
        return self.folder / f"{_PREFIX}{step:08d}"

    def save(self, checkpoint: Checkpoint, best_step: int | None = None) -> Path:
        """Write a checkpoint, which appears whole or not at all, then remove those that are not to be kept.

        Writes `step-N/trained.safetensors`, `step-N/optimizer.safetensors` and `step-N/state.json`: into a folder of
        another name, synced to disk, then renamed.

        Args:
            best_step: the best so far; never removed.

        Raises:
            CheckpointError: it cannot be written (a full disk); those written before are untouched.
        """
        step = int(checkpoint.state["step"])
        target = self.path(step)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            with whole_folder(target) as partial:
                save_file(_storable(checkpoint.trained), partial / _TRAINED)
                save_file(_storable(checkpoint.optimizer), partial / _OPTIMIZER)
                state = json.dumps({**checkpoint.state, "format": FORMAT}, allow_nan=False)
                (partial / _STATE).write_text(state, encoding="utf-8")
                if target.exists():  # this step once more, after a resume: the same bytes
                    shutil.rmtree(target)
        except (OSError, SafetensorError) as error:
            kept = self.steps()
            left = f"the one of step {kept[-1]} stays" if kept else "there is none before it"
            message = f"cannot write the checkpoint {target} ({error}); {left}; make room and resume"
            raise CheckpointError(message) from error
        self._retain(best_step)
        return target

    def load(self, step: int | None = None) -> Checkpoint:
        """Read a checkpoint; the newest, where no step is named.

        Raises:
            CheckpointError: there is none, or it is damaged or of another format.
        """
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            raise CheckpointError(f"{self.folder} holds no checkpoint{'' if step is None else f' of step {step}'}")
        path = self.path(steps[-1] if step is None else step)
        try:
            state = json.loads((path / _STATE).read_text(encoding="utf-8"))
            if state["format"] != FORMAT:
                raise CheckpointError(f"{path} is of format {state['format']}, this version reads {FORMAT}")
            return Checkpoint(load_file(path / _TRAINED), load_file(path / _OPTIMIZER), state)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); remove it to resume from the one before") from error

    def _sweep(self) -> None:
        """Remove what an interrupted writer left."""
        for path in self.folder.glob(f".{_PREFIX}*{PARTIAL_SUFFIX}"):
            shutil.rmtree(path)

    def _retain(self, best_step: int | None) -> None:
        steps = self.steps()
        for step in steps[: -self.keep]:
            if step != best_step:
                shutil.rmtree(self.path(step), ignore_errors=True)


def _storable(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
