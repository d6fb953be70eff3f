"""What the commands do. Imported when one runs, not for `--help`: torch and transformers take seconds to import."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from memspan.bank.add import AddReport
from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE
from memspan.bank.encoders import encode_for_first
from memspan.bank.estimate import estimate as estimate_corpus
from memspan.bank.scope import Scope, parse_expressions
from memspan.cli import render
from memspan.config import MSAConfig
from memspan.errors import MemspanError
from memspan.generate.memory import Memory
from memspan.generate.request import AskOptions
from memspan.generate.sampling import Sampling as Sampling  # the options of the commands are made of these
from memspan.generate.summarize import SummaryPlan as SummaryPlan
from memspan.model.convert import LoadedModel, check_folder, load
from memspan.model.convert import convert as convert_model
from memspan.model.modeling import check_fingerprints
from memspan.model.runtime import pick_device, pick_dtype
from memspan.routing.ranks import DEFAULT_TIMEOUT, Ranks, own_gpu
from memspan.text.corpus import Reading, Skipped, installed_packages, read_paths, read_stream
from memspan.types import Answer, Document

SKIPPED, INTERRUPTED = 3, 130
# Ranks that encode hear of each other once a round, which may take long; that a process ended is noticed at once.
_ENCODING_TIMEOUT = 1800.0

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


@dataclasses.dataclass(frozen=True, slots=True)
class ModelChoice:
    """The model a command works with; see `memspan.model.convert.load` for the fields."""

    path: Path | None
    adapter: str | None
    dtype: str | None
    device: str | None
    weights: str | None = None
    memory_budget: str | None = None

    def load(self) -> LoadedModel:
        return load(self.path, adapter=self.adapter, dtype=self.dtype, device=self.device, weights=self.weights)

    def of_rank(self) -> ModelChoice:
        """On this rank's own GPU, where it is to be on one."""
        device = pick_device(self.device)
        if device.type == "cpu" or device.index is not None:
            return self
        return dataclasses.replace(self, device=f"{device.type}:{own_gpu()}")

    def open(self, bank: Path, namespace: str = DEFAULT_NAMESPACE, create: bool = False) -> Memory:
        """The bank with this model; `create` makes an empty one where there is none, in this process alone."""
        return Memory.open(
            bank,
            self.path,
            adapter=self.adapter,
            namespace=namespace,
            create=create,
            dtype=self.dtype,
            device=self.device,
            weights=self.weights,
            memory_budget=self.memory_budget,
            ranks=None if create else _ranks(pick_device(self.device)),
        )


def started_by_torchrun() -> bool:
    """Whether this is one of several processes that `torchrun` started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def refuse_torchrun(command: str) -> None:
    """
    Raises:
        MemspanError: several processes were started for a command that works in one.
    """
    if started_by_torchrun():
        raise MemspanError(f"memspan {command} runs in one process; start it without torchrun")


def _ranks(device: torch.device, timeout: float = DEFAULT_TIMEOUT) -> Ranks | None:
    """The processes that `torchrun` started, if it started several. Only the first prints."""
    if not started_by_torchrun():
        return None
    ranks = Ranks.join(device, timeout)
    if ranks.rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the process ends)
    return ranks


@dataclasses.dataclass(frozen=True, slots=True)
class ScopeChoice:
    """The documents a command looks at."""

    namespace: str
    expressions: Sequence[str]
    as_of: str | None

    @property
    def where(self) -> dict[str, Any]:
        return parse_expressions(self.expressions)

    @property
    def scope(self) -> Scope:
        return Scope.parse(self.where, self.as_of)


def convert(
    source: str,
    out: Path,
    dtype: str,
    template: str | None,
    layers: str | None,
    chunk_size: int,
    top_k: int,
    similarity: str | None,
    seed: int,
    as_json: bool,
) -> None:
    config = convert_model(
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
    show(_model_info(out, config), as_json)


def add(
    bank: Path,
    paths: Sequence[Path],
    installed: bool,
    namespace: str,
    model: ModelChoice,
    as_json: bool,
) -> int:
    """Returns the exit code: 0, SKIPPED or INTERRUPTED."""
    ranks = _ranks(torch.device("cpu"), _ENCODING_TIMEOUT)  # what they tell each other is on the CPU
    if ranks is not None:
        model = model.of_rank()
        if ranks.rank:
            with stop_flag() as stop:
                report = encode_for_first(bank, model.load(), ranks, should_stop=stop.is_set)
            return INTERRUPTED if report.interrupted else 0
    files = [path for path in paths if str(path) != "-"]
    use_stdin = len(files) < len(paths)
    if not (paths or installed):
        raise MemspanError("nothing to add; name files or folders, - for standard input, or --installed-packages")
    reading = Reading(files)
    stream = read_paths(files, reading)  # a path that does not exist is an error before anything is loaded
    packages = list(installed_packages()) if installed else []
    skipped: list[Skipped] = []

    def total() -> float | None:
        of_files = None if use_stdin else reading.total_characters() if files else 0.0
        return None if of_files is None else of_files + sum(len(package.text) for package in packages)

    with model.open(bank, namespace, create=True) as memory, stop_flag() as stop:
        with render.AddProgress(total) as progress:
            documents = _corpus(skipped, stream, read_stream(sys.stdin) if use_stdin else (), packages)
            report = memory.add(documents, progress=progress, should_stop=stop.is_set, group=ranks)
        show_report(report, skipped, memory.bank, as_json)
    return INTERRUPTED if report.interrupted else SKIPPED if skipped else 0


def ask(
    bank: Path,
    question: str | None,
    model: ModelChoice,
    scope: ScopeChoice,
    options: AskOptions,
    trace: bool,
    as_json: bool,
) -> None:
    options["where"], options["as_of"] = scope.where, scope.as_of  # a malformed filter fails before anything is loaded
    with model.open(bank, scope.namespace) as memory:
        if options.get("selector") is None and memory.default_selector == "lexical":
            render.err.print("note: this model's router is untrained; documents are chosen by full-text search")
        if question is not None:
            _answer(memory, question, options, trace, as_json)
            return
        if memory.ranks is not None:
            raise MemspanError("several processes cannot read questions from one prompt; write the question")
        for line in _questions():
            try:
                _answer(memory, line, options, trace, as_json)
            except MemspanError as error:
                render.err.print(f"error: {error}")


def search(
    bank: Path,
    question: str,
    model: ModelChoice,
    scope: ScopeChoice,
    selector: str | None,
    limit: int,
    as_json: bool,
) -> None:
    where = scope.where
    with model.open(bank, scope.namespace) as memory:
        found = memory.search(question, selector=selector, limit=limit, where=where, as_of=scope.as_of)
    if as_json:
        render.as_json(found)
        return
    for place, item in enumerate(found, start=1):
        render.out.print(render.evidence_line(place, item))
    if not found:
        render.err.print("nothing found")


def summarize(bank: Path, model: ModelChoice, scope: ScopeChoice, plan: SummaryPlan, as_json: bool) -> None:
    where = scope.where
    with model.open(bank, scope.namespace) as memory, render.CountProgress("documents read") as progress:
        summary = memory.summarize(plan, where=where, as_of=scope.as_of, progress=progress)
    if as_json:
        render.as_json(summary)
    else:
        render.summary(summary)


def ls(bank: Path, scope: ScopeChoice, after: int, limit: int, as_json: bool) -> None:
    with closing(MemoryBank.open(bank)) as opened:
        documents = opened.catalog.page(scope.namespace, after, limit, scope.scope)
    if as_json:
        render.as_json(documents)
        return
    rows = ((found.id, found.external_id, found.title, found.date, found.tokens, found.chunks) for found in documents)
    render.table(("id", "external id", "title", "date", "tokens", "chunks"), rows)
    if documents and len(documents) == limit:
        render.err.print(f"more with --after {documents[-1].id}")


def info(path: Path, as_json: bool) -> None:
    if MemoryBank.exists(path):
        with closing(MemoryBank.open(path)) as bank:
            counts, manifest = dataclasses.asdict(bank.catalog.counts()), dataclasses.asdict(bank.manifest)
            namespaces = bank.catalog.namespaces()
        values = {"bank": str(path), "namespaces": namespaces, **counts, **manifest}
    elif (path / "config.json").is_file():
        check_folder(path)
        config = MSAConfig.from_pretrained(path)
        check_fingerprints(config, path)
        values = _model_info(path, config)
    else:
        raise MemspanError(f"{path} is neither a bank nor a checkpoint")
    show(values, as_json)


def estimate(
    paths: Sequence[Path],
    installed: bool,
    model: ModelChoice,
    as_json: bool,
) -> None:
    if not (paths or installed):
        raise MemspanError("nothing to estimate; name files or folders, or --installed-packages")
    stream = read_paths(paths)
    result = estimate_corpus(model.load(), _corpus([], stream, installed_packages() if installed else ()))
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


def _layer_list(layers: str | None) -> list[int] | None:
    try:
        return [int(layer) for layer in layers.split(",")] if layers else None
    except ValueError as error:
        raise MemspanError(f"--layers must be numbers as in 15,16,17, not {layers!r}") from error


def _corpus(skipped: list[Skipped], *sources: Iterable[Document | Skipped]) -> Iterator[Document]:
    """The documents of all sources; what cannot be read is collected in `skipped`.

    So is a second document of one external id: adding it would replace the first.
    """
    seen: set[int] = set()  # hashes, so that a million ids stay small
    for source in sources:
        for found in source:
            if isinstance(found, Skipped):
                skipped.append(found)
            elif hash(found.external_id) in seen:
                where = str(found.metadata.get("path", found.external_id))
                skipped.append(Skipped(where, f"a document of the id {found.external_id!r} was read before"))
            else:
                seen.add(hash(found.external_id))
                yield found


@contextmanager
def stop_flag() -> Iterator[threading.Event]:
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


def show_report(report: AddReport, skipped: list[Skipped], bank: MemoryBank, as_json: bool) -> None:
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


def _answer(memory: Memory, question: str, options: AskOptions, trace: bool, as_json: bool) -> None:
    if as_json:
        render.as_json(memory.ask(question, **options))
        return
    answers: list[Answer] = []
    for text in memory.stream(question, **options, on_answer=answers.append):
        render.out.print(text, end="")
    render.out.print()
    render.answer_footer(answers[0])
    if trace:
        render.trace(answers[0])


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


def show(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        render.as_json(values)
    else:
        render.fields(values)
