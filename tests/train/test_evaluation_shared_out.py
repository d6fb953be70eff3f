"""The processes of a run share out an evaluation's batches; scores and figures are bit for bit those of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import key_value_world, parts_of, random_model, small_recipe
from test_ddp import in_processes
from torch.distributed import init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from memspan.model.modeling import MSAForCausalLM, decoder_layers
from memspan.train.parallel import Runner, is_sharded, shared_out
from memspan.train.progress import RouterProgress
from memspan.train.settings import Recipe

WORLD = key_value_world(40, 21)


def made(**evaluation: Any) -> tuple[Recipe, MSAForCausalLM, RouterProgress]:
    """21 questions about 21 documents; `encode` batches of three or four documents."""
    recipe = small_recipe(
        evaluation={"every": 4, "batch": 4, "generations": 9, **evaluation}, objective={"batch_tokens": 64}
    )
    model = random_model(0, hidden=32, layers=2)
    parts = parts_of(recipe, model, WORLD)
    found = parts.evaluator
    assert found is not None
    found._encode_tokens = 64
    return recipe, model.eval(), found


@torch.no_grad()
def measured(shard: bool = False, **evaluation: Any) -> dict[str, Any]:
    """All that an evaluation shows, and what it ran: the sizes of batches that were encoded and asked."""
    recipe, model, progress = made(**evaluation)
    runner = Runner(model)
    if shard:
        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        for layer in decoder_layers(model.backbone, range(2)).values():
            fully_shard(layer, mesh=mesh)
        fully_shard(runner, mesh=mesh)
    assert is_sharded(model) == shard
    ran: dict[str, list[int]] = {"encoded": [], "forwards": []}
    encode, decoder = model.encode, model.backbone.base_model
    model.encode = lambda documents: ran["encoded"].append(len(documents)) or encode(documents)  # type: ignore[method-assign]
    decoder.register_forward_pre_hook(
        lambda _, args, kwargs: ran["forwards"].append(len((args or (kwargs["input_ids"],))[0])), with_kwargs=True
    )
    scores = runner(progress.scores)
    routing = {name: list(found) for name, found in ran.items()}
    figures = runner(progress.measure, recipe.phases[0]), runner(progress.references)
    return {"scores": scores.tolist(), "figures": figures, **routing}


def in_ranks(folder: Path, ranks: int, **settings: Any) -> list[dict[str, Any]]:
    def child(rank: int) -> None:
        init_process_group("gloo")
        (folder / f"{rank}.json").write_text(json.dumps(measured(**settings)), "utf-8")

    in_processes(child, ranks)
    return [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in range(ranks)]


@pytest.fixture(scope="module")
def threads() -> Any:
    """As the processes have: sums over other parts differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("ranks", "batch"),
    [(2, 4), (3, 4), (2, 64)],
    ids=["six batches", "over three", "fewer batches than processes"],
)
def test_processes_share_out_the_evaluation_of_one(tmp_path: Path, ranks: int, batch: int) -> None:
    alone = json.loads(json.dumps(measured(batch=batch)))
    found = in_ranks(tmp_path, ranks, batch=batch)
    for one in found:
        assert one["scores"] == alone["scores"] and one["figures"] == alone["figures"]
    for what in ("encoded", "forwards"):
        assert sorted(n for one in found for n in one[what]) == sorted(alone[what]), "each batch ran once"
        counts = [len(one[what]) for one in found]
        assert max(counts) - min(counts) <= (1 if what == "encoded" else 2)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("batch", [4, 8, 64])
def test_with_sharded_weights_every_process_runs_as_many_forwards(tmp_path: Path, batch: int) -> None:
    """Another number would leave a process waiting for weights that nobody sends."""
    alone = json.loads(json.dumps(measured(batch=batch)))
    found = in_ranks(tmp_path, 2, shard=True, batch=batch)
    assert len(found[0]["forwards"]) == len(found[1]["forwards"]) < max(2, len(alone["forwards"]))
    for one in found:
        assert one["figures"] == alone["figures"]
        torch.testing.assert_close(torch.tensor(one["scores"]), torch.tensor(alone["scores"]))


def test_alone_nothing_is_sent() -> None:
    model = random_model(0, hidden=32, layers=2)
    assert shared_out(model, lambda x: x + 1, [1, 2, 3]) == [2, 3, 4]
    assert shared_out(model, lambda x: x, []) == []


@pytest.mark.parametrize(("ranks", "count"), [(2, 0), (2, 1), (3, 2), (2, 5)])
def test_results_come_in_the_order_of_items(tmp_path: Path, ranks: int, count: int) -> None:
    def child(rank: int) -> None:
        init_process_group("gloo")
        model, ran = random_model(0, hidden=32, layers=2), list[int]()
        found = shared_out(model, lambda item: ran.append(item) or f"item {item} \u00e9", range(count))
        assert found == [f"item {item} \u00e9" for item in range(count)]
        assert ran == list(range(rank, count, ranks))

    in_processes(child, ranks)
