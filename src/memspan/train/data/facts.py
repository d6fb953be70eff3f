"""Questions about made-up facts, each told in several wordings: what people tell an assistant, and what changes later.

Question answering sets ask for what stands in the world for good, in the words of an encyclopedia. A memory of a
person is told small facts in passing, and told later that they have changed. The wordings of a fact are alternative
positives of one question, so that `memspan.train.counterfactual` can put another value into one of them, and have it
read beside another.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from memspan.errors import DataError
from memspan.text.questions import Question, passage
from memspan.train.data.pairs import question_id
from memspan.train.structure import STRICT, read_yaml, structured

_NAME, _VALUE = "{name}", "{value}"


@dataclass(frozen=True, slots=True, config=STRICT)
class FactKind:
    """A kind of fact.

    Attributes:
        questions: each holds `{name}`.
        told: wordings of the fact; each holds `{name}` and `{value}`.
        values: what can be told. Empty: `numbers`.
        numbers: first, bound and step of numbers, as of `range`.
        names: the list of names that it is about.
    """

    questions: tuple[str, ...]
    told: tuple[str, ...]
    values: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    names: str = "people"

    def __post_init__(self) -> None:
        if not self.questions or not all(_NAME in question for question in self.questions):
            raise ValueError(f"a fact has questions, each with {_NAME}")
        if len(self.told) < 2 or not all(_NAME in told and _VALUE in told for told in self.told):
            raise ValueError(f"a fact needs two wordings or more, each with {_NAME} and {_VALUE}")
        if self.numbers and (len(self.numbers) != 3 or self.numbers[2] < 1):
            raise ValueError(f"numbers are a first one, a bound and a step above 0, not {list(self.numbers)}")
        if len(self.all_values) < 2:
            raise ValueError("a fact has two values or more, or numbers")

    @property
    def all_values(self) -> tuple[str, ...]:
        return self.values or tuple(map(str, range(*self.numbers)))


@dataclass(frozen=True, slots=True, config=STRICT)
class FactSpec:
    """What facts are made of.

    Attributes:
        facts: one is made for every name of a kind's list.
        names: lists of them, by name.
        chatter: sentences that stand beside a fact in half of its wordings, before or behind it.
        wordings: of a fact, at most.
        seed: of everything drawn.
    """

    facts: tuple[FactKind, ...]
    names: Mapping[str, tuple[str, ...]]
    chatter: tuple[str, ...] = ()
    wordings: Annotated[int, Field(ge=2)] = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for fact in self.facts:
            if not self.names.get(fact.names):
                raise ValueError(f"there is no list of names {fact.names!r}; the lists are {', '.join(self.names)}")


def load_facts(path: Path) -> FactSpec:
    """Read what facts are made of from YAML, as recipes/data/facts.yaml has it.

    Raises:
        DataError: it is no YAML, or a key or a value is not one of `FactSpec`'s.
    """
    return structured(FactSpec, read_yaml(path, DataError), f"{path} (see recipes/data/facts.yaml)", DataError)


def from_facts(spec: FactSpec, source: str) -> tuple[Question, ...]:
    """Questions of the type `single` with several positives, any one of which answers. The same for the same seed."""
    rng = random.Random(spec.seed)
    questions = []
    for fact in spec.facts:
        for name in spec.names[fact.names]:
            value = rng.choice(fact.all_values)
            asked = rng.choice(fact.questions).replace(_NAME, name)
            told = rng.sample(fact.told, min(spec.wordings, len(fact.told)))
            texts = [_beside(text.replace(_NAME, name).replace(_VALUE, value), spec.chatter, rng) for text in told]
            positives = tuple(passage("", text) for text in texts)
            name_of = question_id(source, asked, positives[0].external_id)
            questions.append(Question(name_of, asked, (value,), positives, hops=1, source=source))
    return tuple(questions)


def _beside(text: str, chatter: tuple[str, ...], rng: random.Random) -> str:
    """A wording, in half of the cases with chatter. Who speaks stands first."""
    if not chatter or rng.random() < 0.5:
        return text
    speaker, colon, said = text.partition(": ") if text.split()[0].endswith(":") else ("", "", text)
    parts = [said, rng.choice(chatter)]
    if rng.random() < 0.5:
        parts.reverse()
    return speaker + colon + " ".join(parts)
