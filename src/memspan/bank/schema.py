"""The tables of `catalog.sqlite`; `docs/bank-format.md` describes them.

Types and checks are SQLite's own, so that its integrity check covers them; a `seal` covers what no other checksum does.
"""

from __future__ import annotations

import json
import zlib

from memspan.types import JSON

NAMESPACE_ID = "(SELECT id FROM namespaces WHERE name = ?1)"
"""The number of a namespace, whose name is a statement's first value."""

FORMAT_2 = """
CREATE TABLE manifest (key TEXT PRIMARY KEY, value TEXT NOT NULL CHECK (json_valid(value))) STRICT, WITHOUT ROWID;
CREATE TABLE clock (id INTEGER PRIMARY KEY CHECK (id = 1), commits INTEGER NOT NULL CHECK (commits >= 0)) STRICT;
INSERT INTO clock VALUES (1, 0);
CREATE TABLE namespaces (
    id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id > 0),
    name TEXT NOT NULL UNIQUE,
    seal INTEGER NOT NULL
) STRICT;
CREATE TABLE segments (
    id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id > 0),
    namespace_id INTEGER NOT NULL REFERENCES namespaces (id),
    name TEXT NOT NULL UNIQUE CHECK (length(name) = 32 AND name NOT GLOB '*[^0-9a-f]*'),
    documents INTEGER NOT NULL CHECK (documents > 0),
    rows INTEGER NOT NULL CHECK (rows >= documents),
    index_crc32 INTEGER NOT NULL,
    keys_bytes INTEGER NOT NULL CHECK (keys_bytes > 0), keys_sha256 TEXT NOT NULL,
    content_bytes INTEGER NOT NULL CHECK (content_bytes > 0), content_sha256 TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('live', 'staged', 'retired')),
    retired_in INTEGER CHECK ((retired_in IS NOT NULL) = (state = 'retired'))
) STRICT;
CREATE INDEX live_segments ON segments (namespace_id, id) WHERE state = 'live';
CREATE TABLE sources (
    id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id > 0),
    namespace_id INTEGER NOT NULL REFERENCES namespaces (id),
    external_id TEXT NOT NULL CHECK (external_id <> ''),
    title TEXT NOT NULL,
    metadata TEXT NOT NULL CHECK (json_valid(metadata) AND json_type(metadata) = 'object'),
    date TEXT,
    added_at TEXT NOT NULL,
    content_hash TEXT NOT NULL,
    text_hash TEXT NOT NULL,
    deleted_in INTEGER,
    seal INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX live_external_ids ON sources (namespace_id, external_id) WHERE deleted_in IS NULL;
CREATE TABLE texts (source_id INTEGER PRIMARY KEY REFERENCES sources (id), text TEXT NOT NULL) STRICT;
CREATE TABLE documents (
    id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id > 0),
    source_id INTEGER NOT NULL REFERENCES sources (id),
    span_start INTEGER NOT NULL CHECK (span_start >= 0),
    span_end INTEGER NOT NULL CHECK (span_end > span_start),
    tokens INTEGER NOT NULL CHECK (tokens >= 0),
    segment_id INTEGER NOT NULL REFERENCES segments (id),
    first_row INTEGER NOT NULL CHECK (first_row >= 0),
    rows INTEGER NOT NULL CHECK (rows > 0),
    deleted_in INTEGER,
    seal INTEGER NOT NULL
) STRICT;
CREATE INDEX documents_of_sources ON documents (source_id);
CREATE INDEX documents_of_segments ON documents (segment_id, deleted_in);
CREATE INDEX deleted_documents ON documents (deleted_in) WHERE deleted_in IS NOT NULL;
CREATE TABLE staged (
    document_id INTEGER PRIMARY KEY CHECK (document_id > 0),
    source_id INTEGER NOT NULL,
    span_start INTEGER NOT NULL,
    span_end INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    segment_id INTEGER NOT NULL REFERENCES segments (id),
    first_row INTEGER NOT NULL,
    rows INTEGER NOT NULL
) STRICT;
CREATE INDEX staged_of_sources ON staged (source_id);
CREATE INDEX staged_of_segments ON staged (segment_id);
"""

# What format 3 adds to format 2; a bank of format 2 becomes one of format 3 by these statements.
FORMAT_3 = """
ALTER TABLE main.sources ADD COLUMN recorded_at TEXT;
ALTER TABLE main.sources ADD COLUMN superseded_at TEXT CHECK (superseded_at IS NULL OR deleted_in IS NOT NULL);
ALTER TABLE main.sources ADD COLUMN version_of INTEGER REFERENCES sources (id);
ALTER TABLE main.sources ADD COLUMN expires TEXT;
ALTER TABLE main.sources ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0 CHECK (pinned IN (0, 1));
CREATE INDEX past_sources ON sources (namespace_id, external_id, deleted_in) WHERE superseded_at IS NOT NULL;
CREATE INDEX versions_of_sources ON sources (version_of) WHERE version_of IS NOT NULL;
CREATE INDEX expiring_sources ON sources (namespace_id, expires)
    WHERE expires IS NOT NULL AND pinned = 0 AND deleted_in IS NULL;
CREATE TABLE pending (
    document_id INTEGER PRIMARY KEY CHECK (document_id > 0),
    source_id INTEGER NOT NULL REFERENCES sources (id),
    span_start INTEGER NOT NULL CHECK (span_start >= 0),
    span_end INTEGER NOT NULL CHECK (span_end > span_start)
) STRICT;
CREATE INDEX pending_of_sources ON pending (source_id);
CREATE TABLE roots (
    id INTEGER PRIMARY KEY CHECK (id > 0),
    namespace_id INTEGER NOT NULL REFERENCES namespaces (id),
    name TEXT NOT NULL CHECK (name <> ''),
    path TEXT NOT NULL,
    whole INTEGER NOT NULL CHECK (whole IN (0, 1)),
    UNIQUE (namespace_id, name)
) STRICT;
CREATE TABLE files (
    id INTEGER PRIMARY KEY CHECK (id > 0),
    root_id INTEGER NOT NULL REFERENCES roots (id),
    path TEXT NOT NULL CHECK (path <> ''),
    name TEXT NOT NULL CHECK (name <> ''),
    alone INTEGER NOT NULL CHECK (alone IN (0, 1)),
    size INTEGER,
    mtime_ns INTEGER,
    sha256 TEXT,
    UNIQUE (root_id, path)
) STRICT;
CREATE TABLE file_documents (
    namespace_id INTEGER NOT NULL REFERENCES namespaces (id),
    external_id TEXT NOT NULL CHECK (external_id <> ''),
    file_id INTEGER NOT NULL REFERENCES files (id),
    PRIMARY KEY (namespace_id, external_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX documents_of_files ON file_documents (file_id);
"""
# What banks of format 3 from before lack until a document is changed.
CHANGES = """
CREATE TABLE IF NOT EXISTS moments (commits INTEGER PRIMARY KEY, at TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS deletions (
    namespace_id INTEGER NOT NULL,
    external_id TEXT,
    expired INTEGER NOT NULL CHECK (expired IN (0, 1)),
    commits INTEGER NOT NULL
) STRICT;
"""
FORMAT_3 += CHANGES
SCHEMA = FORMAT_2 + FORMAT_3

# A bank of format 2 that is only read: its tables as format 3 has them.
AS_FORMAT_3 = {
    "sources": "SELECT id, namespace_id, external_id, title, without_disk(external_id, metadata) AS metadata, date, "
    "added_at, content_hash, text_hash, deleted_in, seal, NULL AS recorded_at, NULL AS superseded_at, "
    "NULL AS version_of, NULL AS expires, 0 AS pinned FROM main.sources",
    "pending": "SELECT 0 AS document_id, 0 AS source_id, 0 AS span_start, 0 AS span_end WHERE FALSE",
    "roots": "SELECT 0 AS id, 0 AS namespace_id, '' AS name, '' AS path, 0 AS whole WHERE FALSE",
    "files": "SELECT 0 AS id, 0 AS root_id, '' AS path, '' AS name, 0 AS alone, 0 AS size, 0 AS mtime_ns, '' AS sha256 "
    "WHERE FALSE",
    "moments": "SELECT 0 AS commits, '' AS at WHERE FALSE",
    "deletions": "SELECT 0 AS namespace_id, '' AS external_id, 0 AS expired, 0 AS commits WHERE FALSE",
    "file_documents": "SELECT 0 AS namespace_id, '' AS external_id, 0 AS file_id WHERE FALSE",
}

# The columns that a row's seal covers, in this order: of sources what the hashes do not, of documents all but their
# place, which the segment knows too. Columns of format 3 count where one of them says something, so that the seals of
# format 2 hold.
SEALED = {
    "namespaces": ("id", "name"),
    "sources": (
        *("id", "namespace_id", "external_id", "added_at", "deleted_in"),
        *("recorded_at", "superseded_at", "version_of", "expires", "pinned"),
    ),
    "documents": ("id", "source_id", "span_start", "span_end", "tokens", "deleted_in"),
}
_SOURCE_COLUMNS_OF_FORMAT_2 = 5


def seal(table: str, *values: JSON) -> int:
    """CRC-32 of those columns of a row that `SEALED` names, as JSON."""
    if table == "sources" and not any(values[_SOURCE_COLUMNS_OF_FORMAT_2:]):
        values = values[:_SOURCE_COLUMNS_OF_FORMAT_2]
    return zlib.crc32(json.dumps(values).encode())
