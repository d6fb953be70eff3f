"""LangChain: `MemspanRetriever` finds documents in a bank, `ChatMemspan` is a chat model that answers from one.

Both run in this process. With a running server (`memspan serve`) `ChatOpenAI` is enough.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from memspan.errors import QuestionError
from memspan.events import Done, TextWritten
from memspan.generate.context import question_of
from memspan.generate.memory import Memory
from memspan.generate.request import MAX_DOCUMENTS, AskOptions
from memspan.generate.sampling import Sampling
from memspan.integrations.memories import cited, in_any_order, metadata_of, name_of
from memspan.text.messages import CALLS, THOUGHTS, call_text, returned
from memspan.types import Answer

try:
    from langchain_core.caches import BaseCache
    from langchain_core.callbacks import (
        AsyncCallbackManagerForRetrieverRun,
        CallbackManagerForLLMRun,
        CallbackManagerForRetrieverRun,
    )
    from langchain_core.documents import Document
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import (
        AIMessage,
        AIMessageChunk,
        BaseMessage,
        ChatMessage,
        FunctionMessage,
        HumanMessage,
        SystemMessage,
        ToolMessage,
        UsageMetadata,
    )
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
    from langchain_core.retrievers import BaseRetriever
    from pydantic import ConfigDict, Field
except ImportError as error:
    raise ImportError(f"LangChain is not installed ({error.name}): pip install 'memspan[langchain]'") from error

_ROLES = (
    (AIMessage, "assistant"),
    (HumanMessage, "user"),
    (SystemMessage, "system"),
    (ToolMessage, "tool"),
    (FunctionMessage, "tool"),
)
# Settings of `ChatMemspan` that are `AskOptions`, and those that are `Sampling`.
_ASKING = (
    "selector",
    "max_documents",
    "rounds",
    "documents_per_round",
    "max_injected_tokens",
    "text_only",
    "route_answer",
    "min_score",
    "where",
    "as_of",
    "known_at",
)
_WRITING = ("max_tokens", "temperature", "top_p", "seed")


class MemspanRetriever(BaseRetriever):
    """Finds documents in a bank. Every call sees what was committed by then.

    A document's `id` is the bank's number of it, its metadata are its own and, under `memspan`, what the bank says of
    it: `external_id`, `score`, `span`, `date`, `layers`. `k`, `selector`, `where`, `as_of` and `known_at` may also be
    given to `invoke`.

    Attributes:
        memory: of which bank and namespace; `Memory.open`.
        k: documents found, at most.
        selector: as of `Memory.search`; default: the memory's own.
        where, as_of, known_at: see `memspan.generate.memory.AskOptions`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    memory: Memory = Field(exclude=True)
    k: int = Field(MAX_DOCUMENTS, ge=0)
    selector: str | None = None
    where: dict[str, Any] | None = None
    as_of: str | None = None
    known_at: str | None = None

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        selector: str | None = None,
        where: Mapping[str, Any] | None = None,
        as_of: str | None = None,
        known_at: str | None = None,
    ) -> list[Document]:
        found = in_any_order(self.memory).search(
            query,
            limit=self.k if k is None else k,
            selector=selector or self.selector,
            where=self.where if where is None else where,
            as_of=as_of or self.as_of,
            known_at=known_at or self.known_at,
        )
        return [
            Document(id=str(item.document_id), page_content=item.text, metadata=metadata_of(item)) for item in found
        ]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        return await asyncio.to_thread(
            self._get_relevant_documents, query, run_manager=run_manager.get_sync(), **options
        )


class ChatMemspan(BaseChatModel):
    """A chat model that answers from a bank, with citations.

    The last message is asked; earlier ones are the conversation so far, as with `memspan serve`. `response_metadata`
    has `citations` (every document put before the model: what `memspan.Evidence` has, as a dict), `finish_reason` and
    `model_name`. Every setting but `memory` and `streaming` may also be given to `invoke`, `stream` and `bind`.

    Attributes:
        memory: of which bank and namespace; `Memory.open`.
        selector, max_documents, rounds, documents_per_round, max_injected_tokens, text_only, route_answer, min_score,
            where, as_of, known_at: see `memspan.generate.memory.AskOptions`.
        max_tokens: of an answer, at most.
        temperature, top_p: of sampling; 0 takes the likeliest tokens.
        seed: of sampling; None: another one for every answer.
        stop: strings that end an answer.
        streaming: `invoke` streams too, so that callbacks hear of every piece of text.
        cache: LangChain's cache of answers. Not the global one unless asked for: memories change.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    memory: Memory = Field(exclude=True)
    selector: str | None = None
    max_documents: int = MAX_DOCUMENTS
    rounds: int | None = None
    documents_per_round: int | None = None
    max_injected_tokens: int | None = None
    text_only: bool = False
    route_answer: bool = False
    min_score: float | None = None
    where: dict[str, Any] | None = None
    as_of: str | None = None
    known_at: str | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: list[str] | None = None
    streaming: bool = False
    cache: BaseCache | bool | None = Field(default=False, exclude=True)

    @property
    def model_name(self) -> str:
        return f"memspan/{self.memory.bank.folder.name}"

    @property
    def _llm_type(self) -> str:
        return "memspan"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        memory = self.memory
        return {
            "model_name": self.model_name,
            "bank": name_of(memory),
            "namespace": memory.namespace,
            "encoder": memory.bank.manifest.encoder_fingerprint,
            **{name: getattr(self, name) for name in (*_ASKING, *_WRITING, "stop")},
        }

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        question, options = self._asked(messages, stop, kwargs)
        answer = in_any_order(self.memory).ask(question, **options)
        message = AIMessage(answer.text, usage_metadata=_usage(answer), response_metadata=self._told(answer))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        question, options = self._asked(messages, stop, kwargs)
        for event in in_any_order(self.memory).events(question, **options):
            if isinstance(event, TextWritten):
                yield ChatGenerationChunk(message=AIMessageChunk(content=event.text))
            elif isinstance(event, Done):
                answer = event.answer
                yield ChatGenerationChunk(
                    message=AIMessageChunk(
                        content="",
                        usage_metadata=_usage(answer),
                        response_metadata=self._told(answer),
                        chunk_position="last",
                    )
                )

    def _asked(
        self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, given: Mapping[str, Any]
    ) -> tuple[str, AskOptions]:
        """The last message, and how to ask it.

        Raises:
            QuestionError: there is a message or a setting that a memory model has no use for.
            ValueError: a setting of sampling is out of range.
        """
        unknown = sorted(given.keys() - {*_ASKING, *_WRITING})
        if unknown:
            raise QuestionError(f"a memory model takes no {', '.join(unknown)}; leave it out")
        asking = {name: given.get(name, getattr(self, name)) for name in _ASKING}
        # None, as chains pass on what they were not given, is the model's own setting; as a seed it means another one.
        writing = {name: getattr(self, name) if given.get(name) is None else given[name] for name in _WRITING}
        if given.get("seed", self.seed) is None:
            writing["seed"] = secrets.randbits(62)
        stops = tuple(stop if stop is not None else self.stop or ())
        sampling = Sampling(writing.pop("max_tokens"), **writing, stop=stops)
        question, history = question_of([_said(message) for message in messages])
        return question, AskOptions(**asking, sampling=sampling, history=history)

    def _told(self, answer: Answer) -> dict[str, Any]:
        return {
            "model_name": self.model_name,
            "finish_reason": answer.finish_reason,
            "citations": [cited(item) for item in answer.evidence],
        }


def _usage(answer: Answer) -> UsageMetadata:
    read, written = answer.num_prompt_tokens, answer.num_new_tokens
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)


def _said(message: BaseMessage) -> tuple[str, str]:
    """Role and text of a message; of calls and results of tools, what was called and came back.

    Raises:
        QuestionError: it is of another kind, or holds something else than text.
    """
    role = next((role for kind, role in _ROLES if isinstance(message, kind)), None)
    if isinstance(message, ChatMessage):
        role = message.role
    if role is None:
        raise QuestionError(f"a memory model reads no message of the kind {message.type!r}; leave it out")
    calls = [*message.tool_calls, *message.invalid_tool_calls] if isinstance(message, AIMessage) else []
    texts = [*_texts(message.content, bool(calls)), *map(call_text, calls)]
    text = "\n".join(filter(None, texts))
    return role, returned(message.name or "", text) if role == "tool" else text


def _texts(content: str | list[str | dict[str, Any]], has_calls: bool) -> Iterator[str]:
    """
    Args:
        has_calls: the message names the calls that stand in its content.
    """
    for part in [content] if isinstance(content, str) else content:
        kind = "text" if isinstance(part, str) else part.get("type")
        if kind in THOUGHTS or (kind in CALLS and has_calls):
            continue
        if kind in CALLS:
            yield call_text(part)
        elif kind != "text":
            raise QuestionError(f"a memory model reads text, and no {kind!r} in a message; leave it out")
        else:
            yield part if isinstance(part, str) else part["text"]
