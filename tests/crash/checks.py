"""What must hold of a bank after any fault: `check_left`, and `Inspector`, which asks it in a process of its own.

the bank opens (or, before it was acknowledged, can be created)
it holds exactly the state before or after each transaction, all that were acknowledged included, bit for bit
text and latents, index and database agree; a writer leaves no file that belongs to nothing
another document can be added, and all of that still holds
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import signal
import sqlite3
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from helpers import add_latents, bits, read_bank
from scenarios import FURTHER, MANIFEST, Entry, Scenario, State, cuts
from shim import Mode, Shim

from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE
from memspan.bank.folder import coarse_path, encoded_folder, segment_of, segment_paths
from memspan.bank.verify import verify
from memspan.errors import BankError
from memspan.types import EncodedDocuments

_CATALOG = {f"catalog.sqlite{suffix}" for suffix in ("", "-wal", "-shm", "-journal")}
_FILES = _CATALOG | {"writer.lock", "writer.pid", "encoder.lock", "segments", "encoded", "readers"}
_LOOK_SECONDS = 60


class Broken(Exception):
    """Something that must hold does not."""


class Inspector:
    """Looks at a folder in a forked process, so that a crash of the look is seen as one.

    Args:
        folder: of the bank, or of what is left of one.
    """

    def __init__(self, shim: Shim, folder: Path, scenario: Scenario) -> None:
        self._shim, self._folder, self._scenario = shim, folder, scenario
        self._child = 0
        self._questions: BinaryIO | None = None
        self._answers: BinaryIO | None = None

    def look(self, acknowledged: int) -> str:
        """What does not hold of the folder now, with so many transactions acknowledged; empty if all does."""
        if not self._questions or not self._answers:
            self._questions, self._answers = self._start()
        pickle.dump(acknowledged, self._questions)
        self._questions.flush()
        try:
            found = pickle.load(self._answers)
        except EOFError:
            found = "the process that looked at it died"
        if found:
            self.close()  # whatever it found may still be open there
        return found

    def close(self) -> None:
        """End the process; the next look starts another."""
        if self._questions and self._answers:
            self._questions.close()
            self._answers.close()
            os.waitpid(self._child, 0)
            self._questions = self._answers = None

    def _start(self) -> tuple[BinaryIO, BinaryIO]:
        (asked, asking), (answered, answering) = os.pipe(), os.pipe()
        self._child = os.fork()
        if not self._child:
            os.close(asking)
            os.close(answered)
            with os.fdopen(asked, "rb") as questions, os.fdopen(answering, "wb") as answers:
                self._answer(questions, answers)
            os._exit(0)
        os.close(asked)
        os.close(answering)
        return os.fdopen(asking, "wb"), os.fdopen(answered, "rb")

    def _answer(self, questions: BinaryIO, answers: BinaryIO) -> None:
        while True:
            try:
                acknowledged = pickle.load(questions)
            except EOFError:
                return
            signal.alarm(_LOOK_SECONDS)
            self._shim.arm(self._folder, Mode.COUNT)  # nothing is synced for real
            found = ""
            try:
                check_left(self._folder, self._scenario, acknowledged)
            except Broken as broken:
                found = str(broken)
            except BankError as error:
                found = f"BankError: {error}"
            except Exception:
                found = traceback.format_exc()
            self._shim.disarm()
            pickle.dump(found, answers)
            answers.flush()


def check_left(folder: Path, scenario: Scenario, acknowledged: int) -> None:
    """Look at what a fault left of a bank, and go on from there.

    Args:
        acknowledged: how many of the scenario's transactions returned.

    Raises:
        Broken: it is not in one of the states that it may be in, or not whole.
    """
    allowed = scenario.states[acknowledged:]
    if len(allowed) == 1:
        _check_erased(folder, scenario.erased)
    created = not MemoryBank.exists(folder)
    if created:
        if None not in allowed:
            raise Broken("the bank is gone")
        MemoryBank.create(folder, MANIFEST).close()
    with _opened(folder) as bank:
        found = _read(bank)
        possible = [{}] if created else [given or {} for given in allowed]
        given = next((given for given in possible if _expected(given) == found), None)
        if given is None:
            raise Broken("; or ".join(_difference(_expected(given), found) for given in possible))
        with bank.writer() as writer:
            _check_files(bank)  # what belongs to nothing went when the writer was opened
            add_latents(writer, FURTHER.document, *FURTHER.latents())
            writer.commit()
    with _opened(folder) as bank:
        more = _expected(given | {FURTHER.external_id: FURTHER})
        found = _read(bank)
        if found != more:
            raise Broken(f"after a further add: {_difference(more, found)}")
        _check_search(bank, {entry for other in allowed for entry in (other or {}).values()})
        _check_files(bank)
        if faults := verify(bank):
            raise Broken(f"verify finds {faults}")
    _check_database(folder / "catalog.sqlite")
    if scenario.repeats:
        _check_repeated(folder, scenario)


def _check_repeated(folder: Path, scenario: Scenario) -> None:
    """Done again, it is done; nothing is left to be done once more."""
    scenario.operate(folder, lambda: None)
    with _opened(folder) as bank:
        whole = _expected((scenario.states[-1] or {}) | {FURTHER.external_id: FURTHER})
        if (found := _read(bank)) != whole:
            raise Broken(f"done again: {_difference(whole, found)}")
        if faults := verify(bank):
            raise Broken(f"done again, verify finds {faults}")
        left = [path.name for path in encoded_folder(folder).iterdir() if segment_of(path)]
        if left:
            raise Broken(f"done again, it leaves {left}")


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[MemoryBank]:
    bank = MemoryBank.open(folder)
    yield bank
    bank.close()


# Of each source: title, metadata, and of each part its span, text, number of rows, bits of keys and content.
_Content = dict[str, tuple[Any, ...]]


def _read(bank: MemoryBank) -> _Content:
    found: dict[str, Any] = {}
    for document, keys, content in sorted(read_bank(bank), key=lambda row: row[0].span.start):
        part = (document.span.start, document.span.end, document.text, document.chunks, keys, content)
        source = (document.title, document.metadata)
        found[document.external_id] = (*found.get(document.external_id, source), part)
    return found


def _expected(given: State) -> _Content:
    return {name: _content(entry) for name, entry in given.items()}


@functools.cache
def _content(entry: Entry) -> tuple[Any, ...]:
    document = entry.document
    parts = [
        (span.start, span.end, document.text[span.start : span.end], *_latent(encoded, entry.pending))
        for span, encoded in zip(cuts(entry), entry.latents(), strict=True)
    ]
    return document.title, dict(document.metadata), *parts


def _latent(encoded: EncodedDocuments, pending: bool) -> tuple[int, bytes, bytes]:
    return (0, b"", b"") if pending else (encoded.num_chunks[0], *bits(encoded))


def _difference(expected: _Content, found: _Content) -> str:
    names = {
        "missing": expected.keys() - found.keys(),
        "unexpected": found.keys() - expected.keys(),
        "different": {name for name in expected.keys() & found.keys() if expected[name] != found[name]},
    }
    return ", ".join(f"{what}: {sorted(which)}" for what, which in names.items() if which)


def _check_search(bank: MemoryBank, others: Iterable[Entry] = ()) -> None:
    """Everything there is found by its own words, and nothing else by any."""
    live = {document.id: document.text for document in bank.catalog.page(DEFAULT_NAMESPACE, 0, 1_000_000)}
    for text in (*live.values(), *(entry.text for entry in others)):
        found = {document_id for document_id, _ in bank.catalog.search(DEFAULT_NAMESPACE, text, 1_000_000)}
        if found - live.keys():
            raise Broken(f"full-text search finds documents {sorted(found - live.keys())}, which are not there")
        missing = {document_id for document_id, own in live.items() if own == text} - found
        if missing:
            raise Broken(f"full-text search does not find documents {sorted(missing)}")


def _check_files(bank: MemoryBank) -> None:
    """Every file belongs to the bank: to it as such, to a segment that the catalog knows, or to this reader of it."""
    names = bank.catalog.segment_states()
    known = {path.name for name in names for path in segment_paths(bank.folder, name)}
    known |= {coarse_path(bank.folder, name).name for name in names}
    orphans = {path.name for path in bank.folder.iterdir()} - _FILES
    orphans |= {path.name for path in (bank.folder / "segments").iterdir()} - known
    orphans |= {path.name for path in (bank.folder / "readers").iterdir() if f"{os.getpid()}-" not in path.name}
    if orphans:
        raise Broken(f"orphan files: {sorted(orphans)}")


def _check_erased(folder: Path, entries: Iterable[Entry]) -> None:
    traces = [
        (entry.external_id, trace)
        for entry in entries
        for trace in (entry.text.encode(), *(layer for encoded in entry.latents() for layer in bits(encoded)))
    ]
    for path in folder.rglob("*") if traces else ():
        content = path.read_bytes() if path.is_file() else b""
        for name, trace in traces:
            if trace in content:
                raise Broken(f"{path.name} still holds what was erased of {name}")


def _check_database(path: Path) -> None:
    """SQLite's own checks, also of the full-text index."""
    db = sqlite3.connect(path, isolation_level=None)
    problems = [row[0] for row in db.execute("PRAGMA integrity_check") if row[0] != "ok"]
    problems += [f"foreign key: {row}" for row in db.execute("PRAGMA foreign_key_check")]
    for (table,) in db.execute("SELECT name FROM sqlite_master WHERE sql LIKE '%USING fts5%'").fetchall():
        try:
            db.execute(f"INSERT INTO {table} ({table}) VALUES ('integrity-check')")
        except sqlite3.DatabaseError as error:
            problems.append(f"{table}: {error}")
    db.close()
    if problems:
        raise Broken(f"SQLite finds the catalog damaged: {problems}")
