"""Encoding apart from the bank: what is to be encoded (`EncodingTask`), and what was (`EncodedSegment`). Both are JSON.

    bank                          any process that sees the bank's folder, without a lock
    encoding_tasks      ->        Encoder: writes BANK/encoded/NAME.keys, .content (and .coarse), under names that
                                  their bytes determine
    commit              <-        EncodedSegment: a row of a manifest

Documents have had their ids since their texts were added, so a task gives the same latents wherever, and however often,
it is encoded. Nothing of it exists before `commit` (see there).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from memspan.bank.folder import RowLocation, SegmentFiles, WrittenSegments
from memspan.bank.manifest import Manifest
from memspan.bank.remembered import bank_id
from memspan.bank.segment import MAX_SEGMENT_BYTES, SegmentWriter
from memspan.errors import BankError, BankMismatch
from memspan.version import VERSION

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from memspan.bank.encode import Part
    from memspan.bank.texts import TextBank

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Origin:
    """For which bank something is encoded, and by what.

    Attributes:
        memspan: the version.
        bank: which bank it is, 32 hexadecimal digits.
        manifest: of the bank; it says which model encodes.
    """

    memspan: str
    bank: str
    namespace: str
    manifest: Manifest

    @classmethod
    def of(cls, bank: TextBank, namespace: str) -> Origin:
        return cls(VERSION, bank_id(bank.catalog), namespace, bank.manifest)

    def check_version(self) -> None:
        """
        Raises:
            BankMismatch: it is of another version of memspan.
        """
        if self.memspan != VERSION:
            raise BankMismatch(
                f"this was made by memspan {self.memspan}, and this process has memspan {VERSION}; "
                "install one version everywhere, and encode again"
            )

    def check_bank(self, bank: TextBank) -> None:
        """
        Raises:
            BankMismatch: it is of another version, bank or model.
        """
        self.check_version()
        if self.bank != bank_id(bank.catalog):
            raise BankMismatch(f"this was encoded for another bank, not for {bank.folder}; commit it to that one")
        bank.manifest.check_same(self.manifest)


@dataclass(frozen=True, slots=True)
class TaskDocument:
    """A document to be encoded: the id it has in the bank, the CRC-32 of its text, its tokens."""

    id: int
    text_crc32: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EncodingTask:
    """Documents of one namespace that are encoded together.

    Attributes:
        batch_tokens: padded tokens per forward.
    """

    origin: Origin
    batch_tokens: int
    documents: tuple[TaskDocument, ...]

    def __post_init__(self) -> None:
        _check_ids([document.id for document in self.documents])
        if self.batch_tokens < 1 or not all(document.tokens for document in self.documents):
            raise ValueError("there is nothing to encode")

    def as_json(self) -> dict[str, Any]:
        return _adapter(type(self)).dump_python(self, mode="json")


@dataclass(frozen=True, slots=True)
class EncodedDocument:
    """A document in a segment: its tokens, where its rows stand, and the CRC-32 of its text."""

    id: int
    tokens: int
    first_row: int
    rows: int
    text_crc32: int


@dataclass(frozen=True, slots=True)
class EncodedSegment:
    """A row of a manifest: a segment that is written and not committed."""

    origin: Origin
    files: SegmentFiles
    documents: tuple[EncodedDocument, ...]

    def __post_init__(self) -> None:
        _check_ids([document.id for document in self.documents])
        if not re.fullmatch("[0-9a-f]{32}", self.files.name):
            raise ValueError(f"{self.files.name!r} is no name of a segment")
        if not all(1 <= document.tokens < 2**31 for document in self.documents):
            raise ValueError("the tokens of its documents cannot be")

    @property
    def ids(self) -> list[int]:
        return [document.id for document in self.documents]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Tokens and chunks of each document."""
        return [(one.tokens, one.rows) for one in self.documents]

    @property
    def listed(self) -> list[list[int]]:
        """What the segment itself says of its documents (`listed_documents`)."""
        return [[one.id, one.first_row, one.rows, one.text_crc32] for one in self.documents]

    @property
    def written(self) -> WrittenSegments:
        name = self.files.name
        places = [RowLocation(one.id, name, one.first_row, one.rows, one.text_crc32) for one in self.documents]
        return WrittenSegments([self.files], places)

    def as_json(self) -> dict[str, Any]:
        return _adapter(type(self)).dump_python(self, mode="json")


def _check_ids(ids: Sequence[int]) -> None:
    if not ids or len(set(ids)) < len(ids) or min(ids) < 1:
        raise ValueError("the ids of its documents cannot be")


def parsed(kind: type[_T], value: _T | Mapping[str, Any] | str | bytes, what: str) -> _T:
    """A task or a row, from its JSON.

    Args:
        what: it should be, for the message.

    Raises:
        BankError: it is none.
    """
    if isinstance(value, kind):
        return value
    try:
        text = value if isinstance(value, str | bytes) else json.dumps(value)
        return _adapter(kind).validate_json(text, strict=True)
    except (ValueError, TypeError, RecursionError) as error:  # pydantic's are ValueErrors
        reason = " ".join(str(error).split())[:200]
        raise BankError(f"{what} is not what the encoder gave ({reason}); encode again") from error


def read_manifest(lines: Iterable[str], where: str) -> list[EncodedSegment]:
    """The rows of a manifest, a line each; empty lines are passed over.

    Args:
        where: what is read, for messages.

    Raises:
        BankError: a line is no row; names it.
    """
    return [
        parsed(EncodedSegment, line, f"line {number} of {where}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


@functools.cache
def _adapter(kind: type[_T]) -> TypeAdapter[_T]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def write_segments(
    folder: Path, origin: Origin, parts: Iterable[Part], *, by_content: bool = False
) -> list[EncodedSegment]:
    """Write documents that were encoded as segments; for `by_content` see `SegmentWriter`.

    Raises:
        BankError: the folder cannot be written.
    """
    writer = SegmentWriter(folder, origin.manifest, MAX_SEGMENT_BYTES, by_content=by_content)
    tokens: dict[int, int] = {}
    for part in parts:
        part.write(writer)
        tokens[part.document.document_id] = part.document.tokens
    return finished(writer, origin, tokens)


def finished(writer: SegmentWriter, origin: Origin, tokens: Mapping[int, int]) -> list[EncodedSegment]:
    """What a writer has written, with the tokens of each document by its id."""
    segments, places = writer.finish()
    of_segment: dict[str, list[EncodedDocument]] = {files.name: [] for files in segments}
    for one in places:
        document = EncodedDocument(one.document_id, tokens[one.document_id], one.first_row, one.rows, one.text_crc32)
        of_segment[one.segment].append(document)
    return [EncodedSegment(origin, files, tuple(of_segment[files.name])) for files in segments]
