"""`/v1/memories` and `/v1/imports`: what is remembered."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Query
from fastapi.concurrency import run_in_threadpool
from sse_starlette import EventSourceResponse
from starlette.convertors import Convertor, register_url_convertor

from memspan.bank.add import Existing
from memspan.bank.catalog import StoredSource
from memspan.bank.clock import expiry_of
from memspan.bank.scope import EVERYTHING, Scope
from memspan.bank.stored import num_pending
from memspan.errors import EmptyBank, FilterError, UnknownDocument
from memspan.files import without_folder
from memspan.generate.given import exchange_documents
from memspan.generate.memory import Memory
from memspan.serve.banks import ServedBank
from memspan.serve.errors import ERRORS, ApiError, values_checked
from memspan.serve.imports import Import
from memspan.serve.keys import Principal
from memspan.serve.schemas import (
    AddRequest,
    BatchReport,
    BatchRequest,
    ChangeList,
    ChangeOut,
    ConversationRequest,
    EvidenceOut,
    ImportList,
    ImportOut,
    ImportRequest,
    MemoryDeleted,
    MemoryIn,
    MemoryList,
    MemoryOut,
    Place,
    SearchRequest,
    SearchResults,
    UpdateRequest,
)
from memspan.serve.service import Reader, Service, ServiceDep, Writer, known_query, namespace_for, written
from memspan.serve.traces import stage
from memspan.types import Document

router = APIRouter(responses=ERRORS, tags=["memories"], dependencies=[Depends(known_query)])


class _AnyText(Convertor[str]):
    """The rest of a path, whatever it is: the id of a file may hold slashes and line ends."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("text", _AnyText())

_MOST_LISTED = 100
_MOST_CHANGES = 1000

BankQuery = Annotated[str | None, Query(description="Default: the first that is served.")]
NamespaceQuery = Annotated[str | None, Query(description="Default: the key's first, or `default`.")]
AsOfQuery = Annotated[
    str | None, Query(description="Only memories valid at this day or moment: dated, or added by then.")
]
KnownAtQuery = Annotated[str | None, Query(description="The bank as it was at this day or moment.")]


@router.post("/v1/memories", status_code=201)
async def add(body: AddRequest, service: ServiceDep, writer: Writer) -> MemoryOut:
    """Remember a text. One of the same id is replaced; the next question sees it."""
    bank, namespace = _place(service, writer, body)
    (document,) = documents_of([body])
    await written(bank, namespace, lambda memory: memory.add([document], existing=body.existing))
    return await run_in_threadpool(_get, bank, namespace, document.external_id)


@router.post("/v1/memories/batch", status_code=201)
async def add_batch(body: BatchRequest, service: ServiceDep, writer: Writer) -> BatchReport:
    """Remember several texts, in one transaction."""
    bank, namespace = _place(service, writer, body)
    return await _added(bank, namespace, documents_of(body.memories), body.existing)


@router.post("/v1/memories/conversation", status_code=201)
async def add_conversation(body: ConversationRequest, service: ServiceDep, writer: Writer) -> BatchReport:
    """Remember what was said, in one transaction: each question with what was answered to it."""
    bank, namespace = _place(service, writer, body)
    with values_checked("messages"):
        documents = exchange_documents(body.messages, body.session, body.date)
    return await _added(bank, namespace, documents)


async def _added(
    bank: ServedBank, namespace: str, documents: Sequence[Document], existing: Existing = "replace"
) -> BatchReport:
    report = await written(bank, namespace, lambda memory: memory.add(documents, existing=existing))
    return BatchReport(
        ids=[document.external_id for document in documents],
        added=report.added,
        updated=report.updated,
        unchanged=report.unchanged,
    )


@router.post("/v1/memories/search")
async def search(body: SearchRequest, service: ServiceDep, reader: Reader) -> SearchResults:
    """Find memories for a question, best first, without answering it."""
    bank, namespace = _place(service, reader, body)

    def find() -> SearchResults:
        memory = bank.memory(namespace)
        options = body.model_dump(exclude={"query", "bank", "namespace", "rerank"})
        try:
            found = memory.search(body.query, **options, **service.settings.reranking(body.rerank))
        except EmptyBank:
            found = []
        pending = bank.read(lambda catalog: num_pending(catalog, namespace))
        return SearchResults(data=[EvidenceOut.of(item) for item in found], pending=pending)

    with stage("find"):
        return await anyio.to_thread.run_sync(find, limiter=service.search_slots)


@router.get("/v1/memories")
async def list_memories(
    service: ServiceDep,
    reader: Reader,
    bank: BankQuery = None,
    namespace: NamespaceQuery = None,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = 20,
    where: Annotated[str | None, Query(description="A filter on the metadata, as a JSON object.")] = None,
    as_of: AsOfQuery = None,
    known_at: KnownAtQuery = None,
    text: Annotated[bool, Query(description="With their texts.")] = True,
) -> MemoryList:
    """The memories in the order they were added, page by page."""
    served, name = service.bank(bank), namespace_for(reader, namespace)
    after = _after(cursor)
    scope = Scope.parse(_filter(where), as_of, known_at)
    found = await run_in_threadpool(served.read, lambda catalog: catalog.source_page(name, after, limit + 1, scope))
    shown, more = found[:limit], len(found) > limit
    return MemoryList(
        data=[_memory_out(served.name, name, stored, text) for stored in shown],
        has_more=more,
        next_cursor=str(shown[-1].id) if more else None,
    )


@router.get("/v1/changes")
async def list_changes(
    service: ServiceDep,
    reader: Reader,
    since: Annotated[str | None, Query(description="A day, a moment, or how long ago, as `7d`.")] = None,
    after_commit: Annotated[
        int | None, Query(ge=0, le=2**63 - 1, description="Instead, the `commit` of an earlier answer; 0: all.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=_MOST_CHANGES)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
    bank: BankQuery = None,
    namespace: NamespaceQuery = None,
) -> ChangeList:
    """Which memories were added, changed, deleted or have expired since."""
    served, name = service.bank(bank), namespace_for(reader, namespace)
    if (since is None) == (after_commit is None):
        raise ApiError(400, "send one of since and after_commit", "invalid_value", param="since")
    options = {"since": since, "after_commit": after_commit, "limit": limit, "offset": offset}
    found = await run_in_threadpool(served.memory(name).changes, **options)
    return ChangeList(data=[ChangeOut.of(one) for one in found.changes], commit=found.commit, has_more=found.more)


@router.get("/v1/memories/{id:text}")
async def get(
    id: str,
    service: ServiceDep,
    reader: Reader,
    bank: BankQuery = None,
    namespace: NamespaceQuery = None,
    as_of: AsOfQuery = None,
    known_at: KnownAtQuery = None,
) -> MemoryOut:
    """One memory, verbatim; now, or its version of another time."""
    served, name = service.bank(bank), namespace_for(reader, namespace)
    return await run_in_threadpool(_get, served, name, id, Scope.parse(None, as_of, known_at))


@router.patch("/v1/memories/{id:text}")
async def update(id: str, body: UpdateRequest, service: ServiceDep, writer: Writer) -> MemoryOut:
    """Change what is given of a memory; the rest stays. The version before is kept."""
    bank, namespace = _place(service, writer, body)
    changes = body.model_dump(include={"text", "title", "metadata", "date", "expires", "ttl", "pinned"})

    def change(memory: Memory) -> None:
        with values_checked():
            memory.update(_known(id), **changes)

    await written(bank, namespace, change)
    return await run_in_threadpool(_get, bank, namespace, id)


@router.delete("/v1/memories/{id:text}")
async def delete(
    id: str, service: ServiceDep, writer: Writer, bank: BankQuery = None, namespace: NamespaceQuery = None
) -> MemoryDeleted:
    """Forget a memory: the next question does not see it."""
    served, name = service.bank(bank), namespace_for(writer, namespace)
    await written(served, name, lambda memory: memory.delete([_known(id)]))
    return MemoryDeleted(id=id)


@router.post("/v1/imports", status_code=202)
async def start_import(body: ImportRequest, service: ServiceDep, writer: Writer) -> ImportOut:
    """Remember many texts in the background; see how far it is with the import's id. It outlives the server."""
    bank, namespace = _place(service, writer, body)
    documents = await run_in_threadpool(documents_of, body.memories)
    return ImportOut.of(await service.imports.start(bank, namespace, documents))


@router.get("/v1/imports")
async def list_imports(service: ServiceDep, reader: Reader) -> ImportList:
    """The imports into namespaces that the key may enter, the newest first."""
    return ImportList(data=[ImportOut.of(job) for job in service.imports.all() if reader.may_enter(job.namespace)])


@router.get("/v1/imports/{id}")
async def get_import(id: str, service: ServiceDep, reader: Reader) -> ImportOut:
    """How far an import is."""
    return ImportOut.of(_import(service, reader, id))


@router.get(
    "/v1/imports/{id}/events",
    response_class=EventSourceResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def watch_import(id: str, service: ServiceDep, reader: Reader) -> EventSourceResponse:
    """An import's progress, as server-sent events (each the import), until it has ended."""
    job = _import(service, reader, id)

    async def events() -> AsyncIterator[dict[str, str]]:
        async for state in job.watch():
            yield {"event": state.status, "data": json.dumps(ImportOut.of(state).model_dump())}

    return EventSourceResponse(events(), ping=service.settings.keep_alive, sep="\n")


@router.delete("/v1/imports/{id}")
async def cancel_import(id: str, service: ServiceDep, writer: Writer) -> ImportOut:
    """Stop an import. What it has added stays."""
    job = _import(service, writer, id)
    if job.task is not None:
        job.task.cancel()
        await asyncio.gather(job.task, return_exceptions=True)
    return ImportOut.of(job)


def _place(service: Service, principal: Principal, body: Place) -> tuple[ServedBank, str]:
    return service.bank(body.bank), namespace_for(principal, body.namespace)


def documents_of(given: Sequence[MemoryIn]) -> list[Document]:
    """
    Raises:
        ApiError: 400, one of them cannot be a document.
    """
    with values_checked("memories"):
        documents = [
            Document(
                one.id or _id_of(one),
                *(one.text, one.title, one.metadata, one.date),
                *(expiry_of(one.expires, one.ttl), one.pinned),
            )
            for one in given
        ]
    _check_ids(documents)
    return documents


def _check_ids(documents: Sequence[Document]) -> None:
    """
    Raises:
        ApiError: 400, two that differ have one id.
    """
    first: dict[str, int] = {}
    for place, document in enumerate(documents):
        before = first.setdefault(document.external_id, place)
        if documents[before] != document:
            message = f"memories {before} and {place} differ and have one id: {document.external_id!r}"
            raise ApiError(400, message, "duplicate", param="memories")


def _id_of(given: MemoryIn) -> str:
    """An id made from the content: the same memory added twice is stored once."""
    content = json.dumps([given.title, given.text, given.date])
    return f"memory-{hashlib.sha256(content.encode()).hexdigest()[:24]}"


def _get(bank: ServedBank, namespace: str, id: str, scope: Scope = EVERYTHING) -> MemoryOut:
    return _memory_out(bank.name, namespace, bank.get(namespace, _known(id), scope))


def _memory_out(bank: str, namespace: str, stored: StoredSource, with_text: bool = True) -> MemoryOut:
    document = stored.document
    return MemoryOut(
        id=document.external_id,
        bank=bank,
        namespace=namespace,
        title=document.title,
        text=document.text if with_text else None,
        metadata=without_folder(document.metadata),
        date=document.date,
        added_at=stored.added_at,
        recorded_at=stored.recorded_at,
        superseded_at=stored.superseded_at,
        expires=document.expires,
        pinned=bool(document.pinned),
    )


def _known(id: str) -> str:
    """An id that may be looked up.

    Raises:
        UnknownDocument: no document can have it.
    """
    if "\0" in id:
        raise UnknownDocument("no document has NUL characters in its id")
    return id


def _after(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 20):
        raise ApiError(400, "this cursor is none that a page gave", "invalid_value", param="cursor")
    return int(cursor)


def _filter(where: str | None) -> dict[str, Any] | None:
    if where is None:
        return None
    try:
        return json.loads(where)
    except (ValueError, RecursionError) as error:
        raise FilterError('a filter is a JSON object as in {"project": "x"}') from error


def _import(service: Service, principal: Principal, id: str) -> Import:
    """
    Raises:
        ApiError: 404, there is none that this key may see.
    """
    job = service.imports.get(id)
    if job is None or not principal.may_enter(job.namespace):
        raise ApiError(404, "there is no such import", "import_not_found")
    return job
