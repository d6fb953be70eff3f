"""The library's values in the form of responses."""

from __future__ import annotations

from collections.abc import Iterable

from memspan.bank.catalog import StoredSource
from memspan.serve.imports import Import
from memspan.serve.schemas import EvidenceOut, ImportOut, LayerOut, MemoryOut, RoundOut, SpanOut
from memspan.types import Evidence, LayerRouting, Round


def evidence_out(item: Evidence) -> EvidenceOut:
    return EvidenceOut(
        document_id=item.document_id,
        id=item.external_id,
        title=item.title,
        text=item.text,
        span=SpanOut(start=item.span.start, end=item.span.end),
        score=item.score,
        layers=item.layers,
        metadata=dict(item.metadata),
        date=item.date,
    )


def layers_out(routed: Iterable[LayerRouting]) -> list[LayerOut]:
    return [
        LayerOut(layer=layer.layer, document_ids=list(layer.document_ids), scores=list(layer.scores))
        for layer in routed
    ]


def round_out(done: Round) -> RoundOut:
    return RoundOut(
        number=done.number,
        selector=done.selector,
        query=done.query,
        chosen=[item.document_id for item in done.chosen],
        routed=layers_out(done.routed),
        written=done.written,
        num_written_tokens=done.num_written_tokens,
        num_injected_tokens=done.num_injected_tokens,
        malformed=done.malformed,
        unknown=done.unknown,
        repeated=done.repeated,
        left_out=done.left_out,
        ended=done.ended,
        timings=dict(done.timings),
    )


def memory_out(bank: str, namespace: str, stored: StoredSource, with_text: bool = True) -> MemoryOut:
    document = stored.document
    return MemoryOut(
        id=document.external_id,
        bank=bank,
        namespace=namespace,
        title=document.title,
        text=document.text if with_text else None,
        metadata=dict(document.metadata),
        date=document.date,
        added_at=stored.added_at,
    )


def import_out(job: Import) -> ImportOut:
    return ImportOut(
        id=job.id,
        bank=job.bank.name,
        namespace=job.namespace,
        status=job.status,  # type: ignore[arg-type]
        total=job.total,
        done=job.done,
        added=job.added,
        updated=job.updated,
        unchanged=job.unchanged,
        error=job.error,
    )
