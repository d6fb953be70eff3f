"""New latents from the stored text: for another model, chunk size or template, or where some were damaged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from memspan.bank import edits
from memspan.bank.bank import MAX_SEGMENT_BYTES, MemoryBank
from memspan.bank.compaction import drop_unwanted_staged, sweep
from memspan.bank.encode import (
    COMMIT_SECONDS,
    EncodingRun,
    Part,
    Progress,
    SourceParts,
    has_former_name,
    manifest_of,
    tokenise,
)
from memspan.bank.encoded import Origin, write_segments
from memspan.bank.folder import WrittenSegments, segments_folder
from memspan.bank.remembered import remember
from memspan.bank.scope import LIVE, PAST, Scope
from memspan.bank.segment import SegmentWriter
from memspan.bank.stored import StoredSource
from memspan.model.convert import LoadedModel
from memspan.text.parts import split_document
from memspan.types import AddReport

_PAGE = 256

_Numbered = tuple[int, SourceParts]
"""A source by its number in the catalog, in its new parts."""


def reencode(
    bank: MemoryBank,
    loaded: LoadedModel,
    *,
    progress: Progress = lambda report: None,
    should_stop: Callable[[], bool] = lambda: False,
    batch_tokens: int | None = None,
    commit_seconds: float = COMMIT_SECONDS,
) -> AddReport:
    """Rebuild all latents with a model that the bank does not fit, from the stored text.

    The old latents serve questions (of the old model) until everything is done; then one transaction swaps them, and
    banks that are open with the old model say so at their next question. A run that was stopped or killed continues
    with what it has, also when documents were added or deleted in between. Documents keep their ids where the new
    model cuts their text at the same places; the parts of other texts get new ones.

    A bank that names the model by the fingerprint of a former version is given the new one, and nothing is encoded.

    Needs the space of both sets of latents. Arguments and errors are those of `add_documents`.
    """
    manifest = manifest_of(loaded)
    run = EncodingRun(loaded, progress, should_stop, batch_tokens)
    with bank.locked():
        if has_former_name(bank.manifest, loaded):
            edits.write_manifest(bank.catalog, manifest.as_json())
            bank.manifest = manifest
        if bank.manifest == manifest:
            remember(bank.catalog, loaded.names)
            if bank.catalog.staged_manifest() is not None:
                edits.stage_manifest(bank.catalog, None)
                sweep(bank.catalog, bank.folder)
            return run.report
        values = manifest.as_json()
        if bank.catalog.staged_manifest() != json.loads(json.dumps(values)):
            edits.stage_manifest(bank.catalog, values)
            sweep(bank.catalog, bank.folder)
        staging = _Staging(bank, loaded, run, commit_seconds)
        for namespace in bank.catalog.namespaces():
            staging.encode(namespace, run.window_tokens)
            if run.report.interrupted:
                return run.report
        drop_unwanted_staged(bank.catalog, bank.folder)
        edits.publish_staged(bank.catalog, values)
        remember(bank.catalog, loaded.names)
        sweep(bank.catalog, bank.folder)
    bank.manifest = manifest
    return run.report


def restore_segments(bank: MemoryBank, loaded: LoadedModel, namespace: str, segment_ids: Sequence[int]) -> None:
    """Encode the documents of damaged segments again, under the same ids. The caller holds the writer's lock.

    A document whose text is lost cannot be encoded, and is no document any more.
    """
    run = EncodingRun(loaded.keeping(bank.manifest.content))
    writer = SegmentWriter(segments_folder(bank.folder), bank.manifest, MAX_SEGMENT_BYTES)
    for segment_id in segment_ids:
        documents = bank.catalog.documents_in_segment(namespace, segment_id)
        for start in range(0, len(documents), _PAGE):
            page = documents[start : start + _PAGE]
            parts = [Part.of(stored.id, stored.span, stored.encoded_text, loaded.template) for stored in page]
            run.encode(run.batches(parts))
            for part in parts:
                part.write(writer)
    edits.replace_segments(bank.catalog, namespace, segment_ids, WrittenSegments(*writer.finish()), losing=True)


class _Staging:
    """Encodes sources and keeps their latents in the catalog's staging tables."""

    def __init__(self, bank: MemoryBank, loaded: LoadedModel, run: EncodingRun, commit_seconds: float) -> None:
        self._bank, self._loaded, self._run, self._commit_seconds = bank, loaded, run, commit_seconds
        self._next_id = bank.catalog.next_document_id()
        self._manifest = manifest_of(loaded)
        self._done: list[_Numbered] = []  # since the last commit

    def encode(self, namespace: str, window_tokens: int) -> None:
        """Encode what of a namespace is not staged yet, committing on the way."""
        for window in self._windows(namespace, window_tokens):
            self._run.encode(self._run.batches([part for _, source in window for part in source.parts]))
            for number, source in window:
                if source.is_encoded:
                    self._done.append((number, source))
                    self._run.count(updated=1, characters=len(source.document.text))
            if self._run.report.interrupted:
                break
            if self._is_due:
                self._commit(namespace)
        self._commit(namespace)

    @property
    def _is_due(self) -> bool:
        held = self._manifest.row_bytes * sum(part.chunks for _, source in self._done for part in source.parts)
        return self._run.seconds_since_commit >= self._commit_seconds or held >= MAX_SEGMENT_BYTES

    def _commit(self, namespace: str) -> None:
        done, self._done = self._done, []
        if done:
            origin = replace(Origin.of(self._bank, namespace), manifest=self._manifest)
            parts = [part for _, source in done for part in source.parts]
            segments = write_segments(segments_folder(self._bank.folder), origin, parts)
            sources = [(number, source.as_new()) for number, source in done]
            written = WrittenSegments.joined([segment.written for segment in segments])
            edits.stage(self._bank.catalog, namespace, sources, written)
        self._run.committed()

    def _windows(self, namespace: str, max_tokens: int) -> Iterator[list[_Numbered]]:
        catalog, window, tokens = self._bank.catalog, [], 0
        for stored, scope in self._sources(namespace):
            if catalog.is_staged(stored.id):
                continue
            source = self._parts(namespace, stored, scope)
            window.append((stored.id, source))
            tokens += source.tokens
            if tokens >= max_tokens:
                yield window
                window, tokens = [], 0
        if window:
            yield window

    def _sources(self, namespace: str) -> Iterator[tuple[StoredSource, Scope]]:
        """What has a text: what lives, and former versions."""
        for scope in (LIVE, PAST):
            after = 0
            while page := self._bank.catalog.source_page(namespace, after, _PAGE, scope):
                yield from ((stored, scope) for stored in page)
                after = page[-1].id

    def _parts(self, namespace: str, source: StoredSource, scope: Scope) -> SourceParts:
        """A source cut for the new model; ids are kept where the cuts are."""
        document, config, template = source.document, self._loaded.model.config, self._loaded.template
        spans = split_document(document, template, config.max_document_tokens)
        of_name = self._bank.catalog.documents_of(namespace, document.external_id, scope)
        stored = [found for found in of_name if found.source_id == source.id]
        if [found.span for found in stored] == spans:
            return tokenise(document, spans, [found.id for found in stored], template)
        first = self._next_id
        self._next_id += len(spans)
        return tokenise(document, spans, range(first, self._next_id), template)
