"""Where documents come from: files and folders, and standard input."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from memspan.errors import CorpusError
from memspan.text.dates import find_date
from memspan.text.definitions import CODE_KEY
from memspan.text.folders import FoundFile, GivenPath, Roots
from memspan.text.progress import ReadProgress, size_of
from memspan.text.readers import (
    AS_FOUND,
    REMEDY,
    BadRecord,
    Content,
    FilePart,
    ReadOptions,
    Record,
    Unreadable,
    decode,
    find_key,
    holds_records,
    is_filled,
    is_supported,
    is_text,
    no_text,
    parse_json_object,
    read_content,
    read_json_lines,
    read_parts,
    read_records,
    why_unsupported,
)
from memspan.text.readers.formats import SAVED_KEY
from memspan.text.readers.opening import LONGEST_TEXT, MIB
from memspan.types import JSON, Document, Skipped

_CONTENT = 2**64 - 1
_ID_KEYS = ("external_id", "id")

_DATE_LINE = re.compile(r"^[\s*_]*date[*_]*:[\s*_\"']*(?P<date>[^*_\"'\n]*\d{4}[^*_\"'\n]*?)[\s*_\"']*$", re.IGNORECASE)
_DATE_NAME = re.compile(r"(\d{4}-\d{2}-\d{2})(?!\d)")
_NUM_LINES_WITH_DATE = 10
_LONGEST_STREAM = LONGEST_TEXT
"""Bytes of standard input, which is read whole before it is known what it holds."""
_LONGEST_TITLE = 100
_MAX_DEPTH = 5  # of files in files (an attachment of a mail in an archive ...)


def read_paths(
    paths: Iterable[Path],
    reading: ReadProgress | None = None,
    roots: Roots | None = None,
    options: ReadOptions = AS_FOUND,
) -> Iterator[Document | Skipped]:
    """Return an iterator over the documents of files and folders, in the order given, and over what was skipped.

    A folder is read with the folders in it, sorted by name. Hidden files and folders, memory banks, and what a
    `.memspanignore` names, are passed over silently; symbolic links to folders, and files of unknown extensions, are
    skipped. A file named in `paths` is read whatever its extension. A document's external id is the name of the folder
    that was given (of a file: of the folder it stands in) and the path from there, however it was given; see
    `memspan.text.folders`.

    Files are opened one at a time, when the iterator gets to them, and files of records are read line by line.

    Args:
        reading: updated with how far it is.
        roots: the folders that are known already; those that are new are added.

    Raises:
        CorpusError: a path does not exist; raised by the call itself, before anything is read.
    """
    given = tuple(paths)
    return _read_files(found_files(given), reading or ReadProgress(given), roots or Roots(), options)


def found_files(paths: Iterable[Path]) -> Iterator[FoundFile | Skipped]:
    """The files that some paths mean, in the order given, and what cannot be read.

    Raises:
        CorpusError: a path does not exist; raised by the call itself.
    """
    given = tuple(paths)
    for path in given:
        if not os.path.exists(path):
            raise CorpusError(f"{path} does not exist, or its folder may not be entered; check the path")
    return chain.from_iterable(GivenPath.of(path).files() for path in given)


def _read_files(
    files: Iterable[FoundFile | Skipped], reading: ReadProgress, roots: Roots, options: ReadOptions
) -> Iterator[Document | Skipped]:
    for file in files:
        if isinstance(file, Skipped):
            yield file
            continue
        root, relative = roots.place(file)
        for item in read_file(file, root.name_of(relative), relative, reading, options):
            if isinstance(item, Document):
                reading.characters += len(item.text)
            yield item
    reading.done()


def read_file(
    file: FoundFile, name: str, relative: str, reading: ReadProgress, options: ReadOptions = AS_FOUND
) -> Iterator[Document | Skipped]:
    """Yield the document called `name`, or one for each record; what cannot be read ends it with a `Skipped`.

    Args:
        relative: the file's path in its folder, kept as metadata.
    """
    path = file.path
    if is_meant(file, options):
        yield from _read_file(path, name, relative, reading, options)
    else:
        yield Skipped(str(path), why_unsupported(path, options))


def is_meant(file: FoundFile, options: ReadOptions) -> bool:
    """Whether a file is read: it was named itself, or its format is known."""
    return file.alone or bool(options.format) or is_supported(file.path, options)


def _read_file(
    path: Path, name: str, relative: str, reading: ReadProgress, options: ReadOptions
) -> Iterator[Document | Skipped]:
    if not is_text([str(path), name]):
        yield Skipped(os.fsencode(path).decode(errors="backslashreplace"), "the file's name is not UTF-8")
        return
    reading.next_file()
    yield from _read_opened(path, name, str(path), {"path": relative}, options, reading.at)
    reading.at(size_of(path))


def _read_opened(
    path: Path,
    name: str,
    source: str,
    metadata: Mapping[str, JSON],
    options: ReadOptions,
    at: Callable[[int], object] = lambda position: None,
    depth: int = 0,
) -> Iterator[Document | Skipped]:
    """Yield what a file on disk holds, also one that comes out of another.

    Args:
        source: what a `Skipped` names.
        depth: how many files it comes out of.
    """
    date = _date_of_name(path.name)
    try:
        parts = read_parts(path, options)
        if parts is not None:
            for part in parts:
                yield from _read_part(part, name, source, metadata, options, depth)
        elif holds_records(path, options):
            records = read_records(path, at, options)
            yield from _documents_of_records(records, name, source, metadata, date, options)
        else:
            yield from _documents_of_content(read_content(path, options), name, source, path.stem, metadata, date)
    except Unreadable as error:
        yield Skipped(source, str(error))


def _read_part(
    part: FilePart, name: str, source: str, metadata: Mapping[str, JSON], options: ReadOptions, depth: int
) -> Iterator[Document | Skipped]:
    """Yield what a part of a file holds, under the name `FILE/PART`."""
    if part.name:
        name, source = f"{name}/{part.name}", f"{source}/{part.name}"
    if isinstance(part.content, Content):
        yield from _documents_of_content(part.content, name, source, part.name, metadata, None)
    elif isinstance(part.content, Unreadable):
        yield Skipped(source, str(part.content))
    elif depth == _MAX_DEPTH:
        yield Skipped(source, "too deep in other files; unpack them")
    else:
        yield from _read_opened(part.content, name, source, metadata, options, depth=depth + 1)


def _documents_of_content(
    content: Content, name: str, source: str, stem: str, metadata: Mapping[str, JSON], date: str | None
) -> Iterator[Document | Skipped]:
    """The document of a file that is one: dated by its metadata, or a line `Date: ...`, or its name, or else by when it
    was saved. Source code has its path as title; anything else that has none its first line, or `stem`."""
    title = name if CODE_KEY in content.metadata else content.title or _title_line(content.text) or stem
    values = dict(content.metadata)
    key, own_date, problem = find_date(values)
    if key is None:
        _, own_date, problem = find_date({"date": _date_line(content.text)})
    if key == "date" and own_date:
        del values[key]
    saved = values.get(SAVED_KEY)
    date = own_date if own_date or problem else date or (saved if isinstance(saved, str) else None)
    yield _document(name, content.text, " ".join(title.split()), {**metadata, **values}, date, source)
    if problem:
        yield Skipped(source, problem)


def _documents_of_records(
    records: Iterable[Record | BadRecord],
    name: str,
    source: str,
    metadata: Mapping[str, JSON],
    date: str | None,
    options: ReadOptions,
) -> Iterator[Document | Skipped]:
    """The documents of all records. Where none has a text, that is said once, of the file."""
    without_text: list[Record] = []
    has_text = False
    try:
        for record in records:
            if not has_text and isinstance(record, Record) and not find_key(record.values, options.text_keys):
                without_text.append(record)
                continue
            if not has_text and isinstance(record, Record):
                has_text = True
                for earlier in without_text:
                    yield _without_text(_place(source, earlier), options)
            yield from _documents_of_record(record, name, source, metadata, date, options)
    finally:
        if not has_text and len(without_text) == 1:
            yield _without_text(_place(source, without_text[0]), options)
        elif not has_text and without_text:
            keys = ", ".join(without_text[0].values)[:200]
            reason = f"{no_text(options)} in any of {len(without_text)} records; the keys are {keys}; {REMEDY}"
            yield Skipped(source, reason)


def _without_text(where: str, options: ReadOptions) -> Skipped:
    return Skipped(where, f"{no_text(options)}; {REMEDY}")


def _documents_of_record(
    record: Record | BadRecord,
    name: str,
    source: str,
    metadata: Mapping[str, JSON],
    date: str | None = None,
    options: ReadOptions = AS_FOUND,
) -> Iterator[Document | Skipped]:
    """Turn a record into a document: text, title, date and external id by their keys, all other keys are metadata.

    Args:
        name: prefix of the external id of a record that has none, `name#line`; it is the id of the only record.
        source: what a `Skipped` names.
        metadata: of every document; a record's own keys win.
        date: of a document whose record has none.
    """
    where = _place(source, record)
    if isinstance(record, BadRecord):
        yield Skipped(where, record.reason)
        return
    values = dict(record.values)
    text_key = find_key(values, options.text_keys)
    if text_key is None:
        yield _without_text(where, options)
        return
    text = str(values.pop(text_key))
    id_key = find_key(values, _ID_KEYS, lambda value: type(value) is int or is_filled(value))
    external_id = _place(name, record) if id_key is None else str(values.pop(id_key))
    title_key = find_key(values, options.title_keys, lambda value: isinstance(value, str))
    title = "" if title_key is None else str(values.pop(title_key)).strip()
    retained: dict[str, Any] = {"expires": values.pop("expires", None) or None}
    if isinstance(values.get("pinned"), bool):
        retained["pinned"] = values.pop("pinned")
    key, own_date, problem = find_date(values)
    if key is not None and key.lower() == "date" and own_date:
        del values[key]
    date = own_date if own_date or problem else date
    found = _document(external_id, text, title, {**metadata, **record.metadata, **values}, date, where)
    if isinstance(found, Document):
        try:  # an expiry that cannot be read skips the record: without one it would stay for ever
            found = replace(found, **retained)
        except ValueError as error:
            found = Skipped(where, f"{error} (its key expires)")
    yield found
    if problem:
        yield Skipped(where, problem)


def _place(name: str, record: Record | BadRecord) -> str:
    return f"{name}#{record.line}" if record.line else name


def _document(
    external_id: str, text: str, title: str, metadata: Mapping[str, JSON], date: str | None, source: str
) -> Document | Skipped:
    """A document, or why it cannot be one."""
    try:
        return Document(external_id, text, title, metadata, date)
    except ValueError as error:
        return Skipped(source, str(error))


def _title_line(text: str) -> str:
    """Return the first line where it reads like a title, short and with a blank line after it, otherwise nothing."""
    first, _, rest = text.lstrip().partition("\n")
    stands_alone = bool(rest) and not rest.partition("\n")[0].strip()
    return first.strip() if stands_alone and len(first) <= _LONGEST_TITLE else ""


def _date_line(text: str) -> str | None:
    """What follows `Date:` on one of the first lines, where there is a year in it."""
    first_lines = text.lstrip().split("\n", _NUM_LINES_WITH_DATE)[:_NUM_LINES_WITH_DATE]
    return next((match["date"] for match in map(_DATE_LINE.match, first_lines) if match), None)


def _date_of_name(name: str) -> str | None:
    """The date that a file's name begins with."""
    match = _DATE_NAME.match(name)
    return find_date({"date": match[1]})[1] if match else None


def read_stream(
    stream: TextIO, external_id: str | None = None, options: ReadOptions = AS_FOUND
) -> Iterator[Document | Skipped]:
    """Yield the one document that a stream holds, or, where each of its lines is a JSON object, one for each line.

    The stream is read to its end first. Blank lines are no lines; without any other, one `Skipped` says so. The bytes
    below a stream are decoded as those of a file are.

    Args:
        external_id: of the document. Default: `stdin:` and a hash of the text, so that one stream never replaces
            what another one held.
    """
    try:
        text, metadata = _decoded_stream(stream, options)
    except Unreadable as error:
        yield Skipped("stdin", str(error))
        return
    external_id = external_id or f"stdin:{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:12]}"
    lines = text.split("\n")  # not splitlines(): a JSON string may hold U+2028
    if not text.strip():
        yield Skipped("stdin", "empty")
    elif "\0" in text:
        yield Skipped("stdin", "binary data")
    elif options.format is None and all(parse_json_object(line) is not None for line in lines if line.strip()):
        for record in read_json_lines(lines):
            yield from _documents_of_record(record, external_id, "stdin", metadata, options=options)
    else:
        _, date, problem = find_date({"date": _date_line(text)})
        yield _document(external_id, text, _title_line(text), metadata, date, "stdin")
        if problem:
            yield Skipped("stdin", problem)


def _decoded_stream(stream: TextIO, options: ReadOptions) -> tuple[str, dict[str, JSON]]:
    buffer = getattr(stream, "buffer", None)
    data = stream.read(_LONGEST_STREAM + 1) if buffer is None else buffer.read(_LONGEST_STREAM + 1)
    if len(data) > _LONGEST_STREAM:
        raise Unreadable(f"longer than {_LONGEST_STREAM // MIB} MiB; write it to a file")
    if isinstance(data, str):
        return data.removeprefix("\ufeff"), {}
    text, encoding = decode(data, options.encoding)
    return text, {"encoding": encoding.codec} if encoding.is_guess else {}


def found_documents(skipped: list[Skipped], *sources: Iterable[Document | Skipped]) -> Iterator[Document]:
    """The documents of all sources; what cannot be read is collected in `skipped`.

    An id is of one document: the same one again is passed over, and one with other content is collected there, too,
    with the places of both among all that were read.
    """
    seen: dict[int, int] = {}  # hashes of ids, with place and hash of the content, so that a million stay small
    number = 0
    for source in sources:
        for found in source:
            if isinstance(found, Skipped):
                skipped.append(found)
                continue
            number += 1
            known = seen.setdefault(hash(found.external_id), number << 64 | _content(found))
            if known >> 64 == number:
                yield found
            elif known & _CONTENT != _content(found):
                where = str(found.metadata.get("path", found.external_id))
                reason = f"document {number} has the id {found.external_id!r} as document {known >> 64}, and differs"
                skipped.append(Skipped(where, f"{reason}; the first is kept: give one of them another id"))


def _content(document: Document) -> int:
    """A hash of all that a document says, in 64 bits. Which file it is from is no content."""
    said = {key: value for key, value in document.metadata.items() if key != "path"}
    return hash((document.title, document.text, document.date, json.dumps(said, sort_keys=True))) & _CONTENT
