"""Pages: the text of HTML as it reads on the screen."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from memspan.text.readers.formats import FORMATS, Content, DecodedText, Unreadable


def _read_html(text: str) -> Content:
    parser = _PageText()
    try:
        parser.feed(text)
        parser.close()
    except AssertionError as error:  # how html.parser refuses a malformed declaration
        raise Unreadable(f"malformed HTML: {error}") from error
    return Content(parser.text(), parser.title)


class _PageText(HTMLParser):
    """Collects the text of an HTML page as it reads on the screen, and its title."""

    _DROPPED = ("script", "style", "nav", "template", "svg")
    _OWN_BLOCK = re.compile(
        "address|article|aside|blockquote|body|details|div|dl|fieldset|figcaption|figure|footer|form|h[1-6]|header|hr|"
        "main|ol|p|pre|section|table|ul"
    )
    _NEW_LINE = ("br", "dd", "dt", "li", "option", "summary", "tr")
    _NEW_CELL = ("td", "th")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self._pieces: list[str] = []
        self._num_open = dict.fromkeys([*self._DROPPED, "pre", "title"], 0)

    def text(self) -> str:
        """Return the text read so far: no spaces at line ends, at most one blank line in a row."""
        text = re.sub(r"[ \t]+\n", "\n", "".join(self._pieces))
        return re.sub(r"\n{3,}", "\n\n", text).strip()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._num_open:
            self._num_open[tag] += 1
        if tag in self._NEW_LINE or self._OWN_BLOCK.fullmatch(tag):
            self._write("\n")
        elif tag in self._NEW_CELL:
            self._write(" ")

    def handle_endtag(self, tag: str) -> None:
        if self._num_open.get(tag):
            self._num_open[tag] -= 1
        if self._OWN_BLOCK.fullmatch(tag):
            self._write("\n")

    def handle_data(self, data: str) -> None:
        if any(self._num_open[tag] for tag in self._DROPPED):
            return
        if self._num_open["title"]:
            self.title += data
        else:
            self._write(data if self._num_open["pre"] else re.sub(r"\s+", " ", data))

    def _write(self, piece: str) -> None:
        follows_space = not self._pieces or self._pieces[-1][-1].isspace()
        if follows_space and not self._num_open["pre"]:
            piece = piece.lstrip(" ")
        if piece:
            self._pieces.append(piece)


for _name in ("html", "htm"):
    FORMATS.register(_name, DecodedText(_read_html))
