"""What `memspan data` does. Imported when it runs, as `commands` is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from memspan.cli import render
from memspan.cli.process import SKIPPED
from memspan.errors import CheckpointError, DataError
from memspan.text.corpus import Skipped, read_paths
from memspan.text.questions import Malformed, Question
from memspan.text.readers import holds_records
from memspan.train.data.clean import Cleaner, CleanSettings, CountTokens, SourceReport
from memspan.train.data.facts import from_facts, load_facts
from memspan.train.data.files import Read, bank_record, read_training, write_lines, write_questions
from memspan.train.data.leakage import Held, Leakage, find_leakage
from memspan.train.data.mine import Miner, MineSettings, passages_of
from memspan.train.data.mix import load_mixture, write_mixture
from memspan.train.data.mix import mix as make_mixture
from memspan.train.data.pairs import Columns, from_pairs, records_of
from memspan.train.data.stats import stats as statistics
from memspan.train.data.texts import TextSettings, from_texts
from memspan.train.structure import structured
from memspan.types import Document

__all__ = [
    "CleanSettings",
    "Columns",
    "MineSettings",
    "TextSettings",
    "build",
    "checked",
    "clean",
    "mine",
    "mix",
    "stats",
]

T = TypeVar("T")

KINDS = ("questions", "pairs", "text", "facts")
_NUM_LEAKS_NAMED = 5


def checked(cls: type[T], **options: Any) -> T:
    """Settings of a command's options. Raises `DataError`."""
    return structured(cls, options, "the options", DataError)


def build(
    paths: Sequence[Path],
    out: Path,
    kind: str | None,
    source: str | None,
    columns: Columns,
    settings: TextSettings,
    bank: Path | None,
    as_json: bool,
) -> int:
    """Returns the exit code: 0, or SKIPPED."""
    kind = kind or _kind_of(paths)
    if kind not in KINDS:
        raise DataError(f"no way to build from {kind!r}; --from takes {', '.join(KINDS)}")
    if bank is not None and kind != "text":
        raise DataError("--bank goes with plain text: --from text")
    name = source or paths[0].resolve().name.partition(".")[0]
    questions: Sequence[Question]
    skipped: Sequence[Malformed | Skipped]
    if kind == "text":
        made = from_texts(paths, name, settings)
        questions, skipped = made.questions, made.skipped
        if bank is not None:
            write_lines(bank, (bank_record(document, name) for document in made.passages))
    elif kind == "facts":
        questions, skipped = [q for path in paths for q in from_facts(load_facts(path), name)], ()
    else:
        read = read_training(paths, source) if kind == "questions" else from_pairs(paths, name, columns)
        questions, skipped = read.questions, read.malformed
    write_questions(out, questions)
    _name_skipped(skipped, as_json)
    render.show({"questions": len(questions), "from": kind, "skipped": len(skipped), "out": str(out)}, as_json)
    return SKIPPED if skipped else 0


def _kind_of(paths: Sequence[Path]) -> str:
    """What to build from, by the files, and the first record where they are files of records."""
    if not all(path.is_file() and holds_records(path) for path in paths):
        return "text"
    _, record = next(records_of(paths[0]), ("", None))
    return "questions" if isinstance(record, dict) and "positives" in record else "pairs"


def mix(mixture: Path, out: Path, root: Path | None, against: Sequence[Path], model: Path | None, as_json: bool) -> int:
    """Returns the exit code: 0, or SKIPPED."""
    spec = load_mixture(mixture)
    held = _questions(against)
    tell = (lambda _: None) if as_json else render.err.print
    made = make_mixture(spec, root or mixture.parent, held, _counter(model), tell)
    write_mixture(made, out)
    sources = cast(dict[str, dict[str, Any]], made.report)
    counts = {"train": len(made.train), "holdout": len(made.holdout), "bank": len(made.bank), "out": str(out)}
    if as_json:
        render.as_json({**counts, "weights": made.weights, "sources": sources})
    else:
        rows = ((name, *(found[key] for key in _MIX_COLUMNS), _dropped(found)) for name, found in sources.items())
        render.table(("source", *(key.replace("_", " ") for key in _MIX_COLUMNS), "dropped"), rows)
        render.fields(counts)
    return SKIPPED if any(found["malformed"] for found in sources.values()) else 0


_MIX_COLUMNS = ("read", "kept", "held_out", "train", "mined")


def _dropped(found: dict[str, Any]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in found["dropped"].items()) or "-"


def clean(
    files: Sequence[Path],
    out: Path,
    settings: CleanSettings,
    against: Sequence[Path],
    model: Path | None,
    as_json: bool,
) -> int:
    """Returns the exit code: 0, or SKIPPED where lines were malformed."""
    held = Held(_questions(against))
    read = read_training(files)
    cleaner = Cleaner(settings, _counter(model), held.leaks)
    kept = cleaner.clean(read.questions)
    if not kept:
        raise DataError(f"nothing is left of {len(read.questions)} questions: {_reasons(cleaner)}; loosen the options")
    write_questions(out, kept)
    _name_skipped(read.malformed, as_json)
    if as_json:
        render.as_json({"kept": len(kept), "sources": cleaner.report, "malformed": read.malformed, "out": str(out)})
    else:
        for name, report in cleaner.report.items():
            _show_cleaned(name, report)
        render.fields({"kept": len(kept), "out": str(out)})
    return SKIPPED if read.malformed else 0


def _show_cleaned(name: str, report: SourceReport) -> None:
    render.out.print(f"{name}: {report.kept} of {report.read} kept")
    for reason, number in report.dropped.items():
        render.out.print(f"  {number} dropped: {reason}")
        for example in report.examples[reason]:
            render.out.print(f"    {example.id}: {example.question}")
    for reason, number in report.mended.items():
        render.out.print(f"  {number} passages taken out: {reason}")


def _reasons(cleaner: Cleaner) -> str:
    counts: dict[str, int] = {}
    for report in cleaner.report.values():
        for reason, number in report.dropped.items():
            counts[reason] = counts.get(reason, 0) + number
    return ", ".join(f"{number} {reason}" for reason, number in counts.items())


def stats(files: Sequence[Path], against: Sequence[Path], model: Path | None, as_json: bool) -> int:
    """Returns the exit code: 0; 1 where a question stands in an evaluation set."""
    read = read_training(files)
    found = statistics(read.questions, _counter(model))
    leakage = find_leakage(read.questions, _questions(against)) if against else None
    if as_json:
        render.as_json({"sources": found, "malformed": read.malformed, "leakage": leakage})
    else:
        _name_skipped(read.malformed, as_json)
        for name, values in found.items():
            render.out.print(name)
            render.fields({f"  {key.replace('_', ' ')}": value for key, value in dataclasses.asdict(values).items()})
        if leakage:
            _show_leakage(leakage)
    return 1 if leakage and leakage.found else 0


def _show_leakage(leakage: Leakage) -> None:
    for what, pairs in (("the same question", leakage.questions), ("the same id", leakage.ids)):
        render.out.print(f"{len(pairs)} leaks: {what}")
        for ours, theirs in pairs[:_NUM_LEAKS_NAMED]:
            render.out.print(f"  {ours} = {theirs}")
    render.out.print(f"{leakage.passages} passages in common (no leak; say so beside figures)")


def mine(files: Sequence[Path], out: Path, corpus: Sequence[Path], settings: MineSettings, as_json: bool) -> int:
    """Returns the exit code: 0, or SKIPPED."""
    read = read_training(files)
    skipped: list[Malformed | Skipped] = [*read.malformed]
    passages = passages_of(read.questions)
    for item in read_paths(corpus):
        if isinstance(item, Document):
            passages.append(item)
        else:
            skipped.append(item)
    mined = Miner(passages, settings).mine(read.questions)
    write_questions(out, mined.questions)
    _name_skipped(skipped, as_json)
    values = {name: getattr(mined, name) for name in ("added", "answering", "overlapping")}
    render.show({"questions": len(mined.questions), "passages": len(passages), **values, "out": str(out)}, as_json)
    return SKIPPED if skipped else 0


def _questions(paths: Sequence[Path]) -> tuple[Question, ...]:
    return read_training(paths).questions if paths else Read(()).questions


def _counter(model: Path | None) -> CountTokens | None:
    """Counts the tokens of a model.

    Raises:
        CheckpointError: the folder holds no tokenizer.
    """
    if model is None:
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{model} holds no tokenizer ({error}); name the folder of a model") from error
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _name_skipped(skipped: Sequence[Malformed | Skipped], as_json: bool) -> None:
    if not as_json:
        for found in skipped:
            where = found.where if isinstance(found, Malformed) else found.source
            render.err.print(f"skipped {where}: {found.reason}")
