"""A run: encode the memories, ask every question in every arm, keep every row, sum up. Stopped, it continues.

Writes into its folder:

    config.json      what was asked for and by which model; a run is continued only with an equal one
    bank/            the memories, a namespace each; encoded once
    encoding.jsonl   a line for each memory: documents, tokens, seconds
    rows.jsonl       a line for each question in each arm, written when it is answered
    result.json      everything: config, machine, memories, summaries, comparisons, rows
    table.md         the summaries for people; plot.png, where matplotlib is installed
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.errors import EvaluationError
from memspan.eval import arms as arms_
from memspan.eval import report
from memspan.eval.arms import Arm, DenseRetriever, Ranking, parse_arm
from memspan.eval.scoring import Row, as_json, compare, main_score, score, summarise
from memspan.eval.tasks import Task, TaskSettings, build_task
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.model.convert import LoadedModel
from memspan.text.questions import Question

CONFIG, ENCODING, ROWS, RESULT, TABLE = "config.json", "encoding.jsonl", "rows.jsonl", "result.json", "table.md"
BANK = "bank"
FORMAT_VERSION = 1

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What is measured, and how.

    Attributes:
        arms: names as `arms` lists them.
        max_new_tokens: None: as the task has it. prompt_tokens: of a whole prompt, the same for every arm.
        batch: questions answered together; the answers are those of one at a time but for rounding.
        seed: of the bootstrap.
    """

    task: TaskSettings
    arms: tuple[str, ...]
    max_new_tokens: int | None = None
    prompt_tokens: int | None = None
    batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """
        Raises:
            EvaluationError: an arm is unknown or named twice, or there is none.
        """
        names = [arm.name for arm in self.parsed_arms()]
        if not names or len(set(names)) < len(names):
            raise EvaluationError("name each arm once, and at least one: --arms none,bm25@5,oracle")
        if self.batch < 1:
            raise EvaluationError(f"--batch must be at least 1, not {self.batch}")

    def parsed_arms(self) -> list[Arm]:
        return [parse_arm(name) for name in self.arms]

    @property
    def sampling(self) -> Sampling:
        return Sampling(max_new_tokens=self.max_new_tokens or self.task.max_new_tokens)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: whether it was stopped, and the arms that could not be run, with the reason."""

    interrupted: bool
    refused: dict[str, str]
    malformed: int


def run(
    loaded: LoadedModel,
    settings: RunSettings,
    out: Path,
    *,
    dense: DenseRetriever | None = None,
    tell: Tell = lambda line: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Measure. Everything is in `out` (see above); called again with the same settings, what is done is not redone.

    Args:
        dense: the retriever of the arm `dense`.
        tell: is given a line about the progress now and then.
        should_stop: asked after every batch.

    Raises:
        EvaluationError: `out` holds a run with other settings or of another model, or the task cannot be made.
        CorpusError: a file cannot be read.
    """
    config = _config(loaded, settings)
    _keep_config(out, config)
    task = build_task(settings.task, loaded.template.count_tokens)
    tell(f"{len(task.questions)} questions, {sum(plan.tokens for plan in task.memories.values()):,} tokens of memory")
    bank_folder = out / BANK
    bank = MemoryBank.open(bank_folder) if MemoryBank.exists(bank_folder) else None
    with Memory(bank or MemoryBank.create(bank_folder, manifest_of(loaded)), loaded) as memory:
        if not _encode(memory, task, out / ENCODING, tell, should_stop):
            return Outcome(True, {}, len(task.malformed))
        asking = _Asking(memory, settings, task, out / ROWS, dense, tell)
        finished = asking.run(should_stop)
        if finished:
            _write_results(out, config, task, asking, loaded)
        return Outcome(not finished, asking.refused, len(task.malformed))


# Configuration --------------------------------------------------------------------------------------------------------


def _config(loaded: LoadedModel, settings: RunSettings) -> dict[str, Any]:
    """What must be equal for a run to be continued."""
    model = loaded.model.config
    return {
        "format_version": FORMAT_VERSION,
        "settings": as_json(settings),
        "arms": [arm.name for arm in settings.parsed_arms()],
        "sampling": as_json(settings.sampling),
        "model": {
            "manifest": as_json(manifest_of(loaded)),
            "backbone": model.text_config.model_type,
            "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
            "backbone_fingerprint": model.backbone_fingerprint,
            "router_trained": model.router_trained,
            "top_k_docs": model.top_k_docs,
            "position_offset": model.offset,
            "template": as_json(model.template_spec),
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
        },
    }


def _keep_config(out: Path, config: dict[str, Any]) -> None:
    """Write the config of a new run, or check it against the one that is there.

    Raises:
        EvaluationError: they differ, or the folder holds something else.
    """
    path = out / CONFIG
    if path.is_file():
        known = json.loads(path.read_text("utf-8"))
        if known != json.loads(json.dumps(config)):
            differing = ", ".join(sorted(_differences(known, json.loads(json.dumps(config)))))
            raise EvaluationError(f"{out} holds a run with another {differing}; name another folder, or remove it")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EvaluationError(f"{out} exists and is not a run of this command; name another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(config, indent=1))


def _differences(first: Any, second: Any, where: str = "") -> Iterator[str]:
    """Names of the values in which two JSON objects differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in first.keys() | second.keys():
            yield from _differences(first.get(key), second.get(key), f"{where}.{key}" if where else key)
    elif first != second:
        yield where


def machine(loaded: LoadedModel) -> dict[str, Any]:
    """Where a run was made."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(loaded.model.device),
        **{name: _version(name) for name in ("memspan", "torch", "transformers")},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "run from its source, not installed"


# Encoding -------------------------------------------------------------------------------------------------------------


def _encode(memory: Memory, task: Task, log: Path, tell: Tell, should_stop: Callable[[], bool]) -> bool:
    """Encode every memory that is not complete yet; False if it was stopped before it was done."""
    done = {line["namespace"] for line in _read_lines(log) if line["complete"]}
    for namespace, plan in task.memories.items():
        if namespace in done:
            continue
        report_ = memory.in_namespace(namespace).add(
            plan.documents(),
            should_stop=should_stop,
            progress=lambda report: tell(f"encoding: {report.documents} documents, {report.tokens:,} tokens"),
        )
        line = {
            "namespace": namespace,
            "complete": not report_.interrupted,
            "memory_tokens": plan.tokens,
            "sources": report_.added,
            "documents": report_.documents,
            "encoded_tokens": report_.tokens,
            "seconds": report_.seconds,
        }
        _append(log, [line])
        if report_.interrupted:
            return False
    return True


# Asking ---------------------------------------------------------------------------------------------------------------


class _Asking:
    """Questions on their way to rows.

    Attributes:
        refused: arms that could not be run, with the reason.
    """

    def __init__(
        self,
        memory: Memory,
        settings: RunSettings,
        task: Task,
        path: Path,
        dense: DenseRetriever | None,
        tell: Tell,
    ) -> None:
        self._memory, self._settings, self._task, self._path = memory, settings, task, path
        self._dense, self._tell = dense, tell
        self._rankings: dict[tuple[str, str], Ranking] = {}
        self.rows = {(row.arm, row.id): row for row in map(Row.from_json, _read_lines(path))}
        self.refused: dict[str, str] = {}

    def run(self, should_stop: Callable[[], bool]) -> bool:
        """Answer what is not answered yet; False if stopped before that."""
        for arm in self._settings.parsed_arms():
            for namespace in self._task.memories:
                pending = [
                    question
                    for question in self._task.questions
                    if question.namespace == namespace and (arm.name, question.id) not in self.rows
                ]
                for start in range(0, len(pending), self._settings.batch):
                    if should_stop():
                        return False
                    try:
                        self._answer(arm, namespace, pending[start : start + self._settings.batch])
                    except EvaluationError as error:
                        self.refused[arm.name] = str(error)
                        break
        return True

    def _answer(self, arm: Arm, namespace: str, questions: Sequence[Question]) -> None:
        memory, settings = self._memory.in_namespace(namespace), self._settings
        if arm.retriever == "context":
            ranking = Ranking(arms_.whole_memory(memory, settings.sampling, settings.prompt_tokens), 0.0)
            rankings = [ranking] * len(questions)
        else:
            rankings = [self._ranking(memory, arm, question) for question in questions]
        answered = arms_.answer(
            memory,
            arm,
            [question.question for question in questions],
            [ranking.documents for ranking in rankings],
            settings.sampling,
            settings.prompt_tokens,
        )
        if arm.retriever == "context" and any(len(one.used) < len(rankings[0].documents) for one in answered):
            raise EvaluationError("the memory and the question together do not fit into the prompt")
        rows = [score(*parts) for parts in zip(questions, [arm] * len(questions), rankings, answered, strict=True)]
        _append(self._path, [as_json(row) for row in rows])
        self.rows |= {(row.arm, row.id): row for row in rows}
        done = sum(name == arm.name for name, _ in self.rows)
        self._tell(f"{arm.name}: {done} of {len(self._task.questions)} questions")

    def _ranking(self, memory: Memory, arm: Arm, question: Question) -> Ranking:
        """The retriever's ranking; arms of one retriever share it, unless one wants more documents than it holds."""
        key = (arm.retriever, question.id)
        known = self._rankings.get(key)
        if known is None or (arm.documents or 0) > max(arms_.RANKED_DEPTH, len(known.documents)):
            known = self._rankings[key] = arms_.rank(memory, arm, question, self._dense)
        return known


# Files ----------------------------------------------------------------------------------------------------------------


def _write_results(out: Path, config: dict[str, Any], task: Task, asking: _Asking, loaded: LoadedModel) -> None:
    wanted = {question.id for question in task.questions}
    rows = [row for row in asking.rows.values() if row.id in wanted]
    by_arm = {name: [row for row in rows if row.arm == name] for name in config["arms"]}
    by_arm = {name: found for name, found in by_arm.items() if len(found) == len(wanted)}
    seed, name = config["settings"]["seed"], main_score(rows)
    summaries = [summarise(arm, found, seed) for arm, found in by_arm.items()]
    first = next(iter(by_arm), "")
    differences = {arm: compare(found, by_arm[first], name, seed) for arm, found in by_arm.items() if arm != first}
    result = {
        "config": config,
        "machine": machine(loaded),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "memories": _read_lines(out / ENCODING),
        "malformed": as_json(task.malformed),
        "refused": asking.refused,
        "main_score": name,
        "summaries": as_json(summaries),
        "differences": {"from": first, "of": name, "arms": as_json(differences)},
        "rows": as_json(rows),
    }
    write_atomically(out / RESULT, json.dumps(result, ensure_ascii=False, indent=1))
    write_atomically(out / TABLE, report.markdown(result, summaries, differences))
    report.plot(out / "plot.png", summaries, name)


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that it is there completely or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _append(path: Path, values: Sequence[Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        file.flush()
        os.fsync(file.fileno())


def _read_lines(path: Path) -> list[Any]:
    """The lines of a log. A last one that was torn when the process was killed is cut off the file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
