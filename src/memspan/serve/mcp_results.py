"""What the MCP tools give: their output schemas."""

from __future__ import annotations

from pydantic import BaseModel, Field, JsonValue


class RememberResult(BaseModel):
    id: str = Field(description="Names the memory from now on.")
    uri: str = Field(description="The memory as a resource.")


class ForgetResult(BaseModel):
    forgotten: bool = Field(description="True: nothing finds it any more. An unknown id is an error.")


class MemoryText(BaseModel):
    """A memory, or a part of a long one."""

    id: str
    title: str
    text: str
    date: str = Field(description="Its own date, or the time it was remembered (UTC).")
    pages: list[int] = Field(description="Pages, from 1, that the text stands on; none of a text without pages.")
    metadata: dict[str, JsonValue]
    uri: str


class FoundMemory(MemoryText):
    """A memory, or a part of a long one, that was found."""

    score: float = Field(description="How well it fits; higher is better.")


class AskResult(BaseModel):
    answer: str = Field(description="Written by a model: check it against the sources.")
    cited: str = Field(description="The answer, with `[n]` behind each sentence that the n-th source says.")
    answered: bool = Field(description="False: the memories do not say.")
    sources: list[FoundMemory] = Field(description="The memories that were put before the model, best first.")


class ListedMemory(BaseModel):
    id: str
    title: str
    uri: str


class ListResult(BaseModel):
    memories: list[ListedMemory]
    next: int | None = Field(description="The `after` of the next page; null: there is none.")


class ConversationResult(BaseModel):
    ids: list[str] = Field(description="Of the memories that the conversation became, in order.")
    added: int = Field(description="Those of them that were not known yet.")


class ChangedMemory(BaseModel):
    kind: str = Field(description="added, changed, deleted or expired.")
    id: str | None = Field(description="Null: which memory it was has been erased.")
    title: str
    at: str = Field(description="The last time (UTC).")


class ChangesResult(BaseModel):
    changes: list[ChangedMemory] = Field(description="In the order of their times; a memory stands in it once.")
    commit: int = Field(description="As `after_commit` it gives what changes from now on.")
    more: bool = Field(description="Whether there are more; ask again with a higher `offset`.")
