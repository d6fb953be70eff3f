"""Commands that read and change what is stored. None needs torch or transformers before it loads a model."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memspan.cli import render
from memspan.cli.app import (
    BankArgument,
    BankOrModel,
    BudgetOption,
    CachedBank,
    ExpiryOptions,
    GPUBudgetOption,
    IdOption,
    JsonOption,
    MinScoreOption,
    Model,
    NamespaceOption,
    ReadBankArgument,
    Reranking,
    ScopeOptions,
    SelectorOption,
    WhereOption,
    command,
)
from memspan.cli.choices import check_known, chosen_ids, missing_namespace
from memspan.cli.importing import importing
from memspan.cli.process import started_by_torchrun
from memspan.errors import MemspanError
from memspan.places import BankPlace, quoted
from memspan.types import JSON, AddReport

if TYPE_CHECKING:
    from memspan.bank.texts import TextBank

_MOST_SHOWN = 20


@contextmanager
def open_texts(bank: PathLike[str]) -> Iterator[TextBank]:
    """The catalog of a bank, closed at the end.

    Raises:
        BankError: there is none, or it is damaged or of a newer format.
    """
    from memspan.bank.texts import TextBank

    with closing(TextBank.open(bank)) as opened:
        yield opened


def check_bank(bank: PathLike[str], change: str | None = None) -> None:
    """
    Args:
        change: what is to be done to it, if anything: "compacted".

    Raises:
        BankError: there is none, or it is damaged or of a newer format.
        ReadOnlyBank: it is to be changed, and was opened by a URL.
    """
    with open_texts(bank) as opened:
        if change is not None:
            opened.check_owned(change)


@command
def search(
    bank: CachedBank,
    question: Annotated[str, typer.Argument(help="Words or a question to search for.")],
    *,
    model: Model,
    scope: ScopeOptions,
    reranking: Reranking,
    selector: SelectorOption = None,
    limit: Annotated[int, typer.Option(min=0, help="Documents shown, at most.")] = 10,
    min_score: MinScoreOption = None,
    memory_budget: BudgetOption = None,
    gpu_memory_budget: GPUBudgetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find documents for a question, without answering it."""
    from memspan.bank.stored import num_pending
    from memspan.generate.lexical import check_questions, search_words
    from memspan.generate.selectors import ranking_selector

    anew = dataclasses.asdict(reranking)
    uses_model = reranking.uses_model() or selector is None or ranking_selector(selector).needs.model
    if selector is not None and not (uses_model or started_by_torchrun()):  # of several processes the first prints
        with open_texts(bank) as opened:
            found = search_words(opened, question, scope.scope, limit, scope.namespace, selector, min_score, **anew)
    else:
        check_questions([question])
        check_bank(bank)
        where = scope.where
        model = dataclasses.replace(model, memory_budget=memory_budget, gpu_memory_budget=gpu_memory_budget)
        with model.open(bank, scope.namespace) as memory:
            options: dict[str, Any] = {"selector": selector, "limit": limit, "min_score": min_score}
            options |= {"as_of": scope.as_of, "known_at": scope.known_at, **anew}
            found = memory.search(question, where=where, **options)
            if not as_json:
                render.pending_note(num_pending(memory.bank.catalog, scope.namespace), memory.bank)
    if as_json:
        render.as_json(found)
        return
    for place, item in enumerate(found, start=1):
        render.out.print(render.evidence_line(place, item))
    if not found:
        render.err.print("nothing found")


@command
def ls(
    bank: ReadBankArgument,
    *,
    scope: ScopeOptions,
    after: Annotated[int, typer.Option(min=0, help="Continue after this id.")] = 0,
    limit: Annotated[int, typer.Option(min=0, help="Documents shown, at most.")] = 50,
    stale: Annotated[
        bool, typer.Option("--stale", help="Instead, the files that are newer than their memory, or gone.")
    ] = False,
    expired: Annotated[
        bool,
        typer.Option("--expired", help="Instead, expired documents that are not erased yet; no question sees them."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the documents of a bank, in order of their ids."""
    if stale:
        if scope.expressions or scope.as_of or scope.known_at:
            raise MemspanError("--stale looks at files; leave out --where, --as-of and --known-at")
        return _list_stale(bank, scope.namespace, as_json)
    found = scope.scope
    if expired and found.is_past:
        raise MemspanError("--expired lists what is expired now; leave --as-of and --known-at out")
    if expired:
        found = dataclasses.replace(found, held="expired")
    with open_texts(bank) as opened:
        documents = opened.catalog.page(scope.namespace, after, limit, found)
        missing = missing_namespace(opened, scope.namespace)
    if as_json:
        render.as_json(documents)
        return
    if not documents:
        render.err.print(missing or "no documents")
    rows = ((found.id, found.external_id, found.title, found.date, found.tokens, found.chunks) for found in documents)
    render.table(("id", "external id", "title", "date", "tokens", "chunks"), rows)
    if documents and len(documents) == limit:
        render.err.print(f"more with --after {documents[-1].id}")


def _list_stale(bank: BankPlace, namespace: str, as_json: bool) -> None:
    from memspan.bank.ledger import Ledger

    with open_texts(bank) as opened:
        found = Ledger(opened.catalog, namespace).stale()
    if as_json:
        render.as_json([{"external_id": name, "state": state} for name, state in found])
        return
    render.table(("external id", "state"), found)
    if found:
        render.err.print(f"bring them in step with: memspan sync {quoted(bank)} FOLDER")


@command
def info(
    place: BankOrModel,
    as_json: JsonOption = False,
) -> None:
    """Describe a bank or a checkpoint."""
    from memspan.bank.ledger import Ledger
    from memspan.bank.remembered import remembered
    from memspan.bank.texts import TextBank
    from memspan.bank.words import outdated_namespaces

    if TextBank.exists(place):
        with open_texts(place) as bank:
            counts, manifest = dataclasses.asdict(bank.catalog.counts()), dataclasses.asdict(bank.manifest)
            namespaces, names = bank.catalog.namespaces(), remembered(bank.catalog)
            is_old = bool(outdated_namespaces(bank.catalog))
            stale = sum(len(Ledger(bank.catalog, namespace).stale()) for namespace in namespaces)
        made_with = {} if names is None else dataclasses.asdict(names)
        full_text = f"made by other rules; renew it with: memspan reindex {quoted(place)}" if is_old else "current"
        values = {
            "bank": str(place),
            "namespaces": namespaces,
            "stale_files": stale,
            **counts,
            "full_text": full_text,
            **manifest,
            **made_with,
        }
    elif (place.folder / "config.json").is_file():
        values = checkpoint_info(place.folder)
    else:
        raise MemspanError(f"{place} is neither a bank nor a checkpoint")
    render.show(values, as_json)


def checkpoint_info(path: Path) -> dict[str, Any]:
    """
    Raises:
        CheckpointError: the folder holds no MSA checkpoint.
    """
    with importing():
        import memspan.cli.models  # noqa: F401 (transformers writes no warnings then)
        from memspan.config import MSAConfig
        from memspan.model.backbones import check_folder
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
    external_ids: Annotated[
        list[str] | None,
        typer.Argument(help="External ids, as `ls` shows them, or patterns of them: 'docs/*.md', 'docs/**'."),
    ] = None,
    ids: IdOption = None,
    where: WhereOption = None,
    namespace: NamespaceOption = "default",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a pattern or --where forgets.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Forget documents: the next question does not see them. `compact` frees, `compact --secure` erases them."""
    if not (external_ids or ids or where):
        raise MemspanError("nothing to delete; name external ids, or --id NUMBER, or a pattern of ids, or --where")
    if ids and where:
        raise MemspanError("--id names documents already; use --where with external ids or patterns, or alone")
    with open_texts(bank) as opened:
        named, found = chosen_ids(opened, external_ids or [], where or [], namespace)
        if found and not yes:
            _ask_to_forget(found)
        deleted = opened.delete([*named, *found, *(ids or [])], namespace)
    render.show({"deleted": deleted}, as_json)


def _ask_to_forget(external_ids: Sequence[str]) -> None:
    """Show what is to be forgotten.

    Raises:
        Abort: the answer is not yes.
    """
    for external_id in external_ids[:_MOST_SHOWN]:
        render.err.print(render.one_line(external_id))
    if len(external_ids) > _MOST_SHOWN:
        render.err.print(f"... and {len(external_ids) - _MOST_SHOWN} more")
    typer.confirm(f"forget {render.counted(len(external_ids), 'document')}?", abort=True, err=True)


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
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE of the metadata; null removes KEY, objects are merged; may be repeated."),
    ] = None,
    unset: Annotated[
        list[str] | None, typer.Option("--unset", help="KEY of the metadata to remove; may be repeated.")
    ] = None,
    pin: Annotated[
        bool | None, typer.Option("--pin/--unpin", help="It never expires, in spite of its expiry; or it may again.")
    ] = None,
    namespace: NamespaceOption = "default",
    *,
    model: Model,
    expiry: ExpiryOptions,
    as_json: JsonOption = False,
) -> None:
    """Change the text, title, date, metadata or expiry of one document. The former version is kept."""
    text = None if file is None else _read_text(file)
    fields = _fields(set_fields or [], unset or []) or None
    given = {"text": text, "title": title, "metadata": fields, "date": date, "expires": expiry, "pinned": pin}
    if all(value is None for value in given.values()):
        options = "--title, --date or --set KEY=VALUE; or --unset KEY, --expires, --ttl, --pin, --unpin"
        raise MemspanError(f"nothing to update; name a FILE, {options}")
    from memspan.bank.texts import DocumentUpdate

    try:
        with open_texts(bank) as opened:
            check_known(opened, [external_id], namespace)
            found = opened.update(external_id, DocumentUpdate(**given), namespace)
            if found is not None:  # nothing is to be encoded
                report = AddReport(updated=int(found[1]), unchanged=int(not found[1]), characters=len(found[0].text))
                return render.report(report, [], opened, as_json)
        with model.open(bank, namespace) as memory:
            render.report(memory.update(external_id, **given), [], memory.bank, as_json)
    except ValueError as error:
        raise MemspanError(str(error)) from error


@command
def export(
    bank: ReadBankArgument,
    out: Annotated[Path, typer.Argument(help="X.jsonl: documents and metadata (- prints them); else all in one file.")],
    history: Annotated[
        bool, typer.Option("--history", help="JSON lines with former versions; the whole bank has them anyway.")
    ] = False,
) -> None:
    """Write a bank's documents as JSON lines, or the whole bank as one file."""
    if str(out) == "-" or out.suffix in (".jsonl", ".json"):
        with open_texts(bank) as opened:
            _export_lines(opened, out, history)
        return
    with importing():
        from memspan.bank.archive import export_bank
        from memspan.bank.bank import MemoryBank
    with closing(MemoryBank.open(bank)) as opened:
        export_bank(opened, out)
    render.err.print(f"{render.size(out.stat().st_size)} written to {out}")


def _export_lines(bank: TextBank, out: Path, history: bool) -> None:
    from memspan.bank.lines import export_documents

    if str(out) == "-":
        if isinstance(sys.stdout, io.TextIOWrapper):  # as in a file, whatever the terminal is in
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")
        export_documents(bank, sys.stdout, history=history)
        return
    if out.exists():
        raise MemspanError(f"{out} exists; name another file")
    with out.open("w", encoding="utf-8", newline="\n") as stream:
        count = export_documents(bank, stream, history=history)
    render.err.print(f"{render.counted(count, 'document')} written to {out}")


def _read_text(file: Path) -> str:
    if str(file) == "-":
        return sys.stdin.read()
    from memspan.text.readers import Unreadable, read_content

    try:
        return read_content(file).text
    except (OSError, Unreadable) as error:
        raise MemspanError(f"{file}: {error}") from error


def _fields(given: list[str], unset: list[str]) -> dict[str, JSON]:
    """The changes of metadata that --set and --unset say."""
    fields = dict(map(_field, given))
    both = next((key for key in unset if key in fields), None)
    if both is not None:
        raise MemspanError(f"{both!r} is both set and unset; name it once")
    return fields | dict.fromkeys(unset)


def _field(expression: str) -> tuple[str, JSON]:
    key, equals, value = expression.partition("=")
    if not (key and equals):
        raise MemspanError(f"--set needs KEY=VALUE, not {expression!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
