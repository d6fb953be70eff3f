"""Readers of question sets in their published formats. Every record that is none is named, never passed over silently.

Each reader takes a decoded record (or table row) and gives its questions. Sources: the sets' own repositories and
papers. What a format does not carry (PopQA, NQ-open: passages) the questions lack too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from memspan.errors import CorpusError
from memspan.eval import conversations, published
from memspan.eval.published import Records
from memspan.eval.records import JsonTexts, Text, Texts, read_as
from memspan.text.questions import (
    BAD_RECORD,
    MalformedRecord,
    Question,
    QuestionSet,
    Record,
    checked_answers,
    checked_text,
    collect,
    describe,
    json_records,
    passage,
    questions_of,
    reading,
    sound,
)
from memspan.text.readers import BadRecord, Unreadable, extension, read_parts, read_rows
from memspan.types import Document

# Sets with passages or pages ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _MarcoPassage:
    passage_text: str
    is_selected: bool


@dataclass(frozen=True, slots=True)
class _Marco:
    query_id: Text
    query: Text
    passages: list[_MarcoPassage]
    answers: Texts


def _ms_marco(record: Record) -> Iterator[Question]:
    """MS MARCO QA (v1.1 lines, or a record rebuilt from v2.1's columns)."""
    found = read_as(_Marco, record)
    chosen, others = (
        [passage("", item.passage_text) for item in found.passages if item.is_selected is wanted]
        for wanted in (True, False)
    )
    answers = () if found.answers == ["No Answer Present."] else checked_answers(found.answers)
    yield Question(
        id=found.query_id,
        question=found.query,
        answers=answers,
        positives=tuple(chosen) if answers else (),
        negatives=tuple(others if answers else chosen + others),
        type="single" if answers else "unanswerable",
        hops=1,
    )


@dataclass(frozen=True, slots=True)
class _DureaderPage:
    paragraphs: list[str]
    title: Text = ""
    is_selected: bool = False
    most_related_para: int = 0


@dataclass(frozen=True, slots=True)
class _Dureader:
    question_id: Text
    question: Text
    documents: list[_DureaderPage]
    answers: Texts


def _dureader(record: Record) -> Iterator[Question]:
    """DuReader 2.0: positive is the paragraph marked most related of each page that was used (`is_selected`)."""
    found = read_as(_Dureader, record)
    positives: list[Document] = []
    negatives: list[Document] = []
    for page in found.documents:
        best = page.most_related_para if page.is_selected else None
        for number, text in enumerate(page.paragraphs):
            if text.strip():
                (positives if number == best else negatives).append(passage(page.title, text))
    answers = checked_answers(found.answers)
    yield Question(
        id=found.question_id,
        question=found.question,
        answers=answers,
        positives=tuple(positives) if answers else (),
        negatives=tuple(negatives) if answers else (*positives, *negatives),
        type="single" if answers else "unanswerable",
    )


# Sets whose text lies elsewhere ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _PopQA:
    id: Text
    question: Text
    possible_answers: JsonTexts


def _popqa(row: Record) -> Iterator[Question]:
    """PopQA's table. It carries no passages: give them as distractors, or ask without memory."""
    found = read_as(_PopQA, row)
    yield Question(found.id, found.question, checked_answers(found.possible_answers), ())


@dataclass(frozen=True, slots=True)
class _TriviaPage:
    file: Annotated[str | None, Field(validation_alias="Filename")] = None
    title: Annotated[Text, Field(validation_alias="Title")] = ""


@dataclass(frozen=True, slots=True)
class _TriviaAnswer:
    value: Annotated[Text, Field(validation_alias="Value")]
    aliases: Annotated[Texts, Field(validation_alias="Aliases")] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Trivia:
    id: Annotated[Text, Field(validation_alias="QuestionId")]
    question: Annotated[Text, Field(validation_alias="Question")]
    answer: Annotated[_TriviaAnswer, Field(validation_alias="Answer")]
    wikipedia: Annotated[list[_TriviaPage], Field(validation_alias="EntityPages")] = field(default_factory=list)
    web: Annotated[list[_TriviaPage], Field(validation_alias="SearchResults")] = field(default_factory=list)


def _triviaqa(record: Record, evidence: Path) -> Iterator[Question]:
    """TriviaQA: evidence files stand in `evidence/wikipedia` and `evidence/web` beside the questions' folder."""
    found = read_as(_Trivia, record)
    pages = [(evidence / kind, page) for kind in ("wikipedia", "web") for page in getattr(found, kind)]
    files = [(folder / page.file, page.title) for folder, page in pages if page.file is not None]
    yield Question(
        id=found.id,
        question=found.question,
        answers=checked_answers([found.answer.value, *found.answer.aliases]),
        positives=tuple(passage(title, path.read_text("utf-8")) for path, title in files if path.is_file()),
    )


def _narrativeqa(row: Record, summaries: Mapping[str, str]) -> Iterator[Question]:
    """NarrativeQA's qaps.csv with the summaries as documents."""
    document = row["document_id"]
    yield Question(
        id=f"{document}-{row['line']}",
        question=checked_text(row["question"]),
        answers=checked_answers([row["answer1"], row["answer2"]]),
        positives=(passage("", summaries[document]),),
    )


# Files ----------------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[Path]:
    """A file on disk: the file itself, or a member of an archive, which is named `ARCHIVE/MEMBER`.

    Raises:
        Unreadable: an archive has no such member, or several files, and none is named.
    """
    archive = next(
        (part for part in (path, *path.parents) if part.is_file() and extension(part) in ("zip", "tar")), None
    )
    if archive is None:
        yield path
        return
    wanted = path.relative_to(archive).as_posix()
    parts = {part.name for part in read_parts(archive) or () if isinstance(part.content, Path)}
    chosen = [name for name in parts if wanted in (".", name)]
    if len(chosen) != 1:
        names = ", ".join(sorted(parts)) or "none"
        raise Unreadable(f"the files in it are {names}; name one as {archive.name}/FILE")
    for part in read_parts(archive) or ():
        if part.name == chosen[0]:
            assert isinstance(part.content, Path), "chosen among these"
            yield part.content
            return


def _rows_of(path: Path, shown: Path) -> Records:
    for row in read_rows(path):
        bad = isinstance(row, BadRecord)
        yield f"{shown}#{row.line}", ValueError(row.reason) if bad else {**row.values, "line": row.line}


def _rows_or_lines(path: Path, shown: Path) -> Records:
    return (json_records if extension(path) in ("json", "jsonl") else _rows_of)(path, shown)


def _under(key: str, path: Path, shown: Path) -> Records:
    """Items of a list that a JSON file holds under `key`."""
    for _, record in json_records(path, shown):
        yield from published.items(str(shown), record, key)


def _marco_records(path: Path, shown: Path) -> Records:
    """v2.1 is one object of columns, each a mapping from row to value; v1.1 is lines."""
    for where, record in json_records(path, shown):
        if isinstance(record, Mapping) and isinstance(record.get("query"), Mapping):
            columns = {name: values for name, values in record.items() if isinstance(values, Mapping)}
            for row in record["query"]:
                yield f"{shown}[{row}]", {name: values[row] for name, values in columns.items() if row in values}
        else:
            yield where, record


_SIMPLE: dict[str, tuple[Callable[[Path, Path], Records], Callable[[Any], Iterator[Question]]]] = {
    "jsonl": (json_records, questions_of),
    "hotpotqa": (json_records, published.hotpotqa),
    "musique": (json_records, published.musique),
    "nq": (json_records, published.natural_questions),
    "squad": (lambda path, shown: published.squad_records(json_records(path, shown)), published.squad),
    "popqa": (_rows_or_lines, _popqa),
    "ms_marco": (_marco_records, _ms_marco),
    "dureader": (json_records, _dureader),
}
_CONVERSATIONS = {"locomo": conversations.locomo, "longmemeval": conversations.longmemeval}
FORMATS: tuple[str, ...] = (*_SIMPLE, "2wikimultihopqa", "triviaqa", "narrativeqa", *_CONVERSATIONS)


def read_set(path: Path, format: str, count: int | None = None) -> QuestionSet:
    """Read a question set. Records that are malformed, or repeat an id, are named in the result.

    Files may be packed (.gz, .xz, .bz2, .zst), and stand in an archive: `data.zip/dev.json`, or its name alone where it
    holds one file.

    Args:
        format: one of FORMATS. `jsonl` is the form of `docs/evaluation.md`. From the file, 2Wiki's `id_aliases.json` is
            looked for beside it, TriviaQA's evidence in `../evidence`, NarrativeQA's summaries in
            `third_party/wikipedia/summaries.csv`.
        count: questions, at most; the file is read no further than they need.

    Raises:
        CorpusError: the file cannot be read at all, has no question, or the format is unknown.
    """
    if format not in FORMATS:
        raise CorpusError(f"no reader for {format!r}; the formats are {', '.join(FORMATS)}")

    def read() -> QuestionSet:
        with _opened(path) as file:
            if format in _CONVERSATIONS:
                return _talks(json_records(file, path), format, count)
            return collect(*_reader(path, file, format), count)

    return reading(path, format, read)


def _reader(
    path: Path, file: Path, format: str
) -> tuple[Iterable[tuple[str, Any]], Callable[[Any], Iterator[Question]]]:
    """The records of a file, and what makes questions of them. Files beside it are those of `path`."""
    if format == "2wikimultihopqa":
        return json_records(file, path), partial(published.hotpotqa, aliases=published.aliases(path))
    if format == "triviaqa":
        return _under("Data", file, path), partial(_triviaqa, evidence=path.parent.parent / "evidence")
    if format == "narrativeqa":
        table = path.parent / "third_party" / "wikipedia" / "summaries.csv"
        rows = (sound(row) for _, row in _rows_of(table, table))
        return _rows_of(file, path), partial(
            _narrativeqa, summaries={row["document_id"]: row["summary"] for row in rows}
        )
    records, convert = _SIMPLE[format]
    return records(file, path), convert


def _talks(records: Records, format: str, count: int | None) -> QuestionSet:
    parts: dict[str, conversations.Conversation] = {}
    malformed: list[MalformedRecord] = []
    for where, record in records:
        try:
            part = _CONVERSATIONS[format](sound(record))
            if part.namespace in parts:
                raise ValueError(f"the id {part.namespace!r} was read before")
        except BAD_RECORD as error:
            malformed.append(MalformedRecord(where, describe(error)))
            continue
        parts[part.namespace] = part
        malformed += [MalformedRecord(f"{where}.{place}", reason) for place, reason in part.malformed]
        if count is not None and sum(len(part.questions) for part in parts.values()) >= count:
            break
    return QuestionSet(
        questions=tuple(question for part in parts.values() for question in part.questions),
        documents={name: part.documents for name, part in parts.items()},
        malformed=tuple(malformed),
    ).first(count)
