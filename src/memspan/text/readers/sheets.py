"""Spreadsheets of Excel and OpenDocument.

A row becomes a line of "column: value", so that it says by itself what its values are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from memspan.text.paging import paged
from memspan.text.readers.formats import Content, OneText, Unreadable, damage_named
from memspan.text.readers.isolated import isolated
from memspan.text.readers.opening import LONGEST_TEXT, MIB


def _read_sheets(path: Path) -> Content:
    # In a process of its own: a cell in the last corner of a sheet is a table of 2^34 cells to the library.
    with path.open("rb"):  # whether it may be read
        text, names = isolated(f"{__name__}:workbook_text", str(path))
    return Content(text, path.stem, {"pages": len(names), "sheets": names})


def paged_sheets(sheets: Mapping[str, Iterable[Sequence[Any]]]) -> str:
    """Rows of sheets, by their names, as one text, in which every sheet is a page; empty where all are.

    Raises:
        Unreadable: they are too large.
    """
    texts, left = [], LONGEST_TEXT
    for name, rows in sheets.items():
        lines = []
        for line in _lines(rows):
            left -= len(line)
            if left < 0:
                raise Unreadable(f"holds more than {LONGEST_TEXT // MIB} MiB of text; export it as .csv")
            lines.append(line)
        texts.append((name, "\n".join(lines)))
    return paged(f"# {name}\n\n{text}" for name, text in texts) if any(text for _, text in texts) else ""


def workbook_text(file: str) -> tuple[str, list[str]]:
    """The text of a workbook, and the names of its sheets."""
    import python_calamine

    with damage_named("spreadsheet"):
        try:
            workbook = python_calamine.CalamineWorkbook.from_path(file)
        except python_calamine.PasswordError as error:
            raise Unreadable("encrypted; save it without a password") from error
        names = workbook.sheet_names
        return paged_sheets({name: workbook.get_sheet_by_name(name).to_python() for name in names}), names


def _lines(rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """The rows that are not empty. The first one of several cells that are all texts names the columns."""
    columns: list[str] | None = None
    for row in rows:
        cells = [_shown(value) for value in row]
        filled = [cell for cell in cells if cell]
        if columns is None and len(filled) > 1 and all(isinstance(value, str) for value in row):
            columns = cells
            yield " | ".join(filled)
        elif columns is not None and len(filled) > 1:
            pairs = zip(cells, [*columns, *[""] * len(cells)], strict=False)
            yield "; ".join(f"{column}: {cell}" if column else cell for cell, column in pairs if cell)
        elif filled:
            yield " | ".join(filled)


def _shown(value: Any) -> str:
    """A cell as Excel shows it without a format: no `.0` behind whole numbers, ISO dates."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds").removesuffix(" 00:00:00")
    if isinstance(value, date | time | timedelta):
        return str(value)
    return " ".join(str(value).split())


SHEETS = OneText(_read_sheets)
