"""Books (EPUB) and rich text (RTF)."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from urllib.parse import unquote

from memspan.text.readers.formats import FORMATS, Content, DecodedText, OneText, Unreadable, damage_named
from memspan.text.readers.packages import as_document, descendants, open_package

_BOOK = {"title": "title", "creator": "author", "date": "date", "language": "language", "publisher": "publisher"}


def _read_book(path: Path) -> Content:
    with open_package(path, "EPUB book") as package:
        container = package.xml("META-INF/container.xml")
        main = next((one.attrib.get("full-path", "") for one in descendants(container, "rootfile")), "")
        contents = package.xml(main)
        files = {one.attrib.get("id", ""): one.attrib.get("href", "") for one in descendants(contents, "item")}
        order = [
            files[one.attrib.get("idref", "")] for one in descendants(contents, "itemref") if one.get("idref") in files
        ]
        chapters = [posixpath.normpath(posixpath.join(posixpath.dirname(main), unquote(name))) for name in order]
        if "META-INF/encryption.xml" in package:
            locked = descendants(package.xml("META-INF/encryption.xml"), "CipherReference")
            if {one.attrib.get("URI", "") for one in locked} & set(chapters):
                raise Unreadable("a book with copy protection")
        texts = [_page(package.read(name)) for name in chapters]
        return as_document(texts, package.properties(_BOOK, main))


def _page(data: bytes) -> str:
    from memspan.text.readers.opening import decode

    page = FORMATS["html"]
    assert isinstance(page, DecodedText)
    return page.read(decode(data, names_encoding=True)[0]).text


_RTF_TITLE = re.compile(r"\{\\title ([^{}]{1,500})\}")


def _read_rich_text(path: Path) -> Content:
    from striprtf.striprtf import rtf_to_text

    data = path.read_bytes()
    if not data.lstrip().startswith(b"{\\rtf"):
        raise Unreadable("not RTF by its content")
    source = data.decode("latin-1")
    title = _RTF_TITLE.search(source)
    with damage_named("RTF document"):
        text = rtf_to_text(source, errors="replace")
        name = rtf_to_text(f"{{\\rtf1\\ansi {title[1]}}}", errors="replace").strip() if title else ""
    return Content(text.replace("\0", ""), name)


BOOK = OneText(_read_book)
RICH_TEXT = OneText(_read_rich_text)
