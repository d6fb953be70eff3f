"""The learning rate over a phase."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest

from memspan.train.schedule import Schedule, lr_share


@pytest.mark.parametrize("schedule", get_args(Schedule))
def test_it_rises_to_its_highest_and_never_rises_again(schedule: str) -> None:
    shares = [lr_share(step, 20, schedule, warmup_steps=5, final=0.1) for step in range(20)]  # type: ignore[arg-type]
    assert shares[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])
    assert all(after <= before for before, after in itertools.pairwise(shares[5:]))
    assert min(shares) > 0.1


def test_the_shapes() -> None:
    assert lr_share(50, 100, "cosine") == pytest.approx(0.5)
    assert lr_share(25, 100, "cosine") == pytest.approx(0.5 * (1 + 2**-0.5))
    assert lr_share(25, 100, "linear", final=0.2) == pytest.approx(0.8)
    assert lr_share(99, 100, "linear") == pytest.approx(0.01)
    assert lr_share(99, 100, "constant") == 1
    assert lr_share(0, 1, "cosine") == 1
