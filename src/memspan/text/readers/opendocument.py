"""OpenDocument: texts, presentations and spreadsheets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from memspan.text.paging import paged
from memspan.text.readers.formats import SAVED_KEY, Content, OneText, Unreadable, damage_named
from memspan.text.readers.packages import (
    as_document,
    attribute,
    children,
    descendants,
    name_of,
    open_package,
    parsed,
)
from memspan.text.readers.sheets import paged_sheets

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_OPEN_DOCUMENT = {"title": "title", "creator": "author", "date": SAVED_KEY, "keyword": "keywords"}
_BLANKS = {"tab": "\t", "line-break": "\n"}
_MAX_REPEATED = 1000
_PASSED_OVER = frozenset({"tracked-changes", "annotation", "note-citation", "sequence-decls", "forms"})


def _read_open_document(path: Path) -> Content:
    if path.suffix.lower().startswith(".f"):
        root = parsed(path.read_bytes())
        found = {name_of(one): (one.text or "").strip() for one in descendants(root, "meta") for one in one}
        properties = {_OPEN_DOCUMENT[key]: value for key, value in found.items() if key in _OPEN_DOCUMENT and value}
    else:
        with open_package(path, "OpenDocument file") as package:
            if "META-INF/manifest.xml" in package and b"encryption-data" in package.read("META-INF/manifest.xml"):
                raise Unreadable("encrypted; save it without a password")
            root, properties = package.xml("content.xml"), package.properties(_OPEN_DOCUMENT, "meta.xml")
    with damage_named("OpenDocument file"):
        return _document_of(next(descendants(root, "body"), root), properties, path.stem)


def _document_of(body: Element, properties: dict[str, str], stem: str) -> Content:
    for spreadsheet in children(body, "spreadsheet"):
        tables = {attribute(table, "name"): _table_rows(table) for table in children(spreadsheet, "table")}
        return as_document([paged_sheets(tables)], {"title": stem, **properties}, pages=len(tables))
    slides = ["\n".join(_open_blocks(slide)) for slide in descendants(body, "page")]
    if slides:
        return as_document([paged(slides)], properties, pages=len(slides))
    return as_document(_open_blocks(body), properties)


def _open_blocks(element: Element) -> Iterator[str]:
    for child in element:
        name = name_of(child)
        if name == "h":
            yield "#" * int(attribute(child, "outline-level") or 1) + f" {_open_text(child)}"
        elif name == "p":
            yield _open_text(child)
        elif name == "list-item":
            yield "- " + "\n".join(_open_blocks(child))
        elif name == "table":
            yield "\n".join(" | ".join(row).rstrip(" |") for row in _table_rows(child) if any(row))
        elif name not in _PASSED_OVER:
            yield from _open_blocks(child)


def _table_rows(table: Element) -> Iterator[list[str]]:
    for child in table:
        name = name_of(child)
        if name == "table-row":
            cells: list[str] = []
            for cell in child:
                text = " ".join(" ".join(_open_blocks(cell)).split())
                repeated = int(attribute(cell, "number-columns-repeated") or 1)
                cells += [text] * min(repeated, _MAX_REPEATED)
            yield cells
        elif name in ("table-header-rows", "table-rows", "table-row-group"):
            yield from _table_rows(child)


def _open_text(element: Element) -> str:
    pieces = [element.text or ""]
    for child in element:
        name = name_of(child)
        if name == "s":
            pieces.append(" " * min(int(attribute(child, "c") or 1), _MAX_REPEATED))
        elif name == "note":
            pieces.append(f" ({_open_text(child).strip()})")
        elif name not in _PASSED_OVER:
            pieces.append(_BLANKS.get(name) or _open_text(child))
        pieces.append(child.tail or "")
    return "".join(pieces)


OPEN_DOCUMENT = OneText(_read_open_document)
