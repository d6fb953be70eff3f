"""Where documents come from: files and folders, standard input, the installed packages."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import Distribution, distributions
from itertools import chain
from pathlib import Path
from typing import TextIO

from memspan.errors import CorpusError
from memspan.text.definitions import CODE_KEY
from memspan.text.folders import FoundFile, Given, Roots
from memspan.text.readers import (
    TEXT_KEYS,
    BadRecord,
    Content,
    Part,
    Record,
    Unreadable,
    holds_records,
    is_supported,
    is_text,
    parse_json_object,
    read_content,
    read_json_lines,
    read_parts,
    read_records,
    why_unsupported,
)
from memspan.types import JSON, Document, Skipped, normal_date

_ID_KEYS = ("external_id", "id")

_DATE_LINE = re.compile(r"^[\s*_]*date[*_]*:[\s*_\"']*(\d{4}-\d{2}-\d{2})(?!\d)", re.IGNORECASE)
_DATE_NAME = re.compile(r"(\d{4}-\d{2}-\d{2})(?!\d)")
_NUM_LINES_WITH_DATE = 10
_LONGEST_TITLE = 100
_MAX_DEPTH = 5  # of files in files (an attachment of a mail in an archive ...)
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
            for file in Given.of(path).files():
                if not isinstance(file, Skipped) and (file.alone or is_supported(file.path)):
                    yield file.path


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def read_paths(
    paths: Iterable[Path], reading: ReadProgress | None = None, roots: Roots | None = None
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
    return _read_paths(given, reading or ReadProgress(given), roots or Roots())


def _read_paths(paths: Iterable[Path], reading: ReadProgress, roots: Roots) -> Iterator[Document | Skipped]:
    for file in chain.from_iterable(Given.of(path).files() for path in paths):
        if isinstance(file, Skipped):
            yield file
            continue
        root, relative = roots.place(file)
        for item in read_file(file, f"{root.name}/{relative}", relative, reading):
            if isinstance(item, Document):
                reading.characters += len(item.text)
            yield item
    reading.done()


def read_file(file: FoundFile, name: str, relative: str, reading: ReadProgress) -> Iterator[Document | Skipped]:
    """Yield the document called `name`, or one for each record; what cannot be read ends it with a `Skipped`.

    Args:
        relative: the file's path in its folder, kept as metadata.
    """
    path = file.path
    if file.alone or is_supported(path):
        yield from _read_file(path, name, relative, reading)
    else:
        yield Skipped(str(path), why_unsupported(path))


def _read_file(path: Path, name: str, relative: str, reading: ReadProgress) -> Iterator[Document | Skipped]:
    if not is_text([str(path), name]):
        yield Skipped(os.fsencode(path).decode(errors="backslashreplace"), "the file's name is not UTF-8")
        return
    reading.next_file()
    yield from _read_opened(path, name, str(path), {"path": relative}, reading.at)
    reading.at(_size(path))


def _read_opened(
    path: Path,
    name: str,
    source: str,
    metadata: Mapping[str, JSON],
    at: Callable[[int], object] = lambda position: None,
    depth: int = 0,
) -> Iterator[Document | Skipped]:
    """Yield what a file on disk holds, also one that comes out of another.

    Args:
        source: what a `Skipped` names.
        depth: how many files it comes out of.
    """
    date = _valid_date(_DATE_NAME.match(path.name))
    try:
        parts = read_parts(path)
        if parts is not None:
            for part in parts:
                yield from _read_part(part, name, source, metadata, date, depth)
        elif holds_records(path):
            for record in read_records(path, at):
                yield _document_of_record(record, name, source, metadata, date)
        else:
            yield _document_of_content(read_content(path), name, source, metadata, date, path.stem)
    except Unreadable as error:
        yield Skipped(source, str(error))


def _read_part(
    part: Part, name: str, source: str, metadata: Mapping[str, JSON], date: str | None, depth: int
) -> Iterator[Document | Skipped]:
    """Yield what a part of a file holds, under the name `FILE/PART`."""
    if part.name:
        name, source = f"{name}/{part.name}", f"{source}/{part.name}"
    if isinstance(part.content, Content):
        yield _document_of_content(part.content, name, source, metadata, date, part.name)
    elif isinstance(part.content, Unreadable) or depth == _MAX_DEPTH:
        yield Skipped(source, str(part.content) if isinstance(part.content, Unreadable) else "too deep in other files")
    else:
        yield from _read_opened(part.content, name, source, metadata, depth=depth + 1)


def _document_of_content(
    content: Content, name: str, source: str, metadata: Mapping[str, JSON], date: str | None, stem: str
) -> Document | Skipped:
    """A text as a document. Source code has its path as title; any other that has none its first line, or `stem`."""
    title = name if CODE_KEY in content.metadata else content.title or _title_line(content.text) or stem
    date = content.date or _date_in(content.text) or date or _normal_date(content.metadata.get("modified"))
    return _document(name, content.text, " ".join(title.split()), {**metadata, **content.metadata}, date, source)


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
    others = {key: value for key, value in values.items() if key not in (text_key, id_key, title_key, date_key)}
    title = "" if title_key is None else str(values[title_key]).strip()
    return _document(external_id, str(values[text_key]), title, {**metadata, **others}, own_date or date, where)


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

    So is a second document of one external id: adding it would replace the first.
    """
    seen: set[int] = set()  # hashes, so that a million ids stay small
    for source in sources:
        for found in source:
            if isinstance(found, Skipped):
                skipped.append(found)
            elif hash(found.external_id) in seen:
                where = found.external_id
                skipped.append(Skipped(where, f"a document of the id {found.external_id!r} was read before"))
            else:
                seen.add(hash(found.external_id))
                yield found


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
