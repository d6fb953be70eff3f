"""`/v1/status` and `/v1/documents`: how large everything is, and which memory a document of the bank is a part of."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.concurrency import run_in_threadpool

from memspan import __version__
from memspan.bank.catalog import Catalog
from memspan.generate.selectors import selector_names
from memspan.serve.api.memories import BankQuery, NamespaceQuery
from memspan.serve.banks import ServedBank
from memspan.serve.errors import ERRORS
from memspan.serve.keys import SCOPES, Principal
from memspan.serve.schemas import BankOut, DocumentList, DocumentOut, StatusOut
from memspan.serve.service import Reader, ServiceDep, known_query, namespace_for
from memspan.text.readers import FORMATS
from memspan.text.readers.opening import SHORT_NAMES
from memspan.text.readers.signatures import IMAGES

router = APIRouter(responses=ERRORS, tags=["server"], dependencies=[Depends(known_query)])

_MOST_DOCUMENTS = 500


@router.get("/v1/status")
async def status(service: ServiceDep, reader: Reader, namespace: NamespaceQuery = None) -> StatusOut:
    """What this key may do, how busy the server is, and the banks with the size of one namespace."""
    name = namespace_for(reader, namespace)

    def banks() -> list[BankOut]:
        return [_bank_out(bank, name, reader) for bank in service.banks.values()]

    return StatusOut(
        version=__version__,
        ready=service.engine.is_ready,
        running=service.engine.num_running,
        waiting=service.engine.num_waiting,
        scopes=[scope for scope in SCOPES if reader.may(scope)],
        namespace=name,
        max_new_tokens=service.settings.max_new_tokens,
        answerer=service.answerer,
        formats=sorted({*FORMATS, *(name.removeprefix(".") for name in SHORT_NAMES)}),
        image_formats=sorted(IMAGES),
        banks=await run_in_threadpool(banks),
    )


@router.get("/v1/documents")
async def documents(
    service: ServiceDep,
    reader: Reader,
    ids: Annotated[list[int], Query(max_length=_MOST_DOCUMENTS)],
    bank: BankQuery = None,
    namespace: NamespaceQuery = None,
) -> DocumentList:
    """The memories that documents are parts of, by the numbers a trace names. Those that are gone are left out."""
    served, name = service.bank(bank), namespace_for(reader, namespace)
    found = await run_in_threadpool(served.read, lambda catalog: catalog.documents(name, ids))
    return DocumentList(data=[DocumentOut.of(stored) for stored in found])


def _bank_out(bank: ServedBank, namespace: str, reader: Principal) -> BankOut:
    counts, memory, namespaces = bank.counts(namespace), bank.memory(namespace), bank.read(Catalog.namespaces)
    return BankOut(
        name=bank.name,
        namespaces=[name for name in namespaces if reader.may_enter(name)],
        selectors=selector_names(loaded=memory.loaded),
        default_selector=memory.default_selector,
        memories=counts.sources,
        documents=counts.documents,
        tokens=counts.tokens,
        chunks=counts.chunks,
        bytes=counts.segment_bytes,
        pending=counts.pending,
        writes_waiting=bank.num_writes,
        stale_files=bank.stale(namespace),
        versions=counts.versions,
        expired=counts.expired,
    )
