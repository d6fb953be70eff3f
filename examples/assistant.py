"""An assistant with a long history: one namespace per person, the same question again and again as the history grows.

    python examples/assistant.py [--bank DIR]

The answer stays the same through months of talk about other things, until the fact itself changes; what one person
said is never seen when another is asked about. Asked `as_of` an earlier day, the memory answers as it would have then.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from transformers.utils import logging

from memspan import Memory

QUESTION = "Which city does Ann live in?"
ANN = (
    ("2025-01-10", "Hello! I am Ann. I live in the city of Ghent."),
    ("2025-01-12", "My sister is called Julia, she is a baker."),
    ("2025-02-03", "Can you recommend a book about bees?"),
    ("2025-02-20", "I started to learn the cello, it is hard on the fingers."),
    ("2025-03-15", "The car broke down again, the repair costs 400 euros."),
    ("2025-04-02", "Julia has opened her own shop."),
    ("2025-05-30", "Big news: I moved house. I live in the city of Lisbon now."),
    ("2025-06-11", "I found a new cello teacher."),
    ("2025-07-08", "It is very hot here, I water the tomatoes twice a day."),
)
BOB = (("2025-03-01", "I am Bob, a friend of Ann. I live in the city of Oslo."),)


def told(memory: Memory, as_of: str | None = None) -> str:
    answer = memory.ask(QUESTION, max_documents=2, as_of=as_of)
    return f"{answer.text}   (from what was said {', '.join(item.date for item in answer.evidence)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=Path, help="folder of the bank; default: a temporary one")
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        bank = parser.parse_args().bank or Path(scratch) / "lives"
        with Memory.open(bank, create=True, namespace="ann") as ann:
            bob = ann.in_namespace("bob")
            for date, turn in BOB:
                bob.remember(turn, speaker="Bob", date=date)
            for date, turn in ANN:
                ann.remember(turn, speaker="Ann", session="2025", date=date)
                print(f"{date}  {told(ann)}")
            print(f"as of 2025-03-01: {told(ann, as_of='2025-03-01')}")
            print(f"asked of Bob's memory: {told(bob)}")


if __name__ == "__main__":
    main()
