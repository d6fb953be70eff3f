"""What `make demo` runs: remember two corpora, ask 15 questions, show every answer as it came, with its evidence.

The corpora are the notes beside this file and the Python packages installed in this environment. Nothing is tuned to
the questions; the summary at the end counts answers that hold an expected string and evidence that holds the answer.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from transformers.utils import logging

from memspan import Answer, Document, Memory, Turn
from memspan.model.shipped import DEFAULT_SOURCE
from memspan.text.corpus import read_paths
from memspan.text.installed import installed_packages

HERE = Path(__file__).parent
QUESTIONS = (HERE / "questions.jsonl", HERE / "package_questions.jsonl")
SHOWN = 3


@dataclass(frozen=True)
class Question:
    """A question whose answer is known, after the turns of a conversation, if any."""

    text: str
    answers: tuple[str, ...]
    turns: tuple[Turn, ...] = ()

    def answered_by(self, text: str) -> bool:
        """Whether a text holds one of the accepted answers, in any case."""
        return any(answer.lower() in text.lower() for answer in self.answers)


def read_questions(paths: Sequence[Path] = QUESTIONS) -> Iterator[Question]:
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            turns = tuple(Turn(question, answer) for question, answer in values.get("turns", ()))
            yield Question(values["question"], tuple(values["answers"]), turns)


def corpus() -> Iterator[Document]:
    for found in chain(read_paths([HERE / "notes"]), installed_packages()):
        if isinstance(found, Document):
            yield found


def show(question: Question, answer: Answer) -> tuple[bool, bool]:
    """Print one answer; return whether it holds the expected string, and whether the first documents do."""
    answered = question.answered_by(answer.text)
    supported = any(question.answered_by(item.text) for item in answer.evidence[:SHOWN])
    print(f"\nQ: {question.text}\nA: {answer.text}")
    for item in answer.evidence[:SHOWN]:
        mark = "*" if question.answered_by(item.text) else " "
        print(f"   {mark} [{item.document_id}] {item.title}  ({item.external_id}, {item.score:.1f})")
    print(f"   expected {' / '.join(question.answers)}: {'in the answer' if answered else 'not in the answer'}")
    return answered, supported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bank", type=Path, default=None, help="folder of the bank; kept, reused")
    parser.add_argument("--model", default=DEFAULT_SOURCE, help="a checkpoint folder, or the name of a known backbone")
    parser.add_argument("--questions", type=Path, nargs="+", default=QUESTIONS, help="files of questions")
    arguments = parser.parse_args()
    bank = arguments.bank or Path(".memspan") / f"demo-{Path(arguments.model).name}"
    logging.disable_progress_bar()

    started = time.monotonic()
    with Memory.open(bank, arguments.model, create=True) as memory:
        print(f"model: {arguments.model}; bank: {bank}")
        report = memory.add(corpus())
        print(
            f"remembered {report.added + report.updated} documents ({report.unchanged} were there already), "
            f"{report.tokens:,} tokens, {report.seconds:.0f} s"
        )
        questions = list(read_questions(arguments.questions))
        results = [show(one, memory.ask(one.text, history=one.turns)) for one in questions]
        counts = memory.bank.catalog.counts()
    answered, supported = (sum(column) for column in zip(*results, strict=True))
    print(
        f"\n{len(results)} questions over {counts.documents} documents: {answered} answers hold the expected string, "
        f"{supported} have a document that holds it among the first {SHOWN}; {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
