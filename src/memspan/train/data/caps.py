"""How many questions of one source are used."""

from __future__ import annotations

import random
from collections.abc import Sequence

from memspan.text.questions import Question

CAP = 500_000
"""Questions of a source at most, unless it says otherwise (paper, Table 5)."""


def capped(questions: Sequence[Question], cap: int, seed: str) -> list[Question]:
    """At most `cap` questions, drawn at random, in their order."""
    if len(questions) <= cap:
        return list(questions)
    chosen = sorted(random.Random(seed).sample(range(len(questions)), cap))
    return [questions[place] for place in chosen]
