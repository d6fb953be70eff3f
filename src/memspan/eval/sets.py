"""Question sets: one form for every format, and the memory their questions are asked of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from memspan.text.template import encoded_text
from memspan.types import Document

QuestionType = Literal["single", "multi", "yesno", "pair", "unanswerable", "all"]
UNDATED = "2000-01-01"
"""The date of every document that has none: the time it happened to be added would make no two runs alike."""

_ID_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Question:
    """A question with what is known about its answer.

    Attributes:
        id: unique in its set.
        answers: accepted forms; for the type `all` every one of them is expected. May be empty.
        positives: the evidence, in hop order where the set tells it.
        negatives: the question's own distractors.
        type: `single` one document answers (of several positives any one does); `multi` and `yesno` all positives are
            needed; `pair` a text to find another text by, without an answer; `unanswerable` no document answers;
            `all` a needle test, which expects every answer and every positive.
        hops: steps of reasoning, None if unknown.
        date: when it is asked, None if that does not matter.
        namespace: the memory it belongs to: conversations of different people do not share one.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    positives: tuple[Document, ...]
    negatives: tuple[Document, ...] = ()
    type: QuestionType = "single"
    hops: int | None = None
    date: str | None = None
    namespace: str = "default"

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ValueError("the question is empty")
        if not self.answers and self.type not in ("pair", "unanswerable"):
            raise ValueError("no answer")

    @property
    def needs_all(self) -> bool:
        """Whether every positive is needed, not any one of them."""
        return self.type in ("multi", "yesno", "all")


@dataclass(frozen=True, slots=True)
class Malformed:
    """A record that gave no question: where it stands, and why."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """What a reader made of a file.

    Attributes:
        documents: of the set's memory beyond the questions' own positives and negatives (the other turns of a
            conversation), by namespace.
        malformed: what could not be read, named.
    """

    questions: tuple[Question, ...]
    documents: dict[str, tuple[Document, ...]] = field(default_factory=dict)
    malformed: tuple[Malformed, ...] = ()

    def first(self, count: int | None) -> QuestionSet:
        """The set with its first `count` questions only, and the documents of their namespaces."""
        questions = self.questions[:count]
        kept = {question.namespace for question in questions}
        return replace(
            self, questions=questions, documents={name: found for name, found in self.documents.items() if name in kept}
        )


@dataclass(frozen=True, slots=True)
class MemoryOf:
    """The documents of one namespace, and how many tokens they have.

    Attributes:
        own: tokens of the questions' own documents; distractors make up the rest.
    """

    documents: tuple[Document, ...]
    tokens: int
    own: int


def passage(title: str, text: str) -> Document:
    """A passage as a document: its name is a hash of its content, so a passage of two questions is one document.

    Raises:
        ValueError: it has no text.
    """
    digest = hashlib.sha256(f"{title}\0{text}".encode(errors="replace")).hexdigest()[:_ID_DIGITS]
    return Document(f"p-{digest}", text, title, date=UNDATED)


def build_memory(
    found: QuestionSet,
    distractors: Iterable[Document],
    count_tokens: Callable[[str], int],
    max_tokens: int | None = None,
) -> dict[str, MemoryOf]:
    """All documents of the questions, by namespace, and distractors up to `max_tokens`.

    The questions' own documents are always in, also where they have more tokens than that. A distractor whose title
    and text a document has already is passed over. Distractors go into the memory of a set with one namespace only;
    they are read no further than needed. Without `max_tokens` all are taken.

    Args:
        count_tokens: of the model that will read them.
    """
    own = _own_documents(found)
    memories: dict[str, MemoryOf] = {}
    for namespace, documents in own.items():
        tokens = sum(count_tokens(encoded_text(document.title, document.text)) for document in documents)
        more = list(_fill(documents, distractors, count_tokens, tokens, max_tokens)) if len(own) == 1 else []
        taken = [document for document, _ in more]
        memories[namespace] = MemoryOf((*documents, *taken), tokens + sum(count for _, count in more), tokens)
    return memories


def _own_documents(found: QuestionSet) -> dict[str, list[Document]]:
    """The documents of the questions and their set, each once, by namespace."""
    by_name: dict[str, dict[str, Document]] = {}
    for namespace, documents in found.documents.items():
        by_name[namespace] = {document.external_id: document for document in documents}
    for question in found.questions:
        known = by_name.setdefault(question.namespace, {})
        for document in (*question.positives, *question.negatives):
            known.setdefault(document.external_id, document)
    return {namespace: list(documents.values()) for namespace, documents in by_name.items()}


def _fill(
    own: Sequence[Document],
    distractors: Iterable[Document],
    count_tokens: Callable[[str], int],
    tokens: int,
    max_tokens: int | None,
) -> Iterator[tuple[Document, int]]:
    """Distractors with their tokens, until the next one would not fit."""
    seen = {document.text_hash for document in own}
    names = {document.external_id for document in own}
    for document in distractors:
        if document.text_hash in seen or document.external_id in names:
            continue
        count = count_tokens(encoded_text(document.title, document.text))
        if max_tokens is not None and tokens + count > max_tokens:
            return
        seen.add(document.text_hash)
        names.add(document.external_id)
        tokens += count
        yield (document if document.date else replace(document, date=UNDATED)), count
