"""Questions on their way to rows: every question in every arm, in batches, each row kept when it is answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from memspan.bank.scope import EVERYTHING
from memspan.errors import EvaluationError
from memspan.eval import answering
from memspan.eval.answering import GeneratedAnswer, Prompt, answer_in_rounds, prompt_of, prompt_room, whole_memory
from memspan.eval.arms import Arm
from memspan.eval.ranking import Ranker, Ranking
from memspan.eval.runfiles import ASKED, ROWS, append_lines, read_lines
from memspan.eval.scoring import Row, as_json, score
from memspan.generate.finder import Finder
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.routing.local import ReplayedMemory
from memspan.text.questions import Question
from memspan.types import LayerRouting

_WINDOW = 4
"""Batches whose prompts are made together, so that those of like length are answered together."""

Tell = Callable[[str], None]
ShouldStop = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class AnswerBudget:
    """How questions are answered.

    Attributes:
        prompt_tokens: of a whole prompt, at most; None: as many as the model has room for.
        batch: questions answered together.
    """

    sampling: Sampling
    prompt_tokens: int | None
    batch: int


class Evaluation:
    """The questions of one memory, or of many by namespace, in all arms.

    Attributes:
        questions: all of them.
        rows: what is answered, by arm and question; what the run's folder held is not asked again.
        refused: arms that could not be run, with the reason.
    """

    def __init__(
        self, memory: Memory, questions: Sequence[Question], ranker: Ranker, budget: AnswerBudget, out: Path, tell: Tell
    ) -> None:
        self._memory, self._ranker, self._budget = memory, ranker, budget
        self._path, self._cost_path, self._tell = out / ROWS, out / ASKED, tell
        self.questions = questions
        self._room = prompt_room(memory, budget.sampling, budget.prompt_tokens)
        self.rows = {(row.arm, row.id): row for row in map(Row.from_json, read_lines(self._path))}
        self.refused: dict[str, str] = {}

    def run(self, arms: Sequence[Arm], should_stop: ShouldStop) -> bool:
        """Answer what is not answered yet; False if stopped before that.

        The first questions of every arm come first: after them it says how long the others take.
        """
        if not self._answer_first(arms, self._budget.batch, should_stop):
            return False
        self._tell_hours(arms)
        return self._answer_first(arms, len(self.questions), should_stop)

    def _answer_first(self, arms: Sequence[Arm], count: int, should_stop: ShouldStop) -> bool:
        for arm in arms:
            try:
                if arm.name not in self.refused and not self._run_arm(arm, self.questions[:count], should_stop):
                    return False
            except EvaluationError as error:
                self.refused[arm.name] = str(error)
        return True

    def _tell_hours(self, arms: Sequence[Arm]) -> None:
        cost, seconds, answers = self.cost(), 0.0, 0
        for arm in arms:
            left = len(self.questions) - sum(name == arm.name for name, _ in self.rows)
            if left and arm.name in cost:
                answers += left
                seconds += left * cost[arm.name]["seconds"] / cost[arm.name]["questions"]
        if answers:
            self._tell(f"{answers:,} answers to come: about {seconds / 3600:.1f} hours")

    def _run_arm(self, arm: Arm, questions: Sequence[Question], should_stop: ShouldStop) -> bool:
        pending = [question for question in questions if (arm.name, question.id) not in self.rows]
        size = self._budget.batch * _WINDOW
        for start in range(0, len(pending), size):
            if should_stop():
                return False
            started, cpu = time.perf_counter(), time.process_time()
            step = self._in_rounds if arm.reads_in_rounds else self._from_rankings
            for rows in step(arm, pending[start : start + size]):
                append_lines(self._path, [as_json(row) for row in rows])
                self.rows |= {(row.arm, row.id): row for row in rows}
                done = sum(name == arm.name for name, _ in self.rows)
                self._tell(f"{arm.name}: {done} of {len(self.questions)} questions")
                spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
                append_lines(self._cost_path, [{"arm": arm.name, "questions": len(rows), **spent}])
                started, cpu = time.perf_counter(), time.process_time()
                if should_stop():
                    return False
        return True

    def cost(self) -> dict[str, dict[str, float]]:
        """Per arm: questions, and the seconds and CPU seconds of finding documents and answering, all told."""
        total: dict[str, dict[str, float]] = {}
        for line in read_lines(self._cost_path):
            arm = total.setdefault(line["arm"], dict.fromkeys(("questions", "seconds", "cpu_seconds"), 0.0))
            for name in arm:
                arm[name] += line[name]
        return total

    def _in_rounds(self, arm: Arm, window: Sequence[Question]) -> Iterator[list[Row]]:
        budget = self._budget
        for namespace, group in _by_namespace(window):
            memory = self._memory.in_namespace(namespace)
            for batch in _batches(group, budget.batch):
                found = answer_in_rounds(memory, arm, batch, budget.sampling, budget.prompt_tokens)
                yield [score(question, arm, *parts) for question, parts in zip(batch, found, strict=True)]

    def _from_rankings(self, arm: Arm, window: Sequence[Question]) -> Iterator[list[Row]]:
        rankings: dict[str, Ranking] = {}
        for namespace, group in _by_namespace(window):
            rankings |= self._rankings(arm, namespace, group)
        prompts = {
            one.id: prompt_of(self._memory, arm, one.question, rankings[one.id].documents, self._room) for one in window
        }
        if arm.retriever == "context" and any(
            len(prompts[name].documents) < len(found.documents) for name, found in rankings.items()
        ):
            raise EvaluationError("the memory and the question together do not fit into the prompt")
        # Without latents nothing of a memory but its texts is read, so questions of several go together.
        alone = self._memory.answerer is not None or not (arm.latents or arm.texts is not None)
        groups = [(None, list(window))] if alone else _by_namespace(window)
        for namespace, group in groups:
            group.sort(key=lambda one: len(prompts[one.id].context.ids), reverse=True)
            for batch in _batches(group, self._budget.batch):
                routed = [rankings[one.id].routed for one in batch]
                answers = self._answer([prompts[one.id] for one in batch], namespace, None if arm.reroute else routed)
                yield [score(one, arm, rankings[one.id], found) for one, found in zip(batch, answers, strict=True)]

    def _rankings(self, arm: Arm, namespace: str, questions: Sequence[Question]) -> dict[str, Ranking]:
        memory = self._memory.in_namespace(namespace)
        if arm.retriever == "context":
            found = [Ranking(whole_memory(memory, self._room), 0.0)] * len(questions)
        else:
            found = self._ranker.rank(memory, arm, questions)
        return {question.id: ranking for question, ranking in zip(questions, found, strict=True)}

    def _answer(
        self, prompts: Sequence[Prompt], namespace: str | None, routed: Sequence[Sequence[LayerRouting]] | None
    ) -> list[GeneratedAnswer]:
        """
        Args:
            namespace: whose latents are attended to; None: none are.
            routed: what the questions were routed to; None: their prompts route.
        """
        if self._memory.answerer is not None:
            return answering.answer_by(self._memory.answerer, prompts, self._budget.sampling)
        loaded, sampling = self._memory.loaded, self._budget.sampling
        if namespace is None:
            return answering.answer(loaded, prompts, None, sampling)
        with self._memory.bank.snapshot(namespace) as snapshot:
            memory = Finder(loaded, snapshot, EVERYTHING).memory
            if loaded.content is not None:  # its layers attend to nothing that they route to
                return answering.answer(loaded, prompts, None, sampling, memory)
            layers = memory if routed is None else ReplayedMemory(memory, routed)
            return answering.answer(loaded, prompts, layers, sampling)


def _by_namespace(questions: Sequence[Question]) -> list[tuple[str, list[Question]]]:
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.namespace, []).append(question)
    return list(groups.items())


def _batches(questions: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    for start in range(0, len(questions), size):
        yield questions[start : start + size]
