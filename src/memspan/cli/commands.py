"""Commands that use a model: torch and transformers, which take seconds to import, are imported when one runs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memspan.cli import render
from memspan.cli.app import (
    AskSelectorOption,
    BankArgument,
    BatchTokensOption,
    BudgetOption,
    CachedBank,
    ContentChunkOption,
    Engine,
    ExpiryOptions,
    GPUBudgetOption,
    InstalledOption,
    JsonOption,
    MinScoreOption,
    Model,
    NamespaceOption,
    OtherModel,
    ReadingOptions,
    Reranking,
    RouteAnswerOption,
    ScopeOptions,
    WeightsOption,
    command,
)
from memspan.cli.choices import missing_namespace
from memspan.cli.importing import importing
from memspan.cli.process import SKIPPED, started_by_torchrun, stop_flag
from memspan.cli.stored import check_bank, checkpoint_info, open_texts
from memspan.errors import MemspanError
from memspan.events import Done, TextWritten
from memspan.places import BankPlace

if TYPE_CHECKING:
    from memspan.cli.choices import ModelChoice
    from memspan.generate.memory import Memory
    from memspan.generate.request import AskOptions
    from memspan.generate.textual import TextMemory
    from memspan.routing.ranks import Ranks
    from memspan.text.corpus import Skipped

# Ranks that encode hear of each other once a round, which may take long; that a process ended is noticed at once.
_ENCODING_TIMEOUT = 1800.0


@command
def convert(
    source: Annotated[
        str, typer.Argument(help="Hugging Face folder, .gguf file or hub id. Default: the embedded SmolLM2.")
    ] = "smollm2-135m-instruct",
    *,
    out: Annotated[Path, typer.Option("--out", help="New checkpoint folder.")],
    dtype: Annotated[str, typer.Option(help="Number format of the saved weights.")] = "bfloat16",
    template: Annotated[str | None, typer.Option(help="chatml, msa or plain. Default: by the tokenizer.")] = None,
    layers: Annotated[str | None, typer.Option(help="MSA layers, as 15,16,17. Default: the upper half.")] = None,
    chunk_size: Annotated[int, typer.Option(help="Tokens pooled into one row.")] = 64,
    top_k: Annotated[int, typer.Option(help="Documents an MSA layer attends to.")] = 16,
    similarity: Annotated[
        str | None, typer.Option(help="One of {similarities}. Default: cosine, or as a released checkpoint serves.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the routers' random initialization.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Turn a plain decoder (its routers are then untrained) or a released MSA checkpoint into an MSA checkpoint."""
    with importing():
        import memspan.cli.models  # noqa: F401 (transformers writes no warnings then)
        from memspan.model.convert import convert
        from memspan.model.runtime import pick_device, pick_dtype
    convert(
        source,
        out,
        dtype=pick_dtype(dtype, pick_device("cpu")),
        template=template,
        msa_layers=_layer_list(layers),
        chunk_size=chunk_size,
        top_k_docs=top_k,
        similarity=similarity,
        seed=seed,
    )
    render.show(checkpoint_info(out), as_json)


def _layer_list(layers: str | None) -> list[int] | None:
    try:
        return [int(layer) for layer in layers.split(",")] if layers else None
    except ValueError as error:
        raise MemspanError(f"--layers must be numbers as in 15,16,17, not {layers!r}") from error


@command
def add(
    bank: BankArgument,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Files ({formats}; see docs/files.md) and folders; - reads standard input."),
    ] = None,
    installed: InstalledOption = False,
    namespace: NamespaceOption = "default",
    *,
    later: Annotated[
        bool, typer.Option("--later", help="End when the texts can be found; `memspan encode` does the rest.")
    ] = False,
    batch_tokens: BatchTokensOption = None,
    content_chunk: ContentChunkOption = None,
    engine: Engine,
    model: Model,
    how: ReadingOptions,
    expiry: ExpiryOptions,
    as_json: JsonOption = False,
) -> int:
    """Remember documents: store their texts, which search finds at once, then encode them. Makes a missing bank."""
    from memspan.bank.texts import TextBank
    from memspan.text.corpus import ReadProgress, found_documents, found_files, read_stream

    if not (paths or installed):
        raise MemspanError("nothing to add; name files or folders, - for standard input, or --installed-packages")
    files = [path for path in paths or () if str(path) != "-"]
    use_stdin = len(files) < len(paths or ())
    found = found_files(files)  # a path that does not exist is an error before anything is imported or loaded
    options = how.options
    model = dataclasses.replace(model, content_chunk=content_chunk or None)
    TextBank.exists_or_fits(bank)
    with importing():
        import torch

        from memspan.bank.ledger import FileReader
        from memspan.cli.models import joined_ranks, on_own_gpu
        from memspan.text.installed import installed_packages
    ranks = joined_ranks(torch.device("cpu"), _ENCODING_TIMEOUT)  # what they tell each other is on the CPU
    if ranks is not None and ranks.rank:
        return _encode_for_first(bank, model, ranks)
    model = model if ranks is None else on_own_gpu(model)
    encode = engine.encoder(model.device)
    if encode is not None:  # this process only reads
        model = dataclasses.replace(model, device="cpu")
    reading = ReadProgress(files)
    packages = list(installed_packages()) if installed else []
    skipped: list[Skipped] = []

    def total() -> float | None:
        of_files = None if use_stdin else reading.total_characters() if files else 0.0
        return None if of_files is None else of_files + sum(len(package.text) for package in packages)

    with model.open(bank, namespace, create=True) as memory, stop_flag() as stop:
        with render.AddProgress(total) as progress:
            reader = FileReader(memory.bank.catalog, namespace, reading, options=options)
            stdin = read_stream(sys.stdin, options=options) if use_stdin else ()
            documents = found_documents(skipped, reader.read(found), stdin, packages)
            run = {"progress": progress, "should_stop": stop.is_set}
            by_this = {"group": ranks, "later": later or encode is not None, "batch_tokens": batch_tokens}
            report = memory.add(documents, expires=expiry, **by_this, **run)
            if encode is not None and not (later or report.interrupted):
                report = report.and_then(encode(memory, dtype=model.dtype, batch_tokens=batch_tokens, **run))
        if not report.interrupted:
            reader.mark_read()
        render.report(report, skipped, memory.bank, as_json)
    return stop.code if report.interrupted else SKIPPED if skipped else 0


@command
def encode(
    bank: BankArgument,
    namespace: Annotated[
        list[str] | None,
        typer.Option("--namespace", "-n", help="Namespace of the documents; may be repeated. Default: all."),
    ] = None,
    *,
    batch_tokens: BatchTokensOption = None,
    model: Model,
    as_json: JsonOption = False,
) -> int:
    """Encode the documents that `add` left. A stopped run continues when run again; others may change the bank."""
    with open_texts(bank) as opened:
        opened.check_owned("changed")
        missing = next(filter(None, (missing_namespace(opened, one) for one in namespace or ())), None)
    if missing is not None:
        raise MemspanError(missing)
    with importing():
        import torch

        from memspan.bank.add import encode_pending
        from memspan.cli.models import joined_ranks, on_own_gpu
    ranks = joined_ranks(torch.device("cpu"), _ENCODING_TIMEOUT)
    if ranks is not None and ranks.rank:
        return _encode_for_first(bank, model, ranks)
    model = model if ranks is None else on_own_gpu(model)
    with model.open(bank, create=True) as memory, stop_flag() as stop:
        with render.AddProgress() as progress:
            how: dict[str, Any] = {"progress": progress, "should_stop": stop.is_set, "group": ranks}
            how["batch_tokens"] = batch_tokens
            report = encode_pending(memory.bank, memory.loaded, namespaces=namespace, **how)
        render.report(report, [], memory.bank, as_json)
    return stop.code if report.interrupted else 0


def _encode_for_first(bank: BankPlace, model: ModelChoice, ranks: Ranks) -> int:
    """The work of every rank but 0."""
    from memspan.bank.encoders import encode_for_first
    from memspan.cli.models import on_own_gpu

    with stop_flag() as stop:
        report = encode_for_first(bank.folder, on_own_gpu(model).load(bank), ranks, should_stop=stop.is_set)
    return stop.code if report.interrupted else 0


@command
def ask(
    bank: CachedBank,
    question: Annotated[str | None, typer.Argument(help="Without it, the command asks for questions.")] = None,
    *,
    model: Model,
    scope: ScopeOptions,
    answers: OtherModel,
    reranking: Reranking,
    selector: AskSelectorOption = None,
    min_score: MinScoreOption = None,
    max_documents: Annotated[int, typer.Option(min=0, help="Documents read, at most.")] = 5,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Looks into the memory, at most. Default: 1; 4 with generate.")
    ] = None,
    documents_per_round: Annotated[
        int | None, typer.Option(min=1, help="Documents of a round, at most. Default: 2 with several rounds.")
    ] = None,
    max_texts: Annotated[
        int | None,
        typer.Option(min=0, help="Documents read as text, the best; others from the bank's tokens (--content-chunk)."),
    ] = None,
    no_text: Annotated[bool, typer.Option("--no-text", help="Answer from the compressed memory alone.")] = False,
    text_only: Annotated[
        bool, typer.Option("--text-only", help="Answer from the texts found, without the compressed memory.")
    ] = False,
    route_answer: RouteAnswerOption = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Show the documents of every round: routed, chosen, read.")
    ] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Length of an answer, at most. Default: 64; 512 with --answer-with.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of sampling; 0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="String that ends an answer; may be repeated.")] = None,
    weights: WeightsOption = None,
    memory_budget: BudgetOption = None,
    gpu_memory_budget: GPUBudgetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question from a bank, with evidence."""
    from memspan.generate.lexical import check_min_score, check_questions

    check_bank(bank)
    if question is not None:
        check_questions([question])
    if selector is not None:
        from memspan.generate.selectors import check_packages

        check_packages(selector)
    check_min_score(min_score)
    reranks_with_model = reranking.uses_model()
    with importing():
        from memspan.generate.chat import DEFAULT_SAMPLING
        from memspan.generate.request import AskOptions
        from memspan.generate.sampling import GREEDY, Sampling
        from memspan.generate.selectors import SELECTORS
        from memspan.generate.textual import TextMemory
    answerer = answers.endpoint()
    usual = GREEDY if answerer is None else DEFAULT_SAMPLING
    length = usual.max_new_tokens if max_new_tokens is None else max_new_tokens
    options = AskOptions(
        selector=selector,
        max_documents=0 if no_text else max_documents,
        max_texts=max_texts,
        rounds=rounds,
        documents_per_round=documents_per_round,
        text_only=text_only,
        route_answer=route_answer,
        sampling=Sampling(length, temperature, top_p, seed, tuple(stop or ())),
        where=scope.where,  # a malformed filter fails before anything is loaded
        as_of=scope.as_of,
        known_at=scope.known_at,
        rerank=reranking.rerank,
        cross_encoder=reranking.cross_encoder,
        min_score=min_score,
    )
    needs_model = selector is None or SELECTORS[selector].needs.model or reranks_with_model
    if answerer is not None and not (needs_model or started_by_torchrun()):
        with open_texts(bank) as texts:
            _ask(TextMemory(texts, answerer, scope.namespace), question, options, trace, as_json)
        return
    budgets = {"memory_budget": memory_budget, "gpu_memory_budget": gpu_memory_budget}
    model = dataclasses.replace(model, weights=weights, answerer=answerer, **budgets)
    with model.open(bank, scope.namespace) as memory:
        if selector is None and not memory.loaded.model.config.router_trained:
            render.err.print("note: this model's router is untrained; documents are chosen by full-text search")
        if question is None and memory.ranks is not None:
            raise MemspanError("several processes cannot read questions from one prompt; write the question")
        _ask(memory, question, options, trace, as_json)


def _ask(memory: Memory | TextMemory, question: str | None, options: AskOptions, trace: bool, as_json: bool) -> None:
    """Answer a question, or those that are typed."""
    if question is not None:
        _answer(memory, question, options, trace, as_json)
        return
    for line in _questions():
        try:
            _answer(memory, line, options, trace, as_json)
        except MemspanError as error:
            render.err.print(f"error: {error}")


def _questions() -> Iterator[str]:
    """Questions typed at a prompt, or lines of standard input."""
    prompt = sys.stdin.isatty()
    while True:
        if prompt:
            render.err.print("> ", end="")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _answer(memory: Memory | TextMemory, question: str, options: AskOptions, trace: bool, as_json: bool) -> None:
    for event in memory.events(question, **options):
        if isinstance(event, TextWritten) and not as_json:
            render.out.print(event.text, end="")
        elif isinstance(event, Done) and as_json:
            render.as_json(event.answer)
        elif isinstance(event, Done):
            render.out.print()
            render.answer_footer(event.answer)
            if trace:
                render.trace(event.answer)


@command
def summarize(
    bank: CachedBank,
    about: Annotated[str, typer.Option(help="Subject of the summary. Default: everything.")] = "",
    *,
    model: Model,
    scope: ScopeOptions,
    answers: OtherModel,
    max_statements: Annotated[int, typer.Option(help="Statements of the summary, at most.")] = 10,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of the texts read together, at most.")] = 512,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens written about one batch, at most.")] = 96,
    weights: WeightsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sum up all documents of a scope; every statement names the documents that hold its words."""
    check_bank(bank)
    with importing():
        from memspan.generate.sampling import Sampling
        from memspan.generate.summarize import SummaryPlan
    plan = SummaryPlan(about, max_statements, batch_tokens, Sampling(max_new_tokens))
    where, model = scope.where, dataclasses.replace(model, weights=weights, answerer=answers.endpoint())
    with model.open(bank, scope.namespace) as memory, render.CountProgress("documents read") as progress:
        times = {"as_of": scope.as_of, "known_at": scope.known_at}
        summary = memory.summarize(plan, where=where, **times, progress=progress)
    if as_json:
        render.as_json(summary)
    else:
        render.summary(summary)
