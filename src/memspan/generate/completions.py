"""The wire form of OpenAI's chat completions, as many servers speak it: requests, streams, refusals, models."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from memspan.generate.answerer import AnswerEnd, CallPiece, Message, NextSearch
from memspan.generate.sampling import Sampling

if TYPE_CHECKING:
    import httpx2

# Fields of a model in /v1/models that say its context (vLLM, LM Studio, OpenRouter and others, llama.cpp).
_CONTEXT_FIELDS = ("max_model_len", "loaded_context_length", "context_length", "max_context_length", "context_window")
_LAST = object()

_COUNTS = ("prompt_tokens", "completion_tokens")
# The one tool of ours that another model may call, between rounds.
LOOK_UP_NAME = "look_up"
LOOK_UP = {
    "type": "function",
    "function": {
        "name": LOOK_UP_NAME,
        "description": "Search the memory for a document that is still missing to answer the question.",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "Names and words that stand in that document."}},
            "required": ["query"],
        },
    },
}
_LONGEST_QUERY = 500


class EndpointRefusal(Exception):
    """What the endpoint refused, and perhaps for how long."""

    def __init__(self, status: int, reason: str, retry_after: float | None) -> None:
        super().__init__(f"HTTP {status}: {reason}")
        self.status, self.reason, self.retry_after = status, reason, retry_after


def request_body(model: str, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
    """What is asked of an endpoint. Fields that some endpoints do not know are left out where they say nothing."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [_written(message) for message in messages],
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_new_tokens,
    }
    if sampling.temperature and sampling.top_p < 1:
        body["top_p"] = sampling.top_p
    if sampling.temperature:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    return body


def _written(message: Message) -> dict[str, Any]:
    """A message as it is sent. One that does nothing but call has no content."""
    calls_only = message.role == "assistant" and message.fields and not message.text
    return {"role": message.role, "content": None if calls_only else message.text, **(message.fields or {})}


def adapt(body: dict[str, Any], refused: EndpointRefusal) -> bool:
    """Write a request that was refused in the words of newer models, which know other fields; False: it stays."""
    if refused.status not in (400, 422):
        return False
    before = dict(body)
    if "max_completion_tokens" in refused.reason and "max_tokens" in body:
        body["max_completion_tokens"] = body.pop("max_tokens")
        if not body["temperature"]:  # those models sample as they like
            del body["temperature"]
    if "temperature" in refused.reason and body.get("temperature") == 0:
        del body["temperature"]
    if "stream_options" in refused.reason:
        body.pop("stream_options", None)
    if "system role" in refused.reason.lower() and body["messages"][0]["role"] == "system":
        first, second, *rest = body["messages"]
        body["messages"] = [{**second, "content": f"{first['content']}\n\n{second['content']}"}, *rest]
    return body != before


def context_in(models: Any, name: str) -> int | None:
    """The context length that a list of models gives for one of them, in any of the fields in use; None: in none."""
    listed = _dict(models).get("data")
    known = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    found = next((one for one in known if one.get("id") == name), known[0] if len(known) == 1 else {})
    meta = _dict(found.get("meta"))
    values = [found.get(field) for field in _CONTEXT_FIELDS] + [meta.get("n_ctx"), meta.get("n_ctx_train")]
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def wanted_in(reply: Any) -> NextSearch:
    """What a reply asks to look up, by its first call of the tool."""
    usage = _dict(_dict(reply).get("usage"))
    counts = [count if isinstance(count := usage.get(name), int) else 0 for name in _COUNTS]
    choices = _dict(reply).get("choices")
    calls = _dict(_dict(choices[0]).get("message")).get("tool_calls") if isinstance(choices, list) and choices else None
    if not calls:
        return NextSearch("", *counts)
    called = _dict(_dict(calls[0] if isinstance(calls, list) else None).get("function"))
    try:
        given = json.loads(called.get("arguments") or "null")
    except (TypeError, ValueError):
        given = called.get("arguments")  # some servers send an object
    query = _dict(given).get("query") if called.get("name") == LOOK_UP_NAME else None
    return NextSearch(" ".join(query.split())[:_LONGEST_QUERY] or None if isinstance(query, str) else None, *counts)


async def check(reply: httpx2.Response) -> None:
    """
    Raises:
        Refused: the endpoint refused the request.
    """
    if reply.is_success:
        return
    text = (await reply.aread()).decode(errors="replace")
    try:
        wait = float(reply.headers.get("retry-after", ""))
    except ValueError:
        wait = None
    raise EndpointRefusal(reply.status_code, _reason(text), wait)


def _reason(text: str) -> str:
    """What an error says, as far as it can be found in it."""
    try:
        said = json.loads(text)
    except ValueError:
        said = text
    for name in ("error", "message", "detail"):
        said = said.get(name, said) if isinstance(said, dict) else said
    return " ".join(str(said).split())


def parsed(text: str) -> Any:
    """
    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"it sent what is no JSON: {text[:80]!r}") from error


async def pieces_of(reply: httpx2.Response) -> AsyncIterator[str | CallPiece | AnswerEnd]:
    """The text of a completion and its calls of tools as they come, streamed or whole, and its end.

    Raises:
        ValueError: it is none, or it breaks off.
    """
    import httpx2

    finish_reason, usage, done, held, calls = "", {}, False, "", _Calls()
    async for value in _values(reply, httpx2.EventSource):
        if value is _LAST:
            done = True
            break
        if not isinstance(value, dict) or value.get("error"):
            raise ValueError(f"it sent an error: {_reason(json.dumps(value))}")
        usage = _dict(value.get("usage")) or usage
        choices = value.get("choices")
        choice = _dict(choices[0]) if isinstance(choices, list) and choices else {}
        said = _dict(choice.get("delta")) or _dict(choice.get("message"))
        text = said.get("content")
        if isinstance(text, str) and text:
            whole, held = _whole(held + text)
            if whole:
                yield whole
        for piece in calls.pieces(said.get("tool_calls")):
            yield piece
        finish_reason = str(choice.get("finish_reason") or finish_reason)
    if not (finish_reason or done):
        raise httpx2.RemoteProtocolError("the stream ended before the answer did")
    counts = [usage.get(name) for name in _COUNTS]
    yield AnswerEnd(finish_reason or "stop", *(count if isinstance(count, int) else 0 for count in counts))


class _Calls:
    """Calls of tools in the one form that clients know: some servers give all of them one number, repeat id and name in
    every piece, or send objects for texts."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._places: dict[int, int] = {}

    def pieces(self, given: Any) -> Iterator[CallPiece]:
        """
        Raises:
            ValueError: a call has no name.
        """
        for place, one in enumerate(given if isinstance(given, list) else []):
            call = _dict(one)
            kind, named = ("custom", "input") if isinstance(call.get("custom"), dict) else ("function", "arguments")
            part, number, id = _dict(call.get(kind)), call.get("index"), call.get("id")
            number = number if isinstance(number, int) else place
            value = part.get(named)
            written = "" if value is None else value if isinstance(value, str) else json.dumps(value)
            known = self._places.get(number)
            if known is not None and not (id and part.get("name") and id != self._ids[known]):
                yield CallPiece({"index": known, kind: {named: written}})
                continue
            if not (isinstance(part.get("name"), str) and part["name"]):
                raise ValueError("it called a tool without a name")
            new = self._places[number] = len(self._ids)
            self._ids.append(str(id or f"call_{secrets.token_hex(12)}"))
            function = {"name": part["name"], named: written}
            yield CallPiece({"index": new, "id": self._ids[-1], "type": kind, kind: function})


def _whole(text: str) -> tuple[str, str]:
    """A text without a half of a character at its end, and that half. Other halves become replacement characters."""
    end = len(text) - 1 if text[-1:] and "\ud800" <= text[-1] <= "\udbff" else len(text)
    return text[:end].encode("utf-16", "surrogatepass").decode("utf-16", "replace"), text[end:]


def _dict(value: Any) -> dict[str, Any]:
    """A part of a message, empty where it is none."""
    return value if isinstance(value, dict) else {}


async def _values(reply: httpx2.Response, source: Any) -> AsyncIterator[Any]:
    """The values of a stream of server-sent events, `_LAST` for its last word; or the one of a plain response."""
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "text/event-stream":
        yield (value := parsed((await reply.aread()).decode(errors="replace")))
        if not _dict(value).get("choices"):
            raise ValueError(f"it sent no completion: {str(value)[:80]}")
        yield _LAST
        return
    async for event in source(reply):
        if event.data.strip() == "[DONE]":
            yield _LAST
        elif event.data:
            yield parsed(event.data)
