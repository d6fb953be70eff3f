"""Tables: a row is a record, the first row the names of its columns."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from functools import partial

from memspan.text.readers.formats import (
    FORMATS,
    NOT_TEXT,
    TEXT_KEYS,
    BadRecord,
    Record,
    Records,
    Unreadable,
    checked,
    is_text,
)

DELIMITERS = {"csv": ",", "tsv": "\t"}


def read_table(lines: Iterable[str], delimiter: str, needs_text: bool = True) -> Iterator[Record | BadRecord]:
    rows = _numbered_rows(lines, delimiter)
    _, columns = next(rows, (0, []))
    if not is_text([*columns]):
        raise Unreadable(NOT_TEXT)
    if needs_text and columns and not set(TEXT_KEYS) & set(columns):
        raise Unreadable(f"no column {' or '.join(TEXT_KEYS)}; the columns are {', '.join(columns)}")
    for line, row in rows:
        if len(row) > len(columns):
            yield BadRecord(line, f"{len(row)} cells for {len(columns)} columns")
        else:
            # A row may be short: the columns it lacks are keys that the record does not have.
            yield checked(Record(line, dict(zip(columns, row, strict=False))))


def _numbered_rows(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with the number of the line it begins on."""
    # The default limit of 128 KiB is for cells, not for documents; the module has no other place to set it.
    csv.field_size_limit(2**31 - 1)
    rows = csv.reader(lines, delimiter=delimiter)
    line = 1
    for row in rows:
        if row:
            yield line, row
        line = rows.line_num + 1


for _name, _delimiter in DELIMITERS.items():
    FORMATS.register(_name, Records(partial(read_table, delimiter=_delimiter)))
