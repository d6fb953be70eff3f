"""What the commands do. Imported when one runs, not for `--help`: torch and transformers take seconds to import."""

from __future__ import annotations

import dataclasses
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch

from memspan.bank.add import import_documents
from memspan.bank.archive import import_bank
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import check_model
from memspan.bank.encoders import encode_for_first
from memspan.bank.estimate import estimate as estimate_corpus
from memspan.bank.reencode import reencode as reencode_bank
from memspan.bank.repair import repair as repair_bank  # noqa: F401 (for `upkeep`)
from memspan.cli import render
from memspan.cli.choices import ModelChoice, ScopeChoice
from memspan.cli.models import joined_ranks, on_own_gpu
from memspan.cli.process import INTERRUPTED, SKIPPED, refuse_torchrun, stop_flag
from memspan.config import MSAConfig
from memspan.errors import MemspanError
from memspan.generate.documents import found_documents
from memspan.generate.memory import Memory
from memspan.generate.request import AskOptions
from memspan.generate.sampling import Sampling as Sampling  # the options of the commands are made of these
from memspan.generate.summarize import SummaryPlan as SummaryPlan
from memspan.model.convert import check_folder, load
from memspan.model.convert import convert as convert_model
from memspan.model.modeling import check_fingerprints
from memspan.model.runtime import pick_device, pick_dtype
from memspan.text.corpus import Reading, Skipped, installed_packages, read_paths, read_stream
from memspan.types import Answer

# Ranks that encode hear of each other once a round, which may take long; that a process ended is noticed at once.
_ENCODING_TIMEOUT = 1800.0


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
    convert_model(
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


def add(
    bank: Path,
    paths: Sequence[Path],
    installed: bool,
    namespace: str,
    model: ModelChoice,
    as_json: bool,
) -> int:
    """Returns the exit code: 0, SKIPPED or INTERRUPTED."""
    ranks = joined_ranks(torch.device("cpu"), _ENCODING_TIMEOUT)  # what they tell each other is on the CPU
    if ranks is not None:
        model = on_own_gpu(model)
        if ranks.rank:
            with stop_flag() as stop:
                report = encode_for_first(bank, model.load(bank), ranks, should_stop=stop.is_set)
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
            documents = found_documents(skipped, stream, read_stream(sys.stdin) if use_stdin else (), packages)
            report = memory.add(documents, progress=progress, should_stop=stop.is_set, group=ranks)
        render.report(report, skipped, memory.bank, as_json)
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


def summarize(bank: Path, model: ModelChoice, scope: ScopeChoice, plan: SummaryPlan, as_json: bool) -> None:
    where = scope.where
    with model.open(bank, scope.namespace) as memory, render.CountProgress("documents read") as progress:
        summary = memory.summarize(plan, where=where, as_of=scope.as_of, progress=progress)
    if as_json:
        render.as_json(summary)
    else:
        render.summary(summary)


def estimate(
    paths: Sequence[Path],
    installed: bool,
    model: ModelChoice,
    as_json: bool,
) -> None:
    if not (paths or installed):
        raise MemspanError("nothing to estimate; name files or folders, or --installed-packages")
    documents = found_documents([], read_paths(paths), installed_packages() if installed else ())
    result = estimate_corpus(model.load(), documents)
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


def reencode(bank: Path, model: ModelChoice, as_json: bool) -> int:
    """Returns the exit code: 0 or INTERRUPTED."""
    with closing(MemoryBank.open(bank)) as opened, stop_flag() as stop:
        total = opened.catalog.num_characters()
        with render.AddProgress(lambda: total) as progress:
            report = reencode_bank(opened, model.load(bank), progress=progress, should_stop=stop.is_set)
        render.report(report, [], opened, as_json)
    return INTERRUPTED if report.interrupted else 0


def import_(file: Path, bank: Path, model: ModelChoice, as_json: bool) -> int:
    """Returns the exit code: 0 or INTERRUPTED."""
    refuse_torchrun("import")
    if not file.is_file():
        raise MemspanError(f"{file} does not exist")
    if zipfile.is_zipfile(file):
        check = partial(check_model, loaded=model.load()) if model.path is not None else lambda manifest: None
        with closing(import_bank(file, bank, check)) as imported:
            render.show({"bank": str(bank), **dataclasses.asdict(imported.catalog.counts())}, as_json)
        return 0
    with model.open(bank, create=True) as memory, stop_flag() as stop, _lines(file) as stream:
        reports = import_documents(memory.bank, memory.loaded, stream, should_stop=stop.is_set)
        for report in reports:
            render.report(report, [], memory.bank, as_json)
    return INTERRUPTED if any(report.interrupted for report in reports) else 0


def _layer_list(layers: str | None) -> list[int] | None:
    try:
        return [int(layer) for layer in layers.split(",")] if layers else None
    except ValueError as error:
        raise MemspanError(f"--layers must be numbers as in 15,16,17, not {layers!r}") from error


def _lines(file: Path) -> TextIO:
    """A file to be read line by line; what is not UTF-8 is found in its own line."""
    return file.open(encoding="utf-8", errors="surrogateescape")


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


def verify_checkpoint(folder: Path, model: ModelChoice) -> None:
    """
    Raises:
        CheckpointError: its weights, or the adapter's, are not those that were saved.
    """
    load(folder, adapter=model.adapter, device="cpu", verify=True)


def checkpoint_info(path: Path) -> dict[str, Any]:
    """
    Raises:
        CheckpointError: the folder holds no MSA checkpoint.
    """
    check_folder(path)
    config = MSAConfig.from_pretrained(path)
    check_fingerprints(config, path)
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
