"""Tiny questions and files of them, as the tests of training data need them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from memspan.text.questions import Question, passage
from memspan.train.data.files import record_of

ANIMALS = ["otter", "heron", "lynx", "badger", "walrus", "ibis", "gecko", "stoat", "marten", "bittern", "newt", "crane"]
CITIES = ["Rome", "Oslo", "Quito", "Paris", "Lima", "Cairo", "Delhi", "Perth", "Turin", "Dakar", "Osaka", "Bern"]


def question(number: int = 0, **changes: Any) -> Question:
    """A question about one of twelve times twelve animals; every number has a text, an answer and a passage."""
    animal, city = ANIMALS[number % 12], CITIES[number // 12 % 12]
    values: dict[str, Any] = {
        "id": f"zoo-{number}",
        "question": f"Where does {animal} number {number} live?",
        "answers": (city,),
        "positives": (passage(animal, f"{animal.title()} number {number} has lived in {city} for years."),),
        "source": "zoo",
        "hops": 1,
    }
    return Question(**(values | changes))


def questions(count: int, first: int = 0, **changes: Any) -> list[Question]:
    return [question(number, **changes) for number in range(first, first + count)]


def pair(number: int, **changes: Any) -> Question:
    return question(number, **({"type": "pair", "answers": ()} | changes))


def written(path: Path, items: Iterable[Question | str | dict[str, Any]]) -> Path:
    """Write questions, records, or lines as they are."""
    lines = [
        item if isinstance(item, str) else json.dumps(record_of(item) if isinstance(item, Question) else item)
        for item in items
    ]
    data = "".join(f"{line}\n" for line in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path
