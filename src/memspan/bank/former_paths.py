"""Banks of format 2 kept the absolute path of each file in its document's metadata: read, and made what is kept now."""

from __future__ import annotations

import json
import re

from memspan.bank.database import Database
from memspan.text.folders import Root, Roots
from memspan.types import Document

_ABSOLUTE = re.compile(r"/|[A-Za-z]:[\\/]|\\\\")
_RECORDS = re.compile(r"\.(jsonl|ndjson)(\.gz|\.xz)?$|\.[ct]sv$", re.IGNORECASE)
_LINE = re.compile(r"#\d+$")


def place_of(external_id: str, path: object) -> tuple[str, str, bool] | None:
    """The folder that a file was read from, its path from there, and whether it was given by itself.

    None where this is no path that reading a file left, but the caller's own.
    """
    if not isinstance(path, str) or not _ABSOLUTE.match(path):
        return None
    slashed = path.replace("\\", "/") if not path.startswith("/") else path
    name = external_id if slashed.endswith(external_id) else _LINE.sub("", external_id)
    if slashed == name or slashed.endswith(f"/{name}"):
        relative = name.partition("/")[2]
        if relative and slashed != name:
            return path[: -len(relative) - 1], relative, False
    elif not _RECORDS.search(path):
        return None
    relative = slashed.rpartition("/")[2]
    return path[: -len(relative) - 1] or path[0], relative, True


def without_disk(external_id: str, metadata: str) -> str:
    """Metadata (JSON) with the file's path from its folder."""
    if '"path"' not in metadata:
        return metadata
    values = json.loads(metadata)
    place = place_of(external_id, values.get("path"))
    return metadata if place is None else json.dumps({**values, "path": place[1]}, ensure_ascii=False)


def take_paths(database: Database) -> None:
    """Keep what the metadata say of files as later formats do, inside the transaction that makes a bank one of them."""
    with_path = "SELECT id FROM sources WHERE json_type(metadata, '$.path') = 'text' ORDER BY id"
    query = (
        "SELECT s.namespace_id, s.external_id, s.deleted_in IS NULL, s.title, t.text, s.metadata, s.date "
        "FROM sources s JOIN texts t ON t.source_id = s.id WHERE s.id = ?"
    )
    roots: dict[int, Roots] = {}
    for (number,) in database.read(with_path):
        ((namespace_id, external_id, is_live, title, text, metadata, date),) = database.read(query, (number,))
        place = place_of(external_id, json.loads(metadata)["path"])
        if place is None:
            continue
        kept = without_disk(external_id, metadata)
        content_hash = Document(external_id, text, title, json.loads(kept), date).content_hash
        database.execute("UPDATE sources SET metadata = ?, content_hash = ? WHERE id = ?", (kept, content_hash, number))
        if is_live:
            folder, relative, alone = place
            root = roots.setdefault(namespace_id, Roots()).add(folder, whole=not alone)
            _keep_file(database, namespace_id, root, relative, external_id, alone)


def _keep_file(database: Database, namespace_id: int, root: Root, relative: str, external_id: str, alone: bool) -> None:
    values = (namespace_id, root.name, root.path, root.whole)
    database.execute(
        "INSERT INTO roots (namespace_id, name, path, whole) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (namespace_id, name) DO UPDATE SET whole = excluded.whole",
        values,
    )
    root_id = database.value("SELECT id FROM roots WHERE namespace_id = ? AND name = ?", values[:2])
    name = external_id if external_id.endswith(relative) else _LINE.sub("", external_id)
    if not name.endswith(relative):  # a record with an id of its own
        name = root.name_of(relative)
    database.execute(
        "INSERT OR IGNORE INTO files (root_id, path, name, alone) VALUES (?, ?, ?, ?)",
        (root_id, relative, name, alone),
    )
    database.execute(
        "INSERT INTO file_documents SELECT ?, ?, id FROM files WHERE root_id = ? AND path = ?",
        (namespace_id, external_id, root_id, relative),
    )
