"""`memspan data`: training data made, mixed, cleaned, mined and looked at."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from memspan.cli import render
from memspan.cli.app import JsonOption, OptionGroup, command
from memspan.cli.importing import importing
from memspan.cli.process import SKIPPED
from memspan.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from memspan.text.corpus import Skipped
    from memspan.text.questions import MalformedRecord, Question
    from memspan.train.data.clean import Cleaner, CountTokens, SourceReport
    from memspan.train.data.leakage import Leakage

data = typer.Typer(
    help="Prepare training data: questions with their evidence, as JSON lines (docs/training-data.md).",
    no_args_is_help=True,
)

FilesArgument = Annotated[list[Path], typer.Argument(help="Files of questions: .jsonl, .jsonl.gz or .jsonl.xz.")]
OutOption = Annotated[Path, typer.Option("--out", help="New file, .jsonl or .jsonl.gz.")]
AgainstOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--against",
        help="Questions of an evaluation set, which training must not see: a file, or a pattern in quotes that names "
        "several. May be repeated.",
    ),
]
ModelOption = Annotated[
    Path | None, typer.Option("--model", help="Folder of a model: lengths are then tokens. Default: words.")
]

KINDS = ("questions", "pairs", "text", "facts")
_NUM_LEAKS_NAMED = 5
_MIX_COLUMNS = ("read", "kept", "held_out", "train", "mined")

T = TypeVar("T")


def _checked(cls: type[T], **options: Any) -> T:
    """Settings of a command's options. Raises `DataError`."""
    from memspan.train.structure import structured

    return structured(cls, options, "the options", DataError)


def _columns(
    query: Annotated[str | None, typer.Option(help="Pairs: column of the question.")] = None,
    document: Annotated[str | None, typer.Option(help="Pairs: column of the text to find.")] = None,
    title: Annotated[str | None, typer.Option(help="Pairs: column of the document's title.")] = None,
    answer: Annotated[str | None, typer.Option(help="Pairs: column of a short answer in the document.")] = None,
    negative: Annotated[str | None, typer.Option(help="Pairs: column of a text that is no answer.")] = None,
) -> Any:
    with importing():
        from memspan.train.data.pairs import PairColumns
    return PairColumns(query, document, title, answer, negative)


def _text_settings(
    task: Annotated[
        list[str] | None, typer.Option(help="Text: cloze or title; may be repeated. Default: both.")
    ] = None,
    passage_words: Annotated[int, typer.Option(help="Text: longest passage.")] = 150,
    min_passage_words: Annotated[int, typer.Option(help="Text: shortest passage.")] = 20,
    per_passage: Annotated[int, typer.Option(help="Text: sentences taken from a passage, at most.")] = 1,
    keep: Annotated[float, typer.Option(help="Text: share of sentences that also stay in the passage.")] = 0.1,
    neighbours: Annotated[int, typer.Option(help="Text: passages of the same text taken as negatives.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the choice of sentences.")] = 0,
) -> Any:
    with importing():
        from memspan.train.data.texts import TASKS, TextSettings
    return _checked(
        TextSettings,
        tasks=task or TASKS,
        passage_words=passage_words,
        min_passage_words=min_passage_words,
        per_passage=per_passage,
        keep=keep,
        neighbours=neighbours,
        seed=seed,
    )


def _clean_settings(
    max_question: Annotated[int, typer.Option(help="Longest question.")] = 256,
    max_passage: Annotated[int, typer.Option(help="Longest positive.")] = 512,
    min_latin: Annotated[float, typer.Option(help="Least share of Latin letters; 0 keeps every language.")] = 0.5,
    abstractive: Annotated[
        list[str] | None, typer.Option(help="Source whose answers need not stand in a passage; may be repeated.")
    ] = None,
) -> Any:
    with importing():
        from memspan.train.data.clean import CleanSettings
    given = {"max_question": max_question, "max_passage": max_passage, "min_latin": min_latin}
    return _checked(CleanSettings, abstractive=abstractive or (), **given)


def _mine_settings(
    count: Annotated[int, typer.Option(help="Negatives a question has afterwards, at most.")] = 4,
    depth: Annotated[int, typer.Option(help="Passages looked at per question.")] = 30,
    max_overlap: Annotated[float, typer.Option(help="Shared words from which a passage repeats a positive.")] = 0.6,
) -> Any:
    with importing():
        from memspan.train.data.mine import MineSettings
    return _checked(MineSettings, count=count, depth=depth, max_overlap=max_overlap)


@data.command()
@command
def build(
    paths: Annotated[list[Path], typer.Argument(help="Files of pairs or questions; or files and folders of text.")],
    out: OutOption,
    kind: Annotated[
        str | None,
        typer.Option("--from", help="questions, pairs, text or facts. Default: by the files, never facts."),
    ] = None,
    source: Annotated[str | None, typer.Option(help="Name of the source. Default: the first file's.")] = None,
    *,
    columns: Annotated[Any, OptionGroup(_columns)],
    settings: Annotated[Any, OptionGroup(_text_settings)],
    bank: Annotated[Path | None, typer.Option(help="Text: also write all passages, as a file to add.")] = None,
    as_json: JsonOption = False,
) -> int:
    """Make questions of pairs (title and body, question and answer, query and document), of plain text, or of facts.

    Facts are made up from wordings in a YAML file, as recipes/data/facts.yaml: remarks of people to an assistant.
    """
    with importing():
        from memspan.train.data.facts import from_facts, load_facts
        from memspan.train.data.files import bank_record, read_training, write_lines, write_questions
        from memspan.train.data.pairs import from_pairs
        from memspan.train.data.texts import from_texts
    kind = kind or _kind_of(paths)
    if kind not in KINDS:
        raise DataError(f"no way to build from {kind!r}; --from takes {', '.join(KINDS)}")
    if bank is not None and kind != "text":
        raise DataError("--bank goes with plain text: --from text")
    name = source or paths[0].resolve().name.partition(".")[0]
    questions: Sequence[Question]
    skipped: Sequence[MalformedRecord | Skipped]
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
    """The kind of source, by the files, and the first record where they are files of records."""
    from memspan.text.readers import holds_records
    from memspan.train.data.pairs import records_of

    if not all(path.is_file() and holds_records(path) for path in paths):
        return "text"
    _, record = next(records_of(paths[0]), ("", None))
    return "questions" if isinstance(record, dict) and "positives" in record else "pairs"


@data.command()
@command
def mix(
    mixture: Annotated[Path, typer.Argument(help="YAML file: sources, weights, caps (see docs/training-data.md).")],
    out: Annotated[Path, typer.Option("--out", help="New folder: train, hold-out, its bank, and a report.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the sources' files. Default: the YAML file's.")] = None,
    against: AgainstOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> int:
    """Mix sources: cleaned, without evaluation questions, a hold-out taken from each, capped, shuffled."""
    with importing():
        from memspan.train.data.mix import load_mixture, write_mixture
        from memspan.train.data.mix import mix as make_mixture
    spec = load_mixture(mixture)
    held = _questions(against, as_json)
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


def _dropped(found: dict[str, Any]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in found["dropped"].items()) or "-"


@data.command()
@command
def clean(
    files: FilesArgument,
    out: OutOption,
    against: AgainstOption = None,
    *,
    settings: Annotated[Any, OptionGroup(_clean_settings)],
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> int:
    """Drop duplicates, leaks, long texts, other languages, and answers that no positive holds."""
    with importing():
        from memspan.train.data.clean import Cleaner
        from memspan.train.data.files import read_training, write_questions
        from memspan.train.data.leakage import EvaluationQuestions
    held = EvaluationQuestions(_questions(against, as_json))
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


@data.command()
@command
def stats(
    files: FilesArgument, against: AgainstOption = None, model: ModelOption = None, as_json: JsonOption = False
) -> int:
    """Describe questions by source. With --against: exit code 1 if a question stands in an evaluation set."""
    with importing():
        from memspan.train.data.files import read_training
        from memspan.train.data.leakage import find_leakage
        from memspan.train.data.stats import stats as statistics
    read = read_training(files)
    found = statistics(read.questions, _counter(model))
    leakage = find_leakage(read.questions, _questions(against, as_json)) if against else None
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


@data.command()
@command
def mine(
    files: FilesArgument,
    out: OutOption,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(help="Files and folders of further passages, as `add` reads them; may be repeated."),
    ] = None,
    *,
    settings: Annotated[Any, OptionGroup(_mine_settings)],
    as_json: JsonOption = False,
) -> int:
    """Add hard negatives: passages that BM25 finds for a question and that hold no answer to it."""
    with importing():
        from memspan.text.corpus import Skipped, read_paths
        from memspan.train.data.files import read_training, write_questions
        from memspan.train.data.mine import Miner, passages_of
    read = read_training(files)
    skipped: list[MalformedRecord | Skipped] = [*read.malformed]
    passages = passages_of(read.questions)
    for item in read_paths(corpus or []):
        if isinstance(item, Skipped):
            skipped.append(item)
        else:
            passages.append(item)
    mined = Miner(passages, settings).mine(read.questions)
    write_questions(out, mined.questions)
    _name_skipped(skipped, as_json)
    values = {name: getattr(mined, name) for name in ("added", "answering", "overlapping")}
    render.show({"questions": len(mined.questions), "passages": len(passages), **values, "out": str(out)}, as_json)
    return SKIPPED if skipped else 0


def _questions(paths: Sequence[Path] | None, as_json: bool) -> tuple[Question, ...]:
    """The questions of evaluation sets; a line that cannot be read, and so not be checked against, is named."""
    from memspan.train.data.files import read_training

    if not paths:
        return ()
    read = read_training([file for path in paths for file in sorted(path.parent.glob(path.name)) or [path]])
    _name_skipped(read.malformed, as_json)
    return read.questions


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


def _name_skipped(skipped: Sequence[MalformedRecord | Skipped], as_json: bool) -> None:
    from memspan.text.corpus import Skipped

    if not as_json:
        for found in skipped:
            where = found.source if isinstance(found, Skipped) else found.where
            render.err.print(f"skipped {where}: {found.reason}")
