"""Readers of question sets in their original formats. Every record that is none is named, never passed over silently.

Each reader takes a decoded JSON record (or table row) and gives its questions. Sources: the sets' own papers and
download pages. What a format does not carry (PopQA, NQ-open: passages) the questions lack too.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from memspan.errors import CorpusError
from memspan.eval import conversations
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
    maybe_json,
    passage,
    questions_of,
    reading,
)
from memspan.text.readers import read_content
from memspan.types import Document

# Sets with paragraphs of their own ------------------------------------------------------------------------------------


def _hotpotqa(record: Record) -> Iterator[Question]:
    """HotpotQA and 2WikiMultiHopQA: `context` of [title, sentences], `supporting_facts` of [title, sentence]."""
    paragraphs = {title: "".join(sentences).strip() for title, sentences in record["context"]}
    gold = list(dict.fromkeys(title for title, _ in record.get("supporting_facts", [])))
    yield Question(
        id=checked_text(record["_id"]),
        question=checked_text(record["question"]),
        answers=checked_answers([record["answer"]]),
        positives=tuple(passage(title, paragraphs[title]) for title in gold),
        negatives=tuple(passage(title, text) for title, text in paragraphs.items() if title not in gold and text),
        type="yesno" if record["answer"] in ("yes", "no") else "multi",
        hops=len(gold) or None,
    )


def _musique(record: Record) -> Iterator[Question]:
    """MuSiQue: positives in the order of `question_decomposition`."""
    paragraphs = {item["idx"]: item for item in record["paragraphs"]}
    order = [step["paragraph_support_idx"] for step in record.get("question_decomposition", [])]
    marked = [index for index, item in paragraphs.items() if item["is_supporting"]]
    gold = list(dict.fromkeys(index for index in (*order, *marked) if index in paragraphs and index in marked))
    documents = {index: passage(item["title"], item["paragraph_text"]) for index, item in paragraphs.items()}
    answerable = record.get("answerable", True)
    yield Question(
        id=checked_text(record["id"]),
        question=checked_text(record["question"]),
        answers=checked_answers([record["answer"], *record.get("answer_aliases", [])]) if answerable else (),
        positives=tuple(documents[index] for index in gold),
        negatives=tuple(document for index, document in documents.items() if index not in gold),
        type="multi" if answerable else "unanswerable",
        hops=len(record.get("question_decomposition", [])) or None,
    )


def _squad(article: Record) -> Iterator[Question]:
    """SQuAD 1.1 and 2.0 (and sets in their form): one article of `data`."""
    for paragraph in article["paragraphs"]:
        document = passage(article.get("title", "").replace("_", " "), paragraph["context"])
        for item in paragraph["qas"]:
            impossible = item.get("is_impossible", False)
            answers = checked_answers([answer["text"] for answer in item["answers"]])
            yield Question(
                id=checked_text(item["id"]),
                question=checked_text(item["question"]),
                answers=() if impossible else answers,
                positives=() if impossible else (document,),
                negatives=(document,) if impossible else (),
                type="unanswerable" if impossible else "single",
                hops=1,
            )


def _natural_questions(record: Record) -> Iterator[Question]:
    """Natural Questions: its simplified form (`document_text`), its full one (`document_tokens`), and NQ-open.

    Positive is the long answer of the first annotator who gave one, without HTML tags; the other top-level candidates
    are negatives.
    """
    if "answer" in record:  # NQ-open: no documents
        yield Question(
            record.get("id") or record["question"], record["question"], checked_answers(record["answer"]), ()
        )
        return
    tokens = _nq_tokens(record)
    annotated = [item for item in record["annotations"] if item["long_answer"]["start_token"] >= 0]
    spans = [item["long_answer"] for item in annotated[:1]]
    shorts = [short for item in record["annotations"] for short in item["short_answers"]]
    answers = [_nq_text(tokens, span) for span in shorts]
    answers += [item["yes_no_answer"].lower() for item in annotated if item["yes_no_answer"] not in ("NONE", "")]
    title = record.get("document_title", "")
    gold = [passage(title, _nq_text(tokens, span)) for span in spans]
    others = (item for item in record["long_answer_candidates"] if item["top_level"])
    texts = dict.fromkeys(text for item in others if (text := _nq_text(tokens, item)))
    unanswerable = not gold or not answers
    yield Question(
        id=checked_text(record["example_id"]),
        question=checked_text(record.get("question_text", "")),
        answers=() if unanswerable else checked_answers(answers),
        positives=() if unanswerable else tuple(gold),
        negatives=tuple(passage(title, text) for text in texts if unanswerable or text != gold[0].text),
        type="unanswerable" if unanswerable else "single",
        hops=1,
    )


def _nq_tokens(record: Record) -> list[str]:
    """Words of the page; what is a tag is empty, so that positions stay."""
    if "document_text" in record:
        words = record["document_text"].split(" ")
        return ["" if word.startswith("<") and word.endswith(">") else word for word in words]
    return ["" if item["html_token"] else item["token"] for item in record["document_tokens"]]


def _nq_text(tokens: Sequence[str], span: Record) -> str:
    return " ".join(filter(None, tokens[span["start_token"] : span["end_token"]]))


def _ms_marco(record: Record) -> Iterator[Question]:
    """MS MARCO QA (v1.1 lines, or a record rebuilt from v2.1's columns)."""
    chosen = [item["passage_text"] for item in record["passages"] if item["is_selected"]]
    others = [item["passage_text"] for item in record["passages"] if not item["is_selected"]]
    answers = [] if record["answers"] == ["No Answer Present."] else record["answers"]
    yield Question(
        id=checked_text(record["query_id"]),
        question=checked_text(record["query"]),
        answers=checked_answers(answers),
        positives=tuple(passage("", text) for text in chosen) if answers else (),
        negatives=tuple(passage("", text) for text in (others if answers else chosen + others)),
        type="single" if answers else "unanswerable",
        hops=1,
    )


def _dureader(record: Record) -> Iterator[Question]:
    """DuReader 2.0: positive is the paragraph marked most related of each page that was used (`is_selected`)."""
    positives: list[Document] = []
    negatives: list[Document] = []
    for page in record["documents"]:
        best = page.get("most_related_para", 0) if page.get("is_selected") else None
        for number, text in enumerate(page["paragraphs"]):
            if text.strip():
                (positives if number == best else negatives).append(passage(page.get("title", ""), text))
    answers = checked_answers(record["answers"])
    yield Question(
        id=checked_text(record["question_id"]),
        question=checked_text(record["question"]),
        answers=answers,
        positives=tuple(positives) if answers else (),
        negatives=tuple(negatives) if answers else (*positives, *negatives),
        type="single" if answers else "unanswerable",
    )


# Sets whose text lies elsewhere ---------------------------------------------------------------------------------------


def _popqa(row: Record) -> Iterator[Question]:
    """PopQA's table. It carries no passages: give them as distractors, or ask without memory."""
    yield Question(
        checked_text(row["id"]), checked_text(row["question"]), checked_answers(json.loads(row["possible_answers"])), ()
    )


def _triviaqa(record: Record, evidence: Path) -> Iterator[Question]:
    """TriviaQA: evidence files stand in `evidence/wikipedia` and `evidence/web` beside the questions' folder."""
    pages = [("wikipedia", page) for page in record.get("EntityPages", [])]
    pages += [("web", page) for page in record.get("SearchResults", [])]
    files = [(evidence / kind / page["Filename"], page.get("Title", "")) for kind, page in pages if "Filename" in page]
    answer = record["Answer"]
    yield Question(
        id=checked_text(record["QuestionId"]),
        question=checked_text(record["Question"]),
        answers=checked_answers([answer["Value"], *answer.get("Aliases", [])]),
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


def _json(path: Path) -> Any:
    return json.loads(read_content(path).text)


def _under(key: str) -> Callable[[Path], Iterator[tuple[str, Any]]]:
    """Items of a list that a JSON file holds under `key`."""
    return lambda path: ((f"{path}[{key}][{index}]", item) for index, item in enumerate(_json(path)[key]))


def _table(delimiter: str) -> Callable[[Path], Iterator[tuple[str, Any]]]:
    def rows(path: Path) -> Iterator[tuple[str, Any]]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file, delimiter=delimiter), start=2):
                yield f"{path}#{number}", {**row, "line": number}

    return rows


def _marco_records(path: Path) -> Iterator[tuple[str, Any]]:
    """v2.1 is one object of columns, each a mapping from row to value; v1.1 is lines."""
    if path.suffix == ".json":
        text = read_content(path).text
        columns = maybe_json(text)
        if isinstance(columns, dict) and isinstance(columns.get("query"), dict):
            for row in columns["query"]:
                yield f"{path}[{row}]", {name: values.get(row) for name, values in columns.items()}
            return
    yield from json_records(path)


_SIMPLE: dict[str, tuple[Callable[[Path], Iterator[tuple[str, Any]]], Callable[[Any], Iterator[Question]]]] = {
    "jsonl": (json_records, questions_of),
    "hotpotqa": (json_records, _hotpotqa),
    "2wikimultihopqa": (json_records, _hotpotqa),
    "musique": (json_records, _musique),
    "nq": (json_records, _natural_questions),
    "squad": (_under("data"), _squad),
    "popqa": (_table("\t"), _popqa),
    "ms_marco": (_marco_records, _ms_marco),
    "dureader": (json_records, _dureader),
}
_CONVERSATIONS = {"locomo": conversations.locomo, "longmemeval": conversations.longmemeval}
FORMATS: tuple[str, ...] = (*_SIMPLE, "triviaqa", "narrativeqa", *_CONVERSATIONS)


def read_set(path: Path, format: str) -> QuestionSet:
    """Read a question set. Records that are malformed, or repeat an id, are named in the result.

    Args:
        format: one of FORMATS. `jsonl` is the form of `docs/evaluation.md`; TriviaQA's evidence is looked for in
            `../evidence`, NarrativeQA's summaries in `third_party/wikipedia/summaries.csv`, both from the file.

    Raises:
        CorpusError: the file cannot be read at all, has no question, or the format is unknown.
    """
    if format not in FORMATS:
        raise CorpusError(f"no reader for {format!r}; the formats are {', '.join(FORMATS)}")
    if format in _CONVERSATIONS:
        return reading(path, format, lambda: _talks(path, format))
    return reading(path, format, lambda: collect(*_reader(path, format)))


def _reader(path: Path, format: str) -> tuple[Iterable[tuple[str, Any]], Callable[[Any], Iterator[Question]]]:
    if format == "triviaqa":
        evidence = path.parent.parent / "evidence"
        return _under("Data")(path), lambda record: _triviaqa(record, evidence)
    if format == "narrativeqa":
        table = _table(",")
        file = path.parent / "third_party" / "wikipedia" / "summaries.csv"
        summaries = {row["document_id"]: row["summary"] for _, row in table(file)}
        return table(path), lambda row: _narrativeqa(row, summaries)
    records, convert = _SIMPLE[format]
    return records(path), convert


def _talks(path: Path, format: str) -> QuestionSet:
    parts: list[conversations.Conversation] = []
    malformed: list[MalformedRecord] = []
    for where, record in json_records(path):
        try:
            parts.append(_CONVERSATIONS[format](record))
        except BAD_RECORD as error:
            malformed.append(MalformedRecord(where, describe(error)))
        else:
            malformed += [MalformedRecord(f"{where}[{place}]", reason) for place, reason in parts[-1].malformed]
    return QuestionSet(
        questions=tuple(question for part in parts for question in part.questions),
        documents={part.namespace: part.documents for part in parts},
        malformed=tuple(malformed),
    )
