"""The language of words, by their script and by function words, and the stems of words (Snowball).

`languages.tsv` has a line for each language: code, script, Snowball algorithm (`-`: none), function words. A script's
first language is that of texts without function words.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Mapping
from pathlib import Path

_SCRIPTS = (
    *((0, "Latin"), (0x250, ""), (0x370, "Greek"), (0x400, "Cyrillic"), (0x530, "Armenian"), (0x590, "Hebrew")),
    *((0x600, "Arabic"), (0x700, ""), (0x750, "Arabic"), (0x780, ""), (0x8A0, "Arabic"), (0x900, "Devanagari")),
    *((0x980, ""), (0xB80, "Tamil"), (0xC00, ""), (0x1E00, "Latin"), (0x1F00, "Greek"), (0x2000, "")),
)
_STARTS = [start for start, _ in _SCRIPTS]
_TABLE = [line.split("\t") for line in Path(__file__).with_name("languages.tsv").read_text("utf-8").splitlines()]
LANGUAGES = tuple(code for code, *_ in _TABLE)
FUNCTION_WORDS = {code: frozenset(words.casefold().split()) for code, _, _, words in _TABLE}
_PLACES = {code: place for place, code in enumerate(LANGUAGES)}
_SCRIPT = {code: script for code, script, _, _ in _TABLE}
_ALGORITHM = {code: algorithm for code, _, algorithm, _ in _TABLE if algorithm != "-"}
_DEFAULTS = {script: next(code for code in LANGUAGES if _SCRIPT[code] == script) for script in _SCRIPT.values()}
USED_BY: dict[str, list[str]] = {}
"""The languages of a function word. A single Latin letter names none: it is a name, a unit or a note as often."""
for _code, _words in FUNCTION_WORDS.items():
    for _word in sorted(_words):
        if len(_word) > 1 or not _word.isascii():
            USED_BY.setdefault(_word, []).append(_code)


def script_of(word: str) -> str:
    """The script of a word's first character, if languages that are known here are written in it; else ""."""
    return _SCRIPTS[bisect(_STARTS, ord(word[0])) - 1][1]


def languages_by_script(votes: Mapping[str, int]) -> dict[str, str]:
    """The language of each script in one text: that of most function words; where there are none, a default."""
    found = dict(_DEFAULTS)
    # The last one set has most votes, of equals it is the first in the table.
    for code in sorted(votes, key=lambda code: (votes[code], -_PLACES[code])):
        found[_SCRIPT[code]] = code
    return found


def likely_languages(votes: Mapping[str, int], stored: Collection[str]) -> tuple[list[str], frozenset[str]]:
    """The languages that a question may be in, to be found in texts; and the function words that say nothing in it.

    In each script it is the language, of those that the texts have, that two function words or more name (several where
    they are equal). If there is none, it may be every language of the texts, and the default of the script.
    """
    likely, left_out = list[str](), frozenset[str]()
    for script, default in _DEFAULTS.items():
        of_script = [code for code in LANGUAGES if _SCRIPT[code] == script]
        most = max(votes.get(code, 0) for code in of_script)
        named = [code for code in of_script if votes.get(code, 0) == most]
        if most < 2 or (stored and set(named).isdisjoint(stored)):
            likely += [code for code in of_script if code in stored or code == default]
            named = [default]
        else:
            likely += named
        left_out |= frozenset[str].intersection(*(FUNCTION_WORDS[code] for code in named))
    return likely, left_out


def stem(word: str, language: str) -> str:
    """The stem of a word in lower case; the word itself where the language is written otherwise, or has no stemmer."""
    if language not in _ALGORITHM or script_of(word) != _SCRIPT[language]:
        return word
    import Stemmer  # what searches nothing need not wait for it

    return Stemmer.Stemmer(_ALGORITHM[language], 0).stemWord(word) or word  # one for all threads would not be safe


def stemmer_version() -> str:
    """The version of the stemmers: another one may give other stems."""
    import Stemmer

    return Stemmer.version()
