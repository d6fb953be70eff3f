"""Spreadsheets of Excel and OpenDocument.

A row becomes a line of "column: value", so that it says by itself what its values are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from memspan.text.paging import paged
from memspan.text.readers.formats import Content, OneText, Unreadable, damage_named
from memspan.text.readers.isolated import isolated
from memspan.types import JSON

MAX_CHARACTERS = 128 << 20


def _read_sheets(path: Path) -> Content:
    # In a process of its own: a cell in the last corner of a sheet is a table of 2^34 cells to the library.
    sheets: list[list[Any]] = isolated(f"{__name__}:sheet_texts", str(path))
    names: list[JSON] = [name for name, text in sheets]
    texts = (f"# {name}\n\n{text}" for name, text in sheets)
    if not any(text for _, text in sheets):
        raise Unreadable("empty")
    return Content(paged(texts), path.stem, {"pages": len(sheets), "sheets": names})


def sheet_texts(file: str) -> list[tuple[str, str]]:
    """Names and texts of the sheets of a workbook."""
    import python_calamine

    texts, left = [], MAX_CHARACTERS
    with damage_named("spreadsheet"):
        try:
            workbook = python_calamine.CalamineWorkbook.from_path(file)
        except python_calamine.PasswordError as error:
            raise Unreadable("encrypted; save it without a password") from error
        for name in workbook.sheet_names:
            lines = []
            for line in _lines(workbook.get_sheet_by_name(name).to_python()):
                left -= len(line)
                if left < 0:
                    raise Unreadable(f"holds more than {MAX_CHARACTERS >> 20} MiB of text; export it as .csv")
                lines.append(line)
            texts.append((name, "\n".join(lines)))
    return texts


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
