"""Every format and every reason to skip: files and folders made on the spot, streams, the installed packages."""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import hashlib
import importlib.metadata
import io
import json
import lzma
import os
from collections.abc import Iterator
from pathlib import Path

import pypdf
import pytest
from pypdf.generic import DictionaryObject, NameObject, StreamObject

from memspan.errors import CorpusError
from memspan.text import corpus
from memspan.text.corpus import ReadProgress, Skipped, read_paths, read_stream
from memspan.text.installed import installed_packages
from memspan.text.readers.formats import NOT_TEXT, ReadOptions
from memspan.types import Document

WITHOUT_TEXT = "no text under the key text or content or body; name the one that holds it with --text-column"


def read(*paths: Path) -> list[Document | Skipped]:
    return list(read_paths(paths))


def read_document(path: Path) -> Document:
    (document,) = read(path)
    assert isinstance(document, Document), document
    return document


def documents(*paths: Path) -> list[Document]:
    found = read(*paths)
    assert all(isinstance(item, Document) for item in found), found
    return [item for item in found if isinstance(item, Document)]


def skip_reason(path: Path) -> str:
    (skipped,) = read(path)
    assert isinstance(skipped, Skipped), skipped
    assert skipped.source == str(path)
    return skipped.reason


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_pdf(path: Path, pages: list[str], title: str = "", password: str = "") -> Path:
    writer = pypdf.PdfWriter()
    font = DictionaryObject({NameObject("/Type"): NameObject("/Font"), NameObject("/Subtype"): NameObject("/Type1")})
    font[NameObject("/BaseFont")] = NameObject("/Helvetica")
    for text in pages:
        page = writer.add_blank_page(200, 200)
        fonts = DictionaryObject({NameObject("/F1"): font})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        drawing = StreamObject()
        drawing.set_data(f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode())
        page[NameObject("/Contents")] = drawing
    if title:
        writer.add_metadata({"/Title": title})
    if password:
        writer.encrypt(password)
    writer.write(path)
    return path


# Texts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.TEXT", "a.rst", "a.yaml", "Makefile"])
def test_a_text_file_is_kept_verbatim(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, " One\r\ntwo \n")
    title = path.stem
    assert read_document(path) == Document(f"{tmp_path.name}/{name}", " One\r\ntwo \n", title, {"path": name})


def test_markdown_is_kept_verbatim_and_names_itself_by_its_first_heading(tmp_path: Path) -> None:
    text = "![badge](b.svg)\n\n```sh\n# no heading\n```\n## The  *plan* ##\n# Later\n"
    document = read_document(write(tmp_path / "a.md", text))
    assert (document.text, document.title) == (text, "The *plan*")


@pytest.mark.parametrize(
    ("name", "text", "title"),
    [
        ("a.rst", "====\nName\n====\n\nText", "Name"),
        ("a.md", "Name\r\n====\r\nText", "Name"),
        ("a.markdown", "#hashtag\nText", "a"),
        ("a.txt", "\n  A short line \n \nText", "A short line"),
        ("a.txt", "# A comment\nText", "a"),
        ("a.txt", "First of\nmany lines", "a"),
        ("a.txt", "The only line", "a"),
        ("a.txt", "long " * 30 + "\n\nText", "a"),
    ],
)
def test_titles(tmp_path: Path, name: str, text: str, title: str) -> None:
    assert read_document(write(tmp_path / name, text)).title == title


@pytest.mark.parametrize(
    ("name", "text", "date"),
    [
        ("a.md", "# Title\n\nDate: 2024-02-29\n", "2024-02-29"),
        ("a.md", "---\ntitle: x\ndate: '2024-01-02T10:00'\n---\n", "2024-01-02T10:00:00"),
        ("a.md", "**Date:** 2024-01-02\n", "2024-01-02"),
        ("2023-12-31-notes.txt", "Text", "2023-12-31"),
        ("2023-12-31.txt", "date: 2024-01-02", "2024-01-02"),
        ("2023-13-31.txt", "Date: tomorrow", None),
        ("a.txt", "\n".join("x" * 10) + "\nDate: 2024-01-02", None),
        ("a.txt", "The date: 2024-01-02", None),
    ],
)
def test_dates(tmp_path: Path, name: str, text: str, date: str | None) -> None:
    assert read_document(write(tmp_path / name, text)).date == date


@pytest.mark.parametrize(
    "data",
    [
        codecs.BOM_UTF8 + "Grüße".encode(),
        codecs.BOM_UTF16_LE + "Grüße".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "Grüße".encode("utf-16-be"),
    ],
)
def test_byte_order_marks_are_understood_and_dropped(tmp_path: Path, data: bytes) -> None:
    assert read_document(write(tmp_path / "a.txt", data)).text == "Grüße"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.txt", "Grüße".encode() + b"\xff", "not UTF-8 text at byte 7 (line 1); mend it, or name its encoding"),
        ("a.txt", codecs.BOM_UTF16_LE + b"odd", "not UTF-16 text at byte 4"),
        ("a.bin", b"\x7fELF\0\0", "binary file"),
        ("a.txt", codecs.BOM_UTF16_LE + b"a\0\0\0", "binary file"),
        ("a.jsonl", b"\0\0", "binary file"),
        ("a.csv", "größe,text\n".encode("latin-1") + b"\x81,b\n", "not UTF-8 text at byte 2 (line 1)"),
        ("a.jsonl", codecs.BOM_UTF16_LE + b"odd", "holds bytes or characters that are no text"),
        ("a.txt", b"", "empty"),
        ("a.md", b" \n\t\n", "empty"),
        ("a.html", b"<p><script>x</script></p>", "empty"),
        ("a.jsonl", b"\n\n", "empty"),
        ("a.csv", b"", "empty"),
        ("a.csv", b"id,text\n", "empty"),
        ("a.csv", b"id,name\n1,x\n", "no column text or content or body; the columns are id, name"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}', mtime=0)[:-9], "cannot be read: Compressed file ended"),
        ("a.jsonl.gz", b"no gzip", "cannot be read: Not a gzipped file"),
        ("a.jsonl.xz", b"no xz at all", "cannot be read: Input format not supported"),
        ("a.pdf", b"%PDF-1.4 and then nothing", "damaged PDF"),
        ("a.pdf", b"", "damaged PDF"),
    ],
)
def test_a_file_that_cannot_be_read_is_skipped_with_the_reason(
    tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    assert skip_reason(write(tmp_path / name, data)).startswith(reason)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.pdf"])
def test_a_file_without_permission_is_skipped(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / name, "a")
    monkeypatch.setattr(io, "open", refuse)  # what Path.open calls, so that it holds for root too
    monkeypatch.setattr("builtins.open", refuse)
    assert skip_reason(path) == "cannot be read: Permission denied"


def test_html_becomes_the_text_on_the_screen(tmp_path: Path) -> None:
    page = """<!doctype html><html><head><title>A &amp; B</title><style>p {}</style></head><body>
    <nav>Home <nav>in</nav> menu</nav><h1>Head</h1><p>One&nbsp;<b>two</b>
      three<br>four &lt;5&gt;</p><script>var x = "<p>";</script><svg><title>icon</title></svg>
    <ul><li>a</li> <li>b</li></ul><table><tr><td>1</td><td>2</td></tr></table><pre>def f():
    return 1</pre></body></html>"""
    document = read_document(write(tmp_path / "a.html", page))
    assert document.title == "A & B"
    assert document.text == ("Head\n\nOne two three\nfour <5>\n\na\nb\n\n1 2\n\ndef f():\n    return 1")


# PDF ------------------------------------------------------------------------------------------------------------------


def test_pdf_pages_are_joined_and_counted(tmp_path: Path) -> None:
    document = read_document(write_pdf(tmp_path / "a.pdf", ["Hello memory", "Second page"], title="The paper"))
    assert document.text == "Hello memory\n\n\fSecond page"
    assert document.title == "The paper"
    assert document.metadata == {"path": "a.pdf", "pages": 2}


def test_a_pdf_without_metadata_is_titled_by_its_first_line(tmp_path: Path) -> None:
    assert read_document(write_pdf(tmp_path / "a.pdf", ["Hello memory", "Second page"])).title == "Hello memory"


def test_an_encrypted_pdf_is_skipped(tmp_path: Path) -> None:
    assert (
        skip_reason(write_pdf(tmp_path / "a.pdf", ["Hello"], password="secret"))
        == "encrypted PDF; save it without a password"
    )


def test_a_pdf_of_scans_is_skipped(tmp_path: Path) -> None:
    assert skip_reason(write_pdf(tmp_path / "a.pdf", [""])).startswith("PDF without text")


# Records --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.xz", ".JSONL.GZ"])
def test_json_lines(tmp_path: Path, suffix: str) -> None:
    lines = [
        '{"text": "A", "title": " T ", "external_id": "x", "id": 7, "tags": ["a"]}',
        "",
        '{"content": "B", "text": "", "id": 0}',
        '{"body": "C", "title": null, "id": ""}',
    ]
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(suffix[-3:].lower(), bytes)
    path = write(tmp_path / f"2024-01-02{suffix}", pack("\r\n".join(lines).encode()))
    known, date = {"path": path.name}, "2024-01-02"
    assert read(path) == [
        Document("x", "A", "T", {**known, "id": 7, "tags": ["a"]}, date),
        Document("0", "B", "", {**known, "text": ""}, date),
        Document(f"{tmp_path.name}/{path.name}#4", "C", "", {**known, "title": None, "id": ""}, date),
    ]


def test_a_records_own_date_comes_before_the_files_and_one_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    dates = ['"2025-06-07"', '"2025-06-07T23:30-01:00"', '"20250607"', "2025", '"soon"', "null", '"2025-02-30"', '""']
    lines = "\n".join(f'{{"id": "{number}", "text": "A", "date": {date}}}' for number, date in enumerate(dates))
    path = write(tmp_path / "2024-01-02-log.jsonl", lines)
    for found, of_file in ((read(path), "2024-01-02"), (list(read_stream(io.StringIO(lines))), None)):
        own = ["2025-06-07", "2025-06-07T23:30:00-01:00", "2025-06-07", "2025", None, of_file, None, of_file]
        whole = [document for document in found if isinstance(document, Document)]
        assert [document.date for document in whole] == own
        for document, date, written in zip(whole, own, dates, strict=True):
            kept = {} if date not in (None, of_file) else {"date": json.loads(written)}
            assert {key: value for key, value in document.metadata.items() if key != "path"} == kept
        skipped = [item for item in found if isinstance(item, Skipped)]
        assert [item.source.rpartition("#")[2] for item in skipped] == ["5", "7"]
        assert skipped[0].reason.startswith("kept without its date: under 'date' 'soon' is not a date that can be read")
    table = write(tmp_path / "a.csv", "text,date\nA,2025-06-07\nB,\nC,soon\n")
    *rows, skipped = read(table)
    assert [(row.date, row.metadata.get("date")) for row in rows if isinstance(row, Document)] == [
        ("2025-06-07", None),
        (None, ""),
        (None, "soon"),
    ]
    assert isinstance(skipped, Skipped) and skipped.source == f"{table}#4"


def test_a_text_without_a_date_has_none_and_packages_have_none(tmp_path: Path) -> None:
    assert read_document(write(tmp_path / "a.txt", "Text")).date is None
    assert read_document(write(tmp_path / "x-2024-01-02.txt", "Text")).date is None, "the name begins otherwise"
    assert read_document(write(tmp_path / "2024-01-023.txt", "The day: 2024-01-023")).date is None
    assert next(installed_packages()).date is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b'{"text": "a", "score": NaN}', "not a JSON object"),
        (b"[" * 100_000, "not a JSON object"),
        (
            b'{"text": 5}',
            "no text under the key text or content or body; name the one that holds it with --text-column",
        ),
        (
            b'{"txt": "a"}',
            "no text under the key text or content or body; name the one that holds it with --text-column",
        ),
        ('{"text": "Grüße"}'.encode("latin-1"), NOT_TEXT),
        (b'{"text": "\\ud800"}', NOT_TEXT),
    ],
)
def test_a_bad_line_is_skipped_and_the_next_is_read(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "äöü"}\n'.encode() + line + '\n{"text": "éèê"}\n'.encode())
    first, skipped, last = read(path)
    assert isinstance(first, Document)
    assert skipped == Skipped(f"{path}#2", reason)
    assert isinstance(last, Document)
    assert last.external_id.endswith("#3")


def test_utf16_json_lines(tmp_path: Path) -> None:
    assert read_document(write(tmp_path / "a.jsonl", '{"text": "Grüße"}\n'.encode("utf-16"))).text == "Grüße"


def test_tables_follow_the_rules_of_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '\ufeffid,text,title,year\nx,"A,\nand more",T,1999\n\n,B\n,,T\n1,2,3,4,5\n')
    assert read(path) == [
        Document("x", "A,\nand more", "T", {"path": "a.csv", "year": "1999"}),
        Document(f"{tmp_path.name}/a.csv#5", "B", "", {"path": "a.csv", "id": ""}),
        Skipped(f"{path}#6", WITHOUT_TEXT),
        Skipped(f"{path}#7", "5 cells for 4 columns"),
    ]


def test_a_tab_table_with_a_cell_longer_than_the_csv_module_allows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", f"body\tkind\n{'x' * 200_000}\tbig\n")
    document = read_document(path)
    assert len(document.text) == 200_000
    assert document.metadata["kind"] == "big"


def test_records_before_the_damage_are_kept(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": os.urandom(50).hex()}) + "\n" for _ in range(2000)).encode()
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(lines)[:-1000])
    *documents, last = read(path)
    assert len(documents) > 1000
    assert isinstance(last, Skipped)
    assert last.source == str(path)


def test_a_record_or_file_that_can_be_no_document_is_skipped_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, nul = '{"id": "%s", "text": "A"}', r"a\u0000b"
    bad = [f'{{"id": "x", "text": "{nul}"}}', f'{{"id": "{nul}", "text": "A"}}', f'{{"text": "A", "title": "{nul}"}}']
    lines = "\n".join([good % "first", *bad, good % "last"])
    path = write(tmp_path / "a.jsonl", lines)
    content = corpus.read_content
    damaged, after = write(tmp_path / "b.txt", "B"), write(tmp_path / "c.txt", "C")

    def reading(path: Path, options: ReadOptions) -> object:
        return dataclasses.replace(content(path, options), **({"text": "a\0b"} if path == damaged else {}))

    monkeypatch.setattr(corpus, "read_content", reading)  # whatever a reader makes of a file
    first, *skipped, last, of_file, text = read(path, damaged, after)
    from_stream = list(read_stream(io.StringIO(lines)))
    for found in (first, last, text, from_stream[0], from_stream[-1]):
        assert isinstance(found, Document), found
    for where, found in ((str(path), skipped), ("stdin", from_stream[1:-1])):
        assert all(isinstance(item, Skipped) and "holds NUL characters" in item.reason for item in found)
        assert [item.source for item in found if isinstance(item, Skipped)] == [f"{where}#{line}" for line in (2, 3, 4)]
    assert isinstance(of_file, Skipped) and of_file.source == str(damaged)
    assert "holds NUL characters" in of_file.reason
    (refused,) = read_stream(io.StringIO("A"), "a\0b")
    assert isinstance(refused, Skipped) and refused.source == "stdin" and "holds NUL characters" in refused.reason


# Folders --------------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_in_order_and_what_is_unknown_is_named(tmp_path: Path) -> None:
    for name in ("b/z.txt", "b/a.md", "a.txt", "c.xyz", "LICENSE", ".hidden.txt", ".git/config.txt", "c.txt"):
        write(tmp_path / name, name)
    items = read(tmp_path)
    assert [item.external_id for item in items if isinstance(item, Document)] == [
        f"{tmp_path.name}/{name}" for name in ("a.txt", "b/a.md", "b/z.txt", "c.txt")
    ]
    assert [item for item in items if isinstance(item, Skipped)] == [
        Skipped(str(tmp_path / "LICENSE"), "unsupported file type (no extension); if it is text, give its own path"),
        Skipped(str(tmp_path / "c.xyz"), "unsupported file type .xyz; if it is text, give its own path"),
    ]
    assert isinstance(items[1], Document)
    assert items[1].metadata["path"] == "a.txt"


def test_the_same_file_of_two_folders_is_two_documents_however_the_folders_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("one", "two"):
        write(tmp_path / folder / "in/a.txt", folder)
    write(tmp_path / "two/b.jsonl", '{"text": "B"}')
    monkeypatch.chdir(tmp_path / "one")
    expected = [
        ("one/in/a.txt", "one", "in/a.txt"),
        ("two/in/a.txt", "two", "in/a.txt"),
        ("two/b.jsonl#1", "B", "b.jsonl"),
    ]
    for one, two in (("", "../two"), (".", "../one/../two/"), (tmp_path / "one", tmp_path / "two")):
        found = [(item.external_id, item.text, item.metadata["path"]) for item in documents(Path(one), Path(two))]
        assert sorted(found) == sorted(expected)


def test_links_are_followed_to_files_but_not_to_folders_so_that_loops_end(tmp_path: Path) -> None:
    write(tmp_path / "in/a.txt", "A")
    (tmp_path / "in/loop").symlink_to(tmp_path)
    (tmp_path / "in/self").symlink_to("self")
    (tmp_path / "link.txt").symlink_to("in/a.txt")
    document, loop, itself, link = read(tmp_path)
    assert isinstance(document, Document)
    assert isinstance(loop, Skipped) and loop.reason.startswith("symbolic link to a folder")
    assert isinstance(itself, Skipped) and itself.reason.startswith("not a file that can be read")
    assert isinstance(link, Document) and link.external_id == f"{tmp_path.name}/link.txt"
    assert link.metadata["path"] == "link.txt"


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("pipes have no names here")
    os.mkfifo(tmp_path / "pipe.txt")
    assert isinstance(read(tmp_path)[0], Skipped)


def test_a_folder_without_permission_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert read(tmp_path) == [Skipped(str(tmp_path), "cannot be read: Permission denied")]


def test_a_file_name_that_is_not_unicode_is_skipped_printably(tmp_path: Path) -> None:
    try:
        write(tmp_path / os.fsdecode(b"gr\xfc.txt"), "A")
    except OSError:
        pytest.skip("this file system has only Unicode names")
    assert read(tmp_path) == [Skipped(f"{tmp_path}/gr\\xfc.txt", "the file's name is not UTF-8")]


def test_a_missing_path_is_an_error_before_anything_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "A")
    with pytest.raises(CorpusError, match=r"nowhere\.txt does not exist"):
        read_paths([tmp_path, tmp_path / "nowhere.txt"])


def test_no_paths_are_no_documents() -> None:
    assert read() == []


def test_a_file_is_not_opened_before_it_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"text": "1"}\n' * 3)
    late = write(tmp_path / "b.txt", "early")
    items = read_paths([tmp_path])
    next(items)
    late.write_text("late")
    *_, last = items
    assert isinstance(last, Document)
    assert last.text == "late"


@pytest.mark.parametrize("name", ["many.jsonl", "many.jsonl.gz", "many.jsonl.xz"])
def test_how_much_is_left_is_told_from_the_bytes_that_are_read(tmp_path: Path, name: str) -> None:
    lines = "".join(
        json.dumps({"text": hashlib.sha256(bytes([n % 256, n // 256])).hexdigest()}) + "\n" for n in range(9999)
    )
    packed = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)(lines.encode())
    (tmp_path / name).write_bytes(packed)
    write(tmp_path / "note.txt", "x" * 100_000)
    write(tmp_path / "no.bin", "x" * 10_000_000)
    total = 64 * 9999 + 100_000
    reading = ReadProgress([tmp_path])
    assert reading.total_characters() is None
    estimates = [(reading.characters, reading.total_characters()) for _ in read_paths([tmp_path], reading)]
    for characters, estimate in estimates[5000:]:
        assert estimate is not None
        assert characters <= estimate == pytest.approx(total, rel=0.4)
    assert reading.total_characters() == reading.characters == total


def test_nothing_readable_is_no_characters(tmp_path: Path) -> None:
    write(tmp_path / "empty.txt", "")
    reading = ReadProgress([tmp_path, tmp_path / "empty.txt"])
    assert all(isinstance(item, Skipped) for item in read_paths([tmp_path, tmp_path / "empty.txt"], reading))
    assert reading.total_characters() == 0


def test_a_file_of_records_is_read_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "1"}\n' * 1000)
    num_parsed = 0
    parse = corpus.parse_json_object

    def counting(line: str) -> object:
        nonlocal num_parsed
        num_parsed += 1
        return parse(line)

    monkeypatch.setattr("memspan.text.readers.json_files.parse_json_object", counting)
    next(read_paths([path]))
    assert num_parsed == 1


# Streams --------------------------------------------------------------------------------------------------------------


def test_a_stream_is_one_document() -> None:
    text = "\ufeffNotes\n\nDate: 2024-01-02\n{}\n"
    kept = text.removeprefix("\ufeff")
    name = f"stdin:{hashlib.sha256(kept.encode()).hexdigest()[:12]}"
    for given, wanted in ((None, name), ("mine", "mine")):
        assert list(read_stream(io.StringIO(text), given)) == [Document(wanted, kept, "Notes", {}, "2024-01-02")]


def test_a_stream_of_json_objects_is_many() -> None:
    text = '{"text": "A\u2028B", "year": 1}\n\n{"id": "x", "body": "C"}\n{}\n'
    for given, name in (("in", "in"), (None, f"stdin:{hashlib.sha256(text.encode()).hexdigest()[:12]}")):
        assert list(read_stream(io.StringIO(text), given)) == [
            Document(f"{name}#1", "A\u2028B", "", {"year": 1}),
            Document("x", "C"),
            Skipped("stdin#4", WITHOUT_TEXT),
        ]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b" \n", "empty"),
        (b"a\0b", "binary file"),
        (
            "grüß".encode() + b"\xff",
            "not UTF-8 text at byte 6 (line 1); mend it, or name its encoding with --encoding",
        ),
    ],
)
def test_a_stream_without_text_is_skipped(data: bytes, reason: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(data), "utf-8")
    assert list(read_stream(stream)) == [Skipped("stdin", reason)]


# Packages -------------------------------------------------------------------------------------------------------------


def test_installed_packages_are_documents() -> None:
    packages = {document.title: document for document in installed_packages()}
    safetensors = packages["safetensors"]
    assert safetensors.external_id == "package:safetensors"
    assert safetensors.text.startswith("safetensors is a Python package.")
    assert "tensors" in safetensors.text.split()
    assert safetensors.metadata == {"version": importlib.metadata.version("safetensors")}


def test_packages_are_sorted_unique_and_brief(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    readme = "# Zed\n\n[![build](b.svg)](https://ci)\n<p align='c'>Reads [files](u) `fast`.</p>\n\n" + "word " * 300
    rst = ".. image:: b.svg\n   :target: u\n\nTool\n====\n\n|badge|_ uses :func:`f` of `docs <u>`_."
    install(first, "Zed_x", "Zed.", readme)
    install(first, "a-tool", "", rst)
    install(first, "silent", "", "")
    install(second, "zed-X", "An older copy.", "")
    monkeypatch.setattr("sys.path", [str(first), str(second)])
    tool, zed = installed_packages()
    assert (tool.external_id, tool.text) == ("package:a-tool", "a-tool is a Python package.\n\nTool uses f of docs.")
    assert zed.text.startswith("Zed_x is a Python package. Zed.\n\nZed Reads files fast. word word")
    assert len(zed.text.split()) == 6 + 200
    assert zed.metadata == {"version": "1.0"}


def install(folder: Path, name: str, summary: str, description: str) -> None:
    headers = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" + (f"Summary: {summary}\n" if summary else "")
    write(folder / f"{name.replace('-', '_')}-1.0.dist-info" / "METADATA", f"{headers}\n{description}")
