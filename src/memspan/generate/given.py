"""Documents as callers give them: texts with lists of ids and metadata, `Document`s, and turns of conversations."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from io import IOBase
from pathlib import Path
from typing import Any

from memspan.dates import date_key, normal_date
from memspan.errors import DuplicateDocument
from memspan.text.messages import exchanges, read_messages
from memspan.types import JSON, Document


def documents_of(documents: Iterable[str | Document], **columns: Iterable[Any] | None) -> Iterable[Document]:
    """Texts and documents as documents; see `DocumentStore.add` for arguments and errors."""
    if isinstance(documents, Path | IOBase):
        raise TypeError(f"documents are texts; a file is added by its path: memory.add_files({_path_of(documents)!r})")
    if isinstance(documents, str | bytes | Document | Mapping) or not isinstance(documents, Iterable):
        raise TypeError(f"documents is a list, also of one: memory.add([{type(documents).__name__}])")
    given: dict[str, list[Any]] = {}
    for name, values in columns.items():
        if isinstance(values, str | Mapping):
            raise TypeError(f"{name} is a list with one for each document, not {values!r}")
        if values is not None:
            given[name] = list(values)
    if not given and not isinstance(documents, Sequence):
        return (_document_of(item, {}) for item in documents)
    items = list(documents)
    for name, values in given.items():
        if len(values) != len(items):
            raise ValueError(f"{name} has {len(values)} values for {len(items)} documents; give one for each")
    ids = given.get("ids") or [None] * len(items)
    named = [id for id in ids if id is not None]
    if len(set(named)) < len(named):
        twice = next(id for id in named if named.count(id) > 1)
        raise ValueError(f"ids names {twice!r} twice; an id is of one document")
    made = [_document_of(item, {name: given[name][place] for name in given}) for place, item in enumerate(items)]
    return _each_once(made, [isinstance(item, str) and id is None for item, id in zip(items, ids, strict=True)])


def _path_of(file: Path | IOBase) -> str:
    return str(file if isinstance(file, Path) else getattr(file, "name", "FILE"))


def _each_once(documents: Sequence[Document], by_text: Sequence[bool]) -> list[Document]:
    """The documents without those that are given again; of texts that are known by themselves, the last one counts.

    Raises:
        DuplicateDocument: two that differ have one id.
    """
    first: dict[str, int] = {}
    for place, document in enumerate(documents):
        before = first.setdefault(document.external_id, place)
        if document != documents[before] and not (by_text[place] and by_text[before]):
            raise DuplicateDocument(
                f"the documents {before} and {place} of the list differ and have one id, {document.external_id!r}; an "
                "id is of one document: give one of them another"
            )
    last = {document.external_id: document for document in documents}
    return [last[name] for name in first]


def _document_of(item: Any, values: Mapping[str, Any]) -> Document:
    if isinstance(item, Document):
        if values:
            raise TypeError(f"{', '.join(values)} are for texts; {item.external_id!r} is a Document, and has its own")
        return item
    if not isinstance(item, str):
        raise TypeError(f"a document is a text or a Document, not {type(item).__name__} ({str(item)[:80]!r})")
    id = values.get("ids")
    return Document(
        id if id is not None else _text_id(item),
        item,
        values.get("titles") or "",
        values.get("metadatas") or {},
        values.get("dates"),
    )


def _text_id(text: str) -> str:
    """An id made from a text: the same text is the same document."""
    return f"text-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:24]}"


def turn_document(turn: str, speaker: str = "", session: str = "", date: str | None = None) -> Document:
    """One turn of a conversation as a document; see `DocumentStore.remember`."""
    if not turn.strip():
        raise ValueError("the turn is empty; there is nothing to remember")
    text = f"{speaker}: {turn}" if speaker else turn
    return _remembered(text, session, date, {"speaker": speaker})


def exchange_documents(messages: Iterable[Any], session: str = "", date: str | None = None) -> list[Document]:
    """The exchanges of a conversation as documents; see `DocumentStore.remember`."""
    said = read_messages(messages)
    if not said:
        raise ValueError("nobody says anything in the messages; there is nothing to remember")
    date = normal_date(date) if date else _now()
    found: list[Document] = []
    times = Counter[str]()
    for one in exchanges(said):
        people: list[JSON] = [*dict.fromkeys(turn.who for turn in one)]
        metadata = {"speaker": people[0], **({"participants": people} if len(people) > 1 else {})}
        text = "\n".join(f"{turn.who}: {turn.text}" for turn in one)
        when = next((turn.when for turn in one if turn.when), date)
        made = _remembered(text, session, when, metadata)
        times[made.external_id] += 1
        again = times[made.external_id]
        found.append(replace(made, external_id=f"{made.external_id}#{again}") if again > 1 else made)
    return found


def _remembered(text: str, session: str, date: str | None, metadata: dict[str, JSON]) -> Document:
    """A document that is known by its text and its moment, whatever the zone that is written in."""
    date = normal_date(date or _now())
    digest = hashlib.sha256(f"{date_key(date)}\n{text}".encode()).hexdigest()[:16]
    return Document(f"{session or 'turn'}/{digest}", text, metadata={**metadata, "session": session}, date=date)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
