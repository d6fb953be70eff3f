"""`Memory`: a model with a bank. Ask it, and it answers with evidence; tell it, and it remembers; correct it."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict, Unpack

from transformers import DynamicCache

from memspan.bank.add import AddReport, add_documents
from memspan.bank.bank import MemoryBank, check_namespace
from memspan.bank.catalog import DEFAULT_NAMESPACE
from memspan.bank.encode import manifest_of
from memspan.bank.scope import Scope
from memspan.bank.snapshot import Snapshot
from memspan.errors import BankMismatch, EmptyBank, QuestionError, UnknownDocument
from memspan.generate.decode import Decoding, check_fits, context_room, prefill
from memspan.generate.sampling import GREEDY, Sampling
from memspan.model.convert import LoadedModel, load
from memspan.routing.local import LocalMemory
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
from memspan.types import JSON, Answer, Document, Evidence, Retrieved, is_unicode

MAX_DOCUMENTS = 5
# Documents scored below this share of the best one's score are left out.
MIN_SHARE = 0.5
_SEARCH_DEPTH = 64
_DAY_LENGTH = len("2026-03-01")


class AskOptions(TypedDict, total=False):
    """How to ask.

    Keys:
        selector: router, lexical or hybrid; default: lexical while the router is untrained, hybrid after.
        max_documents: documents whose original text is put before the model, at most (fewer where fewer matter, none
            for 0).
        sampling: how to decode.
        where: only documents whose metadata match; see `memspan.bank.scope.Scope.parse`.
        as_of: only documents dated this day or moment, or before: what was known then.
    """

    selector: str | None
    max_documents: int
    sampling: Sampling
    where: Mapping[str, Any] | None
    as_of: str | None


@dataclass(frozen=True, slots=True)
class _Request:
    """Questions asked together, checked."""

    questions: Sequence[str]
    selector: Selector
    max_documents: int
    sampling: Sampling
    scope: Scope


class Memory:
    """A model and one namespace of a bank. A question sees what was committed when it is asked.

    For one thread at a time; threads share the bank and the model, each by a `Memory` of its own (`in_namespace`).
    """

    def __init__(
        self,
        bank: MemoryBank,
        loaded: LoadedModel,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        snapshot: bool = False,
    ) -> None:
        """Put a model before a bank.

        Args:
            namespace: whose documents are asked and changed; no others can be reached.
            snapshot: see the bank as it is now until `refresh` or `close`, whatever is committed.

        Raises:
            BankMismatch: the bank was encoded by another model, chunk size or template.
        """
        check_namespace(namespace)
        self._manifest = manifest_of(loaded)
        try:
            bank.manifest.check_same(self._manifest)
        except BankMismatch:
            bank.close()
            raise
        self.bank, self.loaded, self.namespace = bank, loaded, namespace
        self._owns_bank = True
        self._pinned = bank.snapshot(namespace) if snapshot else None

    @classmethod
    def open(
        cls,
        bank: str | Path,
        model: str | Path | None = None,
        *,
        adapter: str | Path | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        create: bool = False,
        snapshot: bool = False,
        dtype: str | None = None,
        device: str | None = None,
    ) -> Memory:
        """Open a bank with its model.

        Args:
            bank: folder of the bank.
            model: folder of the MSA checkpoint; None: the embedded default (SmolLM2-135M-Instruct).
            adapter: folder of an adapter trained on that model's backbone; None: none.
            namespace: whose documents are asked and changed; no others can be reached.
            create: make an empty bank where there is none.
            snapshot: see the bank as it is now until `refresh` or `close`.
            dtype, device: see `memspan.model.convert.load`.
        """
        check_namespace(namespace)
        if not create or MemoryBank.exists(bank):
            opened = MemoryBank.open(bank)  # before the model, which takes longer to load
            loaded = load(model, adapter=adapter, dtype=dtype, device=device)
        else:
            loaded = load(model, adapter=adapter, dtype=dtype, device=device)
            opened = MemoryBank.create(bank, manifest_of(loaded))
        return cls(opened, loaded, namespace=namespace, snapshot=snapshot)

    def in_namespace(self, namespace: str) -> Memory:
        """Another namespace of the same bank, with the same model. Closing it leaves this one open."""
        other = Memory(self.bank, self.loaded, namespace=namespace)
        other._owns_bank = False
        return other

    def close(self) -> None:
        if self._pinned is not None:
            self._pinned.close()
            self._pinned = None
        if self._owns_bank:
            self.bank.close()

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refresh(self) -> None:
        """See what was committed since, where this memory was opened with `snapshot=True` (others always do)."""
        if self._pinned is not None:
            self._pinned.close()
            self._pinned = self.bank.snapshot(self.namespace)

    def add(self, documents: Iterable[Document], **options: Any) -> AddReport:
        """Remember documents; see `memspan.bank.add.add_documents` for options and errors."""
        return add_documents(self.bank, self.loaded, documents, namespace=self.namespace, **options)

    def remember(self, turn: str, *, speaker: str = "", session: str = "", date: str | None = None) -> AddReport:
        """Remember one turn of a conversation. The same turn told twice is remembered once.

        Args:
            turn: what was said, verbatim.
            speaker: who said it; put before the text, and kept as metadata.
            session: the conversation it belongs to; kept as metadata.
            date: when, ISO 8601. Default: now.
        """
        date = date or datetime.now(UTC).isoformat(timespec="milliseconds")
        text = f"{speaker}: {turn}" if speaker else turn
        digest = hashlib.sha256(f"{date}\n{text}".encode()).hexdigest()[:16]
        metadata: dict[str, JSON] = {"speaker": speaker, "session": session}
        return self.add([Document(f"{session or 'turn'}/{digest}", text, metadata=metadata, date=date)])

    def get(self, id: int | str) -> Document:
        """A document as it was given, by its external id or by the bank's id of it (or of one of its parts).

        Raises:
            UnknownDocument: there is none.
        """
        stored = self.bank.catalog.source(self.namespace, self.bank.resolve(id, self.namespace))
        if stored is None:
            raise UnknownDocument(f"document {id!r} was deleted just now")
        return stored.document

    def update(
        self,
        id: int | str,
        *,
        text: str | None = None,
        title: str | None = None,
        metadata: Mapping[str, JSON] | None = None,
        date: str | None = None,
    ) -> AddReport:
        """Replace what is given of a document; the rest stays. One transaction; the next question sees it.

        A new text or title is encoded, under a new id; metadata and date alone are not.

        Raises:
            UnknownDocument: there is no such document.
        """
        changes = {"text": text, "title": title, "metadata": metadata, "date": date}
        given = {name: value for name, value in changes.items() if value is not None}
        return self.add([replace(self.get(id), **given)])

    def delete(self, ids: Iterable[int | str]) -> int:
        """Forget documents; see `MemoryBank.delete` for arguments and errors. `bank.compact` erases them."""
        return self.bank.delete(ids, self.namespace)

    @property
    def default_selector(self) -> str:
        return default_selector(self.loaded.model.config.router_trained)

    def ask(self, question: str, **options: Unpack[AskOptions]) -> Answer:
        """Answer one question; see `AskOptions` for options and `ask_batch` for errors."""
        return self.ask_batch([question], **options)[0]

    def ask_batch(self, questions: Sequence[str], **options: Unpack[AskOptions]) -> list[Answer]:
        """Answer several questions in one batch; each gets the answer it would get alone.

        Raises:
            QuestionError: a question is empty or too long.
            FilterError: `where` or `as_of` is malformed, or names a field that no document has.
            EmptyBank: there is nothing to ask.
        """
        stream = self._answering(self._request(questions, **options))
        while True:
            try:
                next(stream)
            except StopIteration as finished:
                return finished.value

    def stream(
        self,
        question: str,
        *,
        on_answer: Callable[[Answer], None] = lambda answer: None,
        **options: Unpack[AskOptions],
    ) -> Iterator[str]:
        """Yield the answer's text as it is written.

        Args:
            on_answer: called with the whole answer when it is done. For the rest see `ask_batch`.
        """
        shown = 0
        stream = self._answering(self._request([question], **options))
        while True:
            try:
                (text,) = next(stream)
            except StopIteration as finished:
                on_answer(finished.value[0])
                return
            if len(text) > shown:
                yield text[shown:]
                shown = len(text)

    def search(
        self,
        question: str,
        *,
        selector: str | None = None,
        limit: int = 10,
        where: Mapping[str, Any] | None = None,
        as_of: str | None = None,
    ) -> list[Evidence]:
        """The documents a selector finds for a question, best first, without generating anything."""
        request = self._request([question], selector=selector, max_documents=limit, where=where, as_of=as_of)
        with self._snapshot() as snapshot:
            self._check_not_empty(snapshot)
            if not snapshot.selectable_mask(request.scope).any():
                return []
            (selected,) = self._select(snapshot, request)
            return _evidence(snapshot, selected[:limit])

    def _request(self, questions: Sequence[str], **options: Unpack[AskOptions]) -> _Request:
        """
        Raises:
            QuestionError: a question is empty, or not text.
            FilterError: the scope is malformed.
        """
        max_documents = options.get("max_documents", MAX_DOCUMENTS)
        if max_documents < 0:
            raise QuestionError(f"max_documents must not be negative, not {max_documents}")
        if not questions or not all(question.strip() for question in questions):
            raise QuestionError("the question is empty; write one")
        if not all(is_unicode(question) for question in questions):
            raise QuestionError("the question is not valid Unicode; check the encoding it is read in")
        return _Request(
            questions,
            check_selector(options.get("selector") or self.default_selector),
            max_documents,
            options.get("sampling", GREEDY),
            Scope.parse(options.get("where"), options.get("as_of")),
        )

    def _answering(self, request: _Request) -> Iterator[list[str]]:
        """Yield the texts so far after every token; return the answers."""
        with self._snapshot() as snapshot:
            self._check_not_empty(snapshot)
            if not snapshot.selectable_mask(request.scope).any():
                raise EmptyBank(f"no document of {self.bank.folder} is in the scope of the filter; widen it")
            return (yield from self._answer(snapshot, request))

    def _answer(self, snapshot: Snapshot, request: _Request) -> Iterator[list[str]]:
        started = time.perf_counter()
        evidence, contexts = [], []
        for question, selected in zip(request.questions, self._select(snapshot, request), strict=True):
            found = _evidence(snapshot, keep_adaptively(selected, request.max_documents, MIN_SHARE))
            context, used = self.context(question, found, request.sampling)
            evidence.append(tuple(found[:used]))
            contexts.append(context)
        selected_at = time.perf_counter()
        memory = self._layer_memory(snapshot, request.scope)
        decoding = Decoding(self.loaded, contexts, memory, request.sampling)
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
                selector=request.selector,
                finish_reason=row.finish_reason or "length",
                num_prompt_tokens=len(context.ids),
                num_new_tokens=len(row.ids),
                timings=timings,
            )
            for number, (question, context, found, row) in enumerate(
                zip(request.questions, contexts, evidence, decoding.rows, strict=True)
            )
        ]

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[Snapshot]:
        """What this memory sees: its pinned snapshot, or one for this question.

        Raises:
            BankMismatch: the bank was encoded anew for another model meanwhile.
        """
        if self._pinned is not None:
            yield self._pinned
            return
        with self.bank.snapshot(self.namespace) as snapshot:
            snapshot.manifest.check_same(self._manifest)
            yield snapshot

    def _check_not_empty(self, snapshot: Snapshot) -> None:
        if not snapshot.num_documents:
            folder, name = self.bank.folder, self.namespace
            where = str(folder) if name == DEFAULT_NAMESPACE else f"namespace {name!r} of {folder}"
            option = "" if name == DEFAULT_NAMESPACE else f" --namespace {name}"
            raise EmptyBank(f"{where} holds no documents; add some with: memspan add {folder} FILES...{option}")

    def _layer_memory(self, snapshot: Snapshot, scope: Scope) -> LocalMemory:
        config, device = self.loaded.model.config, self.loaded.model.device
        selectable_N = snapshot.selectable_mask(scope)
        return LocalMemory(
            snapshot.shards, snapshot.manifest, config.top_k_docs, selectable_N=selectable_N, device=device
        )

    def _select(self, snapshot: Snapshot, request: _Request) -> list[list[Selected]]:
        """Rank documents for every question, by full-text search at least `max_documents` (where so many match)."""
        depth = max(request.max_documents, _SEARCH_DEPTH)
        routed: list[list[Ranked]] = [[] for _ in request.questions]
        lexical: list[list[tuple[int, float]]] = [[] for _ in request.questions]
        if request.selector != "lexical":
            routed = self._route(snapshot, request)
        if request.selector != "router":
            lexical = [snapshot.search(question, depth, request.scope) for question in request.questions]
        return [select(request.selector, *found) for found in zip(lexical, routed, strict=True)]

    def _route(self, snapshot: Snapshot, request: _Request) -> list[list[Ranked]]:
        """Route the bare questions and rank what the MSA layers considered."""
        contexts = [self.loaded.template.context(question) for question in request.questions]
        for context in contexts:
            check_fits(self.loaded, len(context.ids), 0)
        model, memory = self.loaded.model, self._layer_memory(snapshot, request.scope)
        packed = pack_contexts(contexts, model.config.offset).to(model.device)
        prefill(model, packed, memory, {}, DynamicCache(config=model.config.text_config))
        return [
            rank_documents({layer: found[row] for layer, found in memory.candidates.items()}, model.config.top_k_docs)
            for row in range(len(contexts))
        ]

    def context(self, question: str, found: Sequence[Evidence], sampling: Sampling) -> tuple[Context, int]:
        """The context with as much of the evidence, best first, as fits; and how many documents that is.

        In the context the oldest document comes first: of two that disagree the later one is read last.
        """
        template = self.loaded.template
        room = context_room(self.loaded, sampling.max_new_tokens)
        used = len(found)
        while True:
            dated = sorted(found[:used], key=lambda item: (item.date, item.document_id))
            passages = [
                Passage(item.document_id, encoded_text(item.title, item.text), item.date[:_DAY_LENGTH])
                for item in dated
            ]
            context = template.context(question, passages)
            if len(context.ids) <= room or not used:  # a question that is too long by itself is refused later
                return context, used
            used -= 1


def _evidence(snapshot: Snapshot, selected: Sequence[Selected]) -> list[Evidence]:
    stored = snapshot.documents([found.document_id for found in selected])
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
            date=document.date,
        )
        for found in selected
        if (document := by_id.get(found.document_id)) is not None
    ]


def _with_layers(item: Evidence, retrieved: Iterable[Retrieved], row: int) -> Evidence:
    """Evidence with the number of MSA layers that attended to its document while answering."""
    return replace(item, layers=sum(item.document_id in found.doc_ids[row] for found in retrieved))
