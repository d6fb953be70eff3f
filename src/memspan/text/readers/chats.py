"""Chats that were exported: who said what, and when. They are known by their content, since their names vary."""

from __future__ import annotations

import contextlib
import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from memspan.text.messages import read_messages, time_of
from memspan.text.readers.conversations import (
    ChatMessage,
    another_name,
    by_day,
    clean,
    clock,
    conversation,
    messages_reader,
    whole_json,
)
from memspan.text.readers.formats import ContainerReader, FilePart, Unreadable, damage_named
from memspan.text.readers.opening import read_text

_HEAD_BYTES = 16 << 10


def chat_format(path: Path) -> ContainerReader | None:
    """How a text or JSON file is read that is a chat by its first bytes; None where it is not."""
    kind = path.suffix.lower()
    if kind not in (".txt", ".json", ".jsonl", ".ndjson"):
        return None
    read = None
    with contextlib.suppress(OSError):  # who reads the file says so
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        if kind == ".txt":
            read = _read_whatsapp if _is_whatsapp(head.decode(errors="replace")) else None
        elif kind == ".json" and re.search(_SLACK, head):
            read = _read_slack
        elif kind == ".json" and re.search(_ASSISTANTS, head):
            read = _assistant_reader(path)
        if read is None and kind != ".txt" and re.search(rb'"role"\s*:\s*"', head):
            read = messages_reader(path)
    return None if read is None else ContainerReader(lambda file, options: read(file))


# Assistants: ChatGPT and Claude ---------------------------------------------------------------------------------------


_ASSISTANTS = rb'"mapping"\s*:\s*\{|"chat_messages"\s*:\s*\['


def _assistant_reader(path: Path) -> Callable[[Path], Iterator[FilePart]] | None:
    """How a JSON file is read that holds conversations with an assistant; None where it holds other things of these
    names, or is damaged."""
    try:
        whole = whole_json(path)
    except Unreadable:
        return None
    values = whole if isinstance(whole, list) else [whole]
    if any(_has(one, "mapping", "message") for one in values):
        read, keys = _chatgpt_messages, ("conversation_id", "title", "create_time")
    elif any(_has(one, "chat_messages", "sender") for one in values):
        read, keys = _claude_messages, ("uuid", "name")
    else:
        return None
    return lambda _: _read_assistant(values, read, keys)


def _has(value: Any, key: str, inner: str) -> bool:
    """Whether something is a conversation: an object that holds others with the key `inner`, in an object or a list."""
    held = value.get(key) if isinstance(value, dict) else None
    items = held.values() if isinstance(held, dict) else held if isinstance(held, list) else ()
    return any(isinstance(one, dict) and inner in one for one in items)


def _read_assistant(
    conversations: Sequence[Any], messages: Callable[[Mapping[str, Any]], list[ChatMessage]], keys: Sequence[str]
) -> Iterator[FilePart]:
    """A document for each conversation.

    Args:
        keys: of a conversation's id and title, and of its time where it has one.
    """
    names = set[str]()
    for number, one in enumerate(conversations, start=1):
        name = str(number)
        try:
            with damage_named("conversation"):
                name = another_name(str(one.get(keys[0]) or one.get("id") or number).replace("/", "_"), number, names)
                said = messages(one)
                title = clean(str(one.get(keys[1]) or ""))
                when = next(filter(None, (time_of(one.get(key)) for key in keys[2:])), "")
                content = conversation(said, title, **({"date": when} if when else {}))
        except Unreadable as error:
            yield FilePart(name, error)
            continue
        yield FilePart(name, content if said else Unreadable("a conversation without text"))


def _chatgpt_messages(conversation: Mapping[str, Any]) -> list[ChatMessage]:
    """The branch of the conversation that was shown last."""
    nodes = conversation["mapping"]
    place: str = conversation.get("current_node") or next(reversed(nodes), "")
    said: list[ChatMessage] = []
    seen: set[str] = set()
    while place in nodes and place not in seen:
        seen.add(place)
        message = nodes[place].get("message") or {}
        who = (message.get("author") or {}).get("role", "")
        text = _chatgpt_text(message.get("content") or {})
        if text and who != "system":
            when = time_of(message.get("create_time"))
            said.append(ChatMessage(when, clock(when), who, text))
        place = nodes[place].get("parent") or ""
    return said[::-1]


def _chatgpt_text(content: Mapping[str, Any]) -> str:
    parts = content.get("parts") or [content.get("text") or content.get("result") or ""]
    texts = (part if isinstance(part, str) else str((part or {}).get("text") or "") for part in parts)
    return "\n".join(filter(None, texts)).strip()


def _claude_messages(conversation: Mapping[str, Any]) -> list[ChatMessage]:
    said: list[ChatMessage] = []
    for one in conversation["chat_messages"]:
        who, when = str(one.get("sender") or ""), time_of(one.get("created_at"))
        text = str(one.get("text") or "").strip()
        if not text:
            parts = read_messages([{"role": who or "assistant", "content": one.get("content") or ""}])
            text = "\n".join(part.text for part in parts)
        if text:
            said.append(ChatMessage(when or str(one.get("created_at") or ""), clock(when), who, text))
    return said


# Slack ----------------------------------------------------------------------------------------------------------------

_SLACK = (
    rb'^(?:\xef\xbb\xbf)?\s*\[\s*\{(?=[\s\S]{0,8000}?"type"\s*:\s*"message")(?=[\s\S]{0,8000}?"ts"\s*:\s*"\d+\.\d+")'
    rb'(?=[\s\S]{0,8000}?"(?:user|username|bot_id|subtype)"\s*:)'
)
_MENTION = re.compile(r"<@([A-Z0-9]+)(?:\|([^>]*))?>")
_CHANNEL = re.compile(r"<#[A-Z0-9]+\|([^>]*)>")
_LINK = re.compile(r"<(https?://[^|>]+|mailto:[^|>]+)(?:\|([^>]*))?>")


def _read_slack(path: Path) -> Iterator[FilePart]:
    """One day of a channel: the file's own document. Names come from the messages, and from `users.json` if any."""
    messages = whole_json(path)
    with damage_named("Slack export"):
        people = _slack_people(path.parent.parent / "users.json") | dict(_slack_profiles(messages))
        said = [_slack_said(one, people) for one in messages if one.get("type") == "message"]
        said = [one for one in said if one.text]
    if not said:
        raise Unreadable("no messages in it")
    is_day, channel = re.fullmatch(r"\d{4}-\d\d-\d\d", path.stem), path.parent.name
    day = path.stem if is_day else next((one.when[:10] for one in said if one.when), "")
    dated: dict[str, Any] = {"date": day} if day else {}
    yield FilePart("", conversation(said, ", ".join(filter(None, (f"#{channel}", day))), channel=channel, **dated))


def _slack_people(file: Path) -> dict[str, str]:
    try:
        return {one["id"]: _slack_name(one.get("profile") or {}) or one.get("name", "") for one in whole_json(file)}
    except (OSError, Unreadable, TypeError, KeyError, AttributeError):
        return {}


def _slack_profiles(messages: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for one in messages:
        if name := _slack_name(one.get("user_profile") or {}):
            yield str(one.get("user")), name


def _slack_name(profile: Mapping[str, Any]) -> str:
    return str(profile.get("display_name") or profile.get("real_name") or profile.get("name") or "")


def _slack_said(message: Mapping[str, Any], people: Mapping[str, str]) -> ChatMessage:
    user = str(message.get("user") or "")
    who = people.get(user) or str(message.get("username") or user)
    text = _MENTION.sub(
        lambda found: "@" + (people.get(found[1]) or found[2] or found[1]), str(message.get("text") or "")
    )
    text = _LINK.sub(lambda found: f"{found[2]} ({found[1]})" if found[2] else found[1], _CHANNEL.sub(r"#\1", text))
    files = [str(one.get("name")) for one in message.get("files") or () if one.get("name")]
    text = html.unescape(text) + "".join(f"\n(file: {name})" for name in files)
    when = time_of(message.get("ts"))
    return ChatMessage(when, when[11:16], who, text.strip())


# WhatsApp -------------------------------------------------------------------------------------------------------------

_LINE_END = re.compile(r"\r\n|\n|\r")
_HALF = r"上午|下午|오전|오후|午前|午後"
_MESSAGE = re.compile(
    r"^[\u200e\u200f\ufeff]*(?P<open>\[)?"
    r"(?P<date>\d{1,4}\u200f?[./-]\s?\d{1,2}\u200f?[./-]\s?\d{1,4}\.?|\d{4}[年년]\s?\d{1,2}[月월]\s?\d{1,2}[日일])"
    rf"(?:[,،]|\s(?:à|um|a las|alle|às|kl\.))?\s*(?P<early>{_HALF})?\s?"
    r"(?P<hour>\d{1,2})[:.](?P<minute>\d{2})(?(open)(?:[:.]\d{2})?)\s?(?P<late>[AaPp]\.?\s?[Mm]\.?|[صم])?"
    r"(?(open)\]|(?:\s[-–]|,))\s[\u200e\u200f]*(?P<rest>.*)$"
)
_ORDERS = ("year month day", "day month year", "month day year")
_SPEAKER = re.compile(r"([^:\n]{1,80}?)\s?: (.*)", re.DOTALL)
_SNIFFED_LINES = 20


def _is_whatsapp(head: str) -> bool:
    """Whether the first line is a message, and one more of the first lines is, or there is only this one."""
    lines = [line for line in _LINE_END.split(head)[:_SNIFFED_LINES] if line.strip()]
    found = [_message(line) for line in lines]
    if not found or found[0] is None:
        return False
    messages = [one for one in found if one is not None]
    return any(_SPEAKER.match(one["rest"]) for one in messages) and len(messages) > (len(lines) > 1)


def _read_whatsapp(path: Path) -> Iterator[FilePart]:
    """A document for each day of the chat."""
    messages = _whatsapp_messages(read_text(path)[0])
    order = _date_order([found["date"] for found, _ in messages])
    said = [_whatsapp_said(found, text, order) for found, text in messages]
    name = re.sub(r"^_?(?:whatsapp[ -]chat(?:[ -]with)?|chat)\b[ -]*", "", path.stem, flags=re.IGNORECASE).strip()
    yield from by_day(said, f"WhatsApp chat with {name}" if name else "WhatsApp chat", date_order=order)


def _whatsapp_messages(text: str) -> list[tuple[re.Match[str], str]]:
    """The messages, each with all of its lines."""
    messages: list[tuple[re.Match[str], list[str]]] = []
    for line in _LINE_END.split(text):
        if found := _message(line):
            messages.append((found, [found["rest"]]))
        elif messages:
            messages[-1][1].append(line)
    return [(found, "\n".join(lines).strip()) for found, lines in messages]


def _message(line: str) -> re.Match[str] | None:
    """The first line of a message; None of one whose date or time cannot be, in whatever order it is written."""
    found = _MESSAGE.match(line)
    return found if found and any(_moment(found, order) for order in _ORDERS) else None


def _date_order(dates: Sequence[str]) -> str:
    """In which order a chat writes year, month and day: by what cannot be a month, by the order of the messages, by
    the separator (only `/` and no leading zeros: as in the United States)."""
    numbers = [_numbers(date) for date in dates]
    if len(re.match(r"\d+", dates[0])[0]) == 4 or all(one[0] > 31 for one in numbers):  # type: ignore[index]
        return "year month day"
    for order, month in (("day month year", 1), ("month day year", 0)):
        if any(one[1 - month] > 12 for one in numbers):
            return order
    moments = {
        order: [(one[2], one[month], one[1 - month]) for one in numbers]
        for order, month in (("day month year", 1), ("month day year", 0))
    }
    ordered = [order for order, keys in moments.items() if keys == sorted(keys)]
    if len(ordered) == 1:
        return ordered[0]
    is_american = any(re.search(r"(?<!\d)\d/", date) for date in dates) and all(len(str(one[2])) < 4 for one in numbers)
    return "month day year" if is_american else "day month year"


def _numbers(date: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", date)]


def _whatsapp_said(found: re.Match[str], text: str, order: str) -> ChatMessage:
    speaker = _SPEAKER.match(text)
    who, said = (speaker[1], speaker[2]) if speaker else ("", text)
    if not (when := _moment(found, order)):
        raise Unreadable(f"{found['date']} is no date of {order}")
    return ChatMessage(when, when[11:], re.sub(r"[\u200e\u200f\u202a-\u202e]", "", who), said.replace("\u200e", ""))


def _moment(found: re.Match[str], order: str) -> str:
    """When a message was written, as an ISO time; empty where this is no order of its date."""
    values = dict(zip(order.split(), _numbers(found["date"]), strict=True))
    year = values["year"] + (2000 if values["year"] < 100 else 0)
    half, hour = (found["early"] or found["late"] or "").lower(), int(found["hour"])
    if half:
        hour = hour % 12 + 12 * half.startswith(("p", "下", "오후", "午後", "م"))
    try:
        when = datetime(year, values["month"], values["day"], hour, int(found["minute"]))
    except ValueError:
        return ""
    return when.isoformat(timespec="minutes")
