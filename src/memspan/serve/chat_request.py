"""OpenAI's chat request: what is read of it, what is taken and changes nothing, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from memspan.generate.answerer import Message
from memspan.generate.completions import LOOK_UP_NAME
from memspan.serve.errors import ApiError
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
    def _content(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text or part.refusal for part in self.content)
        return self.content or ""

    @property
    def said(self) -> Message:
        """As it is passed on to another model."""
        names = {"tool_calls", "function_call"} if self.role == "assistant" else set()
        names |= {"tool_call_id", "name"} if self.role in ("tool", "function") else set()
        fields = self.model_dump(include=names, exclude_none=True, exclude_unset=True) if names else {}
        return Message(self.role, self._content, {name: value for name, value in fields.items() if value} or None)

    @property
    def text(self) -> str:
        """What was said; of calls and results of tools, what was called and came back."""
        said = self._content
        if self.role in ("tool", "function"):
            return returned(self.name or "", said)
        calls = [*(self.tool_calls or ()), *([self.function_call] if self.function_call else ())]
        return "\n".join(text for text in (said, *(call.text for call in calls)) if text)


class StreamOptions(Strict):
    include_usage: bool | None = False
    include_obfuscation: bool | None = Field(None, description="Taken; nothing is ever padded.")
    continuous_usage_stats: Annotated[Literal[False] | None, _else("usage comes once, at the end; leave it out")] = None


class Tool(BaseModel):
    """A tool that another model may call, passed on to it as it is."""

    model_config = ConfigDict(extra="allow")
    type: Literal["function", "custom"]
    function: dict[str, JsonValue] | None = None
    custom: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.name:
            raise ValueError("a tool has a name")
        return self

    @property
    def name(self) -> str:
        part = self.function if self.type == "function" else self.custom
        name = (part or {}).get("name")
        return name if isinstance(name, str) else ""


class AnswerFormat(BaseModel):
    """How the answer is to be written, passed on to another model as it is."""

    model_config = ConfigDict(extra="allow")
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> Self:
        if (self.type == "json_schema") != isinstance((self.json_schema or {}).get("name"), str):
            raise ValueError("a schema has a name")
        return self


_OWN_TOOL = "the name 'look_up' is taken by the tool that looks up memories; call yours otherwise"
_NO_TOOLS = "a memory model calls no tools; leave it out, and call tools from your own code"
_PLAIN = "answers are plain text; leave it out, or send {'type': 'text'}"
_TOOL = "a tool is {'type': 'function', 'function': {'name': ...}}, for another model: a memory model calls no tools"
_CHOICE = "it is none, auto, required, or one of the tools, for another model: a memory model calls no tools"
_OLD_TOOLS = "functions are an old form of tools, which are for another model: a memory model calls no tools"
_FORMAT = (
    "it is {'type': 'text'}, and for another model also {'type': 'json_object'} or {'type': 'json_schema', "
    "'json_schema': {'name': ...}}: a memory model writes plain text"
)
_MOST_TOOLS = 128
_NO_PROBABILITIES = "probabilities of tokens are not given; leave it out"
_NO_PENALTY = "there are no penalties here; leave it out, or send 0"
_Empty = Annotated[list[JsonValue], Field(max_length=0)]
_Tokens = Annotated[
    Annotated[int, Field(ge=-1)] | None,
    Field(description="Default, 0, -1, and more than there is room for: as many as there are."),
]
_UNREAD = "Taken, and changes nothing."
_PASSED_ON = "For another model that answers (`--answer-with`)."


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
    tools: Annotated[
        Annotated[list[Tool], Field(max_length=_MOST_TOOLS)] | None, _else(_TOOL), Field(description=_PASSED_ON)
    ] = None
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | dict[str, JsonValue] | None,
        _else(_CHOICE),
        Field(description=_PASSED_ON),
    ] = None
    parallel_tool_calls: bool | None = Field(None, description=f"{_PASSED_ON} Else it changes nothing.")
    functions: Annotated[_Empty | None, _else(_OLD_TOOLS)] = None
    function_call: Annotated[Literal["none", "auto"] | None, _else(_OLD_TOOLS)] = None
    web_search_options: Annotated[None, _else("nothing is searched but the memory; leave it out")] = None
    logprobs: Annotated[Literal[False] | None, _else(_NO_PROBABILITIES)] = None
    top_logprobs: Annotated[Literal[0] | None, _else(_NO_PROBABILITIES)] = None
    logit_bias: Annotated[
        Annotated[dict[str, JsonValue], Field(max_length=0)] | None,
        _else("tokens can't be made likelier here; leave it out"),
    ] = None
    frequency_penalty: Annotated[Annotated[float, Field(ge=0, le=0)] | None, _else(_NO_PENALTY)] = None
    presence_penalty: Annotated[Annotated[float, Field(ge=0, le=0)] | None, _else(_NO_PENALTY)] = None
    response_format: Annotated[AnswerFormat | None, _else(_FORMAT), Field(description=_PASSED_ON)] = None
    modalities: Annotated[Annotated[list[Literal["text"]], Field(min_length=1)] | None, _else(_NO_AUDIO)] = None
    audio: Annotated[None, _else(_NO_AUDIO)] = None
    moderation: Annotated[None, _else("nothing is moderated here; leave it out")] = None
    store: Annotated[
        Literal[False] | None, _else("the server keeps no conversations; send 'remember' to keep this turn")
    ] = None
    user: JsonValue = Field(None, description=_UNREAD)
    metadata: JsonValue = Field(None, description=_UNREAD)
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

    def passed(self, to_other: bool) -> dict[str, Any]:
        """What of the request is passed on to another model as it is.

        Args:
            to_other: whether another model answers, and takes it.

        Raises:
            ApiError: 400, at the field that cannot be.
        """
        is_plain = self.response_format is None or self.response_format.type == "text"
        if not to_other:
            wrong = {"tools": _NO_TOOLS if self.tools else "", "response_format": "" if is_plain else _PLAIN}
            wrong["tool_choice"] = "" if self.tool_choice in (None, "none", "auto") else _NO_TOOLS
        else:
            names = [tool.name for tool in self.tools or ()]
            twice = next((name for name in names if names.count(name) > 1), "")
            wrong = {"tools": _OWN_TOOL if LOOK_UP_NAME in names else twice and f"two tools have the name {twice!r}"}
            chooses = self.tool_choice not in (None, "none", "auto")
            wrong["tool_choice"] = "there are no tools to choose from; send tools" if chooses and not names else ""
        for name, told in wrong.items():
            if told:
                raise ApiError(400, f"{name}: {told}", "unsupported_value", param=name)
        wanted = ("tools", "tool_choice", "parallel_tool_calls") if self.tools else ()
        wanted = (*wanted, *(() if is_plain else ("response_format",)))
        return self.model_dump(include=set(wanted), exclude_none=True, exclude_unset=True)

    def said(self) -> list[tuple[Message, str]]:
        """The conversation: each message as it is passed on, and what it says in words."""
        return [(one.said, one.text) for one in self.messages]

    @property
    def wanted_tokens(self) -> int | None:
        """Of the answer; None: as many as there is room for."""
        given = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return given if given is not None and given > 0 else None
