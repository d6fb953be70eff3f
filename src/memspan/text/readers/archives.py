"""Archives: every member is a file of its own, called `ARCHIVE/MEMBER`. They may stand in each other."""

from __future__ import annotations

import re
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

from memspan.text.readers.formats import ContainerReader, FilePart, ReadOptions, Unreadable, damage_named
from memspan.text.readers.unpacking import UnpackBudget, UnpackLimitReached, name_on_disk, unpacked

MAX_DEPTH = 3
"""An archive in an archive in an archive is read."""

NEEDED_LATER = frozenset({"users.json"})
"""Members that stay on disk while the archive is read, for the files beside them (see `chats`)."""


@dataclass(frozen=True, slots=True)
class _Member:
    """A file in an archive: its name there, how it is opened, and why it is not read."""

    name: str
    opened: Callable[[], IO[bytes]]
    refused: str = ""


@dataclass(frozen=True, slots=True)
class _Reading:
    """What is the same for all members, in all depths."""

    options: ReadOptions
    budget: UnpackBudget


def read_archive(path: Path, options: ReadOptions) -> Iterator[FilePart]:
    """Yield the members of an archive and of the archives in it, each as a file on disk.

    Hidden members are passed over, as hidden files of a folder are. A member's name loses a leading `/`, a drive and
    `..`, and is never a path outside of the folder it is unpacked to, which is removed in the end.
    """
    with tempfile.TemporaryDirectory(prefix="memspan-", ignore_cleanup_errors=True) as folder:
        yield from _read(path, "", Path(folder), _Reading(options, UnpackBudget.of(path)), 1)


def _read(path: Path, prefix: str, folder: Path, reading: _Reading, depth: int) -> Iterator[FilePart]:
    for member in _members(path):
        inside = _clean(member.name)
        if not inside.parts or any(part.startswith((".", "__MACOSX")) for part in inside.parts):
            continue
        name = f"{prefix}{inside}"
        try:
            yield from _read_member(member, inside, name, folder, reading, depth)
        except UnpackLimitReached:
            raise
        except (Unreadable, OSError) as error:
            yield FilePart(name, Unreadable(str(error)))


def _read_member(
    member: _Member, inside: PurePosixPath, name: str, folder: Path, reading: _Reading, depth: int
) -> Iterator[FilePart]:
    from memspan.text.readers import why_unsupported  # which knows all formats, this one as well

    reason = member.refused or why_unsupported(Path(inside.name), reading.options)
    if reason:
        raise Unreadable(reason)
    target = folder.joinpath(*map(name_on_disk, inside.parts))
    with damage_named("member"), member.opened() as source:
        reading.budget.write(source, target)
    if not _kind(target):
        yield FilePart(name, target)
    elif depth == MAX_DEPTH:
        raise Unreadable("an archive too deep in others; unpack it and add the folder")
    else:
        with unpacked(target) as plain:
            yield from _read(plain, f"{name}/", folder / "nested", reading, depth + 1)
    if inside.name not in NEEDED_LATER:
        target.unlink(missing_ok=True)


def _members(path: Path) -> Iterator[_Member]:
    with damage_named("archive"):
        if _kind(path) == "zip":
            with zipfile.ZipFile(path) as archive:
                # Those near the root first: what files in folders need (see `NEEDED_LATER`) stands there.
                for info in sorted(archive.infolist(), key=lambda info: info.filename.count("/")):
                    if not info.is_dir():
                        yield _Member(_zip_name(info), partial(archive.open, info), _zip_refusal(info))
        else:
            with tarfile.open(path, "r:") as archive:
                for info in archive:
                    if not info.isdir():
                        refusal = "" if info.isreg() else "not a file (a link, a pipe or a device)"
                        yield _Member(info.name, lambda info=info: cast(IO[bytes], archive.extractfile(info)), refusal)


def _zip_refusal(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 1:
        return "encrypted; unpack it with its password and add the folder"
    return "a link" if stat.S_ISLNK(info.external_attr >> 16) else ""


def _zip_name(info: zipfile.ZipInfo) -> str:
    """A name that is not marked as UTF-8 is often UTF-8 all the same; else it stays as zipfile reads it."""
    if not info.flag_bits & 0x800:
        try:
            return info.filename.encode("cp437").decode("utf-8")
        except UnicodeError:
            pass
    return info.filename


def _clean(name: str) -> PurePosixPath:
    """The name without what leads out of the folder."""
    parts = name.encode(errors="replace").decode().replace("\\", "/").split("/")
    return PurePosixPath(
        *(part for part in parts if part not in ("", ".", "..") and not re.fullmatch("[A-Za-z]:", part))
    )


def _kind(path: Path) -> str:
    """ "zip" or "tar" where the name is that of an archive, compressed or not."""
    from memspan.text.readers import extension

    return extension(path) if extension(path) in ("zip", "tar") else ""


ARCHIVE = ContainerReader(read_archive)
