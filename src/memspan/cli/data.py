"""The options of `memspan data`: training data made, mixed, cleaned, mined and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memspan.cli.app import JsonOption, commands_of

data = typer.Typer(
    help="Prepare training data: questions with their evidence, as JSON lines (docs/training-data.md).",
    no_args_is_help=True,
)

FilesArgument = Annotated[list[Path], typer.Argument(help="Files of questions: .jsonl, .jsonl.gz or .jsonl.xz.")]
OutOption = Annotated[Path, typer.Option("--out", help="New file, .jsonl or .jsonl.gz.")]
AgainstOption = Annotated[
    list[Path] | None,
    typer.Option("--against", help="Questions of an evaluation set, not to be trained on; may be repeated."),
]
ModelOption = Annotated[
    Path | None, typer.Option("--model", help="Folder of a model: lengths are then tokens. Default: words.")
]


@data.command()
def build(
    paths: Annotated[list[Path], typer.Argument(help="Files of pairs or questions; or files and folders of text.")],
    out: OutOption,
    kind: Annotated[
        str | None,
        typer.Option("--from", help="questions, pairs, text or facts. Default: by the files, never facts."),
    ] = None,
    source: Annotated[str | None, typer.Option(help="Name of the source. Default: the first file's.")] = None,
    query: Annotated[str | None, typer.Option(help="Pairs: column of what is asked.")] = None,
    document: Annotated[str | None, typer.Option(help="Pairs: column of what is to be found.")] = None,
    title: Annotated[str | None, typer.Option(help="Pairs: column of the document's title.")] = None,
    answer: Annotated[str | None, typer.Option(help="Pairs: column of a short answer in the document.")] = None,
    negative: Annotated[str | None, typer.Option(help="Pairs: column of a text that is no answer.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Text: cloze or title; may be repeated. Default: both.")
    ] = None,
    passage_words: Annotated[int, typer.Option(help="Text: longest passage.")] = 150,
    min_passage_words: Annotated[int, typer.Option(help="Text: shortest passage.")] = 20,
    per_passage: Annotated[int, typer.Option(help="Text: sentences taken from a passage, at most.")] = 1,
    keep: Annotated[float, typer.Option(help="Text: share of sentences that also stay in the passage.")] = 0.1,
    neighbours: Annotated[int, typer.Option(help="Text: passages of the same text taken as negatives.")] = 2,
    bank: Annotated[Path | None, typer.Option(help="Text: also write all passages, as a file to add.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sentences taken.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Make questions of pairs (title and body, question and answer, query and document), of plain text, or of facts.

    Facts are made up from wordings in a YAML file, as recipes/data/facts.yaml: what people tell an assistant.
    """
    with commands_of("data_commands") as commands:
        columns = commands.Columns(query, document, title, answer, negative)
        settings = commands.checked(
            commands.TextSettings,
            tasks=task or ("cloze", "title"),
            passage_words=passage_words,
            min_passage_words=min_passage_words,
            per_passage=per_passage,
            keep=keep,
            neighbours=neighbours,
            seed=seed,
        )
        code = commands.build(paths, out, kind, source, columns, settings, bank, as_json)
    raise typer.Exit(code)


@data.command()
def mix(
    mixture: Annotated[Path, typer.Argument(help="YAML file: sources, weights, caps (see docs/training-data.md).")],
    out: Annotated[Path, typer.Option("--out", help="New folder: train, hold-out, its bank, and a report.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the sources' files. Default: the YAML file's.")] = None,
    against: AgainstOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Mix sources: cleaned, without evaluation questions, a hold-out taken from each, capped, shuffled."""
    with commands_of("data_commands") as commands:
        code = commands.mix(mixture, out, root, against or [], model, as_json)
    raise typer.Exit(code)


@data.command()
def clean(
    files: FilesArgument,
    out: OutOption,
    against: AgainstOption = None,
    max_question: Annotated[int, typer.Option(help="Longest question.")] = 256,
    max_passage: Annotated[int, typer.Option(help="Longest positive.")] = 512,
    min_latin: Annotated[float, typer.Option(help="Least share of Latin letters; 0 keeps every language.")] = 0.5,
    abstractive: Annotated[
        list[str] | None, typer.Option(help="Source whose answers need not stand in a passage; may be repeated.")
    ] = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drop duplicates, leaks, what is too long or in another language, and answers that no positive holds."""
    with commands_of("data_commands") as commands:
        settings = commands.checked(
            commands.CleanSettings,
            max_question=max_question,
            max_passage=max_passage,
            min_latin=min_latin,
            abstractive=abstractive or (),
        )
        code = commands.clean(files, out, settings, against or [], model, as_json)
    raise typer.Exit(code)


@data.command()
def stats(
    files: FilesArgument, against: AgainstOption = None, model: ModelOption = None, as_json: JsonOption = False
) -> None:
    """Describe questions by source. With --against: exit code 1 if a question stands in an evaluation set."""
    with commands_of("data_commands") as commands:
        code = commands.stats(files, against or [], model, as_json)
    raise typer.Exit(code)


@data.command()
def mine(
    files: FilesArgument,
    out: OutOption,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(help="Files and folders of further passages, as `add` reads them; may be repeated."),
    ] = None,
    count: Annotated[int, typer.Option(help="Negatives a question has afterwards, at most.")] = 4,
    depth: Annotated[int, typer.Option(help="Passages looked at per question.")] = 30,
    max_overlap: Annotated[float, typer.Option(help="Shared words from which a passage repeats a positive.")] = 0.6,
    as_json: JsonOption = False,
) -> None:
    """Add hard negatives: passages that BM25 finds for a question and that hold no answer to it."""
    with commands_of("data_commands") as commands:
        settings = commands.checked(commands.MineSettings, count=count, depth=depth, max_overlap=max_overlap)
        code = commands.mine(files, out, corpus or [], settings, as_json)
    raise typer.Exit(code)
