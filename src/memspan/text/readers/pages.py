"""Pages: the text of HTML as it reads on the screen, and what its head says of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from memspan.text.readers.formats import FORMATS, Content, DecodedText
from memspan.text.readers.texts import read_after_front_matter
from memspan.types import JSON

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

_NEVER_SHOWN = frozenset({"script", "style", "title"})
_NOT_SHOWN = frozenset({"nav", "template", "svg"})
_OWN_BLOCK = re.compile(
    "address|article|aside|blockquote|body|details|div|dl|fieldset|figcaption|figure|footer|form|h[1-6]|header|hr|"
    "main|ol|p|pre|section|table|ul"
)
_NEW_LINE = frozenset({"br", "dd", "dt", "li", "option", "summary", "tr"})
_NEW_CELL = frozenset({"td", "th"})
_HIDING = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)

_WRAP = "\x1e"
"""Stands for white space with a line end in it, until both its neighbors are known."""
_CJK = (
    "\u2e80-\u312f\u31a0-\ua4cf\uf900-\ufaff\ufe30-\ufe4f"
    "\uff01-\uff9f\uffe0-\uffe6\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_WRAP_IN_CJK = re.compile(f"(?<=[{_CJK}]){_WRAP}(?=[{_CJK}])")

_RAW_TAGS = ("title", "textarea", "script", "style", "iframe", "xmp", "noembed", "noframes")
"""Elements whose content has no tags: unclosed, they would hold the rest of the page."""
_NO_TAGS = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1", re.IGNORECASE | re.DOTALL)
_TAGS = re.compile(r"<(/?)([a-z][a-z0-9-]*)", re.IGNORECASE)
_CLOSE_THEMSELVES = frozenset(
    {"p", "li", "dt", "dd", "option", "optgroup", "tr", "td", "th", "thead", "tbody", "tfoot"}
)

_META = {
    "published": "article:published_time datepublished date dc.date dc.date.issued dcterms.date dcterms.issued "
    "dcterms.created pubdate publishdate publish-date parsely-pub-date",
    "modified": "article:modified_time og:updated_time datemodified dcterms.modified last-modified",
    "author": "author dc.creator dcterms.creator article:author",
    "description": "description og:description dc.description",
    "keywords": "keywords",
    "url": "og:url",
}
"""Metadata, and the names of the meta tags that give them, the best first."""


def read_page(html: str) -> Content:
    """The text of a page; its title and metadata from its head."""
    from selectolax.lexbor import LexborHTMLParser  # takes a while

    html = _repaired(html)
    root = LexborHTMLParser(html).root
    if root is None:
        return Content("")
    unclosed = _unclosed(html)
    page = _PageText()
    for kind, node in _walk(root, unclosed):
        page.meet(kind, node)
    named = _meta(root)
    titles = [" ".join((node.text() or "").split()) for node in root.css("title") if not _is_in_picture(node)]
    title = next(filter(None, (*titles, named.get("og:title", ""), named.get("twitter:title", ""))), "")
    found = {key: next(filter(None, map(named.get, names.split())), None) for key, names in _META.items()}
    metadata: dict[str, JSON] = {key: value for key, value in found.items() if value}
    return Content(page.text(), title, metadata)


def _is_in_picture(node: LexborNode) -> bool:
    return node.parent is not None and node.parent.tag == "svg"


def _meta(root: LexborNode) -> dict[str, str]:
    """The contents of the meta tags by name in lower case; the first of a name counts."""
    found: dict[str, str] = {}
    for node in root.css("meta[content]"):
        attributes = node.attributes
        name = attributes.get("property") or attributes.get("name") or attributes.get("itemprop") or ""
        found.setdefault(name.strip().lower(), " ".join((attributes["content"] or "").split()))
    return found


def _repaired(html: str) -> str:
    """Close what would hold the rest of the page: comments and templates at once, raw text before the next tag."""
    end = html.rfind("-->")
    html = html[: end + 1] + html[end + 1 :].replace("<!--", " ") if end >= 0 else html.replace("<!--", " ")
    if len(re.findall("<template\\b", html, re.I)) > len(re.findall("</template\\b", html, re.I)):
        html = re.sub(r"<template\b[^>]*>", "", html, flags=re.IGNORECASE)
    for tag in _RAW_TAGS:
        openings = list(re.finditer(rf"<{tag}\b[^>]*>", html, re.IGNORECASE))
        closings = [match.start() for match in re.finditer(rf"</{tag}\b", html, re.IGNORECASE)]
        if openings and (not closings or closings[-1] < openings[-1].end()):
            start = openings[-1].end()
            is_code = tag in ("script", "style")
            after = re.compile(r"\n\s*<[a-z/!]|</?(?:body|head|html|p|div|main|h[1-6])\b" if is_code else "<", re.I)
            match = after.search(html, start)
            place = match.start() if match else len(html)
            html = f"{html[:place]}</{tag}>{html[place:]}"
    return html


def _unclosed(html: str) -> frozenset[str]:
    """The elements that are opened more often than closed, though they need to be closed."""
    counts: dict[str, int] = {}
    for match in _TAGS.finditer(_NO_TAGS.sub("", html)):
        tag = match[2].lower()
        counts[tag] = counts.get(tag, 0) + (-1 if match[1] else 1)
    return frozenset(tag for tag, count in counts.items() if count > 0) - _CLOSE_THEMSELVES


def _walk(root: LexborNode, unclosed: frozenset[str]) -> Iterator[tuple[str, LexborNode]]:
    """Starts and ends of elements, and texts, in order; what the screen does not show is left out."""
    stack: list[tuple[str, LexborNode]] = [("start", root)]
    while stack:
        kind, node = stack.pop()
        if kind == "start" and node.tag == "-text":
            yield "text", node
        elif kind == "end":
            yield "end", node
        elif node.tag not in _NEVER_SHOWN and (node.tag in unclosed or not _is_hidden(node)):
            yield "start", node
            stack.append(("end", node))
            children = list(node.iter(include_text=True))
            stack.extend(("start", child) for child in reversed(children))


def _is_hidden(node: LexborNode) -> bool:
    if node.tag in _NOT_SHOWN:
        return True
    attributes = node.attributes
    if not attributes:
        return False
    is_hidden = "hidden" in attributes and attributes["hidden"] != "until-found"
    return is_hidden or bool(_HIDING.search(attributes.get("style") or ""))


class _PageText:
    """Collects the text of a page as it reads on the screen."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._num_pre = 0

    def meet(self, kind: str, node: LexborNode) -> None:
        tag = node.tag or ""
        if kind == "text":
            text = (node.text_content or "").replace("\u00ad", "")  # soft hyphens show at line ends only
            self._write(text if self._num_pre else re.sub(r"\s+", _space, text))
            return
        self._num_pre += (tag == "pre") * (1 if kind == "start" else -1)
        if _OWN_BLOCK.fullmatch(tag) or (kind == "start" and tag in _NEW_LINE):
            self._write("\n")
        elif kind == "start" and tag in _NEW_CELL:
            self._write(" ")

    def text(self) -> str:
        """Return the text met so far: no spaces at line ends, at most one blank line in a row."""
        text = re.sub(f"[ {_WRAP}]*{_WRAP}[ {_WRAP}]*", _WRAP, "".join(self._pieces))
        text = _WRAP_IN_CJK.sub("", text).replace(_WRAP, " ")
        text = re.sub(r"[ \t]+\n", "\n", text)
        return re.sub(r"\n{3,}", "\n\n", text).strip()

    def _write(self, piece: str) -> None:
        follows_space = not self._pieces or self._pieces[-1][-1].isspace()
        if follows_space and not self._num_pre:
            piece = piece.lstrip(f" {_WRAP}")
        if piece:
            self._pieces.append(piece)


def _space(white: re.Match[str]) -> str:
    return _WRAP if "\n" in white[0] or "\r" in white[0] else " "


for _name in ("html", "htm", "xhtml"):
    FORMATS.register(_name, DecodedText(partial(read_after_front_matter, read=read_page), names_encoding=True))
