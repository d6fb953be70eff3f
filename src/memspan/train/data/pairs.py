"""Questions from pairs that somebody has already: title and body, question and answer, query and document."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memspan.errors import DataError
from memspan.text.questions import BAD_RECORD, MalformedRecord, Question, checked_text, describe, json_records, passage
from memspan.text.readers import BadRecord, Unreadable, read_rows
from memspan.train.data.files import ReadQuestions, check_malformed

KNOWN_PAIRS = (("query", "document"), ("question", "answer"), ("title", "body"), ("title", "text"))
"""Columns that are taken where none are named, the first pair that a file has."""

_TABLES = (".csv", ".tsv")
_ID_DIGITS = 16


@dataclass(frozen=True, slots=True)
class PairColumns:
    """Which columns (or keys) of a record make a question.

    Attributes:
        query, document: the text to find by, and the text to be found. Both None: the first of `KNOWN_PAIRS`.
        title: of the document; must not be what it is found by.
        answer: a short answer that stands in the document; with it, questions are of the type `single`.
        negative: a text that does not answer.
    """

    query: str | None = None
    document: str | None = None
    title: str | None = None
    answer: str | None = None
    negative: str | None = None

    def __post_init__(self) -> None:
        if (self.query is None) != (self.document is None):
            raise DataError("name both columns of a pair, --query and --document, or neither")
        if self.title is not None and self.title == self.query:
            raise DataError("a document's title is not to be what it is found by; leave the title out")

    def of(self, record: Mapping[str, Any]) -> PairColumns:
        """The columns with the pair filled in, by what a record has.

        Raises:
            ValueError: it has none of the known pairs.
        """
        if self.query is not None:
            return self
        for query, document in KNOWN_PAIRS:
            if record.get(query) and record.get(document):
                return PairColumns(query, document, self.title, self.answer, self.negative)
        raise ValueError(f"no pair of columns among {', '.join(record)}; name them with --query and --document")


def from_pairs(paths: Iterable[Path], source: str, columns: PairColumns | None = None) -> ReadQuestions:
    """Read pairs from .jsonl (plain or packed), .json, .csv and .tsv files. A line that was read before is passed over.

    Raises:
        DataError: a file cannot be read, or more than 1% of its lines give no pair (see `check_malformed`).
    """
    questions: dict[str, Question] = {}
    malformed: list[MalformedRecord] = []
    for path in paths:
        good, bad = 0, list[MalformedRecord]()
        for where, record in records_of(path):
            try:
                if not isinstance(record, Mapping):
                    raise ValueError("no record")
                question = _question(record, (columns or PairColumns()).of(record), source)
                questions.setdefault(question.id, question)
                good += 1
            except BAD_RECORD as error:
                bad.append(MalformedRecord(where, describe(error)))
        check_malformed(str(path), good, bad)
        malformed += bad
    return ReadQuestions(tuple(questions.values()), tuple(malformed))


def _question(record: Mapping[str, Any], columns: PairColumns, source: str) -> Question:
    assert columns.query is not None and columns.document is not None, "Columns.of fills in both"
    query = checked_text(record[columns.query])
    title = checked_text(record[columns.title]) if columns.title else ""
    positive = passage(title, checked_text(record[columns.document]))
    answers = (checked_text(record[columns.answer]),) if columns.answer else ()
    negative = checked_text(record.get(columns.negative) or "") if columns.negative else ""
    return Question(
        id=question_id(source, query, positive.external_id),
        question=query,
        answers=answers,
        positives=(positive,),
        negatives=(passage("", negative),) if negative else (),
        type="single" if answers else "pair",
        hops=1,
        source=source,
    )


def question_id(source: str, query: str, document: str) -> str:
    """A name for a question that was given none: the same for the same text and passage, wherever they stand."""
    digest = hashlib.sha256(f"{query}\0{document}".encode(errors="replace")).hexdigest()
    return f"{source}-{digest[:_ID_DIGITS]}"


def records_of(path: Path) -> Iterator[tuple[str, Any]]:
    """Records of a file, each with its place.

    Raises:
        DataError: it cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path} is no file; name files of pairs (.jsonl, .csv, .tsv)")
    try:
        yield from _rows(path) if path.suffix.lower() in _TABLES else json_records(path)
    except (OSError, Unreadable, *BAD_RECORD) as error:
        raise DataError(f"{path} cannot be read as pairs: {error}") from error


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    for record in read_rows(path):
        yield f"{path}#{record.line}", None if isinstance(record, BadRecord) else record.values
