"""Where documents come from: files and folders, and standard input."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TextIO

from memspan.errors import CorpusError
from memspan.text.dates import find_date
from memspan.text.folders import FoundFile, Given, Roots
from memspan.text.readers import (
    AS_FOUND,
    REMEDY,
    BadRecord,
    Content,
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
    read_records,
)
from memspan.text.readers.opening import LONGEST_TEXT, MIB
from memspan.types import JSON, Document, Skipped

_ID_KEYS = ("external_id", "id")

_DATE_LINE = re.compile(r"^[\s*_]*date[*_]*:[\s*_\"']*(?P<date>[^*_\"'\n]*\d{4}[^*_\"'\n]*?)[\s*_\"']*$", re.IGNORECASE)
_DATE_NAME = re.compile(r"(\d{4}-\d{2}-\d{2})(?!\d)")
_NUM_LINES_WITH_DATE = 10
_LONGEST_STREAM = LONGEST_TEXT
"""Bytes of standard input, which is read whole before it is known what it holds."""
_LONGEST_TITLE = 100


class ReadProgress:
    """How far the files of some paths are read, and an estimate of the text in them.

    Attributes:
        characters: of the documents read so far.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        self.characters = self._bytes_before = self._position = 0
        self._total_bytes: int | None = None
        self._is_done = False

    def at(self, position: int) -> None:
        """So many bytes are read of the file that is being read."""
        self._position = position

    def next_file(self) -> None:
        self._bytes_before, self._position = self._bytes_before + self._position, 0

    def done(self) -> None:
        self._is_done = True

    def total_characters(self) -> float | None:
        """Of all documents, if the bytes not read yet hold as many as those that are; None before anything is read."""
        if self._is_done:
            return self.characters
        if self._total_bytes is None:
            self._total_bytes = sum(map(_size, self._files()))
        num_bytes = self._bytes_before + self._position
        return self.characters * max(1.0, self._total_bytes / num_bytes) if num_bytes else None

    def _files(self) -> Iterator[Path]:
        for path in self._paths:
            for file in Given.of(path).files():
                if not isinstance(file, Skipped) and (file.alone or is_supported(file.path)):
                    yield file.path


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def read_paths(
    paths: Iterable[Path],
    reading: ReadProgress | None = None,
    roots: Roots | None = None,
    options: ReadOptions = AS_FOUND,
) -> Iterator[Document | Skipped]:
    """Return an iterator over the documents of files and folders, in the order given, and over what was skipped.

    A folder is read with the folders in it, sorted by name. Hidden files and folders, and what a `.memspanignore`
    names, are passed over silently; symbolic links to folders, and files of unknown extensions, are skipped. A file
    named in `paths` is read whatever its extension. A document's external id is the name of the folder that was given
    (of a file: of the folder it stands in) and the path from there, however it was given; see `memspan.text.folders`.

    Files are opened one at a time, when the iterator gets to them, and files of records are read line by line.

    Args:
        reading: updated with how far it is.
        roots: the folders that are known already; those that are new are added.

    Raises:
        CorpusError: a path does not exist; raised by the call itself, before anything is read.
    """
    given = tuple(paths)
    for path in given:
        if not os.path.exists(path):
            raise CorpusError(f"{path} does not exist, or its folder may not be entered; check the path")
    return _read_paths(given, reading or ReadProgress(given), roots or Roots(), options)


def _read_paths(
    paths: Iterable[Path], reading: ReadProgress, roots: Roots, options: ReadOptions
) -> Iterator[Document | Skipped]:
    for file in chain.from_iterable(Given.of(path).files() for path in paths):
        if isinstance(file, Skipped):
            yield file
            continue
        root, relative = roots.place(file)
        for item in read_file(file, f"{root.name}/{relative}", relative, reading, options):
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
    if file.alone or options.format or is_supported(path):
        yield from _read_file(path, name, relative, reading, options)
    else:
        yield Skipped(str(path), f"unsupported file type {path.suffix or '(no extension)'}")


def _read_file(
    path: Path, name: str, relative: str, reading: ReadProgress, options: ReadOptions
) -> Iterator[Document | Skipped]:
    if not is_text([str(path), name]):
        yield Skipped(os.fsencode(path).decode(errors="backslashreplace"), "the file's name is not UTF-8")
        return
    reading.next_file()
    metadata: dict[str, JSON] = {"path": relative}
    date = _date_of_name(path.name)
    try:
        if holds_records(path, options):
            records = read_records(path, reading.at, options)
            yield from _documents_of_records(records, name, str(path), metadata, date, options)
        else:
            content = read_content(path, options)
            reading.at(_size(path))
            yield from _documents_of_content(content, name, path, metadata, date)
    except Unreadable as error:
        yield Skipped(str(path), str(error))


def _documents_of_content(
    content: Content, name: str, path: Path, metadata: Mapping[str, JSON], date: str | None
) -> Iterator[Document | Skipped]:
    """The document of a file that is one: dated by its metadata, or a line `Date: ...`, or else by its name."""
    title = content.title or _title_line(content.text) or path.stem
    values = dict(content.metadata)
    key, own_date, problem = find_date(values)
    if key is None:
        _, own_date, problem = find_date({"date": _date_line(content.text)})
    if key == "date" and own_date:
        del values[key]
    date = own_date if own_date or problem else date
    yield _document(name, content.text, " ".join(title.split()), {**metadata, **values}, date, str(path))
    if problem:
        yield Skipped(str(path), problem)


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
    key, own_date, problem = find_date(values)
    if key is not None and key.lower() == "date" and own_date:
        del values[key]
    date = own_date if own_date or problem else date
    yield _document(external_id, text, title, {**metadata, **record.metadata, **values}, date, where)
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

    So is a second document of one external id: adding it would replace the first.
    """
    seen: set[int] = set()  # hashes, so that a million ids stay small
    for source in sources:
        for found in source:
            if isinstance(found, Skipped):
                skipped.append(found)
            elif hash(found.external_id) in seen:
                where = str(found.metadata.get("path", found.external_id))
                skipped.append(Skipped(where, f"a document of the id {found.external_id!r} was read before"))
            else:
                seen.add(hash(found.external_id))
                yield found
