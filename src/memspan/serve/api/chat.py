"""`/v1/models` and `/v1/chat/completions`, as OpenAI's clients call them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from sse_starlette import EventSourceResponse

from memspan.bank.catalog import DEFAULT_NAMESPACE
from memspan.errors import QuestionError
from memspan.events import CallWritten, Done, RoundDone, RoundStarted, TextWritten
from memspan.generate.answerer import ToolCaller
from memspan.generate.context import question_of
from memspan.generate.decode import context_room
from memspan.generate.given import turn_document
from memspan.generate.memory import Memory
from memspan.generate.passed import Passed, conversation_of
from memspan.generate.prompts import answer_messages, estimated_tokens
from memspan.generate.request import AskOptions
from memspan.generate.sampling import Sampling
from memspan.serve.banks import ServedBank
from memspan.serve.chat_request import ChatRequest
from memspan.serve.errors import ERRORS, ApiError, api_error, values_checked
from memspan.serve.schemas import (
    Annotation,
    AnswerMessage,
    ChatCompletion,
    Choice,
    CitationOut,
    EvidenceOut,
    FinishReason,
    ModelList,
    ModelOut,
    RoundOut,
    TraceOut,
    UrlCitation,
    Usage,
)
from memspan.serve.service import (
    MODEL_PREFIX,
    ClientGone,
    EventStream,
    Reader,
    Service,
    ServiceDep,
    namespace_for,
    while_connected,
    written,
)
from memspan.text.growing import WholeEmoji
from memspan.text.paging import page_label
from memspan.types import Answer, Evidence

router = APIRouter(responses=ERRORS, tags=["chat"])

_MOST_STOPS = 4
_CLIENT_GONE = 499


@router.get("/v1/models")
async def list_models(service: ServiceDep, _: Reader) -> ModelList:
    """The banks, each as a model."""
    return ModelList(data=[await run_in_threadpool(_model, service, name) for name in service.banks])


@router.get("/v1/models/{model:path}")
async def get_model(model: str, service: ServiceDep, _: Reader) -> ModelOut:
    """One bank as a model."""
    return await run_in_threadpool(_model, service, service.bank_of_model(model).name)


def _model(service: Service, name: str) -> ModelOut:
    room = _room(service.bank(name).memory(DEFAULT_NAMESPACE))
    most = min(service.settings.max_new_tokens, room)
    return ModelOut(id=MODEL_PREFIX + name, created=service.started, context_length=room, max_output_tokens=most)


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={
        200: {
            "description": "The answer; with `stream` as server-sent events, each a `chat.completion.chunk`.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def chat(body: ChatRequest, request: Request, service: ServiceDep, reader: Reader) -> Any:
    """Answer the last message from a bank, with citations.

    Earlier messages are read as the conversation so far. The bank is that of the model's name, or `memspan.bank`.
    """
    if body.remember and not reader.may("write"):
        raise ApiError(403, "to remember a turn the key needs the scope 'write'", "missing_scope", param="remember")
    named = service.bank_of_model(body.model) if body.memspan.bank is None else service.bank(body.memspan.bank)
    namespace = namespace_for(reader, body.memspan.namespace)
    memory = named.memory(namespace, body.memspan.own_model)
    question, options = await run_in_threadpool(_checked, body, memory, service)
    exchange = _Exchange(service, named, memory, body, question, options)
    try:
        if body.stream:
            return EventSourceResponse(
                exchange.chunks(),
                ping=service.settings.keep_alive,
                send_timeout=service.settings.timeout,  # of a client that reads nothing
                sep="\n",
                client_close_handler_callable=exchange.closed,
            )
        return await while_connected(request, exchange.completion())
    except ClientGone:
        exchange.cancel()
        return Response(status_code=_CLIENT_GONE)
    except BaseException:
        exchange.cancel()
        raise


def _checked(body: ChatRequest, memory: Memory, service: Service) -> tuple[str, AskOptions]:
    """The question, and how to ask it. What cannot be asked is refused here, while there is a status to say so.

    Raises:
        ApiError: 400, with the field.
        MemspanError: as of `Memory.check`.
    """
    to_other = isinstance(memory.answerer, ToolCaller)
    passed = Passed(body.passed(to_other))
    try:
        said = [("tool" if one.role == "function" else one.role, one.text) for one in body.messages]
        question, history = question_of(said)
    except QuestionError as error:
        raise ApiError(400, str(error), "invalid_question", param="messages") from error
    if to_other:
        history, after = conversation_of(body.said())
        passed = replace(passed, after=after)
    sampling = _sampling(body, _most_tokens(memory, question, passed, service.settings.max_new_tokens))
    fields = body.memspan.model_dump(exclude={"bank", "namespace", "own_model", "session", "rerank"})
    asked = body.memspan.rerank, body.memspan.selector, body.memspan.max_documents
    anew = service.settings.reranking(*asked)
    options = AskOptions(**fields, **anew, sampling=sampling, history=history, passed=passed)
    memory.check(question, **options)
    return question, options


def _room(memory: Memory) -> int:
    """Tokens of a conversation and its answer that the model has room for which writes the answers."""
    return context_room(memory.loaded, 0) if memory.answerer is None else memory.answerer.context


def _most_tokens(memory: Memory, question: str, passed: Passed, allowed: int) -> int:
    """Of an answer: half of what is left beside the question at most, so that there is room for evidence."""
    if memory.answerer is None:
        asked = len(memory.loaded.template.context(question).ids)
    else:
        asked = estimated_tokens(answer_messages(question, (), (), passed)) + passed.tokens
    return max(1, min(allowed, (_room(memory) - asked) // 2))


def _sampling(body: ChatRequest, most: int) -> Sampling:
    """
    Raises:
        ApiError: 400, with the field.
    """
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stops) > _MOST_STOPS:
        raise ApiError(400, f"at most {_MOST_STOPS} strings may end an answer", "invalid_value", param="stop")
    with values_checked("stop"):
        return Sampling(
            min(body.wanted_tokens or most, most),
            body.temperature or 0.0,
            1.0 if body.top_p is None else body.top_p,
            secrets.randbits(62) if body.seed is None or body.seed < 0 else body.seed,
            tuple(stops),
        )


class _Exchange:
    """One request on its way to its response."""

    def __init__(
        self,
        service: Service,
        bank: ServedBank,
        memory: Memory,
        body: ChatRequest,
        question: str,
        options: AskOptions,
    ) -> None:
        self._service, self._bank, self._namespace, self._body = service, bank, memory.namespace, body
        self._question = question
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self._events = EventStream(service.engine, memory, question, options)

    def cancel(self) -> None:
        self._events.cancel()

    async def closed(self, _: object) -> None:
        """The client has gone, perhaps before the first chunk was asked for."""
        self.cancel()

    async def completion(self) -> ChatCompletion:
        """The whole answer."""
        answer = await self._events.answer()
        trace = await self._finish(answer)
        message = AnswerMessage(
            content=answer.text or (None if answer.tool_calls else ""),
            annotations=self._annotations(answer),
            tool_calls=[dict(one) for one in answer.tool_calls] or None,
        )
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=MODEL_PREFIX + self._bank.name,
            choices=[Choice(message=message, finish_reason=_finish_reason(answer))],
            usage=_usage(answer),
            memspan=trace,
        )

    async def chunks(self) -> AsyncIterator[dict[str, str]]:
        """The answer as server-sent events. The first is sent at once, however long the question waits for its turn.

        An error is sent in a chunk of its own: the status has been sent by then.
        """
        emoji = WholeEmoji()
        try:
            yield self._chunk({"role": "assistant", "content": ""})
            while not isinstance(event := await self._events.next(), Done):
                if isinstance(event, TextWritten) and (text := emoji.take(event.text)):
                    yield self._chunk({"content": text})
                elif isinstance(event, CallWritten):
                    yield self._chunk({"tool_calls": [event.delta]})
                elif isinstance(event, RoundStarted):
                    yield self._chunk({}, memspan={"started": {"number": event.number, "query": event.query}})
                elif isinstance(event, RoundDone):
                    yield self._chunk({}, memspan={"round": RoundOut.of(event.round).model_dump()})
            if text := emoji.rest():
                yield self._chunk({"content": text})
            answer = event.answer
            trace = await self._finish(answer)
            annotations = [annotation.model_dump() for annotation in self._annotations(answer)]
            yield self._chunk({"annotations": annotations}, _finish_reason(answer), memspan=trace.model_dump())
            if self._body.stream_options is not None and self._body.stream_options.include_usage:
                yield self._chunk(None, usage=_usage(answer).model_dump())
        except Exception as error:
            yield {"data": json.dumps(api_error(error).body)}
        finally:
            self.cancel()
        yield {"data": "[DONE]"}

    def _chunk(self, delta: dict[str, Any] | None, finish_reason: str | None = None, **more: Any) -> dict[str, str]:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
        chunk = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": MODEL_PREFIX + self._bank.name,
            "choices": choices,
            **more,
        }
        return {"data": json.dumps(chunk)}

    async def _finish(self, answer: Answer) -> TraceOut:
        """Count the answer, remember the turn if that is wished, and say how it came about."""
        queued = self._events.ticket.queued_seconds
        self._service.metrics.answer(self._bank.name, answer, queued)
        return TraceOut(
            bank=self._bank.name,
            namespace=self._namespace,
            selector=answer.selector,
            answered=answer.answered,
            answerer=answer.answerer,
            citations=[CitationOut.of(one) for one in answer.citations],
            removed_citations=answer.removed_citations,
            evidence=[EvidenceOut.of(item) for item in answer.evidence],
            rounds=[RoundOut.of(done) for done in answer.rounds],
            routed=list(answer.routed),
            timings={"queue": queued, **answer.timings},
            remembered=await self._remember(answer) if self._body.remember else [],
            pending=answer.pending,
        )

    async def _remember(self, answer: Answer) -> list[str]:
        """Store the last message and its answer; their ids. While tools are still to be called there is no answer."""
        if answer.tool_calls:
            return []
        session = self._body.memspan.session
        turns = (("user", self._question), ("assistant", answer.text))
        documents = [turn_document(text, speaker, session) for speaker, text in turns if text.strip()]
        await written(self._bank, self._namespace, lambda memory: memory.add(documents))
        return [document.external_id for document in documents]

    def _annotations(self, answer: Answer) -> list[Annotation]:
        """The sentences that a document supports, each with that document."""
        cited = [(one.span, answer.evidence[one.evidence - 1]) for one in answer.citations if one.evidence is not None]
        return [
            Annotation(
                url_citation=UrlCitation(
                    start_index=span.start,
                    end_index=span.end,
                    title=_title(item),
                    url=f"memspan://{self._bank.name}/{quote(self._namespace)}/{quote(item.external_id)}",
                )
            )
            for span, item in cited
        ]


def _title(item: Evidence) -> str:
    title = item.title or item.external_id
    return f"{title} ({page_label(item.pages)})" if item.pages else title


def _finish_reason(answer: Answer) -> FinishReason:
    return answer.finish_reason if answer.finish_reason in ("length", "tool_calls") else "stop"


def _usage(answer: Answer) -> Usage:
    prompt, completion = answer.num_prompt_tokens, answer.num_new_tokens
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)
