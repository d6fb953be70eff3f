"""Office documents and books. The files are made here, of as little XML as their formats need."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from memspan.text.corpus import read_paths
from memspan.types import Document, Skipped

_W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_R = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_A = "http://schemas.openxmlformats.org/drawingml/2006/main"
_P = "http://schemas.openxmlformats.org/presentationml/2006/main"
_S = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_ODF = "urn:oasis:names:tc:opendocument:xmlns"
_CORE = (
    '<cp:coreProperties xmlns:cp="c" xmlns:dc="d" xmlns:t="t"><dc:title>The plan</dc:title>'
    "<dc:creator>Ann</dc:creator><t:modified>2025-03-04T05:06:00Z</t:modified></cp:coreProperties>"
)
ENTITIES = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">{more}]>'
OUTSIDE = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]>'


def packed(path: Path, members: Mapping[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def read(path: Path) -> Document:
    (found,) = read_paths([path])
    assert isinstance(found, Document), found
    return found


def reason(path: Path) -> str:
    (found,) = read_paths([path])
    assert isinstance(found, Skipped), found
    return found.reason


def relations(**targets: str) -> str:
    kinds = "".join(
        f'<Relationship Id="{id}" Type="{_R}/{id.rstrip("0123456789")}" Target="{target}"/>'
        for id, target in targets.items()
    )
    return (
        f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{kinds}</Relationships>'
    )


# Word -----------------------------------------------------------------------------------------------------------------


def word(path: Path, body: str, namespace: str = _W, before: str = "", **members: str) -> Path:
    document = f'{before}<w:document xmlns:w="{namespace}" xmlns:mc="m"><w:body>{body}</w:body></w:document>'
    styles = (
        f'<w:styles xmlns:w="{namespace}"><w:style w:styleId="berschrift2"><w:name w:val="heading 2"/></w:style>'
        '<w:style w:styleId="L"><w:name w:val="List Bullet"/></w:style></w:styles>'
    )
    parts = {
        "_rels/.rels": relations(officeDocument="word/document.xml"),
        "word/document.xml": document,
        "word/_rels/document.xml.rels": relations(
            styles="styles.xml", footnotes="footnotes.xml", comments="comments.xml"
        ),
        "word/styles.xml": styles,
        "docProps/core.xml": _CORE,
    }
    return packed(path, parts | {f"word/{name}.xml": data for name, data in members.items()})


def paragraph(*runs: str, style: str = "") -> str:
    mark = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{mark}{''.join(f'<w:r><w:t>{run}</w:t></w:r>' for run in runs)}</w:p>"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (paragraph("An ot", "ter"), "An otter"),
        (paragraph("One") + paragraph("") + paragraph("Two"), "One\n\nTwo"),
        (paragraph("Head", style="berschrift2"), "## Head"),
        (paragraph("item", style="L"), "- item"),
        (f"<w:p><w:pPr><w:numPr/></w:pPr>{paragraph('x')[5:]}", "- x"),
        ("<w:p><w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t></w:r></w:p>", "a\tb\nc"),
        (
            "<w:p><w:del><w:r><w:delText>old</w:delText></w:r></w:del><w:ins><w:r><w:t>new</w:t></w:r></w:ins></w:p>",
            "new",
        ),
        ("<w:p><w:r><w:instrText>PAGE</w:instrText><w:t>seen</w:t></w:r></w:p>", "seen"),
        ("<w:p><w:hyperlink><w:r><w:t>a link</w:t></w:r></w:hyperlink></w:p>", "a link"),
        (f"<w:sdt><w:sdtContent>{paragraph('filled in')}</w:sdtContent></w:sdt>", "filled in"),
        (
            f"<w:tbl><w:tr><w:tc>{paragraph('a')}</w:tc><w:tc>{paragraph('b')}{paragraph('c')}</w:tc></w:tr>"
            f"<w:tr><w:tc>{paragraph('d')}</w:tc><w:sdt><w:sdtContent><w:tc>{paragraph('e')}</w:tc></w:sdtContent></w:sdt>"
            "</w:tr></w:tbl>",
            "a | b c\nd | e",
        ),
        (
            f"<w:p><mc:AlternateContent><mc:Choice><w:txbxContent>{paragraph('box')}</w:txbxContent></mc:Choice>"
            f"<mc:Fallback><w:txbxContent>{paragraph('box')}</w:txbxContent></mc:Fallback></mc:AlternateContent></w:p>",
            "box",
        ),
        (paragraph("日本語 عربي \U0001f9a6 &amp; &lt;b&gt;"), "日本語 عربي \U0001f9a6 & <b>"),
    ],
)
def test_word_documents_in_the_order_of_their_text(tmp_path: Path, body: str, text: str) -> None:
    assert read(word(tmp_path / "a.docx", body)).text == text


def test_what_else_a_word_document_tells(tmp_path: Path) -> None:
    found = read(word(tmp_path / "a.docx", paragraph("Text")))
    assert (found.title, found.date) == ("The plan", "2025-03-04T05:06:00")
    assert found.metadata["author"] == "Ann"


def test_notes_and_comments_stand_at_the_end(tmp_path: Path) -> None:
    notes = f'<w:footnotes xmlns:w="{_W}"><w:footnote w:id="2">{paragraph("A note")}</w:footnote></w:footnotes>'
    said = f'<w:comments xmlns:w="{_W}"><w:comment w:author="Bo">{paragraph("Why?")}</w:comment></w:comments>'
    body = '<w:p><w:r><w:t>Text</w:t><w:footnoteReference w:id="2"/></w:r></w:p>'
    found = read(word(tmp_path / "a.docx", body, footnotes=notes, comments=said))
    assert found.text == "Text[2]\n\n[2] A note\n\nComment by Bo: Why?"


def test_strict_documents_have_other_namespaces_and_are_read(tmp_path: Path) -> None:
    path = word(tmp_path / "a.docx", paragraph("Text"), namespace="http://purl.oclc.org/ooxml/wordprocessingml/main")
    assert read(path).text == "Text"


def test_a_word_document_without_relations_styles_and_properties_is_read(tmp_path: Path) -> None:
    document = f'<w:document xmlns:w="{_W}"><w:body>{paragraph("Text")}</w:body></w:document>'
    found = read(packed(tmp_path / "plan.docx", {"word/document.xml": document}))
    assert (found.text, found.title, found.date) == ("Text", "plan", None)


def test_a_date_in_the_text_or_the_name_comes_before_that_of_saving(tmp_path: Path) -> None:
    assert read(word(tmp_path / "2020-05-06.docx", paragraph("Text"))).date == "2020-05-06"
    assert read(word(tmp_path / "a.docx", paragraph("Date: 2021-01-02"))).date == "2021-01-02"


# Presentations --------------------------------------------------------------------------------------------------------


def shape(text: str, kind: str = "") -> str:
    place = f'<p:nvSpPr><p:nvPr><p:ph type="{kind}"/></p:nvPr></p:nvSpPr>' if kind else ""
    lines = "".join(f"<a:p><a:r><a:t>{line}</a:t></a:r></a:p>" for line in text.split("\n"))
    return f"<p:sp>{place}<p:txBody>{lines}</p:txBody></p:sp>"


def slides(path: Path, *trees: str, order: tuple[int, ...] = (), notes: str = "") -> Path:
    numbers = order or tuple(range(1, len(trees) + 1))
    ids = "".join(f'<p:sldId r:id="slide{number}"/>' for number in numbers)
    heads = f'xmlns:p="{_P}" xmlns:a="{_A}" xmlns:r="{_R}"'
    members = {
        "_rels/.rels": relations(officeDocument="ppt/presentation.xml"),
        "ppt/presentation.xml": f"<p:presentation {heads}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels": relations(
            **{f"slide{number}": f"slides/slide{number}.xml" for number in range(1, len(trees) + 1)}
        ),
    }
    for number, tree in enumerate(trees, start=1):
        members[f"ppt/slides/slide{number}.xml"] = f"<p:sld {heads}><p:spTree>{tree}</p:spTree></p:sld>"
    if notes:
        members["ppt/slides/_rels/slide1.xml.rels"] = relations(notesSlide="../notesSlides/n.xml")
        members["ppt/notesSlides/n.xml"] = f"<p:notes {heads}><p:spTree>{shape(notes)}</p:spTree></p:notes>"
    return packed(path, members)


def test_slides_are_pages_in_the_order_of_the_show(tmp_path: Path) -> None:
    found = read(
        slides(tmp_path / "a.pptx", shape("Second", "title") + shape("x\ny"), shape("First", "title"), order=(2, 1))
    )
    assert found.text == "# First\n\n\f# Second\n\nx\ny"
    assert (found.title, found.metadata["pages"]) == ("First", 2)


def test_notes_tables_and_groups_of_slides(tmp_path: Path) -> None:
    cells = "".join(f"<a:tc><a:txBody><a:p><a:r><a:t>{text}</a:t></a:r></a:p></a:txBody></a:tc>" for text in "ab")
    tree = (
        f"<p:grpSp>{shape('in a group')}</p:grpSp><p:graphicFrame><a:tbl><a:tr>{cells}</a:tr></a:tbl></p:graphicFrame>"
    )
    found = read(slides(tmp_path / "a.pptx", tree + shape("7", "sldNum"), notes="Say it slowly"))
    assert found.text == "in a group\n\na | b\n\nNotes: Say it slowly"


def test_a_slide_without_text_keeps_the_numbers_of_those_after_it(tmp_path: Path) -> None:
    assert read(slides(tmp_path / "a.pptx", shape("One"), "", shape("Three"))).text.count("\f") == 2


# Spreadsheets ---------------------------------------------------------------------------------------------------------


def cell(reference: str, value: str | float | bool, style: int = 0) -> str:
    if isinstance(value, bool):
        return f'<c r="{reference}" t="b"><v>{value:d}</v></c>'
    if isinstance(value, str):
        return f'<c r="{reference}" t="inlineStr"><is><t>{value}</t></is></c>'
    return f'<c r="{reference}" s="{style}"><v>{value}</v></c>'


def workbook(path: Path, **sheets: str) -> Path:
    names = "".join(
        f'<sheet name="{name}" sheetId="{number}" r:id="worksheet{number}"/>' for number, name in enumerate(sheets, 1)
    )
    styles = f'<styleSheet xmlns="{_S}"><cellXfs><xf numFmtId="0"/><xf numFmtId="14"/></cellXfs></styleSheet>'
    targets = {f"worksheet{number}": f"worksheets/{number}.xml" for number in range(1, len(sheets) + 1)}
    members = {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>',
        "_rels/.rels": relations(officeDocument="xl/workbook.xml"),
        "xl/workbook.xml": f'<workbook xmlns="{_S}" xmlns:r="{_R}"><sheets>{names}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": relations(styles="styles.xml", **targets),
        "xl/styles.xml": styles,
    }
    for number, rows in enumerate(sheets.values(), 1):
        members[f"xl/worksheets/{number}.xml"] = f'<worksheet xmlns="{_S}"><sheetData>{rows}</sheetData></worksheet>'
    return packed(path, members)


def row(number: int, *cells: str) -> str:
    return f'<row r="{number}">{"".join(cells)}</row>'


def test_rows_say_what_their_values_are(tmp_path: Path) -> None:
    people = row(1, cell("A1", "Name"), cell("B1", "Born"), cell("C1", "Score"), cell("D1", "Tall")) + row(
        2, cell("A2", "Ann"), cell("B2", 32875, style=1), cell("C2", 2.5), cell("D2", True)
    )
    found = read(workbook(tmp_path / "a.xlsx", People=people, Sums=row(1, cell("A1", 3.0), cell("B1", 4))))
    assert found.text == (
        "# People\n\nName | Born | Score | Tall\nName: Ann; Born: 1990-01-02; Score: 2.5; Tall: yes"
        "\n\n\f# Sums\n\n3 | 4"
    )
    assert (found.title, found.metadata["pages"], found.metadata["sheets"]) == ("a", 2, ["People", "Sums"])


def test_a_line_above_the_columns_and_cells_without_a_column(tmp_path: Path) -> None:
    rows = row(1, cell("A1", "Report")) + row(2, cell("A2", "Name"), cell("C2", "Age"))
    rows += row(4, cell("A4", "Ann"), cell("B4", "loose"), cell("C4", 3)) + row(5, cell("A5", "alone"))
    found = read(workbook(tmp_path / "a.xlsx", S=rows))
    assert found.text == "# S\n\nReport\nName | Age\nName: Ann; loose; Age: 3\nalone"


def test_a_workbook_without_cells_is_empty(tmp_path: Path) -> None:
    assert reason(workbook(tmp_path / "a.xlsx", S="")) == "empty"


def test_a_cell_in_the_last_corner_does_not_end_the_program(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", S=row(1, cell("A1", "x")) + row(1048576, cell("XFD1048576", "y")))
    assert "brings its reader down" in reason(path)
    assert read(workbook(tmp_path / "b.xlsx", S=row(1, cell("A1", "x")))).text == "# S\n\nx", "the next file is read"


# OpenDocument ---------------------------------------------------------------------------------------------------------


def open_document(path: Path, body: str, encrypted: bool = False) -> Path:
    names = ("office", "text", "table", "draw", "meta")
    heads = " ".join(f'xmlns:{name}="{_ODF}:{name}:1.0"' for name in names) + ' xmlns:dc="d"'
    meta = "<dc:title>A title</dc:title><dc:creator>Ann</dc:creator><dc:date>2025-03-04T05:06:00</dc:date>"
    manifest = "<m><e><encryption-data/></e></m>" if encrypted else "<m/>"
    return packed(
        path,
        {
            "content.xml": f"<office:document {heads}><office:body>{body}</office:body></office:document>",
            "meta.xml": f"<office:document-meta {heads}><office:meta>{meta}</office:meta></office:document-meta>",
            "META-INF/manifest.xml": manifest,
        },
    )


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('<text:h text:outline-level="2">Head</text:h><text:p>Text</text:p>', "## Head\n\nText"),
        ('<text:p>a<text:s text:c="3"/>b<text:tab/>c<text:line-break/>d</text:p>', "a   b\tc\nd"),
        ("<text:p>x <text:span>y <text:span>z</text:span></text:span>.</text:p>", "x y z."),
        (
            "<text:p>Text<text:note><text:note-citation>1</text:note-citation>"
            "<text:note-body><text:p>A note</text:p></text:note-body></text:note> on.</text:p>",
            "Text (A note) on.",
        ),
        ("<text:list><text:list-item><text:p>one</text:p></text:list-item></text:list>", "- one"),
        ("<text:tracked-changes><text:p>gone</text:p></text:tracked-changes><text:p>here</text:p>", "here"),
        (
            "<table:table><table:table-header-rows><table:table-row><table:table-cell><text:p>a</text:p>"
            "</table:table-cell><table:table-cell><text:p>b</text:p></table:table-cell></table:table-row>"
            "</table:table-header-rows></table:table>",
            "a | b",
        ),
    ],
)
def test_open_documents_in_the_order_of_their_text(tmp_path: Path, body: str, text: str) -> None:
    found = read(open_document(tmp_path / "a.odt", f"<office:text>{body}</office:text>"))
    assert found.text == text
    assert (found.title, found.date, found.metadata["author"]) == ("A title", "2025-03-04T05:06:00", "Ann")


def test_an_open_presentation_has_pages(tmp_path: Path) -> None:
    pages = "".join(
        f"<draw:page><draw:frame><text:p>{text}</text:p></draw:frame></draw:page>" for text in ("One", "Two")
    )
    found = read(open_document(tmp_path / "a.odp", f"<office:presentation>{pages}</office:presentation>"))
    assert (found.text, found.metadata["pages"]) == ("One\n\n\fTwo", 2)


def test_an_open_spreadsheet_reads_as_one_of_excel(tmp_path: Path) -> None:
    def cells(*texts: str) -> str:
        inner = "".join(f"<table:table-cell><text:p>{text}</text:p></table:table-cell>" for text in texts)
        return f"<table:table-row>{inner}<table:table-cell table:number-columns-repeated='16382'/></table:table-row>"

    empty = "<table:table-row table:number-rows-repeated='1048574'><table:table-cell/></table:table-row>"
    body = f"<table:table table:name='S'>{cells('Name', 'Age')}{cells('Ann', '3')}{empty}</table:table>"
    found = read(open_document(tmp_path / "a.ods", f"<office:spreadsheet>{body}</office:spreadsheet>"))
    assert found.text == "# S\n\nName | Age\nName: Ann; Age: 3"


def test_an_encrypted_open_document_is_named(tmp_path: Path) -> None:
    assert reason(open_document(tmp_path / "a.odt", "", encrypted=True)).startswith("encrypted")


# Books and RTF --------------------------------------------------------------------------------------------------------


def book(path: Path, chapters: Mapping[str, str], spine: str = "", more: Mapping[str, str] | None = None) -> Path:
    items = "".join(f'<item id="{name}" href="{name}.xhtml"/>' for name in chapters)
    order = "".join(f'<itemref idref="{name}"/>' for name in (spine or " ".join(chapters)).split())
    package = (
        '<package xmlns:dc="d"><metadata><dc:title>The book</dc:title><dc:creator>Ann</dc:creator>'
        f"<dc:date>2001-02</dc:date></metadata><manifest>{items}</manifest><spine>{order}</spine></package>"
    )
    members = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<c><rootfiles><rootfile full-path="OEBPS/book.opf"/></rootfiles></c>',
        "OEBPS/book.opf": package,
    }
    pages = {f"OEBPS/{name}.xhtml": f"<html><body>{text}</body></html>" for name, text in chapters.items()}
    return packed(path, members | pages | dict(more or {}))


def test_a_book_in_the_order_of_its_spine(tmp_path: Path) -> None:
    found = read(
        book(tmp_path / "a.epub", {"one": "<h1>I</h1><p>Begin</p>", "two": "<p>End</p>"}, spine="one two missing")
    )
    assert "Begin" in found.text and found.text.index("Begin") < found.text.index("End")
    assert (found.title, found.date, found.metadata["author"]) == ("The book", "2001-02", "Ann")
    turned = read(book(tmp_path / "b.epub", {"one": "<p>Begin</p>", "two": "<p>End</p>"}, spine="two one"))
    assert turned.text.index("Begin") > turned.text.index("End")


def test_a_book_with_copy_protection_is_named(tmp_path: Path) -> None:
    locked = {"META-INF/encryption.xml": '<e><CipherReference URI="OEBPS/one.xhtml"/></e>'}
    assert reason(book(tmp_path / "a.epub", {"one": "<p>x</p>"}, more=locked)) == "a book with copy protection"
    fonts = {"META-INF/encryption.xml": '<e><CipherReference URI="OEBPS/font.otf"/></e>'}
    assert read(book(tmp_path / "b.epub", {"one": "<p>x</p>"}, more=fonts)).text == "x"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (rb"{\rtf1\ansi Hello \b bold\b0  otter.\par Next}", "Hello bold otter.\nNext"),
        (rb"{\rtf1\ansi\ansicpg1252 Gr\'fc\'dfe}", "Grüße"),
        (rb"{\rtf1\ansi\ansicpg1251 \'cf\'f0\'e8}", "При"),
        (rb"{\rtf1\ansi {\fonttbl{\f0 Arial;}}Text{\*\generator X;}}", "Text"),
        (rb"{\rtf1\ansi \u26085?\u26412?}", "日本"),
    ],
)
def test_rich_text(tmp_path: Path, source: bytes, text: str) -> None:
    path = tmp_path / "a.rtf"
    path.write_bytes(source)
    assert read(path).text.strip() == text


def test_the_title_of_rich_text(tmp_path: Path) -> None:
    path = tmp_path / "a.rtf"
    path.write_bytes(rb"{\rtf1\ansi{\info{\title The \'dcber plan}}Text}")
    assert read(path).title == "The Über plan"


# Damage and harm ------------------------------------------------------------------------------------------------------

_MAKERS: dict[str, Callable[[Path], Path]] = {
    "docx": lambda path: word(path, paragraph("Text")),
    "pptx": lambda path: slides(path, shape("Text")),
    "odt": lambda path: open_document(path, "<office:text><text:p>Text</text:p></office:text>"),
    "epub": lambda path: book(path, {"one": "<p>Text</p>"}),
}
_MAIN = {"docx": "word/document.xml", "pptx": "ppt/presentation.xml", "odt": "content.xml", "epub": "OEBPS/book.opf"}


def changed(path: Path, member: str, change: Callable[[str], str] | None) -> Path:
    """The same package, with a member changed, or left out."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name).decode() for name in archive.namelist()}
    text = members.pop(member)
    return packed(path, members | ({member: change(text)} if change else {}))


@pytest.mark.parametrize("kind", _MAKERS)
@pytest.mark.parametrize(
    "change",
    [None, lambda text: "", lambda text: text[: len(text) // 2], lambda text: "<a>" * 5000, lambda text: "\0" + text],
)
def test_damaged_packages_are_skipped(tmp_path: Path, kind: str, change: Callable[[str], str] | None) -> None:
    path = changed(_MAKERS[kind](tmp_path / f"a.{kind}"), _MAIN[kind], change)
    assert reason(path)


@pytest.mark.parametrize("kind", _MAKERS)
def test_entities_neither_grow_nor_read_other_files(tmp_path: Path, kind: str) -> None:
    for before in (ENTITIES.format(more=""), OUTSIDE):
        path = changed(_MAKERS[kind](tmp_path / f"a.{kind}"), _MAIN[kind], lambda text, before=before: before + text)
        assert reason(path).startswith("XML that declares entities")


@pytest.mark.parametrize("kind", [*_MAKERS, "xlsx"])
def test_a_document_with_a_password_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000))
    assert "password" in reason(path) or kind == "xlsx"


def test_a_member_that_is_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memspan.text.readers.packages.MAX_MEMBER_BYTES", 100)
    assert "larger than" in reason(word(tmp_path / "a.docx", paragraph("long " * 100)))
