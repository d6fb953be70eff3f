"""The tables of `catalog.sqlite`; `docs/bank-format.md` describes them."""

from __future__ import annotations

SCHEMA = """
CREATE TABLE manifest (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE clock (id INTEGER PRIMARY KEY CHECK (id = 1), commits INTEGER NOT NULL);
INSERT INTO clock VALUES (1, 0);
CREATE TABLE namespaces (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE);
CREATE TABLE segments (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace_id INTEGER NOT NULL REFERENCES namespaces (id),
    name TEXT NOT NULL UNIQUE,
    documents INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    index_crc32 INTEGER NOT NULL,
    keys_bytes INTEGER NOT NULL, keys_sha256 TEXT NOT NULL,
    content_bytes INTEGER NOT NULL, content_sha256 TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('live', 'staged', 'retired')),
    retired_in INTEGER CHECK ((retired_in IS NOT NULL) = (state = 'retired'))
);
CREATE INDEX live_segments ON segments (namespace_id, id) WHERE state = 'live';
CREATE TABLE sources (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace_id INTEGER NOT NULL REFERENCES namespaces (id),
    external_id TEXT NOT NULL,
    title TEXT NOT NULL,
    metadata TEXT NOT NULL,
    date TEXT,
    added_at TEXT NOT NULL,
    content_hash TEXT NOT NULL,
    text_hash TEXT NOT NULL,
    deleted_in INTEGER
);
CREATE UNIQUE INDEX live_external_ids ON sources (namespace_id, external_id) WHERE deleted_in IS NULL;
CREATE TABLE texts (source_id INTEGER PRIMARY KEY REFERENCES sources (id), text TEXT NOT NULL);
CREATE TABLE documents (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    source_id INTEGER NOT NULL REFERENCES sources (id),
    span_start INTEGER NOT NULL,
    span_end INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    segment_id INTEGER NOT NULL REFERENCES segments (id),
    first_row INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    deleted_in INTEGER
);
CREATE INDEX documents_of_sources ON documents (source_id);
CREATE INDEX documents_of_segments ON documents (segment_id, deleted_in);
CREATE INDEX deleted_documents ON documents (deleted_in) WHERE deleted_in IS NOT NULL;
CREATE TABLE staged (
    document_id INTEGER PRIMARY KEY,
    source_id INTEGER NOT NULL,
    span_start INTEGER NOT NULL,
    span_end INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    segment_id INTEGER NOT NULL REFERENCES segments (id),
    first_row INTEGER NOT NULL,
    rows INTEGER NOT NULL
);
CREATE INDEX staged_of_sources ON staged (source_id);
CREATE INDEX staged_of_segments ON staged (segment_id);
"""
