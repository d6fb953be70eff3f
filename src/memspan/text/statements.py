"""Statements about different keys: "Order 48213 was sent to Bern", "Order 48215 was sent to Rome"."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence

from memspan.text.languages import USED_BY
from memspan.text.terms import index_terms, query_terms

_WORD = re.compile(r"\w+(?:[-.'@&_/:]\w+)*")
_JOINED = re.compile(r"[^\W\d_]+(?:[-@_/:][^\W\d_]+)+")
_LEAST_WITH_DIGITS = 5
"""Characters of a number or an id; years and ordinals have fewer."""
_AROUND = ((1, 0), (2, 0), (1, 1))
"""Words before and behind a key that two statements share."""


def about_other_keys(question: str, texts: Sequence[str]) -> list[int]:
    """Places of the texts that say of another key what one of them says of a key of the question.

    Keys are numbers, ids, and words joined by hyphens: what is found as it is written or not at all. Beside the same
    words stands in the one a key of the question that the other lacks, and in the other a key that the question lacks.
    A text that holds a word of the question which the one lacks is never such a text.
    """
    asked = {word for word in _words(question) if _is_key(word)}
    slots = [_slots(text) if asked else {} for text in texts]

    def is_of_another(place: int, other: int) -> bool:
        here, there = slots[place], slots[other]
        shared = (slot for slot in here.keys() & there.keys() if not here[slot] & asked)
        told = {word for slot in shared for word in there[slot] & asked}
        return bool(told) and _lacks(texts[place], texts[other], question, told)

    count = range(len(texts))
    others = [place for place in count if any(is_of_another(place, other) for other in count if other != place)]
    return others if len(others) < len(texts) else []


def _lacks(text: str, other: str, question: str, told: Collection[str]) -> bool:
    """Whether a text lacks one of some words in all its forms, and has no word of the question that the other lacks."""
    here, there = set(index_terms(text).words), set(index_terms(other).words)
    has_more = here.intersection(query_terms(question)) - there
    return not has_more and any(not here.issuperset(query_terms(word)) for word in told)


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _is_key(word: str) -> bool:
    has_digit = any(char.isdigit() for char in word)
    return len(word) >= _LEAST_WITH_DIGITS if has_digit else _JOINED.fullmatch(word) is not None


def _slots(text: str) -> dict[tuple[str, ...], set[str]]:
    """The keys of a text by the words around them; not where these are function words alone."""
    words, found = _words(text), dict[tuple[str, ...], set[str]]()
    for place, word in enumerate(words):
        for before, behind in _AROUND if _is_key(word) else ():
            around = (*words[max(0, place - before) : place], "", *words[place + 1 : place + 1 + behind])
            if len(around) > before + behind and any(one and one not in USED_BY for one in around):
                found.setdefault(around, set()).add(word)
    return found
