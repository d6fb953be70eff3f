"""Plain text and light markup."""

from __future__ import annotations

import re

from memspan.text.readers.formats import FORMATS, Content, DecodedText

_CODE_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6}[ \t]+(?P<atx>.*?)[ \t]*#*[ \t\r]*$|^(?P<underlined>\S.*)\n=+[ \t\r]*$", re.MULTILINE)


def _read_markup(text: str) -> Content:
    heading = _HEADING.search(_CODE_FENCE.sub("", text))
    return Content(text, (heading["atx"] or heading["underlined"] or "") if heading else "")


for _name in ("txt", "text"):
    FORMATS.register(_name, DecodedText(Content))
for _name in ("md", "markdown", "rst"):
    FORMATS.register(_name, DecodedText(_read_markup))
