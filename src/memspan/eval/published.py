"""Question sets with paragraphs of their own, in their published formats: HotpotQA, 2Wiki, MuSiQue, SQuAD, NQ.

A dataclass has the fields of a record that are read, after the set's own repository.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit

from pydantic import AliasChoices, BeforeValidator, Field

from memspan.eval.records import Facts, Paragraphs, Text, Texts, as_list, read_as
from memspan.text.questions import Question, Record, checked_answers, json_records, passage, sound

Records = Iterator[tuple[str, Any]]
"""Records of a file, each with its place; an exception in the place of one that is none."""

# HotpotQA and 2Wiki ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Hotpot:
    id: Annotated[Text, Field(validation_alias=AliasChoices("_id", "id"))]
    question: Text
    answer: Text
    context: Paragraphs
    supporting_facts: Facts
    answer_id: str | None = None


def hotpotqa(record: Record, aliases: Mapping[str, Sequence[str]] | None = None) -> Iterator[Question]:
    """HotpotQA and 2WikiMultiHopQA: `context` of [title, sentences], `supporting_facts` of [title, sentence].

    Args:
        aliases: further names of answers, by `answer_id`.
    """
    found = read_as(_Hotpot, record)
    gold = list(dict.fromkeys(title for title, _ in found.supporting_facts))
    # Of two paragraphs of one title the first is the evidence.
    first = {title: place for place, (title, _) in reversed(list(enumerate(found.context)))}
    lacking = next((title for title in gold if title not in first), None)
    if lacking is not None:
        raise ValueError(
            f"supporting_facts names {lacking!r}, which context lacks (of a fullwiki file take distractor)"
        )
    texts = [(title, _joined(sentences)) for title, sentences in found.context]
    evidence = [first[title] for title in gold]
    yield Question(
        id=found.id,
        question=found.question,
        answers=checked_answers([found.answer, *(aliases or {}).get(found.answer_id or "", ())]),
        positives=tuple(passage(*texts[place]) for place in evidence),
        negatives=tuple(passage(*one) for place, one in enumerate(texts) if place not in evidence and one[1]),
        type="yesno" if found.answer in ("yes", "no") else "multi",
        hops=len(gold) or None,
    )


def _joined(sentences: Sequence[str]) -> str:
    """Sentences as a text: HotpotQA's begin with a blank, 2Wiki's do not."""
    text = ""
    for sentence in sentences:
        text += f" {sentence}" if re.search(r"\S$", text) and re.match(r"\S", sentence) else sentence
    return text.strip()


@dataclass(frozen=True, slots=True)
class _Aliases:
    Q_id: Text
    aliases: Texts = field(default_factory=list)
    demonyms: Texts = field(default_factory=list)


def aliases(path: Path) -> dict[str, list[str]]:
    """Further names of 2Wiki's answers, from the `id_aliases.json` that is published beside its questions.

    Raises:
        ValueError: a record of that file has none; names its place.
    """
    file, found = path.parent / "id_aliases.json", dict[str, list[str]]()
    for where, record in json_records(file) if file.is_file() else ():
        try:
            names = read_as(_Aliases, sound(record))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        found[names.Q_id] = [*names.aliases, *names.demonyms]
    return found


# MuSiQue --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _MusiqueParagraph:
    idx: int
    title: Text
    paragraph_text: str
    is_supporting: bool


@dataclass(frozen=True, slots=True)
class _MusiqueStep:
    paragraph_support_idx: int | None = None


@dataclass(frozen=True, slots=True)
class _Musique:
    id: Text
    question: Text
    paragraphs: list[_MusiqueParagraph]
    answer: Text | None = None
    answer_aliases: Texts = field(default_factory=list)
    answerable: bool = True
    question_decomposition: list[_MusiqueStep] = field(default_factory=list)


def musique(record: Record) -> Iterator[Question]:
    """MuSiQue, Ans and Full: positives in the order of `question_decomposition`. In Full two records have one id."""
    found = read_as(_Musique, record)
    paragraphs = {item.idx: item for item in found.paragraphs}
    if len(paragraphs) < len(found.paragraphs):
        raise ValueError("paragraphs: two have one idx")
    if found.answerable and found.answer is None:
        raise ValueError("the key 'answer' is missing")
    order = [step.paragraph_support_idx for step in found.question_decomposition]
    if found.answerable and not paragraphs.keys() >= set(order) - {None}:
        raise ValueError("question_decomposition: a paragraph_support_idx that paragraphs lacks")
    marked = [index for index, item in paragraphs.items() if item.is_supporting]
    gold = list(dict.fromkeys(index for index in (*order, *marked) if index in marked)) if found.answerable else []
    documents = {index: passage(item.title, item.paragraph_text) for index, item in paragraphs.items()}
    yield Question(
        id=found.id if found.answerable else f"{found.id}-unanswerable",
        question=found.question,
        answers=checked_answers([found.answer, *found.answer_aliases]) if found.answerable else (),
        positives=tuple(documents[index] for index in gold if index is not None),
        negatives=tuple(document for index, document in documents.items() if index not in gold),
        type="multi" if found.answerable else "unanswerable",
        hops=len(found.question_decomposition) or None,
    )


# SQuAD ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _SquadAnswer:
    text: Text


def _squad_answers(value: Any) -> Any:
    """A list of answers, also where they are columns, as in the tables made of SQuAD."""
    return [{"text": one} for one in as_list(value["text"])] if isinstance(value, dict) and "text" in value else value


@dataclass(frozen=True, slots=True)
class _SquadQuestion:
    id: Text
    question: Text
    context: str
    answers: Annotated[list[_SquadAnswer], BeforeValidator(_squad_answers)] = field(default_factory=list)
    title: Text = ""
    is_impossible: bool = False


def squad(record: Record) -> Iterator[Question]:
    """SQuAD 1.1 and 2.0 (and sets in their form): one question with its paragraph."""
    found = read_as(_SquadQuestion, record)
    document = passage(found.title.replace("_", " "), found.context)
    answers = () if found.is_impossible else checked_answers([answer.text for answer in found.answers])
    impossible = found.is_impossible or (not answers and isinstance(record.get("answers"), dict))
    yield Question(
        id=found.id,
        question=found.question,
        answers=answers,
        positives=() if impossible else (document,),
        negatives=(document,) if impossible else (),
        type="unanswerable" if impossible else "single",
        hops=1,
    )


def squad_records(records: Records) -> Records:
    """The questions of SQuAD's articles, each with its paragraph and title; rows of a table as they are."""
    for where, record in records:
        if isinstance(record, Mapping) and record.keys() & {"data", "paragraphs"}:
            yield from _inside(where, record, ("data", "paragraphs", "qas")["data" not in record :])
        else:
            yield where, record


def _inside(where: str, record: Any, keys: Sequence[str], **shared: Any) -> Records:
    """What stands in lists in lists, with the title and the context of all that it stands in."""
    if isinstance(record, Mapping):
        shared |= {key: record[key] for key in ("title", "context") if key in record}
    if isinstance(record, Exception) or not keys:
        yield where, {**record, **shared} if isinstance(record, Mapping) else record
        return
    for place, item in items(where, record, keys[0]):
        yield from _inside(place, item, keys[1:], **shared)


def items(where: str, record: Any, key: str) -> Records:
    """The items of a list that a record holds under a key, each with its place; an exception where there is none."""
    found = record.get(key) if isinstance(record, Mapping) else None
    if isinstance(found, list):
        yield from ((f"{where}.{key}[{index}]", item) for index, item in enumerate(found))
    else:
        yield where, record if isinstance(record, Exception) else ValueError(f"no list under the key {key!r}")


# Natural Questions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Span:
    start_token: int
    end_token: int


@dataclass(frozen=True, slots=True)
class _Candidate(_Span):
    top_level: bool


@dataclass(frozen=True, slots=True)
class _Annotation:
    long_answer: _Span
    short_answers: list[_Span]
    yes_no_answer: str | None = None


@dataclass(frozen=True, slots=True)
class _Token:
    token: str
    html_token: bool
    start_byte: int | None = None
    end_byte: int | None = None


@dataclass(frozen=True, slots=True)
class _NaturalQuestion:
    example_id: Text
    question_text: Text
    annotations: list[_Annotation]
    long_answer_candidates: list[_Candidate]
    document_tokens: list[_Token] | None = None
    document_text: str | None = None
    document_title: Text = ""
    document_url: str = ""


@dataclass(frozen=True, slots=True)
class _NQOpen:
    question: Text
    answer: list[Text]
    id: Text = ""


def natural_questions(record: Record) -> Iterator[Question]:
    """Natural Questions: its simplified form (`document_text`), its full one (`document_tokens`), and NQ-open.

    Positive is the long answer of the first annotator who gave one, without HTML tags; the other top-level candidates
    are negatives.
    """
    if not record.keys() & {"document_tokens", "document_text"}:  # NQ-open: no documents
        row = read_as(_NQOpen, record)
        yield Question(row.id or row.question, row.question, checked_answers(row.answer), ())
        return
    found = read_as(_NaturalQuestion, record)
    tokens, title = _nq_tokens(found), found.document_title or _nq_title(found.document_url)
    annotated = [item for item in found.annotations if item.long_answer.start_token >= 0]
    shorts = [_nq_text(tokens, span) for item in found.annotations for span in item.short_answers]
    said = [(item.yes_no_answer or "NONE").lower() for item in annotated]
    answers = checked_answers([*shorts, *(word for word in said if word != "none")])
    gold = [passage(title, _nq_text(tokens, item.long_answer)) for item in annotated[:1]]
    texts = dict.fromkeys(_nq_text(tokens, item) for item in found.long_answer_candidates if item.top_level)
    unanswerable = not gold or not answers
    yield Question(
        id=found.example_id,
        question=found.question_text,
        answers=() if unanswerable else answers,
        positives=() if unanswerable else tuple(gold),
        negatives=tuple(passage(title, text) for text in texts if text and (unanswerable or text != gold[0].text)),
        type="unanswerable" if unanswerable else "single",
        hops=1,
    )


_NQ_TAG = re.compile(r"</?[A-Z][A-Za-z0-9]*(_[^>]*)?>")


def _nq_tokens(found: _NaturalQuestion) -> list[str]:
    """Words of the page, each with the blank before it; what is a tag is empty, so that positions stay."""
    if found.document_tokens is None:
        words = (found.document_text or "").split(" ")
        return ["" if _NQ_TAG.fullmatch(word) else f" {word}" for word in words]
    ends = [None, *(item.end_byte for item in found.document_tokens)]
    return [
        "" if item.html_token else item.token if end is not None and end == item.start_byte else f" {item.token}"
        for item, end in zip(found.document_tokens, ends, strict=False)
    ]


def _nq_text(tokens: Sequence[str], span: _Span) -> str:
    if not 0 <= span.start_token <= span.end_token <= len(tokens):
        raise ValueError(f"tokens {span.start_token} to {span.end_token} of a document of {len(tokens)} tokens")
    return re.sub(r"\s+", " ", "".join(tokens[span.start_token : span.end_token])).strip()


def _nq_title(url: str) -> str:
    """The title that the URL of a page names; the simplified form has no other."""
    return " ".join(parse_qs(urlsplit(html.unescape(url)).query).get("title", [])).replace("_", " ")
