"""Questions with what is known about their answers, and the project's own form of them: JSON lines.

    {"id": "...", "question": "...", "answers": ["any of these counts", ...],
     "positives": [{"title": "...", "text": "...", "date": "2026-03-01"}, ...], "negatives": [...],
     "type": "single|multi|yesno|pair|unanswerable", "hops": 2, "source": "..."}

Only `id` and `question` are always needed, and `answers` for the types that have some; `date` is not. Further keys are
passed over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from memspan.dates import normal_date
from memspan.errors import CorpusError
from memspan.text.readers import BadRecord, Unreadable, extension, is_text, read_json_lines
from memspan.text.readers.json_files import read_json
from memspan.text.readers.opening import bounded_lines, named_failures, open_text, pieces
from memspan.types import Document

QuestionType = Literal["single", "multi", "yesno", "pair", "unanswerable", "all"]
UNDATED = "2000-01-01"
"""The date of every document that has none: the time it happened to be added would make no two runs alike."""

_ID_DIGITS = 16
_LINES = ("jsonl", "ndjson")


@dataclass(frozen=True, slots=True)
class Question:
    """A question with what is known about its answer.

    Attributes:
        id: unique in its set.
        answers: accepted forms; for the type `all` every one of them is expected. May be empty.
        positives: the evidence, in hop order where the set tells it.
        negatives: the question's own distractors.
        type: `single` one document answers (of several positives any one does); `multi` and `yesno` all positives are
            needed; `pair` a text to find another text by, without an answer; `unanswerable` no document answers;
            `all` a needle test, which expects every answer and every positive.
        hops: steps of reasoning, None if unknown.
        date: when it is asked, None if that does not matter.
        namespace: the memory it belongs to: conversations of different people do not share one.
        source: the set it comes from; empty where its file does not say.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    positives: tuple[Document, ...]
    negatives: tuple[Document, ...] = ()
    type: QuestionType = "single"
    hops: int | None = None
    date: str | None = None
    namespace: str = "default"
    source: str = ""

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ValueError("the question is empty")
        if self.type not in get_args(QuestionType):
            raise ValueError(f"no type {self.type!r}; the types are {', '.join(get_args(QuestionType))}")
        if self.hops is not None and (not isinstance(self.hops, int) or self.hops < 1):
            raise ValueError(f"hops must be a number from 1, or null, not {self.hops!r}")
        if not self.answers and self.type not in ("pair", "unanswerable"):
            raise ValueError("no answer")

    @property
    def needs_all(self) -> bool:
        """Whether every positive is needed, not any one of them."""
        return self.type in ("multi", "yesno", "all")


@dataclass(frozen=True, slots=True)
class MalformedRecord:
    """A record that gave no question: where it stands, and why."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """What a reader made of a file.

    Attributes:
        documents: of the set's memory beyond the questions' own positives and negatives (the other turns of a
            conversation), by namespace.
        malformed: what could not be read, named.
    """

    questions: tuple[Question, ...]
    documents: dict[str, tuple[Document, ...]] = field(default_factory=dict)
    malformed: tuple[MalformedRecord, ...] = ()

    def first(self, count: int | None) -> QuestionSet:
        """The set with its first `count` questions only, and the documents of their namespaces."""
        questions = self.questions[:count]
        kept = {question.namespace for question in questions}
        return replace(
            self, questions=questions, documents={name: found for name, found in self.documents.items() if name in kept}
        )


def passage(title: str, text: str, date: str = UNDATED) -> Document:
    """A passage as a document: its name is a hash of its content, so a passage of two questions is one document.

    Raises:
        ValueError: it has no text, or the date is none.
    """
    day = normal_date(date)
    identity = (title, text) if day == UNDATED else (title, text, day)
    digest = hashlib.sha256("\0".join(identity).encode(errors="replace")).hexdigest()[:_ID_DIGITS]
    return Document(f"p-{digest}", text, title, date=day)


# Reading --------------------------------------------------------------------------------------------------------------

Record = Mapping[str, Any]
BAD_RECORD = (KeyError, TypeError, ValueError, IndexError, AttributeError)
"""What a reader's code meets in a record that is none of its format."""


def read_questions(path: Path) -> QuestionSet:
    """Read a file of JSON lines (plain, `.gz` or `.xz`) in the project's form. Malformed records are named, in order.

    Raises:
        CorpusError: the file cannot be read at all, or has no question.
    """
    return reading(path, "jsonl", lambda: collect(json_records(path), questions_of))


def reading(path: Path, format: str, read: Callable[[], QuestionSet]) -> QuestionSet:
    """Read a question set, with clear errors where there is none.

    Raises:
        CorpusError: the file cannot be read at all, or has no question.
    """
    remedy = "check the file and the format"
    try:
        found = read()
    except (OSError, Unreadable, *BAD_RECORD) as error:
        raise CorpusError(f"{path} cannot be read as {format}: {describe(error)}; {remedy}") from error
    if not found.questions:
        reasons = "; ".join(f"{bad.where}: {bad.reason}" for bad in found.malformed[:3]) or "it is empty"
        raise CorpusError(f"{path} holds no question in the format {format} ({reasons}); {remedy}")
    return found


def questions_of(record: Record) -> Iterator[Question]:
    """The question of one record in the project's form."""
    yield Question(
        id=checked_text(record["id"]),
        question=checked_text(record["question"]),
        answers=checked_answers(record.get("answers", [])),
        positives=checked_passages(record.get("positives", [])),
        negatives=checked_passages(record.get("negatives", [])),
        type=record.get("type", "single"),
        hops=record.get("hops"),
        source=checked_text(record.get("source", "")),
    )


def collect(
    records: Iterable[tuple[str, Any]], convert: Callable[[Any], Iterator[Question]], count: int | None = None
) -> QuestionSet:
    """The questions that `convert` makes of records, each given with its place; what is malformed is named.

    A record is malformed that is an exception (the reason), or repeats an id.

    Args:
        count: no more is read once there are so many questions.
    """
    questions: dict[str, Question] = {}
    malformed: list[MalformedRecord] = []
    for where, record in records:
        try:
            for question in convert(sound(record)):
                if question.id in questions:
                    raise ValueError(f"the id {question.id!r} was read before")
                questions[question.id] = question
        except BAD_RECORD as error:
            malformed.append(MalformedRecord(where, describe(error)))
        if count is not None and len(questions) >= count:
            break
    return QuestionSet(tuple(questions.values())[:count], malformed=tuple(malformed))


def sound(record: Any) -> Record:
    """A record as it is.

    Raises:
        ValueError: it is none; of an exception in its place the reason.
    """
    if isinstance(record, Exception):
        raise record
    if not isinstance(record, Mapping) or not is_text(dict(record)):
        raise ValueError("not a JSON object of valid text")
    return record


def json_records(path: Path, shown: Path | None = None) -> Iterator[tuple[str, Any]]:
    """Records of a file, whatever its name: JSON lines, a list of objects, or one object; packed or not.

    Each comes with its place, and is an exception where it is no object. A list is read item by item.

    Args:
        shown: the name of the file in places.

    Raises:
        Unreadable: the file is damaged or no text.
    """
    shown = shown or path
    with named_failures(), path.open("rb") as file, open_text(file, path) as (text, _):
        first = next((piece.lstrip()[:1] for piece in pieces(text) if piece.strip()), "")
        text.seek(0)
        in_lines = extension(path) in _LINES or first not in ("[", "{")
        if not in_lines and first == "{":  # an object over several lines, or one a line
            line = next(line for line in bounded_lines(text) if line.strip())
            in_lines = line.strip()[-1] not in "{[,:"
            text.seek(0)
        for record in read_json_lines(bounded_lines(text)) if in_lines else read_json(pieces(text)):
            place = f"#{record.line or 1}" if in_lines or first == "{" else f"[{record.line - 1}]"
            yield f"{shown}{place}", ValueError(record.reason) if isinstance(record, BadRecord) else record.values


def checked_text(value: Any) -> str:
    """A text or number of a record as text, without white space around it.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not a text")
    return str(value).strip()


def checked_answers(values: Iterable[Any]) -> tuple[str, ...]:
    """The accepted answers of a record, each once, without empty ones.

    Raises:
        TypeError: it is no list of texts.
    """
    if isinstance(values, str):
        raise TypeError("answers must be a list")
    return tuple(dict.fromkeys(filter(None, map(checked_text, values))))


def checked_passages(values: Iterable[Any]) -> tuple[Document, ...]:
    """The passages of a record, objects with `title`, `text` and perhaps `date`, as documents."""
    return tuple(passage(checked_text(value["title"]), value["text"], value.get("date", UNDATED)) for value in values)


def describe(error: Exception) -> str:
    """Why a record is malformed, for people."""
    return f"the key {error} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__
