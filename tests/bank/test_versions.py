"""Former versions and expiry: what is seen now and then, by words, by ids and by routing; what is erased."""

from __future__ import annotations

import dataclasses
import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch
from helpers import add_latents, random_latents, tiny_manifest

from memspan.bank import clock
from memspan.bank.archive import export_bank, import_bank
from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE as DEFAULT
from memspan.bank.scope import Scope
from memspan.bank.texts import DocumentUpdate
from memspan.bank.verify import verify
from memspan.errors import FilterError, UnknownDocument
from memspan.types import Document

MANIFEST = tiny_manifest(num_kv_heads=1, head_dim=2)


class Clock:
    """What time the bank believes it is; every look at it takes a second."""

    def __init__(self) -> None:
        self.time = datetime(2026, 3, 1, 10)

    def now(self) -> datetime:
        self.time += timedelta(seconds=1)
        return self.time

    def pass_days(self, days: float) -> None:
        self.time += timedelta(days=days)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    time = Clock()
    monkeypatch.setattr(clock, "now", time.now)
    return time


@pytest.fixture
def bank(tmp_path: Path, time: Clock) -> Iterator[MemoryBank]:
    torch.manual_seed(0)
    with closing(MemoryBank.create(tmp_path / "bank", MANIFEST)) as bank:
        yield bank


def _put(bank: MemoryBank, name: str, text: str, parts: int = 1, namespace: str = DEFAULT, **values: object) -> None:
    with bank.writer(namespace) as writer:
        document = Document(name, text, **values)  # type: ignore[arg-type]
        add_latents(writer, document, *(random_latents(MANIFEST, 2) for _ in range(parts)))
        writer.commit()


def _relabel(bank: MemoryBank, name: str, **values: object) -> None:
    document = dataclasses.replace(bank.get(name), **values)  # type: ignore[arg-type]
    bank.relabel(document)


def _seen(bank: MemoryBank, word: str = "", scope: Scope | None = None) -> list[str]:
    """The texts that a scope shows on every path; they must agree."""
    scope = scope or Scope()
    with bank.snapshot() as snapshot:
        catalog = snapshot.catalog
        listed = [stored.document.text for stored in catalog.sources(DEFAULT, scope)]
        assert [stored.document.text for stored in catalog.source_page(DEFAULT, 0, 99, scope)] == listed
        paged = catalog.page(DEFAULT, 0, 99, scope)
        joined = [
            "".join(one.text for one in parts) for _, parts in itertools.groupby(paged, lambda one: one.source_id)
        ]
        assert sorted(joined) == sorted(listed)
        ids = [one.id for one in paged]
        assert catalog.ids_in_scope(DEFAULT, scope).tolist() == ids
        mask = snapshot.selectable_mask(scope)
        of_shards = torch.cat([torch.empty(0, dtype=torch.int64), *(shard.ids_N for shard in snapshot.shards)])
        assert sorted(of_shards[mask].tolist()) == ids
        assert [one.id for one in snapshot.documents(ids, scope)] == ids
        others = sorted(set(range(1, 99)) - set(ids))
        assert snapshot.documents(others, scope) == []
        for one in paged:
            assert catalog.external_id_of(DEFAULT, one.id, scope) == one.external_id
        for stored in catalog.sources(DEFAULT, scope):
            found = catalog.source(DEFAULT, stored.document.external_id, scope)
            assert found == stored
        if word:
            found_ids = [number for number, _ in snapshot.search(word, 99, scope)]
            assert sorted(found_ids) == [one.id for one in paged if word in one.text.split()]
        return listed


def _at(as_of: str | None = None, known_at: str | None = None) -> Scope:
    return Scope.parse(None, as_of, known_at)


def test_a_replaced_document_is_seen_only_by_who_asks_for_then(bank: MemoryBank, time: Clock) -> None:
    _put(bank, "a", "lives in Bern now", date="2025-01-01")
    _put(bank, "a", "lives in Rome now", date="2026-01-01")
    _put(bank, "other", "nothing now")
    assert _seen(bank, "now") == ["lives in Rome now", "nothing now"]
    assert _seen(bank, "Bern") == _seen(bank, "Rome")
    with bank.snapshot() as snapshot:
        assert snapshot.search("bern", 9) == []
        assert snapshot.search("bern", 9, _at("2025-06-01"))[0][0] == 1
    assert _seen(bank, "now", _at("2024-12-31")) == []
    assert _seen(bank, "now", _at("2025-01-01")) == ["lives in Bern now"]
    assert _seen(bank, "now", _at("2025-12-31T23:59")) == ["lives in Bern now"]
    assert _seen(bank, "now", _at("2026-01-01")) == ["lives in Rome now"]
    assert _seen(bank, "now", _at("2030-01-01")) == _seen(bank)
    assert verify(bank) == []


def test_without_dates_a_version_is_valid_from_when_it_was_recorded(bank: MemoryBank, time: Clock) -> None:
    moments = []
    for text in ("one", "two", "three"):
        _put(bank, "a", f"{text} words")
        time.pass_days(1)
        moments.append(time.time.isoformat())
    for option in ("as_of", "known_at"):
        seen = [_seen(bank, "words", Scope.parse(None, **{option: moment})) for moment in moments]
        assert seen == [["one words"], ["two words"], ["three words"]]
        assert _seen(bank, "words", Scope.parse(None, **{option: "2026-02-28"})) == []


def test_what_is_recorded_today_of_long_ago_is_found_as_of_then_and_not_known_then(bank: MemoryBank) -> None:
    for year in (1999, 2005, 2012):
        _put(bank, f"letter-{year}", f"letter of {year}", date=f"{year}-05-01")
    assert _seen(bank, "letter", _at("2006-01-01")) == ["letter of 1999", "letter of 2005"]
    assert _seen(bank, "letter", _at(known_at="2006-01-01")) == []
    assert _seen(bank, "letter", _at("2006-01-01", "2026-03-01")) == ["letter of 1999", "letter of 2005"]
    assert _seen(bank, "letter", _at("2006-01-01", "2026-02-28")) == []


def test_a_correction_holds_for_the_past_but_not_for_what_was_known(bank: MemoryBank, time: Clock) -> None:
    _put(bank, "a", "born in Bren", date="1990-01-01")
    before = time.time.isoformat()
    time.pass_days(1)
    _put(bank, "a", "born in Bern", date="1990-01-01")
    assert _seen(bank, "born", _at("1995-01-01")) == ["born in Bern"]
    assert _seen(bank, "born", _at("1995-01-01", before)) == ["born in Bren"]
    assert _seen(bank, "born", _at(known_at=before)) == ["born in Bren"]


def test_a_version_with_an_earlier_date_holds_from_then_on(bank: MemoryBank) -> None:
    _put(bank, "a", "first", date="2025-06-01")
    _put(bank, "a", "second", date="2025-01-01")
    assert [_seen(bank, "", _at(day)) for day in ("2024-01-01", "2025-03-01", "2025-07-01")] == [
        [],
        ["second"],
        ["second"],
    ]
    assert _seen(bank) == ["second"]


def test_new_metadata_are_a_version_that_shares_text_and_latents(bank: MemoryBank, time: Clock) -> None:
    _put(bank, "a", "a task", metadata={"status": "open"})
    time.pass_days(1)
    then = time.time.isoformat()
    _relabel(bank, "a", metadata={"status": "done"})
    _relabel(bank, "a", metadata={"status": "filed", "box": 7})
    counts = bank.catalog.counts()
    assert (counts.documents, counts.versions, counts.past_documents) == (1, 2, 0)
    for status, scope in (("open", _at(then)), ("open", _at(known_at=then)), ("filed", _at("2027-01-01"))):
        assert _seen(bank, "task", scope) == ["a task"]
        assert bank.get("a", scope=scope).metadata["status"] == status
        with bank.snapshot() as snapshot:
            assert snapshot.documents([1], scope)[0].metadata["status"] == status
    # A filter looks at the version that holds, and brings back no other that would match.
    assert _seen(bank, "", Scope.parse({"status": "open"})) == []
    assert _seen(bank, "", Scope.parse({"status": "open"}, as_of="2027-01-01")) == []
    assert _seen(bank, "task", Scope.parse({"status": "open"}, as_of=then)) == ["a task"]
    with pytest.raises(FilterError, match="no document has a field 'nothing'"):
        _seen(bank, "", Scope.parse({"nothing": 1}, as_of=then))
    assert verify(bank) == []


def test_versions_of_label_and_text_are_told_in_order(bank: MemoryBank) -> None:
    _put(bank, "a", "one", date="2025-01-01")
    _relabel(bank, "a", metadata={"n": 1})
    _put(bank, "a", "two", date="2026-01-01", metadata={"n": 1}, parts=2)
    _relabel(bank, "a", metadata={"n": 2})
    versions = bank.catalog.versions(DEFAULT, "a")
    assert [(one.document.text, one.document.metadata) for one in versions] == [
        ("one", {}),
        ("one", {"n": 1}),
        ("two", {"n": 1}),
        ("two", {"n": 2}),
    ]
    assert [one.superseded_at for one in versions] == [*(one.recorded_at for one in versions[1:]), None]
    assert [one.recorded_at for one in versions] == sorted(one.recorded_at for one in versions)
    for version in versions:
        assert bank.get("a", scope=_at(known_at=version.recorded_at)) == version.document
    assert bank.catalog.versions(DEFAULT, "b") == bank.catalog.versions("other", "a") == []


def test_a_document_that_alternates_is_each_time_a_version(bank: MemoryBank) -> None:
    for text in ("yes", "no", "yes", "no", "yes"):
        _put(bank, "a", text)
    assert [one.document.text for one in bank.catalog.versions(DEFAULT, "a")] == ["yes", "no", "yes", "no", "yes"]
    assert _seen(bank, "yes") == ["yes"]
    assert verify(bank) == []


def test_what_is_added_again_as_it_was_is_no_version(bank: MemoryBank) -> None:
    _put(bank, "a", "same", metadata={"n": 0})
    _relabel(bank, "a", metadata={"n": 1})
    _put(bank, "a", "same", metadata={"n": 1})  # as a repair does
    assert [one.document.metadata for one in bank.catalog.versions(DEFAULT, "a")] == [{"n": 0}, {"n": 1}]
    assert bank.catalog.counts().deleted_documents == 1
    assert verify(bank) == []
    bank.compact()
    assert [one.document.metadata for one in bank.catalog.versions(DEFAULT, "a")] == [{"n": 0}, {"n": 1}]


def test_versions_of_another_namespace_are_not_seen(bank: MemoryBank) -> None:
    _put(bank, "a", "ours old", date="2025-01-01")
    _put(bank, "a", "ours new", date="2026-01-01")
    for text, date in (("theirs old", "2025-02-01"), ("theirs new", "2026-02-01")):
        _put(bank, "a", text, namespace="other", date=date)
    assert _seen(bank, "ours", _at("2025-06-01")) == ["ours old"]
    with bank.snapshot("other") as snapshot:
        (found,) = snapshot.documents(
            snapshot.catalog.ids_in_scope("other", _at("2025-06-01")).tolist(), _at("2025-06-01")
        )
        assert found.text == "theirs old"
        assert snapshot.search("ours", 9, _at("2025-06-01")) == []


def test_former_versions_are_ranked_among_what_lives(bank: MemoryBank) -> None:
    for number in range(20):
        _put(bank, str(number), f"common filler number{number}", date="2020-01-01")
    _put(bank, "a", "common rare word", date="2020-01-01")
    _put(bank, "a", "gone", date="2026-01-01")
    with bank.snapshot() as snapshot:
        found = snapshot.search("common rare", 99, _at("2021-01-01"))
        assert found[0][0] == 21
        assert found[0][1] > 3 * found[1][1] > 0
        assert len(found) == 21
        assert snapshot.search("common rare", 1, _at("2021-01-01")) == found[:1]
        assert 21 not in [number for number, _ in snapshot.search("common rare", 99)]


def test_the_scores_of_what_lives_do_not_depend_on_former_versions(bank: MemoryBank, tmp_path: Path) -> None:
    with closing(MemoryBank.create(tmp_path / "fresh", MANIFEST)) as fresh:
        _put(bank, "a", "apple apple pear", date="2025-01-01")
        for one in (bank, fresh):
            _put(one, "a", "apple plum", date="2026-01-01")
            _put(one, "b", "pear plum", date="2026-01-01")
        questions = ("apple", "pear plum", "apple pear plum")
        with bank.snapshot() as mine, fresh.snapshot() as theirs:
            for question in questions:
                assert [score for _, score in mine.search(question, 9)] == [
                    score for _, score in theirs.search(question, 9)
                ]


def test_deleting_deletes_every_version(bank: MemoryBank) -> None:
    _put(bank, "a", "secret one", date="2025-01-01")
    _relabel(bank, "a", metadata={"secret": "metadata"})
    _put(bank, "a", "secret two", date="2026-01-01")
    _put(bank, "b", "kept old", date="2025-01-01")
    _put(bank, "b", "kept new", date="2026-01-01")
    bank.delete(["a"])
    for scope in (_at(), _at("2025-06-01"), _at(known_at="2026-03-01"), _at("2026-06-01")):
        assert all("secret" not in text for text in _seen(bank, "secret", scope))
    assert _seen(bank, "kept", _at("2025-06-01")) == ["kept old"]
    assert bank.catalog.versions(DEFAULT, "a") == []
    assert verify(bank) == []
    counts = bank.catalog.counts()
    assert (counts.versions, counts.past_documents, counts.deleted_documents) == (1, 1, 2)
    _put(bank, "a", "back", date="2026-02-01")
    assert _seen(bank, "", _at("2025-06-01")) == ["kept old"]
    bank.compact()
    assert bank.catalog.counts().deleted_documents == 0
    with closing(sqlite3.connect(bank.folder / "catalog.sqlite")) as db:
        assert db.execute("SELECT count(*) FROM texts WHERE text LIKE 'secret%'").fetchone() == (0,)


@pytest.mark.parametrize("merged", [False, True])
def test_compacting_keeps_versions_unless_it_is_to_forget_them(bank: MemoryBank, merged: bool) -> None:
    for number in range(9 if merged else 1):  # eight small segments are merged on the way
        _put(bank, "a", f"text{number} word", date=f"{2010 + number}-01-01", parts=2)
    before = {year: _seen(bank, "word", _at(f"{year}-06-01")) for year in range(2009, 2020)}
    bank.compact()
    bank.compact(forget_versions="10000d")
    assert {year: _seen(bank, "word", _at(f"{year}-06-01")) for year in range(2009, 2020)} == before
    assert verify(bank) == []
    bank.compact(forget_versions="0d")
    assert bank.catalog.counts().versions == bank.catalog.counts().deleted_documents == 0
    assert _seen(bank, "word", _at("2013-06-01")) == ([] if merged else ["text0 word"])
    assert verify(bank) == []


def test_versions_are_forgotten_by_their_age(bank: MemoryBank, time: Clock) -> None:
    for text in ("first", "second", "third"):
        _put(bank, "a", text)
        time.pass_days(10)
    bank.compact(forget_versions="15d")  # the first was replaced 20 days ago
    assert [one.document.text for one in bank.catalog.versions(DEFAULT, "a")] == ["second", "third"]
    assert verify(bank) == []


@pytest.mark.parametrize("age", ["", "30", "d", "-3d", "3y", "1.5d", "3 months", 3, None, "9" * 40 + "w"])
def test_an_age_that_is_none_is_refused_and_nothing_forgotten(bank: MemoryBank, age: object) -> None:
    _put(bank, "a", "one")
    _put(bank, "a", "two")
    if age is None:
        bank.compact(forget_versions=None)
    else:
        with pytest.raises(ValueError, match="duration"):
            bank.compact(forget_versions=age)  # type: ignore[arg-type]
    assert len(bank.catalog.versions(DEFAULT, "a")) == 2


def test_compacting_securely_leaves_nothing_of_former_versions_in_any_file(bank: MemoryBank) -> None:
    _put(bank, "a", "anneliese lived here", metadata={"k": "gertrude"}, date="2025-01-01")
    _relabel(bank, "a", metadata={"k": "harmless"})
    _put(bank, "a", "nobody lives here", date="2026-01-01")
    held = b"".join(path.read_bytes() for path in sorted(bank.folder.rglob("*")) if path.is_file())
    assert b"anneliese" in held
    assert b"gertrude" in held
    bank.compact(secure=True)
    held = b"".join(path.read_bytes() for path in sorted(bank.folder.rglob("*")) if path.is_file())
    assert b"anneliese" not in held
    assert b"annelies" not in held  # as the index stems it
    assert b"gertrude" not in held
    assert _seen(bank, "here", _at("2025-06-01")) == []
    assert _seen(bank, "here") == ["nobody lives here"]


def test_an_exported_bank_has_its_versions_and_nothing_that_expired(
    bank: MemoryBank, tmp_path: Path, time: Clock
) -> None:
    _put(bank, "a", "old words", date="2025-01-01")
    _put(bank, "a", "new words", date="2026-01-01")
    _put(bank, "b", "gone words", expires="2026-03-02")
    time.pass_days(2)
    export_bank(bank, tmp_path / "one.bank")
    assert bank.catalog.counts().deleted_documents == 1, "the exported bank is not changed"
    with closing(import_bank(tmp_path / "one.bank", tmp_path / "again")) as again:
        assert verify(again) == []
        assert _seen(again, "words", _at("2025-06-01")) == ["old words"]
        assert _seen(again, "words") == ["new words"]
        assert again.catalog.counts().deleted_documents == 0
    assert b"gone words" not in (tmp_path / "one.bank").read_bytes()


# --- expiry ---------------------------------------------------------------------------------------------------------


def test_what_expires_is_not_seen_from_that_moment_on_any_path(bank: MemoryBank, time: Clock) -> None:
    _put(bank, "a", "short lived", expires="2026-03-05T12:00")
    _put(bank, "b", "long lived")
    with bank.snapshot() as opened:
        assert opened.selectable_mask().tolist() == [True, True]
        time.time = datetime(2026, 3, 5, 11, 59)
        assert _seen(bank, "lived") == ["short lived", "long lived"]
        time.time = datetime(2026, 3, 5, 11, 59, 59)  # the next look is at the moment itself
        assert _seen(bank, "lived") == ["long lived"]
        assert opened.selectable_mask().tolist() == [True, True], "a question sees one moment"
        opened.catalog.look_again()
        assert opened.selectable_mask().tolist() == [False, True], "and the next one another, without a commit"
        assert [number for number, _ in opened.search("lived", 9)] == [2]
        assert opened.documents([1, 2])[0].id == 2
    for scope in (_at("2026-03-02"), _at(known_at="2026-03-02"), _at("2027-01-01")):
        assert "short lived" not in _seen(bank, "lived", scope)
    with pytest.raises(UnknownDocument):
        bank.get("a")
    counts = bank.catalog.counts()
    assert (counts.sources, counts.documents, counts.deleted_documents) == (1, 1, 1)
    assert [one.external_id for one in bank.catalog.page(DEFAULT, 0, 9, Scope(held="expired"))] == ["a"]
    assert verify(bank) == []
    bank.compact()
    assert verify(bank) == []
    assert bank.catalog.page(DEFAULT, 0, 9, Scope(held="expired")) == []
    assert bank.catalog.counts().deleted_documents == 0
    with closing(sqlite3.connect(bank.folder / "catalog.sqlite")) as db:
        assert db.execute("SELECT text FROM texts").fetchall() == [("long lived",)]


@pytest.mark.parametrize(
    ("expires", "seen_at", "gone_at"),
    [
        ("2026-03-05", datetime(2026, 3, 4, 23, 59, 58), datetime(2026, 3, 5)),
        ("2026-03-05T12:00:00.5", datetime(2026, 3, 5, 11, 59, 58), datetime(2026, 3, 5, 12, 0, 1)),
        ("2026-03-05T00:30+09:00", datetime(2026, 3, 4, 15, 29, 58), datetime(2026, 3, 4, 15, 30)),
        ("9999-12-31", datetime(9000, 1, 1), None),
    ],
)
def test_a_day_expires_at_its_beginning_and_a_moment_at_the_moment(
    bank: MemoryBank, time: Clock, expires: str, seen_at: datetime, gone_at: datetime | None
) -> None:
    _put(bank, "a", "word", expires=expires)
    time.time = seen_at
    assert _seen(bank) == ["word"]
    if gone_at is not None:
        time.time = gone_at
        assert _seen(bank) == []


def test_what_is_pinned_does_not_expire(bank: MemoryBank, time: Clock) -> None:
    _put(bank, "a", "word", expires="2026-03-05", pinned=True)
    time.pass_days(30)
    assert _seen(bank, "word") == ["word"]
    bank.compact()
    assert _seen(bank, "word") == ["word"]
    assert bank.update("a", DocumentUpdate(pinned=False)) is not None
    assert _seen(bank) == []


def test_expiry_and_pin_are_kept_by_who_does_not_speak_of_them(bank: MemoryBank) -> None:
    _put(bank, "a", "one", expires="2030-01-01", pinned=True)
    _put(bank, "a", "two")
    _relabel(bank, "a", metadata={"n": 1}, expires=None, pinned=None)
    document = bank.get("a")
    assert (document.text, document.expires, document.pinned) == ("two", "2030-01-01", True)
    assert not bank.relabel(dataclasses.replace(document, expires=None, pinned=None))
    _put(bank, "a", "three", expires="never", pinned=False)
    document = bank.get("a")
    assert (document.expires, document.pinned) == (None, None)
    assert verify(bank) == []


def test_all_versions_expire_together(bank: MemoryBank, time: Clock) -> None:
    _put(bank, "a", "old", date="2025-01-01")
    _put(bank, "a", "new", date="2026-01-01", expires="2026-03-05")
    assert _seen(bank, "", _at("2025-06-01")) == ["old"]
    time.pass_days(30)
    assert _seen(bank, "", _at("2025-06-01")) == []
    assert verify(bank) == []
    bank.compact()
    counts = bank.catalog.counts()
    assert (counts.versions, counts.past_documents, counts.deleted_documents) == (0, 0, 0)


def test_an_extended_document_keeps_its_former_versions(bank: MemoryBank, time: Clock) -> None:
    _put(bank, "a", "old", date="2025-01-01", expires="2026-03-05")
    _put(bank, "a", "new", date="2026-01-01", expires="2026-12-01")
    time.pass_days(30)
    assert _seen(bank, "", _at("2025-06-01")) == ["old"]
    assert _seen(bank) == ["new"]


def test_what_has_expired_is_new_when_it_is_added_again(bank: MemoryBank, time: Clock) -> None:
    _put(bank, "a", "same", expires="2026-03-05", metadata={"n": 1})
    time.pass_days(30)
    _put(bank, "a", "same", metadata={"n": 1})
    assert bank.get("a").expires is None
    assert len(bank.catalog.versions(DEFAULT, "a")) == 1
    assert _seen(bank, "same", _at(known_at="2026-03-02")) == []
    assert verify(bank) == []


def test_all_that_is_there_may_expire(bank: MemoryBank, time: Clock) -> None:
    _put(bank, "a", "word", expires="2026-03-05")
    time.pass_days(30)
    assert _seen(bank, "word") == []
    bank.compact(secure=True)
    assert bank.catalog.namespaces() == []
    assert verify(bank) == []


# --- changes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "after"),
    [
        ({"b": 2}, {"a": 1, "nested": {"x": 1, "y": [1, None]}, "b": 2}),
        ({"a": None}, {"nested": {"x": 1, "y": [1, None]}}),
        ({"a": None, "nested": None}, {}),
        ({"none such": None}, {"a": 1, "nested": {"x": 1, "y": [1, None]}}),
        ({"nested": {"x": None}}, {"a": 1, "nested": {"y": [1, None]}}),
        ({"nested": {"x": {"z": 1, "gone": None}}}, {"a": 1, "nested": {"x": {"z": 1}, "y": [1, None]}}),
        ({"nested": {"y": [None]}}, {"a": 1, "nested": {"x": 1, "y": [None]}}),
        ({"nested": 3}, {"a": 1, "nested": 3}),
        ({"a": {"b": {"c": None}}}, {"a": {"b": {}}, "nested": {"x": 1, "y": [1, None]}}),
        ({"": "empty name", "ü": False}, {"a": 1, "nested": {"x": 1, "y": [1, None]}, "": "empty name", "ü": False}),
        ({}, {"a": 1, "nested": {"x": 1, "y": [1, None]}}),
    ],
)
def test_metadata_are_merged_as_json_merge_patch_does(bank: MemoryBank, metadata: dict, after: dict) -> None:
    before = {"a": 1, "nested": {"x": 1, "y": [1, None]}}
    _put(bank, "a", "word", metadata=before)
    found = bank.update("a", DocumentUpdate(metadata=metadata))
    assert found is not None
    assert found[1] == (after != before)
    assert bank.get("a").metadata == after
    assert len(bank.catalog.versions(DEFAULT, "a")) == 1 + (after != before)


def test_what_is_not_named_stays_and_an_empty_date_removes_it(bank: MemoryBank) -> None:
    _put(bank, "a", "word", title="Title", metadata={"n": 1}, date="2025-01-01", expires="2030-01-01")
    before = bank.get("a")
    assert bank.update("a", DocumentUpdate()) == (before, False)
    assert bank.update("a", DocumentUpdate(pinned=True)) is not None
    assert bank.get("a") == dataclasses.replace(before, pinned=True)
    assert bank.update("a", DocumentUpdate(date="", expires="never")) is not None
    assert bank.get("a") == dataclasses.replace(before, date=None, expires=None, pinned=True)
    assert bank.update("a", DocumentUpdate(text="another")) is None
    assert bank.update("a", DocumentUpdate(title="")) is None
    assert bank.get("a").title == "Title"


@pytest.mark.parametrize(
    "changes",
    [
        DocumentUpdate(date="tomorrow"),
        DocumentUpdate(expires="2026-13-01"),
        DocumentUpdate(expires=""),
        DocumentUpdate(metadata={"n": float("nan")}),
        DocumentUpdate(metadata={"n": "\ud800"}),
        DocumentUpdate(metadata=[1]),  # type: ignore[arg-type]
        DocumentUpdate(pinned="yes"),  # type: ignore[arg-type]
        DocumentUpdate(text=" "),
    ],
)
def test_changes_that_make_no_document_change_nothing(bank: MemoryBank, changes: DocumentUpdate) -> None:
    _put(bank, "a", "word", metadata={"n": 1})
    before = bank.get("a")
    with pytest.raises((ValueError, TypeError)):
        bank.update("a", changes)
    assert bank.get("a") == before
    assert bank.update("a", DocumentUpdate(metadata={"n": 2})) is not None, "the lock is free again"


def test_an_unknown_document_is_not_updated(bank: MemoryBank) -> None:
    for name in ("a", 7, "\ud800"):
        with pytest.raises(UnknownDocument):
            bank.update(name, DocumentUpdate(metadata={"n": 1}))
