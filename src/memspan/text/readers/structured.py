"""Texts inside of a structure: notebooks, XML, subtitles."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memspan.text.readers.formats import FORMATS, Content, DecodedText, OneText, Unreadable, damage_named
from memspan.text.readers.packages import name_of, parsed

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

# Notebooks ------------------------------------------------------------------------------------------------------------

_LONGEST_OUTPUT = 2000


def _read_notebook(text: str) -> Content:
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not a notebook: {error}") from error
    with damage_named("notebook"):
        sheets = notebook.get("worksheets") or [notebook]  # of the format before 4
        cells = [cell for sheet in sheets for cell in sheet["cells"]]
        text = "\n\n".join(block.strip("\n") for cell in cells for block in _cell_blocks(cell) if block.strip())
        prose = "\n\n".join(_joined(cell.get("source")) for cell in cells if cell.get("cell_type") == "markdown")
        language = notebook.get("metadata", {}).get("kernelspec", {}).get("language", "")
    markup = FORMATS["md"]
    assert isinstance(markup, DecodedText)
    return Content(text, markup.read(prose).title, {"language": language} if language else {})


def _cell_blocks(cell: dict[str, Any]) -> Iterator[str]:
    """The source of a cell, and what of its outputs is text."""
    yield _joined(cell.get("source", cell.get("input")))
    for output in cell.get("outputs", ()):
        text = _joined(output.get("text") or output.get("data", {}).get("text/plain"))
        if output.get("output_type") in ("error", "pyerr"):
            text = f"{output.get('ename', '')}: {output.get('evalue', '')}"
        if text.strip():
            yield f"Output: {text[:_LONGEST_OUTPUT]}{' ...' if len(text) > _LONGEST_OUTPUT else ''}"


def _joined(lines: Any) -> str:
    return lines if isinstance(lines, str) else "".join(str(line) for line in lines or ())


# XML ------------------------------------------------------------------------------------------------------------------

_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")


def _read_xml(path: Path) -> Content:
    data = path.read_bytes()
    try:
        root = parsed(data)
    except Unreadable:
        from memspan.text.readers.opening import decode

        # An encoding of several bytes, which the parser does not know.
        root = parsed(_DECLARATION.sub("", decode(data, names_encoding=True)[0]).encode())
    with damage_named("XML"):
        text = re.sub(r"\n{3,}", "\n\n", "".join(_xml_pieces(root))).strip()
        title = next((" ".join("".join(one.itertext()).split()) for one in root.iter() if name_of(one) == "title"), "")
    if not text:
        raise Unreadable("XML without text between its tags")
    return Content(text, title)


def _xml_pieces(element: Element, is_inline: bool = False) -> Iterator[str]:
    """The texts in order. An element inside of running text goes on in its line, any other one begins its own."""
    holds_text = any((text or "").strip() for text in (element.text, *(child.tail for child in element)))
    if not is_inline:
        yield "\n"
    yield _one_blank(element.text) if holds_text else ""
    for child in element:
        if name_of(child):  # else a comment or an instruction
            yield from _xml_pieces(child, is_inline=holds_text)
        yield _one_blank(child.tail) if holds_text else ""
    if not is_inline:
        yield "\n"


def _one_blank(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "")


# Subtitles ------------------------------------------------------------------------------------------------------------

_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_CUE = re.compile(rf"^\s*{_TIME}\s*-->\s*{_TIME}", re.MULTILINE)
_VOICE = re.compile(r"<v(?:\.[^ >]*)? ([^>]+)>")
_TAG = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")
_NO_CUE = re.compile(r"^(?:WEBVTT|NOTE|STYLE|REGION)\b")
_NEW_PARAGRAPH_SECONDS, _PAUSE_SECONDS = 60, 4


def _read_subtitles(text: str) -> Content:
    cues = list(_cues(re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n").replace("\r", "\n"))))
    if not cues:
        raise Unreadable("no subtitles in it")
    return Content("\n\n".join(_paragraphs(cues)), metadata={"seconds": cues[-1][1]})


def _cues(blocks: Iterable[str]) -> Iterator[tuple[int, int, str]]:
    """Begin and end in seconds, and text, of every cue."""
    for block in blocks:
        found = _CUE.search(block)
        if found is None or _NO_CUE.match(block):
            continue
        lines = block[found.end() :].split("\n")[1:]  # what stands behind the times is how the cue is shown
        said = _TAG.sub("", _VOICE.sub(r"\1: ", " ".join(line.strip() for line in lines)))
        times = [int(value or 0) for value in found.groups()]
        begin, end = (hours * 3600 + minutes * 60 + seconds for hours, minutes, seconds, _ in (times[:4], times[4:]))
        if said.strip():
            yield begin, end, " ".join(said.split())


def _paragraphs(cues: Iterable[tuple[int, int, str]]) -> Iterator[str]:
    """Cues that follow each other as one paragraph, of a minute at most, with the time it begins at."""
    begun, before, lines = 0, 0, list[str]()
    for begin, end, said in cues:
        if lines and (begin - before > _PAUSE_SECONDS or begin - begun > _NEW_PARAGRAPH_SECONDS):
            yield "\n".join(lines)
            lines = []
        if not lines:
            begun = begin
            said = f"[{begin // 3600}:{begin // 60 % 60:02}:{begin % 60:02}] {said}"
        if not (lines and lines[-1].endswith(said)):  # rolling captions say a line twice
            lines.append(said)
        before = end
    yield "\n".join(lines)


NOTEBOOK = DecodedText(_read_notebook)
XML = OneText(_read_xml)
SUBTITLES = DecodedText(_read_subtitles)
