"""Files that are a zip archive of XML: office documents and books."""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from memspan.dates import normal_date
from memspan.text.readers.formats import SAVED_KEY, Content, Unreadable, damage_named
from memspan.types import JSON

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MAX_MEMBER_BYTES = 256 << 20
"""Of one XML file in a package; its tree takes some ten times that in memory."""


def name_of(element: Element) -> str:
    """An element's name without its namespace, which differs between versions of a format."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def attribute(element: Element, name: str) -> str:
    """An attribute by its name without a namespace; empty where there is none."""
    return next((value for key, value in element.attrib.items() if key.rpartition("}")[2] == name), "")


def parsed(data: bytes) -> Element:
    """The root element.

    Raises:
        Unreadable: malformed, or with entities of its own, which may grow without bounds or name other files.
    """
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        return fromstring(data)
    except DefusedXmlException as error:
        raise Unreadable("XML that declares entities of its own; replace them by their text") from error
    except (SyntaxError, LookupError, ValueError) as error:
        raise Unreadable(f"malformed XML: {error}") from error


def children(element: Element, name: str) -> Iterator[Element]:
    """The elements of a name right under one."""
    return (child for child in element if name_of(child) == name)


def descendants(element: Element, name: str) -> Iterator[Element]:
    """The elements of a name in one, in order."""
    return (child for child in element.iter() if name_of(child) == name)


@dataclass(slots=True)
class Package:
    """A zip archive of XML files."""

    archive: zipfile.ZipFile

    def __contains__(self, name: str) -> bool:
        return name in self.archive.namelist()

    def read(self, name: str) -> bytes:
        """
        Raises:
            Unreadable: there is no such member, it is encrypted, or too large.
        """
        if name not in self:
            raise Unreadable(f"lacks {name}")
        info = self.archive.getinfo(name)
        if info.flag_bits & 1:
            raise Unreadable("encrypted; save it without a password")
        with self.archive.open(info) as file:
            data = file.read(MAX_MEMBER_BYTES + 1)
        if len(data) > MAX_MEMBER_BYTES:
            raise Unreadable(f"{name} in it is larger than {MAX_MEMBER_BYTES >> 20} MiB")
        return data

    def xml(self, name: str) -> Element:
        return parsed(self.read(name))

    def targets(self, name: str) -> dict[str, tuple[str, str]]:
        """Type and file of what a part of an Office Open XML package refers to, by its ids there."""
        folder, file = posixpath.split(name)
        relations = posixpath.join(folder, "_rels", f"{file}.rels")
        if relations not in self:
            return {}
        return {
            one.attrib.get("Id", ""): (
                one.attrib.get("Type", "").rpartition("/")[2],
                posixpath.normpath(posixpath.join("/", folder, one.attrib.get("Target", "")))[1:],
            )
            for one in self.xml(relations)
            if one.attrib.get("TargetMode") != "External"
        }

    def properties(self, main: Mapping[str, str], name: str) -> dict[str, str]:
        """The filled ones of the elements of a file that `main` names."""
        if name not in self:
            return {}
        found = {main[name_of(one)]: (one.text or "").strip() for one in self.xml(name).iter() if name_of(one) in main}
        return {key: value for key, value in found.items() if value}


@contextmanager
def open_package(path: Path, kind: str) -> Iterator[Package]:
    """A file of an office as a package; damage is `Unreadable`."""
    with path.open("rb") as file:
        if file.read(4) == b"\xd0\xcf\x11\xe0":
            raise Unreadable("encrypted, or of an older office; save it without a password, in today's format")
    with damage_named(kind), zipfile.ZipFile(path) as archive:
        yield Package(archive)


def as_document(blocks: Iterable[str], properties: Mapping[str, str], **metadata: JSON) -> Content:
    """Paragraphs as a text, with a document's properties. One without a title has that of its first heading."""
    text = "\n\n".join(block for block in (block.strip("\n") for block in blocks) if block.strip())
    kept: dict[str, JSON] = {key: value for key, value in properties.items() if key != "title"}
    kept |= {SAVED_KEY: moment(properties[SAVED_KEY])} if SAVED_KEY in properties else {}
    return Content(text, properties.get("title") or first_heading(text), {**kept, **metadata})


def first_heading(text: str) -> str:
    """The first heading that is marked as in Markdown; empty where there is none."""
    return next((line.lstrip("# ") for line in text.split("\n") if re.match("#{1,6} ", line)), "")


def moment(text: str) -> str | None:
    """The date of a document's properties as `normal_date` has it; None where it is none."""
    try:
        return normal_date(text)
    except ValueError:
        return None
