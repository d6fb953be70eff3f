"""Processes of one machine hold the weights of a run once: files are mapped, and converted by one process."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from helpers import tiny_tokenizer
from runs import SPEC, key_value_world, parts_of, random_model, small_recipe
from test_ddp import in_processes
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from memspan.config import MSAConfig
from memspan.model.adapter import save_adapter
from memspan.model.convert import load, save_checkpoint
from memspan.model.modeling import MSAForCausalLM, is_router
from memspan.train.loop import Trainer
from memspan.train.recipe import recipe_of
from memspan.train.settings import Recipe
from memspan.train.setup import load_model

WORLD = key_value_world(20, 4)


def checkpoint(folder: Path, hidden: int, dtype: torch.dtype) -> Path:
    """A checkpoint of random weights, stored in a number format."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=512, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=hidden // 4, max_position_embeddings=256,
        tie_word_embeddings=True,
    )  # fmt: skip
    backbone = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = MSAForCausalLM.from_backbone(backbone, MSAConfig(backbone_config=config, template=asdict(SPEC)), 0)
    save_checkpoint(torch.nn.Module.to(model, dtype), tiny_tokenizer(), folder)
    return folder


def recipe(path: Path, **changes: Any) -> Recipe:
    model = {"checkpoint": str(path), **changes.pop("model", {})}
    values = {
        "name": "once",
        "model": model,
        "corpus": "not read",
        "train": [{"name": "routers", "match": "router_"}],
        "phases": [{"name": "one", "steps": 2, "lr": 1e-3}],
    }
    return recipe_of({**values, **changes})


def adapter(folder: Path, path: Path, lora: bool) -> str:
    """Trained weights in float32, which bfloat16 does not hold."""
    changed = recipe(path, lora={"targets": r"layers\.3\..*(q|v)_proj$", "rank": 2} if lora else None)
    loaded, groups = load_model(changed, folder / "none")
    for group in groups:
        for name in group.parameters:
            torch.nn.init.normal_(loaded.model.get_parameter(name), std=0.1)
    save_adapter(loaded.model, folder, loaded.model.config.backbone_fingerprint or "")
    return str(folder)


LORA = {"targets": r"layers\.3\..*(q|v)_proj$", "rank": 2}
NEW_LORA = {"targets": r"layers\.2\..*q_proj$", "rank": 2}
BFLOAT16 = {"compute": "bfloat16", "frozen_dtype": "bfloat16"}


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("given", "changes"),
    [
        (None, {}),
        (None, {"model": BFLOAT16}),
        (None, {"lora": LORA, "train": [{"name": "top", "match": r"layers\.3\."}]}),
        ("routers", {}),
        ("routers", {"lora": NEW_LORA}),
        ("routers", {"model": BFLOAT16, "train": [{"name": "top", "match": "router_q"}]}),
        ("lora", {"lora": LORA}),
        ("lora", {"lora": NEW_LORA}),
        ("lora", {"lora": None, "product": "checkpoint"}),
    ],
    ids=["float32", "bfloat16", "LoRA", "routers given", "and LoRA", "in bfloat16", "LoRA given", "new", "merged"],
)
def test_mapped_weights_are_those_of_a_model_of_its_own(
    tmp_path: Path, stored: torch.dtype, given: str | None, changes: dict[str, Any]
) -> None:
    """Also those that an adapter gives in more digits than the checkpoint's format has."""
    path = checkpoint(tmp_path / "model", 64, stored)
    model = dict(changes.get("model", {}))
    if given:
        model["adapter"] = adapter(tmp_path / "adapter", path, given == "lora")
    asked = recipe(path, **{**changes, "model": model})
    (own, own_groups), (first, _), (second, groups) = (
        load_model(asked, tmp_path, shared=shared) for shared in (False, True, True)
    )
    assert groups == own_groups
    for name, parameter in own.model.named_parameters():
        for other in (first.model.get_parameter(name), second.model.get_parameter(name)):
            assert torch.equal(parameter, other) and parameter.dtype == other.dtype, name
            assert parameter.requires_grad == other.requires_grad
    assert own.model.config.router_trained == second.model.config.router_trained == (given is not None)
    if given == "routers":
        exact = load(path, adapter=model["adapter"], dtype="float32").model
        for name, parameter in own.model.named_parameters():
            if is_router(name):
                assert torch.equal(parameter, exact.get_parameter(name).to(parameter.dtype)), name
    assert len(list((tmp_path / "weights").glob("*.safetensors"))) == 1


def test_another_recipe_or_checkpoint_gets_a_file_of_its_own(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "model", 64, torch.bfloat16)
    load_model(recipe(path), tmp_path, shared=True)
    load_model(recipe(path, model=BFLOAT16), tmp_path, shared=True)
    changed = load(path, dtype="bfloat16")
    with torch.no_grad():
        next(p for name, p in changed.model.named_parameters() if is_router(name)).add_(1)
    other = tmp_path / "changed"
    save_checkpoint(changed.model, changed.template.tokenizer, other)
    found, _ = load_model(recipe(other), tmp_path, shared=True)
    assert len(list((tmp_path / "weights").glob("*.safetensors"))) == 3
    for name, parameter in found.model.named_parameters():
        assert torch.equal(parameter, changed.model.get_parameter(name).float()), name


class Made(TorchDispatchMode):
    """Counts the bytes of tensors that operations make on the CPU, views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func._overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.clone, torch.ops.aten.copy_):
            self.bytes += found.nbytes
        return found


def load_in(folder: Path, path: Path, rank: int, settings: dict[str, Any]) -> None:
    """Load as a process of a run does, wrap as training does, and read all; write what it took, in bytes."""
    torch.distributed.init_process_group("gloo")
    asked, process = recipe(path, model=settings), psutil.Process()
    if rank:
        torch.distributed.barrier()
    with Made() as made:
        loaded, groups = load_model(asked, folder, shared=True)
    if not rank:
        torch.distributed.barrier()
    torch.distributed.barrier()
    small = small_recipe()
    parts = parts_of(small, random_model(0, hidden=32, layers=2), WORLD, evaluate=False)
    own = type(parts)(loaded.model, groups, parts.collate, parts.stream, parts.objective)
    trainer = Trainer(small, own, folder / "run", cpu=True)
    read = sum(float(p.detach().sum()) for p in trainer.model.parameters())
    torch.distributed.barrier()
    maps = process.memory_maps(grouped=False) if psutil.LINUX else []
    of_file = [part for part in maps if Path(part.path).parent == folder / "weights"]
    weights = sum(p.nbytes for p in loaded.model.parameters())
    trained = sum(p.nbytes for p in trainer.trained.values())
    found = {"made": made.bytes, "weights": weights, "trained": trained, "read": read}
    found |= {"mapped": sum(part.rss for part in of_file), "written": sum(part.anonymous for part in of_file)}
    (folder / f"{rank}.json").write_text(json.dumps(found), "utf-8")
    torch.distributed.barrier()


@pytest.mark.parametrize("settings", [{}, BFLOAT16], ids=["float32", "bfloat16"])
def test_two_processes_hold_the_weights_once(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Bytes, not seconds. The second makes none, and both read one file; what either has of its own is what trains."""
    path = checkpoint(tmp_path / "model", 1024, torch.bfloat16)
    in_processes(lambda rank: load_in(tmp_path, path, rank, settings))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text("utf-8")) for rank in range(2))
    assert first["read"] == second["read"] and first["weights"] == second["weights"] > 8e7
    # A check that a checkpoint is what was saved looks at some numbers of each weight.
    assert second["made"] < 0.1 * second["weights"]
    if psutil.LINUX:  # which says what a process holds of a file: all that it reads, its own copy of what it writes
        for found in (first, second):
            assert found["mapped"] >= found["weights"]
            assert found["written"] < 1.1 * found["trained"] + 2**20
