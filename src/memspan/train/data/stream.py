"""The order in which a training run sees its questions: drawn by weight, shuffled every epoch, resumable exactly."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memspan.errors import DataError
from memspan.text.questions import Question

CAP = 500_000
"""Questions of a source at most, unless it says otherwise (paper, Table 5)."""


@dataclass(slots=True)
class _Place:
    """Where a source stands: how often it was gone through, and how many of this turn's questions were given out."""

    epoch: int = 0
    offset: int = 0


class ExampleStream:
    """An endless iterator over batches of questions. Every batch is a function of the seed and its number alone.

    A batch draws its source by weight (or, with `one_source_per_batch` off, every question draws its own). A source's
    questions come shuffled, each once before any comes again; the shuffle is another one every time. A batch that
    reaches over the end of a source goes on with its next shuffle, and may then hold a question twice. With `group`,
    so many questions that follow each other stay together (see `memspan.train.data.neighbours`): groups are shuffled.

    With several ranks, all draw the same batches and rank r keeps number r, r + world, ...: together, in order of
    their ranks, they see what one rank that accumulates `world` batches sees. A step of all ranks ends at a multiple
    of `world`, and a state saved there continues with any number of ranks.

    Raises:
        DataError: a source is empty, a weight is missing or not above 0, or the ranks or the batch size make no sense.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Question]],
        batch_size: int,
        *,
        weights: Mapping[str, float] | None = None,
        caps: Mapping[str, int] | int = CAP,
        one_source_per_batch: bool = True,
        group: int = 1,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """
        Args:
            sources: questions by source; see `by_source`.
            weights: of drawing, by source; they need not sum to 1. Default: a source's number of questions.
            caps: of a source's questions, one for all or by source; which ones stay is drawn by the seed.
            group: questions that stay together.
        """
        if batch_size < 1 or group < 1 or not 0 <= rank < world:
            raise DataError(
                f"batch size {batch_size}, groups of {group}, rank {rank} of {world}: sizes are at least 1, ranks "
                "count from 0"
            )
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self._group = group
        self._one_source, self._seed = one_source_per_batch, seed
        self._questions = {
            name: capped(given, caps if isinstance(caps, int) else caps.get(name, CAP), f"{seed}:{name}")
            for name, given in sources.items()
        }
        if empty := [name for name, given in self._questions.items() if not given] or ["any"] * (not sources):
            raise DataError(f"there are no questions of {empty[0]}; leave the source out")
        self._names = sorted(self._questions)
        self._weights = self._checked_weights(weights)
        self._number = 0
        self._places = {name: _Place() for name in self._names}
        self._orders: dict[str, tuple[int, list[int]]] = {}
        self._digest = self._digest_of_questions()

    def __iter__(self) -> ExampleStream:
        return self

    def __next__(self) -> list[Question]:
        """This rank's next batch."""
        drawn = [self._draw() for _ in range(self.world)]
        return [self._questions[name][place] for name, place in drawn[self.rank]]

    def _draw(self) -> list[tuple[str, int]]:
        """The next batch of all ranks' sequence, as (source, place)."""
        rng = random.Random(f"{self._seed}:batch:{self._number}")
        self._number += 1
        draws = 1 if self._one_source else self.batch_size
        names = rng.choices(self._names, [self._weights[name] for name in self._names], k=draws)
        return [(name, self._next_place(name)) for name in (names * self.batch_size if self._one_source else names)]

    def _next_place(self, name: str) -> int:
        place = self._places[name]
        if place.offset == len(self._questions[name]):
            place.epoch, place.offset = place.epoch + 1, 0
        place.offset += 1
        return self._order(name, place.epoch)[place.offset - 1]

    def _order(self, name: str, epoch: int) -> list[int]:
        """A source's order in an epoch; the epoch before last is forgotten."""
        known = self._orders.get(name)
        if known is None or known[0] != epoch:
            count = len(self._questions[name])
            groups = [range(start, min(start + self._group, count)) for start in range(0, count, self._group)]
            random.Random(f"{self._seed}:{name}:{epoch}").shuffle(groups)
            known = self._orders[name] = (epoch, [place for group in groups for place in group])
        return known[1]

    def _checked_weights(self, weights: Mapping[str, float] | None) -> dict[str, float]:
        if weights is None:
            return {name: float(len(given)) for name, given in self._questions.items()}
        if missing := [name for name in self._names if weights.get(name, 0) <= 0]:
            raise DataError(f"the source {missing[0]} has no weight above 0; give it one, or leave its questions out")
        if unknown := [name for name in weights if name not in self._questions]:
            raise DataError(f"a weight is given for {unknown[0]}, of which there are no questions")
        return {name: float(weights[name]) for name in self._names}

    @property
    def epochs(self) -> dict[str, float]:
        """How often every source was gone through so far, by all ranks together."""
        return {n: place.epoch + place.offset / len(self._questions[n]) for n, place in self._places.items()}

    @property
    def num_questions(self) -> dict[str, int]:
        """Questions of every source, after caps."""
        return {name: len(self._questions[name]) for name in self._names}

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as JSON values: the same on every rank."""
        places = {name: [place.epoch, place.offset] for name, place in self._places.items()}
        return {"batches": self._number, "places": places, "data": self._fingerprint()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another stream over the same questions stood.

        Raises:
            DataError: the questions, weights, batch size or seed are not the same: the order would be another one.
        """
        if (ours := self._fingerprint()) != state["data"]:
            changed = [name for name, value in ours.items() if state["data"].get(name) != value]
            raise DataError(
                f"the data of this run changed since its checkpoint ({', '.join(changed)}); continue with what it "
                "began with, or begin a new run"
            )
        self._number = int(state["batches"])
        self._places = {name: _Place(*map(int, state["places"][name])) for name in self._names}

    def _fingerprint(self) -> dict[str, Any]:
        """What the order depends on."""
        return {
            "questions": self._digest,
            "weights": self._weights,
            "batch_size": self.batch_size,
            "one_source_per_batch": self._one_source,
            "group": self._group,
            "seed": self._seed,
        }

    def _digest_of_questions(self) -> str:
        digest = hashlib.sha256()
        for name in self._names:
            for question in self._questions[name]:
                digest.update(f"{name}\0{question.id}\0{question.question}\0".encode(errors="replace"))
        return digest.hexdigest()


def capped(questions: Sequence[Question], cap: int, seed: str) -> list[Question]:
    """At most `cap` questions, drawn at random, in their order."""
    if len(questions) <= cap:
        return list(questions)
    chosen = sorted(random.Random(seed).sample(range(len(questions)), cap))
    return [questions[place] for place in chosen]


def by_source(questions: Iterable[Question]) -> dict[str, list[Question]]:
    """Questions by the source they name, in order."""
    found: dict[str, list[Question]] = {}
    for question in questions:
        found.setdefault(question.source, []).append(question)
    return found
