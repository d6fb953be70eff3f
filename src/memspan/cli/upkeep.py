"""What the commands that change and check a bank do. Imported when one runs, as `commands` is."""

from __future__ import annotations

import dataclasses
import json
import sys
import zipfile
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from memspan.bank import archive
from memspan.bank import verify as verification
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import check_model
from memspan.bank.reencode import reencode as reencode_bank
from memspan.bank.verify import Fault
from memspan.cli import render
from memspan.cli.commands import INTERRUPTED, ModelChoice, refuse_torchrun, show, show_report, stop_flag
from memspan.errors import MemspanError
from memspan.model.convert import load
from memspan.text.readers import Unreadable, read_content
from memspan.types import JSON


def rm(bank: Path, ids: Sequence[int | str], namespace: str, as_json: bool) -> None:
    if not ids:
        raise MemspanError("nothing to delete; name external ids, or --id NUMBER")
    with closing(MemoryBank.open(bank)) as opened:
        deleted = opened.delete(ids, namespace)
    show({"deleted": deleted}, as_json)


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
    with closing(MemoryBank.open(bank)) as opened:
        opened.resolve(external_id, namespace)  # before a model is loaded
    with model.open(bank, namespace) as memory:
        metadata = {**memory.get(external_id).metadata, **fields}
        report = memory.update(external_id, text=text, title=title, metadata=metadata, date=date)
        show_report(report, [], memory.bank, as_json)


def compact(bank: Path, secure: bool, timeout: float, as_json: bool) -> None:
    with closing(MemoryBank.open(bank)) as opened:
        before = opened.catalog.counts()
        opened.compact(secure=secure, timeout=timeout)
        after = opened.catalog.counts()
    values: dict[str, Any] = {
        "deleted_documents": before.deleted_documents - after.deleted_documents,
        "segments": after.segments,
        "freed_bytes": before.segment_bytes - after.segment_bytes,
    }
    show(values, as_json)


def verify(bank: Path, repair: bool, model: ModelChoice, as_json: bool) -> int:
    """Returns the exit code: 1 if faults are left."""
    if not MemoryBank.exists(bank) and (bank / "config.json").is_file():
        load(bank, adapter=model.adapter, device="cpu", verify=True)
        if as_json:
            render.as_json({"faults": []})
        else:
            render.out.print("no fault found")
        return 0
    with closing(MemoryBank.open(bank)) as opened:
        faults = verification.verify(opened)
        if repair and any(fault.repairable for fault in faults):
            _tell(faults)
            faults = verification.repair(opened, model.load(), faults)
    if as_json:
        render.as_json({"faults": [verification.describe(fault) for fault in faults]})
    else:
        _tell(faults)
        if not faults:
            render.out.print("no fault found")
        elif any(fault.repairable for fault in faults):
            render.err.print(f"mend what can be mended with: memspan verify {bank} --repair")
    return int(bool(faults))


def reencode(bank: Path, model: ModelChoice, as_json: bool) -> int:
    """Returns the exit code: 0 or INTERRUPTED."""
    with closing(MemoryBank.open(bank)) as opened, stop_flag() as stop:
        total = opened.catalog.num_characters()
        with render.AddProgress(lambda: total) as progress:
            report = reencode_bank(opened, model.load(), progress=progress, should_stop=stop.is_set)
        show_report(report, [], opened, as_json)
    return INTERRUPTED if report.interrupted else 0


def export(bank: Path, out: Path) -> None:
    with closing(MemoryBank.open(bank)) as opened:
        if str(out) == "-":
            archive.export_documents(opened, sys.stdout)
        elif out.suffix in (".jsonl", ".json"):
            if out.exists():
                raise MemspanError(f"{out} exists; name another file")
            with out.open("w", encoding="utf-8") as stream:
                count = archive.export_documents(opened, stream)
            render.err.print(f"{count} documents written to {out}")
        else:
            archive.export_bank(opened, out)
            render.err.print(f"{render.size(out.stat().st_size)} written to {out}")


def import_(file: Path, bank: Path, model: ModelChoice, as_json: bool) -> int:
    """Returns the exit code: 0 or INTERRUPTED."""
    refuse_torchrun("import")
    if not file.is_file():
        raise MemspanError(f"{file} does not exist")
    if zipfile.is_zipfile(file):
        check = partial(check_model, loaded=model.load()) if model.path is not None else lambda manifest: None
        with closing(archive.import_bank(file, bank, check)) as imported:
            show({"bank": str(bank), **dataclasses.asdict(imported.catalog.counts())}, as_json)
        return 0
    with model.open(bank, create=True) as memory, stop_flag() as stop, _lines(file) as stream:
        reports = archive.import_documents(memory.bank, memory.loaded, stream, should_stop=stop.is_set)
        for report in reports:
            show_report(report, [], memory.bank, as_json)
    return INTERRUPTED if any(report.interrupted for report in reports) else 0


def _read_text(file: Path) -> str:
    if str(file) == "-":
        return sys.stdin.read()
    try:
        return read_content(file).text
    except (OSError, Unreadable) as error:
        raise MemspanError(f"{file} cannot be read: {error}") from error


def _lines(file: Path) -> TextIO:
    """A file to be read line by line; what is not UTF-8 is found in its own line."""
    return file.open(encoding="utf-8", errors="surrogateescape")


def _tell(faults: Sequence[Fault]) -> None:
    for fault in faults:
        whose = "" if fault.namespace is None else f" (namespace {fault.namespace})"
        render.out.print(f"{fault.kind}: {fault.where}{whose}: {fault.message}")


def _field(expression: str) -> tuple[str, JSON]:
    key, equals, value = expression.partition("=")
    if not (key and equals):
        raise MemspanError(f"--set needs KEY=VALUE, not {expression!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
