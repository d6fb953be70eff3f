"""Question files: reading them strictly, writing them whole."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from memspan.errors import DataError
from memspan.files import whole_file
from memspan.text.questions import UNDATED, MalformedRecord, Question, read_questions
from memspan.types import JSON, Document

MAX_MALFORMED = 0.01
"""Share of lines that may be malformed before a file is refused."""

_NUM_NAMED = 3


@dataclass(frozen=True, slots=True)
class ReadQuestions:
    """What was read of some files: questions in order, and the lines that are none."""

    questions: tuple[Question, ...]
    malformed: tuple[MalformedRecord, ...] = ()


def read_training(paths: Iterable[Path], source: str | None = None) -> ReadQuestions:
    """Read files of the JSONL form (plain, .gz, .xz), every file by itself checked for malformed lines.

    A passage that several questions have is one object in memory. A question that names no source gets the file's
    name up to its first dot.

    Args:
        source: replaces the questions' own.

    Raises:
        DataError: a file is missing, more than `MAX_MALFORMED` of its lines are malformed, or an id stands in two.
        CorpusError: a file cannot be read, or holds no question.
    """
    known: dict[str, Document] = {}
    questions: dict[str, Question] = {}
    malformed: list[MalformedRecord] = []
    for path in paths:
        for question in _read_file(path, malformed):
            if question.id in questions:
                raise DataError(f"{path}: the id {question.id!r} was read before; ids must differ between the files")
            questions[question.id] = replace(
                question,
                source=source or question.source or path.name.partition(".")[0],
                positives=_shared(question.positives, known),
                negatives=_shared(question.negatives, known),
            )
    return ReadQuestions(tuple(questions.values()), tuple(malformed))


def _read_file(path: Path, malformed: list[MalformedRecord]) -> tuple[Question, ...]:
    if not path.is_file():
        raise DataError(f"{path} is no file; name files of questions (.jsonl, .jsonl.gz, .jsonl.xz)")
    found = read_questions(path)
    check_malformed(str(path), len(found.questions), found.malformed)
    malformed += found.malformed
    return found.questions


def check_malformed(name: str, num_good: int, malformed: Sequence[MalformedRecord]) -> None:
    """Refuse a file of which too much is malformed.

    Raises:
        DataError: the share is above `MAX_MALFORMED`; the first lines are named.
    """
    total = num_good + len(malformed)
    if len(malformed) > MAX_MALFORMED * total:
        named = "; ".join(f"{bad.where}: {bad.reason}" for bad in malformed[:_NUM_NAMED])
        raise DataError(
            f"{name}: {len(malformed)} of {total} lines are malformed, more than {MAX_MALFORMED:.0%}; mend them "
            f"or take them out ({named})"
        )


def _shared(documents: Sequence[Document], known: dict[str, Document]) -> tuple[Document, ...]:
    return tuple(known.setdefault(document.external_id, document) for document in documents)


def record_of(question: Question) -> dict[str, JSON]:
    """A question as one line of the JSONL form, which has no date and no namespace of its own."""
    return {
        "id": question.id,
        "source": question.source,
        "question": question.question,
        "answers": list(question.answers),
        "positives": [_passage_record(document) for document in question.positives],
        "negatives": [_passage_record(document) for document in question.negatives],
        "type": question.type,
        "hops": question.hops,
    }


def _passage_record(document: Document) -> dict[str, JSON]:
    dated = {} if document.date in (None, UNDATED) else {"date": document.date}
    return {"title": document.title, "text": document.text, **dated}


def bank_record(document: Document, source: str) -> dict[str, JSON]:
    """A passage as one line of a bank file, as `memspan add` reads it."""
    return {"external_id": document.external_id, **_passage_record(document), "source": source}


def write_questions(path: Path, questions: Iterable[Question]) -> int:
    """Write a file of the JSONL form (.jsonl or .jsonl.gz), see `write_lines`. Returns the number of lines."""
    return write_lines(path, map(record_of, questions))


def write_lines(path: Path, records: Iterable[Any]) -> int:
    """Write JSON lines, packed where the name ends in .gz; the same bytes for the same records.

    Files: `path`, made whole under another name and renamed, so that nobody reads a part of it.

    Raises:
        DataError: the name is no .jsonl or .jsonl.gz, or the file cannot be written (the disk is full, no permission).
    """
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise DataError(f"{path}: lines are written as .jsonl or .jsonl.gz; give it such a name")
    count = 0
    with _written_whole(path) as lines:
        for record in records:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_json(path: Path, value: JSON) -> None:
    """Write one JSON value for people, whole or not at all."""
    with _written_whole(path) as text:
        text.write(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


@contextmanager
def _written_whole(path: Path) -> Iterator[TextIO]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial, partial.open("wb") as raw:
            packed = gzip.GzipFile("", "wb", 6, raw, mtime=0) if path.name.endswith(".gz") else raw
            with io.TextIOWrapper(packed, "utf-8", newline="\n") as text:  # type: ignore[arg-type]
                yield text
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}; nothing of it is left") from error
