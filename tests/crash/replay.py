"""What a loss of power leaves of a folder: its state before, and a trace of what was done to it since (`faults.c`).

The rules are those of POSIX, harsher than any one file system:

    fsync, fdatasync of a file      its content and size are durable; its name is not
    fsync of a folder               the names in it are durable: created, renamed, removed; not those in folders below
    everything else                 may survive or not, each on its own

`Loss` names what is looked at of all that may survive. A process that is killed keeps everything (`Disk.kept`).
"""

from __future__ import annotations

import enum
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

_HEADER = struct.Struct("<IIQqqII")
_SECTOR = 512
SHARED_MEMORY = "-shm"

# A folder's content by relative path: a file's bytes, or None for a folder.
Tree = dict[str, bytes | None]


class Op(enum.IntEnum):
    """Kinds of records; in step with `faults.c`."""

    MARK = 0
    CREATE = 1
    MKDIR = 2
    WRITE = 3
    TRUNCATE = 4
    SYNC = 5
    SYNC_FAILED = 6
    SYNC_ALL = 7
    RENAME = 8
    UNLINK = 9
    RMDIR = 10
    LINK = 11
    SHARED = 12  # a call on the memory that SQLite's connections share: nothing that lasts
    UNKNOWN = 13


class Loss(enum.Enum):
    """What a loss of power takes."""

    ALL = "lost"  # everything that was not synced
    CONTENTS = "empty"  # names survive; files have the content and size they were last synced with
    ZEROED = "zeros"  # names and sizes survive; what was appended and not synced reads as zeros
    SCATTERED = "scattered"  # drawn by lot: names up to some moment, and of unsynced writes some sectors


@dataclass(frozen=True, slots=True)
class Record:
    """One change. `call` is its number among the counted calls; a MARK has that of the call before it."""

    op: Op
    call: int
    inode: int
    offset: int
    length: int
    path: str
    other: str
    data: bytes

    def __str__(self) -> str:
        if self.op is Op.WRITE:
            return f"write of {self.length} bytes at {self.offset} of {self.path}"
        if self.op is Op.RENAME:
            return f"rename of {self.path} to {self.other}"
        return f"{self.op.name.lower()} of {self.path or '.'}"


def read_trace(path: Path) -> list[Record]:
    """The records of a trace, in order.

    Raises:
        ValueError: something was changed in a way that a trace cannot hold.
    """
    raw, at, records = path.read_bytes(), 0, []
    while at < len(raw):
        op, call, inode, offset, length, *sizes = _HEADER.unpack_from(raw, at)
        at += _HEADER.size
        pieces = []
        for size in (*sizes, length if op == Op.WRITE else 0):
            pieces.append(raw[at : at + size])
            at += size
        record = Record(Op(op), call, inode, offset, length, pieces[0].decode(), pieces[1].decode(), pieces[2])
        if record.op is Op.UNKNOWN:
            raise ValueError(f"system call {offset} changed {record.path or 'a file'} in a way that is not traced")
        records.append(record)
    return records


@dataclass(slots=True)
class _File:
    """Pending changes are (offset, bytes) of a write, or (size, None) of a truncation."""

    durable: bytes = b""
    content: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def change(self, offset: int, data: bytes | None) -> None:
        self.pending.append((offset, data))
        _apply(self.content, offset, data)

    def sync(self) -> None:
        content = bytearray(self.durable)
        for change in self.pending:
            _apply(content, *change)
        self.durable = bytes(content)
        self.pending.clear()

    def survivor(self, loss: Loss, lot: random.Random) -> bytes:
        if loss is Loss.ALL or not self.pending:
            return self.durable
        content = bytearray(self.durable)
        odds = lot.choice((0.0, 0.5, 1.0))
        for offset, data in self.pending:
            if loss is Loss.SCATTERED:
                _apply_sectors(content, offset, data, lot, odds)
            elif loss is Loss.CONTENTS:
                if data is None:
                    del content[offset:]
            else:
                end = max(len(content), offset + len(data)) if data is not None else offset
                _apply(content, end, None)
        return bytes(content)


@dataclass(slots=True)
class _Folder:
    """Pending changes are (moment, name, what it stands for now)."""

    durable: dict[str, _File | _Folder] = field(default_factory=dict)
    entries: dict[str, _File | _Folder] = field(default_factory=dict)
    pending: list[tuple[int, str, _File | _Folder | None]] = field(default_factory=list)

    def change(self, moment: int, name: str, node: _File | _Folder | None) -> None:
        self.pending.append((moment, name, node))
        _enter(self.entries, name, node)

    def sync(self) -> None:
        self.durable = dict(self.entries)
        self.pending.clear()

    def survivors(self, until: int) -> dict[str, _File | _Folder]:
        """The names if those changes survive that were synced, or made before a moment."""
        names = dict(self.durable)
        for moment, name, node in self.pending:
            if moment < until:
                _enter(names, name, node)
        return names


class Disk:
    """A folder as its file system knows it: what is there, and what of that is durable.

    Args:
        root: the folder itself, before anything of the trace is done to it; all of it counts as durable.
    """

    def __init__(self, root: Path) -> None:
        self._root = _Folder()
        self._nodes: dict[int, _File | _Folder] = {root.stat().st_ino: self._root}
        self._moment = 0
        self.acknowledged = 0
        for path in sorted(root.rglob("*")):
            if path.name.endswith(SHARED_MEMORY):
                continue
            node = _Folder() if path.is_dir() else _File(path.read_bytes(), bytearray(path.read_bytes()))
            self._nodes[path.stat().st_ino] = node
            folder = self._folder(path.relative_to(root).parent)
            folder.entries[path.name] = folder.durable[path.name] = node

    def apply(self, record: Record) -> None:
        """Do what a record says."""
        self._moment += 1
        match record.op:
            case Op.MARK:
                self.acknowledged += 1
            case Op.CREATE | Op.MKDIR:
                # An inode's number is given out again when its file is gone.
                self._nodes[record.inode] = _File() if record.op is Op.CREATE else _Folder()
                self._enter(record.path, self._nodes[record.inode])
            case Op.LINK:
                self._enter(record.path, self._nodes[record.inode])
            case Op.WRITE:
                self._file(record).change(record.offset, record.data)
            case Op.TRUNCATE:
                self._file(record).change(record.length, None)
            case Op.SYNC:
                self._nodes[record.inode].sync()
            case Op.SYNC_FAILED:
                # The kernel reports an error once and takes the pages for clean: a later sync does not write them.
                node = self._nodes[record.inode]
                if isinstance(node, _File):
                    node.pending.clear()
            case Op.SYNC_ALL:
                for node in self._nodes.values():
                    node.sync()
            case Op.RENAME:
                node = self._nodes[record.inode]
                self._enter(record.path, None)
                self._enter(record.other, node)
            case Op.UNLINK | Op.RMDIR:
                self._enter(record.path, None)
            case Op.SHARED:
                pass
            case Op.UNKNOWN:
                raise AssertionError("read_trace lets none through")

    def kept(self) -> Tree:
        """What is there, as every process sees it."""
        return _tree(self._root, lambda folder: folder.entries, lambda file: bytes(file.content))

    def torn(self, write: Record) -> Tree:
        """What is there if half of a write is done now, and nothing more."""
        file = self._file(write)
        content = bytearray(file.content)
        _apply(content, write.offset, write.data[: write.length // 2])
        return _tree(
            self._root, lambda folder: folder.entries, lambda other: bytes(content if other is file else other.content)
        )

    def left(self, loss: Loss, seed: int = 0) -> Tree:
        """What is there after a loss of power now. `seed` is that of the lots drawn, if any are."""
        lot = random.Random(seed)
        until = {Loss.ALL: 0, Loss.SCATTERED: lot.randint(0, self._moment + 1)}.get(loss, self._moment + 1)
        return _tree(self._root, lambda folder: folder.survivors(until), lambda file: file.survivor(loss, lot))

    def _file(self, record: Record) -> _File:
        node = self._nodes[record.inode]
        assert isinstance(node, _File), f"{record}: not a file"
        return node

    def _folder(self, path: Path | PurePosixPath) -> _Folder:
        node: _File | _Folder = self._root
        for part in path.parts:
            assert isinstance(node, _Folder), path
            node = node.entries[part]
        assert isinstance(node, _Folder), path
        return node

    def _enter(self, path: str, node: _File | _Folder | None) -> None:
        pure = PurePosixPath(path)
        self._folder(pure.parent).change(self._moment, pure.name, node)


def points(disk: Disk, records: Sequence[Record]) -> Iterator[Record | None]:
    """Apply a trace to a disk, stopping before each counted call, and after the last; yield that call's record.

    What is acknowledged after a call counts as acknowledged before the next.
    """
    last = 0
    for record in records:
        if record.op not in (Op.MARK, Op.SHARED) and record.call > last:
            yield record
            last = record.call
        disk.apply(record)
    yield None


def read_tree(root: Path) -> Tree:
    """What a folder holds, but for the memory that SQLite's connections share."""
    paths = [path for path in root.rglob("*") if not path.name.endswith(SHARED_MEMORY)]
    return {str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in paths}


def write_tree(tree: Tree, root: Path) -> None:
    """Make a folder that holds a tree."""
    root.mkdir(parents=True)
    for name, content in sorted(tree.items()):  # a folder sorts before what is in it
        path = root / name
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)


def _tree(
    root: _Folder, names: Callable[[_Folder], dict[str, _File | _Folder]], content: Callable[[_File], bytes]
) -> Tree:
    tree: Tree = {}
    folders = [("", root)]
    while folders:
        prefix, folder = folders.pop()
        for name, node in sorted(names(folder).items()):
            if isinstance(node, _Folder):
                tree[prefix + name] = None
                folders.append((f"{prefix}{name}/", node))
            else:
                tree[prefix + name] = content(node)
    return tree


def _enter(names: dict[str, _File | _Folder], name: str, node: _File | _Folder | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    """Write bytes at an offset, or cut or grow to a size; what is skipped over reads as zeros."""
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    if data is None:
        del content[offset:]
    else:
        content[offset : offset + len(data)] = data


def _apply_sectors(content: bytearray, offset: int, data: bytes | None, lot: random.Random, odds: float) -> None:
    """Like `_apply`, but every sector's part of it survives or not, by lot."""
    if data is None:
        if lot.random() < odds:
            _apply(content, offset, None)
        return
    at = 0
    while at < len(data):
        size = min(_SECTOR - (offset + at) % _SECTOR, len(data) - at)
        if lot.random() < odds:
            _apply(content, offset + at, data[at : at + size])
        at += size
