"""OpenAI's chat request: what is read of it, what is taken and changes nothing, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, ValidationError, WrapValidator
from pydantic_core import PydanticCustomError

from memspan.serve.schemas import MOST_MESSAGES, AskFields
from memspan.serve.strict import Body, Strict
from memspan.text.messages import called, returned

_TEXT_KINDS = ("text", "input_text", "output_text", "refusal")


def _else(remedy: str) -> WrapValidator:
    """Whatever is not of the type is refused in these words."""

    def check(value: Any, of_type: Callable[[Any], Any]) -> Any:
        try:
            return of_type(value)
        except ValidationError:
            raise PydanticCustomError("unsupported", "{told}", {"told": remedy}) from None

    return WrapValidator(check)


def _only_text(content: Any) -> Any:
    """A message's content, if all of it is text.

    Raises:
        PydanticCustomError: it is something else, which is named.
    """
    for part in content if isinstance(content, list) else []:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _TEXT_KINDS and isinstance(part.get("refusal" if kind == "refusal" else "text"), str):
            continue
        named = f"a part of the type {kind[:40]!r}" if isinstance(kind, str) else "a part without a type"
        remedy = 'a memory model reads text alone: {"type": "text", "text": ...}'
        raise PydanticCustomError("unsupported", "{told}", {"told": f"{named} is not read; {remedy}"})
    return content


class TextPart(Strict):
    """A part of a message. `cache_control` and `annotations` of other servers are read over."""

    type: Literal["text", "input_text", "output_text", "refusal"] = "text"
    text: str = ""
    refusal: str = ""
    cache_control: JsonValue = None
    annotations: JsonValue = None
    logprobs: JsonValue = None


class FunctionCall(Strict):
    """A function that another model called."""

    name: str = ""
    arguments: JsonValue = ""

    @property
    def text(self) -> str:
        return called(self.name, self.arguments)


class ToolCall(Strict):
    """A tool that another model called, as it stands in the history."""

    id: str | None = None
    type: str | None = None
    index: int | None = None
    function: FunctionCall | None = None
    custom: dict[str, JsonValue] | None = None

    @property
    def text(self) -> str:
        if self.function is not None:
            return self.function.text
        custom = self.custom or {}
        return called(str(custom.get("name", "")), custom.get("input", ""))


_Content = Annotated[
    Annotated[str | list[TextPart] | None, _else("a content is a text, or a list of {'type': 'text', 'text': ...}")],
    BeforeValidator(_only_text),
]
_NO_AUDIO = "a memory model hears and speaks nothing; send text"


class MessageIn(Strict):
    """A message of a conversation. What another server's answer has beside its text is read over."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: _Content = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None
    tool_call_id: str | None = None
    audio: Annotated[None, _else(_NO_AUDIO)] = None
    images: Annotated[
        Annotated[list[JsonValue], Field(max_length=0)] | None, _else("no images are read; send text")
    ] = None
    refusal: JsonValue = None
    annotations: JsonValue = None
    reasoning: JsonValue = None
    reasoning_content: JsonValue = None
    reasoning_details: JsonValue = None
    thinking_blocks: JsonValue = None
    provider_specific_fields: JsonValue = None
    cache_control: JsonValue = None
    id: JsonValue = None

    @property
    def text(self) -> str:
        """What was said; of calls and results of tools, what was called and came back."""
        if isinstance(self.content, list):
            said = "\n".join(part.text or part.refusal for part in self.content)
        else:
            said = self.content or ""
        if self.role in ("tool", "function"):
            return returned(self.name or "", said)
        calls = [*(self.tool_calls or ()), *([self.function_call] if self.function_call else ())]
        return "\n".join(text for text in (said, *(call.text for call in calls)) if text)


class StreamOptions(Strict):
    include_usage: bool | None = False
    include_obfuscation: bool | None = Field(None, description="Taken; nothing is ever padded.")
    continuous_usage_stats: Annotated[Literal[False] | None, _else("usage comes once, at the end; leave it out")] = None


class PlainFormat(Strict):
    type: Literal["text"]


_NO_TOOLS = "a memory model calls no tools; leave it out, and call tools from your own code"
_NO_PROBABILITIES = "probabilities of tokens are not given; leave it out"
_NO_PENALTY = "there are no penalties here; leave it out, or send 0"
_Empty = Annotated[list[JsonValue], Field(max_length=0)]
_Tokens = Annotated[
    Annotated[int, Field(ge=-1)] | None,
    Field(description="Default, 0, -1, and more than there is room for: as many as there are."),
]
_UNREAD = "Taken, and changes nothing."


class ChatRequest(Body):
    """OpenAI's request. What a memory model cannot do is refused by name; what changes no answer is taken."""

    model: str = Field(max_length=300, examples=["memspan/notes"])
    messages: list[MessageIn] = Field(min_length=1, max_length=MOST_MESSAGES)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: _Tokens = None
    max_completion_tokens: _Tokens = None
    temperature: float | None = Field(None, ge=0, le=2, description="Default: 0, the likeliest answer.")
    top_p: float | None = Field(None, gt=0, le=1)
    stop: str | list[str] | None = Field(None, description="At most four strings that end the answer.")
    seed: int | None = Field(None, ge=-1, lt=2**63, description="Default, and -1: another one for every answer.")
    n: Annotated[Literal[1] | None, _else("a question gets one answer; ask again for another")] = None
    tools: Annotated[_Empty | None, _else(_NO_TOOLS)] = None
    tool_choice: Annotated[Literal["none", "auto"] | None, _else(_NO_TOOLS)] = None
    functions: Annotated[_Empty | None, _else(_NO_TOOLS)] = None
    function_call: Annotated[Literal["none", "auto"] | None, _else(_NO_TOOLS)] = None
    web_search_options: Annotated[None, _else("nothing is searched but the memory; leave it out")] = None
    logprobs: Annotated[Literal[False] | None, _else(_NO_PROBABILITIES)] = None
    top_logprobs: Annotated[Literal[0] | None, _else(_NO_PROBABILITIES)] = None
    logit_bias: Annotated[
        Annotated[dict[str, JsonValue], Field(max_length=0)] | None,
        _else("tokens can't be made likelier here; leave it out"),
    ] = None
    frequency_penalty: Annotated[Annotated[float, Field(ge=0, le=0)] | None, _else(_NO_PENALTY)] = None
    presence_penalty: Annotated[Annotated[float, Field(ge=0, le=0)] | None, _else(_NO_PENALTY)] = None
    response_format: Annotated[
        PlainFormat | None, _else("answers are plain text; leave it out, or send {'type': 'text'}")
    ] = None
    modalities: Annotated[Annotated[list[Literal["text"]], Field(min_length=1)] | None, _else(_NO_AUDIO)] = None
    audio: Annotated[None, _else(_NO_AUDIO)] = None
    moderation: Annotated[None, _else("nothing is moderated here; leave it out")] = None
    store: Annotated[
        Literal[False] | None, _else("the server keeps no conversations; send 'remember' to keep this turn")
    ] = None
    user: JsonValue = Field(None, description=_UNREAD)
    metadata: JsonValue = Field(None, description=_UNREAD)
    parallel_tool_calls: JsonValue = Field(None, description=_UNREAD)
    prediction: JsonValue = Field(None, description=_UNREAD)
    prompt_cache_key: JsonValue = Field(None, description=_UNREAD)
    prompt_cache_options: JsonValue = Field(None, description=_UNREAD)
    prompt_cache_retention: JsonValue = Field(None, description=_UNREAD)
    reasoning_effort: JsonValue = Field(None, description=_UNREAD)
    safety_identifier: JsonValue = Field(None, description=_UNREAD)
    service_tier: JsonValue = Field(None, description=_UNREAD)
    verbosity: JsonValue = Field(None, description=_UNREAD)
    remember: bool = Field(False, description="Remember the last message and its answer.")
    memspan: AskFields = Field(default_factory=AskFields)  # type: ignore[arg-type]

    @classmethod
    def _hint(cls, name: str) -> str:
        return (
            f'; write it as {{"memspan": {{"{name}": ...}}}}' if name in AskFields.model_fields else super()._hint(name)
        )

    @property
    def wanted_tokens(self) -> int | None:
        """Of the answer; None: as many as there is room for."""
        given = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return given if given is not None and given > 0 else None
