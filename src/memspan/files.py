"""Files that are whole or not there: written under another name, synced, renamed, and the folder synced.

What systems do differently is here and nowhere else. macOS syncs to the drive's cache only, unless asked for more.
Windows cannot sync folders, and neither replaces nor removes a file that someone has open or mapped.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PARTIAL_SUFFIX = ".partial"
CATALOG, SEGMENTS = "catalog.sqlite", "segments"
"""What stands in the folder of a memory bank."""
LATEST = "latest.json"
"""Names the present edition of a published bank."""
# A file that is replaced on Windows is waited for: its readers read it at once and close it.
_TRIES, _PAUSE_SECONDS = 40, 0.05
_PATH_KEYS = ("path", "file_path", "filepath")
_ABSOLUTE = re.compile(r"[A-Za-z]:[\\/]|[\\/]|~|file:")


def sync_file(descriptor: int) -> None:
    """Have what was written to an open file survive a loss of power."""
    if sys.platform == "darwin":
        import fcntl

        with contextlib.suppress(OSError):  # file systems that do not know it: network folders, FAT
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Have what was named, renamed and removed in a folder survive a loss of power, where folders can be synced."""
    if os.name == "nt":
        return
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            sync_file(descriptor)
        finally:
            os.close(descriptor)


def publish(names: Mapping[Path, Path]) -> None:
    """Give written files, or one folder, their names in one folder, durably.

    Args:
        names: where each of them is, and what it becomes; a file of that name is replaced.
    """
    for partial, path in names.items():
        _replace(partial, path)
    sync_folder(next(iter(names.values())).parent)


def _replace(partial: Path, path: Path) -> None:
    for left in reversed(range(_TRIES if os.name == "nt" else 1)):
        try:
            partial.replace(path)
            return
        except PermissionError:
            if not left:
                raise
            time.sleep(_PAUSE_SECONDS)


def link(names: Mapping[Path, Path]) -> None:
    """Give files second names in another folder, durably; a file system that has no links gets copies.

    Raises:
        FileNotFoundError: a file is not there.
        OSError: the other folder cannot be written.
    """
    for source, path in names.items():
        try:
            os.link(source, path)
        except (FileNotFoundError, FileExistsError):
            if not path.is_file():
                raise
        except OSError:
            with whole_file(path) as partial:
                shutil.copyfile(source, partial)
    sync_folder(next(iter(names.values())).parent)


def remove(path: Path) -> bool:
    """Remove a file; False where it must wait, because on Windows someone has it open or mapped."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        if os.name != "nt":
            raise
        return False
    return True


@contextlib.contextmanager
def synced_file(path: Path, *, private: bool = False) -> Iterator[None]:
    """A new file at `path`, to be written or replaced inside; synced at the end, removed where anything fails.

    It has the mode of any new file, whatever writes it (safetensors makes private ones); `private`: 600.
    """
    try:
        path.unlink(missing_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666))
        mode = stat.S_IMODE(path.stat().st_mode)
        yield
        path.chmod(mode)
        with path.open("rb+") as file:
            sync_file(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_file(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Where to write a file that becomes `path` at the end, durably; nothing is left of it where anything fails."""
    partial = _partial(path)
    with synced_file(partial, private=private):
        yield partial
    try:
        publish({partial: path})
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write a file of text (UTF-8, lines as they are) that is there whole or not at all."""
    with whole_file(path, private=private) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to write into that becomes `path` at the end, durably; nothing is left where anything fails.

    Its files have the mode of any new file. A folder `path` that is there must be empty by then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        partial.mkdir()
        yield partial
        mode = stat.S_IMODE(partial.stat().st_mode) & 0o666
        for file in partial.iterdir():
            file.chmod(mode)
            with file.open("rb+") as opened:
                sync_file(opened.fileno())
        sync_folder(partial)
        if path.exists():
            path.rmdir()
        publish({partial: path})
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}")


def without_folder(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A document's metadata for others, without the folders of this machine: of an absolute path the name is left."""
    return {
        name: re.split(r"[\\/]", value.rstrip("\\/"))[-1]
        if name in _PATH_KEYS and isinstance(value, str) and _ABSOLUTE.match(value)
        else value
        for name, value in metadata.items()
    }
