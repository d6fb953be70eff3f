"""Conversations as memories: a turn or a session is a document with a date (LoCoMo, LongMemEval)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from memspan.dates import normal_date
from memspan.text.questions import UNDATED, Question
from memspan.types import Document

# LoCoMo's categories (Maharana et al. 2024): 1 multi-hop, 2 temporal, 3 open-domain, 4 single-hop, 5 adversarial.
_LOCOMO_MULTI_HOP, _LOCOMO_ADVERSARIAL = 1, 5
_WEEKDAY = re.compile(r"\s*\([A-Za-z]+\)")
_SESSION = re.compile(r"session_(\d+)")
_TURN = re.compile(r"D\d+:\d+")
_DATE_FORMS = ("%I:%M %p on %d %B, %Y", "%Y/%m/%d %H:%M", "%Y/%m/%d", "%d %B, %Y", "%d %B %Y")


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation: its memory and what is asked about it.

    Attributes:
        malformed: questions that could not be read: place and reason.
    """

    namespace: str
    documents: tuple[Document, ...]
    questions: tuple[Question, ...]
    malformed: tuple[tuple[str, str], ...] = ()


def date_of(text: str) -> str:
    """A date as LoCoMo (`1:56 pm on 8 May, 2023`), LongMemEval (`2023/05/20 (Sat) 02:21`) or ISO 8601 writes it.

    Raises:
        ValueError: it is none of them.
    """
    bare = _WEEKDAY.sub("", text).strip()
    for form in _DATE_FORMS:
        try:
            moment = datetime.strptime(bare, form)
        except ValueError:
            continue
        return moment.isoformat() if "%M" in form else moment.date().isoformat()
    return normal_date(bare)


def locomo(record: Mapping[str, Any]) -> Conversation:
    """A conversation of LoCoMo: every turn is a document, `evidence` names turns. Category 5 has no answer."""
    namespace = str(record.get("sample_id", "conversation"))
    turns: dict[str, Document] = {}
    talk = record["conversation"]
    for key, session in talk.items():
        if _SESSION.fullmatch(key) and session:
            when = date_of(talk[f"{key}_date_time"]) if f"{key}_date_time" in talk else UNDATED
            turns |= {turn["dia_id"]: _turn(namespace, key, turn, when) for turn in session}
    questions: list[Question] = []
    malformed: list[tuple[str, str]] = []
    for number, item in enumerate(record["qa"]):
        try:
            questions.append(_locomo_question(f"{namespace}-{number}", namespace, item, turns))
        except (KeyError, TypeError, ValueError) as error:
            malformed.append((f"qa][{number}", f"{type(error).__name__}: {error}"))
    return Conversation(namespace, tuple(turns.values()), tuple(questions), tuple(malformed))


def _turn(namespace: str, session: str, turn: Mapping[str, Any], date: str) -> Document:
    shown = f"{turn['speaker']}: {turn.get('text', '')}".strip()
    if turn.get("blip_caption"):
        shown += f" [shares {turn['blip_caption']}]"
    metadata = {"speaker": turn["speaker"], "session": session}
    return Document(f"{namespace}/{turn['dia_id']}", shown, metadata=metadata, date=date)


def _locomo_question(name: str, namespace: str, item: Mapping[str, Any], turns: Mapping[str, Document]) -> Question:
    adversarial = item["category"] == _LOCOMO_ADVERSARIAL
    # Some evidence is written as "D8:6; D9:17", and a few turns that it names do not exist.
    named = [turn for text in item.get("evidence", []) for turn in _TURN.findall(text)]
    gold = tuple(turns[turn] for turn in dict.fromkeys(named) if turn in turns)
    return Question(
        id=name,
        question=item["question"],
        answers=() if adversarial else (str(item["answer"]),),
        positives=() if adversarial else gold,
        type="unanswerable" if adversarial else "multi" if len(gold) > 1 else "single",
        hops=len(gold) if item["category"] == _LOCOMO_MULTI_HOP else None,
        namespace=namespace,
    )


def longmemeval(record: Mapping[str, Any]) -> Conversation:
    """A question of LongMemEval with its own history: every session is a document. `_abs` in the id: no answer."""
    name = record["question_id"]
    sessions = zip(record["haystack_session_ids"], record["haystack_dates"], record["haystack_sessions"], strict=True)
    documents = {
        session: Document(f"{name}/{session}", _spoken(turns), metadata={"session": session}, date=date_of(when))
        for session, when, turns in sessions
        if turns
    }
    abstains = str(name).endswith("_abs")
    gold = tuple(documents[session] for session in record["answer_session_ids"] if session in documents)
    question = Question(
        id=name,
        question=record["question"],
        answers=() if abstains else (str(record["answer"]),),
        positives=() if abstains else gold,
        type="unanswerable" if abstains else "multi" if len(gold) > 1 else "single",
        date=date_of(record["question_date"]),
        namespace=name,
    )
    return Conversation(name, tuple(documents.values()), (question,))


def _spoken(turns: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
