"""What is done to a bank while faults strike: `SCENARIOS`, which must stand them, and `BROKEN`, which must not.

A scenario says how its bank is prepared, what is done to it, and every state that it may then be found in. One more
is a few lines, of `holding` (a bank that holds some entries), `put` (commit entries) and `state`:

    "delete": Scenario(
        prepare=holding(A, B, C),
        operate=_delete_two,  # opens the bank in `folder`, calls `done()` after each transaction that returned
        states=(state(A, B, C), state(C)),  # before, and after each transaction
    ),

An operation that leaves the content as it was (a compaction, say) has the same state twice. One that commits several
times before it returns calls `done` as often then.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import add_latents, random_latents, tiny_manifest

import memspan.bank.encode
import memspan.bank.reencode
from memspan.bank import coarse
from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE
from memspan.bank.commit import place
from memspan.bank.compaction import FAN_OUT
from memspan.bank.edits import NewDocument, NewSource, add_sources
from memspan.bank.encode import Part
from memspan.bank.encoded import Origin, write_segments
from memspan.bank.folder import WrittenSegments, encoded_folder, segments_folder, text_crc32
from memspan.bank.stored import StoredDocument
from memspan.model.shipped import ModelNames
from memspan.text.template import encoded_text
from memspan.types import Document, EncodedDocuments, Span
from memspan.version import VERSION

MANIFEST = tiny_manifest(content_chunk=2, content_layers=(0, 1, 3))
BANK = "bank"


@dataclass(frozen=True, slots=True)
class Entry:
    """A document and what a pretended encoder makes of it: latents drawn by lot, the same for the same text.

    Attributes:
        rows: of each of the parts that the text is cut into.
        pending: its text is there, and its latents are not yet.
        encoder: another number is another model.
    """

    external_id: str
    text: str
    rows: tuple[int, ...] = (3,)
    encoder: int = 0
    pending: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def document(self) -> Document:
        return Document(self.external_id, self.text, title=self.external_id.upper(), metadata=self.metadata)

    def latents(self) -> list[EncodedDocuments]:
        return _latents(self)


# What a bank holds, by external id.
State = dict[str, Entry]
Done = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """Something that is done to a bank, and may be cut short.

    Attributes:
        prepare: makes what is there before, in a folder that does not exist yet; closes what it opens.
        operate: does it to the bank in that folder; calls `done` whenever a transaction is acknowledged.
        states: the first, and that after each transaction. None: there need not be a bank.
        erased: what no file may hold any more once everything is acknowledged.
        bank: where the bank's folder is, below the one that faults strike.
        repeats: whether doing it again gives the last state, whatever happened before.
    """

    prepare: Callable[[Path], None]
    operate: Callable[[Path, Done], None]
    states: tuple[State | None, ...]
    erased: tuple[Entry, ...] = ()
    bank: str = BANK
    repeats: bool = False


@functools.cache
def _latents(entry: Entry) -> list[EncodedDocuments]:
    digest = hashlib.sha256(f"{entry.encoder} {entry.external_id} {entry.text}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:4], "big"))
        return [random_latents(MANIFEST, rows) for rows in entry.rows]


def state(*entries: Entry) -> State:
    return {entry.external_id: entry for entry in entries}


def holding(*entries: Entry) -> Callable[[Path], None]:
    """Prepare a bank that holds entries, each in a segment of its own."""

    def prepare(folder: Path) -> None:
        bank = MemoryBank.create(folder, MANIFEST)
        put(bank, entries, max_segment_bytes=1)
        bank.close()

    return prepare


def put(bank: MemoryBank, *commits: Sequence[Entry], done: Done = lambda: None, **options: Any) -> None:
    """Add entries, commit by commit, by one writer; `options` are the writer's."""
    with bank.writer(**options) as writer:
        for entries in commits:
            for entry in entries:
                add_latents(writer, entry.document, *entry.latents())
            writer.commit()
            done()


def _nothing(folder: Path) -> None:
    """Prepare a folder without a bank."""


def _create(folder: Path, done: Done) -> None:
    bank = MemoryBank.create(folder, MANIFEST)
    done()
    bank.close()


def _add(folder: Path, done: Done) -> None:
    bank = MemoryBank.open(folder)
    put(bank, [B], [C, D, E], done=done, max_segment_bytes=4 * MANIFEST.row_bytes)
    bank.close()


def _add_one(folder: Path, done: Done) -> None:
    bank = MemoryBank.open(folder)
    put(bank, [B], done=done)
    bank.close()


def _remember(folder: Path, done: Done) -> None:
    """Texts first, two in the first commit; then their latents, in a commit each."""
    bank = MemoryBank.open(folder)
    put_texts(bank, [B, A2], done=done)
    put_texts(bank, [C], done=done)
    for entry in (B, A2, C):
        encode(bank, entry)
        done()
    bank.close()


def _encode_one_and_delete_another(folder: Path, done: Done) -> None:
    bank = MemoryBank.open(folder)
    encode(bank, B)
    done()
    bank.delete(["c"])
    done()
    bank.close()


def _holding_pending(folder: Path) -> None:
    holding(A)(folder)
    bank = MemoryBank.open(folder)
    put_texts(bank, [B, C])
    bank.close()


def put_texts(bank: MemoryBank, entries: Sequence[Entry], done: Done = lambda: None) -> None:
    """Add entries whose latents come later, in one commit."""
    with bank.locked():
        first = bank.catalog.next_document_id()
        sources = []
        for entry in entries:
            spans = cuts(entry)
            sources.append(NewSource(entry.document, tuple(map(NewDocument, range(first, first + len(spans)), spans))))
            first += len(spans)
        add_sources(bank.catalog, DEFAULT_NAMESPACE, sources, WrittenSegments((), ()))
    done()


def encode(bank: MemoryBank, entry: Entry) -> None:
    """Give an entry that is there its latents, in one commit."""
    with bank.locked():
        stored = bank.catalog.documents_of(DEFAULT_NAMESPACE, entry.external_id)
        origin = Origin(VERSION, "", DEFAULT_NAMESPACE, MANIFEST)
        place(bank, write_segments(segments_folder(bank.folder), origin, map(_part, stored, entry.latents())))


def _holding_encoded(folder: Path) -> None:
    """A bank of A, and of texts that others have encoded; their manifest stands beside the segments."""
    _holding_pending(folder)
    bank = MemoryBank.open(folder)
    parts = [
        _part(*one)
        for entry in (B, C)
        for one in zip(bank.catalog.documents_of(DEFAULT_NAMESPACE, entry.external_id), entry.latents(), strict=True)
    ]
    encoded_folder(folder).mkdir()
    origin = Origin.of(bank, DEFAULT_NAMESPACE)
    rows = [write_segments(encoded_folder(folder), origin, [part], by_content=True)[0] for part in parts]
    (encoded_folder(folder) / "rows.json").write_text(json.dumps([row.as_json() for row in rows]), encoding="utf-8")
    bank.close()


def _commit_encoded(folder: Path, done: Done) -> None:
    bank = MemoryBank.open(folder)
    bank.commit(json.loads((encoded_folder(folder) / "rows.json").read_text("utf-8")))
    done()
    bank.close()


def _part(stored: StoredDocument, latents: EncodedDocuments) -> Part:
    document = NewDocument(stored.id, stored.span, 4)
    return Part(document, [0] * 4, text_crc32(stored.encoded_text), latents.num_chunks[0], lambda: latents)


def cuts(entry: Entry) -> list[Span]:
    """The parts of an entry's text, one for each of its latents."""
    length, number = len(entry.document.text), len(entry.rows)
    bounds = [length * part // number for part in range(number + 1)]
    return [Span(start, end) for start, end in itertools.pairwise(bounds)]


def _add_large(folder: Path, done: Done) -> None:
    """As `_add_one`, with a file of keys in 8 bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coarse, "LEAST_KEYS_BYTES", 0)
        _add_one(folder, done)


def _update(folder: Path, done: Done) -> None:
    bank = MemoryBank.open(folder)
    put(bank, [A2, C], [B2], done=done)
    bank.close()


def _add_around_checkpoints(folder: Path, done: Done) -> None:
    """Commits between which the log is emptied into the catalog, so that each begins the log anew."""
    bank = MemoryBank.open(folder)
    for entry in (B, C):
        put(bank, [entry], done=done)
        with closing(sqlite3.connect(folder / "catalog.sqlite")) as other, suppress(sqlite3.Error):
            other.execute("PRAGMA wal_checkpoint(FULL)")  # where it fails, the log is simply longer
    bank.close()


def _delete(folder: Path, done: Done) -> None:
    bank = MemoryBank.open(folder)
    bank.delete(["a", "b"])
    done()
    bank.close()


def _having_deleted(*names: str) -> Callable[[Path], None]:
    """Prepare a bank of A, B and C from which some are deleted, and not compacted."""

    def prepare(folder: Path) -> None:
        holding(A, B, C)(folder)
        bank = MemoryBank.open(folder)
        bank.delete(names)
        bank.close()

    return prepare


def _compact(folder: Path, done: Done, secure: bool = False) -> None:
    bank = MemoryBank.open(folder)
    bank.compact(secure=secure, timeout=1)
    done()
    bank.close()


class _Encoder:
    """Stands for another model: what `reencode` asks of one, with latents drawn by lot."""

    manifest = dataclasses.replace(MANIFEST, encoder_fingerprint="1" * 64)
    names = ModelNames("/models/other", "none")

    def __init__(self, *entries: Entry) -> None:
        self._entries = {encoded_text(entry.document.title, entry.text): entry for entry in entries}
        self._asked: dict[int, Entry] = {}
        self.template = self
        self.model = SimpleNamespace(
            device=torch.device("cpu"),
            config=SimpleNamespace(layers=MANIFEST.msa_layers, max_document_tokens=MANIFEST.max_document_tokens),
        )

    def document(self, document_id: int, text: str) -> list[int]:
        if text in self._entries:
            self._asked[document_id] = self._entries[text]
        return [0] * 4

    def count_tokens(self, text: str) -> int:
        return 4

    def fits(self, text: str, max_tokens: int) -> bool:
        return False

    def encode_batch(self, loaded: _Encoder, batch: Sequence[Part]) -> None:
        for part in batch:
            (latents,) = self._asked[part.document.document_id].latents()
            part.encoded, (part.chunks,) = functools.partial(lambda given: given, latents), latents.num_chunks


def _reencode(folder: Path, done: Done) -> None:
    encoder: Any = _Encoder(A_ANEW, B_ANEW, C_ANEW)
    bank = MemoryBank.open(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memspan.bank.reencode, "manifest_of", lambda loaded: loaded.manifest)
        patch.setattr(memspan.bank.reencode, "has_former_name", lambda manifest, loaded: False)
        patch.setattr(memspan.bank.encode, "encode_batch", encoder.encode_batch)
        memspan.bank.reencode.reencode(bank, encoder, batch_tokens=1, commit_seconds=0)
    done()
    bank.close()


def _with_leftovers(folder: Path) -> None:
    """A bank in which a writer left segments that it never committed."""
    holding(A)(folder)
    bank = MemoryBank.open(folder)
    with bank.writer(max_segment_bytes=1) as writer:
        for entry in (B, C):
            add_latents(writer, entry.document, *entry.latents())
    bank.close()
    # What a writer dies over: safetensors writes to a name of its own before it takes the one it was given.
    for name in (f"{'0' * 32}.keys.safetensors.partial", ".tmpAbC123"):
        (folder / "segments" / name).write_bytes(b"half of it")


A = Entry("a", "apple and pear", metadata={"n": 1})
B = Entry("b", "a boat on the lake, an oar, a net", rows=(2, 1))
C = Entry("c", "candles burn in the church")
# Its text takes pages of its own in the catalog.
D = Entry("d", " ".join(["doors", *(letter * 200 for letter in "abcdefghijklmnopqrstuvwxyz")]), rows=(1,))
E = Entry("e", "elephants never forget")
A2 = Entry("a", "apricots instead", rows=(1, 1, 1))
B2 = Entry("b", "a bicycle")
# The same texts of another model, which cuts none of them in parts.
A_ANEW, B_ANEW, C_ANEW = (dataclasses.replace(entry, encoder=1, rows=(2,)) for entry in (A, B, C))
A2_TEXT, B_TEXT, C_TEXT = (dataclasses.replace(entry, pending=True) for entry in (A2, B, C))
# One less than are merged.
SMALL = tuple(Entry(f"small {number}", f"number {number}", rows=(1,)) for number in range(FAN_OUT - 1))
# What is added to whatever was left, to see that it goes on.
FURTHER = Entry("further", "one more", rows=(2,))

SCENARIOS: dict[str, Scenario] = {
    "create": Scenario(_nothing, _create, (None, {})),
    "create in new folders": Scenario(_nothing, _create, (None, {}), bank=f"new/folders/{BANK}"),
    "add": Scenario(holding(A), _add, (state(A), state(A, B), state(A, B, C, D, E))),
    "remember": Scenario(
        holding(A),
        _remember,
        (
            state(A),
            state(A2_TEXT, B_TEXT),
            state(A2_TEXT, B_TEXT, C_TEXT),
            state(A2_TEXT, B, C_TEXT),
            state(A2, B, C_TEXT),
            state(A2, B, C),
        ),
    ),
    "encode one and delete another": Scenario(
        _holding_pending,
        _encode_one_and_delete_another,
        (state(A, B_TEXT, C_TEXT), state(A, B, C_TEXT), state(A, B)),
    ),
    "commit what others encoded": Scenario(
        _holding_encoded, _commit_encoded, (state(A, B_TEXT, C_TEXT), state(A, B, C)), repeats=True
    ),
    "compact what is pending": Scenario(
        _holding_pending,
        functools.partial(_compact, secure=True),
        (state(A, B_TEXT, C_TEXT), state(A, B_TEXT, C_TEXT)),
    ),
    "add a large segment": Scenario(holding(A), _add_large, (state(A), state(A, B))),
    "update": Scenario(holding(A, B), _update, (state(A, B), state(A2, B, C), state(A2, B2, C))),
    "add around checkpoints": Scenario(holding(A), _add_around_checkpoints, (state(A), state(A, B), state(A, B, C))),
    "add the one too many small segments": Scenario(holding(*SMALL), _add_one, (state(*SMALL), state(*SMALL, B))),
    "delete": Scenario(holding(A, B, C), _delete, (state(A, B, C), state(C))),
    "compact": Scenario(_having_deleted("b"), _compact, (state(A, C), state(A, C))),
    "compact and erase": Scenario(
        _having_deleted("b"), functools.partial(_compact, secure=True), (state(A, C), state(A, C)), erased=(B,)
    ),
    "reencode": Scenario(holding(A, B, C), _reencode, (state(A, B, C), state(A_ANEW, B_ANEW, C_ANEW))),
    "add after leftovers": Scenario(_with_leftovers, _add_one, (state(A), state(A, B))),
}


# --- what the harness must find -------------------------------------------------------------------------------------


def _add_without_fsync(folder: Path, done: Done) -> None:
    """Segments that are never synced, under a catalog that is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        _add_one(folder, done)


class _Careless(sqlite3.Connection):
    """A connection that does not sync what it commits, whatever it is told."""

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        cursor = super().execute(sql, *arguments)
        if "synchronous" in sql:
            super().execute("PRAGMA synchronous = OFF")
        return cursor


def _add_with_catalog_unsynced(folder: Path, done: Done) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=_Careless))
        _add_one(folder, done)


def _add_acknowledged_early(folder: Path, done: Done) -> None:
    bank = MemoryBank.open(folder)
    done()
    put(bank, [B])
    bank.close()


def _update_removing_first(folder: Path, done: Done) -> None:
    """The old segment goes before the commit that ends the need for it."""
    bank = MemoryBank.open(folder)
    old = list((folder / "segments").iterdir())
    with bank.writer() as writer:
        add_latents(writer, A2.document, *A2.latents())
        for path in old:
            path.unlink()
        writer.commit()
    done()
    bank.close()


def _add_with_errors_swallowed(folder: Path, done: Done) -> None:
    """A catalog whose errors are taken for success."""
    bank = MemoryBank.open(folder)
    try:
        put(bank, [B])
    except Exception:
        done()
    else:
        done()
    bank.close()


# Each with the one of `harness.KINDS` that must find it.
BROKEN: dict[str, tuple[Scenario, str]] = {
    name: (Scenario(holding(A), operate, (state(A), after)), kind)
    for name, operate, after, kind in (
        ("segments never synced", _add_without_fsync, state(A, B), "power"),
        ("catalog never synced", _add_with_catalog_unsynced, state(A, B), "power"),
        ("acknowledged before the commit", _add_acknowledged_early, state(A, B), "exit"),
        ("old segment removed before the commit", _update_removing_first, state(A2), "exit"),
        ("errors swallowed", _add_with_errors_swallowed, state(A, B), "error"),
    )
}
