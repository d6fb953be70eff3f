"""Runs: stopped and resumed they are what they would have been; what ends them; what they leave behind."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import key_value_world, parts_of, random_model, small_recipe, trainer_of

from memspan.errors import CheckpointError, NotLearning, TrainingError
from memspan.train.checkpoint import CheckpointStore
from memspan.train.loop import RunEvent, RunResult, Trainer
from memspan.train.settings import Recipe
from memspan.train.trackers import check_trackers

WORLD = key_value_world(60, 24)


def saved(out: Path) -> dict[str, bytes]:
    """Bytes of the newest checkpoint's tensors."""
    store = CheckpointStore(out / "checkpoints", 1)
    path = store.path(store.steps()[-1])
    return {name: (path / name).read_bytes() for name in ("trained.safetensors", "optimizer.safetensors")}


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what a clock said."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def stop_after(step: int) -> tuple[Callable[[], bool], Callable[[RunEvent], None]]:
    """What asks a run to stop in a step, and what counts its steps."""
    seen = [0]

    def tell(progress: RunEvent) -> None:
        seen[0] = progress.step

    return (lambda: seen[0] >= step - 1), tell


def stopped_and_resumed(recipe: Recipe, out: Path, at: int) -> RunResult:
    should_stop, tell = stop_after(at)
    first = trainer_of(recipe, out, WORLD, should_stop=should_stop, tell=tell).run()
    assert (first.ended, first.steps) == ("interrupted", at)
    return trainer_of(recipe, out, WORLD).run(resume=True)


TWO_PHASES = [
    {"name": "one", "steps": 4, "lr": 1e-3, "loss": {"lm": 0.1}},
    {"name": "two", "steps": 4, "lr": 5e-4, "loss": {"lm": 1.0}, "warmup_steps": 2, "schedule": "linear"},
]


@pytest.mark.parametrize("at", [3, 4, 6])
def test_a_resumed_run_is_the_one_that_was_not_stopped(tmp_path: Path, at: int) -> None:
    recipe = small_recipe(phases=TWO_PHASES)
    whole = trainer_of(recipe, tmp_path / "whole", WORLD).run()
    resumed = stopped_and_resumed(recipe, tmp_path / "parts", at)
    assert resumed == whole
    assert saved(tmp_path / "parts") == saved(tmp_path / "whole")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_a_resumed_run_drops_out_the_same(tmp_path: Path) -> None:
    """A backbone with dropout: random numbers are drawn anew from the step, not carried on."""

    def dropping() -> Any:
        model = random_model(0, hidden=32, layers=2)
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.3
        return model

    recipe = small_recipe()
    trainer_of(recipe, tmp_path / "whole", WORLD, dropping()).run()
    should_stop, tell = stop_after(5)
    trainer_of(recipe, tmp_path / "parts", WORLD, dropping(), should_stop=should_stop, tell=tell).run()
    torch.manual_seed(99)
    trainer_of(recipe, tmp_path / "parts", WORLD, dropping()).run(resume=True)
    assert saved(tmp_path / "parts") == saved(tmp_path / "whole")
    trainer_of(recipe, tmp_path / "without", WORLD).run()
    assert saved(tmp_path / "without") != saved(tmp_path / "whole"), "nothing was dropped out"


def test_a_run_resumed_from_an_older_checkpoint_rewrites_what_came_after(tmp_path: Path) -> None:
    """As after a crash: metrics of steps that are done again stand there once."""
    recipe = small_recipe(checkpoints={"every": 3, "keep": 5})

    def run(resume: bool) -> None:
        parts = parts_of(recipe, random_model(0, hidden=32, layers=2), WORLD, evaluate=False)
        Trainer(recipe, parts, tmp_path, cpu=True).run(resume)

    run(resume=False)
    before = metrics(tmp_path), saved(tmp_path)
    store = CheckpointStore(tmp_path / "checkpoints", 1)
    assert store.steps() == [3, 6, 8]
    store.path(8).rename(tmp_path / "gone")
    (tmp_path / "metrics.jsonl").open("a").write('{"step": 9, "torn')
    run(resume=True)
    assert (metrics(tmp_path), saved(tmp_path)) == before


def test_a_signal_saves_the_run_and_leaves(tmp_path: Path) -> None:
    asked = []
    before = signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    try:
        trainer = trainer_of(
            small_recipe(),
            tmp_path,
            WORLD,
            should_stop=lambda: bool(asked),
            tell=lambda progress: signal.raise_signal(signal.SIGTERM) if progress.step == 2 else None,
        )
        result = trainer.run()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert result.ended == "interrupted"
    assert CheckpointStore(tmp_path / "checkpoints", 1).steps() == [result.steps]
    assert result.steps == 3


def test_a_loss_that_is_not_a_number_names_its_questions_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    recipe = small_recipe(checkpoints={"every": 2})
    trainer = trainer_of(recipe, tmp_path, WORLD)
    drawn: list[list[str]] = []
    collate = trainer.parts.collate[0]

    def spoiled(questions: Any, rng: Any) -> Any:
        drawn.append([question.id for question in questions])
        if len(drawn) == 6:  # the second micro-batch of the third step
            with torch.no_grad():
                trainer.parameters["backbone.model.layers.0.mlp.down_proj.weight"].fill_(float("nan"))
        return collate(questions, rng)

    object.__setattr__(trainer.parts, "collate", (spoiled,))
    with pytest.raises(TrainingError, match="not a finite number") as caught:
        trainer.run()
    assert all(", ".join(ids) in str(caught.value) for ids in drawn[4:])
    assert not any(", ".join(ids) in str(caught.value) for ids in drawn[:4])
    store = CheckpointStore(tmp_path / "checkpoints", 1)
    assert store.steps() == [2]
    assert all(bool(tensor.isfinite().all()) for tensor in store.load().trained.values())


def test_a_full_disk_ends_the_run_with_its_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memspan.train import checkpoint

    recipe, real = small_recipe(checkpoints={"every": 2}, evaluation={"every": 99}), checkpoint.save_file

    def full(tensors: Any, path: Path) -> None:
        if "00000004" in str(path):
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*the one of step 2 stays"):
        trainer_of(recipe, tmp_path, WORLD).run()
    monkeypatch.undo()
    assert trainer_of(recipe, tmp_path, WORLD).run(resume=True).steps == 8


def test_a_gate_stops_a_run_and_leaves_its_checkpoint(tmp_path: Path) -> None:
    recipe = small_recipe(gates=[{"kind": "floor", "metric": "fused/recall@1", "value": 0.99, "after": 4}])
    with pytest.raises(NotLearning, match="stopped at step 4"):
        trainer_of(recipe, tmp_path, WORLD).run()
    assert CheckpointStore(tmp_path / "checkpoints", 1).steps() == [4]
    # The gates of a recipe may be changed when it is resumed.
    assert trainer_of(small_recipe(), tmp_path, WORLD).run(resume=True).steps == 8


def test_a_phase_ends_at_its_recall_or_stops_the_run(tmp_path: Path) -> None:
    def phases(value: float) -> list[dict[str, Any]]:
        first = {**TWO_PHASES[0], "steps": 8, "until": {"value": value, "metric": "fused/recall@16"}}
        return [first, TWO_PHASES[1]]

    easy = trainer_of(small_recipe(phases=phases(0.01)), tmp_path / "easy", WORLD).run()
    assert easy.steps == 4 + 4
    phases_run = [line["phase"] for line in metrics(tmp_path / "easy") if line["kind"] == "train"]
    assert phases_run == ["one"] * 4 + ["two"] * 4
    with pytest.raises(NotLearning, match="phase 'one' has used its 8 steps"):
        trainer_of(small_recipe(phases=phases(1.0)), tmp_path / "hard", WORLD).run()


def test_a_run_that_gets_no_better_stops_early(tmp_path: Path) -> None:
    recipe = small_recipe(
        phases=[{**TWO_PHASES[0], "steps": 40, "lr": 1e-9}],
        evaluation={"every": 2},
        early_stopping={"patience": 2},
        checkpoints={"every": 100, "keep": 1},
    )
    result = trainer_of(recipe, tmp_path, WORLD).run()
    assert (result.ended, result.steps, result.best_step) == ("stopped early", 6, 2)
    assert CheckpointStore(tmp_path / "checkpoints", 1).steps() == [2, 6]


def test_a_run_of_a_release_with_more_keys_is_resumed(tmp_path: Path) -> None:
    recipe = small_recipe(phases=[TWO_PHASES[0]])
    trainer_of(recipe, tmp_path, WORLD).run()
    (state,) = tmp_path.glob("checkpoints/*/state.json")
    values = json.loads(state.read_text("utf-8"))
    values["recipe"]["model"]["score_bias"] = None
    state.write_text(json.dumps(values), encoding="utf-8")
    assert trainer_of(recipe, tmp_path, WORLD).run(resume=True).ended == "done"


@pytest.mark.parametrize(
    ("change", "message"),
    [({"seed": 1}, r"another recipe \(seed differ"), ({"objective": {"temperature": 0.2}}, r"\(objective differ")],
)
def test_a_run_is_not_resumed_by_another_recipe(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    recipe = small_recipe(phases=[TWO_PHASES[0]])
    trainer_of(recipe, tmp_path, WORLD).run()
    with pytest.raises(TrainingError, match=message):
        trainer_of(small_recipe(phases=[TWO_PHASES[0]], **change), tmp_path, WORLD).run(resume=True)
    with pytest.raises(TrainingError, match="holds a run already"):
        trainer_of(recipe, tmp_path, WORLD).run()
    with pytest.raises(CheckpointError, match="is of another shape: it does not fit"):
        trainer_of(recipe, tmp_path, WORLD, random_model(0, hidden=64, layers=2)).run(resume=True)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        trainer_of(small_recipe(), tmp_path, WORLD)._locked(),
        pytest.raises(TrainingError, match="another process is training"),
    ):
        trainer_of(small_recipe(), tmp_path, WORLD).run()


def test_only_what_is_named_trains_at_its_own_rate(tmp_path: Path) -> None:
    recipe = small_recipe(
        train=[{"name": "routers", "match": "router_q"}, {"name": "top", "match": r"layers\.1\.mlp", "lr_factor": 0.5}]
    )
    model = random_model(0, hidden=32, layers=2)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = trainer_of(recipe, tmp_path, WORLD, model)
    trainer.run()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == set(trainer.trained)
    kept = set(CheckpointStore(tmp_path / "checkpoints", 1).load().trained)
    assert kept == moved | {name for name in before if "router_k" in name}, "routers may have begun whitened"
    assert len(moved) == 1 + 3
    rates = [line for line in metrics(tmp_path) if line["kind"] == "train"][3]
    assert rates["lr/top"] == pytest.approx(0.5 * rates["lr/routers"]) and rates["lr/top"] > 0


def test_a_group_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"group 'none' matches no parameter .* one parameter is called backbone\."):
        trainer_of(small_recipe(train=[{"name": "none", "match": "embedding_bag"}]), tmp_path, WORLD)
    twice = [{"name": "routers", "match": "router_"}, {"name": "queries", "match": "router_q"}]
    with pytest.raises(ValueError, match="group 'queries' matches no parameter that an earlier group has not"):
        trainer_of(small_recipe(train=twice), tmp_path, WORLD)


def test_a_batch_that_has_nothing_to_learn_changes_nothing(tmp_path: Path) -> None:
    """Where the LM loss alone counts, and a batch has no response."""
    phase = {**TWO_PHASES[0], "loss": {"lm": 1.0, "routing": 0.0}}
    result = trainer_of(small_recipe(phases=[phase], batch={"answer": 0.3, "negatives": 0}), tmp_path, WORLD).run()
    assert result.steps == 4
    lines = [line for line in metrics(tmp_path) if line["kind"] == "train"]
    assert any("loss/lm" not in line and line["grad_norm"] == 0 for line in lines), "no such batch was drawn"


def test_gradient_checkpointing_changes_no_bit(tmp_path: Path) -> None:
    for name, value in (("with", True), ("without", False)):
        recipe = small_recipe(model={"gradient_checkpointing": value}, evaluation={"every": 99})
        trainer_of(recipe, tmp_path / name, WORLD).run()
    assert saved(tmp_path / "with") == saved(tmp_path / "without")


def test_bfloat16_computes_with_float32_masters(tmp_path: Path) -> None:
    settings = {"compute": "bfloat16", "frozen_dtype": "bfloat16"}
    recipe = small_recipe(model=settings, train=[{"name": "top", "match": r"layers\.1\."}])
    model = random_model(0, hidden=32, layers=2)
    result = trainer_of(recipe, tmp_path, WORLD, model).run()
    kept = CheckpointStore(tmp_path / "checkpoints", 1).load()
    assert {tensor.dtype for tensor in (*kept.trained.values(), *kept.optimizer.values())} == {torch.float32}
    assert model.get_parameter("backbone.model.embed_tokens.weight").dtype == torch.bfloat16
    exact = trainer_of(small_recipe(train=[{"name": "top", "match": r"layers\.1\."}]), tmp_path / "exact", WORLD).run()
    losses = [[line.get("loss/lm") for line in metrics(out)] for out in (tmp_path, tmp_path / "exact")]
    assert losses[0] != losses[1] and result.steps == exact.steps
    assert all(a is None or a == pytest.approx(b, rel=0.03) for a, b in zip(*losses, strict=True))


def test_figures_go_to_a_tracker_by_name(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer_of(small_recipe(trackers=["tensorboard"]), tmp_path, WORLD).run()
    found = reading.EventAccumulator(str(tmp_path / "small"))
    found.Reload()
    assert [event.step for event in found.Scalars("loss/lm")] == [
        line["step"] for line in metrics(tmp_path) if "loss/lm" in line
    ]
    assert [event.step for event in found.Scalars("fused/recall@16")] == [4, 8]


@pytest.mark.parametrize(("name", "message"), [("excel", "unknown tracker 'excel'"), ("trackio", "not installed")])
def test_a_tracker_that_is_not_there_is_named(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(TrainingError, match=message):
        check_trackers([name])
