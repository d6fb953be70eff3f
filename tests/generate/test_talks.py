"""The check of examples/conversations.py, with a tiny model: what it remembers, finds by words, and asks."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import tiny_loaded

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.generate.memory import Memory

SCRIPT = Path(__file__).parents[2] / "examples" / "conversations.py"


@pytest.fixture(scope="module")
def talks() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.fixture(scope="module")
def memory(talks: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Memory:
    loaded = tiny_loaded()
    memory = Memory(MemoryBank.create(tmp_path_factory.mktemp("talks") / "bank", manifest_of(loaded)), loaded)
    memory.later = True
    assert talks.remember_all(memory) == 17
    return memory


def test_every_question_can_be_answered_from_what_was_said(talks: SimpleNamespace, memory: Memory) -> None:
    for question in talks.read_questions():
        texts = [document.text for document in memory.list(as_of=question.as_of)]
        holding = [text for piece in question.evidence for text in texts if piece in text]
        assert len(holding) == len(question.evidence), question.question
        said = " ".join(holding).lower()
        assert not question.answers or any(answer.lower() in said for answer in question.answers), question.question
        assert bool(question.answers) == bool(question.evidence)


def test_words_find_most_and_sessions_are_dated(talks: SimpleNamespace, memory: Memory) -> None:
    questions = talks.read_questions()
    answers = talks.ask_all(memory, questions, "lexical")
    missed = {one.ability for one, answer in zip(questions, answers, strict=True) if not one.is_found_in(answer)}
    assert missed <= {"knowledge update, as of then", "time"}, "these need what was said before"
    assert [item.date for item in memory.about("Trieste")] == ["2025-06-17T10:20:00"]
    sessions = {str(document.metadata["session"]) for document in memory.list(where={"date": {"<": "2025-02"}})}
    assert sessions == {"2025-01-10 garden", "2025-01-24 kitchen"}
