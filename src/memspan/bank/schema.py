"""The tables of `catalog.sqlite`; `docs/bank-format.md` describes them.

Types and checks are SQLite's own, so that its integrity check covers them; a `seal` covers what no other checksum does.
"""

from __future__ import annotations

import json
import zlib

from memspan.types import JSON

SCHEMA = """
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

# The columns that a row's seal covers, in this order: of sources what the hashes do not, of documents all but their
# place, which the segment knows too.
SEALED = {
    "namespaces": ("id", "name"),
    "sources": ("id", "namespace_id", "external_id", "added_at", "deleted_in"),
    "documents": ("id", "source_id", "span_start", "span_end", "tokens", "deleted_in"),
}


def seal(*values: JSON) -> int:
    """CRC-32 of some columns of a row, as JSON."""
    return zlib.crc32(json.dumps(values).encode())
