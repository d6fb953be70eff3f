"""A folder of many small files: how long `sync` takes to remember their texts, and to see that nothing changed.

    python benchmarks/sync.py [--files 10000] [--json FILE]

Both run in one process. Nothing is encoded: the texts are found by words when the first sync ends. Then `add` of the
same files to a bank of its own, which encodes behind, and `ask` as soon as all texts are there: seconds from the start
of the one to the first letter of the other's answer, each a process of its own. The files are made up, of some 60 words
each, in folders of a hundred.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from plots import add_json, write_json

from memspan.bank.bank import MemoryBank
from memspan.bank.texts import TextBank
from memspan.generate.memory import Memory

MEMSPAN = (sys.executable, "-m", "memspan")
NUM_WORDS, IN_A_FOLDER = 60, 100


def write_files(folder: Path, count: int) -> None:
    """Files that were written an hour ago."""
    chooser = random.Random(0)
    then = time.time_ns() - 3600 * 10**9
    for number in range(count):
        path = folder / f"{number // IN_A_FOLDER:04}" / f"{number:06}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        words = " ".join(f"word{chooser.randrange(20_000)}" for _ in range(NUM_WORDS))
        path.write_text(f"# File {number}\n\n{words}\n", "utf-8")
        os.utime(path, ns=(then, then))


def measure(count: int) -> dict[str, Any]:
    """Seconds of both."""
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch) / "files"
        write_files(files, count)
        with Memory.open(Path(scratch) / "bank", create=True) as memory:
            seconds: dict[str, Any] = {"files": count}
            for name in ("remembered", "checked"):
                begin, cpu = time.perf_counter(), time.process_time()
                report = memory.sync(files, later=True)
                seconds[name] = round(time.perf_counter() - begin, 2)
                seconds[f"{name}_cpu"] = round(time.process_time() - cpu, 2)
            assert report.plan.unchanged == count and len(memory) == count, "all are in the bank, and nothing changed"
            tokens = sum(memory.loaded.template.count_tokens(document.text) for document in memory.list(limit=count))
        return seconds | {"tokens": tokens} | first_answer(Path(scratch), files, count)


def first_answer(scratch: Path, files: Path, count: int) -> dict[str, Any]:
    """Seconds from the start of `add` until all texts are remembered, and to the first letter of an answer."""
    bank, begin = scratch / "added", time.perf_counter()
    adding = subprocess.Popen([*MEMSPAN, "add", bank, files], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not MemoryBank.exists(bank) or _num_sources(bank) < count:
            assert adding.poll() is None, "add ended before its texts were there"
            time.sleep(0.2)
        texts = time.perf_counter() - begin
        question = f"What stands in file {count // 2}?"
        with subprocess.Popen([*MEMSPAN, "ask", bank, question], stdout=subprocess.PIPE, bufsize=0) as asking:
            assert asking.stdout is not None and asking.stdout.read(1), "no answer"
            answered = time.perf_counter() - begin
        assert adding.poll() is None, "add was still encoding"
    finally:
        adding.terminate()
        adding.wait()
    return {"added_texts": round(texts, 2), "first_answer": round(answered, 2)}


def _num_sources(bank: Path) -> int:
    with closing(TextBank.open(bank)) as texts:
        return texts.catalog.counts().sources


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    add_json(parser)
    options = parser.parse_args()
    print(write_json(options.json, measure(options.files)))


if __name__ == "__main__":
    main()
