"""Conversations as memories: a turn or a session is a document with a date (LoCoMo, LongMemEval)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from memspan.dates import normal_date
from memspan.eval.records import Text, Texts, read_as
from memspan.text.questions import UNDATED, Question, checked_answers
from memspan.types import Document

# LoCoMo's categories (Maharana et al. 2024): 1 multi-hop, 2 temporal, 3 open-domain, 4 single-hop, 5 adversarial.
_LOCOMO_CATEGORIES = range(1, 6)
_LOCOMO_MULTI_HOP, _LOCOMO_OPEN_DOMAIN, _LOCOMO_ADVERSARIAL = 1, 3, 5
_WEEKDAY = re.compile(r"\s*\([A-Za-z]+\)")
_SESSION = re.compile(r"session_(\d+)")
_TURN = re.compile(r"D:?(\d+):(\d+)")
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


def _date_under(key: str, value: Any) -> str:
    """
    Raises:
        ValueError: a record holds no date under this key.
    """
    try:
        return date_of(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}: {value!r:.60} is not a date; write it as 2026-03-01") from error


# LoCoMo ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _LocomoTurn:
    speaker: Text
    dia_id: Text
    text: Text | None = None
    blip_caption: Text | None = None


@dataclass(frozen=True, slots=True)
class _LocomoQuestion:
    question: Text
    category: int
    answer: Texts = field(default_factory=list)
    evidence: Texts = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Locomo:
    sample_id: Text
    conversation: dict[str, Any]
    qa: list[Any]


def locomo(record: Mapping[str, Any]) -> Conversation:
    """A conversation of LoCoMo: every turn is a document, `evidence` names turns. Category 5 has no answer."""
    found = read_as(_Locomo, record)
    turns: dict[str, Document] = {}
    for key, session in found.conversation.items():
        if _SESSION.fullmatch(key) and session:
            moment = found.conversation.get(f"{key}_date_time")
            when = _date_under(f"conversation.{key}_date_time", moment) if moment else UNDATED
            for turn in read_as(list[_LocomoTurn], session, f"conversation.{key}"):
                name = _turn_name(turn.dia_id)
                if name in turns:
                    raise ValueError(f"conversation.{key}: the dia_id {turn.dia_id!r} was read before")
                turns[name] = _turn(found.sample_id, key, turn, when)
    questions: list[Question] = []
    malformed: list[tuple[str, str]] = []
    for number, item in enumerate(found.qa):
        try:
            questions.append(_locomo_question(f"{found.sample_id}-{number}", found.sample_id, item, turns))
        except ValueError as error:
            malformed.append((f"qa[{number}]", str(error)))
    return Conversation(found.sample_id, tuple(turns.values()), tuple(questions), tuple(malformed))


def _turn(namespace: str, session: str, turn: _LocomoTurn, date: str) -> Document:
    shown = f"{turn.speaker}: {turn.text or ''}".strip()
    if turn.blip_caption:
        shown += f" [shares {turn.blip_caption}]"
    metadata = {"speaker": turn.speaker, "session": session}
    return Document(f"{namespace}/{turn.dia_id}", shown, metadata=metadata, date=date)


def _turn_name(text: str) -> str:
    """The name of a turn in one form: D30:5, which evidence also writes as D30:05 and D:30:5."""
    match = _TURN.fullmatch(text)
    return f"D{int(match[1])}:{int(match[2])}" if match else text


def _locomo_question(name: str, namespace: str, item: Any, turns: Mapping[str, Document]) -> Question:
    found = read_as(_LocomoQuestion, item)
    if found.category not in _LOCOMO_CATEGORIES:
        raise ValueError(f"category: must be a number from 1 to 5, not {found.category}")
    adversarial = found.category == _LOCOMO_ADVERSARIAL
    if not adversarial and not found.answer:
        raise ValueError("the key 'answer' is missing, or null")
    # Some evidence is written as "D8:6; D9:17", and a few turns that it names do not exist.
    named = [_turn_name(turn[0]) for text in found.evidence for turn in _TURN.finditer(text)]
    gold = tuple(turns[turn] for turn in dict.fromkeys(named) if turn in turns)
    # In category 3 an explanation may follow the answer. LoCoMo's own evaluation cuts it off, too.
    answers = [one.partition(";")[0] if found.category == _LOCOMO_OPEN_DOMAIN else one for one in found.answer]
    return Question(
        id=name,
        question=found.question,
        answers=() if adversarial else checked_answers(answers),
        positives=() if adversarial else gold,
        type="unanswerable" if adversarial else "multi" if len(gold) > 1 else "single",
        hops=len(gold) or None if found.category == _LOCOMO_MULTI_HOP else None,
        namespace=namespace,
    )


# LongMemEval ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _ChatTurn:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class _LongMemEval:
    question_id: Text
    question: Text
    answer: Texts
    question_date: str
    haystack_session_ids: list[Text]
    haystack_dates: list[str]
    haystack_sessions: list[list[_ChatTurn]]
    answer_session_ids: list[Text]


def longmemeval(record: Mapping[str, Any]) -> Conversation:
    """A question of LongMemEval (S, M or oracle) with its own history: every session is a document.

    `_abs` in the id: no answer. Sessions without a turn have no document.
    """
    found = read_as(_LongMemEval, record)
    name, documents = found.question_id, _sessions(found)
    abstains = name.endswith("_abs")
    if not abstains and not found.answer:
        raise ValueError("answer: null")
    lacking = [session for session in found.answer_session_ids if session not in documents]
    if lacking and not abstains:
        raise ValueError(f"answer_session_ids names {lacking[0]!r}, of which haystack_sessions has no turn")
    gold = tuple(documents[session] for session in dict.fromkeys(found.answer_session_ids) if not abstains)
    question = Question(
        id=name,
        question=found.question,
        answers=() if abstains else checked_answers(found.answer),
        positives=gold,
        type="unanswerable" if abstains else "multi" if len(gold) > 1 else "single",
        date=_date_under("question_date", found.question_date),
        namespace=name,
    )
    return Conversation(name, tuple(documents.values()), (question,))


def _sessions(found: _LongMemEval) -> dict[str, Document]:
    """The sessions with turns by their ids. A second, other one of the same id is `ID#2`.

    Raises:
        ValueError: ids, dates and sessions are not as many.
    """
    counts = {key: len(getattr(found, key)) for key in ("haystack_session_ids", "haystack_dates", "haystack_sessions")}
    if len(set(counts.values())) > 1:
        raise ValueError("the lists differ in length: " + ", ".join(f"{key} {count}" for key, count in counts.items()))
    documents: dict[str, Document] = {}
    sessions = zip(found.haystack_session_ids, found.haystack_dates, found.haystack_sessions, strict=True)
    for session, moment, turns in sessions:
        text, when = "\n".join(f"{turn.role}: {turn.content}" for turn in turns), _date_under("haystack_dates", moment)
        known = [one for one in documents.values() if one.metadata["session"] == session]
        if turns and (text, when) not in [(one.text, one.date) for one in known]:
            key = f"{session}#{len(known) + 1}" if known else session
            documents[key] = Document(f"{found.question_id}/{key}", text, metadata={"session": session}, date=when)
    return documents
