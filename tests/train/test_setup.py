"""A recipe becomes a run and its product: from the command line, on a tiny backbone."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save_backbone
from typer.testing import CliRunner

from memspan.cli import app
from memspan.errors import RecipeError, TrainingError
from memspan.model.adapter import save_adapter
from memspan.model.convert import load
from memspan.model.lora import lora_modules
from memspan.model.modeling import routed_modules
from memspan.train.checkpoint import CheckpointStore
from memspan.train.recipe import recipe_of
from memspan.train.setup import build_run, load_model

ROOT = Path(__file__).parents[2]
NOTES = ROOT / "examples" / "notes"
ROUTER_KEY = "backbone.model.layers.2.self_attn.router_k_proj.weight"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    save_backbone(folder)
    return folder


@pytest.fixture(scope="module")
def distilled(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A short run of recipes/distill.yaml over the example notes, by the command."""
    out = tmp_path_factory.mktemp("runs") / "distill"
    return out, train(out, *SHORT, f"model.source={backbone}")


SHORT = (
    f"corpus={NOTES}", "model.chunk_size=16", "model.top_k_docs=2", "phases.distill.steps=4", "evaluation.every=2",
    "phases.distill.warmup_steps=1", "step.questions=4", "batch.num_documents=12", "gates=[]", "checkpoints.keep=9",
)  # fmt: skip


def train(out: Path, *changes: str, code: int = 0) -> dict[str, Any]:
    words = ["train", str(ROOT / "recipes" / "distill.yaml"), *changes, "--out", str(out), "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if code == 0 else {"error": result.stderr}


def test_the_command_distils_routers_into_an_adapter(distilled: tuple[Path, dict[str, Any]]) -> None:
    out, shown = distilled
    assert (shown["ended"], shown["steps"], shown["product"]) == ("done", 4, str(out / "adapter"))
    assert shown["best_step"] in (2, 4)
    assert 0 <= shown["references"]["untrained/fused/recall@16"] <= 1 < 2 * shown["references"]["bm25/recall@16"]
    plain, trained = load(out / "model", dtype="bfloat16"), load(out / "model", adapter=out / "adapter")
    assert trained.model.config.router_trained and not plain.model.config.router_trained
    best = CheckpointStore(out / "checkpoints", 1).load(shown["best_step"]).trained
    for name, parameter in trained.model.named_parameters():
        if name in best:
            assert torch.equal(parameter, best[name].to(torch.bfloat16).to(parameter.dtype)), name
        else:
            assert torch.equal(parameter, plain.model.get_parameter(name).to(parameter.dtype)), name
    assert len(best) == 2 * len(trained.model.config.layers)


def test_a_finished_run_is_not_begun_again_and_resumes_to_the_same(
    distilled: tuple[Path, dict[str, Any]], backbone: Path
) -> None:
    out, shown = distilled
    changes = (*SHORT, f"model.source={backbone}")
    assert "holds a run already" in train(out, *changes, code=1)["error"]
    words = ["train", str(ROOT / "recipes" / "distill.yaml"), *changes, "--out", str(out), "--json", "--resume"]
    assert json.loads(CliRunner().invoke(app, words).stdout) == shown


def test_a_dry_run_says_what_it_would_do_and_trains_nothing(backbone: Path, tmp_path: Path) -> None:
    words = ["train", str(ROOT / "recipes" / "distill.yaml"), *SHORT, f"model.source={backbone}", "--dry-run", "--json"]
    shown = json.loads(CliRunner().invoke(app, [*words, "--out", str(tmp_path / "run")]).stdout)
    assert shown["trained_parameters"] == {"routers": 2 * 64 * (64 + 32)}  # two layers; hidden 64, W 64 and 32
    assert shown["documents_per_batch"] == 12 and shown["phases"] == {"distill": 4}
    assert not (tmp_path / "run" / "checkpoints").exists() and not (tmp_path / "run" / "metrics.jsonl").exists()


def lora_recipe(distilled: Path, **changes: Any) -> Any:
    values = {
        "name": "lora",
        "model": {"checkpoint": str(distilled / "model"), "adapter": str(distilled / "adapter")},
        "corpus": str(NOTES),
        "train": [{"name": "routers", "match": "router_"}],
        "lora": {"targets": r"layers\.3\..*\.(q|v)_proj$", "rank": 2, "lr_factor": 0.5},
        "phases": [{"name": "one", "steps": 2, "lr": 1e-3}],
    }
    return recipe_of({**values, **changes})


def test_routers_begin_whitened(backbone: Path, tmp_path: Path) -> None:
    values = {
        "name": "white",
        "model": {"source": str(backbone), "initial_routers": "whitened"},
        "corpus": str(NOTES),
        "train": [{"name": "routers", "match": "router_"}],
        "phases": [{"name": "one", "steps": 2, "lr": 1e-3}],
    }
    run = build_run(recipe_of(values), tmp_path, tell=lambda _: None)
    for attention in routed_modules(run.loaded.model):
        query = attention.router_q_proj.weight.view(2, 2, -1)  # H=4, G=2: both heads of a group have nearly one map
        assert bool((torch.nn.functional.cosine_similarity(query[:, 0], query[:, 1], dim=-1) > 0.9).all())
    plain, _ = load_model(recipe_of(values), tmp_path)
    assert not torch.equal(plain.model.get_parameter(ROUTER_KEY), run.loaded.model.get_parameter(ROUTER_KEY))
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    told: list[str] = []
    build_run(recipe_of(values), tmp_path, tell=told.append)
    assert not any("whitening" in line for line in told), "a run that goes on has its routers in its checkpoint"
    with pytest.raises(RecipeError, match="would throw away the routers"):
        recipe_of({**values, "model": {"adapter": "somewhere", "initial_routers": "whitened"}})


def test_whitened_keys_of_a_router_stay_though_only_its_queries_train(backbone: Path, tmp_path: Path) -> None:
    changes = [*SHORT, f"model.source={backbone}", "model.initial_routers=whitened", "train.0.match=router_q"]
    train(tmp_path / "run", *changes, "phases.distill.steps=2")
    begun = load(tmp_path / "run" / "model", adapter=tmp_path / "run" / "adapter").model.get_parameter(ROUTER_KEY)
    plain = load(tmp_path / "run" / "model", dtype=str(begun.dtype).removeprefix("torch."))
    assert not torch.equal(begun, plain.model.get_parameter(ROUTER_KEY)), "the product has them"
    train(tmp_path / "run", *changes, "--resume")
    resumed = load(tmp_path / "run" / "model", adapter=tmp_path / "run" / "adapter").model
    assert torch.equal(resumed.get_parameter(ROUTER_KEY), begun), "so has one of a run that was resumed"


def test_a_run_goes_on_from_an_adapter(distilled: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    first, _ = distilled
    recipe = lora_recipe(first)
    loaded, groups = load_model(recipe, tmp_path)
    served = load(first / "model", adapter=first / "adapter", dtype="float32")
    assert {group.name: len(group.parameters) for group in groups} == {"routers": 4, "lora": 4}
    for name, parameter in served.model.named_parameters():
        assert torch.equal(loaded.model.get_parameter(name), parameter), name
    # An adapter with LoRA is gone on with as it is, not merged.
    with torch.no_grad():
        loaded.model.get_parameter(groups[1].parameters[1]).fill_(0.5)
    belongs_to = loaded.model.config.backbone_fingerprint
    assert belongs_to
    save_adapter(loaded.model, tmp_path / "second", belongs_to)
    model = {"checkpoint": str(first / "model"), "adapter": str(tmp_path / "second")}
    again, _ = load_model(lora_recipe(first, model=model), tmp_path)
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(again.model.get_parameter(name), parameter), name
    with pytest.raises(TrainingError, match="does not fit the recipe's lora"):
        load_model(lora_recipe(first, model=model, lora={"targets": r"layers\.3\..*q_proj$", "rank": 3}), tmp_path)
    with pytest.raises(TrainingError, match="has LoRA"):
        load_model(lora_recipe(first, model=model, lora=None), tmp_path)


def test_lora_of_an_adapter_that_the_recipe_does_not_name_is_kept(
    distilled: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """New LoRA of the question side beside it: what encodes documents, and so a bank, stays."""
    first, _ = distilled
    model, _ = load_model(lora_recipe(first), tmp_path)
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if name.endswith("lora_b"):
                parameter.fill_(0.1)
    save_adapter(model.model, tmp_path / "kept", model.model.config.backbone_fingerprint or "")
    recipe = lora_recipe(
        first,
        model={"checkpoint": str(first / "model"), "adapter": str(tmp_path / "kept")},
        train=[{"name": "routers", "match": "router_q"}],
        lora={"targets": r"layers\.1\..*v_proj$", "rank": 2, "sides": ["query"]},
    )
    loaded, groups = load_model(recipe, tmp_path)
    assert {group.name: len(group.parameters) for group in groups} == {"routers": 2, "lora": 2}
    trained = {name for group in groups for name in group.parameters}
    for name, parameter in loaded.model.named_parameters():
        assert parameter.requires_grad == (name in trained), name
        if name.endswith("layers.1.self_attn.v_proj.lora_b"):
            parameter.data.fill_(0.1)
    save_adapter(loaded.model, tmp_path / "both", loaded.model.config.backbone_fingerprint or "")
    before, after = (
        load(first / "model", adapter=tmp_path / name, dtype="float32").model.config for name in ("kept", "both")
    )
    assert before.encoder_fingerprint == after.encoder_fingerprint
    assert next(iter(lora_modules(loaded.model))) == "model.layers.1.self_attn.v_proj"
    assert len(lora_modules(loaded.model)) == 1 + len(lora_modules(model.model))


def test_frozen_memory_gives_the_run_that_encodes_every_time(
    distilled: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """The same scores of the hold-out's bank, but for its ids."""
    first, _ = distilled
    run = build_run(lora_recipe(first, lora=None, frozen_memory="batch", step={"questions": 3}), tmp_path, tell=str)
    assert run.parts.frozen is not None
    batch = run.parts.collate[0](next(run.parts.stream), random.Random(0))
    assert set(batch.document_ids) <= set(run.parts.frozen.ids.values())
