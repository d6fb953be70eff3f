"""The text of tokens that come one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import regex

from memspan.text.template import PromptTemplate

_INCOMPLETE = "\ufffd"  # what a tokenizer shows for half a character


class GrowingText:
    """Turns tokens into text as they come; only the newest are decoded, so a token costs the same however many precede.

    A token's text depends on those before it (a space in front, a character of several tokens), so every token is
    decoded behind at least one that was before.
    """

    def __init__(self, template: PromptTemplate) -> None:
        self._template = template
        self._text = self._before = ""
        self._begin = self._end = 0

    def read(self, ids: Sequence[int]) -> str | None:
        """The text of all tokens, which begin with those of the last call; None while a character is incomplete."""
        newest = self._template.text(ids[self._begin :])
        if newest.endswith(_INCOMPLETE):
            return None
        if newest.startswith(self._before):
            self._text += newest[len(self._before) :]
        else:  # a tokenizer that changes what it wrote before
            self._text = self._template.text(ids)
        self._begin, self._end = self._end, len(ids)
        self._before = self._template.text(ids[self._begin :])
        return self._text


class WholeEmoji:
    """Passes text on as it comes, and holds an emoji back until it can't grow any more (a flag, a family, a skin)."""

    def __init__(self) -> None:
        self._held = ""

    def take(self, text: str) -> str:
        """What may be shown now."""
        *shown, last = regex.findall(r"\X", self._held + text) or [""]
        self._held = last if regex.search(r"\p{Extended_Pictographic}|\p{Regional_Indicator}", last) else ""
        return "".join(shown) + ("" if self._held else last)

    def rest(self) -> str:
        """What is still held back, at the end."""
        held, self._held = self._held, ""
        return held
