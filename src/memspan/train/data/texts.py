"""Questions from plain text: a sentence that finds its passage (inverse cloze), a title that finds its text.

So a router can be fitted to texts about which nobody has asked anything yet. Inverse cloze is by Lee, Chang and
Toutanova (ORQA, 2019), who leave the sentence in its passage in one case of ten: matching words is learned as well.

A passage has one form in all questions, without the sentences taken from it, as positive and as negative. Else the
passage with the sentence in it could be the wrong answer to that very sentence.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from memspan.errors import DataError
from memspan.text.corpus import Skipped, read_paths
from memspan.text.questions import Question, passage
from memspan.text.splitter import sentence_bounds, split_text
from memspan.text.terms import plain_words
from memspan.train.data.pairs import question_id
from memspan.train.structure import STRICT, Count, Positive, Share
from memspan.types import Document

Task = Literal["cloze", "title"]
TASKS: tuple[Task, ...] = ("cloze", "title")

_HEADING_MARKS = "#=-~ \t\r\n"


@settings(frozen=True, slots=True, config=STRICT)
class TextSettings:
    """How questions are made of texts. Words are those of `memspan.text.terms`.

    Attributes:
        tasks: `cloze` (a sentence finds the passage it was taken from), `title` (a text's title finds its beginning).
        passage_words: longest passage; a longer text is cut at paragraphs and sentences.
        min_passage_words: a passage that is shorter without its sentences makes no question.
        min_words, max_words: length of a sentence that is a question; a title only has to be no longer.
        per_passage: sentences taken from one passage, at most.
        keep: share of sentences that also stay in their passage.
        neighbours: other passages of the same text taken as hard negatives, the nearest first.
        seed: of which sentences are taken, and which stay.
    """

    tasks: Annotated[tuple[Task, ...], Field(min_length=1)] = TASKS
    passage_words: Positive = 150
    min_passage_words: int = 20
    min_words: Positive = 5
    max_words: int = 40
    per_passage: Positive = 1
    keep: Share = 0.1
    neighbours: Count = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.min_words > self.max_words:
            raise ValueError(f"questions of {self.min_words} to {self.max_words} words: raise max_words")


@dataclass(frozen=True, slots=True)
class FromTexts:
    """Questions made of texts.

    Attributes:
        passages: all of the texts as questions have them, those that gave no question too: a bank to mine from.
        skipped: files and records that gave no text.
    """

    questions: tuple[Question, ...]
    passages: tuple[Document, ...]
    skipped: tuple[Skipped, ...]


def from_texts(paths: Iterable[Path], source: str, settings: TextSettings | None = None) -> FromTexts:
    """Make questions of files and folders, read as `memspan add` reads them.

    Raises:
        CorpusError: a path does not exist.
        DataError: the texts gave no question.
    """
    settings = settings or TextSettings()
    skipped: list[Skipped] = []
    questions: dict[str, Question] = {}
    passages: dict[str, Document] = {}
    for item in read_paths(paths):
        if isinstance(item, Skipped):
            skipped.append(item)
            continue
        parts = _parts(item, settings)
        passages.update((part.document.external_id, part.document) for part in parts)
        for question in _questions(parts, source, settings):
            questions.setdefault(question.id, question)
    if not questions:
        reasons = "; ".join(f"{bad.source}: {bad.reason}" for bad in skipped[:3]) or "they are too short"
        raise DataError(f"the texts gave no question ({reasons}); give more of them, or lower --min-passage-words")
    return FromTexts(tuple(questions.values()), tuple(passages.values()), tuple(skipped))


def num_words(text: str) -> int:
    """Words of a text, in every script."""
    return len(plain_words(text))


@dataclass(frozen=True, slots=True)
class _Part:
    """A passage as questions have it, and the texts that are to find it."""

    document: Document
    queries: tuple[str, ...]


def _parts(document: Document, settings: TextSettings) -> list[_Part]:
    spans = split_text(document.text, num_words, settings.passage_words)
    texts = (document.text[span.start : span.end].strip() for span in spans)
    parts = [_part(document.title, text, settings) for text in texts if num_words(text)]
    by_title = "title" in settings.tasks and 0 < num_words(document.title) <= settings.max_words
    if by_title and parts:
        first = _without_heading(parts[0].document.text, document.title)
        if num_words(first) >= settings.min_passage_words:  # found by its title, it must not have it
            parts[0] = _Part(passage("", first), (document.title, *parts[0].queries))
    return parts


def _without_heading(text: str, title: str) -> str:
    """A text without the title it opens with, the marks of a heading around it included."""
    opening = text.lstrip(_HEADING_MARKS)
    return opening.removeprefix(title).lstrip(_HEADING_MARKS) if opening.startswith(title) else text


def _part(title: str, text: str, settings: TextSettings) -> _Part:
    """A passage with the sentences that find it, drawn by the seed and the passage alone."""
    whole = passage(title, text)
    if "cloze" not in settings.tasks:
        return _Part(whole, ())
    rng = random.Random(f"{settings.seed}:{whole.external_id}")
    bounds = list(sentence_bounds(text))
    able = [place for place, (start, end) in enumerate(bounds) if _fits(text[start:end], settings)]
    taken = sorted(rng.sample(able, min(len(able), settings.per_passage)))
    cut = {place for place in taken if rng.random() >= settings.keep}
    rest = "".join(text[start:end] for place, (start, end) in enumerate(bounds) if place not in cut).strip()
    if num_words(rest) < settings.min_passage_words:
        return _Part(whole, ())
    queries = (" ".join(text[slice(*bounds[place])].split()) for place in taken)
    return _Part(passage(title, rest), tuple(queries))


def _questions(parts: Sequence[_Part], source: str, settings: TextSettings) -> Iterator[Question]:
    for place, part in enumerate(parts):
        negatives = _neighbours(parts, place, settings)
        for query in part.queries:
            yield _pair(source, query, part.document, negatives)


def _pair(source: str, query: str, positive: Document, negatives: tuple[Document, ...]) -> Question:
    identifier = question_id(source, query, positive.external_id)
    return Question(identifier, query, (), (positive,), negatives, type="pair", hops=1, source=source)


def _neighbours(parts: Sequence[_Part], place: int, settings: TextSettings) -> tuple[Document, ...]:
    """The nearest other passages of the same text."""
    others = sorted((other for other in range(len(parts)) if other != place), key=lambda other: abs(other - place))
    nearest = (parts[other].document for other in others[: settings.neighbours])
    return tuple(document for document in nearest if document.text != parts[place].document.text)


def _fits(sentence: str, settings: TextSettings) -> bool:
    return settings.min_words <= num_words(sentence) <= settings.max_words
