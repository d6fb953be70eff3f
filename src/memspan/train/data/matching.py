"""When two questions are the same, and whether a passage holds an answer.

`AnswerFinder` looks past punctuation, for what is kept; `whole_words` finds answers as they are written, to put others
in their place.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

from memspan.text.terms import is_unspaced, plain_words
from memspan.types import Document

_BLANKS = re.compile(r"\s+")


def normal_text(text: str) -> str:
    """What two texts that say the same word for word have in common: their words (`memspan.text.terms`)."""
    return " ".join(plain_words(text)) or _folded(text)


@lru_cache(maxsize=2**18)
def text_hash(text: str) -> str:
    """sha256 of `normal_text`: case, punctuation and white space do not count."""
    return hashlib.sha256(normal_text(text).encode(errors="replace")).hexdigest()


def passage_hash(document: Document) -> str:
    """`text_hash` of a passage's text; its title does not count, since sets name the same passage differently."""
    return text_hash(document.text)


class AnswerFinder:
    """Looks for the answers of one question in passages.

    An answer is found where its words follow each other in the title or the text, so `5` is not found in `1952`; an
    answer without words (`+`), or in a script without spaces, by its characters.
    """

    def __init__(self, answers: Sequence[str]) -> None:
        self._words = [f" {' '.join(words)} " for answer in answers if (words := _words(answer))]
        self._characters = [folded for answer in answers if not _words(answer) and (folded := _folded(answer))]

    def holds(self, document: Document) -> bool:
        """Whether a passage holds one of the answers."""
        text = f"{document.title}\n{document.text}"
        if self._characters and any(answer in _folded(text) for answer in self._characters):
            return True
        words = f" {' '.join(plain_words(text))} " if self._words else ""
        return any(answer in words for answer in self._words)


def whole_words(answers: Sequence[str]) -> re.Pattern[str]:
    """Any of the answers, the longest first, as whole words in any case. Matches nothing where there are none."""
    forms = sorted(answers, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, forms)) or '(?!)'})(?!\w)", re.IGNORECASE)


def telling_words(answers: Sequence[str]) -> re.Pattern[str]:
    """`whole_words` of the answers that are long enough to tell something, for text in folded case."""
    return whole_words([answer.casefold() for answer in answers if len(answer) > 2])


def _words(answer: str) -> list[str]:
    return [] if is_unspaced(answer) else plain_words(answer)


def _folded(text: str) -> str:
    return _BLANKS.sub(" ", text).strip().casefold()
