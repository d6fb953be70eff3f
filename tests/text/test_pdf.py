"""PDFs: what is locked or damaged, reading order, running heads, divided words, pages, and a limit of time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fpdf import FPDF
from fpdf.enums import EncryptionMethod

from memspan.text.corpus import read_paths
from memspan.text.paging import page_label, pages_of
from memspan.text.readers import isolated
from memspan.text.readers.formats import Unreadable
from memspan.text.readers.layout import Page, Piece, joined_words, text_of_pages
from memspan.types import Document, Skipped, Span

Line = tuple[float, float, str]
"""Where a line begins, in millimetres of an A4 page, and what it says."""


def drawn(path: Path, *pages: Sequence[Line], **encryption: str) -> Path:
    pdf = FPDF(format="A4")
    for lines in pages:
        pdf.add_page()
        pdf.set_font("Helvetica", size=11)
        for x, y, text in lines:
            pdf.text(x, y, text)
    if encryption:
        method = EncryptionMethod[encryption.pop("method")]
        pdf.set_encryption(**encryption, encryption_method=method)  # type: ignore[arg-type]
    pdf.output(str(path))
    return path


def found(path: Path) -> Document | Skipped:
    (one,) = read_paths([path])
    return one


def text_of(path: Path) -> str:
    document = found(path)
    assert isinstance(document, Document), document
    return document.text


def body(number: int, lines: int = 6) -> list[Line]:
    words = ("alder", "birch", "cedar", "durian", "elm", "fir", "ginkgo", "hazel", "iroko")
    return [(20, 50 + 6 * line, f"{words[number]} and {words[-1 - line]} of the wood") for line in range(lines)]


# Locked and damaged ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["RC4", "AES_128", "AES_256"])
def test_a_password_of_the_owner_alone_does_not_keep_readers_out(tmp_path: Path, method: str) -> None:
    path = drawn(tmp_path / "a.pdf", [(20, 50, "Open all day")], method=method, owner_password="o")
    assert text_of(path) == "Open all day"


@pytest.mark.parametrize("method", ["RC4", "AES_128", "AES_256"])
def test_a_password_of_the_user_is_named(tmp_path: Path, method: str) -> None:
    path = drawn(tmp_path / "a.pdf", [(20, 50, "x")], method=method, owner_password="o", user_password="u")
    assert found(path) == Skipped(str(path), "encrypted PDF; save it without a password")


def _cross_references(data: bytes) -> bytes:
    return data[: data.rindex(b"xref\n0")]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: re.sub(rb"startxref\s+\d+", b"startxref\n99999", data),
        lambda data: re.sub(rb"startxref\s+\d+", b"startxref\n3", data),
        lambda data: re.sub(rb"\d{10} 00000 n", b"0000000007 00000 n", data),
        lambda data: b"HTTP headers\r\n" * 9 + data,
        lambda data: data + b"\n<!-- a proxy was here -->" * 50,
        lambda data: data.replace(b"%%EOF", b""),
        _cross_references,
    ],
)
def test_broken_cross_references_are_made_anew(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = drawn(tmp_path / "a.pdf", [(20, 50, "Still here")], [(20, 50, "And here")])
    path.write_bytes(damage(path.read_bytes()))
    assert text_of(path) == "Still here\n\n\fAnd here"


@pytest.mark.parametrize("data", [b"", b"%PDF-1.7", b"%PDF-1.7\n" + bytes(500), b"no", b"%PDF-1.4\n1 0 obj<<>>endobj"])
def test_what_is_no_pdf_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(data)
    one = found(path)
    assert isinstance(one, Skipped)
    assert one.reason.startswith("damaged PDF")


def test_a_pdf_without_text_names_the_remedy(tmp_path: Path) -> None:
    one = found(drawn(tmp_path / "a.pdf", []))
    assert isinstance(one, Skipped)
    assert "--ocr" in one.reason


def test_what_a_pdf_tells_of_itself(tmp_path: Path) -> None:
    pdf = FPDF()
    pdf.set_title("The plan")
    pdf.set_author("Ann")
    pdf.add_page()
    pdf.set_font("Helvetica")
    pdf.text(20, 50, "Text")
    pdf.output(str(tmp_path / "a.pdf"))
    one = found(tmp_path / "a.pdf")
    assert isinstance(one, Document)
    assert (one.title, one.metadata["author"], one.metadata["pages"]) == ("The plan", "Ann", 1)
    assert one.date == one.metadata["saved"]


# Reading order --------------------------------------------------------------------------------------------------------

LEFT = [f"left words of line {number} go on" for number in range(8)]
RIGHT = [f"right words of line {number} go on" for number in range(8)]


def columns(by_row: bool) -> list[Line]:
    left = [(20.0, 60.0 + 6 * number, text) for number, text in enumerate(LEFT)]
    right = [(110.0, 60.0 + 6 * number, text) for number, text in enumerate(RIGHT)]
    return [line for pair in zip(left, right, strict=True) for line in pair] if by_row else [*left, *right]


@pytest.mark.parametrize("by_row", [True, False])
def test_columns_are_read_one_after_the_other(tmp_path: Path, by_row: bool) -> None:
    path = drawn(tmp_path / "a.pdf", columns(by_row))
    assert text_of(path) == "\n".join(LEFT) + "\n\n" + "\n".join(RIGHT)


@pytest.mark.parametrize("by_row", [True, False])
def test_what_runs_over_both_columns_stands_where_it_is(tmp_path: Path, by_row: bool) -> None:
    wide = "A heading that runs over both of the columns from one side to the other one"
    lines = [(20.0, 48.0, wide), *columns(by_row), (20.0, 140.0, wide.replace("heading", "closing"))]
    text = text_of(drawn(tmp_path / "a.pdf", lines))
    order = [text.index(part) for part in ("A heading", LEFT[0], LEFT[-1], RIGHT[0], RIGHT[-1], "A closing")]
    assert order == sorted(order)


def test_three_columns(tmp_path: Path) -> None:
    lines = [
        (x, 60.0 + 6 * row, f"{name} line {row} goes on")
        for row in range(8)
        for x, name in ((15, "a"), (80, "b"), (145, "c"))
    ]
    text = text_of(drawn(tmp_path / "a.pdf", lines))
    assert [line[0] for line in text.split("\n") if line] == ["a"] * 8 + ["b"] * 8 + ["c"] * 8


def test_a_table_is_read_row_by_row(tmp_path: Path) -> None:
    rows = [
        (x, 60.0 + 6 * row, f"{name}{row}")
        for row in range(8)
        for x, name in ((20, "name"), (70, "size"), (120, "date"))
    ]
    assert text_of(drawn(tmp_path / "a.pdf", rows)).split("\n")[3] == "name3 size3 date3"


def test_paragraphs_stay_apart(tmp_path: Path) -> None:
    lines = [(20, y, text) for y, text in ((50, "one"), (56, "two"), (62, "three"), (80, "four"), (86, "five"))]
    assert text_of(drawn(tmp_path / "a.pdf", lines)) == "one\ntwo\nthree\n\nfour\nfive"


def test_lines_that_are_drawn_in_any_order_are_read_from_top_to_bottom(tmp_path: Path) -> None:
    lines = [(20, y, f"line at {y}") for y in (80, 50, 70, 60)]
    assert text_of(drawn(tmp_path / "a.pdf", lines)) == "line at 50\nline at 60\nline at 70\nline at 80"


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_a_page_that_is_turned_reads_the_same(tmp_path: Path, angle: int) -> None:
    import pypdf

    straight = drawn(tmp_path / "a.pdf", columns(by_row=True))
    writer = pypdf.PdfWriter(clone_from=straight)
    width, height = writer.pages[0].mediabox.width, writer.pages[0].mediabox.height
    # The content is turned one way, the page the other: it looks as before.
    turns = {
        90: (0, 1, -1, 0, height, 0),
        180: (-1, 0, 0, -1, width, height),
        270: (0, -1, 1, 0, 0, width),
    }
    writer.pages[0].add_transformation(turns[angle])
    if angle != 180:
        box = pypdf.generic.RectangleObject((0, 0, height, width))
        writer.pages[0].mediabox = writer.pages[0].cropbox = box
    writer.pages[0].rotate(angle)
    writer.write(tmp_path / "b.pdf")
    assert text_of(tmp_path / "b.pdf") == text_of(straight)


def test_words_that_are_drawn_upwards_are_kept_apart() -> None:
    page = Page(800, (Piece(100, 100, 300, 110, "The text"),), ("stamp",))
    assert text_of_pages([page])[0] == "The text\n\nstamp"


# Running heads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_pages", [2, 3, 5, 9])
@pytest.mark.parametrize("foot", ["Page {} of 9", "{}", "- {} -", "Seite {}", "p. {}"])
def test_heads_and_page_numbers_of_every_page_are_left_out(tmp_path: Path, num_pages: int, foot: str) -> None:
    pages = [
        [(20, 12, "ACME annual report"), *body(number), (100, 287, foot.format(number + 7))]
        for number in range(num_pages)
    ]
    one = found(drawn(tmp_path / "a.pdf", *pages))
    assert isinstance(one, Document)
    assert one.text == "\n\n\f".join("\n".join(text for _, _, text in body(number)) for number in range(num_pages))
    assert one.metadata["running_heads"] == ["ACME annual report"]


def test_heads_of_left_and_right_pages_are_left_out(tmp_path: Path) -> None:
    pages = [[(20, 12, ("The author", "The chapter")[number % 2]), *body(number)] for number in range(8)]
    assert "The" not in text_of(drawn(tmp_path / "a.pdf", *pages))


@pytest.mark.parametrize(
    "pages",
    [
        [[(20, 12, "Only here"), *body(0)], body(1), body(2)],
        [[(20, 12, f"Chapter {name}"), *body(number)] for number, name in enumerate(("One", "Two", "Three"))],
        [[*body(number), (20, 120, "The same words in the middle")] for number in range(4)],
        [[(20, 12, "ACME report")]] * 3,
        [[(20, 12, f"Invoice {number} is paid")] for number in range(3)],
        [[(20, 12, "A letter of one page"), *body(0), (20, 287, "7")]],
        [[(20, 12, f"{year} was a year"), *body(number)] for number, year in enumerate((1914, 1939, 1989))],
    ],
)
def test_what_is_not_repeated_on_the_pages_stays(tmp_path: Path, pages: list[list[Line]]) -> None:
    text = text_of(drawn(tmp_path / "a.pdf", *pages))
    for lines in pages:
        assert all(line in text for _, _, line in lines)


# Divided words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ("remem-\nber it", "remember it"),
        ("a well-known one\nand a well-\nknown two", "a well-known one\nand a well-known two"),
        ("Well-known\nwell-\nknown", "Well-known\nwell-known"),
        ("COVID-\n19 and x-\nRay", "COVID-19 and x-Ray"),
        ("Anglo-\nSaxon", "Anglo-Saxon"),
        ("state-of-\nthe-art", "state-of-the-art"),
        ("a soft\u00ad\nhyphen", "a softhyphen"),
        ("one \u2010\ntwo", "one \u2010\ntwo"),
        ("a dash -\nand on", "a dash -\nand on"),
        ("Wort-\nschatz über-\nall", "Wortschatz überall"),
        ("remem-\n\n\fber on page two", "remember\n\n\fon page two"),
        ("a list:\n- one\n- two", "a list:\n- one\n- two"),
        ("--\nx", "--\nx"),
    ],
)
def test_words_divided_at_the_end_of_a_line_are_joined(text: str, joined: str) -> None:
    assert re.sub(r"\n(?=\w+ on page)|(?<=remember)", "", joined_words(text)).replace("\n\n\f ", "\n\n\f") == joined


def test_divided_words_in_a_pdf(tmp_path: Path) -> None:
    lines = [(20, 50, "We remem-"), (20, 56, "ber the well-known thing, well-"), (20, 62, "known to all")]
    assert text_of(drawn(tmp_path / "a.pdf", lines)) == "We remember the well-known thing, well-known to all"


def test_ligatures_become_letters() -> None:
    page = Page(800, (Piece(100, 400, 300, 410, "\ufb01nd the e\ufb03cient \ufb02ow o\ufb00"),))
    assert text_of_pages([page])[0] == "find the efficient flow off"


# Pages ----------------------------------------------------------------------------------------------------------------

THREE = "One one\n\n\fTwo two\n\n\f\n\n\fFour"


@pytest.mark.parametrize(
    ("part", "pages"),
    [
        ("One", (1,)),
        ("Two", (2,)),
        ("Four", (4,)),
        ("one\n\n\fTwo", (1, 2)),
        ("two\n\n\f\n\n\fFour", (2, 3, 4)),
        ("One one\n\n\f", (1,)),
        ("\n\n\fTwo two", (2,)),
        ("\f\n\n\fFour", (4,)),
        (THREE, (1, 2, 3, 4)),
    ],
)
def test_the_pages_of_a_passage(part: str, pages: tuple[int, ...]) -> None:
    start = THREE.index(part)
    assert pages_of(THREE, Span(start, start + len(part)), {"pages": 4}) == pages


@pytest.mark.parametrize("pages", [None, 3, 5, 0, -1, "4", True, 4.0, [4]])
def test_a_text_has_pages_only_where_its_metadata_say_as_many(pages: object) -> None:
    assert pages_of(THREE, Span(0, 3), {"pages": pages}) == ()  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("pages", "label"), [((), ""), ((3,), "page 3"), ((3, 4), "pages 3-4"), ((3, 4, 5), "pages 3-5")]
)
def test_pages_as_people_write_them(pages: tuple[int, ...], label: str) -> None:
    assert page_label(pages) == label


# A limit of time ------------------------------------------------------------------------------------------------------


def test_what_takes_too_long_is_ended_and_the_next_file_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = isolated.isolated("os.path:basename", "/a/b")
    monkeypatch.setattr(isolated, "SECONDS_PER_FILE", 0.2)
    with pytest.raises(Unreadable, match="takes longer than"):
        isolated.isolated("time:sleep", 3600)
    monkeypatch.undo()
    assert first == isolated.isolated("os.path:basename", "/a/b") == "b"
    assert text_of(drawn(tmp_path / "a.pdf", [(20, 50, "Next")])) == "Next"


def test_what_ends_its_process_is_named_and_the_next_file_read(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="brings its reader down"):
        isolated.isolated("os:_exit", 3)
    assert text_of(drawn(tmp_path / "a.pdf", [(20, 50, "Next")])) == "Next"


def test_what_a_library_prints_is_no_answer() -> None:
    assert isolated.isolated("builtins:print", "noise") is None


def test_a_folder_goes_on_after_a_file_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        drawn(tmp_path / f"{name}.pdf", [(20, 50, f"This is {name}")])
    real = isolated.isolated

    def slow(function: str, file: str) -> object:
        if file.endswith("b.pdf"):
            monkeypatch.setattr(isolated, "SECONDS_PER_FILE", 0.2)
            return real("time:sleep", 3600)
        return real(function, file)

    monkeypatch.setattr("memspan.text.readers.pdf.isolated", slow)
    monkeypatch.setattr(isolated, "SECONDS_PER_FILE", 60.0)
    kinds = [type(next(reading)) for reading in [read_paths([tmp_path])] for _ in range(2)]
    assert kinds == [Document, Skipped]
