"""Tables: a row is a record, the first row the names of its columns."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice

from memspan.text.readers.formats import FORMATS, NOT_TEXT, BadRecord, Record, Records, Unreadable, checked, is_text
from memspan.text.readers.opening import LONGEST_TEXT, MIB

DELIMITERS = {"csv": ",", "tsv": "\t"}
"""What separates the cells where the header does not show it."""

_ALL_DELIMITERS = (",", ";", "\t", "|")
_SNIFFED_LINES = 20
_NAMES_DELIMITER = "sep="


def read_table(lines: Iterable[str], delimiter: str) -> Iterator[Record | BadRecord]:
    """The rows of a table. Cells are texts, as they stand there.

    Args:
        delimiter: where neither a first line as `sep=;` nor the header and its rows show another.
    """
    head, lines = _ahead(iter(lines))
    first_line = 1
    if head and head[0].lower().startswith(_NAMES_DELIMITER) and len(head[0].strip("\r\n")) == len("sep=;"):
        delimiter, head, first_line = head[0][len(_NAMES_DELIMITER)], head[1:], 2
    else:
        delimiter = _found_delimiter(head, delimiter)
    rows = _numbered_rows(chain(head, lines), delimiter, first_line)
    columns = _names(next(rows, (0, []))[1])
    for line, cells in rows:
        row = _without_blank_end(cells, len(columns))
        if len(row) > len(columns):
            yield BadRecord(line, f"{len(row)} cells for {len(columns)} columns")
        elif any(cell.strip() for cell in row):
            # A row may be short: the columns it lacks are keys that the record does not have.
            named = zip(columns, row, strict=False)
            yield checked(Record(line, {name: cell for name, cell in named if name or cell.strip()}))


def _ahead(lines: Iterator[str]) -> tuple[list[str], Iterator[str]]:
    """The first lines, and the rest. An error on one of the first lines comes when that line is asked for."""
    head: list[str] = []
    try:
        head.extend(islice(lines, _SNIFFED_LINES))
    except (Unreadable, OSError, EOFError) as error:
        return head, _failing(error)
    return head, lines


def _failing(error: Exception) -> Iterator[str]:
    yield from ()
    raise error


def _found_delimiter(head: list[str], usual: str) -> str:
    """The delimiter by which the header has several columns, and most rows as many."""

    def fit(delimiter: str) -> tuple[bool, float, int]:
        try:
            rows = [row for row in csv.reader(head, delimiter=delimiter) if row]
        except csv.Error:
            return False, 0.0, 0
        sizes = [len(_without_blank_end(row, len(rows[0]))) for row in rows]
        return len(set(rows[0])) > 1, sizes.count(sizes[0]) / len(sizes), sizes[0]

    if not any(line.strip() for line in head):
        return usual
    return max((usual, *_ALL_DELIMITERS), key=fit)


def _names(header: list[str]) -> list[str]:
    """The names of the columns; of two that are the same the second is `name_2`."""
    if not is_text([*header]):
        raise Unreadable(NOT_TEXT)
    names: list[str] = []
    for name in map(str.strip, header):
        count = 1
        while name and (name if count == 1 else f"{name}_{count}") in names:
            count += 1
        names.append(name if count == 1 else f"{name}_{count}")
    return [name or f"column_{place}" if any(names[place:]) else name for place, name in enumerate(names, start=1)]


def _without_blank_end(row: list[str], length: int) -> list[str]:
    """A row without the empty cells beyond the columns, which delimiters at the ends of lines make."""
    return row if any(cell.strip() for cell in row[length:]) else row[:length]


def _numbered_rows(lines: Iterable[str], delimiter: str, first_line: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with the number of the line it begins on."""
    # The default limit of 128 KiB is for cells, not for documents; the module has no other place to set it.
    csv.field_size_limit(LONGEST_TEXT)
    num_characters = 0

    def counted() -> Iterator[str]:
        nonlocal num_characters
        for line in lines:
            num_characters += len(line)
            if num_characters > LONGEST_TEXT:
                raise Unreadable(f"the row that begins on line {number} is longer than {LONGEST_TEXT // MIB} MiB")
            yield line

    rows = csv.reader(counted(), delimiter=delimiter)
    number = first_line
    for row in rows:
        num_characters = 0
        if row:
            yield number, row
        number = rows.line_num + first_line


for _name, _delimiter in DELIMITERS.items():
    FORMATS.register(_name, Records(partial(read_table, delimiter=_delimiter), is_table=True))
