"""The memory that the questions of a set are asked of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from memspan.text.questions import UNDATED, QuestionSet
from memspan.text.template import encoded_text
from memspan.types import Document


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """A memory that a task needs: the documents of one namespace, read anew every time, and their tokens."""

    documents: Iterable[Document]
    tokens: int


def build_memory(
    found: QuestionSet,
    distractors: Iterable[Document],
    count_tokens: Callable[[str], int],
    max_tokens: int | None = None,
) -> dict[str, MemoryPlan]:
    """All documents of the questions, by namespace, and distractors up to `max_tokens`.

    The questions' own documents are always in, also where they have more tokens than that. A distractor whose title
    and text a document has already is passed over. Distractors go into the memory of a set with one namespace only;
    they are read no further than needed. Without `max_tokens` all are taken.

    Args:
        count_tokens: of the model that will read them.
    """
    own = _own_documents(found)
    memories: dict[str, MemoryPlan] = {}
    for namespace, documents in own.items():
        tokens = sum(count_tokens(encoded_text(document.title, document.text)) for document in documents)
        more = list(_fill(documents, distractors, count_tokens, tokens, max_tokens)) if len(own) == 1 else []
        taken = [document for document, _ in more]
        memories[namespace] = MemoryPlan((*documents, *taken), tokens + sum(count for _, count in more))
    return memories


def named_as(found: QuestionSet, documents: Iterable[Document]) -> QuestionSet:
    """The set with the given documents in the place of its own of the same title, text and date.

    So sets that are asked of the same files have the same memory, and what is encoded for one serves the others.
    """
    given = [one for one, _ in each_once(documents, len)]
    twins = {(one.text_hash, one.date): one for one in reversed(given)}

    def taken(own: tuple[Document, ...]) -> tuple[Document, ...]:
        return tuple(twins.get((one.text_hash, one.date), one) for one in own)

    return replace(
        found,
        questions=tuple(
            replace(one, positives=taken(one.positives), negatives=taken(one.negatives)) for one in found.questions
        ),
    )


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
    for document, count in each_once(distractors, count_tokens, own):
        tokens += count
        if max_tokens is not None and tokens > max_tokens:
            return
        yield document, count


def each_once(
    documents: Iterable[Document], count_tokens: Callable[[str], int], known: Iterable[Document] = ()
) -> Iterator[tuple[Document, int]]:
    """Documents with their tokens, without those whose name, or title and text, came before or are `known`."""
    seen = {mark for document in known for mark in (document.text_hash, document.external_id)}
    for document in documents:
        if document.text_hash not in seen and document.external_id not in seen:
            seen |= {document.text_hash, document.external_id}
            count = count_tokens(encoded_text(document.title, document.text))
            yield (document if document.date else replace(document, date=UNDATED)), count
