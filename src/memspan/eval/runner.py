"""A run: encode the memories, ask every question in every arm, keep every row, sum up. Stopped, it continues.

Writes into its folder:

    config.json      what was asked for and by which model; a run is continued only with an equal one
    rows.jsonl       a line for each question in each arm, written when it is answered
    asked.jsonl      a line for each few questions: what finding documents and answering took
    result.json      everything: config, machine, memories, summaries, comparisons, rows
    table.md         the summaries for people; plot.png, where matplotlib is installed

The encoded memories are shared by all runs that ask the same ones (see `cache`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.estimate import estimate
from memspan.errors import EvaluationError
from memspan.eval import cache, report
from memspan.eval.arms import Arm, parse_arm
from memspan.eval.asking import AnswerBudget, Evaluation, ShouldStop, Tell
from memspan.eval.machine import machine
from memspan.eval.ranking import RERANK_DEPTH, Ranker
from memspan.eval.runfiles import (
    CONFIG,
    ENCODING,
    RESULT,
    TABLE,
    append_lines,
    keep_config,
    read_lines,
    read_result,
)
from memspan.eval.scoring import as_json, compare, main_score, summarise
from memspan.eval.sets import MemoryPlan
from memspan.eval.tasks import Task, TaskSettings, build_task
from memspan.files import write_text
from memspan.generate.answerer import Answerer
from memspan.generate.memory import Memory
from memspan.generate.rerank import NONE, RERANKERS, Means, check_reranker
from memspan.generate.sampling import Sampling
from memspan.model.convert import LoadedModel
from memspan.places import KEPT_BANKS, parse_bytes
from memspan.text.questions import MalformedRecord
from memspan.types import Document

__all__ = ["CONFIG", "RESULT", "TABLE", "RunOptions", "RunOutcome", "RunSettings", "run"]

BANK = "bank"
FORMAT_VERSION = 2
_SAMPLE_DOCUMENTS = 40
_LONG_TOKENS = 100_000
"""Of fewer tokens it takes no longer to encode them than to time a sample."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What is measured, and how.

    Attributes:
        arms: names as `arms` lists them.
        max_new_tokens: None: as the task has it. prompt_tokens: of a whole prompt, the same for every arm.
        batch: questions answered together; the answers are those of one at a time but for rounding.
        seed: of the bootstrap.
        rerank_depth: documents that a reranker ranks anew. cross_encoder: the one of the option +cross.
    """

    task: TaskSettings
    arms: tuple[str, ...]
    max_new_tokens: int | None = None
    prompt_tokens: int | None = None
    batch: int = 16
    seed: int = 0
    rerank_depth: int = RERANK_DEPTH
    cross_encoder: str | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            EvaluationError: an arm is unknown or named twice, or there is none.
            MemspanError: a reranker that needs no model lacks a package or the cross-encoder's name.
        """
        names = [arm.name for arm in self.parsed_arms()]
        if not names or len(set(names)) < len(names):
            raise EvaluationError("name each arm once, and at least one: --arms none,bm25@5,oracle")
        if self.batch < 1 or self.rerank_depth < 1:
            raise EvaluationError("--batch and --rerank-depth must be at least 1")
        for arm in self.parsed_arms():
            if arm.rerank != NONE and not RERANKERS[arm.rerank].needs.model:
                check_reranker(arm.rerank, Means(cross_encoder=self.cross_encoder))

    def parsed_arms(self) -> list[Arm]:
        return [parse_arm(name) for name in self.arms]

    @property
    def sampling(self) -> Sampling:
        return Sampling(max_new_tokens=self.max_new_tokens or self.task.max_new_tokens)

    @property
    def budget(self) -> AnswerBudget:
        return AnswerBudget(self.sampling, self.prompt_tokens, self.batch)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What results do not depend on.

    Attributes:
        memory_budget: see `MemoryBank.open`.
        tell: is given a line about the progress now and then.
        should_stop: asked after every batch.
        answerer: another model that answers, in all arms; its name is part of the run's config. None: the memory model.
        kept_bytes: of encoded memories that are kept for other runs (see `cache`).
    """

    memory_budget: int | None = None
    tell: Tell = lambda line: None
    should_stop: ShouldStop = lambda: False
    answerer: Answerer | None = None
    kept_bytes: int = parse_bytes(KEPT_BANKS)


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ended: whether it was stopped, and the arms that could not be run, with the reason."""

    interrupted: bool
    refused: dict[str, str]
    malformed: int


def run(loaded: LoadedModel, settings: RunSettings, out: Path, how: RunOptions) -> RunOutcome:
    """Measure. Everything is in `out` (see above); called again with the same settings, what is done is not redone.

    Raises:
        EvaluationError: `out` holds a run with other settings or of another model, or the task cannot be made.
        CorpusError: a file cannot be read.
    """
    config = config_of(loaded, settings, how.answerer)
    keep_config(out, config)
    if all((out / name).is_file() for name in (RESULT, TABLE)) and not (known := read_result(out))["refused"]:
        return RunOutcome(False, {}, len(known["malformed"]))
    task = build_task(settings.task, loaded.template.count_tokens)
    how.tell(
        f"{len(task.questions)} questions, {sum(plan.tokens for plan in task.memories.values()):,} tokens of memory"
    )
    outcome = RunOutcome(True, {}, len(task.malformed))
    with _home(out, loaded, task, how) as home:
        if home is None:
            return outcome
        with open_memory(home / BANK, loaded, how) as memory:
            if not _encode(memory, task, home / ENCODING, how):
                return outcome
            evaluation = Evaluation(memory, task.questions, ranker_of(settings), settings.budget, out, how.tell)
            if not evaluation.run(settings.parsed_arms(), how.should_stop):
                return replace(outcome, refused=evaluation.refused)
            memories = read_lines(home / ENCODING)
            write_results(out, config, task.malformed, memories, evaluation, machine(loaded))
    cache.trim(how.kept_bytes)
    return RunOutcome(False, evaluation.refused, len(task.malformed))


@contextmanager
def _home(out: Path, loaded: LoadedModel, task: Task, how: RunOptions) -> Iterator[Path | None]:
    """The folder of the memories; that of the run, where a former version began it. None: stopped while it waited."""
    if (out / BANK).is_dir():
        yield out
        return
    with cache.encoded_memories(cache.key_of(loaded, task.memories), how.tell, how.should_stop) as folder:
        yield folder


@contextmanager
def open_memory(folder: Path, loaded: LoadedModel, how: RunOptions) -> Iterator[Memory]:
    """The memory of a run, made where there is none."""
    bank = MemoryBank.open_or_create(folder, manifest_of(loaded), how.memory_budget)
    with Memory(bank, loaded, answerer=how.answerer) as memory:
        yield memory


def ranker_of(settings: RunSettings) -> Ranker:
    """The ranker of the arms."""
    return Ranker(settings.parsed_arms(), settings.rerank_depth, settings.cross_encoder)


def config_of(loaded: LoadedModel, settings: RunSettings, answerer: Answerer | None = None) -> dict[str, Any]:
    """What must be equal for a run to be continued."""
    model = loaded.model.config
    other = {} if answerer is None else {"answerer": {"name": answerer.name, "context": answerer.context}}
    return other | {
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


# Encoding -------------------------------------------------------------------------------------------------------------


def _encode(memory: Memory, task: Task, log: Path, how: RunOptions) -> bool:
    """Encode every memory that is not complete yet; False if it was stopped before it was done."""
    done = {line["namespace"] for line in read_lines(log) if line["complete"]}
    left = {namespace: plan for namespace, plan in task.memories.items() if namespace not in done}
    if (tokens := sum(plan.tokens for plan in left.values())) > _LONG_TOKENS:
        tell_hours(memory.loaded, chain.from_iterable(plan.documents for plan in left.values()), tokens, how.tell)
    for namespace, plan in left.items():
        line = encode(memory, namespace, plan, how)
        append_lines(log, [line])
        if not line["complete"]:
            return False
    return True


def tell_hours(loaded: LoadedModel, documents: Iterable[Document], tokens: int, tell: Tell) -> None:
    """Say how many tokens are to be encoded and how long that takes, by a sample of the documents timed here."""
    if tokens > 0:
        rate = estimate(loaded, islice(documents, _SAMPLE_DOCUMENTS)).tokens_per_second
        tell(f"{tokens:,} tokens to encode at {rate:,.0f} a second: about {tokens / rate / 3600:.1f} hours")


def encode(memory: Memory, namespace: str, plan: MemoryPlan, how: RunOptions) -> dict[str, Any]:
    """Encode a memory as far as it is not yet; the line of the log that says what it took."""
    cpu = time.process_time()
    done = memory.in_namespace(namespace).add(
        plan.documents,
        should_stop=how.should_stop,
        progress=lambda report: how.tell(f"encoding: {report.documents} documents, {report.tokens:,} tokens"),
    )
    return {
        "namespace": namespace,
        "complete": not done.interrupted,
        "memory_tokens": plan.tokens,
        "sources": done.added,
        "documents": done.documents,
        "encoded_tokens": done.tokens,
        "seconds": done.seconds,
        "cpu_seconds": time.process_time() - cpu,
    }


# Results --------------------------------------------------------------------------------------------------------------


def write_results(
    out: Path,
    config: Mapping[str, Any],
    malformed: Iterable[MalformedRecord],
    memories: list[dict[str, Any]],
    evaluation: Evaluation,
    made_on: Mapping[str, Any],
) -> dict[str, Any]:
    """Sum up the rows of the arms that answered every question; see the top of this module for the files."""
    rows = list(evaluation.rows.values())
    wanted = {question.id for question in evaluation.questions}
    by_arm = {name: [row for row in rows if row.arm == name] for name in config["arms"]}
    by_arm = {name: found for name, found in by_arm.items() if len(found) == len(wanted)}
    seed, name = config["settings"]["seed"], main_score(rows)
    summaries = [summarise(arm, found, seed) for arm, found in by_arm.items()]
    first = next(iter(by_arm), "")
    differences = {arm: compare(found, by_arm[first], name, seed) for arm, found in by_arm.items() if arm != first}
    result = {
        "config": config,
        "machine": made_on,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "memories": memories,
        "asked": evaluation.cost(),
        "malformed": as_json(tuple(malformed)),
        "refused": evaluation.refused,
        "main_score": name,
        "summaries": as_json(summaries),
        "differences": {"from": first, "of": name, "arms": as_json(differences)},
        "rows": as_json(rows),
    }
    write_text(out / RESULT, json.dumps(result, ensure_ascii=False, indent=1))
    write_text(out / TABLE, report.markdown(result, summaries, differences))
    report.plot(out / "plot.png", summaries, name)
    return result
