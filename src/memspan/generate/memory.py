"""`Memory`: a model with a bank. Ask it, and it answers with evidence; tell it, and it remembers; correct it."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE, Catalog
from memspan.bank.encode import check_content, check_model, manifest_of
from memspan.bank.remembered import names_for, remember
from memspan.bank.scope import Scope
from memspan.bank.snapshot import Snapshot
from memspan.bank.texts import check_namespace
from memspan.errors import BankMismatch
from memspan.events import Done, Event, TextWritten
from memspan.generate.answerer import Answerer, check_answerer
from memspan.generate.batching import DecodingBatch
from memspan.generate.calls import in_thread, named_options, streamed_in_thread
from memspan.generate.chat import answering_by
from memspan.generate.documents import DocumentStore
from memspan.generate.finder import Finder, check_encoded, holds_any
from memspan.generate.lexical import check_limit, fitting, nothing_in_scope, shown
from memspan.generate.request import AskOptions, Request
from memspan.generate.rerank import Means
from memspan.generate.searched import answering
from memspan.generate.selectors import Needs, SearchQuery, default_selector, ranking_selector
from memspan.generate.state import RoundState
from memspan.generate.summarize import Summarizer, Summary, SummaryPlan
from memspan.model.convert import LoadedModel, LoadOptions, load
from memspan.places import BankPlace, parse_bytes
from memspan.routing.ranks import Ranks
from memspan.types import Answer, Evidence

_log = logging.getLogger(__name__)
_FORMER_FINGERPRINT = (
    "%s names its model by the fingerprint of a former version, so all weights are hashed to open it; renew it, which "
    "encodes nothing: memspan reencode %s (with the same --model and --adapter)"
)
_ASK_OPTIONS = tuple(AskOptions.__annotations__)


class Memory(DocumentStore):
    """A model and one namespace of a bank. A question sees every change that was committed before it.

    Several threads may use it, but `refresh` and `close` must run alone. Of processes that share a bank (`ranks`) each
    asks in one thread. Each slow method has an async twin, with an `a` before its name, that runs in a worker thread:
    `await memory.aask(...)`, `async for text in memory.astream(...)`.
    """

    def __init__(
        self,
        bank: MemoryBank,
        loaded: LoadedModel,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        snapshot: bool = False,
        ranks: Ranks | None = None,
        answerer: Answerer | None = None,
    ) -> None:
        """Put a model before a bank.

        Args:
            namespace: whose documents are asked and changed; no others can be reached.
            snapshot: see the bank as it is now until `refresh` or `close`, whatever is committed.
            ranks: share the routing with other processes (Memory Parallel); all of them ask the same questions.
            answerer: another model that writes answers and summaries, as `memspan.generate.endpoint.Endpoint`; the
                memory model finds the documents. None: the memory model writes them.

        Raises:
            BankMismatch: the bank was encoded by another model, chunk size or template.
            RankError: the ranks have different models.
        """
        check_namespace(namespace)
        if answerer is not None:
            check_answerer(answerer)
        self.ranks, self.answerer = ranks, answerer
        try:
            check_content(bank, loaded)
            self._manifest = check_model(bank.manifest, loaded)
            loaded = loaded.keeping(self._manifest.content)
        except BankMismatch:
            bank.close()
            raise
        if self._manifest.encoder_fingerprint != loaded.model.encoder_fingerprint():
            _log.warning(_FORMER_FINGERPRINT, bank.folder, bank.folder)
        if ranks is not None:
            # They decode together: a dtype keeps a bank valid, and may change what is written.
            ranks.check_equal("their models", [self._manifest.encoder_fingerprint, str(loaded.model.dtype)])
        super().__init__(bank, loaded, namespace)
        self._owns_bank = True
        self._pinned = bank.snapshot(namespace) if snapshot else None

    @classmethod
    @named_options(*LoadOptions.__annotations__)
    def open(
        cls,
        bank: str | PathLike[str],
        model: str | Path | None = None,
        *,
        adapter: str | Path | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        create: bool = False,
        snapshot: bool = False,
        memory_budget: int | str | None = None,
        gpu_memory_budget: int | str | None = None,
        cache: str | Path | None = None,
        cache_budget: int | str | None = None,
        ranks: Ranks | None = None,
        answerer: Answerer | None = None,
        **how: Unpack[LoadOptions],
    ) -> Memory:
        """Open a bank with its model.

        Args:
            bank: folder of the bank, or the URL where it was published. A published bank is read-only.
            model: folder of the MSA checkpoint, or "smollm2-135m-instruct", the embedded default. None: the model that
                made the bank, and for a new bank the default.
            adapter: folder or name of an adapter trained on that model's backbone, or "none". None: without `model`,
                the adapter that made the bank; with the default model, its shipped adapter; with others, none.
            namespace: whose documents are asked and changed; no others can be reached.
            create: make an empty bank where there is none.
            snapshot: see the bank as it is now until `refresh` or `close`.
            memory_budget: bytes that the process may hold, or as "6GB". Routing keys that do not fit are read from disk
                at every question. Default: all keys are kept.
            gpu_memory_budget: bytes of routing keys that a GPU keeps, where the model is on one. Default: the memory
                that is free there beside the model, less a reserve for answering.
            cache, cache_budget: of a URL, the folder and the bytes ("10GB") for fetched files; see `BankPlace`.
            ranks, answerer: as for `Memory`.
            how: dtype, device, device_map, weights, quantization, content_chunk: see `memspan.model.convert.load`.

        Raises:
            StoreError: the URL cannot be read. ReadOnlyBank: it was given with `create`.
            CheckpointError: there is no model, or it is no longer where the bank found it.
            BudgetError: the budget is malformed; asking raises it where it is too small.
        """
        check_namespace(namespace)
        budgets = [parse_bytes(size) if isinstance(size, str) else size for size in (memory_budget, gpu_memory_budget)]
        place = BankPlace.of(bank, cache, cache_budget)
        if not create or MemoryBank.exists_or_fits(place):
            opened = MemoryBank.open(place, *budgets)  # before the model, which takes longer to load
            try:
                if create:
                    opened.check_owned("changed")
                model, adapter = names_for(opened, model, adapter)
                loaded = load(model, adapter=adapter, **how)
            except BaseException:
                opened.close()
                raise
        else:
            loaded = load(model, adapter=adapter, **how)
            manifest = manifest_of(loaded)
            opened = MemoryBank.open_or_create(place, manifest, *budgets)
            if opened.manifest == manifest:
                remember(opened.catalog, loaded.names)
        return cls(opened, loaded, namespace=namespace, snapshot=snapshot, ranks=ranks, answerer=answerer)

    def in_namespace(self, namespace: str) -> Memory:
        """Another namespace of the same bank, with the same model; not pinned. Closing it leaves this one open."""
        check_namespace(namespace)
        other = copy.copy(self)
        other.namespace, other._owns_bank, other._pinned = namespace, False, None
        return other

    @property
    def is_pinned(self) -> bool:
        """Whether it sees the bank as it was when it was opened with `snapshot=True`, or refreshed."""
        return self._pinned is not None

    def close(self) -> None:
        """Close it. Later questions and changes raise `BankClosed`; closing again does nothing."""
        if self._closed:
            return
        self._closed = True
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
        self._check_open()
        if self._pinned is not None:
            self._pinned.close()
            self._pinned = self.bank.snapshot(self.namespace)

    @property
    def default_selector(self) -> str:
        return default_selector(self.loaded.model.config.router_trained)

    @named_options(*_ASK_OPTIONS)
    def ask(self, question: str, **options: Unpack[AskOptions]) -> Answer:
        """Answer one question; see `AskOptions` for options and `ask_batch` for errors."""
        return self.ask_batch([question], **options)[0]

    @named_options(*_ASK_OPTIONS)
    def ask_batch(self, questions: Sequence[str], **options: Unpack[AskOptions]) -> list[Answer]:
        """Answer several questions in one batch; each gets the answer it would get alone.

        Raises:
            TypeError: there is no such option, or the questions are one text.
            QuestionError: a question is empty or too long.
            FilterError: the scope (`where`, `as_of`, `known_at`) is malformed, or names a field that no document has.
            EmptyBank: there is nothing to ask.
            AnswererError: another model answers, and gave no answer.
        """
        happened = self._answering(self._request(questions, options))
        answers = {place: event.answer for place, event in happened if isinstance(event, Done)}
        return [answers[place] for place in range(len(questions))]

    @named_options(*_ASK_OPTIONS)
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
        for event in self.events(question, **options):
            if isinstance(event, TextWritten):
                yield event.text
            elif isinstance(event, Done):
                on_answer(event.answer)

    @named_options(*_ASK_OPTIONS)
    def events(self, question: str, **options: Unpack[AskOptions]) -> Iterator[Event]:
        """Yield what happens as it happens: rounds, the documents they choose, the answer's text, and it all at last.

        `RoundStarted` and `RoundDone` for every round, `TextWritten` for every piece of text, one `Done`.
        """
        yield from (event for event in self.steps(question, None, **options) if event is not None)

    @named_options(*_ASK_OPTIONS)
    def steps(
        self, question: str, batch: DecodingBatch | None, **options: Unpack[AskOptions]
    ) -> Iterator[Event | None]:
        """As `events`, with None after every token: for driving several questions by turns.

        Args:
            batch: where the tokens are decoded together with those of other questions (of one thread). Whoever took
                None from this iterator takes the next when `batch.step` was called. Closing the iterator ends the
                question.
        """
        for _, event in self._answering(self._request([question], options), batch):
            yield event

    @named_options(*_ASK_OPTIONS)
    def check(self, question: str, **options: Unpack[AskOptions]) -> None:
        """Refuse what cannot be asked, without asking it; errors as of `ask_batch`."""
        request = self._request([question], options)
        with self._snapshot() as snapshot:
            self._finder(snapshot, request.scope, request.plan.chooser.needs)

    @named_options()
    def search(
        self,
        question: str,
        *,
        selector: str | None = None,
        limit: int = 10,
        min_score: float | None = None,
        rerank: str | None = None,
        cross_encoder: str | None = None,
        where: Mapping[str, Any] | None = None,
        as_of: str | None = None,
        known_at: str | None = None,
    ) -> list[Evidence]:
        """The documents a selector finds for a question, best first, without generating anything.

        Args:
            limit: documents, at most.
            min_score: leave out what scores less, 0 to 1; see `Evidence.score`.
            rerank, cross_encoder: as of `AskOptions`.
            where, as_of, known_at: only documents of this scope; see `memspan.bank.scope.Scope.parse`.

        Raises:
            QuestionError, FilterError, EmptyBank: as for `ask_batch`.
            MemspanError: no such selector, or its scores are comparable within one question only (`min_score`).
        """
        chosen = selector or self.default_selector
        needs = ranking_selector(chosen).needs
        check_limit("limit", limit)
        scope: AskOptions = {"where": where, "as_of": as_of, "known_at": known_at}
        how: AskOptions = {"selector": chosen, "rerank": rerank, "cross_encoder": cross_encoder, "min_score": min_score}
        request = Request.of(self.loaded, [question], scope | how)
        with self._snapshot() as snapshot:
            if not holds_any(snapshot, request.scope, self.bank.place):
                return []
            finder = self._finder(snapshot, request.scope, needs)
            context = self.loaded.template.context(question) if needs.routing else None
            (found,) = finder.rank(chosen, [SearchQuery(question, context)], limit)
            fit, means = fitting(found, min_score, chosen), Means(self.loaded, cross_encoder)
            return shown(finder, question, fit.selected, limit, request.plan.rerank, means)

    @named_options()
    def summarize(
        self,
        plan: SummaryPlan | None = None,
        *,
        where: Mapping[str, Any] | None = None,
        as_of: str | None = None,
        known_at: str | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Summary:
        """Sum up every document of a scope; each statement names the documents it rests on.

        Args:
            plan: how; default: everything, in ten statements.
            progress: called with the number of documents read so far, and the number of all.

        Raises:
            QuestionError: the plan leaves the model no room to read.
            FilterError, EmptyBank: as for `ask_batch`.
        """
        with self._snapshot() as snapshot:
            finder = self._finder(snapshot, Scope.parse(where, as_of, known_at))
            summarizer = Summarizer(self.loaded, snapshot, finder, plan or SummaryPlan(), progress, self.answerer)
            return summarizer.run()

    aask = in_thread(ask)
    aask_batch = in_thread(ask_batch)
    asearch = in_thread(search)
    asummarize = in_thread(summarize)
    astream = streamed_in_thread(stream)
    aevents = streamed_in_thread(events)

    def _request(self, questions: Sequence[str], options: AskOptions) -> Request:
        return Request.of(self.loaded, questions, options, self.answerer)

    def _answering(self, request: Request, batch: DecodingBatch | None = None) -> Iterator[tuple[int, Event | None]]:
        """Yield what happens, with the place of the question it happens to; None after every token."""
        with self._snapshot() as snapshot:
            plan, sampling = request.plan, request.sampling
            finder = self._finder(snapshot, request.scope, plan.chooser.needs)
            if self.answerer is None:
                loop = answering(RoundState(self.loaded, batch), finder, plan, sampling)
            else:
                loop = answering_by(self.answerer, self.loaded, finder, plan, sampling, request.passed)
            for place, event in loop.run(request.questions, request.history):
                if isinstance(event, Done) and snapshot.num_pending:
                    event = Done(replace(event.answer, pending=snapshot.num_pending))
                yield place, event

    def _finder(self, snapshot: Snapshot, scope: Scope, needs: Needs | None = None) -> Finder:
        """
        Raises:
            EmptyBank, NotEncoded: there is nothing to find, or nothing that is encoded and a selector needs it.
        """
        if not holds_any(snapshot, scope, self.bank.place):
            raise nothing_in_scope(self.bank.place)
        if needs is not None:
            check_encoded(snapshot, scope, needs, self.bank.place)
        return Finder(self.loaded, snapshot, scope, self.ranks)

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[Snapshot]:
        """What this memory sees: its pinned snapshot, or one for this question.

        Raises:
            BankMismatch: the bank was encoded anew for another model meanwhile.
            BankClosed: this memory was closed.
        """
        self._check_open()
        if self._pinned is not None:
            self._pinned.catalog.look_again()
            yield self._pinned
            return
        with self.bank.snapshot(self.namespace) as snapshot:
            if snapshot.manifest != self._manifest:
                if snapshot.manifest.content != self.loaded.content:
                    raise BankMismatch(f"{self.bank.place} was encoded anew since it was opened; open it again")
                self._manifest = check_model(snapshot.manifest, self.loaded)
            yield snapshot

    @contextlib.contextmanager
    def _catalog(self) -> Iterator[Catalog]:
        if self._pinned is not None and not self._closed:
            self._pinned.catalog.look_again()
            yield self._pinned.catalog
            return
        with super()._catalog() as catalog:
            yield catalog
