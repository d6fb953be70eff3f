"""Make the tables of docs/evaluation.md from a folder of data, or a small form of each from the examples alone.

    python docs/make_tables.py --data DATA --out FOLDER [--model NAME]
    python docs/make_tables.py --small --out FOLDER [--data DATA]

Each table is a command, which is printed and can be run by itself. Stopped, the same command goes on: what is finished
is not made again. FOLDER/tables.md holds all tables with their commands. DATA holds, as far as there is:

    dev/NAME_dev.jsonl*   questions in memspan's form; dev/bank.jsonl*, distractors of all sets
    text/books.*          the text of haystacks; text/wiki_passages.*, what the scale curve grows by
    locomo10.*, longmemeval_s*    conversations, as they are published
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from memspan.errors import MemspanError
from memspan.eval.niah import TASKS
from memspan.files import write_text
from memspan.generate.selectors import check_packages
from memspan.text.questions import UNDATED, read_questions

ROOT = Path(__file__).parents[1]
QA = "none,oracle,bm25@3,dense@3,fused@3,fused@10+rerank,router@3,hybrid@3,hybrid@10+adaptive,hybrid@3-latents"
NEEDLES = "oracle,bm25@3,router@3,hybrid@3,hybrid@3+adaptive"
SCALE = "bm25@3,router@3,hybrid@3"
ABLATIONS = "hybrid@5+rounds,hybrid@5,hybrid@5-latents,hybrid@0"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes:
        memory: tokens of a question set's memory; None: all distractors.
        needles: tokens of haystacks. sizes: of the scale curve.
    """

    questions: int
    memory: int | None
    needles: tuple[int, ...]
    needle_questions: int
    sizes: str
    scale_questions: int
    rerank_depth: int


FULL = Size(200, None, (32_768, 131_072, 1_000_000), 10, "16K,64K,256K,1M,4M", 50, 100)
SMALL = Size(6, 8_000, (2_048,), 1, "2K,4K,6K", 6, 5)


@dataclass(frozen=True, slots=True)
class Table:
    """One table: the commands that make it, and the file that the last of them writes at its end.

    Beside that file stands `table.md`: what the last command prints, unless it writes one itself.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    result: Path

    @property
    def shown(self) -> list[str]:
        """The commands as people write them."""
        return [shlex.join(words if words[0] == "memspan" else ("python", *words)) for words in self.commands]

    def make(self) -> int:
        """Run the commands that are still to be run; the exit code of the last one."""
        text = self.result.with_name("table.md")
        text.parent.mkdir(parents=True, exist_ok=True)
        for words in () if self.result.exists() else self.commands:
            run = ("-m", *words) if words[0] == "memspan" else (str(ROOT / words[0]), *words[1:])
            done = subprocess.run([sys.executable, *run], stdout=subprocess.PIPE, encoding="utf-8", check=False)
            if done.returncode:
                return done.returncode
            if words == self.commands[-1] and not text.exists():
                write_text(text, f"```text\n{done.stdout}```\n")
        return 0


def tables(data: Path, out: Path, size: Size, model: Sequence[str]) -> Iterator[Table]:
    """The tables that can be made of what a folder holds."""
    bank, texts = one(data / "dev", "bank.jsonl"), one(data / "text", "books")
    sets = [path for path in sorted((data / "dev").glob("*_dev.jsonl*")) if read_questions(path).questions[0].answers]
    base = ("--questions", str(size.questions), "--rerank-depth", str(size.rerank_depth), *model)
    memory = () if size.memory is None else ("--memory-tokens", str(size.memory))
    files = () if bank is None else ("--distractors", str(bank))

    def evaluated(name: str, task: str, arms: str, *options: str, result: str = "result.json") -> Table:
        folder = out / name
        return Table(
            name, (("memspan", "eval", task, "--out", str(folder), "--arms", arms, *options),), folder / result
        )

    def scripted(name: str, *words: str, before: Sequence[tuple[str, ...]] = ()) -> Table:
        result = out / name / "result.json"
        return Table(name, (*before, (f"benchmarks/{name}.py", *words, "--json", str(result))), result)

    if bank and sets:
        folder = str(out / "retrieval" / "bank")
        known = ("--questions", str(size.questions)) if size.memory else ()
        added = ("memspan", "add", folder, str(bank), *model)
        yield scripted("retrieval", folder, *map(str, sets), *known, *model, before=[added])
    if texts:
        yield scripted("needles", "--haystack", str(texts), "--tokens", str(size.needles[-1]))

    for path in sets:
        name = path.name.partition("_dev")[0]
        yield evaluated(f"qa-{name}", "jsonl", installed(QA), "--data", str(path), *base, *files, *memory)
    chosen = [path for path in sets if path.name.startswith("hotpotqa")] or sets
    for path in chosen[:1]:
        yield evaluated("ablations", "jsonl", ABLATIONS, "--data", str(path), *base, *files, *memory)
    for tokens in size.needles if texts else ():
        for task in TASKS:
            options = ("--memory-tokens", str(tokens), "--questions", str(size.needle_questions), *model)
            yield evaluated(f"needles-{tokens}-{task}", task, NEEDLES, "--haystack", str(texts), *options)
    grown = one(data / "text", "wiki_passages") or bank
    for path in chosen[:1] if grown else ():
        options = ("--data", str(path), "--distractors", str(grown), "--sizes", size.sizes)
        options += ("--questions", str(size.scale_questions), *model)
        yield evaluated("scale", "scale", SCALE, *options, result="scale.json")
    for task, name in (("locomo", "locomo10"), ("longmemeval", "longmemeval_s")):
        if path := one(data, name):
            yield evaluated(task, task, installed(QA), "--data", str(path), *base)


def one(folder: Path, beginning: str) -> Path | None:
    """The file of a folder whose name begins so; None where there is none."""
    return next(iter(sorted(path for path in folder.glob(f"{beginning}*") if path.is_file())), None)


def installed(arms: str) -> str:
    """Those of the arms whose packages are installed."""

    def can_run(arm: str) -> bool:
        try:
            check_packages(arm.partition("@")[0])
        except MemspanError:
            return False
        return True

    return ",".join(arm for arm in arms.split(",") if arm.partition("@")[0] not in ("dense", "fused") or can_run(arm))


# Data of the examples -------------------------------------------------------------------------------------------------


def write_example_data(folder: Path) -> None:
    """A folder of data made of the examples and pages of this repository."""
    notes = {path.relative_to(ROOT / "examples").as_posix(): path for path in (ROOT / "examples/notes").rglob("*.md")}
    texts = {name: path.read_text("utf-8") for name, path in notes.items()}
    write_lines(folder / "dev" / "bank.jsonl", [{"external_id": name, "text": text} for name, text in texts.items()])
    questions = [
        {
            "id": f"example-{number}",
            "question": item["question"],
            "answers": item["answers"],
            "positives": [{"title": "", "text": texts[name]} for name in item["documents"]],
            "type": "single" if item["needs"] == "one" else "multi",
        }
        for number, item in enumerate(read_lines(ROOT / "examples" / "questions.jsonl"))
    ]
    write_lines(folder / "dev" / "examples_dev.jsonl", questions)
    pages = [{"text": path.read_text("utf-8")} for path in sorted((ROOT / "docs").glob("*.md"))]
    write_lines(folder / "text" / "books.jsonl", pages)
    write_lines(folder / "longmemeval_s.jsonl", list(example_conversations()))


def example_conversations() -> Iterator[dict[str, object]]:
    """The questions about the example conversations in the form of LongMemEval."""
    sessions = list(read_lines(ROOT / "examples" / "conversations" / "sessions.jsonl"))
    names = [session["session"] for session in sessions]
    spoken = [[{"role": one["role"], "content": one["content"]} for one in found["messages"]] for found in sessions]
    for number, item in enumerate(read_lines(ROOT / "examples" / "conversations" / "questions.jsonl")):
        evidence = [
            name
            for name, turns in zip(names, spoken, strict=True)
            if any(part in turn["content"] for part in item["evidence"] for turn in turns)
        ]
        yield {
            "question_id": f"example-{number}" + ("" if item["answers"] else "_abs"),
            "question": item["question"],
            "answer": item["answers"],
            "question_date": "2026-01-01",
            "haystack_session_ids": names,
            "haystack_dates": [session["messages"][0].get("date", UNDATED) for session in sessions],
            "haystack_sessions": spoken,
            "answer_session_ids": evidence,
        }


def read_lines(path: Path) -> Iterator[dict]:
    yield from map(json.loads, path.read_text("utf-8").splitlines())


def write_lines(path: Path, records: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


# Making ---------------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="needed unless --small")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="a small form of each, of the examples alone")
    parser.add_argument("--model")
    parser.add_argument("--list", action="store_true", help="print the commands, and run none")
    options = parser.parse_args(arguments)
    if options.data is None and not options.small:
        parser.error("name the folder of the data (--data), or make the small form from the examples (--small)")
    data = options.data or options.out / "data"
    if options.data is None:
        write_example_data(data)
    size, model = (SMALL if options.small else FULL), ("--model", options.model) if options.model else ()
    wanted = list(tables(data, options.out, size, model))
    if not wanted:
        parser.error(f"{data} holds none of the files that tables are made of; see --help")
    for number, table in enumerate(wanted, start=1):
        print(f"[{number} of {len(wanted)}]", *table.shown, sep="\n  ", flush=True)
        if not options.list and (code := table.make()):
            return code
    if not options.list:
        write_text(options.out / "tables.md", "\n".join(map(section, wanted)))
    return 0


def section(table: Table) -> str:
    """A table with its title and commands."""
    commands = "\n".join(f"$ {line}" for line in table.shown)
    return f"## {table.name}\n\n```console\n{commands}\n```\n\n{table.result.with_name('table.md').read_text('utf-8')}"


if __name__ == "__main__":
    sys.exit(main())
