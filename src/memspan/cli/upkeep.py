"""Commands that look after a bank and its latents. None needs transformers before it loads a model."""

from __future__ import annotations

import dataclasses
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memspan.cli import render
from memspan.cli.app import (
    BankArgument,
    ContentChunkOption,
    InstalledOption,
    JsonOption,
    Model,
    NamespaceOption,
    OptionGroup,
    ReadBankArgument,
    ReadingOptions,
    command,
)
from memspan.cli.choices import TargetChoice, missing_namespace
from memspan.cli.importing import importing
from memspan.cli.process import SKIPPED, refuse_torchrun, stop_flag
from memspan.cli.stored import check_bank, open_texts
from memspan.errors import MemspanError
from memspan.places import BankPlace, quoted

if TYPE_CHECKING:
    from memspan.bank.encoded import EncodedSegment
    from memspan.bank.estimate import Estimate
    from memspan.bank.verify import Fault
    from memspan.bench.plan import CapacityPlan
    from memspan.model.convert import LoadedModel
    from memspan.text.corpus import Skipped


@command
def compact(
    bank: BankArgument,
    secure: Annotated[
        bool, typer.Option("--secure", help="Leave no deleted text or latents, and no former version, in any file.")
    ] = False,
    forget_versions: Annotated[
        str | None,
        typer.Option(help="Delete former versions that were replaced longer ago, as 30d; 0d: all."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for readers, with --secure.")] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Free the space of deleted and expired documents and join small segments. Readers go on."""
    check_bank(bank, "compacted")
    if forget_versions is not None:
        _check_age(forget_versions)
    with importing():
        from memspan.bank.bank import MemoryBank
    with closing(MemoryBank.open(bank)) as opened:
        before = opened.catalog.counts()
        opened.compact(secure=secure, forget_versions=forget_versions, timeout=timeout)
        after = opened.catalog.counts()
    values: dict[str, Any] = {
        "deleted_documents": before.deleted_documents - after.deleted_documents,
        "forgotten_versions": before.versions - after.versions,
        "segments": after.segments,
        "freed_bytes": before.segment_bytes - after.segment_bytes,
    }
    render.show(values, as_json)


def _check_age(age: str) -> None:
    from memspan.bank.clock import moment_before

    try:
        moment_before(age)
    except ValueError as error:
        raise MemspanError(f"--forget-versions: {error}") from error


@command
def reindex(bank: BankArgument, as_json: JsonOption = False) -> None:
    """Rebuild the full-text index from the stored texts, by the rules of this version. Encodes nothing."""
    from memspan.text.terms import rules

    with open_texts(bank) as opened:
        opened.reindex()
        documents = opened.catalog.counts().documents
    render.show({"bank": str(bank), "documents": documents, "full_text": rules()}, as_json)


@command
def verify(
    bank: BankArgument,
    repair: Annotated[bool, typer.Option("--repair", help="Rebuild damaged parts from the stored text.")] = False,
    *,
    model: Model,
    as_json: JsonOption = False,
) -> int:
    """Check every byte of a bank, or all weights of a checkpoint. Exit code 1 for damage."""
    from memspan.bank.texts import TextBank

    faults: Sequence[Fault] = ()
    if (bank.folder / "config.json").is_file() and not TextBank.exists(bank):
        with importing():
            from memspan.cli.models import load
        load(bank.folder, adapter=model.adapter, device="cpu", verify=True)  # raises where weights are not those saved
    else:
        check_bank(bank, "verified")
        faults = _verified(bank, repair, model)
    if as_json:
        render.as_json({"faults": [fault.described() for fault in faults]})
        return int(bool(faults))
    _show(faults)
    if not faults:
        render.out.print("no fault found")
    elif any(fault.repairable for fault in faults):
        render.err.print(f"mend what can be mended with: memspan verify {quoted(bank)} --repair")
    return int(bool(faults))


def _verified(bank: BankPlace, repair: bool, model: Model) -> Sequence[Fault]:
    """The faults of a bank that are left after repair."""
    with importing():
        from memspan.bank.bank import MemoryBank
        from memspan.bank.verify import verify
    with closing(MemoryBank.open(bank)) as opened:
        faults = verify(opened)
        if not (repair and any(fault.repairable for fault in faults)):
            return faults
        _show(faults)
        with importing():
            from memspan.bank.repair import repair as mend
        return mend(opened, model.load(bank), faults)


def _show(faults: Sequence[Fault]) -> None:
    for fault in faults:
        whose = "" if fault.namespace is None else f" (namespace {fault.namespace})"
        render.out.print(f"{fault.kind}: {fault.where}{whose}: {fault.message}")


def _target(
    target: Annotated[
        str | None,
        typer.Option(help="Plan a memory of as many tokens, as 100M or 1B; files are a sample of it."),
    ] = None,
    gpus: Annotated[
        str, typer.Option(help="Of --target: machines, as 8xH100. Kinds: H100, H200, A100-80G, L40S, 4090, B200, cpu.")
    ] = "1xcpu",
    price: Annotated[float | None, typer.Option(help="Of --target: what an hour of one GPU costs.")] = None,
    shape: Annotated[
        str | None, typer.Option(help="Of --target: smollm2-135m or qwen3-4b, in place of a model that is here.")
    ] = None,
) -> TargetChoice | None:
    if target is not None:
        return TargetChoice(target, gpus, price, shape)
    if (gpus, price, shape) != ("1xcpu", None, None):
        raise MemspanError("--gpus, --price and --shape plan a memory; say of how many tokens: --target 1B")
    return None


@command
def estimate(
    paths: Annotated[list[Path] | None, typer.Argument(help="Files and folders.")] = None,
    installed: InstalledOption = False,
    *,
    content_chunk: ContentChunkOption = None,
    planned: Annotated[TargetChoice | None, OptionGroup(_target)],
    model: Model,
    how: ReadingOptions,
    as_json: JsonOption = False,
) -> int:
    """Estimate the time and disk space of a corpus on this machine, or of --target tokens on others. Encodes nothing
    but a sample."""
    from memspan.text.corpus import found_documents, read_paths
    from memspan.text.installed import installed_packages

    if not (paths or installed or planned):
        raise MemspanError("nothing to estimate; name files or folders, --installed-packages, or --target TOKENS")
    stream = read_paths(paths or (), options=how.options)
    model = dataclasses.replace(model, content_chunk=content_chunk or None)
    skipped: list[Skipped] = []

    with importing():
        from memspan.bank.estimate import estimate

    def counted(loaded: LoadedModel) -> Estimate:
        return estimate(loaded, found_documents(skipped, stream, installed_packages() if installed else ()))

    if planned is None:
        result: Any = counted(model.load())
        shown = _estimated(result)
    else:
        result = planned.plan(model, counted if paths or installed else None)
        shown = _planned(result)
    if as_json:
        render.as_json({**dataclasses.asdict(result), "skipped": skipped})
    else:
        render.name_skipped(skipped)
        render.fields(shown)
    return SKIPPED if skipped else 0


def _estimated(result: Estimate) -> dict[str, str]:
    return {
        "sources": f"{result.sources:,}",
        "documents": f"{result.documents:,}",
        "tokens": f"{result.tokens:,}",
        "speed": f"{result.tokens_per_second:,.0f} tokens/s (measured on a sample)",
        "time": render.duration(result.seconds),
        "latents": render.size(result.latent_bytes),
        "routing keys": f"{render.size(result.routing_key_bytes)} of the latents, read by every routed question",
        "catalog": f"about {render.size(result.catalog_bytes)}",
    }


def _planned(plan: CapacityPlan) -> dict[str, str]:
    size, duration = render.size, render.duration
    parts = f"computing {duration(plan.computing_seconds)}, splitting text {duration(plan.splitting_seconds)}"
    disk = f"latents {size(plan.latent_bytes)}, routing keys in 8 bits {size(plan.coarse_bytes)}"
    rank = "GPU" if plan.kind != "cpu" else "machine"
    keys = f"{size(plan.key_bytes)} of routing keys, room for {size(plan.key_room_bytes)}"
    money = "" if plan.cost is None else f", which cost {plan.cost:,.2f}"
    basis = "measured on 2 cores" if plan.is_measured else "derived from data sheets, not measured"
    found = {
        "memory": f"{plan.tokens:,} tokens, {plan.documents:,} documents, {plan.chunks:,} chunks, "
        f"{plan.segments:,} segments",
        "machines": f"{plan.gpus:,} x {plan.kind} ({basis})",
        "encoding": f"{duration(plan.encoding_seconds)}: {parts}",
        "GPU hours" if rank == "GPU" else "hours": f"{plan.gpu_hours:,.1f}{money}",
        "disk": f"{size(plan.disk_bytes)}: {disk}, catalog {size(plan.catalog_bytes)}",
        f"a {rank}": f"{keys}, beside {size(plan.weight_bytes)} of weights",
        "host memory": f"{size(plan.host_bytes)} a process ({plan.ranks:,} of them)",
        "a question": f"reads the routing keys in at least {1000 * plan.routing_seconds:,.1f} ms, and "
        f"{size(plan.content_bytes)} from disk",
    }
    if plan.ranks > 1:
        waits = f"{plan.steps:,} messages one after another: {1000 * plan.network_seconds:,.1f} ms"
        found["network"] = f"{size(plan.received_bytes)} a question to each process, {waits} (25 Gbit/s, 0.05 ms each)"
    return found | {f"limit {place}": one for place, one in enumerate(plan.limits, start=1)}


@command
def changes(
    bank: ReadBankArgument,
    since: Annotated[
        str | None, typer.Argument(help="A day, a moment, or how long ago: 2026-03-01, 2026-03-01T10:00, 7d, 12h.")
    ] = None,
    after_commit: Annotated[
        int | None, typer.Option(help="Instead, changes after this commit, which an earlier call named; 0: all.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Changes shown, at most.")] = 50,
    offset: Annotated[int, typer.Option(min=0, help="Changes to pass over first.")] = 0,
    namespace: NamespaceOption = "default",
    as_json: JsonOption = False,
) -> None:
    """List the documents that were added, changed, deleted or have expired since a time."""
    from memspan.bank.changes import changes_since

    if (since is None) == (after_commit is None):
        raise MemspanError("say since when: a day, a moment or how long ago; or --after-commit NUMBER, one of them")
    with open_texts(bank) as opened, opened.pinned_catalog() as catalog:
        cut = slice(offset, offset + limit)
        found = changes_since(catalog, catalog.commits(), namespace, cut, since, after_commit)
        missing = missing_namespace(opened, namespace)
    if as_json:
        render.as_json(dataclasses.asdict(found))
        return
    rows = ((one.at, one.kind, one.external_id or "(erased)", one.title) for one in found.changes)
    render.table(("at (UTC)", "change", "external id", "title"), rows)
    more = f"; more with --offset {offset + limit}" if found.more else ""
    if missing:
        render.err.print(missing)
    render.err.print(f"what changes from now on: --after-commit {found.commit}{more}")


@command
def publish(
    bank: BankArgument,
    url: Annotated[str, typer.Argument(help="A folder, or a URL that fsspec knows: s3://bucket/notes, gs://, ...")],
    keep: Annotated[int, typer.Option(help="Editions that stay there, for readers in the middle of one.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Publish the present state of a bank at a URL, for readers on other machines. Uploads only missing files."""
    from memspan.bank.publish import publish

    with open_texts(bank) as opened, render.CountProgress("bytes uploaded") as progress:
        done = publish(opened, url, keep, progress)
    render.show(dataclasses.asdict(done), as_json)


@command
def commit(
    bank: BankArgument,
    manifests: Annotated[
        list[Path], typer.Argument(help="JSON lines, a row each, as encoders gave them; - reads standard input.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Make documents exist that an `Encoder` encoded in other processes, all or none; see docs/how-to.md."""
    check_bank(bank, "changed")
    with importing():
        from memspan.bank.bank import MemoryBank
        from memspan.bank.encoded import read_manifest
    rows = [row for path in manifests for row in _manifest(path, read_manifest)]
    with closing(MemoryBank.open(bank)) as opened:
        render.show(dataclasses.asdict(opened.commit(rows)), as_json)


def _manifest(path: Path, read: Callable[[Iterable[str], str], list[EncodedSegment]]) -> list[EncodedSegment]:
    """The rows of a file; what is not UTF-8 is found in its own line."""
    if str(path) == "-":
        return read(sys.stdin, "standard input")
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            return read(lines, str(path))
    except OSError as error:
        raise MemspanError(f"cannot read {path}: {error}") from error


@command
def reencode(
    bank: BankArgument, *, content_chunk: ContentChunkOption = None, model: Model, as_json: JsonOption = False
) -> int:
    """Rebuild a bank's latents for another model or content, from its stored text. A stopped run continues when run
    again."""
    check_bank(bank, "encoded anew")
    with importing():
        from memspan.bank.bank import MemoryBank
        from memspan.bank.reencode import reencode
    with closing(MemoryBank.open(bank)) as opened, stop_flag() as stop:
        total = opened.catalog.num_characters()
        with render.AddProgress(lambda: total) as progress:
            kept = content_chunk if content_chunk is not None else opened.manifest.content_chunk
            loaded = dataclasses.replace(model, content_chunk=kept or None).load(bank)
            report = reencode(opened, loaded, progress=progress, should_stop=stop.is_set)
        render.report(report, [], opened, as_json)
    return stop.code if report.interrupted else 0


@command
def import_(
    file: Annotated[Path, typer.Argument(help="File that `export` wrote.")],
    bank: BankArgument,
    *,
    model: Model,
    as_json: JsonOption = False,
) -> int:
    """Make a bank from an exported one, or encode documents from JSON lines into a new or an existing bank."""
    refuse_torchrun("import")
    from memspan.bank.texts import TextBank

    if not file.is_file():
        raise MemspanError(f"{file} does not exist")
    TextBank.exists_or_fits(bank)
    with importing():
        from memspan.bank.add import import_documents
        from memspan.bank.archive import import_bank
        from memspan.bank.encode import check_model
        from memspan.bank.lines import read_exported
    if zipfile.is_zipfile(file):
        check = partial(check_model, loaded=model.load()) if model.path is not None else lambda manifest: None
        with closing(import_bank(file, bank, check)) as imported:
            render.show({"bank": str(bank), **dataclasses.asdict(imported.catalog.counts())}, as_json)
        return 0
    # What is not UTF-8 is found in its own line.
    reading = partial(file.open, encoding="utf-8", errors="surrogateescape")
    with reading() as lines:
        if next(read_exported(lines), None) is None:  # a file of something else is an error before a bank is made
            raise MemspanError(f"{file} holds no documents; name a file that `memspan export` wrote")
    lines = reading()
    with model.open(bank, create=True) as memory, stop_flag() as stop, lines:
        with render.AddProgress() as progress:
            report = import_documents(memory.bank, memory.loaded, lines, progress=progress, should_stop=stop.is_set)
        render.report(report, [], memory.bank, as_json)
    return stop.code if report.interrupted else 0
