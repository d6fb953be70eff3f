"""One process or many: Accelerate's wrapping, sums over processes, sharded parameters as whole tensors.

Collectives of training are called here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, FullyShardedDataParallelPlugin, ProjectConfiguration
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from memspan.files import whole_file
from memspan.model.modeling import MSAForCausalLM, decoder_layers, is_router
from memspan.train.settings import ModelSettings

Item = TypeVar("Item")
Result = TypeVar("Result")


class Runner(nn.Module):
    """The module that is wrapped: everything that runs the model in training is called through it.

    DDP and FSDP do their work around the forward of what they wrap; a step of ours is several forwards of the model,
    and so is an evaluation.
    """

    def __init__(self, model: MSAForCausalLM) -> None:
        super().__init__()
        self.model = model
        # DDP would write what it sends, so that processes no longer share its pages (`map_weights`).
        same = [f"model.{name}" for name, p in model.named_parameters() if not p.requires_grad and not is_router(name)]
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, same)

    def forward(self, do: Callable[..., Any], *args: Any) -> Any:
        """`do(model, *args)`."""
        return do(self.model, *args)


def make_accelerator(
    settings: ModelSettings,
    layer_classes: Sequence[str],
    trackers: Sequence[str] = (),
    out: Path | None = None,
    cpu: bool = False,
) -> Accelerator:
    """The processes of this run, as the launcher (`torchrun`, `accelerate launch`) has set them up; alone, one.

    Args:
        layer_classes: names of the decoder layers' classes, the units that FSDP2 shards.
        cpu: use no GPU though there is one.
    """
    AcceleratorState._reset_state()  # an earlier run of this process may have used another number format
    return Accelerator(
        cpu=cpu,
        mixed_precision="bf16" if settings.compute == "bfloat16" else "no",
        log_with=list(trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(out)) if out else None,
        # A batch that only routes does not reach the language-model head.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        fsdp_plugin=sharding_plugin(layer_classes) if settings.sharding == "fsdp2" else None,
    )


def prepared(accelerator: Accelerator, model: MSAForCausalLM) -> nn.Module:
    """The `Runner` of a model, wrapped."""
    # Accelerate's CPU has a number, so "moving" to it would copy.
    placed = [False] if accelerator.device.type == model.device.type == "cpu" else None
    return accelerator.prepare(Runner(model), device_placement=placed)


def sharding_plugin(layer_classes: Sequence[str]) -> FullyShardedDataParallelPlugin:
    """FSDP2 over decoder layers of these classes. Accelerate uses it where every process has a GPU, else DDP."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=list(layer_classes),
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )


def layer_classes_of(model: MSAForCausalLM) -> list[str]:
    """Names of the classes of the decoder's layers: several where some hold LoRA of one side."""
    layers = decoder_layers(model.backbone, range(model.config.text_config.num_hidden_layers))
    return sorted({type(layer).__name__ for layer in layers.values()})


def summed(accelerator: Accelerator, values: Sequence[float]) -> list[float]:
    """Numbers added up over all processes, in Python: not every device has float64."""
    return [sum(theirs) for theirs in zip(*gathered(accelerator, list(values)), strict=True)]


def gathered(accelerator: Accelerator, value: Any) -> list[Any]:
    """A value of every process, in order."""
    if accelerator.num_processes == 1:
        return [value]
    values: list[Any] = [None] * accelerator.num_processes
    dist.all_gather_object(values, value)
    return values


def agreed(accelerator: Accelerator, value: Any) -> Any:
    """The first process's value: what decisions are made by must be the same in all."""
    return gathered(accelerator, value)[0]


def shared_out(model: MSAForCausalLM, do: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`do(item)` of every item, in order: each runs in one process, and all processes get its result.

    Every process calls this with the same items.

    Args:
        do: gives something to pickle, its tensors on the CPU. Sharded weights need all processes in each forward, so
            it must then run as many forwards for one item as for another; a process without an item left does its
            first again.
    """
    if not dist.is_initialized():
        return [do(item) for item in items]
    rank, size = dist.get_rank(), dist.get_world_size()
    own = {place: do(items[place]) for place in range(rank, len(items), size)}
    if is_sharded(model) and len(items) % size and rank >= len(items) % size:
        do(items[min(rank, len(items) - 1)])
    return [_sent(own.get(place), place % size) for place in range(len(items))]


def _sent(value: Any, source: int) -> Any:
    """What rank `source` has, in all processes."""
    values = [value]
    dist.broadcast_object_list(values, source)
    return values[0]


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a part of the weights, which they gather in every forward."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def map_weights(model: nn.Module, path: Path, convert: Callable[[bool], Result]) -> Result:
    """Give the processes of a machine the same weights once: one converts them into a file, and all map it.

    Pages of the file that a process does not write to are in memory once, however many processes map them.

    Args:
        path: of the file; its name tells the weights.
        convert: brings the model to its parameters, and, where it is given True, to their number formats.

    Returns:
        What `convert` gives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        is_first = not path.is_file()
        found = convert(is_first)
        if is_first:
            with whole_file(path) as partial:
                save_file({name: p.detach().contiguous() for name, p in model.named_parameters()}, partial)
    with safe_open(path, "pt") as file:
        for name, parameter in model.named_parameters():
            parameter.data = file.get_tensor(name)
    return found


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A parameter, gradient or optimizer state as a plain tensor; gathered, where it is sharded."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assign(target: torch.Tensor, value: torch.Tensor) -> None:
    """Put a whole tensor into a parameter, sharded or not."""
    with torch.no_grad():
        target.copy_(like(target, value))


def like(target: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A whole tensor on the device of a parameter, sharded as it is."""
    value = value.to(target.device)
    if isinstance(target, DTensor):
        return distribute_tensor(value, target.device_mesh, target.placements)
    return value
