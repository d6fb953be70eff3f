"""Office Open XML: Word documents and presentations.

The XML is read here, because all that is wanted of it is its text in order; docs/files.md says what is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from memspan.text.paging import paged
from memspan.text.readers.formats import SAVED_KEY, Content, OneText
from memspan.text.readers.packages import (
    Package,
    as_document,
    attribute,
    children,
    descendants,
    name_of,
    open_package,
)

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_CORE = {"title": "title", "creator": "author", "modified": SAVED_KEY, "keywords": "keywords"}

_BREAKS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
# Deleted text, field codes, the second form of a drawing, and what no reader sees.
_NOT_TEXT = frozenset({"del", "moveFrom", "instrText", "delText", "Fallback", "pPr", "rPr", "sectPr", "tblPr", "trPr"})


def _read_word(path: Path) -> Content:
    with open_package(path, "Word document") as package:
        main = next((file for kind, file in package.targets("").values() if kind == "officeDocument"), "")
        main = main or "word/document.xml"
        others = {kind: file for kind, file in package.targets(main).values()}
        marks = _style_marks(package.xml(others["styles"])) if others.get("styles", "") in package else {}
        blocks = list(_word_blocks(package.xml(main), marks))
        for notes in ("footnotes", "endnotes", "comments"):
            if others.get(notes, "") in package:
                blocks += _word_notes(package.xml(others[notes]), notes)
        return as_document(blocks, package.properties(_CORE, "docProps/core.xml"))


def _style_marks(styles: Element) -> dict[str, str]:
    """What stands before paragraphs of the styles of headings and lists, by id. Their names are always English."""
    marks = {}
    for style in children(styles, "style"):
        name = next((attribute(one, "val") for one in children(style, "name")), "").lower()
        if match := re.fullmatch(r"heading (\d)|title|(list(?: bullet| number).*)", name):
            marks[attribute(style, "styleId")] = "- " if match[2] else "#" * int(match[1] or 1) + " "
    return marks


def _word_blocks(element: Element, marks: Mapping[str, str]) -> Iterator[str]:
    for child in element:
        name = name_of(child)
        if name == "p":
            yield _word_mark(child, marks) + _word_text(child, marks)
        elif name == "tbl":
            yield "\n".join(_word_rows(child, marks))
        elif name not in _NOT_TEXT:
            yield from _word_blocks(child, marks)


def _word_rows(table: Element, marks: Mapping[str, str]) -> Iterator[str]:
    for row in children(table, "tr"):
        cells = (" ".join(" ".join(_word_blocks(cell, marks)).split()) for cell in _cells(row))
        yield " | ".join(cells)


def _cells(row: Element) -> Iterator[Element]:
    """The cells of a row, also those that a content control holds."""
    for child in row:
        if name_of(child) == "tc":
            yield child
        elif name_of(child) in ("sdt", "sdtContent"):
            yield from _cells(child)


def _word_mark(paragraph: Element, marks: Mapping[str, str]) -> str:
    """What stands before a heading or an item of a list, as in Markdown."""
    for properties in children(paragraph, "pPr"):
        style = next((attribute(one, "val") for one in children(properties, "pStyle")), "")
        if style in marks:
            return marks[style]
        if next(children(properties, "numPr"), None) is not None:
            return "- "
    return ""


def _word_text(element: Element, marks: Mapping[str, str]) -> str:
    pieces = []
    for child in element:
        name = name_of(child)
        if name == "t":
            pieces.append(child.text or "")
        elif name in _BREAKS:
            pieces.append(_BREAKS[name])
        elif name in ("footnoteReference", "endnoteReference"):
            pieces.append(f"[{attribute(child, 'id')}]")
        elif name == "txbxContent":
            pieces.append("\n" + "\n".join(_word_blocks(child, marks)) + "\n")
        elif name not in _NOT_TEXT:
            pieces.append(_word_text(child, marks))
    return "".join(pieces)


def _word_notes(notes: Element, kind: str) -> Iterator[str]:
    for note in notes:
        text = " ".join(" ".join(_word_blocks(note, {})).split())
        if text:
            who = f"Comment by {attribute(note, 'author') or 'a reader'}:" if kind == "comments" else ""
            yield f"{who or '[' + attribute(note, 'id') + ']'} {text}"


# Slides ---------------------------------------------------------------------------------------------------------------

_NOT_ON_SLIDES = frozenset({"sldNum", "dt", "ftr", "hdr", "sldImg"})


def _read_slides(path: Path) -> Content:
    with open_package(path, "presentation") as package:
        main = next((file for kind, file in package.targets("").values() if kind == "officeDocument"), "")
        main = main or "ppt/presentation.xml"
        files = package.targets(main)
        shown = [files[id][1] for one in descendants(package.xml(main), "sldId") if (id := _relation(one)) in files]
        slides = [_slide(package, file) for file in shown]
        properties = package.properties(_CORE, "docProps/core.xml")
    return as_document([paged(slides)], properties, pages=len(slides))


def _relation(element: Element) -> str:
    """The relationship that an element names: its `id` of a namespace."""
    return next((value for key, value in element.attrib.items() if key.endswith("}id")), "")


def _slide(package: Package, file: str) -> str:
    blocks = list(_shapes(package.xml(file)))
    for kind, notes in package.targets(file).values():
        if kind == "notesSlide" and notes in package:
            text = "\n".join(block.removeprefix("# ") for block in _shapes(package.xml(notes)))
            blocks += [f"Notes: {text}"] if text.strip() else []
    return "\n\n".join(blocks)


def _shapes(element: Element) -> Iterator[str]:
    """The texts of shapes and tables, in the order of the file."""
    for child in element:
        name = name_of(child)
        if name == "sp":
            kind = next((attribute(one, "type") for one in descendants(child, "ph")), "")
            text = "" if kind in _NOT_ON_SLIDES else "\n".join(filter(str.strip, _paragraphs(child)))
            if text:
                yield f"# {text}" if kind in ("title", "ctrTitle") else text
        elif name == "tbl":
            yield "\n".join(
                " | ".join(" ".join(_paragraphs(cell)) for cell in children(row, "tc")) for row in children(child, "tr")
            )
        elif name != "Fallback":
            yield from _shapes(child)


def _paragraphs(element: Element) -> Iterator[str]:
    for paragraph in descendants(element, "p"):
        texts = ("\n" if name_of(one) == "br" else one.text or "" for one in paragraph.iter() if name_of(one) in "t br")
        yield "".join(texts)


WORD = OneText(_read_word)
SLIDES = OneText(_read_slides)
