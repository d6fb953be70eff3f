"""What an answer rests on: its sentences, checked word by word against the documents that were read.

The check reads words, not meanings: a sentence that says the opposite in the same words passes, a good paraphrase may
not. It is the same for summaries and answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from memspan.text.splitter import sentence_bounds
from memspan.text.template import encoded_text
from memspan.text.terms import content_words, plain_words
from memspan.types import Answer, Citation, Evidence, Span

# A sentence is supported where this share of its words stands in the documents it cites.
MIN_SUPPORT = 0.6
# A further document is cited where it adds this share of the sentence's words.
_MIN_GAIN = 0.2
_LIST_MARK = re.compile(r"^\s*(?:[-*•]+|\d{1,3}[.)])\s+")
_MARK = r"\[\s*\d{1,3}(?:\s*,\s*\d{1,3})*\s*\]"
_MARKS = re.compile(rf"\s*{_MARK}(?:\s*{_MARK})*")
_UNFINISHED = re.compile(r"\s*(?:\[[\d,\s]*\]\s*)*(?:\[[\d,\s]*)?\Z")
_NUMBER = re.compile(r"\d+")
_DAY_LENGTH = len("2026-03-01")

# An answer that says it has none. A sentence of another wording is missed: precision was preferred.
_ABSTENTION = re.compile(
    r"\b(?:i (?:do not|don't|don’t) (?:know|have)|"
    r"(?:not|isn't|wasn't|never) (?:mentioned|stated|specified|given|provided|known|available|found)|"
    r"(?:documents?|texts?|notes?|passages?|context|sources?|memor(?:y|ies)) (?:do(?:es)? not|do(?:es)?n['’]t) "
    r"(?:say|tell|mention|state|specify|provide|contain|include|answer)|"
    r"no (?:information|answer|mention)|(?:cannot|can't|can’t|could not|unable to) "
    r"(?:be )?(?:answer(?:ed)?|determined?|find|found|tell)|unanswerable|unknown)\b",
    re.IGNORECASE,
)


def abstains(text: str) -> bool:
    """Whether the text says that it has no answer. Judged by a list of English phrases, see above."""
    return bool(_ABSTENTION.search(text))


def sentence_spans(text: str) -> Iterator[Span]:
    """Where the sentences of a text stand, each line by itself, without the marks or numbers of a list."""
    begin = 0
    for line in text.splitlines(keepends=True):
        mark = _LIST_MARK.match(line)
        offset = mark.end() if mark else 0
        for start, end in sentence_bounds(line[offset:]):
            sentence = line[offset + start : offset + end]
            if any(character.isalnum() for character in sentence):
                left = begin + offset + start + len(sentence) - len(sentence.lstrip())
                yield Span(left, left + len(sentence.strip()))
        begin += len(line)


def sentences(text: str) -> list[str]:
    """The sentences of a text; see `sentence_spans`."""
    return [text[span.start : span.end] for span in sentence_spans(text)]


def words_of(title: str, text: str, date: str = "") -> set[str]:
    """The words of a document that a sentence can rest on: those of its title, its text, and its day."""
    return set(plain_words(f"{encoded_text(title, text)}\n{date[:_DAY_LENGTH]}"))


def _terms(sentence: str) -> list[str]:
    """The words of a sentence that documents are to hold, without its marks."""
    return [term for term in content_words(_MARKS.sub(" ", sentence)) if any(map(str.isalnum, term))]


def cite(sentence: str, documents: Sequence[set[str]]) -> tuple[list[int], float]:
    """The few documents that hold a sentence's words, and the share of its words that they hold.

    Greedy: the document with most of its words, then whichever adds most of the words still missing, as long as that
    is a share worth naming. Words are the terms of full-text search, stop words left out.
    """
    missing = set(_terms(sentence))
    num_words, chosen = len(missing), list[int]()
    while missing:
        gains = [len(missing & words) for words in documents]
        best = max(range(len(gains)), key=lambda place: (gains[place], -place), default=None)
        if best is None or not gains[best] or (chosen and gains[best] < _MIN_GAIN * num_words):
            break
        chosen.append(best)
        missing -= documents[best]
    return chosen, 1 - len(missing) / num_words if num_words else 0.0


def supports(support: float, sentence: str, documents: Sequence[set[str]]) -> bool:
    """Whether documents that hold this share of a sentence's words support it: the share is large enough, and they hold
    every number of the sentence."""
    numbers = {term for term in _terms(sentence) if term.isdecimal()}
    return support >= MIN_SUPPORT and numbers <= set().union(*documents)


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of an answer, or the part of one that stands before a mark as `[2]`.

    Attributes:
        marks: the numbers behind it.
    """

    span: Span
    marks: tuple[int, ...] = ()


def claims(text: str) -> list[Claim]:
    """The claims of an answer, in order. Marks belong to the claim that stands before them."""
    found: list[Claim] = []
    start = 0
    for marks in (*_MARKS.finditer(text), None):
        end = len(text) if marks is None else marks.start()
        found += [Claim(Span(start + one.start, start + one.end)) for one in sentence_spans(text[start:end])]
        if marks is not None:
            start = marks.end()
            if found:
                numbers = dict.fromkeys((*found[-1].marks, *map(int, _NUMBER.findall(marks[0]))))
                found[-1] = replace(found[-1], marks=tuple(numbers))
    return found


def without_marks(text: str) -> str:
    """An answer without its marks."""
    return _MARKS.sub("", text).strip()


def says_none(text: str, evidence: Sequence[Evidence]) -> bool:
    """Whether an answer says by its mark, `[0]`, that the documents hold none."""
    marks = CitationChecker(evidence)
    marks.add(text, final=True)
    return marks.said_none


class CitationChecker:
    """Checks the marks of an answer while it is written: one whose document does not support what stands before it is
    taken out, and counted. `[0]` says that the documents hold no answer; it is taken out, and noted.

    Attributes:
        text: the answer so far, as it may be shown.
        removed: marks that were taken out.
        said_none: whether the answer said that the documents hold none.
    """

    def __init__(self, evidence: Sequence[Evidence]) -> None:
        self.text, self.removed, self.said_none = "", 0, False
        self._words = [words_of(item.title, item.text, item.date) for item in evidence]
        self._waiting = ""

    def add(self, text: str, final: bool = False) -> str:
        """Take further text; what of the answer may be shown now. A mark waits until what follows it is known."""
        waiting = self._waiting + text
        start = 0
        for marks in _MARKS.finditer(waiting):
            if not final and _UNFINISHED.match(waiting, marks.start()):
                break
            self.text += waiting[start : marks.start()]
            self.text += self._checked(marks[0])
            start = marks.end()
        held = None if final else _UNFINISHED.search(waiting, start)
        end = len(waiting) if held is None else held.start()
        self.text += waiting[start:end]
        self._waiting = waiting[end:]
        return self.text

    def _checked(self, marks: str) -> str:
        """The marks that stay, as they are to be written."""
        numbers = list(dict.fromkeys(map(int, _NUMBER.findall(marks))))
        is_index = 0 in numbers and marks[0] == "[" and self.text[-1:].isalnum()
        if is_index or self.text.count("`") % 2:  # code, as rows[0]
            return marks
        kept = self._supported(numbers)
        self.said_none |= 0 in numbers
        self.removed += len([number for number in numbers if number]) - len(kept)
        space = marks[: len(marks) - len(marks.lstrip())]
        return space + "".join(f"[{number}]" for number in kept) if kept else ""

    def _supported(self, numbers: Sequence[int]) -> list[int]:
        known = [number for number in numbers if 0 < number <= len(self._words)]
        claim = next(reversed(claims(self.text)), None)
        if claim is None or not known:
            return []
        sentence, words = self.text[claim.span.start : claim.span.end], [self._words[number - 1] for number in known]
        places, support = cite(sentence, words)
        together = set(places) if supports(support, sentence, words) else set()
        return [n for place, n in enumerate(known) if place in together or _holds(sentence, words[place])]


def _holds(sentence: str, words: set[str]) -> bool:
    return supports(cite(sentence, [words])[1], sentence, [words])


def citations_of(text: str, evidence: Sequence[Evidence], marked: bool = True) -> tuple[Citation, ...]:
    """What every claim of an answer rests on: the documents that hold its words. One that none supports is among them.

    Args:
        marked: whether marks in the text are numbers of the evidence; a claim that has some rests on those alone.
    """
    words = [words_of(item.title, item.text, item.date) for item in evidence]
    found: list[Citation] = []
    for claim in claims(text):
        sentence = text[claim.span.start : claim.span.end]
        named = [number - 1 for number in claim.marks if marked and 0 < number <= len(evidence)]
        places, support = cite(sentence, [words[place] for place in named] if named else words)
        places = named or places
        if not places or not supports(support, sentence, [words[place] for place in places]):
            found.append(Citation(claim.span, False, support))
        else:
            found += [_citation(claim.span, support, place, sentence, evidence[place]) for place in places]
    return tuple(found)


def _citation(span: Span, support: float, place: int, sentence: str, item: Evidence) -> Citation:
    page = item.pages[0] if len(item.pages) == 1 else item.metadata.get("page")
    return Citation(
        span,
        True,
        support,
        evidence=place + 1,
        document_id=item.document_id,
        external_id=item.external_id,
        source=_best_sentence(sentence, item),
        page=page if isinstance(page, int | str) and not isinstance(page, bool) else None,
    )


def _best_sentence(sentence: str, item: Evidence) -> Span:
    """Where the document says most of a sentence's words: one of its sentences, in the source's text."""
    wanted, begin = set(_terms(sentence)), item.span.start
    spans = list(sentence_spans(item.text)) or [Span(0, len(item.text))]
    best = max(spans, key=lambda span: len(wanted & set(plain_words(item.text[span.start : span.end]))))
    return Span(begin + best.start, begin + best.end)


def marked_text(answer: Answer) -> str:
    """The answer with `[n]` behind every claim, the number of the evidence it rests on; also where none was written."""
    numbers: dict[Span, list[int]] = {}
    for one in answer.citations:
        if one.evidence is not None:
            numbers.setdefault(one.span, []).append(one.evidence)
    text, end = "", 0
    for span, cited in numbers.items():
        written = answer.answerer and _MARKS.match(answer.text, span.end)
        text += answer.text[end : span.end] + ("" if written else " " + "".join(f"[{number}]" for number in cited))
        end = span.end
    return text + answer.text[end:]
