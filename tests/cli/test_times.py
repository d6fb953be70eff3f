"""Commands over time: update, former versions, expiry."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from command import failed, memspan

from memspan.bank import clock
from memspan.bank.bank import MemoryBank

OTTER = "notes/otter.txt"
pytestmark = pytest.mark.usefixtures("no_model")


def _metadata(bank: Path, *options: str) -> dict:
    (found,) = (one for one in memspan("ls", bank, "--json", *options).json if one["external_id"] == OTTER)
    found["metadata"].pop("path", None)
    return found["metadata"]


def _names(bank: Path, *options: str) -> list[str]:
    return [one["external_id"] for one in memspan("ls", bank, "--json", *options).json]


@pytest.mark.parametrize(
    ("options", "after"),
    [
        (["--set", "a=1"], {"a": 1, "b": {"x": 1, "y": 2}}),
        (["--unset", "a"], {"b": {"x": 1, "y": 2}}),
        (["--unset", "a", "--unset", "b"], {}),
        (["--set", "a=null"], {"b": {"x": 1, "y": 2}}),
        (["--set", 'b={"x": null}'], {"a": "old", "b": {"y": 2}}),
        (["--set", "c=text", "--unset", "a"], {"b": {"x": 1, "y": 2}, "c": "text"}),
        (["--unset", "none such"], {"a": "old", "b": {"x": 1, "y": 2}}),
    ],
)
def test_fields_are_set_merged_and_removed(bank: Path, options: list[str], after: dict) -> None:
    assert memspan("update", bank, OTTER, "--set", "a=old", "--set", 'b={"x": 1, "y": 2}').code == 0
    assert memspan("update", bank, OTTER, *options).code == 0
    assert _metadata(bank) == after


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to update"),
        (["--set", "a=1", "--unset", "a"], "both set and unset"),
        (["--ttl", "soon"], "--ttl: a duration is written as 30d"),
        (["--ttl", "0d"], "--ttl"),
        (["--ttl", "9999999999w"], "--ttl"),
        (["--expires", "tomorrow"], "--expires: 'tomorrow' is not a date"),
        (["--expires", "2001-01-01"], "is past"),
        (["--expires", "2999-01-01", "--ttl", "1d"], "not both"),
        (["--date", "2026-13-01"], "is not a date"),
    ],
)
def test_a_change_that_is_none_is_refused_by_name(bank: Path, options: list[str], message: str) -> None:
    before = memspan("ls", bank, "--json").out
    assert message in failed("update", bank, OTTER, *options)
    assert memspan("ls", bank, "--json").out == before


def test_an_expiry_is_set_extended_pinned_and_removed(bank: Path, later: list[timedelta]) -> None:
    assert memspan("update", bank, OTTER, "--ttl", "1d12h").code == 0
    later.append(timedelta(days=1, hours=11))
    assert OTTER in _names(bank)
    assert memspan("update", bank, OTTER, "--pin").code == 0
    later.append(timedelta(days=3))
    assert OTTER in _names(bank)
    assert memspan("update", bank, OTTER, "--ttl", "1d", "--unpin").code == 0
    later.append(timedelta(days=5))
    assert OTTER not in _names(bank)
    assert _names(bank, "--expired") == [OTTER]
    assert memspan("info", bank, "--json").json["expired"] == 1
    assert "no document" in failed("update", bank, OTTER, "--expires", "never")
    assert memspan("search", bank, "otter", "--selector", "lexical", "--json").json == []
    assert memspan("export", bank, "-").out.count("\n") == 2
    assert memspan("compact", bank, "--json").json["deleted_documents"] == 1
    assert _names(bank, "--expired") == []
    later.append(timedelta())
    assert OTTER not in _names(bank)


def test_an_expiry_that_is_removed_does_not_come(bank: Path, later: list[timedelta]) -> None:
    assert memspan("update", bank, OTTER, "--ttl", "1d").code == 0
    assert memspan("update", bank, OTTER, "--expires", "never").code == 0
    later.append(timedelta(days=9))
    assert OTTER in _names(bank)


def test_what_was_known_at_a_moment_is_listed_and_searched(bank: Path, later: list[timedelta]) -> None:
    assert memspan("update", bank, OTTER, "--set", "status=open").code == 0
    then = clock.moment()
    later.append(timedelta(days=2))
    assert memspan("update", bank, OTTER, "--set", "status=done").code == 0
    for option in ("--known-at", "--as-of"):
        assert _metadata(bank, option, then) == {"status": "open"}
        found = memspan("search", bank, "otter", "--selector", "lexical", option, then, "--json").json
        assert [one["metadata"]["status"] for one in found] == ["open"]
        assert _names(bank, option, "1999-01-01") == []
    assert _metadata(bank) == {"status": "done"}
    assert memspan("info", bank, "--json").json["versions"] == 2
    assert "known_at" in failed("ls", bank, "--known-at", "yesterday")
    assert "leave --as-of" in failed("ls", bank, "--expired", "--as-of", "2026-01-01")


def test_a_history_is_exported_where_it_is_asked_for(bank: Path, tmp_path: Path) -> None:
    for status in ("open", "done"):
        assert memspan("update", bank, OTTER, "--set", f"status={status}").code == 0
    plain = [json.loads(line) for line in memspan("export", bank, "-").out.splitlines()]
    assert len(plain) == 3
    assert not any({"recorded_at", "superseded_at", "expires", "pinned"} & one.keys() for one in plain)
    assert memspan("export", bank, tmp_path / "all.jsonl", "--history").code == 0
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text("utf-8").splitlines()]
    otters = [one for one in lines if one["external_id"] == OTTER]
    assert [one["metadata"].get("status") for one in otters] == [None, "open", "done"]
    assert [one["superseded_at"] is None for one in otters] == [False, False, True]
    assert len(lines) == 5


def test_a_history_is_not_imported_as_documents(bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert memspan("update", bank, OTTER, "--set", "status=open").code == 0
    with (tmp_path / "all.jsonl").open("w", encoding="utf-8") as file:
        file.write(memspan("export", bank, "-", "--history").out)
    from memspan.bank.lines import read_exported

    with (tmp_path / "all.jsonl").open(encoding="utf-8") as file, pytest.raises(Exception, match="a former version"):
        list(read_exported(file))


@pytest.mark.parametrize("age", ["never", "-1d", "1y", ""])
def test_an_age_of_versions_that_is_none_is_refused(bank: Path, age: str) -> None:
    assert "--forget-versions: a duration" in failed("compact", bank, f"--forget-versions={age}")


def test_versions_are_forgotten_on_request(bank: Path, later: list[timedelta]) -> None:
    assert memspan("update", bank, OTTER, "--set", "status=open").code == 0
    later.append(timedelta(days=20))
    assert memspan("update", bank, OTTER, "--set", "status=done").code == 0
    later.append(timedelta(days=40))
    assert memspan("compact", bank, "--json").json["forgotten_versions"] == 0
    assert memspan("compact", bank, "--forget-versions", "30d", "--json").json["forgotten_versions"] == 1
    assert memspan("compact", bank, "--forget-versions", "1w", "--json").json["forgotten_versions"] == 1


def test_help_names_what_times_mean(bank: Path) -> None:
    for command, words in (("update", ("--unset", "--ttl", "--pin")), ("ls", ("--expired", "--known-at"))):
        text = re.sub(r"\s+", " ", memspan(command, "--help").out)
        assert all(word in text for word in words)


def test_an_update_waits_for_another_writer_for_some_time(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memspan.bank.texts.PATIENCE", 0.2)
    with MemoryBank.open(bank).writer():
        assert "another writer" in failed("update", bank, OTTER, "--set", "a=1")
    assert memspan("update", bank, OTTER, "--set", "a=1").code == 0
    assert datetime.fromisoformat(clock.moment())
