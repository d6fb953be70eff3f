"""Files: syncing the folder they are in, and their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

PARTIAL_SUFFIX = ".partial"


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a loss of power (where the platform can sync folders at all)."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
