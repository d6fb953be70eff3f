"""Whether a folder is on another machine: SQLite's log needs memory that all its users share, so theirs must be one.

https://www.sqlite.org/wal.html: "All processes using a database must be on the same host computer; WAL does not work
over a network filesystem."
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

# Linux's names: of networks, and of what a virtual machine shares with its host, which is another kernel's as well.
_REMOTE = frozenset({"afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "smbfs"})
_SHARED = frozenset({"9p", "prl_fs", "vboxsf", "virtiofs"})
# Of what programs serve (sshfs, rclone, s3fs, ...), those over the machine's own disks.
_LOCAL_FUSE = frozenset({"bindfs", "encfs", "fuse-overlayfs", "gocryptfs", "lxcfs", "mergerfs", "ntfs-3g", "unionfs"})
_MOUNTS = Path("/proc/self/mountinfo")
_MNT_LOCAL = 0x1000
_DRIVE_REMOTE = 4


def network_type(folder: Path) -> str | None:
    """The kind of network that a folder is reached by, as the system names it; None of a folder of this machine."""
    if sys.platform == "linux":
        return _on_linux(folder)
    if sys.platform == "darwin":
        return _on_macos(folder)
    if sys.platform == "win32":
        root = folder.resolve().anchor
        return "network drive" if ctypes.windll.kernel32.GetDriveTypeW(root) == _DRIVE_REMOTE else None
    return None


@functools.cache
def network_type_with_warning(folder: Path) -> str | None:
    """As `network_type`, with a warning the first time."""
    found = network_type(folder)
    if found is not None:
        _log.warning(
            "%s is on a network folder (%s), so changes and questions wait for each other there; banks are faster, "
            "and safest, on a disk of the machine that uses them",
            folder,
            found,
        )
    return found


def _on_linux(folder: Path) -> str | None:
    """The type of the mount whose device the folder is on (mount points need not be compared then)."""
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = _MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None  # no /proc: a sandbox
    for line in lines:  # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == wanted:
            kind = rest.split()[0]
            by_program, _, program = kind.partition(".")
            is_remote = program not in _LOCAL_FUSE if by_program == "fuse" and program else kind in _REMOTE | _SHARED
            return kind if is_remote else None
    return None  # btrfs numbers its subvolumes otherwise


class _Statfs(ctypes.Structure):
    """`struct statfs` of macOS with 64-bit inodes, as far as `f_fstypename` (sys/mount.h)."""

    _fields_ = (
        ("sizes", ctypes.c_uint32 * 2),
        ("counts", ctypes.c_uint64 * 5),
        ("ids", ctypes.c_uint32 * 4),
        ("f_flags", ctypes.c_uint32),
        ("f_fssubtype", ctypes.c_uint32),
        ("f_fstypename", ctypes.c_char * 16),
        ("rest", ctypes.c_char * 4096),
    )


def _on_macos(folder: Path) -> str | None:
    library: Any = ctypes.CDLL(None)
    found = _Statfs()
    # On x86-64 the plain name is that of an older structure.
    statfs = getattr(library, "statfs$INODE64", None) or library.statfs
    if statfs(os.fsencode(folder), ctypes.byref(found)) or found.f_flags & _MNT_LOCAL:
        return None
    return found.f_fstypename.decode()
