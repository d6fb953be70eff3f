"""What differs between folders and what a bank's ledger knows of them. Nothing is changed here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memspan.bank.ledger import FileStat, KnownFile, ReadFile, sha256_of
from memspan.text.corpus import is_meant
from memspan.text.folders import FoundFile, GivenPath, Root, Roots, rebased, relative_path
from memspan.text.readers import ReadOptions, why_unsupported
from memspan.types import Skipped

# Of so many files more than half may be gone at once; of more, that looks as a folder does that is not mounted.
_FEW_FILES = 10


@dataclass(frozen=True, slots=True)
class LocatedFile:
    """A file that is there, the root that names it, and its path from that."""

    file: FoundFile
    root: Root
    relative: str

    @property
    def name(self) -> str:
        """What its documents are called, if they are new."""
        return self.root.name_of(self.relative)


@dataclass(slots=True)
class Differences:
    """What differs.

    Attributes:
        new: files that the bank does not know. changed: with other content, or of which a document is not in the bank.
        moved: files that are gone, and new ones with their content.
        gone: files that are not there any more.
        touched: files written anew with the same content.
        standing: numbers of the files that are as they were, the touched included.
        skipped: what cannot be read, or is of an unknown kind.
        refused: for every folder of which too much is gone, what to say.
    """

    new: list[LocatedFile] = field(default_factory=list)
    changed: list[tuple[LocatedFile, KnownFile]] = field(default_factory=list)
    moved: list[tuple[KnownFile, LocatedFile]] = field(default_factory=list)
    gone: list[KnownFile] = field(default_factory=list)
    touched: list[ReadFile] = field(default_factory=list)
    standing: list[int] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def differences(
    given: Sequence[GivenPath], known: Sequence[KnownFile], roots: Roots, options: ReadOptions
) -> Differences:
    """Compare folders with what is known of their files.

    A file is as it was if its size and time are, and else if its content is. What cannot be read, or stands in a folder
    that cannot, is not gone; nor is what was given by itself, unless it is given again.

    Args:
        roots: what the folders are called; those of new ones are added.
    """
    found, unread = Differences(), _Unread()
    there: dict[tuple[str, str], LocatedFile] = {}
    for one in given:
        for file in one.files() if os.path.exists(one.path) else ():
            if isinstance(file, Skipped):
                found.skipped.append(file)
                unread.add(one, file)
            else:
                placed = LocatedFile(file, *roots.place(file))
                there.setdefault((placed.root.name, placed.relative), placed)
    by_place = {(file.root, file.relative): file for file in known}
    for place, placed in there.items():
        _compare(placed, by_place.get(place), found, options)
    missing = [file for place, file in by_place.items() if place not in there and not unread.holds(file)]
    gone = {file.id: file for one in given for file in missing if covers(one, file)}
    _find_moved(gone, found)
    found.gone = list(gone.values())
    found.refused = [reason for one in given if (reason := _reason_to_refuse(one, gone, known))]
    return found


class _Unread:
    """Files and folders that could not be read."""

    def __init__(self) -> None:
        self._paths: list[str] = []

    def add(self, given: GivenPath, skipped: Skipped) -> None:
        self._paths.append(os.path.normpath(os.path.join(given.folder, os.path.relpath(skipped.source, given.path))))

    def holds(self, file: KnownFile) -> bool:
        return any(relative_path(file.path, path) is not None for path in self._paths)


def covers(given: GivenPath, file: KnownFile) -> bool:
    """Whether a file that is known would be found where somebody looks, if it were there."""
    folder, name = os.path.split(file.path)
    relative = rebased(folder, name, given.folder) if file.path else None
    return relative is not None and given.holds(relative) and (given.alone or not file.alone)


def _compare(placed: LocatedFile, known: KnownFile | None, found: Differences, options: ReadOptions) -> None:
    file = placed.file
    if known is None:
        if is_meant(file, options):
            found.new.append(placed)
        else:
            found.skipped.append(Skipped(str(file.path), why_unsupported(file.path, options)))
        return
    try:
        stat = FileStat.of(file.path)
        if not known.is_whole or known.sha256 is None or known.differs(stat):
            found.changed.append((placed, known))
            return
    except OSError as error:
        found.skipped.append(Skipped(str(file.path), f"cannot be read: {error.strerror}"))
        return
    found.standing.append(known.id)
    if stat != known.stat:
        found.touched.append(ReadFile(known.id, stat, known.sha256))


def _find_moved(gone: dict[int, KnownFile], found: Differences) -> None:
    """Take out of `gone` and of the new files what is the same content elsewhere."""
    lost: dict[tuple[int, str], list[KnownFile]] = {}
    for file in gone.values():
        if file.is_whole and file.stat is not None and file.sha256 is not None:
            lost.setdefault((file.stat.size, file.sha256), []).append(file)
    sizes = {size for size, _ in lost}
    left: list[LocatedFile] = []
    for placed in found.new:
        content = _content(placed.file.path, sizes)
        candidates = lost.get(content, []) if content else []
        if candidates:
            file = candidates.pop(0)
            found.moved.append((file, placed))
            del gone[file.id]
        else:
            left.append(placed)
    found.new = left


def _content(path: Path, sizes: set[int]) -> tuple[int, str] | None:
    """Size and sha256 of a file of one of some sizes."""
    try:
        size = FileStat.of(path).size
        return (size, sha256_of(path)) if size in sizes else None
    except OSError:
        return None


def _reason_to_refuse(given: GivenPath, gone: dict[int, KnownFile], known: Iterable[KnownFile]) -> str:
    """Why what is gone of a folder is not to be forgotten without being asked for; empty where it may."""
    of_it = [file for file in known if covers(given, file)]
    count = sum(file.id in gone for file in of_it)
    if not count or not (count == len(of_it) or (2 * count > len(of_it) and count > _FEW_FILES)):
        return ""
    how = "all" if count == len(of_it) else f"{count} of"
    return f"{how} {len(of_it)} files that the bank knows of {given.path} are gone, as if it were not mounted"
