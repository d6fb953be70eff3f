"""A folder of many small files: how long `sync` takes to remember their texts, and to see that nothing changed.

    python benchmarks/sync.py [--files 10000] [--json FILE]

Both run in one process. Nothing is encoded: the texts are found by words when the first sync ends. The files are made
up, of some 60 words each, in folders of a hundred.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from plots import add_json, write_json

from memspan.generate.memory import Memory

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
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    add_json(parser)
    options = parser.parse_args()
    print(write_json(options.json, measure(options.files)))


if __name__ == "__main__":
    main()
