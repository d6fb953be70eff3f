"""What the commands do that read latents and need no model: torch is imported, transformers is not."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from memspan.bank import archive
from memspan.bank import verify as verification
from memspan.bank.bank import MemoryBank
from memspan.bank.verify import Fault
from memspan.cli import render
from memspan.cli.choices import ModelChoice as ModelChoice
from memspan.cli.importing import imported


def export_bank(bank: Path, out: Path) -> None:
    with closing(MemoryBank.open(bank)) as opened:
        archive.export_bank(opened, out)


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
    render.show(values, as_json)


def verify(bank: Path, repair: bool, model: ModelChoice, as_json: bool) -> int:
    """Returns the exit code: 1 if faults are left."""
    if not MemoryBank.exists(bank) and (bank / "config.json").is_file():
        imported("commands").verify_checkpoint(bank, model)
        if as_json:
            render.as_json({"faults": []})
        else:
            render.out.print("no fault found")
        return 0
    with closing(MemoryBank.open(bank)) as opened:
        faults = verification.verify(opened)
        if repair and any(fault.repairable for fault in faults):
            _tell(faults)
            faults = imported("commands").repair_bank(opened, model.load(bank), faults)
    if as_json:
        render.as_json({"faults": [verification.describe(fault) for fault in faults]})
    else:
        _tell(faults)
        if not faults:
            render.out.print("no fault found")
        elif any(fault.repairable for fault in faults):
            render.err.print(f"mend what can be mended with: memspan verify {bank} --repair")
    return int(bool(faults))


def _tell(faults: Sequence[Fault]) -> None:
    for fault in faults:
        whose = "" if fault.namespace is None else f" (namespace {fault.namespace})"
        render.out.print(f"{fault.kind}: {fault.where}{whose}: {fault.message}")
