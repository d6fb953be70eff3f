"""`Ledger`: which files the documents of a namespace were read from, as of when.

It is kept by whoever reads files into a bank (`add`, `sync`): documents are claimed for their file before they are in
the bank, and what the file was like is kept once all of them are. So after a crash a file is read again, and of every
document that a file gave the ledger knows the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from memspan.bank.catalog import Catalog
from memspan.bank.edits import open_namespace
from memspan.text.corpus import ReadProgress, is_meant, read_file
from memspan.text.folders import FoundFile, Root, Roots, join, relative_path
from memspan.text.readers import ReadOptions
from memspan.text.readers.formats import AS_FOUND
from memspan.types import Document, Skipped, is_unicode

# So much is claimed in one transaction.
_FILES_TOGETHER, _CHARACTERS_TOGETHER = 256, 2**22
# In the place of the time when a file was written, where it may have been written again at the same time.
_UNSETTLED = -1
FileState = Literal["unchanged", "changed", "gone", "unreadable"]
_KNOWN = """
SELECT f.id, r.name, r.path, f.path, f.name, f.alone, f.size, f.mtime_ns, f.sha256,
    count(d.external_id) > 0 AND count(d.external_id) = count(s.id)
FROM files f JOIN roots r ON r.id = f.root_id LEFT JOIN file_documents d ON d.file_id = f.id
LEFT JOIN sources s ON s.namespace_id = d.namespace_id AND s.external_id = d.external_id AND s.deleted_in IS NULL
WHERE r.namespace_id = ? GROUP BY f.id ORDER BY f.name
"""


@dataclass(frozen=True, slots=True)
class FileStat:
    """What tells that a file was changed: its size in bytes, and when it was written."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> FileStat:
        found = os.stat(path)
        return cls(found.st_size, found.st_mtime_ns)

    def is_settled(self, now_ns: int) -> bool:
        """Whether a later change would show: a file that was written just now may be again, at the same time of its
        clock (as git's index has it)."""
        whole_seconds = self.mtime_ns % 1_000_000_000 == 0  # FAT counts in steps of two of them
        return self.mtime_ns + (2_000_000_000 if whole_seconds else 50_000_000) < now_ns


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file that documents were read from.

    Attributes:
        path: where it was: absolute, without links; empty where its root is on another machine.
        relative: from its root.
        name: the id of its document, or what the ids of its records begin with.
        alone: it was given by itself, not with its folder.
        stat, sha256: when its documents came into the bank; None where that is not known.
        is_whole: all documents that it gave are in the bank.
    """

    id: int
    root: str
    path: str
    relative: str
    name: str
    alone: bool
    stat: FileStat | None
    sha256: str | None
    is_whole: bool

    def under(self, folder: str) -> KnownFile:
        """The same file where its root is another folder."""
        return replace(self, path=join(folder, self.relative))

    def is_in(self, folder: str) -> bool:
        """Whether it stands in a folder, or in one of those in it."""
        return bool(self.path and relative_path(self.path, folder))

    def state(self) -> FileState:
        """How the file is now, of what is known of it; one on another machine counts as unchanged."""
        try:
            return "changed" if self.path and self.differs(FileStat.of(self.path)) else "unchanged"
        except FileNotFoundError:
            return "gone"
        except OSError:
            return "unreadable"

    def differs(self, stat: FileStat) -> bool:
        """Whether the file holds something else than before; it is read where its size and time do not say.

        Raises:
            OSError: it cannot be read.
        """
        if self.sha256 is None or stat == self.stat:
            return False
        return (self.stat is not None and stat.size != self.stat.size) or sha256_of(self.path) != self.sha256


class Ledger:
    """The files of one namespace. What changes it needs the writer's lock."""

    def __init__(self, catalog: Catalog, namespace: str) -> None:
        self._catalog, self._namespace = catalog, namespace

    def roots(self) -> Roots:
        """The folders that documents are known by, the first known first."""
        query = "SELECT name, path, whole FROM roots WHERE namespace_id = ? ORDER BY id"
        return Roots(Root(name, path, bool(whole)) for name, path, whole in self._read(query))

    def files(self) -> list[KnownFile]:
        """All files, sorted by the ids of their documents."""
        return [
            KnownFile(
                *(number, root, join(folder, relative) if folder else "", relative, name, bool(alone)),
                *(None if size is None else FileStat(size, mtime_ns), sha256, bool(is_whole)),
            )
            for number, root, folder, relative, name, alone, size, mtime_ns, sha256, is_whole in self._read(_KNOWN)
        ]

    def stale(self) -> list[tuple[str, FileState]]:
        """Files that differ from what their memory was made of: what their documents are called, and how they are."""
        states: list[tuple[str, FileState]] = [(file.name, file.state()) for file in self.files()]
        return [found for found in states if found[1] != "unchanged"]

    def documents_of(self, file_id: int) -> list[str]:
        """External ids of what a file gave."""
        rows = self._catalog.read("SELECT external_id FROM file_documents WHERE file_id = ?", (file_id,))
        return [external_id for (external_id,) in rows]

    def keep_root(self, root: Root) -> int:
        """Remember where a folder is; returns its number. Inside a transaction."""
        values = (open_namespace(self._catalog, self._namespace), root.name, root.path, root.whole)
        self._catalog.execute(
            "INSERT INTO roots (namespace_id, name, path, whole) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (namespace_id, name) DO UPDATE SET path = excluded.path, whole = excluded.whole",
            values,
        )
        return self._catalog.value("SELECT id FROM roots WHERE namespace_id = ? AND name = ?", values[:2])

    def keep_file(self, root: Root, relative: str, alone: bool) -> tuple[int, str]:
        """Remember a file, of which nothing is certain yet; returns its number and name. Inside a transaction."""
        self._catalog.execute(
            "INSERT INTO files (root_id, path, name, alone) VALUES (?, ?, ?, ?) ON CONFLICT (root_id, path) "
            "DO UPDATE SET alone = min(alone, excluded.alone), size = NULL, mtime_ns = NULL, sha256 = NULL",
            (self.keep_root(root), relative, root.name_of(relative), alone),
        )
        query = (
            "SELECT f.id, f.name FROM files f JOIN roots r ON r.id = f.root_id "
            "WHERE r.namespace_id = ? AND r.name = ? AND f.path = ?"
        )
        return self._read(query, root.name, relative)[0]

    def move_file(self, file: KnownFile, root: Root, relative: str) -> dict[str, str]:
        """Remember that a file is elsewhere now; returns the new external ids of its documents by their old ones, of
        which both are claimed. Inside a transaction."""
        name = root.name_of(relative)
        self._catalog.execute(
            "UPDATE files SET root_id = ?, path = ?, name = ? WHERE id = ?",
            (self.keep_root(root), relative, name, file.id),
        )
        follows = re.compile(rf"{re.escape(file.name)}(?=$|[#/])")
        renamed = ((one, follows.match(one)) for one in self.documents_of(file.id))
        new = {one: name + one[len(file.name) :] if match else one for one, match in renamed}
        self.claim(file.id, new.values())
        return new

    def claim(self, file_id: int, external_ids: Iterable[str]) -> None:
        """Remember that a file gives some documents; another file gives them no more. Inside a transaction."""
        number = open_namespace(self._catalog, self._namespace)
        rows = ((number, external_id, file_id) for external_id in external_ids)
        self._catalog.execute_many("INSERT OR REPLACE INTO file_documents VALUES (?, ?, ?)", rows)

    def owners(self, external_ids: Iterable[str]) -> dict[str, int]:
        """The files that gave some documents, by external id."""
        query = (
            "SELECT external_id, file_id FROM file_documents "
            "WHERE namespace_id = ? AND external_id IN (SELECT value FROM json_each(?))"
        )
        return dict(self._read(query, json.dumps(list(external_ids))))

    def mark_read(self, files: Iterable[ReadFile]) -> None:
        """Remember what files were like whose documents are all in the bank."""
        with self._catalog.transaction():
            self._catalog.execute_many(
                "UPDATE files SET size = ?, mtime_ns = ?, sha256 = ? WHERE id = ?",
                ((file.stat.size, file.stat.mtime_ns, file.sha256, file.id) for file in files if file.stat),
            )

    def drop(self, external_ids: Iterable[str]) -> None:
        """Forget which file gave some documents that are deleted, and files that give none."""
        with self._catalog.transaction():
            self._catalog.execute(
                "DELETE FROM file_documents WHERE namespace_id = ? AND external_id IN (SELECT value FROM json_each(?))",
                (self._catalog.namespace_id(self._namespace), json.dumps(list(external_ids))),
            )
            _drop_unused(self._catalog)

    def _read(self, query: str, *values: object) -> list[tuple]:
        return self._catalog.read(query, (self._catalog.namespace_id(self._namespace), *values))


def prune(catalog: Catalog) -> None:
    """Forget the files of documents that are not in the bank any more, in every namespace."""
    with catalog.transaction():
        catalog.execute(
            "DELETE FROM file_documents WHERE NOT EXISTS (SELECT 1 FROM sources s WHERE s.deleted_in IS NULL "
            "AND s.namespace_id = file_documents.namespace_id AND s.external_id = file_documents.external_id)"
        )
        _drop_unused(catalog)


def _drop_unused(catalog: Catalog) -> None:
    catalog.execute("DELETE FROM files WHERE id NOT IN (SELECT file_id FROM file_documents)")
    catalog.execute("DELETE FROM roots WHERE id NOT IN (SELECT root_id FROM files)")


def forget_disk(catalog: Catalog) -> None:
    """Of a copy for another machine: forget where on the disk the folders are."""
    with catalog.transaction():
        catalog.execute("UPDATE roots SET path = ''")


@dataclass(slots=True)
class ReadFile:
    """A file that was read into the bank.

    Attributes:
        stat, sha256: of what was read; None where it must be read again.
        source: its path, for people.
        gone: documents that it gave before, and did not now.
        is_whole: all of it could be read.
    """

    id: int
    stat: FileStat | None = None
    sha256: str | None = None
    source: str = ""
    gone: set[str] = field(default_factory=set)
    is_whole: bool = True


class FileReader:
    """Reads files for a bank, and keeps its ledger. The documents must be added as they come; `mark_read` ends it.

    Attributes:
        files: what was read so far, by number.
    """

    def __init__(
        self,
        catalog: Catalog,
        namespace: str,
        reading: ReadProgress,
        roots: Roots | None = None,
        standing: Iterable[int] = (),
        options: ReadOptions = AS_FOUND,
    ) -> None:
        """
        Args:
            standing: numbers of files whose documents stay theirs: no other file can replace them.
            roots: what the folders are called. Default: as the ledger says when the first file is read.
        """
        self.files: dict[int, ReadFile] = {}
        self._catalog, self._ledger = catalog, Ledger(catalog, namespace)
        self._reading, self._roots, self._standing = reading, roots, frozenset(standing)
        self._options = options

    def read(self, files: Iterable[FoundFile | Skipped]) -> Iterator[Document | Skipped]:
        """The documents of files, in the order given, and what was skipped; as `memspan.text.corpus.read_paths`."""
        stream = iter(files)
        while batch := list(islice(stream, _FILES_TOGETHER)):
            items: list[tuple[int, Document | Skipped]] = []
            size = 0
            for number, item in chain.from_iterable(self._documents(*kept) for kept in self._kept(batch)):
                items.append((number, item))
                size += _CHARACTERS_TOGETHER // _FILES_TOGETHER + len(item.text if isinstance(item, Document) else "")
                if size >= _CHARACTERS_TOGETHER:
                    yield from self._claimed(items)
                    items, size = [], 0
            yield from self._claimed(items)
        self._reading.done()

    def mark_read(self) -> None:
        """All documents are in the bank."""
        self._ledger.mark_read(self.files.values())

    def _kept(self, files: Iterable[FoundFile | Skipped]) -> list[tuple[FoundFile | Skipped, int, str, str]]:
        """Files with their numbers in the ledger (0: of none), their names, and their paths from their roots."""
        roots = self._roots = self._roots or self._ledger.roots()
        kept: list[tuple[FoundFile | Skipped, int, str, str]] = []
        with self._catalog.transaction():
            for file in files:
                number, name, relative = 0, "", ""
                if not isinstance(file, Skipped):
                    root, relative = roots.place(file)
                    name = root.name_of(relative)
                    if is_unicode(name) and self._is_kept(file):
                        number, name = self._ledger.keep_file(root, relative, file.alone)
                kept.append((file, number, name, relative))
        return kept

    def _is_kept(self, file: FoundFile) -> bool:
        """Whether it is a file that can be read again (and no pipe), of a kind that gives documents."""
        return os.path.isfile(file.path) and is_meant(file, self._options)

    def _documents(
        self, file: FoundFile | Skipped, number: int, name: str, relative: str
    ) -> Iterator[tuple[int, Document | Skipped]]:
        if isinstance(file, Skipped):
            yield 0, file
            return
        if not number:
            yield from ((0, item) for item in read_file(file, name, relative, self._reading, self._options))
            return
        read = self.files[number] = ReadFile(number, source=str(file.path), gone=set(self._ledger.documents_of(number)))
        now, before = time.time_ns(), _state_of(file.path)
        read.is_whole = before is not None
        for item in read_file(file, name, relative, self._reading, self._options):
            if isinstance(item, Document):
                read.gone.discard(item.external_id)
            else:
                read.is_whole = False
            yield number, item
        if before is not None and _state_of(file.path, before) != before:
            read.is_whole = False
            yield 0, Skipped(str(file.path), "it was changed while it was read; add it again")
        elif before is not None and read.is_whole:
            stat, read.sha256 = before
            read.stat = stat if stat.is_settled(now) else FileStat(stat.size, _UNSETTLED)

    def _claimed(self, items: Sequence[tuple[int, Document | Skipped]]) -> Iterator[Document | Skipped]:
        """Claim documents for their files. What another file of this run gave, or one that stands, stays that one's."""
        owners = self._ledger.owners(item.external_id for _, item in items if isinstance(item, Document))
        passed: list[Document | Skipped] = []
        claims: dict[int, list[str]] = {}
        for number, item in items:
            if number and isinstance(item, Document):
                owner = owners.setdefault(item.external_id, number)
                if owner != number and self._is_given_by(owner, item.external_id):
                    item = self._refused(number, item.external_id)
                else:
                    owners[item.external_id] = number
                    claims.setdefault(number, []).append(item.external_id)
            passed.append(item)
        with self._catalog.transaction():
            for number, external_ids in claims.items():
                self._ledger.claim(number, external_ids)
        for item in passed:
            if isinstance(item, Document):
                self._reading.characters += len(item.text)
            yield item

    def _is_given_by(self, owner: int, external_id: str) -> bool:
        """Whether another file gave a document in this run, or stands; one that gives it no more loses it."""
        read = self.files.get(owner)
        if read is None:
            return owner in self._standing
        is_given = external_id not in read.gone
        read.gone.discard(external_id)
        return is_given

    def _refused(self, number: int, external_id: str) -> Skipped:
        read = self.files[number]
        read.is_whole, read.stat = False, None
        return Skipped(read.source, f"a document of the id {external_id!r} was read before, from another file")


def sha256_of(path: str | os.PathLike[str]) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state_of(path: Path, known: tuple[FileStat, str] | None = None) -> tuple[FileStat, str] | None:
    """Stat and sha256 of a file that can be read; the latter as it is known where the former is the same."""
    try:
        stat = FileStat.of(path)
        return known if known is not None and stat == known[0] else (stat, sha256_of(path))
    except OSError:
        return None
