"""Arms: ways to answer the same questions with the same generator, prompt and budget. Anything else compares nothing.

    none             the question alone
    oracle           the original text of the evidence
    context          the whole memory in the prompt, while it fits
    bm25@K           the K best documents of the bank's full-text index: retrieval-augmented generation
    dense@K          the K best by a sentence embedding (see `dense`)
    router@K         MSA: latents of the documents each layer routes to, and the text of the K best over all layers
    hybrid@K         as router@K, the text chosen by router and full-text index together

K is 5 unless named; `@0` puts no text before the question. `+latents` and `-latents` add and take away what the MSA
layers attend to: `router@5-latents` is retrieval-augmented generation with the router as retriever.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from memspan.bank.catalog import StoredDocument
from memspan.errors import EvaluationError
from memspan.generate.context import fitted_context
from memspan.generate.decode import Decoding, context_room
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.routing.local import LocalMemory
from memspan.text.questions import Question
from memspan.types import Evidence

Retriever = Literal["none", "oracle", "context", "bm25", "dense", "router", "hybrid"]
RANKED_DEPTH = 16
"""How far rankings are kept: the deepest recall that is reported."""

_SELECTORS = {"bm25": "lexical", "router": "router", "hybrid": "hybrid"}
_WITH_LATENTS = ("router", "hybrid")
_WITHOUT_RANKING = ("none", "oracle", "context")
_SPEC = re.compile(rf"(?P<retriever>{'|'.join(get_args(Retriever))})(?:@(?P<k>\d+))?(?P<latents>[+-]latents)?")
_DEFAULT_DOCUMENTS = 5


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to answer.

    Attributes:
        documents: of the ranking, whose text is put before the question, at most; None where nothing is ranked.
        latents: whether the MSA layers attend to what they route to.
    """

    name: str
    retriever: Retriever
    documents: int | None
    latents: bool

    @property
    def ranks(self) -> bool:
        """Whether it ranks the documents of the memory."""
        return self.retriever not in _WITHOUT_RANKING


@dataclass(frozen=True, slots=True)
class Ranking:
    """The documents a retriever found for a question, best first, and the seconds it took."""

    documents: tuple[Evidence, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Answered:
    """What the generator wrote, and from what.

    Attributes:
        used: external ids of the documents whose text was before the question, best first.
        prefill, decode: seconds; of a batch its equal share.
    """

    text: str
    used: tuple[str, ...]
    finish_reason: str
    num_prompt_tokens: int
    num_new_tokens: int
    prefill: float
    decode: float


class DenseRetriever(Protocol):
    """Finds documents of one memory by the similarity of embeddings."""

    def search(self, memory: Memory, question: str, limit: int) -> list[Evidence]: ...


def parse_arm(text: str) -> Arm:
    """An arm by its name, as the top of this module lists them.

    Raises:
        EvaluationError: there is no such arm.
    """
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        names = ", ".join(get_args(Retriever))
        raise EvaluationError(f"no arm {text!r}; write one of {names}, with @K documents, +latents or -latents")
    retriever: Retriever = match["retriever"]  # type: ignore[assignment]
    latents = match["latents"] == "+latents" or (retriever in _WITH_LATENTS and match["latents"] is None)
    if retriever in _WITHOUT_RANKING and match["k"] is not None:
        raise EvaluationError(f"{retriever} ranks no documents; leave out @{match['k']}")
    documents = None if retriever in _WITHOUT_RANKING else int(match["k"] or _DEFAULT_DOCUMENTS)
    if match["k"] == "0":
        documents = 0
        if not latents:
            raise EvaluationError(f"{text!r} is the arm none under another name; give it documents or +latents")
    named = retriever + ("" if documents is None else f"@{documents}") + (match["latents"] or "")
    return Arm(named, retriever, documents, latents)


def rank(memory: Memory, arm: Arm, question: Question, dense: DenseRetriever | None) -> Ranking:
    """What the arm's retriever finds for a question in the question's memory.

    Raises:
        EvaluationError: the arm is `dense` and no retriever was given.
    """
    started = time.perf_counter()
    limit = max(RANKED_DEPTH, arm.documents or 0)
    if arm.retriever == "oracle":
        found = [part for gold in question.positives for part in _parts(memory, gold.external_id)]
    elif not arm.ranks:
        found = []
    elif arm.retriever == "dense":
        if dense is None:
            raise EvaluationError("the arm dense needs a retriever; install the extra: pip install 'memspan[eval]'")
        found = dense.search(memory, question.question, limit)
    else:
        found = memory.search(question.question, selector=_SELECTORS[arm.retriever], limit=limit)
    return Ranking(tuple(found), time.perf_counter() - started)


def whole_memory(memory: Memory, sampling: Sampling, prompt_tokens: int | None) -> tuple[Evidence, ...]:
    """Every document of the memory, for the arm `context`.

    Raises:
        EvaluationError: they do not fit into the prompt.
    """
    tokens, room = memory.bank.catalog.counts(memory.namespace).tokens, _room(memory, sampling, prompt_tokens)
    if tokens > room:
        raise EvaluationError(f"the memory has {tokens:,} tokens and the prompt has room for {room:,}")
    stored = memory.bank.catalog.page(memory.namespace, 0, tokens + 1)
    return tuple(map(evidence_of, stored))


def answer(
    memory: Memory,
    arm: Arm,
    questions: Sequence[str],
    documents: Sequence[Sequence[Evidence]],
    sampling: Sampling,
    prompt_tokens: int | None = None,
) -> list[Answered]:
    """Answer a batch of questions from the documents that were found for them.

    Args:
        documents: per question, best first; what does not fit is left out from the end.
        prompt_tokens: of the whole prompt, at most. None: as many as the model has room for.
    """
    room = _room(memory, sampling, prompt_tokens)
    fitted = [
        fitted_context(memory.loaded, question, found[: arm.documents], room)
        for question, found in zip(questions, documents, strict=True)
    ]
    started = time.perf_counter()
    with memory.bank.snapshot(memory.namespace) as snapshot:
        model = memory.loaded.model
        layers = LocalMemory(snapshot.shards, snapshot.manifest, model.config.top_k_docs, device=model.device)
        contexts = [one.context for one in fitted]
        decoding = Decoding(memory.loaded, contexts, layers if arm.latents else None, sampling)
        steps = decoding.run()
        next(steps)
        prefilled = time.perf_counter()
        for _ in steps:
            pass
    ended = time.perf_counter()
    return [
        Answered(
            text=row.text.strip(),
            used=tuple(item.external_id for item in found[: one.used]),
            finish_reason=row.finish_reason or "length",
            num_prompt_tokens=len(one.context.ids),
            num_new_tokens=len(row.ids),
            prefill=(prefilled - started) / len(questions),
            decode=(ended - prefilled) / len(questions),
        )
        for row, one, found in zip(decoding.rows, fitted, documents, strict=True)
    ]


def _room(memory: Memory, sampling: Sampling, prompt_tokens: int | None) -> int:
    room = context_room(memory.loaded, sampling.max_new_tokens)
    return room if prompt_tokens is None else min(room, prompt_tokens)


def _parts(memory: Memory, external_id: str) -> list[Evidence]:
    return [evidence_of(stored) for stored in memory.bank.catalog.documents_of(memory.namespace, external_id)]


def evidence_of(stored: StoredDocument, score: float = 0.0) -> Evidence:
    """A stored document as evidence that no router chose."""
    return Evidence(
        document_id=stored.id,
        external_id=stored.external_id,
        title=stored.title,
        text=stored.text,
        span=stored.span,
        score=score,
        layers=None,
        metadata=stored.metadata,
        date=stored.date,
    )
