"""Words of a text: plain ones, to count and compare; terms for the full-text index, which finds their other forms, too.

Documents and questions are cut alike, in every process, whatever the machine. Two things come in versions, Python's
tables of Unicode and the stemmers: `rules` names them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, pairwise

from memspan.text.languages import (
    USED_BY,
    languages_by_script,
    likely_languages,
    script_of,
    stem,
    stemmer_version,
)

_VERSION = 1
# Scripts written without spaces: Chinese, Japanese, Korean (whose particles are joined to words); Thai, Lao, Khmer,
# Burmese and their neighbours. By ranges, so that a character newer than Python's tables is none the less one of them.
_UNSPACED = (
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3040-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\ua000-\ua48f\uac00-\ud7af\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003ffff"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9ff\uaa60-\uaadf"
)
_UNSPACED_RUN = re.compile(f"[{_UNSPACED}]+")
_IN_WORD = f"[^\\x00-/:-@\\[-`{{-\\x7f{_UNSPACED}]"
# A run without spaces; or words with what joins them, as in `user@example.com`, `AT&T`, `don't`, `#12`, `.NET`, `C++`.
_TOKEN = re.compile(
    f"[{_UNSPACED}]+|[#@.]?{_IN_WORD}+(?:(?:[.@&'-]|_+){_IN_WORD}+)*(?:\\+\\+(?=\\d)|[+#]{{1,2}}(?![+#]|{_IN_WORD}))?"
)
_JOINTS = re.compile(r"[.@&_-]+")
_BETWEEN_DIGITS = re.compile(r"(?<=\d)[.@&_-](?=\d)")
_HUMPS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_LONGEST_WHOLE = 64
# What French, Italian and Catalan put before an apostrophe, which is no part of the word after it.
_ELIDED = frozenset("c d j l m n s t qu jusqu lorsqu puisqu quoiqu quelqu all dall dell nell sull un quell".split())  # noqa: SIM905
_VIRAMAS = "\u1039\u17d2\u1a60"  # join the next consonant to the last one
_LETTERS = str.maketrans(
    {
        **{"æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ħ": "h", "ı": "i", "ŋ": "n"},
        **{"ی": "ي", "ى": "ي", "ک": "ك", "ة": "ه", "ٱ": "ا", "ँ": "ं"},
    }
)
# Accents: not what is a vowel or a part of the letter in its script (Indic scripts; Cyrillic й, ї and ў).
_ACCENTS = re.compile("[\u0300-\u036f\u0653-\u0655\u093c\u1ab0-\u1aff\u1dc0-\u1dff]")
_KEPT_LETTERS = "йїў"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a text is found by.

    Attributes:
        words: stems of its words without accents, in order; compounds also as a whole (`nodejs` of `node.js`); of
            scripts without spaces single characters and overlapping pairs.
        forms: words as they were written where that differs, and the marks of the text's languages.
    """

    words: list[str]
    forms: list[str]


def rules() -> str:
    """Names how terms are made. An index of other rules finds most, but must be made anew before it is changed."""
    return f"terms {_VERSION}, Unicode {unicodedata.unidata_version}, Snowball {stemmer_version()}"


def language_mark(language: str) -> str:
    """The term that marks texts in which function words of a language are the most frequent."""
    return f"language:{language}"


def plain_words(text: str) -> list[str]:
    """Words in lower case, in order, without apostrophes; runs in scripts without spaces as pairs of characters."""
    return [word for token in _tokens(text) for word in token.words]


def content_words(text: str) -> list[str]:
    """The distinct plain words that are no function words of the text's languages, unless there are no others."""
    tokens = _tokens(text)
    _, left_out = likely_languages(_votes(tokens), ())
    return _without((word for token in tokens for word in token.words), left_out)


def index_terms(text: str) -> Terms:
    """The terms that a document is indexed by."""
    tokens = _tokens(text)
    votes = _votes(tokens)
    languages = languages_by_script(votes)
    found = [token.terms(languages.get(token.script, "")) for token in tokens]
    marks = [language_mark(language) for language in languages.values() if votes[language]]
    return Terms(
        [word for terms in found for word in terms.words], [*marks, *(f for terms in found for f in terms.forms)]
    )


def query_terms(question: str, stored: Collection[str] = ()) -> list[str]:
    """The distinct terms a question is searched by, without function words, unless there are no others.

    Args:
        stored: languages of the texts that are searched. A question of unknown language is taken to be in any of them.
    """
    tokens = _tokens(question)
    languages, left_out = likely_languages(_votes(tokens), stored)
    words = [word for token in tokens for word in (*token.words, *token.wholes)]
    words += [token.singles[0] for token in tokens if len(token.singles) == 1]
    kept = _without(words, left_out)
    stems = [stem for word in kept for language in languages for stem in _stems(word, language)]
    return list(dict.fromkeys(stems + kept))


def is_unspaced(text: str) -> bool:
    """Whether a text holds a script written without spaces, whose terms are pairs of characters and no words."""
    return _UNSPACED_RUN.search(text) is not None


def _without(words: Iterable[str], left_out: Collection[str]) -> list[str]:
    distinct = list(dict.fromkeys(words))
    return [word for word in distinct if word not in left_out] or distinct


@dataclass(slots=True, eq=False)
class _Token:
    """A token in lower case.

    Attributes:
        words: its words.
        wholes: the token as a whole, and its other parts.
        singles: characters, in a script without spaces.
        script: that of its words.
        votes: languages of which it has a function word.
    """

    words: tuple[str, ...]
    wholes: tuple[str, ...] = ()
    singles: tuple[str, ...] = ()
    script: str = field(init=False)
    votes: tuple[str, ...] = field(init=False)
    _terms: dict[str, Terms] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.script = script_of(self.words[0])
        self.votes = tuple(code for word in self.words for code in USED_BY.get(word, ()))

    def terms(self, language: str) -> Terms:
        """What it is indexed by in a text of some language."""
        if language not in self._terms:
            words, forms = list[str](), list[str]()
            for word in (*self.words, *self.wholes):
                stems = _stems(word, language)
                words += stems
                if word not in stems:
                    forms.append(word)
            self._terms[language] = Terms([*words, *self.singles], forms)
        return self._terms[language]


def _tokens(text: str) -> list[_Token]:
    """The tokens of a text. Letters that can be written in several ways (composed, full width, ligatures) have one."""
    plain = unicodedata.normalize("NFKC", text).translate(_CHARACTERS)
    return [
        _spaced(token) if token[0] < "\u0e00" and len(token) <= _LONGEST_WHOLE else _rare_token(token)
        for token in _TOKEN.findall(plain)
    ]


def _votes(tokens: Iterable[_Token]) -> Counter[str]:
    """How many function words of each language there are."""
    return Counter(chain.from_iterable(token.votes for token in tokens))


def _rare_token(token: str) -> _Token:
    """A token that is not kept, as it may be long and hardly comes again; or one of another script."""
    if not _UNSPACED_RUN.match(token):
        return _spaced(token) if len(token) <= _LONGEST_WHOLE else _spaced.__wrapped__(token)
    clusters = _clusters(token)
    pairs = tuple(first + second for first, second in pairwise(clusters))
    return _Token(pairs or (token,), singles=tuple(clusters) if pairs else ())


@lru_cache(maxsize=2**15)
def _spaced(token: str) -> _Token:
    if token.isalnum() and token[1:].lower() == token[1:]:
        return _Token((_lower(token),))
    core = token.lstrip("#@.").rstrip("+#")
    parts = [part for joined in _JOINTS.split(core) if (part := joined.removesuffix("'s").removesuffix("'S"))]
    words, wholes = list[str](), list[str]()
    for part in parts:
        before, _, after = part.partition("'")
        is_elided = after and _lower(before) in _ELIDED
        words.append(_lower((after if is_elided else part).replace("'", "")))
        if after:
            wholes += [_lower(part.replace("'", "")), *(_lower(piece) for piece in part.split("'") if len(piece) > 1)]
        elif len(humps := _HUMPS.split(part)) > 1:
            wholes += map(_lower, humps)
    wholes += _as_a_whole(token, core, len(parts))
    return _Token(tuple(words), tuple(dict.fromkeys(whole for whole in wholes if whole not in words)))


def _as_a_whole(token: str, core: str, num_parts: int) -> list[str]:
    """A token in one piece: joints stay between digits only, so that `e-mail` is `email` and `3.14` is not `314`."""
    if len(core) > _LONGEST_WHOLE:
        return []
    start, end = token.find(core[0]), len(token.rstrip("+#"))
    marked = [token] if end < len(token) or (start and (token[0] != "." or core[0].isalpha())) else []
    kept = {match.start() for match in _BETWEEN_DIGITS.finditer(core)}
    joined = "".join(char for place, char in enumerate(core) if place in kept or not _JOINTS.match(char))
    wholes = (*marked, *([joined.removesuffix("'s")] if num_parts > 1 else []))
    return [_lower(whole.replace("'", "")) for whole in wholes]


def _lower(word: str) -> str:
    if word.isascii():
        return word.lower()
    return unicodedata.normalize("NFC", word.casefold().replace("i\u0307", "i"))  # so is the Turkish capital folded


def _stems(word: str, language: str) -> tuple[str, ...]:
    """The stem of a word without its accents; also the stem with which accents went, where it is another one."""
    stemmed = stem(word, language)
    if word.isascii():
        return (stemmed,)
    plain = _folded(stem(_folded(word), language))
    return (plain,) if stemmed == word else tuple(dict.fromkeys((plain, _folded(stemmed))))


def _folded(word: str) -> str:
    """A word without accents."""
    if word.isascii():
        return word
    letters = (
        letter if letter in _KEPT_LETTERS else _ACCENTS.sub("", unicodedata.normalize("NFD", letter)) for letter in word
    )
    return unicodedata.normalize("NFC", "".join(letters).translate(_LETTERS)) or word


def _clusters(run: str) -> list[str]:
    """Characters with the marks on them."""
    clusters: list[str] = []
    for char in run:
        if clusters and (unicodedata.category(char)[0] == "M" or clusters[-1][-1] in _VIRAMAS):
            clusters[-1] += char
        else:
            clusters.append(char)
    return clusters


class _Characters(dict[int, str]):
    """What each character is for `_TOKEN`: itself where it belongs to words, nothing, or a space; made as needed."""

    def __missing__(self, code: int) -> str:
        self[code] = value = self._value(chr(code), code)
        return value

    @staticmethod
    def _value(char: str, code: int) -> str:
        category = unicodedata.category(char)
        if char in "'+#.@_&-" or 0x20000 <= code < 0x40000:
            return char
        if char in "’ʻʼ׳״":
            return "'"
        if char in "‐‑":
            return "-"
        # Vowel points of Hebrew and Arabic, lengthening, and what only says how others look.
        if (_POINTS.match(char) and category[0] != "P") or category == "Me" or (category == "Cf" and char != "\u200b"):
            return ""
        if category == "Nd":
            return str(unicodedata.decimal(char))
        if category[0] in "LMN":
            return char
        is_emoji = category == "So" and (code >= 0x1F000 or 0x2600 <= code < 0x27C0)
        return f" {char} " if is_emoji else " "


_POINTS = re.compile("[\u0591-\u05c7\u0610-\u061a\u0640\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06ed\ufe00-\ufe0f\u034f"
                     "\U0001f3fb-\U0001f3ff\U000e0100-\U000e01ef]")  # fmt: skip
_CHARACTERS = _Characters()
