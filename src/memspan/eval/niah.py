"""Needles in a haystack and variable tracking, as RULER defines them (Hsieh et al. 2024, arXiv 2404.06654).

A haystack of any length is streamed as documents of about equal size; nothing of it is kept. What differs from RULER,
because here the haystack is a memory and not a prompt: the length is that of the memory alone, without question and
answer; the question stands without the sentence that announces the needles, without an answer prefix and, for variable
tracking, without a worked example; sentences are split by `text.splitter`; keys come from our own word lists.
"""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Literal

from memspan.errors import EvaluationError
from memspan.eval.words import ADJECTIVES, NOUNS
from memspan.text.questions import UNDATED, Question
from memspan.text.splitter import sentence_bounds
from memspan.types import Document

CountTokens = Callable[[str], int]

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_NEEDLE = "One of the special magic {kind}s for {key} is: {value}."
_ONE = "What is the special magic {kind} for {query} mentioned in the provided text?"
_MANY = "What are all the special magic {kind}s for {query} mentioned in the provided text?"
_TRACK = "Find all variables that are assigned the value {value} in the text above."

DOCUMENT_TOKENS = 256
# In essays RULER puts needles at depths of this grid, elsewhere before any sentence.
_NUM_DEPTHS = 40
_NUM_HOPS = 4
_ESSAY_SEPARATOR, _LINE_SEPARATOR = " ", "\n"
_VARIABLE_LETTERS = 5


@dataclass(frozen=True, slots=True)
class NiahTask:
    """One task of RULER (its appendix B): what the haystack is made of, and how many needles are in it and asked for.

    Attributes:
        haystack: the same five sentences again and again, real text, or needles nobody asks for.
        keys, values: what needles map from and to.
        num_keys: keys in the haystack; num_values: values of each; num_queries: keys asked for.
    """

    haystack: Literal["noise", "essay", "needle"]
    keys: Literal["word", "uuid"] = "word"
    values: Literal["number", "uuid"] = "number"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1


NIAH_TASKS: dict[str, NiahTask] = {
    "niah_single_1": NiahTask("noise"),
    "niah_single_2": NiahTask("essay"),
    "niah_single_3": NiahTask("essay", values="uuid"),
    "niah_multikey_1": NiahTask("essay", num_keys=4),
    "niah_multikey_2": NiahTask("needle"),
    "niah_multikey_3": NiahTask("needle", keys="uuid", values="uuid"),
    "niah_multivalue": NiahTask("essay", num_values=4),
    "niah_multiquery": NiahTask("essay", num_keys=4, num_queries=4),
}
VARIABLE_TRACKING = "vt"
TASKS: tuple[str, ...] = (*NIAH_TASKS, VARIABLE_TRACKING)


@dataclass(frozen=True, slots=True)
class Needle:
    """A sentence to be hidden, and whether the answer needs it."""

    text: str
    wanted: bool


@dataclass(frozen=True, slots=True)
class HaystackDocument:
    """A piece of the haystack, its tokens, and whether it holds a needle that the answer needs."""

    document: Document
    tokens: int
    wanted: bool


class Essays:
    """Real text as sentences with their tokens, each counted once; begun anew when it ends, as RULER does."""

    def __init__(self, texts: Iterable[str], count_tokens: CountTokens) -> None:
        """
        Args:
            texts: read as far as a haystack needs them.
        """
        self._unread = (sentence for text in texts for sentence in _sentences(text))
        self._count_tokens = count_tokens
        self._read: list[tuple[str, int]] = []

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Yield sentences with their tokens, for ever.

        Raises:
            EvaluationError: there is no text at all.
        """
        yield from self._read
        for sentence in self._unread:
            self._read.append((sentence, self._count_tokens(f"{_ESSAY_SEPARATOR}{sentence}")))
            yield self._read[-1]
        if not self._read:
            raise EvaluationError("the haystack's text is empty; name a file with text: --haystack FILE")
        yield from cycle(self._read)


@dataclass(frozen=True, slots=True)
class Haystack:
    """One haystack with its question. The same seed gives the same documents, however often they are asked for.

    Attributes:
        answers: all are expected (`metrics.string_match`).
        num_tokens: of the haystack with its needles, at most; it is filled up to one sentence.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    task: str
    needles: tuple[Needle, ...]
    num_tokens: int
    seed: str
    count_tokens: CountTokens
    essays: Essays | None
    document_tokens: int

    def documents(self) -> Iterator[HaystackDocument]:
        """Yield the haystack in documents of at most `document_tokens` tokens (or one sentence)."""
        parts: list[str] = []
        tokens, wanted, number = 0, False, 0
        for text, count, is_wanted in self._sentences():
            if parts and tokens + count > self.document_tokens:
                yield self._document(number, self._separator.join(parts), tokens, wanted)
                parts, tokens, wanted, number = [], 0, False, number + 1
            parts.append(text)
            tokens += count
            wanted = wanted or is_wanted
        if parts:
            yield self._document(number, self._separator.join(parts), tokens, wanted)

    def as_question(self) -> tuple[Question, int]:
        """The question with the documents that hold what it asks for, and the haystack's tokens; read through once."""
        gold: list[Document] = []
        tokens = 0
        for found in self.documents():
            tokens += found.tokens
            gold += [found.document] if found.wanted else []
        return Question(self.id, self.question, self.answers, tuple(gold), type="all", namespace=self.id), tokens

    @property
    def _separator(self) -> str:
        return _ESSAY_SEPARATOR if self._haystack == "essay" else _LINE_SEPARATOR

    def _count(self, text: str) -> int:
        """Tokens of a sentence behind another one."""
        return self.count_tokens(f"{self._separator}{text}")

    @property
    def _haystack(self) -> str:
        return "noise" if self.task == VARIABLE_TRACKING else NIAH_TASKS[self.task].haystack

    def _document(self, number: int, text: str, tokens: int, wanted: bool) -> HaystackDocument:
        return HaystackDocument(Document(f"{self.id}/{number:07d}", text, date=UNDATED), tokens, wanted)

    def _sentences(self) -> Iterator[tuple[str, int, bool]]:
        """Sentences of the haystack, needles among them, each with its tokens and whether the answer needs it."""
        counted = [(needle.text, self._count(needle.text), needle.wanted) for needle in self.needles]
        room = self.num_tokens - sum(count for _, count, _ in counted)
        waiting = list(zip(self._depths(len(counted)), counted, strict=True))[::-1]
        tokens = 0
        for text, count in self._hay():
            if tokens + count > room:
                break
            while waiting and tokens >= waiting[-1][0] * room:
                yield waiting.pop()[1]
            yield text, count, False
            tokens += count
        yield from (needle for _, needle in reversed(waiting))

    def _depths(self, count: int) -> list[float]:
        """Where the needles go, as shares of the haystack, ascending."""
        generator = random.Random(f"{self.seed}/depths")
        if self._haystack == "essay":
            return sorted(place / (_NUM_DEPTHS - 1) for place in generator.sample(range(_NUM_DEPTHS), count))
        return sorted(generator.random() for _ in range(count))

    def _hay(self) -> Iterator[tuple[str, int]]:
        """What the needles are hidden in, for ever, with tokens."""
        if self._haystack == "essay":
            assert self.essays is not None, "checked when the sample was made"
            yield from self.essays
        if self._haystack == "noise":
            yield from cycle([(NOISE, self._count(NOISE))])
        task, generator = NIAH_TASKS[self.task], random.Random(f"{self.seed}/hay")
        asked = {needle.text.partition(" is: ")[0] for needle in self.needles}
        while True:
            text = _needle(task, _key(task, generator), _value(task, generator))
            if text.partition(" is: ")[0] not in asked:  # else a key that is asked for would have a second value
                yield text, self._count(text)


def make_haystack(
    task: str,
    num_tokens: int,
    *,
    index: int,
    count_tokens: CountTokens,
    essays: Essays | None = None,
    seed: int = 0,
    document_tokens: int = DOCUMENT_TOKENS,
) -> Haystack:
    """The question, needles and haystack number `index` of a task.

    Args:
        task: one of TASKS.
        num_tokens: of the haystack with its needles, at most.
        count_tokens: of the model that will read it.
        essays: real text, for the tasks that need it.

    Raises:
        EvaluationError: the task is unknown, needs essays, or does not fit into `num_tokens`.
    """
    if task not in TASKS:
        raise EvaluationError(f"no task {task!r}; the tasks are {', '.join(TASKS)}")
    if task in NIAH_TASKS and NIAH_TASKS[task].haystack == "essay" and essays is None:
        raise EvaluationError(f"{task} hides its needles in real text; name a file with some: --haystack FILE")
    name = f"{task}-{seed}-{index}"
    generator = random.Random(name)
    question, answers, needles = (_track if task == VARIABLE_TRACKING else _hide)(task, generator)
    needed = sum(count_tokens(f"{_LINE_SEPARATOR}{needle.text}") for needle in needles)
    if needed > num_tokens:
        raise EvaluationError(
            f"the needles of {task} have {needed} tokens and the haystack {num_tokens}; make it longer"
        )
    return Haystack(name, question, answers, task, needles, num_tokens, name, count_tokens, essays, document_tokens)


def _hide(name: str, generator: random.Random) -> tuple[str, tuple[str, ...], tuple[Needle, ...]]:
    """Question, answers and needles, in the order they are hidden in."""
    task = NIAH_TASKS[name]
    keys = _distinct(lambda: _key(task, generator), task.num_keys)
    values = _distinct(lambda: _value(task, generator), task.num_keys * task.num_values)
    asked = generator.sample(keys, task.num_queries)
    of_key = {key: values[place * task.num_values : (place + 1) * task.num_values] for place, key in enumerate(keys)}
    needles = [Needle(_needle(task, key, value), key in asked) for key in keys for value in of_key[key]]
    generator.shuffle(needles)
    query = ", ".join(asked[:-1]) + f", and {asked[-1]}" if len(asked) > 1 else asked[0]
    answers = tuple(value for key in asked for value in of_key[key])
    return (_ONE if len(answers) == 1 else _MANY).format(kind=task.values, query=query), answers, tuple(needles)


def _track(_: str, generator: random.Random) -> tuple[str, tuple[str, ...], tuple[Needle, ...]]:
    """A chain of assignments, in order (RULER: one chain, four hops). The answer is every variable of it."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    names = _distinct(lambda: "".join(generator.choices(letters, k=_VARIABLE_LETTERS)), _NUM_HOPS + 1)
    value = generator.randint(10_000, 99_999)
    chain = [f"VAR {names[0]} = {value}", *(f"VAR {later} = VAR {earlier}" for earlier, later in pairwise(names))]
    return _TRACK.format(value=value), tuple(names), tuple(Needle(step, True) for step in chain)


def _needle(task: NiahTask, key: str, value: str) -> str:
    return _NEEDLE.format(kind=task.values, key=key, value=value)


def _key(task: NiahTask, generator: random.Random) -> str:
    if task.keys == "uuid":
        return _uuid(generator)
    return f"{generator.choice(ADJECTIVES)}-{generator.choice(NOUNS)}"


def _value(task: NiahTask, generator: random.Random) -> str:
    return _uuid(generator) if task.values == "uuid" else str(generator.randint(1_000_000, 9_999_999))


def _uuid(generator: random.Random) -> str:
    return str(uuid.UUID(int=generator.getrandbits(128), version=4))


def _distinct(draw: Callable[[], str], count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw()] = None
    return list(found)


def _sentences(text: str) -> Iterator[str]:
    """The sentences of a text, white space joined."""
    joined = re.sub(r"\s+", " ", text).strip()
    for start, end in sentence_bounds(joined):
        if sentence := joined[start:end].strip():
            yield sentence
