"""Does training train? A model of four random layers learns to find and read key-value memories from scratch.

Recall is over 1,000 documents about keys that no training document has. The same check must fail where the routing loss
is off or the positives are wrong: at a step where the sound run is well under way, the broken ones are still lost.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import World, key_value_world, random_model, small_recipe, trainer_of

from memspan.text.questions import Question
from memspan.train.loop import RunResult

# Seeds 1 and 2, run by hand: recall@1 of 0.998 and 0.988, every answer right.
SEED = 0
STEPS, EARLY = 180, 90
RECALL, ANSWERS = "fused/recall@1", "answer/exact"


def run(out: Path, world: World, routing: float = 1.0, steps: int = STEPS, seed: int = SEED) -> RunResult:
    """`STEPS` is the length of the schedule in all runs; shorter ones stop in its middle."""
    recipe = small_recipe(
        seed=seed,
        train=[{"name": "all", "match": "."}],
        step={"questions": 64, "micro_batches": 1},
        batch={"negatives": 0, "answer": 0.42, "injected_documents": 1, "max_id": 1000, "drop_answering": False},
        objective={"temperature": 0.05},
        evaluation={"every": EARLY, "batch": 250, "generations": 100, "max_new_tokens": 3},
        phases=[
            {
                "name": "main",
                "steps": STEPS,
                "lr": 1e-3,
                "warmup_steps": 20,
                "final_lr": 0.3,
                "loss": {"lm": 2.0, "routing": routing},
            }
        ],
    )
    seen: list[int] = []
    trainer = trainer_of(
        recipe,
        out,
        world,
        random_model(seed, hidden=128, chunk_size=16),
        tell=lambda progress: seen.append(progress.step),
        should_stop=lambda: bool(seen) and seen[-1] >= steps - 1,
    )
    # The untrained router's and BM25's figures are tested elsewhere, and take their time.
    object.__setattr__(trainer.parts.evaluator, "references", lambda _: {})
    return trainer.run()


def figures(result: RunResult) -> dict[int, Any]:
    return {int(found["step"]): found for found in result.evaluations}


@pytest.fixture(scope="module")
def world() -> World:
    return key_value_world(2500, 1000)


@pytest.fixture(scope="module")
def sound(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    return figures(run(tmp_path_factory.mktemp("sound"), world))


def test_it_finds_and_reads_what_it_has_never_seen(sound: dict[int, Any]) -> None:
    assert sound[STEPS][RECALL] >= 0.95
    assert sound[STEPS][ANSWERS] >= 0.9
    assert sound[STEPS]["answer/empty"] == 0


@pytest.mark.slow
def test_without_the_routing_loss_nothing_is_found(sound: dict[int, Any], world: World, tmp_path: Path) -> None:
    broken = figures(run(tmp_path, world, routing=0.0, steps=EARLY))
    assert sound[EARLY][RECALL] > 0.2 > 0.05 > broken[EARLY][RECALL]


@pytest.mark.slow
def test_with_shuffled_positives_nothing_is_found(sound: dict[int, Any], world: World, tmp_path: Path) -> None:
    broken = figures(run(tmp_path, replace(world, train=shuffled(world.train)), steps=EARLY))
    assert sound[EARLY][RECALL] > 0.2 > 0.05 > broken[EARLY][RECALL]


def shuffled(questions: tuple[Question, ...]) -> tuple[Question, ...]:
    """Every question with the document of the next one."""
    following = (*questions[1:], questions[0])
    return tuple(replace(mine, positives=other.positives) for mine, other in zip(questions, following, strict=True))
