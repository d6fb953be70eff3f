"""Commands that read and change what is stored. None needs torch or transformers before it loads a model."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memspan.cli import render
from memspan.cli.app import (
    BankArgument,
    BudgetOption,
    GPUBudgetOption,
    IdOption,
    JsonOption,
    Model,
    NamespaceOption,
    ScopeOptions,
    SelectorOption,
    command,
)
from memspan.cli.importing import importing
from memspan.cli.process import started_by_torchrun
from memspan.errors import MemspanError
from memspan.types import JSON, AddReport

if TYPE_CHECKING:
    from memspan.bank.texts import TextBank


@contextmanager
def open_texts(bank: Path) -> Iterator[TextBank]:
    """The catalog of a bank, closed at the end.

    Raises:
        BankError: there is none, or it is damaged or of a newer format.
    """
    from memspan.bank.texts import TextBank

    with closing(TextBank.open(bank)) as opened:
        yield opened


def check_bank(bank: Path) -> None:
    """
    Raises:
        BankError: there is none, or it is damaged or of a newer format.
    """
    with open_texts(bank):
        pass


@command
def search(
    bank: BankArgument,
    question: Annotated[str, typer.Argument(help="What to look for.")],
    *,
    model: Model,
    scope: ScopeOptions,
    selector: SelectorOption = None,
    limit: Annotated[int, typer.Option(help="Documents shown, at most.")] = 10,
    min_score: Annotated[float | None, typer.Option(help="Leave out what scores less, 0 to 1.")] = None,
    memory_budget: BudgetOption = None,
    gpu_memory_budget: GPUBudgetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find documents for a question, without answering it."""
    from memspan.generate.lexical import search_words
    from memspan.generate.selectors import ranking_selector

    uses_model = selector is None or ranking_selector(selector).needs.model
    if selector is not None and not (uses_model or started_by_torchrun()):  # of several processes the first prints
        with open_texts(bank) as opened:
            found = search_words(opened, question, scope.scope, limit, scope.namespace, selector, min_score)
    else:
        check_bank(bank)
        where = scope.where
        model = dataclasses.replace(model, memory_budget=memory_budget, gpu_memory_budget=gpu_memory_budget)
        with model.open(bank, scope.namespace) as memory:
            options = {"selector": selector, "limit": limit, "min_score": min_score, "as_of": scope.as_of}
            found = memory.search(question, where=where, **options)
    if as_json:
        render.as_json(found)
        return
    for place, item in enumerate(found, start=1):
        render.out.print(render.evidence_line(place, item))
    if not found:
        render.err.print("nothing found")


@command
def ls(
    bank: BankArgument,
    *,
    scope: ScopeOptions,
    after: Annotated[int, typer.Option(help="Continue after this id.")] = 0,
    limit: Annotated[int, typer.Option(help="Documents shown, at most.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List the documents of a bank, in order of their ids."""
    with open_texts(bank) as opened:
        documents = opened.catalog.page(scope.namespace, after, limit, scope.scope)
    if as_json:
        render.as_json(documents)
        return
    rows = ((found.id, found.external_id, found.title, found.date, found.tokens, found.chunks) for found in documents)
    render.table(("id", "external id", "title", "date", "tokens", "chunks"), rows)
    if documents and len(documents) == limit:
        render.err.print(f"more with --after {documents[-1].id}")


@command
def info(
    path: Annotated[Path, typer.Argument(help="Folder of a bank or of an MSA checkpoint.")],
    as_json: JsonOption = False,
) -> None:
    """Describe a bank or a checkpoint."""
    from memspan.bank.remembered import remembered
    from memspan.bank.texts import TextBank

    if TextBank.exists(path):
        with open_texts(path) as bank:
            counts, manifest = dataclasses.asdict(bank.catalog.counts()), dataclasses.asdict(bank.manifest)
            namespaces, names = bank.catalog.namespaces(), remembered(bank.catalog)
        made_with = {} if names is None else dataclasses.asdict(names)
        values = {"bank": str(path), "namespaces": namespaces, **counts, **manifest, **made_with}
    elif (path / "config.json").is_file():
        values = checkpoint_info(path)
    else:
        raise MemspanError(f"{path} is neither a bank nor a checkpoint")
    render.show(values, as_json)


def checkpoint_info(path: Path) -> dict[str, Any]:
    """
    Raises:
        CheckpointError: the folder holds no MSA checkpoint.
    """
    with importing():
        import memspan.cli.models  # noqa: F401 (transformers writes no warnings then)
        from memspan.config import MSAConfig
        from memspan.model.convert import check_folder
        from memspan.model.modeling import check_fingerprints
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


@command
def rm(
    bank: BankArgument,
    external_ids: Annotated[list[str] | None, typer.Argument(help="External ids, as `ls` shows them.")] = None,
    ids: IdOption = None,
    namespace: NamespaceOption = "default",
    as_json: JsonOption = False,
) -> None:
    """Forget documents: the next question does not see them. `compact` frees, `compact --secure` erases them."""
    named = [*(external_ids or []), *(ids or [])]
    if not named:
        raise MemspanError("nothing to delete; name external ids, or --id NUMBER")
    with open_texts(bank) as opened:
        deleted = opened.delete(named, namespace)
    render.show({"deleted": deleted}, as_json)


@command
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
    *,
    model: Model,
    as_json: JsonOption = False,
) -> None:
    """Replace the text, title, date or metadata of one document."""
    fields = dict(map(_field, set_fields or []))
    text = None if file is None else _read_text(file)
    if text is None and title is None and date is None and not fields:
        raise MemspanError("nothing to update; name a FILE, --title, --date or --set KEY=VALUE")
    given = {name: value for name, value in (("text", text), ("title", title), ("date", date)) if value is not None}
    with open_texts(bank) as opened:
        before = opened.get(external_id, namespace)
        changed = dataclasses.replace(before, **given, metadata={**before.metadata, **fields})
        if changed.text_hash == before.text_hash:  # nothing is to be encoded
            updated = opened.relabel(changed, namespace)
            report = AddReport(updated=int(updated), unchanged=int(not updated), characters=len(changed.text))
            return render.report(report, [], opened, as_json)
    with model.open(bank, namespace) as memory:
        report = memory.add([changed])
        render.report(report, [], memory.bank, as_json)


@command
def export(
    bank: BankArgument,
    out: Annotated[Path, typer.Argument(help="X.jsonl: documents and metadata (- prints them); else all in one file.")],
) -> None:
    """Write a bank's documents as JSON lines, or the whole bank as one file."""
    if str(out) == "-" or out.suffix in (".jsonl", ".json"):
        with open_texts(bank) as opened:
            _export_lines(opened, out)
        return
    with importing():
        from memspan.bank.archive import export_bank
        from memspan.bank.bank import MemoryBank
    with closing(MemoryBank.open(bank)) as opened:
        export_bank(opened, out)
    render.err.print(f"{render.size(out.stat().st_size)} written to {out}")


def _export_lines(bank: TextBank, out: Path) -> None:
    from memspan.bank.lines import export_documents

    if str(out) == "-":
        export_documents(bank, sys.stdout)
        return
    if out.exists():
        raise MemspanError(f"{out} exists; name another file")
    with out.open("w", encoding="utf-8") as stream:
        count = export_documents(bank, stream)
    render.err.print(f"{count} documents written to {out}")


def _read_text(file: Path) -> str:
    if str(file) == "-":
        return sys.stdin.read()
    from memspan.text.readers import Unreadable, read_content

    try:
        return read_content(file).text
    except (OSError, Unreadable) as error:
        raise MemspanError(f"{file} cannot be read: {error}") from error


def _field(expression: str) -> tuple[str, JSON]:
    key, equals, value = expression.partition("=")
    if not (key and equals):
        raise MemspanError(f"--set needs KEY=VALUE, not {expression!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
