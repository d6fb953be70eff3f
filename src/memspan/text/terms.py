"""Words of a text for the full-text index: what is searched, the same for documents and questions."""

from __future__ import annotations

import re
import unicodedata

# Scripts written without spaces: indexed by overlapping pairs of characters, the usual stand-in for words.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_CJK_RUN = re.compile(f"[{_CJK}]+")
_WORD = re.compile(f"[^\\W_{_CJK}]+(?:['’][^\\W_{_CJK}]+)*")

# Function words: they are in nearly every document and only add noise to a question.
STOP_WORDS = frozenset(
    """
    a about above after again against all am an and any are as at be because been before being below between both but
    by can could did do does doing down during each few for from further had has have having he her here hers herself
    him himself his how i if in into is it its itself just me more most my myself no nor not now of off on once only
    or other our ours ourselves out over own same she should so some such than that the their theirs them themselves
    then there these they this those through to too under until up us very was we were what when where which while who
    whom whose why will with would you your yours yourself yourselves
    """.split()  # noqa: SIM905
)


def index_terms(text: str) -> list[str]:
    """Words in lower case, in order; runs of Chinese, Japanese and Korean as overlapping character pairs."""
    # One form for letters that can be written in several (composed or not, full width, ligatures).
    text = unicodedata.normalize("NFKC", text)
    pairs = [pair for run in _CJK_RUN.findall(text) for pair in _pairs(run)]
    return [_simple(word) for word in _WORD.findall(_CJK_RUN.sub(" ", text))] + pairs


def query_terms(question: str) -> list[str]:
    """The distinct words a question is searched by: stop words left out, unless nothing else is left."""
    terms = list(dict.fromkeys(index_terms(question)))
    return [term for term in terms if term not in STOP_WORDS] or terms


def is_unspaced(text: str) -> bool:
    """Whether a text holds Chinese, Japanese or Korean, whose terms are pairs of characters and no words."""
    return _CJK_RUN.search(text) is not None


def _simple(word: str) -> str:
    """Lower case, possessive dropped."""
    return word.lower().replace("’", "'").removesuffix("'s").replace("'", "")


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)] or [run]
