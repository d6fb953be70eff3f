"""What a published bank is made of, and the small files that say so.

    latest.json                            which edition is the present one, and its sha256
    editions/NUMBER-SHA.json               all files of a edition, with their sizes and sha256
    catalog/SHA256.block                   1 MiB of a copy of the catalog
    segments/SHA256.keys.safetensors ...   files of segments

All but `latest.json` are named by what they hold, and never change. A edition is written after all it names, and
`latest.json` after the edition.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from memspan.bank.folder import COARSE_SUFFIX, CONTENT_SUFFIX, KEYS_SUFFIX
from memspan.bank.store import Store
from memspan.errors import BankError, StoreError
from memspan.files import LATEST

FORMAT = 1
BLOCK_BYTES = 2**20
# How often a file is read again that is not what it should be: it is being replaced, or did not come whole.
TRIES = 3
_EDITION_NAME = re.compile(r"editions/(\d{8})-[0-9a-f]{16}\.json")
_OURS = re.compile(
    r"editions/\d{8}-[0-9a-f]{16}\.json|catalog/[0-9a-f]{64}\.block|"
    r"segments/[0-9a-f]{64}\.(keys|content|coarse)\.safetensors|"
    r"(editions|catalog|segments)/\.[^/]+\.partial|\.latest\.json\.[0-9a-f]+\.partial"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file of a segment: its ending, size, sha256."""

    suffix: str
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """Under the URL."""
        return f"segments/{self.sha256}{self.suffix}"


@dataclass(frozen=True, slots=True)
class Edition:
    """A bank as it was when it was published.

    Attributes:
        number: one more than that of the edition before.
        bank: which bank this is; its own copy of this name never changes.
        commit: of the bank.
        origin: where the bank is written, for people.
        published_at: UTC, ISO 8601.
        catalog_bytes, blocks: size of the catalog, and the sha256 of each MiB of it.
        segments: the files of each live segment, by its name in the catalog.
    """

    number: int
    bank: str
    commit: int
    origin: str
    published_at: str
    catalog_bytes: int
    blocks: tuple[str, ...]
    segments: Mapping[str, tuple[PublishedFile, ...]]

    @classmethod
    def parse(cls, data: bytes, where: str) -> Edition:
        """Read what `encoded` wrote.

        Raises:
            BankError: written by a newer memspan.
            StoreError: it is no edition.
        """
        try:
            values = json.loads(data)
            if values.pop("format") != FORMAT:
                raise BankError(f"{where} was written by a newer memspan; update memspan")
            files = {
                name: tuple(PublishedFile(**file) for file in found) for name, found in values.pop("segments").items()
            }
            edition = cls(**{**values, "blocks": tuple(values["blocks"]), "segments": files})
            edition._check()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(f"{where} is no edition of a bank ({error})") from error
        return edition

    def _check(self) -> None:
        """
        Raises:
            ValueError, TypeError: a value cannot be; names of files are made of some.
        """
        sizes = [self.number, self.commit, self.catalog_bytes, *(file.bytes for _, file in self.files())]
        texts = [self.bank, self.origin, self.published_at]
        if any(type(size) is not int or size < 0 for size in sizes) or any(type(text) is not str for text in texts):
            raise ValueError("a value of another type")
        if len(self.blocks) != -(-self.catalog_bytes // BLOCK_BYTES):
            raise ValueError("a number of blocks that is not that of the catalog")
        hashes = [*self.blocks, *(file.sha256 for _, file in self.files())]
        if not all(map(_SHA256.fullmatch, hashes)) or not re.fullmatch("[0-9a-f]{32}", self.bank):
            raise ValueError("a name that is none")
        if not all(re.fullmatch("[0-9a-f]{32}", name) for name in self.segments):
            raise ValueError("a segment of another name")
        if not {file.suffix for _, file in self.files()} <= {KEYS_SUFFIX, CONTENT_SUFFIX, COARSE_SUFFIX}:
            raise ValueError("a file of another kind")

    def encoded(self) -> bytes:
        segments = {name: [dataclasses.asdict(file) for file in files] for name, files in self.segments.items()}
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return json.dumps({"format": FORMAT, **values, "segments": segments}, indent=1).encode()

    def files(self) -> Iterator[tuple[str, PublishedFile]]:
        """Every segment's name with each of its files."""
        return ((name, file) for name, files in self.segments.items() for file in files)

    def sizes(self) -> dict[str, int]:
        """Every file that the edition needs, by its name under the URL, with its size."""
        sizes = [min(BLOCK_BYTES, self.catalog_bytes - at * BLOCK_BYTES) for at in range(len(self.blocks))]
        return {
            **{block_name(sha256): size for sha256, size in zip(self.blocks, sizes, strict=True)},
            **{file.name: file.bytes for _, file in self.files()},
        }

    def same_content(self, other: Edition) -> bool:
        return self.blocks == other.blocks and dict(self.segments) == dict(other.segments)


@dataclass(frozen=True, slots=True)
class Pointer:
    """What `latest.json` says: the edition's file under the URL, and its sha256."""

    edition: str
    sha256: str

    def encoded(self) -> bytes:
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}).encode()

    @classmethod
    def to(cls, number: int, data: bytes) -> Pointer:
        """To a edition, by its number and its file."""
        sha256 = hashlib.sha256(data).hexdigest()
        return cls(f"editions/{number:08d}-{sha256[:16]}.json", sha256)


def block_name(sha256: str) -> str:
    """A block of a catalog, under the URL."""
    return f"catalog/{sha256}.block"


def edition_number(name: str) -> int | None:
    """The number of a edition, by the name of its file; None of other files."""
    found = _EDITION_NAME.fullmatch(name)
    return int(found[1]) if found else None


def is_ours(name: str) -> bool:
    """Whether a file under the URL is one that publishing writes (but for `latest.json`)."""
    return _OURS.fullmatch(name) is not None


def read_pointer(store: Store) -> Pointer | None:
    """Which edition is the present one; None where nothing was published.

    Raises:
        BankError: written by a newer memspan.
        StoreError: the store cannot be read, or `latest.json` is damaged.
    """
    problem = ""
    for _ in range(TRIES):  # a store may show it while it is being replaced
        (data,) = store.read([LATEST])
        if data is None:
            return None
        try:
            values: dict[str, Any] = json.loads(data)
            if values.pop("format") != FORMAT:
                raise BankError(f"{store.url} was published by a newer memspan; update memspan")
            pointer = Pointer(**values)
            if edition_number(pointer.edition) is not None and _SHA256.fullmatch(pointer.sha256):
                return pointer
            problem = "it names no edition"
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            problem = str(error)
    raise StoreError(f"{store.url}/{LATEST} is damaged ({problem}); publish the bank again")


class Latest(NamedTuple):
    """The present edition of a published bank, and its file."""

    pointer: Pointer
    edition: Edition
    data: bytes


def read_latest(store: Store) -> Latest | None:
    """The present edition; None where nothing was published. Errors as of `read_pointer`, also of its edition."""
    name = problem = ""
    for _ in range(TRIES):
        pointer = read_pointer(store)
        if pointer is None:
            return None
        name = pointer.edition
        (data,) = store.read([name])
        if data is None:
            problem = "is missing"
        elif hashlib.sha256(data).hexdigest() != pointer.sha256:
            problem = "is damaged"
        else:
            return Latest(pointer, Edition.parse(data, f"{store.url}/{pointer.edition}"), data)
    raise StoreError(f"{store.url}/{LATEST} names {name}, which {problem}; publish the bank again")


def read_blocks(store: Store, hashes: Sequence[str]) -> list[bytes]:
    """Blocks of a catalog.

    Raises:
        StoreError: one is missing, or has another sha256 however often it is read.
    """
    found: dict[str, bytes] = {}
    for _ in range(TRIES):
        missing = [sha256 for sha256 in dict.fromkeys(hashes) if sha256 not in found]
        for sha256, data in zip(missing, store.read([block_name(sha256) for sha256 in missing]), strict=True):
            if data is not None and hashlib.sha256(data).hexdigest() == sha256:
                found[sha256] = data
    lost = next((sha256 for sha256 in hashes if sha256 not in found), None)
    if lost is not None:
        name = f"{store.url}/{block_name(lost)}"
        raise StoreError(f"{name} is missing or damaged; remove it if it is there, and publish the bank again")
    return [found[sha256] for sha256 in hashes]
