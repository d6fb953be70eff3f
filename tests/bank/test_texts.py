"""A bank without its latents does to texts what one with them does."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import child_process, receive, tiny_loaded

from memspan.bank import clock
from memspan.bank.add import add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.folder import CATALOG
from memspan.bank.locks import writer_lock
from memspan.bank.scope import Scope
from memspan.bank.texts import TextBank
from memspan.errors import BankBusy, UnknownDocument
from memspan.types import Document

OTTER = Document(
    "otter", "The otter of Rome lives at number seven.", "Otters", {"legs": 4, "seen": ["May"]}, "2020-05-01"
)
HERON = Document("heron", "The heron of Oslo fishes at dawn.")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    loaded = tiny_loaded()
    with closing(MemoryBank.create(tmp_path / "bank", manifest_of(loaded))) as bank:
        add_documents(bank, loaded, [OTTER, HERON])
        add_documents(bank, loaded, [replace(OTTER, metadata={})], namespace="other")
    return tmp_path / "bank"


def rows(folder: Path) -> dict[str, list[Any]]:
    """Every row of the catalog."""
    with closing(sqlite3.connect(folder / CATALOG)) as db:
        tables = db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'")
        return {table: list(db.execute(f"SELECT * FROM {table}")) for (table,) in tables.fetchall()}


@pytest.mark.parametrize(
    "changes",
    [
        {"metadata": {"legs": 3, "place": None, "ü": "é\n"}},
        {"date": "2031-01-01T10:00:00"},
        {"metadata": {}, "date": None},
    ],
    ids=["metadata", "date", "both"],
)
def test_relabelling_writes_what_adding_the_document_again_writes(
    folder: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "moment", lambda: "2031-05-01T10:00:00.000000")
    changed, other = replace(OTTER, **changes), folder.with_name("other")
    shutil.copytree(folder, other)
    with closing(TextBank.open(folder)) as texts:
        assert texts.relabel(changed)
        assert texts.get("otter") == changed and texts.get("otter", "other") == replace(OTTER, metadata={})
    with closing(MemoryBank.open(other)) as bank:
        add_documents(bank, tiny_loaded(), [changed])
    assert rows(folder) == rows(other)


def test_an_open_reader_sees_new_metadata_at_its_next_question(folder: Path) -> None:
    scope = Scope.parse({"legs": 5})
    with closing(MemoryBank.open(folder)) as bank, closing(TextBank.open(folder)) as texts:
        with bank.snapshot() as before:
            texts.relabel(replace(OTTER, metadata={"legs": 5}))
            assert not before.selectable_mask(scope).any()
        with bank.snapshot() as after:
            assert int(after.selectable_mask(scope).sum()) == 1


def test_what_is_not_only_relabelled_is_refused_and_changes_nothing(folder: Path) -> None:
    before = rows(folder)
    with closing(TextBank.open(folder)) as texts:
        assert not texts.relabel(OTTER), "nothing is new"
        for wrong in (replace(OTTER, text="Another."), replace(OTTER, title=""), Document("lynx", "A lynx.")):
            with pytest.raises(UnknownDocument, match="changed just now"):
                texts.relabel(wrong)
        with pytest.raises(UnknownDocument):
            texts.relabel(OTTER, "nobody's")
    assert rows(folder) == before


def test_relabelling_waits_for_no_other_writer_but_names_it(folder: Path) -> None:
    def hold(pipe: Any) -> None:
        with writer_lock(folder):
            pipe.send("held")
            pipe.recv()

    with child_process(hold) as (_, pipe), closing(TextBank.open(folder)) as texts:
        assert receive(pipe) == "held"
        with pytest.raises(BankBusy, match="pid"):
            texts.relabel(replace(OTTER, metadata={}))
        pipe.send("done")


def test_deleting_needs_no_latents(folder: Path) -> None:
    shutil.rmtree(folder / "segments")
    with closing(TextBank.open(folder)) as texts:
        assert texts.delete(["otter", 2]) == 2
        assert texts.catalog.counts("default").documents == 0 and texts.catalog.counts("other").documents == 1


def test_a_bank_that_another_process_makes_meanwhile_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not TextBank.exists_or_fits(tmp_path / "bank") and not TextBank.exists_or_fits(tmp_path)
    found = iter([False, True])
    monkeypatch.setattr(TextBank, "exists", classmethod(lambda *_: next(found)))
    (tmp_path / "catalog.sqlite").write_text("of another process")
    assert TextBank.exists_or_fits(tmp_path)
