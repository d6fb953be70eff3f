"""Taking a whole bank elsewhere, as one file: a zip archive, not compressed, of `catalog.sqlite` and
`segments/*.safetensors`."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from memspan.bank import edits
from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import Catalog
from memspan.bank.folder import (
    PARTIAL_CATALOG,
    coarse_path,
    new_bank,
    segment_of,
    segment_paths,
    segments_folder,
)
from memspan.bank.ledger import forget_disk
from memspan.bank.manifest import Manifest
from memspan.bank.remembered import forget_id
from memspan.errors import BankError
from memspan.files import CATALOG, SEGMENTS, sync_file, sync_folder, whole_file
from memspan.places import BankPlace

_COPY_BYTES = 2**20
# What zipfile raises for damaged archives.
_ZIP_ERRORS = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error)


def export_bank(bank: MemoryBank, path: str | Path) -> None:
    """Write the whole bank, as of now, into one file. Writers may go on meanwhile.

    Nothing that was deleted or has expired is in it; former versions are. Takes the space of the bank twice while it
    works, beside `path`.

    Raises:
        BankError: the file exists, or cannot be written; nothing is left of it then.
    """
    bank.check_owned("exported whole")
    target = Path(path).expanduser()
    if target.exists():
        raise BankError(f"{target} exists; name another file")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch, whole_file(target) as partial:
            copy = Path(scratch)
            _copy(bank, copy)
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                archive.write(copy / CATALOG, CATALOG)
                for file in sorted(segments_folder(copy).iterdir()):
                    archive.write(file, f"segments/{file.name}")
    except (OSError, sqlite3.Error, ValueError) as error:
        raise BankError(f"cannot write {target}: {error}") from error


def import_bank(
    path: str | Path, folder: str | os.PathLike[str], check: Callable[[Manifest], object] = lambda manifest: None
) -> MemoryBank:
    """Make a bank of what `export_bank` wrote. Every file is compared with its checksum.

    Args:
        folder: of the new bank.
        check: given the bank's manifest before there is a bank, as `check_model` of your model. Default: it is compared
            when a model opens the bank.

    Raises:
        BankMismatch: another model encoded the bank.
        BankError: not such a file, damaged, or the folder holds something; no bank is left then.
    """
    source, target = Path(path).expanduser(), BankPlace.of(folder).new_folder
    try:
        with new_bank(target):
            _extract(source, target)
            _check_import(target, check)
    except (OSError, *_ZIP_ERRORS) as error:
        raise BankError(f"cannot import {source} into {target}: {error}") from error
    return MemoryBank.open(target)


def _copy(bank: MemoryBank, folder: Path) -> None:
    """Copy what a bank holds now into a folder, without what is deleted, staged or retired."""
    segments_folder(folder).mkdir()
    with bank.pinned_catalog() as catalog:
        catalog.copy_to(folder / CATALOG)
        for _, files in catalog.segments():
            source = segments_folder(bank.folder)
            derived = coarse_path(source, files.name)
            for file in (*segment_paths(source, files.name), *([derived] if derived.exists() else [])):
                _link(file, segments_folder(folder) / file.name)
    with closing(Catalog(folder / CATALOG)) as copied:
        edits.upgrade(copied)
        edits.forget_unfinished(copied)
        forget_disk(copied)
        forget_id(copied)
    with closing(MemoryBank.open(folder)) as copied_bank, copied_bank.locked():
        edits.forget(copied_bank.catalog, None)
        copied_bank.free_space(secure=True, timeout=0)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:  # another file system
        shutil.copyfile(file, target)


def _extract(source: Path, target: Path) -> None:
    with zipfile.ZipFile(source) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > source.stat().st_size:
                raise BankError(f"{source} is not an exported bank: {entry.filename!r} is compressed")
            folder, _, name = entry.filename.rpartition("/")
            if entry.filename == CATALOG:
                path = target / PARTIAL_CATALOG
            elif folder == SEGMENTS and Path(name).name == name and segment_of(Path(name)):
                path = segments_folder(target) / name
            else:
                raise BankError(f"{source} is not an exported bank: it holds {entry.filename!r}")
            with archive.open(entry) as packed, path.open("wb") as file:
                shutil.copyfileobj(packed, file, _COPY_BYTES)
                file.flush()
                sync_file(file.fileno())
    sync_folder(segments_folder(target))


def _check_import(target: Path, check: Callable[[Manifest], object]) -> None:
    if not (target / PARTIAL_CATALOG).is_file():
        raise BankError("it is not an exported bank: it holds no catalog")
    with closing(Catalog(target / PARTIAL_CATALOG)) as catalog:
        if catalog.value("PRAGMA integrity_check(1)") != "ok":
            raise BankError("the exported bank is damaged: its catalog is no longer what was written")
        check(Manifest.from_json(catalog.read_manifest()))
        changed = [path for _, files in catalog.segments() for path in files.changed(segments_folder(target))]
    if changed:
        raise BankError(f"the exported bank is damaged: {changed[0].name} is missing or has another sha256")
