"""Requests and responses, as OpenAPI describes them. Chat is OpenAI's; what is ours stands under `memspan`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Self

from pydantic import AliasPath, BaseModel, ConfigDict, Field, JsonValue, field_validator

from memspan.files import without_folder
from memspan.generate.request import MAX_DOCUMENTS
from memspan.serve.selectors import RankingSelector, RerankerName, Selector
from memspan.serve.strict import Body, Strict
from memspan.types import Evidence, LayerRouting, Span

Name = Annotated[str, Field(min_length=1, max_length=200)]
Seconds = dict[str, float]
FinishReason = Literal["stop", "length", "tool_calls"]

_MOST_DOCUMENTS = 100
_MOST_ROUNDS = 16
MOST_MESSAGES = 1000


class ScopeFields(Strict):
    """Which memories may be read, of a question or a search."""

    rerank: RerankerName | None = Field(None, description="Reranker of the first 10 memories. Default: the server's.")
    min_score: float | None = Field(None, ge=0, le=1, description="Leave out memories that score less.")
    where: dict[str, JsonValue] | None = Field(None, description="Only memories whose metadata match.")
    as_of: str | None = Field(None, description="Only memories valid at this moment: dated, or recorded by then.")
    known_at: str | None = Field(None, description="The bank as it was at this day or moment.")


class AskFields(ScopeFields):
    """How to ask; see `memspan ask --help`."""

    bank: Name | None = Field(None, description="Instead of the bank that the model's name says.")
    namespace: Name | None = Field(None, description="Whose memories. Default: the key's first, or `default`.")
    selector: Selector | None = None
    max_documents: int = Field(MAX_DOCUMENTS, ge=0, le=_MOST_DOCUMENTS)
    max_texts: int | None = Field(None, ge=0, le=_MOST_DOCUMENTS, description="Read as text; others from tokens kept.")
    rounds: int | None = Field(None, ge=1, le=_MOST_ROUNDS)
    documents_per_round: int | None = Field(None, ge=1, le=_MOST_DOCUMENTS)
    max_injected_tokens: int | None = Field(None, ge=0)
    text_only: bool = Field(False, description="Answer from the texts that are found, without the compressed memory.")
    route_answer: bool = Field(False, description="Route the context once more for the answer, texts included.")
    own_model: bool = Field(False, description="The bank's own model answers, although another one usually does.")
    session: str = Field("", max_length=200, description="Conversation that a remembered turn belongs to.")


class Out(BaseModel):
    """A part of a response that is made of a value of the library, by its attributes: `of`."""

    model_config = ConfigDict(from_attributes=True)

    @classmethod
    def of(cls, value: object) -> Self:
        return cls.model_validate(value)


class EvidenceOut(Out):
    """A document that was put before the model, or found."""

    document_id: int
    id: str = Field(validation_alias="external_id", description="Of the memory, as it was given.")
    title: str
    text: str
    span: Span
    score: float
    layers: int | None = Field(description="MSA layers that attended to it.")
    pages: list[int] = Field(description="Pages, from 1, that the text stands on; none of a memory without pages.")
    metadata: dict[str, JsonValue]
    date: str

    @field_validator("metadata", mode="before")
    @classmethod
    def _public(cls, metadata: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        return without_folder(metadata)


class RoundOut(Out):
    """One look into the memory."""

    number: int
    selector: str
    query: str
    chosen: list[int] = Field(description="Ids of the documents whose text went in.")
    routed: list[LayerRouting]
    written: str
    num_written_tokens: int
    num_injected_tokens: int
    malformed: int
    unknown: int
    repeated: int
    left_out: int
    reranker: str
    ended: str
    timings: Seconds

    @field_validator("chosen", mode="before")
    @classmethod
    def _ids(cls, chosen: Iterable[Evidence]) -> list[int]:
        return [item.document_id for item in chosen]


class CitationOut(Out):
    """A sentence of the answer, and a document that holds its words, or that none does."""

    span: Span = Field(description="Of the answer's text.")
    supported: bool
    support: float
    evidence: int | None = Field(description="Place of the document in the evidence, from 1.")
    document_id: int | None
    id: str | None = Field(validation_alias="external_id")
    source: Span | None = Field(description="Of the memory's text.")
    page: int | str | None


class TraceOut(BaseModel):
    """How an answer came about."""

    bank: str
    namespace: str
    selector: str
    answered: bool = Field(description="False: nothing was found, or the answer says that the memories do not say.")
    answerer: str = Field(description="The other model that wrote the answer; empty: the bank's own.")
    citations: list[CitationOut]
    removed_citations: int = Field(description="Marks of another model that no memory supports, taken out.")
    evidence: list[EvidenceOut]
    rounds: list[RoundOut]
    routed: list[LayerRouting]
    timings: Seconds
    remembered: list[str] = Field(description="Ids of the memories that this turn became.")
    pending: int = Field(description="Documents that were not encoded yet: they were found by words only.")


class UrlCitation(BaseModel):
    start_index: int
    end_index: int
    title: str
    url: str


class Annotation(BaseModel):
    """A document that stands behind the answer, as OpenAI writes citations."""

    type: Literal["url_citation"] = "url_citation"
    url_citation: UrlCitation


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    annotations: list[Annotation]
    tool_calls: list[dict[str, JsonValue]] | None = Field(description="Of the request's tools, by another model.")


class Choice(BaseModel):
    index: Literal[0] = 0
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """OpenAI's response."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    memspan: TraceOut


class ModelOut(BaseModel):
    """A bank as a model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["memspan"] = "memspan"
    context_length: int = Field(description="Tokens of a conversation and its answer, evidence included.")
    max_output_tokens: int = Field(description="Of one answer, at most.")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelOut]


class MemoryIn(Strict):
    """A text to remember."""

    text: str = Field(min_length=1)
    id: str | None = Field(None, min_length=1, max_length=1000, description="Your own. Default: made from the content.")
    title: str = Field("", max_length=2000)
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    date: str | None = Field(None, description="ISO 8601, of the text. Default: now.")
    expires: str | None = Field(
        default=None, description="Not seen from this day (UTC) or moment on, or `never`. Default: as it is."
    )
    ttl: str | None = Field(default=None, description="Instead: not seen after this time, as `30d` or `12h`.")
    pinned: bool | None = Field(default=None, description="Whether it stays, whatever its expiry.")


class Place(Body):
    """Where memories are: of one bank and namespace."""

    bank: Name | None = Field(None, description="Default: the first that is served.")
    namespace: Name | None = Field(None, description="Default: the key's first, or `default`.")


class AddRequest(MemoryIn, Place):
    existing: Literal["replace", "refuse"] = Field("replace", description="The treatment of a known id.")


class BatchRequest(Place):
    memories: list[MemoryIn] = Field(min_length=1, max_length=1000)
    existing: Literal["replace", "refuse"] = "replace"


class ConversationRequest(Place):
    messages: list[JsonValue] = Field(
        min_length=1,
        max_length=MOST_MESSAGES,
        description="As OpenAI's, Anthropic's and Gemini's APIs write them; `name` and `date` say who and when.",
    )
    session: str = Field("", max_length=200, description="A name of the conversation; kept as metadata.")
    date: str | None = Field(None, description="ISO 8601, of messages without one. Default: now.")


class ImportRequest(Place):
    memories: list[MemoryIn] = Field(min_length=1)


class UpdateRequest(Place):
    """What is given is changed; the rest stays, as what is null does."""

    text: str | None = Field(None, min_length=1)
    title: str | None = Field(None, max_length=2000)
    metadata: dict[str, JsonValue] | None = Field(
        None, description="Merged into what there is (JSON Merge Patch, RFC 7396): a field that is null is removed."
    )
    date: str | None = Field(None, description="An empty text removes it.")
    expires: str | None = Field(None, description="`never` removes it.")
    ttl: str | None = Field(None, description="Instead of `expires`: a duration from now, as `30d`.")
    pinned: bool | None = None


class SearchRequest(ScopeFields, Place):
    query: str = Field(min_length=1)
    selector: RankingSelector | None = None
    limit: int = Field(10, ge=1, le=_MOST_DOCUMENTS)


class MemoryOut(BaseModel):
    """A memory as it was given."""

    object: Literal["memory"] = "memory"
    id: str
    bank: str
    namespace: str
    title: str
    text: str | None
    metadata: dict[str, JsonValue]
    date: str | None
    added_at: str
    recorded_at: str = Field(description="When this version was recorded.")
    superseded_at: str | None = Field(description="When another took its place; null for the present version.")
    expires: str | None
    pinned: bool


class MemoryDeleted(BaseModel):
    object: Literal["memory.deleted"] = "memory.deleted"
    id: str
    deleted: Literal[True] = True


class MemoryList(BaseModel):
    object: Literal["list"] = "list"
    data: list[MemoryOut]
    has_more: bool
    next_cursor: str | None


class SearchResults(BaseModel):
    object: Literal["list"] = "list"
    data: list[EvidenceOut]
    pending: int = Field(description="Documents that were not encoded yet: they are found by words only.")


class BatchReport(Out):
    """What a batch did, with the ids of its memories in order."""

    object: Literal["memory.batch"] = "memory.batch"
    ids: list[str]
    added: int
    updated: int
    unchanged: int


class ChangeOut(Out):
    kind: Literal["added", "changed", "deleted", "expired"]
    id: str | None = Field(validation_alias="external_id", description="Null: which memory it was has been erased.")
    title: str
    at: str = Field(description="The last time (UTC).")


class ChangeList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ChangeOut]
    commit: int = Field(description="As `after_commit` it gives what changes from now on.")
    has_more: bool


class ImportOut(Out):
    """An import on its way, or done."""

    object: Literal["import"] = "import"
    id: str
    bank: str = Field(validation_alias=AliasPath("bank", "name"))
    namespace: str
    status: Literal["running", "done", "failed", "cancelled"]
    created: str = Field(description="ISO 8601, UTC.")
    total: int
    done: int
    added: int
    updated: int
    unchanged: int
    error: str | None = None


class ImportList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ImportOut]


class BankOut(BaseModel):
    """One bank: how it can be asked, and the size of the namespace that was asked about."""

    name: str
    namespaces: list[str] = Field(description="That hold or held memories, and that the key may enter.")
    selectors: list[str]
    default_selector: str
    memories: int
    documents: int = Field(description="Encoded units: a memory, or each part of a long one.")
    tokens: int
    chunks: int
    bytes: int = Field(description="Of the compressed memory on disk.")
    pending: int = Field(description="Documents that are not encoded yet: they are found by words only.")
    writes_waiting: int
    stale_files: int = Field(description="Files that are newer than their memory, or gone; as of half a minute ago.")
    versions: int = Field(description="Former versions of memories, which `as_of` and `known_at` find.")
    expired: int = Field(description="Memories that have expired, are not seen, and are erased by `memspan compact`.")


class StatusOut(BaseModel):
    """What a key may do, and how busy and how large everything is."""

    object: Literal["status"] = "status"
    version: str
    ready: bool
    running: int = Field(description="Questions being answered.")
    waiting: int = Field(description="Questions that wait.")
    scopes: list[str]
    namespace: str
    max_new_tokens: int
    answerer: str = Field(description="The other model that writes answers; empty: the banks' own.")
    formats: list[str] = Field(description="Extensions of the files that `memspan add` reads.")
    image_formats: list[str] = Field(description="Extensions that it reads with `--ocr`.")
    banks: list[BankOut]


class DocumentOut(Out):
    """A document of the bank, and the memory it is (a part of)."""

    document_id: int = Field(validation_alias="id")
    id: str = Field(validation_alias="external_id", description="Of the memory, as it was given.")
    title: str
    span: Span


class DocumentList(BaseModel):
    object: Literal["list"] = "list"
    data: list[DocumentOut]


class Health(BaseModel):
    status: Literal["ok"] = "ok"
