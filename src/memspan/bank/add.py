"""Corpus -> bank: in windows of documents, committed on the way. Run again, it continues."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import IO, Literal

from memspan.bank.bank import BankWriter, MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE
from memspan.bank.encode import EncodingRun, Part, Progress, SourceParts, check_model, manifest_of, tokenise
from memspan.bank.encoders import Encoders, Group
from memspan.bank.lines import read_exported
from memspan.bank.remembered import remember
from memspan.errors import BankError, DuplicateDocument
from memspan.model.convert import LoadedModel
from memspan.text.packing import BATCH_TOKENS
from memspan.text.parts import split_document
from memspan.types import AddReport, Document

# Documents are sorted by length within a window of so many batches; it bounds what waits in memory, too.
WINDOW_BATCHES = 8
_WINDOW_DOCUMENTS = 1024
COMMIT_SECONDS = 5.0

Existing = Literal["replace", "refuse", "renew"]


@dataclass(slots=True)
class _Window:
    """A piece of the corpus: what to encode, by external id, and what need not be."""

    sources: dict[str, SourceParts] = field(default_factory=dict)
    replacing: set[str] = field(default_factory=set)
    relabelled: dict[str, Document] = field(default_factory=dict)
    unchanged: list[Document] = field(default_factory=list)
    tokens: int = 0

    @property
    def parts(self) -> list[Part]:
        return [part for source in self.sources.values() for part in source.parts]

    def changes(self, external_id: str) -> bool:
        """Whether it adds, replaces or relabels a document."""
        return external_id in self.sources or external_id in self.relabelled

    def is_full(self, max_tokens: int) -> bool:
        seen = len(self.sources) + len(self.relabelled) + len(self.unchanged)
        return self.tokens >= max_tokens or seen >= _WINDOW_DOCUMENTS


def add_documents(
    bank: MemoryBank,
    loaded: LoadedModel,
    documents: Iterable[Document],
    *,
    namespace: str = DEFAULT_NAMESPACE,
    existing: Existing = "replace",
    progress: Progress = lambda report: None,
    should_stop: Callable[[], bool] = lambda: False,
    batch_tokens: int = BATCH_TOKENS,
    commit_seconds: float = COMMIT_SECONDS,
    group: Group | None = None,
) -> AddReport:
    """Encode documents into a bank. Sources already there with the same content are skipped; others replace the old.

    Where only metadata or date differ, those are replaced and nothing is encoded. Memory is bounded whatever the corpus
    size: a window of documents (or one very long one), one segment's buffer. Writes segments and the catalog (see
    `MemoryBank`), committing about every `commit_seconds`.

    Args:
        namespace: where they go; questions see one namespace.
        existing: what becomes of a document whose external id is there already: other content replaces it, or is
            refused; "renew" replaces it even if nothing changed.
        progress: called after every batch (and stretch of unchanged documents) with the state so far.
        should_stop: asked as often; when True, everything encoded so far is committed and the call returns.
        batch_tokens: padded tokens per forward.
        commit_seconds: how much work a killed process may lose.
        group: processes that encode together, of which this is rank 0; the others call `encode_for_first`.

    Raises:
        BankMismatch: the bank was made by another model, chunk size or template.
        DuplicateDocument: an external id is there already, and `existing` is "refuse".
        BankBusy: another process writes.
        BankError: the bank cannot be written; what was committed stays.
        RankError: another rank failed or was lost; what was committed stays.

    Any other exception (from `documents`, say) ends the run after what was encoded is committed.
    """
    manifest = manifest_of(loaded)
    run = EncodingRun(loaded, progress, should_stop, batch_tokens)
    with Encoders(run, group, bank.folder, manifest.encoder_fingerprint) as encoders:
        check_model(bank.manifest, loaded)
        with bank.writer(namespace) as writer:
            remember(bank.catalog, loaded.names)
            adding = _Adding(writer, encoders, run)
            try:
                for windows in _rounds(documents, loaded, adding, WINDOW_BATCHES * batch_tokens, existing):
                    adding.encode(windows)
                    if run.report.interrupted:
                        break
                    if run.seconds_since_commit >= commit_seconds:
                        adding.commit()
            except BaseException as error:
                bank_failed = isinstance(error, BankError) and not isinstance(error, DuplicateDocument)
                if adding.can_commit and not bank_failed:
                    adding.commit()
                raise
            adding.commit()
    return run.report


def import_documents(
    bank: MemoryBank,
    loaded: LoadedModel,
    stream: IO[str],
    *,
    progress: Progress = lambda report: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[AddReport]:
    """Add what `export_documents` wrote, each document to its namespace; returns a report per run of one namespace.

    Raises:
        CorpusError: a line is not of that form (named); what came before it is in the bank.
    """
    reports: list[AddReport] = []
    for namespace, group in groupby(read_exported(stream), key=lambda item: item[0]):
        documents = (document for _, document in group)
        report = add_documents(bank, loaded, documents, namespace=namespace, progress=progress, should_stop=should_stop)
        reports.append(report)
        if report.interrupted:
            break
    return reports


class _Adding:
    """A writer, and who encodes for it."""

    def __init__(self, writer: BankWriter, encoders: Encoders, run: EncodingRun) -> None:
        self.writer, self.encoders = writer, encoders
        self._run = run
        self._committing = False

    @property
    def can_commit(self) -> bool:
        """Not after a commit that failed, nor without what another rank encoded."""
        return self.encoders.in_step and not self._committing

    def encode(self, windows: Sequence[_Window]) -> None:
        """Encode some windows that change no document twice, and hand them to the writer."""
        for window in windows:
            characters = sum(len(document.text) for document in window.unchanged)
            self._run.count(unchanged=len(window.unchanged), characters=characters)
            if not self.writer.waiting.isdisjoint(window.sources):
                self.commit()
        self.encoders.encode([window.parts for window in windows])
        for window in windows:
            self._hand_over(window)

    def commit(self) -> None:
        """Make what was handed over exist."""
        self._committing = True
        self.writer.commit(self.encoders.write())
        self._committing = False
        self._run.committed()

    def _hand_over(self, window: _Window) -> None:
        """Pass on the sources whose parts are all encoded (all of them, unless the run was stopped)."""
        for name, source in window.sources.items():
            if source.is_encoded:
                self.writer.add(source.as_new(), [part.latents for part in source.parts])
                self.encoders.keep(source.parts)
                self._run.count(updated=int(name in window.replacing), added=int(name not in window.replacing))
        for document in window.relabelled.values():
            self.writer.relabel(document)
            self._run.count(updated=1, characters=len(document.text))


def _rounds(
    documents: Iterable[Document], loaded: LoadedModel, adding: _Adding, max_tokens: int, existing: Existing
) -> Iterator[list[_Window]]:
    """The corpus in windows of about `max_tokens` to encode, as many together as there are processes that encode.

    A window ends when it is full: its batches are of like length, and a stop loses at most one. The last text given
    for an external id counts; where one is given again that an earlier window of the round changes, the round ends.
    """
    windows = [_Window()]
    failure: Exception | None = None
    stream = iter(documents)
    while failure is None:
        try:
            document = next(stream)
            if any(window.changes(document.external_id) for window in windows[:-1]):
                yield windows
                windows = [_Window()]
            _place(document, windows[-1], loaded, adding.writer, existing)
        except StopIteration:
            break
        except Exception as error:  # of the corpus, whatever it is: what came before is kept
            failure = error
        if failure is None and windows[-1].is_full(max_tokens):
            if len(windows) == adding.encoders.num_ranks:
                yield windows
                windows = []
            windows.append(_Window())
    yield windows
    if failure is not None:
        raise failure


def _place(document: Document, window: _Window, loaded: LoadedModel, writer: BankWriter, existing: Existing) -> None:
    """Put a document where it belongs in a window."""
    name = document.external_id
    earlier = window.sources.get(name)
    in_window = window.relabelled.get(name) or (earlier.document if earlier else None)
    known = (in_window.content_hash, in_window.text_hash) if in_window else writer.hashes(name)
    if known is not None and known[0] == document.content_hash and existing != "renew":
        window.unchanged.append(document)
        return
    if known is not None and existing == "refuse":
        raise DuplicateDocument(
            f"a document {name!r} is in the bank already; give it another external id, or update it"
        )
    if known is not None and known[1] == document.text_hash and existing != "renew":
        if earlier is not None:
            earlier.document = document
        else:
            window.relabelled[name] = document
        return
    template, config = loaded.template, loaded.model.config
    spans = split_document(document, template, config.max_document_tokens)
    if known is not None and (earlier is None or name in window.replacing):
        window.replacing.add(name)
    window.relabelled.pop(name, None)
    source = window.sources[name] = tokenise(document, spans, writer.reserve_ids(len(spans)), template)
    window.tokens += source.tokens
