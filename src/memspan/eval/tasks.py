"""What is asked of which memory: a question set with its documents, or needles with their haystacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memspan.errors import EvaluationError
from memspan.eval import niah
from memspan.eval.formats import FORMATS, read_set
from memspan.eval.sets import MemoryPlan, build_memory, named_as
from memspan.text.corpus import Skipped, read_paths
from memspan.text.questions import MalformedRecord, Question, QuestionSet
from memspan.types import Document

CountTokens = Callable[[str], int]

DEFAULT_NEEDLE_TOKENS = 32_768
DEFAULT_NEEDLE_QUESTIONS = 10
# RULER's `tokens_to_generate`; for question sets ours: a short phrase is asked for.
_QA_NEW_TOKENS, _NIAH_NEW_TOKENS, _TRACKING_NEW_TOKENS = 32, 128, 30


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """What decides questions and memories.

    Attributes:
        name: a format of question sets (`formats.FORMATS`) or a needle task (`niah.TASKS`).
        data: the question set's file; None for needle tasks.
        questions: the first so many. None: all of a set, or DEFAULT_NEEDLE_QUESTIONS haystacks.
        memory_tokens: size of each memory. None: all distractors, or DEFAULT_NEEDLE_TOKENS.
        texts: files of distractors, or for needle tasks of the haystack's text.
        seed: of needles.
    """

    name: str
    data: str | None = None
    questions: int | None = None
    memory_tokens: int | None = None
    texts: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """
        Raises:
            EvaluationError: settings that do not go together.
        """
        if self.name not in (*FORMATS, *niah.TASKS):
            names = ", ".join((*FORMATS, *niah.TASKS))
            raise EvaluationError(f"no task {self.name!r}; the tasks are {names}")
        if self.is_needle and self.data is not None:
            raise EvaluationError(f"{self.name} makes its own questions; leave out --data")
        if not self.is_needle and self.data is None:
            raise EvaluationError(f"{self.name} needs the file of its questions: --data FILE")
        for field in ("questions", "memory_tokens"):
            if (value := getattr(self, field)) is not None and value < 1:
                raise EvaluationError(f"--{field.replace('_', '-')} must be at least 1, not {value}")

    @property
    def is_needle(self) -> bool:
        return self.name in niah.TASKS

    @property
    def max_new_tokens(self) -> int:
        """An answer's length, unless another one is asked for."""
        if not self.is_needle:
            return _QA_NEW_TOKENS
        return _TRACKING_NEW_TOKENS if self.name == niah.VARIABLE_TRACKING else _NIAH_NEW_TOKENS


@dataclass(frozen=True, slots=True)
class Task:
    """Questions with the memories they are asked of, by namespace."""

    questions: tuple[Question, ...]
    memories: dict[str, MemoryPlan]
    malformed: tuple[MalformedRecord, ...] = ()


def build_task(settings: TaskSettings, count_tokens: CountTokens) -> Task:
    """Read or make a task's questions and plan their memories.

    Args:
        count_tokens: of the model that will be asked.

    Raises:
        CorpusError: a file cannot be read.
        EvaluationError: the needles do not fit, or need a text.
    """
    return (_needles if settings.is_needle else _question_set)(settings, count_tokens)


def question_set(settings: TaskSettings) -> QuestionSet:
    """The questions of a task that is a question set.

    Raises:
        CorpusError: the file cannot be read.
    """
    assert settings.data is not None, "checked when the settings were made"
    return read_set(Path(settings.data), settings.name, settings.questions)


def _question_set(settings: TaskSettings, count_tokens: CountTokens) -> Task:
    found, texts = question_set(settings), texts_of(settings.texts)
    if settings.memory_tokens is not None or found.documents:
        return Task(found.questions, build_memory(found, texts, count_tokens, settings.memory_tokens), found.malformed)
    files = list(texts)
    found = named_as(found, files)
    # In an order that is the same for all sets of the same files: they share what is encoded.
    memories = {
        namespace: replace(plan, documents=sorted(plan.documents, key=lambda document: document.external_id))
        for namespace, plan in build_memory(found, files, count_tokens).items()
    }
    return Task(found.questions, memories, found.malformed)


def _needles(settings: TaskSettings, count_tokens: CountTokens) -> Task:
    texts = (document.text for document in texts_of(settings.texts))
    essays = niah.Essays(texts, count_tokens) if settings.texts else None
    questions: list[Question] = []
    memories: dict[str, MemoryPlan] = {}
    for index in range(settings.questions or DEFAULT_NEEDLE_QUESTIONS):
        haystack = niah.make_haystack(
            settings.name,
            settings.memory_tokens or DEFAULT_NEEDLE_TOKENS,
            index=index,
            count_tokens=count_tokens,
            essays=essays,
            seed=settings.seed,
        )
        question, tokens = haystack.as_question()
        questions.append(question)
        memories[question.namespace] = MemoryPlan(haystack, tokens)
    return Task(tuple(questions), memories)


def texts_of(paths: Sequence[str]) -> Iterator[Document]:
    """The documents of files and folders; what cannot be read is an error, for it would change what is measured.

    Raises:
        EvaluationError: a file or record was skipped.
    """
    for found in read_paths(map(Path, paths)):
        if isinstance(found, Skipped):
            raise EvaluationError(f"{found.source}: {found.reason}; mend it, or leave it out")
        yield found
