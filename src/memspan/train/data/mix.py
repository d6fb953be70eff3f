"""A mixture: named sources, cleaned, checked against evaluation sets, a hold-out taken from each, capped, shuffled."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from memspan.errors import DataError
from memspan.text.questions import Question, passage
from memspan.text.readers import BadRecord, Record, Unreadable, read_records
from memspan.train.data.caps import CAP, capped
from memspan.train.data.clean import Cleaner, CleanSettings, CountTokens
from memspan.train.data.files import Read, bank_record, read_training, write_json, write_lines, write_questions
from memspan.train.data.holdout import BankPassage, HoldoutSettings, Split, holdout_bank, split_holdout
from memspan.train.data.leakage import Held
from memspan.train.data.matching import passage_hash
from memspan.train.data.mine import Miner, MineSettings, passages_of
from memspan.train.data.neighbours import NeighbourSettings, in_groups
from memspan.train.structure import STRICT, Above0, Count, Names, Positive, read_yaml, structured
from memspan.train.teacher import SentenceTeacher
from memspan.types import JSON, Document

TRAIN, HOLDOUT, BANK, REPORT = "train.jsonl.gz", "holdout.jsonl.gz", "bank.jsonl.gz", "mixture.json"


@settings(frozen=True, slots=True, config=STRICT)
class SourceSpec:
    """One source of a mixture.

    Attributes:
        files: of the JSONL form, relative to the mixture's root.
        weight: how often it is drawn while training, against the others' weights. None: by its number of questions.
        cap: questions at most. None: the mixture's.
        holdout: questions held out. None: the mixture's.
        only: of the lines, those whose `source` is one of these. Empty: all.
        abstractive: its answers need not stand in a passage word for word.
        mine: negatives a question has after mining. None: the mixture's.
    """

    files: Annotated[Names, Field(min_length=1)]
    weight: Above0 | None = None
    cap: Positive | None = None
    holdout: Count | None = None
    only: Names = ()
    abstractive: bool = False
    mine: Count | None = None


@settings(frozen=True, slots=True, config=STRICT)
class MixtureSpec:
    """What a mixture is made of.

    Attributes:
        sources: by name; the name becomes the `source` of their questions. Of a question in two, the first one's stays.
        cap: of a source that has none of its own.
        seed: of hold-out, caps and order.
        mine: of mining; its `count` is 0 unless given.
        neighbours: of grouping alike questions; none, unless a model is named.
    """

    sources: Mapping[str, SourceSpec]
    cap: Positive = CAP
    seed: int = 0
    clean: CleanSettings = field(default_factory=CleanSettings)
    holdout: HoldoutSettings = field(default_factory=HoldoutSettings)
    mine: MineSettings = field(default_factory=lambda: MineSettings(count=0))
    neighbours: NeighbourSettings = field(default_factory=NeighbourSettings)

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("a mixture has at least one source")
        given = [name for name, source in self.sources.items() if source.weight is not None]
        if given and len(given) < len(self.sources):
            missing = ", ".join(name for name in self.sources if name not in given)
            raise ValueError(f"give all sources a weight, or none; without one are {missing}")


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture in memory.

    Attributes:
        train: shuffled; or source by source, in groups.
        holdout: in the order of the sources.
        weights: of drawing, by source; they sum to 1.
        group: questions of a group that follow each other in a source; 1: no groups.
        report: what was read, dropped and why, per source; JSON.
    """

    train: tuple[Question, ...]
    holdout: tuple[Question, ...]
    bank: tuple[BankPassage, ...]
    weights: Mapping[str, float]
    report: Mapping[str, JSON]
    group: int = 1


def load_mixture(path: Path) -> MixtureSpec:
    """Read a mixture from YAML; every key is checked.

    Raises:
        DataError: it is no YAML, or a key or a value is not one of `MixtureSpec`'s.
    """
    return mixture_of(read_yaml(path, DataError), str(path))


def mixture_of(values: Any, where: str = "mixture") -> MixtureSpec:
    """A mixture from plain values, as YAML gives them. Raises `DataError`."""
    return structured(MixtureSpec, values, where, DataError)


def mix(
    spec: MixtureSpec,
    root: Path,
    evaluation: Iterable[Question] = (),
    count_tokens: CountTokens | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Mixture:
    """Make a mixture: read, clean, hold out, cap, mine, shuffle. The same for the same files and seed.

    Args:
        evaluation: questions that are not to be trained on.
        count_tokens: for lengths (see `Cleaner`).
        tell: hears what is being done.

    Raises:
        DataError: a file cannot be used, or nothing of a source is left.
    """
    held = Held(evaluation)
    abstractive = (*spec.clean.abstractive, *(name for name, source in spec.sources.items() if source.abstractive))
    cleaner = Cleaner(replace(spec.clean, abstractive=abstractive), count_tokens, held.leaks)
    splits: dict[str, Split] = {}
    report: dict[str, Any] = {}
    for name, source in spec.sources.items():
        tell(f"reading {name}")
        read = _read_source(name, source, root)
        count = spec.holdout.questions if source.holdout is None else source.holdout
        kept = cleaner.clean(read.questions)
        splits[name] = split_holdout(kept, count, spec.seed, spec.holdout.max_share)
        report[name] = {**asdict(cleaner.report[name]), "malformed": [asdict(bad) for bad in read.malformed]}
    holdout = [question for split in splits.values() for question in split.holdout]
    train = _train(spec, splits, holdout, report)
    bank = holdout_bank(holdout, train, spec.holdout.bank, spec.seed)
    for name, source in spec.sources.items():
        report[name]["mined"] = _mine(name, source, spec, train, tell)
    weights = _weights(spec, train)
    group = spec.neighbours.size if spec.neighbours.model else 1
    return Mixture(_ordered(spec, train, tell), tuple(holdout), tuple(bank), weights, report, group)


def _ordered(
    spec: MixtureSpec, train: Mapping[str, list[Question]], tell: Callable[[str], None]
) -> tuple[Question, ...]:
    if spec.neighbours.model:
        tell(f"grouping alike questions by {spec.neighbours.model}")
        embed = SentenceTeacher.load(spec.neighbours.model).embed
        seed = f"{spec.seed}:neighbours"
        return tuple(q for questions in train.values() for q in in_groups(questions, embed, spec.neighbours, seed))
    mixed = [question for questions in train.values() for question in questions]
    random.Random(f"{spec.seed}:order").shuffle(mixed)
    return tuple(mixed)


def _train(
    spec: MixtureSpec, splits: Mapping[str, Split], holdout: Iterable[Question], report: dict[str, Any]
) -> dict[str, list[Question]]:
    """What is trained on, by source: nothing that shares a positive with the hold-out of any source; capped."""
    passages = {passage_hash(document) for question in holdout for document in question.positives}
    train: dict[str, list[Question]] = {}
    for name, source in spec.sources.items():
        split = splits[name]
        apart = [q for q in split.train if not any(passage_hash(document) in passages for document in q.positives)]
        if not apart:
            raise DataError(
                f"nothing of the source {name} is left to train on; see: memspan data clean, or leave it out"
            )
        train[name] = capped(apart, spec.cap if source.cap is None else source.cap, f"{spec.seed}:{name}")
        report[name] |= {
            "held_out": len(split.holdout),
            "shares_passage_with_holdout": len(split.train) + split.left_out - len(apart),
            "above_cap": len(apart) - len(train[name]),
            "train": len(train[name]),
        }
    return train


def _read_source(name: str, source: SourceSpec, root: Path) -> Read:
    read = read_training(root / file for file in source.files)
    wanted = [q for q in read.questions if not source.only or q.source in source.only]
    if not wanted:
        known = ", ".join(sorted({question.source for question in read.questions}))
        raise DataError(f"no line of {name} is of {', '.join(source.only)}; its lines are of {known}")
    return Read(tuple(replace(question, source=name) for question in wanted), read.malformed)


def _mine(
    name: str, source: SourceSpec, spec: MixtureSpec, train: dict[str, list[Question]], tell: Callable[[str], None]
) -> int:
    """Add hard negatives out of the source's own passages. Returns how many."""
    settings = spec.mine if source.mine is None else replace(spec.mine, count=source.mine)
    if settings.count == 0:
        return 0
    tell(f"mining negatives of {name}")
    mined = Miner(passages_of(train[name]), settings).mine(train[name])
    train[name] = list(mined.questions)
    return mined.added


def _weights(spec: MixtureSpec, train: Mapping[str, list[Question]]) -> dict[str, float]:
    raw = {
        name: float(len(train[name]) if source.weight is None else source.weight)
        for name, source in spec.sources.items()
    }
    return {name: value / sum(raw.values()) for name, value in raw.items()}


def write_mixture(mixture: Mixture, folder: Path) -> None:
    """Write a mixture.

    Files: `train.jsonl.gz`, `holdout.jsonl.gz` (questions); `bank.jsonl.gz` (passages of the hold-out, a bank that
    `memspan add` reads); `mixture.json` (weights and report), last.
    """
    write_questions(folder / TRAIN, mixture.train)
    write_questions(folder / HOLDOUT, mixture.holdout)
    write_lines(folder / BANK, (bank_record(item.document, item.source) for item in mixture.bank))
    report = {"weights": dict(mixture.weights), "group": mixture.group, "sources": dict(mixture.report)}
    write_json(folder / REPORT, report)


@dataclass(frozen=True, slots=True)
class MixedData:
    """What a mixture's folder holds, for a training run; see `Mixture`."""

    train: tuple[Question, ...]
    holdout: tuple[Question, ...]
    bank: tuple[Document, ...]
    weights: Mapping[str, float]
    group: int = 1


def read_mixture(folder: Path) -> MixedData:
    """Read what `write_mixture` wrote.

    Raises:
        DataError: a file of it is missing or damaged.
    """
    try:
        told = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        weights, group = told["weights"], int(told.get("group", 1))
        records = [record for record in read_records(folder / BANK)]
    except (OSError, ValueError, KeyError, Unreadable) as error:
        raise DataError(f"{folder} holds no whole mixture ({error}); make it with: memspan data mix") from error
    holdout = folder / HOLDOUT
    bank = [_bank_document(record, folder / BANK) for record in records]
    train = read_training([folder / TRAIN]).questions
    return MixedData(train, read_training([holdout]).questions, tuple(bank), weights, group)


def _bank_document(record: Record | BadRecord, path: Path) -> Document:
    if isinstance(record, BadRecord):
        raise DataError(f"{path}#{record.line}: {record.reason}; make the mixture again: memspan data mix")
    return passage(str(record.values.get("title", "")), str(record.values["text"]))
