"""`Memory`: a model with a bank. Ask it, and it answers with evidence."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import DynamicCache

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import AddReport, add_documents, manifest_of
from memspan.errors import BankMismatch, EmptyBank, QuestionError
from memspan.generate.decode import Decoding, check_fits, context_room, prefill
from memspan.generate.sampling import GREEDY, Sampling
from memspan.model.convert import LoadedModel, load
from memspan.routing.local import LocalMemory, RoutedShard
from memspan.routing.ranking import Ranked, rank_documents
from memspan.routing.selector import (
    Selected,
    Selector,
    check_selector,
    default_selector,
    keep_adaptively,
    select,
)
from memspan.text.packing import pack_contexts
from memspan.text.template import Context, Passage, encoded_text
from memspan.types import Answer, Document, Evidence, Retrieved, is_unicode

MAX_DOCUMENTS = 5
# Documents scored below this share of the best one's score are left out.
MIN_SHARE = 0.5
_SEARCH_DEPTH = 64


class Memory:
    """A model and a bank. A question sees what was committed when it is asked. For one thread at a time."""

    def __init__(self, bank: MemoryBank, loaded: LoadedModel) -> None:
        """Put a model before a bank.

        Raises:
            BankMismatch: the bank was encoded by another model, chunk size or template.
        """
        try:
            bank.manifest.check_same(manifest_of(loaded))
        except BankMismatch:
            bank.close()
            raise
        self.bank, self.loaded = bank, loaded
        self._version: tuple[int, int] | None = None
        self._shards: list[RoutedShard] = []

    @classmethod
    def open(
        cls,
        bank: str | Path,
        model: str | Path | None = None,
        *,
        adapter: str | Path | None = None,
        create: bool = False,
        dtype: str | None = None,
        device: str | None = None,
    ) -> Memory:
        """Open a bank with its model.

        Args:
            bank: folder of the bank.
            model: folder of the MSA checkpoint; None: the embedded default (SmolLM2-135M-Instruct).
            adapter: folder of an adapter trained on that model's backbone; None: none.
            create: make an empty bank where there is none.
            dtype, device: see `memspan.model.convert.load`.
        """
        if not create or MemoryBank.exists(bank):
            opened = MemoryBank.open(bank)  # before the model, which takes longer to load
            return cls(opened, load(model, adapter=adapter, dtype=dtype, device=device))
        loaded = load(model, adapter=adapter, dtype=dtype, device=device)
        return cls(MemoryBank.create(bank, manifest_of(loaded)), loaded)

    def close(self) -> None:
        self._shards = []
        self.bank.close()

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, documents: Iterable[Document], **options: Any) -> AddReport:
        """Remember documents; see `memspan.bank.encode.add_documents` for options and errors."""
        return add_documents(self.bank, self.loaded, documents, **options)

    @property
    def default_selector(self) -> str:
        return default_selector(self.loaded.model.config.router_trained)

    def ask(
        self,
        question: str,
        *,
        selector: str | None = None,
        max_documents: int = MAX_DOCUMENTS,
        sampling: Sampling = GREEDY,
    ) -> Answer:
        """Answer one question; see `ask_batch` for arguments and errors."""
        return self.ask_batch([question], selector=selector, max_documents=max_documents, sampling=sampling)[0]

    def ask_batch(
        self,
        questions: Sequence[str],
        *,
        selector: str | None = None,
        max_documents: int = MAX_DOCUMENTS,
        sampling: Sampling = GREEDY,
    ) -> list[Answer]:
        """Answer several questions in one batch; each gets the answer it would get alone.

        Args:
            selector: router, lexical or hybrid; default: lexical while the router is untrained, hybrid after.
            max_documents: documents whose original text is put before the model, at most (fewer where fewer matter,
                none for 0).
            sampling: how to decode.

        Raises:
            QuestionError: a question is empty or too long.
            EmptyBank: there is nothing to ask.
        """
        stream = self._answering(questions, selector, max_documents, sampling)
        while True:
            try:
                next(stream)
            except StopIteration as finished:
                return finished.value

    def stream(
        self,
        question: str,
        *,
        selector: str | None = None,
        max_documents: int = MAX_DOCUMENTS,
        sampling: Sampling = GREEDY,
        on_answer: Callable[[Answer], None] = lambda answer: None,
    ) -> Iterator[str]:
        """Yield the answer's text as it is written.

        Args:
            on_answer: called with the whole answer when it is done. For the rest see `ask_batch`.
        """
        shown = 0
        stream = self._answering([question], selector, max_documents, sampling)
        while True:
            try:
                (text,) = next(stream)
            except StopIteration as finished:
                on_answer(finished.value[0])
                return
            if len(text) > shown:
                yield text[shown:]
                shown = len(text)

    def search(self, question: str, *, selector: str | None = None, limit: int = 10) -> list[Evidence]:
        """The documents a selector finds for a question, best first, without generating anything."""
        self._check([question])
        name = self._selector(selector)
        (selected,) = self._select([question], name, limit)
        return self._evidence(selected[:limit])

    def _answering(
        self, questions: Sequence[str], selector: str | None, max_documents: int, sampling: Sampling
    ) -> Iterator[list[str]]:
        """Yield the texts so far after every token; return the answers."""
        name = self._selector(selector)
        if max_documents < 0:
            raise QuestionError(f"max_documents must not be negative, not {max_documents}")
        self._check(questions)
        started = time.perf_counter()
        evidence, contexts = [], []
        for question, selected in zip(questions, self._select(questions, name, max_documents), strict=True):
            found = self._evidence(keep_adaptively(selected, max_documents, MIN_SHARE))
            context, used = self._context(question, found, sampling)
            evidence.append(tuple(found[:used]))
            contexts.append(context)
        selected_at = time.perf_counter()
        decoding = Decoding(self.loaded, contexts, self._layer_memory(), sampling)
        prefilled_at = selected_at
        for step, _ in enumerate(decoding.run()):
            if step == 0:
                prefilled_at = time.perf_counter()
            yield [row.text for row in decoding.rows]
        timings = {
            "select": selected_at - started,
            "prefill": prefilled_at - selected_at,
            "decode": time.perf_counter() - prefilled_at,
        }
        return [
            Answer(
                question=question,
                text=row.text.strip(),
                evidence=tuple(_with_layers(item, decoding.retrieved.values(), number) for item in found),
                selector=name,
                finish_reason=row.finish_reason or "length",
                num_prompt_tokens=len(context.ids),
                num_new_tokens=len(row.ids),
                timings=timings,
            )
            for number, (question, context, found, row) in enumerate(
                zip(questions, contexts, evidence, decoding.rows, strict=True)
            )
        ]

    def _check(self, questions: Sequence[str]) -> None:
        if not questions or not all(question.strip() for question in questions):
            raise QuestionError("the question is empty; write one")
        if not all(is_unicode(question) for question in questions):
            raise QuestionError("the question is not valid Unicode; check the encoding it is read in")
        self._refresh()
        if not self._shards:
            folder = self.bank.folder
            raise EmptyBank(f"{folder} holds no documents; add some with: memspan add {folder} FILES...")

    def _refresh(self) -> None:
        version = self.bank.catalog.version()
        if version != self._version:
            self._shards, self._version = [RoutedShard(shard) for shard in self.bank.shards()], version

    def _layer_memory(self) -> LocalMemory:
        config = self.loaded.model.config
        return LocalMemory(self._shards, self.bank.manifest, config.top_k_docs, device=self.loaded.model.device)

    def _selector(self, name: str | None) -> Selector:
        return check_selector(name or self.default_selector)

    def _select(self, questions: Sequence[str], selector: Selector, depth: int) -> list[list[Selected]]:
        """Rank documents for every question, by full-text search at least `depth` of them (where so many match)."""
        depth = max(depth, _SEARCH_DEPTH)
        routed: list[list[Ranked]] = [[] for _ in questions]
        lexical: list[list[tuple[int, float]]] = [[] for _ in questions]
        if selector != "lexical":
            routed = self._route(questions)
        if selector != "router":
            lexical = [self.bank.catalog.search(question, depth) for question in questions]
        return [select(selector, *found) for found in zip(lexical, routed, strict=True)]

    def _route(self, questions: Sequence[str]) -> list[list[Ranked]]:
        """Route the bare questions and rank what the MSA layers considered."""
        contexts = [self.loaded.template.context(question) for question in questions]
        for context in contexts:
            check_fits(self.loaded, len(context.ids), 0)
        model, memory = self.loaded.model, self._layer_memory()
        packed = pack_contexts(contexts, model.config.offset).to(model.device)
        prefill(model, packed, memory, {}, DynamicCache(config=model.config.text_config))
        return [
            rank_documents({layer: found[row] for layer, found in memory.candidates.items()}, model.config.top_k_docs)
            for row in range(len(questions))
        ]

    def _evidence(self, selected: Sequence[Selected]) -> list[Evidence]:
        stored = self.bank.catalog.documents([found.document_id for found in selected])
        by_id = {document.id: document for document in stored}
        return [
            Evidence(
                document_id=document.id,
                external_id=document.external_id,
                title=document.title,
                text=document.text,
                span=document.span,
                score=found.score,
                layers=found.layers,
                metadata=document.metadata,
            )
            for found in selected
            if (document := by_id.get(found.document_id)) is not None
        ]

    def _context(self, question: str, found: Sequence[Evidence], sampling: Sampling) -> tuple[Context, int]:
        """The context with as much of the evidence, best first, as fits; and how many documents that is."""
        template = self.loaded.template
        room = context_room(self.loaded, sampling.max_new_tokens)
        passages = [Passage(item.document_id, encoded_text(item.title, item.text)) for item in found]
        while True:
            context = template.context(question, passages)
            if len(context.ids) <= room or not passages:  # a question that is too long by itself is refused later
                return context, len(passages)
            passages.pop()


def _with_layers(item: Evidence, retrieved: Iterable[Retrieved], row: int) -> Evidence:
    """Evidence with the number of MSA layers that attended to its document while answering."""
    return replace(item, layers=sum(item.document_id in found.doc_ids[row] for found in retrieved))
