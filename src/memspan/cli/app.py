"""Commands. Exit codes: 0 done, 1 an error (said on stderr), 2 wrong usage, 3 files were skipped, 130 interrupted."""

from __future__ import annotations

import dataclasses
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers.utils import logging as transformers_logging

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import AddReport
from memspan.bank.estimate import estimate as estimate_corpus
from memspan.cli import render
from memspan.config import TEMPLATES, MSAConfig
from memspan.errors import MemspanError
from memspan.generate.memory import MAX_DOCUMENTS, Memory
from memspan.generate.sampling import Sampling
from memspan.model.backbones import DEFAULT_SOURCE
from memspan.model.convert import convert as convert_model
from memspan.model.convert import load
from memspan.model.runtime import pick_device, pick_dtype
from memspan.routing.selector import SELECTORS
from memspan.text.corpus import Skipped, installed_packages, read_paths, read_stream
from memspan.types import Answer, Document

app = typer.Typer(
    name="memspan",
    help="A language model with a memory of your documents: remember them once, ask, get answers with evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SKIPPED, INTERRUPTED = 3, 130

BankArgument = Annotated[Path, typer.Argument(help="Folder of the memory bank.")]
ModelOption = Annotated[
    Path | None,
    typer.Option("--model", envvar="MEMSPAN_MODEL", help="MSA checkpoint folder. Default: SmolLM2-135M-Instruct."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of text.")]
DtypeOption = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16. Default: what is fast here.")]
DeviceOption = Annotated[str | None, typer.Option(help="Torch device. Default: a GPU if there is one.")]


def _errors_named(command: Callable[..., None]) -> Callable[..., None]:
    """Known errors end with their message and exit code 1, without a traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        try:
            command(*args, **kwargs)
        except (MemspanError, ValueError) as error:
            render.err.print(f"error: {error}")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(INTERRUPTED) from error

    return run


@app.command()
@_errors_named
def convert(
    source: Annotated[str, typer.Argument(help="Hugging Face folder, .gguf file or hub id.")] = DEFAULT_SOURCE,
    out: Annotated[Path, typer.Option("--out", help="New checkpoint folder.")] = ...,  # type: ignore[assignment]
    dtype: Annotated[str, typer.Option(help="Of the saved weights.")] = "bfloat16",
    template: Annotated[str | None, typer.Option(help=f"One of {', '.join(TEMPLATES)}.")] = None,
    layers: Annotated[str | None, typer.Option(help="MSA layers, as 15,16,17. Default: the upper half.")] = None,
    chunk_size: Annotated[int, typer.Option(help="Tokens pooled into one row.")] = 64,
    top_k: Annotated[int, typer.Option(help="Documents an MSA layer attends to.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the routers' random initialisation.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Turn a plain decoder into an MSA checkpoint (its routers are untrained)."""
    if template is not None and template not in TEMPLATES:
        raise MemspanError(f"template must be one of {', '.join(TEMPLATES)}, not {template!r}")
    config = convert_model(
        source,
        out,
        dtype=pick_dtype(dtype, pick_device("cpu")),
        template=template,
        msa_layers=[int(layer) for layer in layers.split(",")] if layers else None,
        chunk_size=chunk_size,
        top_k_docs=top_k,
        seed=seed,
    )
    _show(_model_info(out, config), as_json)


@app.command()
@_errors_named
def add(
    bank: BankArgument,
    paths: Annotated[list[Path] | None, typer.Argument(help="Files and folders; - reads standard input.")] = None,
    installed: Annotated[
        bool, typer.Option("--installed-packages", help="Remember the Python packages of this environment.")
    ] = False,
    model: ModelOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remember documents: txt, md, rst, html, pdf, csv, tsv, jsonl. Makes the bank if there is none."""
    files = [path for path in paths or [] if str(path) != "-"]
    use_stdin = len(files) < len(paths or [])
    if not (files or use_stdin or installed):
        raise MemspanError("nothing to add; name files or folders, - for standard input, or --installed-packages")
    stream = read_paths(files)  # a path that does not exist is an error before anything is loaded
    skipped: list[Skipped] = []
    total = None
    if not use_stdin:  # read once before, to tell how much is left
        total = sum(len(document.text) for document in _corpus(read_paths(files), installed, False, []))
    with Memory.open(bank, model, create=True, dtype=dtype, device=device) as memory, _stop_flag() as stop:
        with render.AddProgress(total) as progress:
            documents = _corpus(stream, installed, use_stdin, skipped)
            report = memory.add(documents, progress=progress, should_stop=stop.is_set)
        _show_report(report, skipped, memory.bank, as_json)
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
    if skipped:
        raise typer.Exit(SKIPPED)


@app.command()
@_errors_named
def ask(
    bank: BankArgument,
    question: Annotated[str | None, typer.Argument(help="Left out: asked for, one after the other.")] = None,
    model: ModelOption = None,
    selector: Annotated[
        str | None,
        typer.Option(help=f"Who chooses documents: {', '.join(SELECTORS)}. Default: hybrid, lexical if untrained."),
    ] = None,
    max_documents: Annotated[int, typer.Option(help="Documents put before the model, at most.")] = MAX_DOCUMENTS,
    max_new_tokens: Annotated[int, typer.Option(help="Length of an answer, at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="String that ends an answer; may be repeated.")] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question from a bank, with evidence."""
    sampling = Sampling(max_new_tokens, temperature, top_p, seed, tuple(stop or ()))
    with Memory.open(bank, model, dtype=dtype, device=device) as memory:
        if selector is None and memory.default_selector == "lexical":
            render.err.print("note: this model's router is untrained; documents are chosen by full-text search")
        options: dict[str, Any] = {"selector": selector, "max_documents": max_documents, "sampling": sampling}
        if question is not None:
            _answer(memory, question, options, as_json)
            return
        for line in _questions():
            try:
                _answer(memory, line, options, as_json)
            except MemspanError as error:
                render.err.print(f"error: {error}")


@app.command()
@_errors_named
def ls(
    bank: BankArgument,
    after: Annotated[int, typer.Option(help="Continue after this id.")] = 0,
    limit: Annotated[int, typer.Option(help="Documents shown, at most.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List the documents of a bank, in order of their ids."""
    documents = MemoryBank.open(bank).catalog.page(after, limit)
    if as_json:
        render.as_json(documents)
        return
    rows = ((found.id, found.external_id, found.title, found.tokens, found.chunks) for found in documents)
    render.table(("id", "external id", "title", "tokens", "chunks"), rows)
    if len(documents) == limit:
        render.err.print(f"more with --after {documents[-1].id}")


@app.command()
@_errors_named
def info(
    path: Annotated[Path, typer.Argument(help="Folder of a bank or of an MSA checkpoint.")],
    as_json: JsonOption = False,
) -> None:
    """Describe a bank or a checkpoint."""
    if MemoryBank.exists(path):
        bank = MemoryBank.open(path)
        values = {"bank": str(path), **dataclasses.asdict(bank.catalog.counts()), **dataclasses.asdict(bank.manifest)}
    elif (path / "config.json").is_file():
        values = _model_info(path, MSAConfig.from_pretrained(path))
    else:
        raise MemspanError(f"{path} is neither a bank nor a checkpoint")
    _show(values, as_json)


@app.command()
@_errors_named
def estimate(
    paths: Annotated[list[Path] | None, typer.Argument(help="Files and folders.")] = None,
    installed: Annotated[bool, typer.Option("--installed-packages", help="As in add.")] = False,
    model: ModelOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how long a corpus would take to encode on this machine, and how much disk, without encoding it."""
    stream = read_paths(paths or [])
    loaded = load(model, dtype=dtype, device=device)
    result = estimate_corpus(loaded, _corpus(stream, installed, False, []))
    if as_json:
        render.as_json(result)
        return
    render.fields(
        {
            "sources": f"{result.sources:,}",
            "documents": f"{result.documents:,}",
            "tokens": f"{result.tokens:,}",
            "speed": f"{result.tokens_per_second:,.0f} tokens/s (measured on a sample)",
            "time": render.duration(result.seconds),
            "latents": render.size(result.latent_bytes),
            "routing keys": f"{render.size(result.routing_key_bytes)} of the latents, read by every routed question",
            "catalog": f"about {render.size(result.catalog_bytes)}",
        }
    )


def _corpus(
    stream: Iterable[Document | Skipped], installed: bool, use_stdin: bool, skipped: list[Skipped]
) -> Iterator[Document]:
    """The documents of all named sources; what cannot be read is collected in `skipped`."""
    sources = [stream]
    if use_stdin:
        sources.append(read_stream(sys.stdin))
    if installed:
        sources.append(installed_packages())
    for source in sources:
        for found in source:
            if isinstance(found, Document):
                yield found
            else:
                skipped.append(found)


@contextmanager
def _stop_flag() -> Iterator[threading.Event]:
    """Ctrl-C asks for a clean stop; pressed again, it interrupts at once."""
    flag = threading.Event()

    def ask_to_stop(*_: object) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()
        render.err.print("stopping after this batch; run the same command again to continue")

    before = signal.signal(signal.SIGINT, ask_to_stop)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)


def _show_report(report: AddReport, skipped: list[Skipped], bank: MemoryBank, as_json: bool) -> None:
    if as_json:
        render.as_json({**dataclasses.asdict(report), "skipped": skipped, "bank": bank.catalog.counts()})
        return
    for found in skipped:
        render.err.print(f"skipped {found.source}: {found.reason}")
    rate = report.tokens / report.seconds if report.seconds else 0.0
    done = "stopped" if report.interrupted else "done"
    counts = f"{report.added} added, {report.updated} updated, {report.unchanged} unchanged, {len(skipped)} skipped"
    work = f"{report.documents} documents, {report.tokens:,} tokens in {report.seconds:.1f} s ({rate:,.0f} tokens/s)"
    render.out.print(f"{done}: {counts}\n{work}")


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


def _answer(memory: Memory, question: str, options: dict[str, Any], as_json: bool) -> None:
    if as_json:
        render.as_json(memory.ask(question, **options))
        return
    answers: list[Answer] = []
    for text in memory.stream(question, **options, on_answer=answers.append):
        render.out.print(text, end="")
    render.out.print()
    render.answer_footer(answers[0])


def _model_info(path: Path, config: MSAConfig) -> dict[str, Any]:
    return {
        "checkpoint": str(path),
        "backbone": config.text_config.model_type,
        "layers": config.text_config.num_hidden_layers,
        "msa_layers": list(config.layers),
        "chunk_size": config.chunk_size,
        "top_k_docs": config.top_k_docs,
        "similarity": config.similarity,
        "template": config.template_spec.name,
        "router_trained": config.router_trained,
        "backbone_fingerprint": config.backbone_fingerprint,
        "encoder_fingerprint": config.encoder_fingerprint,
    }


def _show(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        render.as_json(values)
    else:
        render.fields(values)
