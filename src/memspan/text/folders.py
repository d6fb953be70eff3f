"""Which files are meant by the paths that somebody names, and what their documents are called.

A file is known by a *root*, the folder that was given (of a file given by itself, the folder it stands in), and its
path from there. Its documents are called `NAME/PATH`, where the root's name is the end of its path: `docs/sub/a.md`.
The first root that holds a file names it, so that a file has one name however it is reached.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from memspan.errors import CorpusError
from memspan.files import CATALOG, SEGMENTS
from memspan.types import Skipped

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

IGNORE_FILE = ".memspanignore"
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that is to be read.

    Attributes:
        path: where it is, as it was given.
        folder: the folder given, or the one that a file given by itself stands in: absolute, without links.
        relative: path from there, with slashes.
        alone: it was given by itself.
    """

    path: Path
    folder: str
    relative: str
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Root:
    """A folder by whose name documents are known.

    Attributes:
        name: one or more last parts of its path, with slashes.
        path: absolute, without links; empty where it is on another machine.
        whole: it was given itself. Otherwise files in it were, and it names files right in it alone.
    """

    name: str
    path: str
    whole: bool = True

    def name_of(self, relative: str) -> str:
        """What a file is called by its path from here: the id of its document."""
        return f"{self.name}/{relative}"

    def relative(self, file: FoundFile) -> str | None:
        """The path of a file from here, None where it is no file of this root."""
        found = rebased(file.folder, file.relative, self.path) if self.path else None
        return found if found is None or self.whole or "/" not in found else None


class Roots:
    """The roots there are, the first known first, and those that are added."""

    def __init__(self, known: Iterable[Root] = ()) -> None:
        self.all = list(known)

    def place(self, file: FoundFile) -> tuple[Root, str]:
        """The root that names a file, and the file's path from there. A root is added where none does."""
        for root in self.all:
            relative = root.relative(file)
            if relative is not None:
                return root, relative
        return self.add(file.folder, whole=not file.alone), file.relative

    def add(self, folder: str, *, whole: bool = True, name: str | None = None) -> Root:
        """The root of a folder (absolute, without links), which is made, or made a whole one.

        Args:
            name: what it is called. Default: the shortest end of its path that no other root has. A root of which is
                not known where it is has that of the first folder of its name.
        """
        place = self._place_of(folder, name)
        if place is not None:
            root = self.all[place]
            self.all[place] = replace(root, path=folder, whole=whole or root.whole)
            return self.all[place]
        self.all.append(Root(name or self._free_name(folder), folder, whole))
        return self.all[-1]

    def _place_of(self, folder: str, name: str | None) -> int | None:
        """Where the root of a folder is among all, if there is one."""
        lost = None
        for place, root in enumerate(self.all):
            if root.name == name or (name is None and _is_same(root.path, folder)):
                return place
            if lost is None and not root.path and root.name == Path(folder).name:
                lost = place
        return lost if name is None else None

    def _free_name(self, folder: str) -> str:
        parts = Path(folder).parts[1:] or ("root",)
        ends = ["/".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        numbered = (f"{ends[0]}~{number}" for number in range(2, len(self.all) + 3))
        return next(name for name in (*ends, *numbered) if not any(_meet(name, root.name) for root in self.all))


def _meet(name: str, other: str) -> bool:
    """Whether documents under two names could have one id."""
    return f"{name}/".startswith(f"{other}/") or f"{other}/".startswith(f"{name}/")


def _is_same(path: str, folder: str) -> bool:
    """Whether two paths are one folder; their spelling may differ where capitals do not count."""
    if path == folder:
        return True
    try:
        return path.casefold() == folder.casefold() and os.path.samefile(path, folder)
    except OSError:
        return False


def relative_path(path: str, folder: str) -> str | None:
    """The path from a folder to what stands in it, with slashes; empty for itself, None for anything else."""
    if _is_same(path, folder):
        return ""
    inside = folder.rstrip(os.sep) + os.sep
    return Path(path[len(inside) :]).as_posix() if path.startswith(inside) else None


def join(folder: str, relative: str) -> str:
    """The path of what is at a path with slashes from a folder."""
    return os.path.join(folder, *relative.split("/"))


def rebased(folder: str, relative: str, base: str) -> str | None:
    """The path of a file in a folder, from another folder; None where the file is not in that one."""
    inside = relative_path(folder, base)
    if inside is not None:
        return f"{inside}/{relative}" if inside else relative
    below = relative_path(base, folder)
    return relative.removeprefix(f"{below}/") if below and relative.startswith(f"{below}/") else None


@dataclass(frozen=True, slots=True)
class GivenPath:
    """What a path means: a folder with all in it, one file, or the files in a folder that match a pattern.

    Attributes:
        path: of the folder, or of the file, as it was given.
        folder: the folder, absolute, without links.
        pattern: of paths from the folder; None: all of them. A single file's is its name.
        alone: it is a single file.
    """

    path: Path
    folder: str
    pattern: str | None = None
    alone: bool = False

    @classmethod
    def of(cls, path: Path, *, patterns: bool = False) -> GivenPath:
        """
        Args:
            patterns: whether a path that does not exist may be a pattern, as `docs/**/*.md`.
        """
        if path.is_dir():
            return cls(path, os.path.realpath(path))
        if patterns and has_wildcards(str(path)) and not os.path.lexists(path):
            fixed = next(place for place, part in enumerate(path.parts) if has_wildcards(part))
            folder = Path(*path.parts[:fixed])
            return cls(folder, os.path.realpath(folder), "/".join(path.parts[fixed:]))
        return cls(path, *os.path.split(os.path.realpath(path)), alone=True)

    def holds(self, relative: str) -> bool:
        """Whether a path from the folder is one that is meant."""
        if self.alone:
            return relative == self.pattern
        return self.pattern is None or matches(relative, self.pattern)

    def files(self) -> Iterator[FoundFile | Skipped]:
        """The files that are there, sorted within each folder, and what cannot be read."""
        if self.alone:
            yield FoundFile(self.path, self.folder, str(self.pattern), alone=True)
            return
        for found in walk(self.path):
            if isinstance(found, Skipped):
                yield found
                continue
            relative = found.relative_to(self.path).as_posix()
            if self.holds(relative):
                yield FoundFile(found, self.folder, relative)


def matches(path: str, pattern: str) -> bool:
    """Whether a path is one of a pattern: `*`, `?` and `[...]` stay within a folder, `**` is any number of folders."""
    parts, ends = path.split("/"), {0}
    for part in pattern.split("/"):  # `ends`: how many parts of the path what came before can take
        if part == "**":
            ends = set(range(min(ends, default=len(parts) + 1), len(parts) + 1))
        else:
            ends = {end + 1 for end in ends if end < len(parts) and fnmatch.fnmatchcase(parts[end], part)}
    return len(parts) in ends


def has_wildcards(text: str) -> bool:
    """Whether a text can be a pattern rather than a name."""
    return bool(_GLOB.search(text))


def walk(folder: Path) -> Iterator[Path | Skipped]:
    """Yield the files under a folder, sorted, but for hidden ones, memory banks, and what a `.memspanignore` names.

    Such a file has the syntax of git's `.gitignore`, and counts for the folder it stands in and those below.
    """
    if _is_bank(folder):
        yield Skipped(str(folder), "a memory bank; memspan export and memspan import copy its documents")
    else:
        yield from _walk(folder, folder, ())


def _walk(folder: Path, top: Path, rules: tuple[tuple[str, GitIgnoreSpec], ...]) -> Iterator[Path | Skipped]:
    try:
        children = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
        rules = (*rules, *_rules_of(folder, top))
    except OSError as error:
        yield Skipped(str(folder), f"cannot be read: {error.strerror}")
        return
    for child in children:
        # os.path, because Path.is_dir raises where the folder may be listed but not entered
        is_folder = os.path.isdir(child)
        if rules and _is_ignored(child.relative_to(top), is_folder and not child.is_symlink(), rules):
            continue
        if os.path.isfile(child):
            yield child
        elif not is_folder:
            yield Skipped(str(child), "not a file that can be read (a broken link, a pipe, a device, or no permission)")
        elif child.is_symlink():
            yield Skipped(str(child), "symbolic link to a folder; give its target as a path of its own")
        elif not _is_bank(child):
            yield from _walk(child, top, rules)


def _is_bank(folder: Path) -> bool:
    return os.path.isfile(folder / CATALOG) and os.path.isdir(folder / SEGMENTS)


def _rules_of(folder: Path, top: Path) -> list[tuple[str, GitIgnoreSpec]]:
    """What the folder's own `.memspanignore` says, with the folder's path from the top."""
    try:
        data = (folder / IGNORE_FILE).read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return []
    from pathspec import GitIgnoreSpec

    try:
        spec = GitIgnoreSpec.from_lines(data.decode("utf-8-sig").splitlines())
    except ValueError as error:
        raise CorpusError(
            f"{folder / IGNORE_FILE} cannot be read ({error}); write it in UTF-8 as a .gitignore"
        ) from error
    return [(folder.relative_to(top).as_posix(), spec)]


def _is_ignored(path: Path, is_folder: bool, rules: Iterable[tuple[str, GitIgnoreSpec]]) -> bool:
    """Whether the last rule that speaks of a path leaves it out; those of the deepest folder come last."""
    for folder, spec in reversed(tuple(rules)):
        verdict = spec.check_file(path.relative_to(folder).as_posix() + "/" * is_folder).include
        if verdict is not None:
            return verdict
    return False
