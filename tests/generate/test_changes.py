"""What changed since, what a memory knows of somebody, and exchanges that are remembered."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_loaded

from memspan.bank import clock
from memspan.bank.bank import MemoryBank
from memspan.bank.database import Database
from memspan.bank.encode import manifest_of
from memspan.errors import FilterError, QuestionError
from memspan.generate.memory import Memory
from memspan.types import NEVER, Document


class Clock:
    """A clock that is set by the test."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 10)

    def __call__(self) -> datetime:
        return self.now

    def tick(self, **time: float) -> None:
        self.now += timedelta(**time)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    time = Clock()
    monkeypatch.setattr(clock, "now", time)
    return time


@pytest.fixture
def memory(tmp_path: Path, time: Clock) -> Iterator[Memory]:
    loaded = tiny_loaded()
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(loaded)), loaded) as memory:
        memory.later = True
        yield memory


def kinds(memory: Memory, since: str | None = None, **options: Any) -> dict[str | None, str]:
    return {one.external_id: one.kind for one in memory.changes(since, **options).changes}


def test_what_was_added_changed_deleted_and_expired(memory: Memory, time: Clock) -> None:
    memory.add(["a", "b", "c", "d", "e"], ids=[*"abcde"])
    memory.update("e", ttl="1h")
    time.tick(minutes=30)
    since = time.now.isoformat()
    commit = memory.changes(after_commit=0).commit
    assert kinds(memory, since) == kinds(memory, after_commit=commit) == {}
    time.tick(minutes=1)
    memory.add(["a, anew", "f"], ids=["a", "f"], titles=["A", ""])
    memory.update("b", metadata={"n": 1})
    time.tick(minutes=1)
    memory.delete("c")
    time.tick(hours=1)
    expected = {"a": "changed", "b": "changed", "c": "deleted", "e": "expired", "f": "added"}
    for found in (memory.changes(since), memory.changes(after_commit=commit)):
        assert {one.external_id: one.kind for one in found.changes} == expected
        assert [one.at for one in found.changes] == sorted(one.at for one in found.changes)
        (changed,) = [one for one in found.changes if one.external_id == "a"]
        assert (changed.title, changed.at[:19]) == ("A", "2026-03-01T10:31:00")
    assert kinds(memory, "2h") == {
        "a": "added",
        "b": "added",
        "c": "deleted",
        "d": "added",
        "e": "expired",
        "f": "added",
    }
    assert kinds(memory, "2026-03-02") == {} and len(kinds(memory, "2026")) == len(kinds(memory, after_commit=0)) == 6


def test_a_commit_gives_each_change_once_however_coarse_the_clock_is(memory: Memory) -> None:
    """All commits are made at one moment."""
    seen, commit = [], 0
    steps = (
        lambda: memory.add(["a", "b"], ids=["a", "b"]),
        lambda: memory.add(["a2"], ids=["a"]),
        lambda: memory.delete("b"),
        lambda: memory.update("a", date="2020-01-01"),
        lambda: memory.add(["b2"], ids=["b"]),
    )
    for step in steps:
        step()
        found = memory.changes(after_commit=commit)
        seen.append({(one.kind, one.external_id) for one in found.changes})
        commit = found.commit
        assert memory.changes(after_commit=commit).changes == ()
    assert seen == [
        {("added", "a"), ("added", "b")},
        {("changed", "a")},
        {("deleted", "b")},
        {("changed", "a")},
        {("added", "b")},
    ]


def test_a_clock_that_was_set_back_hides_no_change_after_a_commit(memory: Memory, time: Clock) -> None:
    memory.add(["a"], ids=["a"])
    commit = memory.changes(after_commit=0).commit
    time.tick(days=-3)
    memory.add(["b"], ids=["b"])
    assert kinds(memory, after_commit=commit) == {"b": "added"}


def test_what_changes_nothing_is_no_change(memory: Memory, time: Clock) -> None:
    memory.add(["a", "b"], ids=["a", "b"])
    time.tick(minutes=1)
    since, before = time.now.isoformat(), memory.versions("a")
    memory.add(["a"], ids=["a"])
    memory.add(["a"], ids=["a"], existing="renew")
    memory.update("b", expires=NEVER, pinned=True)
    assert kinds(memory, since) == {}
    assert memory.versions("a") == before, "it was known then, and is the same"


def test_a_document_that_was_added_and_deleted_in_between_was_deleted(memory: Memory, time: Clock) -> None:
    memory.add(["a"], ids=["a"])
    memory.delete("a")
    assert kinds(memory, "1h") == {"a": "deleted"}
    time.tick(minutes=1)
    memory.add(["a"], ids=["a"])
    assert kinds(memory, "1h") == {"a": "added"}


def test_what_was_erased_has_no_name_and_is_counted(memory: Memory, time: Clock) -> None:
    memory.add(["secret text one", "two", "three"], ids=["secret/one", "secret/two", "three"])
    memory.delete(["secret/one", "secret/two"])
    memory.bank.compact()
    assert kinds(memory, "1h") == {"secret/one": "deleted", "secret/two": "deleted", "three": "added"}
    memory.bank.compact(secure=True)
    found = memory.changes("1h").changes
    assert sorted((one.kind, one.external_id or "") for one in found) == [
        ("added", "three"),
        ("deleted", ""),
        ("deleted", ""),
    ]
    assert not any(b"secret" in file.read_bytes() for file in memory.bank.folder.rglob("*") if file.is_file())


def test_what_expired_and_was_erased_has_expired(memory: Memory, time: Clock) -> None:
    memory.add(["a", "b"], ids=["a", "b"], ttl="1h")
    memory.add(["c"], ids=["c"])
    time.tick(hours=2)
    memory.bank.compact()
    assert kinds(memory, "3h") == {"a": "expired", "b": "expired", "c": "added"}
    assert kinds(memory, "1m") == {"a": "expired", "b": "expired"}


def test_slices_join_and_say_whether_there_is_more(memory: Memory, time: Clock) -> None:
    for name in "dacb":
        memory.add([name], ids=[name])
        time.tick(seconds=1)
    whole = memory.changes("1h")
    assert [one.external_id for one in whole.changes] == [*"dacb"] and not whole.more
    parts = [memory.changes("1h", limit=3), memory.changes("1h", limit=3, offset=3), memory.changes("1h", limit=0)]
    assert [part.more for part in parts] == [True, False, True]
    assert parts[0].changes + parts[1].changes == whole.changes and parts[2].changes == ()


def test_other_namespaces_have_their_own_changes(memory: Memory) -> None:
    other = memory.in_namespace("other")
    memory.add(["a"], ids=["a"])
    other.add(["b"], ids=["b"])
    memory.delete("a")
    assert kinds(other, after_commit=0) == {"b": "added"} and kinds(memory, after_commit=0) == {"a": "deleted"}
    assert kinds(memory.in_namespace("none"), after_commit=0) == {}


def test_a_snapshot_says_when_it_is_of(tmp_path: Path, memory: Memory) -> None:
    memory.add(["a"], ids=["a"])
    commit = memory.changes("1h").commit
    assert memory.changes("1h").commit == commit
    memory.add(["b"], ids=["b"])
    assert memory.changes("1h").commit > commit


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, TypeError),
        ({"since": "1h", "after_commit": 0}, TypeError),
        ({"since": "yesterday"}, FilterError),
        ({"since": ""}, FilterError),
        ({"since": 5}, FilterError),
        ({"after_commit": -1}, FilterError),
        ({"after_commit": 10**9}, FilterError),
        ({"after_commit": "1"}, FilterError),
        ({"after_commit": True}, FilterError),
        ({"since": "1h", "limit": -1}, ValueError),
        ({"since": "1h", "offset": -1}, ValueError),
    ],
)
def test_what_is_no_time_is_refused(memory: Memory, options: dict[str, Any], error: type[Exception]) -> None:
    memory.add(["a"], ids=["a"])
    with pytest.raises(error):
        memory.changes(**options)


def test_a_bank_from_before_knows_dates_and_later_commits(memory: Memory, time: Clock) -> None:
    memory.add(["a", "b"], ids=["a", "b"])
    commit = memory.changes(after_commit=0).commit
    with memory.bank.catalog.transaction():
        for table in ("moments", "deletions"):
            memory.bank.catalog.execute(f"DROP TABLE {table}")
    assert kinds(memory, "1h") == kinds(memory, after_commit=0) == {"a": "added", "b": "added"}
    assert kinds(memory, after_commit=commit) == {}
    time.tick(minutes=1)
    memory.delete("a")
    assert kinds(memory, after_commit=commit) == {"a": "deleted"}
    with pytest.raises(FilterError, match="give a date"):
        memory.changes(after_commit=1)
    assert isinstance(memory.bank.catalog, Database)


# About ----------------------------------------------------------------------------------------------------------------


def about(memory: Memory, name: str, **options: Any) -> list[str]:
    return [one.external_id for one in memory.about(name, **options)]


@pytest.fixture
def people(memory: Memory) -> Memory:
    memory.add(
        [
            Document("old", "Ilse Brouwers leads the firmware group.", date="2020-05-01"),
            Document(
                "new", "The budget went to ilse brouwers's group.", metadata={"kind": "minutes"}, date="2025-01-10"
            ),
            Document("title", "She moved to Ghent.", title="Ilse Brouwers", date="2024-01-01T10:00:00+09:00"),
            Document("half", "Ilse Mertens repairs cellos.", date="2025-02-01"),
            Document("hague", "The Hague is by the sea.", date="2023-01-01"),
            Document("kyoto", "京都で会議がありました。", date="2023-02-01"),
            Document("accent", "Zoë Müller plays go.", date="2023-03-01"),
            Document("undated", "Brouwers, Ilse: on leave."),
        ]
    )
    return memory


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Ilse Brouwers", ["undated", "new", "title", "old"]),
        ("brouwers", ["undated", "new", "title", "old"]),
        ("ILSE", ["undated", "half", "new", "title", "old"]),
        ("The Hague", ["hague"]),
        ("京都", ["kyoto"]),
        ("Zoe Muller", ["accent"]),
        ("Ilse Nobody", []),
        ('"; DROP TABLE sources', []),
        ("??", []),
    ],
)
def test_all_that_names_somebody_by_time(people: Memory, name: str, expected: list[str]) -> None:
    assert about(people, name) == expected


def test_about_is_scoped_and_cut(people: Memory, time: Clock) -> None:
    assert about(people, "Ilse", limit=2) + about(people, "Ilse", limit=9, offset=2) == about(people, "Ilse")
    assert about(people, "Ilse", where={"kind": "minutes"}) == ["new"]
    assert about(people, "Ilse", as_of="2024-06-01") == ["title", "old"]
    assert about(people.in_namespace("other"), "Ilse") == []
    time.tick(minutes=1)
    before = time.now.isoformat()
    time.tick(minutes=1)
    people.add([Document("old", "Somebody else leads it.", date="2020-05-01")])
    people.delete("half")
    assert about(people, "Ilse") == ["undated", "new", "title"]
    assert about(people, "Ilse", known_at=before) == ["undated", "new", "title", "old"]


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("", {}, QuestionError),
        (" \n", {}, QuestionError),
        ("\ud800", {}, QuestionError),
        ("Ilse", {"limit": -1}, ValueError),
        ("Nobody", {"where": {"nowhere": 1}}, FilterError),
        ("Ilse", {"as_of": "then"}, FilterError),
    ],
)
def test_about_refuses(people: Memory, name: str, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        people.about(name, **options)


# Exchanges ------------------------------------------------------------------------------------------------------------

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "name": "Ann", "content": "Who leads firmware?", "date": "2026-02-01T10:00:00+01:00"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]},
    {"role": "tool", "content": "Ilse"},
    {"role": "assistant", "content": "Ilse does."},
    {"role": "user", "name": "Ann", "content": "Thanks."},
]


def test_an_exchange_is_one_document_with_who_when_and_session(memory: Memory, time: Clock) -> None:
    report = memory.remember(TALK, session="chat 1", date="2026-02-02")
    first, second = memory.list()
    assert report.added == 2
    assert first.text == "Ann: Who leads firmware?\nassistant: Called look({})\ntool: Ilse\nassistant: Ilse does."
    assert first.metadata == {"speaker": "Ann", "participants": ["Ann", "assistant", "tool"], "session": "chat 1"}
    assert (first.date, second.text, second.date) == ("2026-02-01T10:00:00+01:00", "Ann: Thanks.", "2026-02-02")
    assert second.metadata == {"speaker": "Ann", "session": "chat 1"}
    assert memory.list(where={"session": "chat 1", "participants": {"contains": "tool"}}) == [first]


def test_what_is_told_again_with_its_date_is_remembered_once(memory: Memory) -> None:
    memory.remember(TALK, session="s", date="2026-02-02")
    longer = [*TALK, {"role": "assistant", "content": "Welcome."}, {"role": "user", "content": "Bye."}]
    assert memory.remember(TALK, session="s", date="2026-02-02").unchanged == 2
    assert memory.remember(longer, session="s", date="2026-02-02").added == 2
    assert memory.remember(TALK, session="t", date="2026-02-02").added == 2


def test_the_same_words_twice_in_one_conversation_are_two(memory: Memory) -> None:
    again = [{"role": "user", "content": "yes"}] * 3
    assert memory.remember(again, date="2026-02-02").added == 3
    assert memory.remember(again, date="2026-02-02").unchanged == 3 and len(memory) == 3


def test_one_turn_is_what_a_message_of_it_is(memory: Memory) -> None:
    memory.remember("I moved.", speaker="Ann", session="s", date="2026-02-01")
    message = {"role": "user", "name": "Ann", "content": "I moved."}
    assert memory.remember([message], session="s", date="2026-02-01").unchanged == 1


@pytest.mark.parametrize(
    ("messages", "options", "error"),
    [
        ([], {}, ValueError),
        ([{"role": "system", "content": "x"}], {}, ValueError),
        ([{"role": "user", "content": "x"}, "y"], {}, ValueError),
        ({"role": "user", "content": "x"}, {}, ValueError),
        ([{"role": "user", "content": "x"}], {"date": "soon"}, ValueError),
        ([{"role": "user", "content": "x"}], {"speaker": "Ann"}, TypeError),
        ([{"role": "user", "content": "\ud800"}], {}, ValueError),
    ],
)
def test_what_cannot_be_remembered_is_refused_whole(
    memory: Memory, messages: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        memory.remember(messages, **options)
    assert len(memory) == 0
