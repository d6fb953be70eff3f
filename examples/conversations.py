"""What LongMemEval (arXiv 2410.10813) asks of a memory of conversations, in small: made-up talks of some months with an
assistant, and questions about one session, several, what changed, when, and what was never said.

    python examples/conversations.py [--bank DIR] [--model DIR] [--selector NAME]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from memspan import Answer, Memory

HERE = Path(__file__).parent / "conversations"
DOCUMENTS = 4


@dataclass(frozen=True)
class Question:
    """A question with its answers (any of them) and pieces of the exchanges that it needs (all); none: nobody said."""

    ability: str
    question: str
    answers: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    as_of: str | None = None

    def is_found_in(self, answer: Answer) -> bool:
        """Whether all that it needs was put before the model; of what nobody said, whatever was."""
        texts = [item.text for item in answer.evidence]
        return all(any(piece in text for text in texts) for piece in self.evidence)

    def is_answered_by(self, answer: Answer) -> bool:
        """Whether the answer holds what is expected; of what nobody said, whether it says so."""
        if not self.answers:
            return not answer.answered
        return any(expected.lower() in answer.text.lower() for expected in self.answers)


def read_lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def read_questions() -> list[Question]:
    return [Question(**line) for line in read_lines("questions.jsonl")]


def remember_all(memory: Memory) -> int:
    """Remember every session, exchange by exchange; how many exchanges there are."""
    return sum(
        memory.remember(line["messages"], session=line["session"]).added for line in read_lines("sessions.jsonl")
    )


def ask_all(memory: Memory, questions: Sequence[Question], selector: str | None = None) -> list[Answer]:
    options: dict[str, Any] = {"selector": selector, "max_documents": DOCUMENTS, "text_only": True}
    return [memory.ask(one.question, as_of=one.as_of, **options) for one in questions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=Path, help="folder of the bank; default: a temporary one")
    parser.add_argument("--model", help="a checkpoint folder; default: the model that comes with the package")
    parser.add_argument("--selector", help="default: the memory's own")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        bank = arguments.bank or Path(scratch) / "talks"
        with Memory.open(bank, arguments.model, create=True) as memory:
            print(f"remembered {remember_all(memory)} exchanges")
            questions = read_questions()
            answers = ask_all(memory, questions, arguments.selector)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for question, answer in zip(questions, answers, strict=True):
        found, right = question.is_found_in(answer), question.is_answered_by(answer)
        for number, value in enumerate((1, found, right)):
            counts[question.ability][number] += value
        print(f"{'found' if found else '     '} {'right' if right else '     '}  {question.question}  {answer.text}")
    print(f"\n{'ability':30} questions  found  right")
    for ability, (asked, found, right) in counts.items():
        print(f"{ability:30} {asked:9} {found:6} {right:6}")


if __name__ == "__main__":
    main()
