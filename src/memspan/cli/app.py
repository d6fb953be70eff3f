"""The commands' options. Exit codes: 0 done, 1 an error, 2 wrong usage, 3 files were skipped, 130 interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from memspan.cli.importing import imported
from memspan.errors import MemspanError

app = typer.Typer(
    name="memspan",
    help="A language model with a memory of your documents: remember them once, ask, get answers with evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

BankArgument = Annotated[Path, typer.Argument(help="Folder of the memory bank.")]
InstalledOption = Annotated[
    bool, typer.Option("--installed-packages", help="The Python packages of this environment, too.")
]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model",
        envvar="MEMSPAN_MODEL",
        help="MSA checkpoint folder. Default: the one the bank was made with, or else smollm2-135m-instruct.",
    ),
]
AdapterOption = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        envvar="MEMSPAN_ADAPTER",
        help="Weights trained for that model: a folder, a shipped name, or none. Default: that of the default model.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of text.")]
NamespaceOption = Annotated[str, typer.Option("--namespace", "-n", help="Whose documents; no others are seen.")]
WhereOption = Annotated[
    list[str] | None,
    typer.Option("--where", help="FIELD=VALUE (or !=, <, <=, >, >=) of the metadata, or JSON; may be repeated."),
]
AsOfOption = Annotated[str | None, typer.Option("--as-of", help="Only documents dated this day, or before.")]
SelectorOption = Annotated[
    str | None,
    typer.Option(help="Who chooses documents: router, lexical or hybrid. Default: hybrid, lexical if untrained."),
]
AskSelectorOption = Annotated[
    str | None,
    typer.Option(
        "--selector",
        help="Who chooses documents: router, lexical, hybrid, or generate (the model names them). "
        "Default: hybrid, lexical if untrained.",
    ),
]
IdOption = Annotated[list[int] | None, typer.Option("--id", help="The bank's id of a document; may be repeated.")]
DtypeOption = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16. Default: what is fast here.")]
BudgetOption = Annotated[
    str | None,
    typer.Option("--memory-budget", help="Memory of the process, as 6GB. Default: all routing keys are kept in it."),
]
DeviceOption = Annotated[str | None, typer.Option(help="Torch device. Default: a GPU if there is one.")]

RouteAnswerOption = Annotated[
    bool, typer.Option("--route-answer", help="Route the whole context once more for the answer, texts included.")
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        help="What decoding may read, where it is faster on this CPU: exact, half (16 bits, default), int8, int4."
    ),
]


@contextmanager
def commands_of(module: str, bank: Path | None = None) -> Iterator[ModuleType]:
    """The module of this package that does the work; known errors end as `errors_told` says.

    `stored` needs no torch, `upkeep` no transformers, `commands` a model: which one a command is in decides how soon it
    begins.

    Args:
        bank: must be there, and is looked at before the module is imported.
    """
    with errors_told():
        if bank is not None:
            imported("stored").check_bank(bank)
        yield imported(module)


@contextmanager
def errors_told() -> Iterator[None]:
    """Known errors end with their message and exit code 1, without a traceback."""
    try:
        yield
    except (MemspanError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(help="Hugging Face folder, .gguf file or hub id. Default: the embedded SmolLM2.")
    ] = "smollm2-135m-instruct",
    out: Annotated[Path, typer.Option("--out", help="New checkpoint folder.")] = ...,  # type: ignore[assignment]
    dtype: Annotated[str, typer.Option(help="Of the saved weights.")] = "bfloat16",
    template: Annotated[str | None, typer.Option(help="chatml, msa or plain. Default: by the tokenizer.")] = None,
    layers: Annotated[str | None, typer.Option(help="MSA layers, as 15,16,17. Default: the upper half.")] = None,
    chunk_size: Annotated[int, typer.Option(help="Tokens pooled into one row.")] = 64,
    top_k: Annotated[int, typer.Option(help="Documents an MSA layer attends to.")] = 16,
    similarity: Annotated[
        str | None, typer.Option(help="cosine or dot. Default: cosine, or as a released checkpoint serves.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the routers' random initialisation.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Turn a plain decoder (its routers are then untrained) or a released MSA checkpoint into an MSA checkpoint."""
    with commands_of("commands") as commands:
        commands.convert(source, out, dtype, template, layers, chunk_size, top_k, similarity, seed, as_json)


@app.command()
def add(
    bank: BankArgument,
    paths: Annotated[list[Path] | None, typer.Argument(help="Files and folders; - reads standard input.")] = None,
    installed: InstalledOption = False,
    namespace: NamespaceOption = "default",
    model: ModelOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remember documents: txt, md, rst, html, pdf, csv, tsv, jsonl. Makes the bank if there is none."""
    with commands_of("commands") as commands:
        choice = commands.ModelChoice(model, adapter, dtype, device)
        code = commands.add(bank, paths or [], installed, namespace, choice, as_json)
    raise typer.Exit(code)


@app.command()
def ask(
    bank: BankArgument,
    question: Annotated[str | None, typer.Argument(help="Left out: asked for, one after the other.")] = None,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    namespace: NamespaceOption = "default",
    where: WhereOption = None,
    as_of: AsOfOption = None,
    selector: AskSelectorOption = None,
    max_documents: Annotated[int, typer.Option(help="Documents put before the model, at most.")] = 5,
    rounds: Annotated[
        int | None, typer.Option(help="Looks into the memory, at most. Default: 1; 4 with generate.")
    ] = None,
    documents_per_round: Annotated[
        int | None, typer.Option(help="At most. Default: 2 where there are several rounds.")
    ] = None,
    no_text: Annotated[bool, typer.Option("--no-text", help="Answer from the compressed memory alone.")] = False,
    text_only: Annotated[
        bool, typer.Option("--text-only", help="Answer from the texts that are found, without the compressed memory.")
    ] = False,
    route_answer: RouteAnswerOption = False,
    trace: Annotated[bool, typer.Option("--trace", help="Show every round: what was routed, chosen and read.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Length of an answer, at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="String that ends an answer; may be repeated.")] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    weights: WeightsOption = None,
    memory_budget: BudgetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question from a bank, with evidence."""
    with commands_of("commands", bank) as commands:
        choice = commands.ModelChoice(model, adapter, dtype, device, weights, memory_budget)
        sampling = commands.Sampling(max_new_tokens, temperature, top_p, seed, tuple(stop or ()))
        scope = commands.ScopeChoice(namespace, where or [], as_of)
        options = commands.AskOptions(
            selector=selector,
            max_documents=0 if no_text else max_documents,
            rounds=rounds,
            documents_per_round=documents_per_round,
            text_only=text_only,
            route_answer=route_answer,
            sampling=sampling,
        )
        commands.ask(bank, question, choice, scope, options, trace, as_json)


@app.command()
def search(
    bank: BankArgument,
    question: Annotated[str, typer.Argument(help="What to look for.")],
    model: ModelOption = None,
    adapter: AdapterOption = None,
    namespace: NamespaceOption = "default",
    where: WhereOption = None,
    as_of: AsOfOption = None,
    selector: SelectorOption = None,
    limit: Annotated[int, typer.Option(help="Documents shown, at most.")] = 10,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    memory_budget: BudgetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find documents for a question, without answering it."""
    with commands_of("stored") as stored:
        choice = stored.ModelChoice(model, adapter, dtype, device, memory_budget=memory_budget)
        scope = stored.ScopeChoice(namespace, where or [], as_of)
        stored.search(bank, question, choice, scope, selector, limit, as_json)


@app.command()
def summarize(
    bank: BankArgument,
    about: Annotated[str, typer.Option(help="What is wanted of the documents. Default: everything.")] = "",
    model: ModelOption = None,
    adapter: AdapterOption = None,
    namespace: NamespaceOption = "default",
    where: WhereOption = None,
    as_of: AsOfOption = None,
    max_statements: Annotated[int, typer.Option(help="Of the summary.")] = 10,
    batch_tokens: Annotated[int, typer.Option(help="Of the texts that are read together, at most.")] = 512,
    max_new_tokens: Annotated[int, typer.Option(help="Written about the texts of one batch, at most.")] = 96,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    weights: WeightsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sum up all documents of a scope; every statement names the documents that hold its words."""
    with commands_of("commands", bank) as commands:
        choice = commands.ModelChoice(model, adapter, dtype, device, weights)
        scope = commands.ScopeChoice(namespace, where or [], as_of)
        plan = commands.SummaryPlan(about, max_statements, batch_tokens, commands.Sampling(max_new_tokens))
        commands.summarize(bank, choice, scope, plan, as_json)


@app.command()
def ls(
    bank: BankArgument,
    namespace: NamespaceOption = "default",
    where: WhereOption = None,
    as_of: AsOfOption = None,
    after: Annotated[int, typer.Option(help="Continue after this id.")] = 0,
    limit: Annotated[int, typer.Option(help="Documents shown, at most.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List the documents of a bank, in order of their ids."""
    with commands_of("stored") as stored:
        stored.ls(bank, stored.ScopeChoice(namespace, where or [], as_of), after, limit, as_json)


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="Folder of a bank or of an MSA checkpoint.")],
    as_json: JsonOption = False,
) -> None:
    """Describe a bank or a checkpoint."""
    with commands_of("stored") as stored:
        stored.info(path, as_json)


@app.command()
def estimate(
    paths: Annotated[list[Path] | None, typer.Argument(help="Files and folders.")] = None,
    installed: InstalledOption = False,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how long a corpus would take to encode on this machine, and how much disk, without encoding it."""
    with commands_of("commands") as commands:
        choice = commands.ModelChoice(model, adapter, dtype, device)
        commands.estimate(paths or [], installed, choice, as_json)


@app.command()
def rm(
    bank: BankArgument,
    external_ids: Annotated[list[str] | None, typer.Argument(help="External ids, as `ls` shows them.")] = None,
    ids: IdOption = None,
    namespace: NamespaceOption = "default",
    as_json: JsonOption = False,
) -> None:
    """Forget documents: the next question does not see them. `compact` frees, `compact --secure` erases them."""
    with commands_of("stored") as stored:
        stored.rm(bank, [*(external_ids or []), *(ids or [])], namespace, as_json)


@app.command()
def update(
    bank: BankArgument,
    external_id: Annotated[str, typer.Argument(help="The document, as `ls` shows it.")],
    file: Annotated[
        Path | None, typer.Argument(help="Its new text; - reads standard input. Default: unchanged.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="A new title.")] = None,
    date: Annotated[str | None, typer.Option(help="A new date, as 2026-03-01.")] = None,
    set_fields: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of the metadata; may be repeated.")
    ] = None,
    namespace: NamespaceOption = "default",
    model: ModelOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace the text, title, date or metadata of one document."""
    with commands_of("stored") as stored:
        choice = stored.ModelChoice(model, adapter, dtype, device)
        stored.update(bank, external_id, file, title, date, set_fields or [], namespace, choice, as_json)


@app.command()
def compact(
    bank: BankArgument,
    secure: Annotated[bool, typer.Option("--secure", help="Leave no deleted text or latents in any file.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for readers, with --secure.")] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Free the space of deleted documents and join small segments. Readers go on."""
    with commands_of("upkeep", bank) as upkeep:
        upkeep.compact(bank, secure, timeout, as_json)


@app.command()
def verify(
    bank: BankArgument,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be made again from the stored text.")] = False,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every byte of a bank, or all weights of a checkpoint. Exit code 1 if something is not what it was."""
    with commands_of("upkeep", None if (bank / "config.json").is_file() else bank) as upkeep:
        choice = upkeep.ModelChoice(model, adapter, dtype, device)
        code = upkeep.verify(bank, repair, choice, as_json)
    raise typer.Exit(code)


@app.command()
def reencode(
    bank: BankArgument,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rebuild a bank's latents for another model, from its stored text. Stopped, it continues when run again."""
    with commands_of("commands", bank) as commands:
        choice = commands.ModelChoice(model, adapter, dtype, device)
        code = commands.reencode(bank, choice, as_json)
    raise typer.Exit(code)


@app.command()
def export(
    bank: BankArgument,
    out: Annotated[Path, typer.Argument(help="X.jsonl: documents and metadata (- prints them); else all in one file.")],
) -> None:
    """Write a bank's documents as JSON lines, or the whole bank as one file."""
    with commands_of("stored") as stored:
        stored.export(bank, out)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="What `export` wrote.")],
    bank: BankArgument,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a bank of an exported one; from JSON lines, encode the documents into a new or an existing bank."""
    with commands_of("commands") as commands:
        choice = commands.ModelChoice(model, adapter, dtype, device)
        code = commands.import_(file, bank, choice, as_json)
    raise typer.Exit(code)
