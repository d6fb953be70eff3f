"""What the commands do that read and change what is stored, and need no model: torch and transformers, which take
seconds to import, are not."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from memspan.bank.lines import export_documents
from memspan.bank.remembered import remembered
from memspan.bank.texts import TextBank
from memspan.cli import render
from memspan.cli.choices import ModelChoice, ScopeChoice
from memspan.cli.importing import imported
from memspan.cli.process import started_by_torchrun
from memspan.errors import MemspanError
from memspan.generate.lexical import search_words
from memspan.text.readers import Unreadable, read_content
from memspan.types import JSON, AddReport


def check_bank(bank: Path) -> None:
    """
    Raises:
        BankError: there is none, or it is damaged or of a newer format.
    """
    TextBank.open(bank).close()


def search(
    bank: Path,
    question: str,
    model: ModelChoice,
    scope: ScopeChoice,
    selector: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """With the selector "lexical" no model is loaded (by one process; of several the first prints, as with a model)."""
    check_bank(bank)
    if selector == "lexical" and not started_by_torchrun():
        with closing(TextBank.open(bank)) as opened:
            found = search_words(opened, question, scope.scope, limit, scope.namespace)
    else:
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


def ls(bank: Path, scope: ScopeChoice, after: int, limit: int, as_json: bool) -> None:
    with closing(TextBank.open(bank)) as opened:
        documents = opened.catalog.page(scope.namespace, after, limit, scope.scope)
    if as_json:
        render.as_json(documents)
        return
    rows = ((found.id, found.external_id, found.title, found.date, found.tokens, found.chunks) for found in documents)
    render.table(("id", "external id", "title", "date", "tokens", "chunks"), rows)
    if documents and len(documents) == limit:
        render.err.print(f"more with --after {documents[-1].id}")


def info(path: Path, as_json: bool) -> None:
    if TextBank.exists(path):
        with closing(TextBank.open(path)) as bank:
            counts, manifest = dataclasses.asdict(bank.catalog.counts()), dataclasses.asdict(bank.manifest)
            namespaces, names = bank.catalog.namespaces(), remembered(bank.catalog)
        made_with = {} if names is None else dataclasses.asdict(names)
        values = {"bank": str(path), "namespaces": namespaces, **counts, **manifest, **made_with}
    elif (path / "config.json").is_file():
        values = imported("commands").checkpoint_info(path)
    else:
        raise MemspanError(f"{path} is neither a bank nor a checkpoint")
    render.show(values, as_json)


def rm(bank: Path, ids: Sequence[int | str], namespace: str, as_json: bool) -> None:
    if not ids:
        raise MemspanError("nothing to delete; name external ids, or --id NUMBER")
    with closing(TextBank.open(bank)) as opened:
        deleted = opened.delete(ids, namespace)
    render.show({"deleted": deleted}, as_json)


def update(
    bank: Path,
    external_id: str,
    file: Path | None,
    title: str | None,
    date: str | None,
    set_fields: Sequence[str],
    namespace: str,
    model: ModelChoice,
    as_json: bool,
) -> None:
    fields = dict(map(_field, set_fields))
    text = None if file is None else _read_text(file)
    if text is None and title is None and date is None and not fields:
        raise MemspanError("nothing to update; name a FILE, --title, --date or --set KEY=VALUE")
    given = {name: value for name, value in (("text", text), ("title", title), ("date", date)) if value is not None}
    with closing(TextBank.open(bank)) as opened:
        before = opened.get(external_id, namespace)
        changed = dataclasses.replace(before, **given, metadata={**before.metadata, **fields})
        if changed.text_hash == before.text_hash:  # nothing is to be encoded
            updated = opened.relabel(changed, namespace)
            report = AddReport(updated=int(updated), unchanged=int(not updated), characters=len(changed.text))
            return render.report(report, [], opened, as_json)
    with model.open(bank, namespace) as memory:
        report = memory.add([changed])
        render.report(report, [], memory.bank, as_json)


def export(bank: Path, out: Path) -> None:
    if str(out) == "-" or out.suffix in (".jsonl", ".json"):
        with closing(TextBank.open(bank)) as opened:
            _export_lines(opened, out)
        return
    imported("upkeep").export_bank(bank, out)
    render.err.print(f"{render.size(out.stat().st_size)} written to {out}")


def _export_lines(bank: TextBank, out: Path) -> None:
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
