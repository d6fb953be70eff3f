"""Tables as programs write them: other delimiters, headers in any case, cells of several lines, columns by name."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import document, documents, found, refused

from memspan.text.readers import ReadOptions, Record, tables
from memspan.text.readers.tables import read_table
from memspan.types import Document, Skipped


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_delimiter_is_found(tmp_path: Path, name: str, delimiter: str, end: str) -> None:
    lines = (("id", "Text", "price"), ("x", "one, two; three", "1,50"), ("y", "four | five", "2,75"))
    text = end.join(delimiter.join(f'"{cell}"' for cell in line) for line in lines) + end
    rows = documents(tmp_path / name, text)
    assert [(row.external_id, row.text, row.metadata["price"]) for row in rows] == [
        ("x", "one, two; three", "1,50"),
        ("y", "four | five", "2,75"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id;text\n1;Hello, world\n2;a,b,c\n", ["Hello, world", "a,b,c"]),
        ("id,text\n1,Hello; world\n2,a;b;c\n", ["Hello; world", "a;b;c"]),
        ("text;price\na;1,5\nb;2,5\n", ["a", "b"]),
        ("text;a,b\nx;1\ny;2\n", ["x", "y"]),
        ("sep=;\ntext;n\na;1\n", ["a"]),
        ("SEP=|\r\ntext|n\r\na,b;c|1\r\n", ["a,b;c"]),
        ("sep=\t\ntext\tn\na\t1\n", ["a"]),
        ("\ufefftext;n\na;1\n", ["a"]),
        ("\n\ntext;n\n\na;1\n\n", ["a"]),
        ("text\na\nb\n", ["a", "b"]),
        ("text;n;\na;1;\nb;2;\n", ["a", "b"]),
        ("text;n\na;1;;;\nb;2;\n", ["a", "b"]),
        ('text;n\n"two\nlines; and ""quotes""";1\nb;2\n', ['two\nlines; and "quotes"', "b"]),
        ('text,n\n"a\r\nb",1\n', ["a\r\nb"]),
        ("text\n日本, 東京\n", ["日本, 東京"]),
        ("TEXT;N\na;1\n", ["a"]),
        (" Text ; N \na;1\n", ["a"]),
        ("Body\na\n", ["a"]),
        ("CONTENT\tid\na\t1\n", ["a"]),
    ],
)
def test_tables_as_they_come(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert [row.text for row in documents(tmp_path / "a.csv", text)] == expected


def test_blank_rows_are_none_and_a_row_without_a_text_is_named(tmp_path: Path) -> None:
    skipped, row = found(tmp_path / "a.csv", "text;n\n;1\n ; \na;2\n")
    assert isinstance(skipped, Skipped) and skipped.source.endswith("a.csv#2")
    assert isinstance(row, Document) and row.external_id.endswith("#4")


def test_a_table_as_excel_writes_it_in_europe(tmp_path: Path) -> None:
    text = "Id;Titel;Text;Betrag\r\n7;Büro;Größe der Fläche;1.234,50\r\n8;Küche;Übermäßig;2,00\r\n"
    options = ReadOptions(title_column="Titel")
    one, two = documents(tmp_path / "a.csv", text.encode("cp1252"), options)
    assert (one.external_id, one.title, one.text) == ("7", "Büro", "Größe der Fläche")
    assert one.metadata == {"path": "a.csv", "encoding": "cp1252", "Betrag": "1.234,50"}
    assert two.text == "Übermäßig"


@pytest.mark.parametrize("column", ["Beschreibung", "beschreibung", " BESCHREIBUNG "])
def test_the_columns_of_text_and_title_may_be_named(tmp_path: Path, column: str) -> None:
    text = "Name;Beschreibung;text\nN;der Text;anders\n"
    one = document(tmp_path / "a.csv", text, ReadOptions(text_column=column, title_column="NAME"))
    assert (one.title, one.text, one.metadata["text"]) == ("N", "der Text", "anders")


@pytest.mark.parametrize("options", [ReadOptions(), ReadOptions(text_column="absent")])
def test_a_table_without_a_text_names_its_columns_and_the_option(tmp_path: Path, options: ReadOptions) -> None:
    reason = refused(tmp_path / "a.csv", "Name;Beschreibung\nN;x\nM;y\n", options)
    assert "the columns are Name, Beschreibung; name the one that holds it with --text-column" in reason


def test_columns_of_one_name_and_of_none_are_all_kept(tmp_path: Path) -> None:
    one = document(tmp_path / "a.csv", "text,tag,tag,,last\na,x,y,z,w\n")
    assert one.metadata == {"path": "a.csv", "tag": "x", "tag_2": "y", "column_4": "z", "last": "w"}


def test_lines_are_counted_over_cells_of_several_lines_and_a_line_for_the_delimiter(tmp_path: Path) -> None:
    text = 'sep=;\ntext;n\n"a\nb";1\nc;2;3\nd;4\n'
    first, wide, last = found(tmp_path / "a.csv", text)
    assert isinstance(first, Document) and first.external_id.endswith("#3")
    assert wide == Skipped(str(tmp_path / "a.csv") + "#5", "3 cells for 2 columns")
    assert isinstance(last, Document) and last.external_id.endswith("#6")


def test_a_cell_and_a_row_beyond_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LONGEST_TEXT", 1000)
    one, skipped = found(tmp_path / "a.csv", 'text,n\na,1\n"' + "line\n" * 5000)
    assert isinstance(one, Document) and isinstance(skipped, Skipped)
    assert "limit" in skipped.reason or "the row that begins on line 3 is longer than" in skipped.reason
    wide = "text," + ",".join(["c"] * 10) + "\n" + ",".join(['"a\nb"'] * 1000)
    assert isinstance(found(tmp_path / "a.csv", wide)[-1], Skipped)


def test_rows_are_read_as_they_are_asked_for() -> None:
    num_lines = 0

    def lines() -> object:
        nonlocal num_lines
        yield "text;n\n"
        while True:
            num_lines += 1
            yield "a;1\n"

    rows = read_table(lines(), ",")  # type: ignore[arg-type]
    for _ in range(50):
        next(rows)
    assert num_lines < 60


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8)


@given(st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=5), st.sampled_from([",", ";", "\t", "|"]))
@settings(max_examples=150, derandomize=True, deadline=None)
def test_what_a_program_writes_is_what_is_read(rows: list[list[str]], delimiter: str) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([["id", "text", "more"], *rows])
    stream.seek(0)
    filled = [row for row in rows if any(cell.strip() for cell in row)]
    read = [record.values for record in read_table(stream, ",") if isinstance(record, Record)]
    assert read == [dict(zip(("id", "text", "more"), row, strict=True)) for row in filled]
