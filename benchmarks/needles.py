"""What making a haystack costs: seconds and memory for every needle task at one length.

    python benchmarks/needles.py --haystack FILE... [--tokens 1000000] [--json FILE]

Each task runs in a process of its own, so that its peak memory (of the whole process, with the model's tokenizer and
the imports) is its own. A haystack is streamed as a run streams it: once to find its gold documents, and counted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from typing import Any

from plots import add_json, write_json
from transformers import AutoTokenizer

from memspan.config import TEMPLATES
from memspan.eval import niah
from memspan.eval.tasks import texts_of
from memspan.model.convert import known_checkpoint
from memspan.model.shipped import DEFAULT_SOURCE
from memspan.text.template import PromptTemplate


def measure(task: str, tokens: int, texts: list[str]) -> dict[str, Any]:
    """Make one haystack."""
    tokenizer = AutoTokenizer.from_pretrained(known_checkpoint(DEFAULT_SOURCE), local_files_only=True)
    count = PromptTemplate(TEMPLATES["chatml"], tokenizer).count_tokens
    started = time.perf_counter()
    cpu = time.process_time()
    essays = niah.Essays((document.text for document in texts_of(texts)), count)
    sample = niah.make_haystack(task, tokens, index=0, count_tokens=count, essays=essays)
    question, found = sample.as_question()
    return {
        "task": task,
        "tokens": found,
        "gold_documents": len(question.positives),
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--haystack", nargs="+", required=True, help="files of real text")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    add_json(parser)
    arguments = parser.parse_args()
    rows = []
    for task in niah.TASKS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measure, (task, arguments.tokens, arguments.haystack)))
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    write_json(arguments.json, {"rows": rows})


if __name__ == "__main__":
    main()
