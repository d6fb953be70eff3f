"""Recipes: typed, checked when built, unknown keys refused by name, overridden by dotted keys."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import key_value_world, random_model, small_recipe, trainer_of

from memspan.errors import RecipeError
from memspan.train import losses
from memspan.train.recipe import load_recipe, plain, recipe_of

pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))

SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"mixture": "mixed"},
    "train": [{"name": "routers", "match": "router", "lr_factor": 20}],
    "batch": {"negatives": 3, "num_documents": 40},
    "phases": [
        {"name": "warm", "steps": 10, "lr": 1e-4, "loss": {"lm": 0}},
        {"name": "main", "steps": 5, "lr": 1e-5, "loss": {"lm": 1}, "batch": {"answer": 0.5, "num_documents": 80}},
    ],
}


def changed(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(SMALL), **changes}


def test_the_batch_of_a_recipe_is_what_its_phases_do_not_say() -> None:
    first, second = recipe_of(SMALL).phases
    assert (first.batch.negatives, first.batch.num_documents, first.batch.answer) == (3, 40, 0)
    assert (second.batch.negatives, second.batch.num_documents, second.batch.answer) == (3, 80, 0.5)


def test_a_recipe_written_as_json_is_read_back_the_same() -> None:
    recipe = recipe_of(SMALL)
    assert recipe_of(json.loads(json.dumps(plain(recipe)))) == recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed(sed=3), "unknown key 'sed'; did you mean 'seed'"),
        (changed(train=[{"name": "r", "mach": "x"}]), r"unknown key 'train.0.mach'; did you mean 'match'"),
        (changed(batch={"negative": 3}), "unknown key 'batch.negative'; did you mean 'negatives'"),
        (changed(objective={"frozen": True}), "unknown key 'objective.frozen'"),
        (changed(seed="three"), "seed must be a whole number, not 'three'"),
        (changed(seed=True), "seed must be a whole number"),
        (changed(seed=1.5), "seed must be a whole number"),
        (changed(product="zip"), "product must be 'adapter' or 'checkpoint', not 'zip'"),
        (changed(trackers="wandb"), "trackers must be a list"),
        (changed(model="x"), "model must be a table of keys and values, not 'x'"),
        (changed(model={"checkpoint": "a", "source": "b"}), "model: name a checkpoint or a source"),
        (changed(model={"checkpoint": "a", "chunk_size": 8}), "belong to the conversion"),
        (changed(train=[]), "nothing trains"),
        (changed(train=[{"name": "r", "match": "("}]), "no regular expression"),
        (changed(data={}), "nothing to learn from"),
        (changed(model={"frozen_dtype": "bfloat16"}), "needs compute bfloat16"),
        (changed(phases=[]), "at least one phase"),
        (changed(phases=[{"name": "a", "steps": 1}]), "phases.0.lr is missing"),
        (changed(phases=[{"name": "a", "steps": 1, "lr": 1, "loss": {"lm": 1}}]), "go together"),
        (changed(phases=[{"name": "a", "steps": 1, "lr": 1, "loss": {"lm": 0, "routing": 0}}]), "all weights are 0"),
        (changed(teacher={}), "loss.teacher and `teacher` go together"),
        (changed(gates=[{"kind": "floor", "after": 3}]), "needs a value above 0"),
        (changed(gates=[{"kind": "falling", "after": 3, "value": 0.5}]), "must span its window twice"),
        (changed(frozen_memory="batch", lora={"targets": "q"}), "must not train the document side"),
        (changed(product="checkpoint", lora={"targets": "q", "sides": ["query"]}), "of one side makes an adapter"),
        (changed(batch={"answer": 2.0}), "batch.answer must be less than or equal to 1, not 2.0"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_of(values)


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


YAML = """
name: small
data: {mixture: mixed}
train: [{name: routers, match: router}]
phases:
  - {name: warm, steps: 10, lr: 1e-4, loss: {lm: 0}}
  - {name: main, steps: 10, lr: 1e-4, loss: {lm: 0}}
"""


def test_overrides_reach_every_depth(tmp_path: Path) -> None:
    changes = "phases.warm.lr=2e-3 phases.1.steps=7 batch.negatives=5 data.mixture=z corpus=docs/"
    recipe = load_recipe(write(tmp_path, YAML), changes.split())
    assert [phase.lr for phase in recipe.phases] == [2e-3, 1e-4]  # YAML 1.1 reads 1e-4 as a text
    assert recipe.phases[1].steps == 7
    assert recipe.phases[0].batch.negatives == 5
    assert recipe.data.mixture == "z"
    assert recipe.corpus == "docs/"


def test_an_override_takes_an_item_out_of_a_list(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, YAML), ["phases.warm=null", "phases.main.until=null"])
    assert [phase.name for phase in recipe.phases] == ["main"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phases.cold=null", "no item 'cold'; there are warm, main"),
        ("seed", "is no override"),
        ("seed=[", "value of 'seed=\\[' is not YAML"),
        ("phases.cold.lr=1", "no item 'cold'; there are warm, main"),
        ("name.x=1", "name is a value"),
        ("model.gradient_checkpoint=true", "did you mean 'gradient_checkpointing'"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, YAML), [override])


@pytest.mark.parametrize(("text", "message"), [("- a", "must hold keys"), ("a: [", "is not YAML")])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, text))
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_one(path: Path) -> None:
    recipe = load_recipe(path, ["corpus=docs/"] if path.stem == "distill" else [])
    assert recipe.name == path.stem
    documents = [phase.batch.num_documents for phase in recipe.phases]
    assert documents == sorted(documents), "a curriculum grows"
    assert recipe.gates or all(phase.until for phase in recipe.phases[:-1]), "nothing would stop a run that is lost"


def test_the_recipes_of_the_paper_have_its_values() -> None:
    warmup, cpt, sft = (load_recipe(ROOT / "recipes" / f"{name}.yaml") for name in ("warmup", "cpt", "sft-64k"))
    assert (warmup.phases[0].lr, warmup.phases[0].loss.lm, warmup.phases[0].loss.routing) == (1e-4, 0.1, 1.0)
    assert (cpt.phases[0].lr, cpt.phases[0].loss.lm, cpt.phases[0].loss.routing) == (6e-6, 1.0, 0.1)
    assert [phase.batch.num_documents for phase in sft.phases] == [64, 128, 256, 512]
    assert all(phase.until for phase in sft.phases[:-1])


PLUGIN = """
from memspan.train.losses import Loss, register_loss

register_loss("spread", Loss(lambda out: out.scores_LBN.var(), lambda batch, taught: len(batch.questions)))
"""


def test_a_loss_of_ones_own_is_a_file_and_a_line(tmp_path: Path) -> None:
    """From outside the package: the recipe names the file, and the step learns by it, and shows it."""
    (tmp_path / "spread.py").write_text(PLUGIN, encoding="utf-8")
    phase = {"name": "a", "steps": 1, "lr": 1e-3, "loss": {"lm": 0, "routing": 0, "other": {"spread": 0.5}}}
    with pytest.raises(RecipeError, match="no loss 'spread'; name the file that registers it under `plugins`"):
        recipe_of(changed(phases=[phase]))
    try:
        recipe = recipe_of(changed(phases=[phase], plugins=str(tmp_path / "spread.py")))
        assert recipe_of(plain(recipe)) == recipe, "read once"
        world, model = key_value_world(16, 4), random_model(0, hidden=32, layers=2)
        small = small_recipe(phases=[phase], batch={"negatives": 0}, plugins=[str(tmp_path / "spread.py")])
        before = model.get_parameter("backbone.model.layers.1.self_attn.router_q_proj.weight").clone()
        trainer_of(small, tmp_path / "out", world, model).run()
        shown = json.loads((tmp_path / "out" / "metrics.jsonl").read_text("utf-8").splitlines()[1])
        assert shown["loss/spread"] > 0
        assert not torch.equal(before, model.get_parameter("backbone.model.layers.1.self_attn.router_q_proj.weight"))
        with pytest.raises(RecipeError, match="there is a loss 'spread' already"):
            losses.register_loss("spread", losses.LOSSES["lm"])
    finally:
        losses.LOSSES.pop("spread", None)
    with pytest.raises(RecipeError, match=r"the plug-in .*none\.py cannot be read"):
        recipe_of(changed(plugins=["none.py"]))
