"""Where documents come from: files and folders, standard input, the installed packages."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, TextIO

from memspan.errors import CorpusError
from memspan.text.readers import (
    TEXT_KEYS,
    BadRecord,
    Record,
    Unreadable,
    holds_records,
    is_supported,
    is_text,
    parse_json_object,
    read_content,
    read_json_lines,
    read_records,
)
from memspan.types import JSON, Document, Skipped, normal_date

_CONTENT = 2**64 - 1
_ID_KEYS = ("external_id", "id")

_DATE_LINE = re.compile(r"^[\s*_]*date[*_]*:[\s*_\"']*(\d{4}-\d{2}-\d{2})(?!\d)", re.IGNORECASE)
_DATE_NAME = re.compile(r"(\d{4}-\d{2}-\d{2})(?!\d)")
_NUM_LINES_WITH_DATE = 10
_LONGEST_TITLE = 100
_NUM_DESCRIPTION_WORDS = 200

# Markup whose removal leaves prose, in this order: what holds a pattern further down goes before it.
_MARKUP: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.MULTILINE), replacement)
    for pattern, replacement in (
        (r"`([^`<\n]*?)\s*<[^`>\n]*>`_{1,2}", r"\1"),  # rst links
        (r"(?s:<!--.*?-->)|</?[A-Za-z][^<>]*>", " "),  # HTML, and links in angle brackets
        (r"!\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])", " "),  # Markdown images
        (r"\[([^\[\]]*)\](?:\([^)]*\)|\[[^\]]*\])", r"\1"),  # Markdown links
        (r"^[ \t]*\[[^\]]+\]:[ \t]+\S.*$", ""),  # Markdown link targets
        (r"^[ \t]*(?:```|~~~).*$|^#{1,6}[ \t]+", ""),  # Markdown code fences and headings
        (r"^[ \t]*\.\.(?:[ \t].*)?$(?:\n[ \t]+(?::|https?:).*$)*", ""),  # rst directives and their options
        (r"\|[^|\s][^|\n]*\|_{0,2}", " "),  # rst substitutions
        (r":[\w:+.-]+:`", "`"),  # rst roles
        (r"^[ \t]*([=\-~^\"'*+#_])\1{2,}[ \t]*$", ""),  # underlines of headings, rules
        (r"`+_{0,2}|\*\*", ""),  # code and bold
    )
)


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
            for file in _walk(path) if path.is_dir() else [path]:
                if isinstance(file, Path) and (file is path or is_supported(file)):
                    yield file


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def read_paths(paths: Iterable[Path], reading: ReadProgress | None = None) -> Iterator[Document | Skipped]:
    """Return an iterator over the documents of files and folders, in the order given, and over what was skipped.

    A folder is read with the folders in it, sorted by name; hidden files and folders are passed over silently, and
    symbolic links to folders and files of unknown extensions are skipped. A file named in `paths` is read whatever
    its extension. A document's external id is the path as given, or relative to the folder that was given.

    Files are opened one at a time, when the iterator gets to them, and files of records are read line by line.

    Args:
        reading: updated with how far it is.

    Raises:
        CorpusError: a path does not exist; raised by the call itself, before anything is read.
    """
    given = tuple(paths)
    for path in given:
        if not os.path.exists(path):
            raise CorpusError(f"{path} does not exist, or its folder may not be entered; check the path")
    return _read_paths(given, reading or ReadProgress(given))


def _read_paths(paths: Iterable[Path], reading: ReadProgress) -> Iterator[Document | Skipped]:
    for path in paths:
        for item in _read_folder(path, reading) if path.is_dir() else _read_file(path, path.as_posix(), reading):
            if isinstance(item, Document):
                reading.characters += len(item.text)
            yield item
    reading.done()


def _read_folder(folder: Path, reading: ReadProgress) -> Iterator[Document | Skipped]:
    for path in _walk(folder):
        if isinstance(path, Skipped):
            yield path
        elif is_supported(path):
            # With the folder's own name: two folders may both hold a README.md.
            yield from _read_file(path, f"{folder.resolve().name}/{path.relative_to(folder).as_posix()}", reading)
        else:
            yield Skipped(str(path), f"unsupported file type {path.suffix or '(no extension)'}")


def _walk(folder: Path) -> Iterator[Path | Skipped]:
    """Yield the files under `folder` that are not hidden, sorted."""
    try:
        children = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    except OSError as error:
        yield Skipped(str(folder), f"cannot be read: {error.strerror}")
        return
    for child in children:
        # os.path, because Path.is_dir raises where the folder may be listed but not entered
        if os.path.isfile(child):
            yield child
        elif not os.path.isdir(child):
            yield Skipped(str(child), "not a file that can be read (a broken link, a pipe, a device, or no permission)")
        elif child.is_symlink():
            yield Skipped(str(child), "symbolic link to a folder; give its target as a path of its own")
        else:
            yield from _walk(child)


def _read_file(path: Path, name: str, reading: ReadProgress) -> Iterator[Document | Skipped]:
    """Yield the document called `name`, or one for each record; damage to the file ends it with a `Skipped`."""
    if not is_text([str(path), name]):
        yield Skipped(os.fsencode(path).decode(errors="backslashreplace"), "the file's name is not UTF-8")
        return
    reading.next_file()
    metadata: dict[str, JSON] = {"path": str(path.resolve())}
    date = _valid_date(_DATE_NAME.match(path.name))
    try:
        if holds_records(path):
            for record in read_records(path, reading.at):
                yield _document_of_record(record, name, str(path), metadata, date)
        else:
            content = read_content(path)
            title = content.title or _title_line(content.text) or path.stem
            date = _date_in(content.text) or date
            metadata |= content.metadata
            reading.at(_size(path))
            yield _document(name, content.text, " ".join(title.split()), metadata, date, str(path))
    except Unreadable as error:
        yield Skipped(str(path), str(error))


def _document_of_record(
    record: Record | BadRecord, name: str, source: str, metadata: Mapping[str, JSON], date: str | None = None
) -> Document | Skipped:
    """Turn a record into a document: text, title, date and external id by their keys, all other keys are metadata.

    Args:
        name: prefix of the external id of a record that has none, `name#line`.
        source: what a `Skipped` names.
        metadata: of every document; a record's own keys win.
        date: of a document whose record has none.
    """
    where = f"{source}#{record.line}"
    if isinstance(record, BadRecord):
        return Skipped(where, record.reason)
    values = record.values
    text_key = next((key for key in TEXT_KEYS if _is_filled(values.get(key))), None)
    if text_key is None:
        return Skipped(where, f"no text under the key {' or '.join(TEXT_KEYS)}")
    id_key = next((key for key in _ID_KEYS if _is_filled(values.get(key)) or type(values.get(key)) is int), None)
    title_key = "title" if isinstance(values.get("title"), str) else None
    external_id = f"{name}#{record.line}" if id_key is None else str(values[id_key])
    own_date = _normal_date(values.get("date"))
    date_key = "date" if own_date else None
    pinned_key = "pinned" if isinstance(values.get("pinned"), bool) else None
    taken = (text_key, id_key, title_key, date_key, pinned_key, "expires")
    others = {key: value for key, value in values.items() if key not in taken}
    title = "" if title_key is None else str(values[title_key]).strip()
    found = _document(external_id, str(values[text_key]), title, {**metadata, **others}, own_date or date, where)
    if isinstance(found, Skipped):
        return found
    try:  # an expiry that cannot be read skips the record: without one it would stay for ever
        expires: Any = values.get("expires") or None
        return replace(found, expires=expires, pinned=None if pinned_key is None else bool(values["pinned"]))
    except ValueError as error:
        return Skipped(where, f"{error} (its key expires)")


def _document(
    external_id: str, text: str, title: str, metadata: Mapping[str, JSON], date: str | None, source: str
) -> Document | Skipped:
    """A document, or why it cannot be one."""
    try:
        return Document(external_id, text, title, metadata, date)
    except ValueError as error:
        return Skipped(source, str(error))


def _is_filled(value: JSON) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _title_line(text: str) -> str:
    """Return the first line where it reads like a title, short and with a blank line after it, otherwise nothing."""
    first, _, rest = text.lstrip().partition("\n")
    stands_alone = bool(rest) and not rest.partition("\n")[0].strip()
    return first.strip() if stands_alone and len(first) <= _LONGEST_TITLE else ""


def _date_in(text: str) -> str | None:
    """The date where one of the first lines is `Date: YYYY-MM-DD`."""
    first_lines = text.lstrip().split("\n", _NUM_LINES_WITH_DATE)[:_NUM_LINES_WITH_DATE]
    return next(filter(None, (_valid_date(_DATE_LINE.match(line)) for line in first_lines)), None)


def _valid_date(match: re.Match[str] | None) -> str | None:
    return _normal_date(match[1]) if match else None


def _normal_date(value: JSON) -> str | None:
    try:
        return normal_date(value) if isinstance(value, str) else None
    except ValueError:
        return None


def read_stream(stream: TextIO, external_id: str | None = None) -> Iterator[Document | Skipped]:
    """Yield the one document that a stream holds, or, where each of its lines is a JSON object, one for each line.

    The stream is read to its end first. Blank lines are no lines; without any other, one `Skipped` says so.

    Args:
        external_id: of the document. Default: `stdin:` and a hash of the text, so that one stream never replaces
            what another one held.
    """
    try:
        text = stream.read().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        yield Skipped("stdin", f"not {error.encoding} text")
        return
    external_id = external_id or f"stdin:{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:12]}"
    lines = text.split("\n")  # not splitlines(): a JSON string may hold U+2028
    if not text.strip():
        yield Skipped("stdin", "empty")
    elif "\0" in text:
        yield Skipped("stdin", "binary data")
    elif all(parse_json_object(line) is not None for line in lines if line.strip()):
        for record in read_json_lines(lines):
            yield _document_of_record(record, external_id, "stdin", {})
    else:
        yield _document(external_id, text, _title_line(text), {}, _date_in(text), "stdin")


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


def installed_packages() -> Iterator[Document]:
    """Yield one document for each distribution of the running Python, sorted by normalised name.

    Its text is the summary and the beginning of the description, without most of the markup. A distribution with
    neither is left out; of several by one name, the first on `sys.path` counts, as it does for `import`.
    """
    by_name: dict[str, Distribution] = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name:  # an interrupted uninstall leaves metadata without one
            by_name.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution)
    for _, distribution in sorted(by_name.items()):
        document = _document_of_package(distribution)
        if document:
            yield document


def _document_of_package(distribution: Distribution) -> Document | None:
    fields = distribution.metadata.json
    name, summary, description = (str(fields.get(key) or "") for key in ("name", "summary", "description"))
    words = _prose(description).split()[:_NUM_DESCRIPTION_WORDS]
    if not summary and not words:
        return None
    text = f"{name} is a Python package. {summary}".rstrip() + "\n\n" + " ".join(words)
    return Document(f"package:{name}", text.rstrip(), name, {"version": distribution.version})


def _prose(markup: str) -> str:
    """Remove what is not read aloud from Markdown or reStructuredText, by patterns that suit most package pages."""
    for pattern, replacement in _MARKUP:
        markup = pattern.sub(replacement, markup)
    return markup
