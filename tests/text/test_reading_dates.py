"""Dates as people and programs write them: read where they mean one thing, named where they do not, never guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import document, found

from memspan.dates import normal_date
from memspan.text.dates import find_date, read_date
from memspan.types import Document, Skipped

READ: list[tuple[Any, str]] = [
    # ISO 8601 of every precision
    ("2024", "2024"),
    (2024, "2024"),
    ("2024-03", "2024-03"),
    ("2024-03-01", "2024-03-01"),
    ("20240301", "2024-03-01"),
    (20240301, "2024-03-01"),
    ("2024-W09-5", "2024-03-01"),
    ("2024-03-01T10:00", "2024-03-01T10:00:00"),
    ("2024-03-01 10:00:00.5", "2024-03-01T10:00:00.500000"),
    ("2024-03-01T10:00:00Z", "2024-03-01T10:00:00"),
    ("2026-03-01T00:30+09:00", "2026-03-01T00:30:00+09:00"),
    ("2024-03-01 10:00:00 +0900", "2024-03-01T10:00:00+09:00"),
    ("2024-03-01 10:00:00.25 -03:30", "2024-03-01T10:00:00.250000-03:30"),
    ("2024-03-01 10:00:00 UTC", "2024-03-01T10:00:00"),
    ("2024-03-01 9:05", "2024-03-01T09:05:00"),
    ("  2024-03-01\n", "2024-03-01"),
    # the year first, with other separators
    ("2024/03/01", "2024-03-01"),
    ("2024/3/1 10:00", "2024-03-01T10:00:00"),
    ("2024.3.1", "2024-03-01"),
    ("2024年3月1日", "2024-03-01"),
    # the year last, where that is clear
    ("31.12.2024", "2024-12-31"),
    ("12/31/2024", "2024-12-31"),
    ("31/12/2024 23:59", "2024-12-31T23:59:00"),
    ("03/03/2024", "2024-03-03"),
    ("3-13-2024", "2024-03-13"),
    # months by name
    ("1 March 2024", "2024-03-01"),
    ("1st Mar 2024", "2024-03-01"),
    ("1-Mar-2024", "2024-03-01"),
    ("March 1, 2024", "2024-03-01"),
    ("Friday, March 1st, 2024", "2024-03-01"),
    ("Sept 2024", "2024-09"),
    ("MAY 2024", "2024-05"),
    # mail and the C library
    ("Fri, 01 Mar 2024 10:00:00 +0900", "2024-03-01T10:00:00+09:00"),
    ("Fri, 1 Mar 2024 10:00:00 GMT", "2024-03-01T10:00:00"),
    ("1 Mar 2024 10:00:00 -0000", "2024-03-01T10:00:00"),
    ("1 Mar 2024 10:00 EST", "2024-03-01T10:00:00-05:00"),
    ("Fri, 01 Mar 2024 10:00:00 +0000 (UTC)", "2024-03-01T10:00:00"),
    ("Fri Mar  1 10:00:00 2024", "2024-03-01T10:00:00"),
    ("Fri Mar 1 10:00:00 2024 +0900", "2024-03-01T10:00:00+09:00"),
    # time since 1970
    (1709251200, "2024-03-01T00:00:00"),
    (1709251200.5, "2024-03-01T00:00:00.500000"),
    ("1709251200", "2024-03-01T00:00:00"),
    ("1709251200.000100", "2024-03-01T00:00:00.000100"),
    (1709251200123, "2024-03-01T00:00:00.123000"),
    ("1709251200123", "2024-03-01T00:00:00.123000"),
    (1709251200123456, "2024-03-01T00:00:00.123456"),
    (1709251200123456789, "2024-03-01T00:00:00.123456"),
]

REFUSED: list[Any] = [
    *("03/04/2024", "4.3.2024", "1-2-2024 10:00"),  # of two meanings
    *("soon", "today", "now", "yesterday", "Monday", "10:00", "March", "12", "May 5", "marching 2024", "mar"),
    *("2024-W09", "2024-13", "2024-02-30", "20241301", "202403", "2024-060", "13/13/2024", "03.04.24", "0000"),
    *("1 mars 2024", "1 Mar 2024 10:00 CET", "2024-03-01 10:00 PM", "Fri, 99 Mar 2024 10:00:00 GMT"),
    *(0, 42, -1709251200, 10**30, 1e300, float("nan"), float("inf")),
    *(True, None, [], {}, ["2024-03-01"], {"$date": 1}, ""),
    *("9999-12-31T23:59:59-01:00", "2024-03-01T25:00", "1" * 5000, "2024-03-01 and more"),
]


@pytest.mark.parametrize(("written", "date"), READ, ids=lambda value: str(value)[:40])
def test_dates_that_mean_one_thing_are_read(written: Any, date: str) -> None:
    assert read_date(written) == date
    assert normal_date(date) == date
    assert read_date(date) == date


@pytest.mark.parametrize("written", REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_no_date_or_may_be_two_is_refused_with_how_to_write_it(written: Any) -> None:
    with pytest.raises(ValueError, match="write it as"):
        read_date(written)


@given(st.text(max_size=40) | st.integers() | st.floats() | st.from_regex(r"[\d./:T +-]{4,30}", fullmatch=True))
@settings(max_examples=300, derandomize=True)
def test_anything_is_a_normal_date_or_refused(value: Any) -> None:
    try:
        date = read_date(value)
    except ValueError:
        return
    assert normal_date(date) == date


@pytest.mark.parametrize(
    ("values", "key", "date"),
    [
        ({"date": "2024-03-01", "created_at": "2023"}, "date", "2024-03-01"),
        ({"updated": "2025", "created": "2024"}, "created", "2024"),
        ({"modified": "2025", "timestamp": 1709251200}, "timestamp", "2024-03-01T00:00:00"),
        ({"updated_at": "2025", "published": "2024-05"}, "published", "2024-05"),
        ({"Created At": "2024"}, "Created At", "2024"),
        ({"createdAt": "2024"}, "createdAt", "2024"),
        ({"DATE": "2024", "Date": "2023", "date": "2022"}, "date", "2022"),
        ({"date": "", "timestamp": None, "created": "2024"}, "created", "2024"),
        ({"published": True, "updated": "2024"}, "updated", "2024"),
        ({"dated": "2024", "number": 1709251200, "year": 2024}, None, None),
        ({}, None, None),
    ],
)
def test_the_first_key_of_dates_that_is_filled_counts(
    values: dict[str, Any], key: str | None, date: str | None
) -> None:
    assert find_date(values) == (key, date, "")


def test_a_date_that_cannot_be_read_hides_no_other_and_is_named() -> None:
    key, date, problem = find_date({"date": "soon", "created": "2024"})
    assert (key, date) == ("date", None)
    assert problem.startswith("kept without its date: under 'date' 'soon'")


RECORD = {"id": "x", "text": "A"}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
@pytest.mark.parametrize("key", ["date", "timestamp", "created_at", "updated"])
def test_records_are_dated_by_their_keys_and_keep_those_that_say_more(tmp_path: Path, suffix: str, key: str) -> None:
    record = {**RECORD, key: "2024-03"}
    text = "\n".join(map(",".join, (record, record.values()))) if suffix == ".csv" else json.dumps(record)
    one = document(tmp_path / f"2020-01-01{suffix}", text)
    assert one.date == "2024-03"
    assert one.metadata.get(key) == (None if key == "date" else "2024-03")


@pytest.mark.parametrize("value", ['"03/04/2024"', '"soon"', "12", '{"a": 1}', "[1]"])
def test_a_record_of_an_unreadable_date_is_kept_without_one_and_named(tmp_path: Path, value: str) -> None:
    line = f'{{"id": "x", "text": "A", "created": {value}}}'
    one, skipped = found(tmp_path / "2020-01-01.jsonl", f"{line}\n")
    assert isinstance(one, Document) and one.date is None, "neither the file's date nor today"
    assert one.metadata["created"] == json.loads(value), "what was written is kept"
    assert isinstance(skipped, Skipped) and skipped.source.endswith("2020-01-01.jsonl#1")
    assert "'created'" in skipped.reason and "without its date" in skipped.reason


@pytest.mark.parametrize(
    ("line", "date"),
    [
        ("Date: 1 March 2024", "2024-03-01"),
        ("**Date:** 2024-03-01T10:00+02:00", "2024-03-01T10:00:00+02:00"),
        ("date: Fri, 01 Mar 2024 10:00:00 +0900", "2024-03-01T10:00:00+09:00"),
        ("Date: 2024-03\r", "2024-03"),
        ("Date: see below", None),
        ("Dates: 2024-03-01", None),
    ],
)
def test_a_line_of_a_text_dates_it(tmp_path: Path, line: str, date: str | None) -> None:
    assert document(tmp_path / "a.txt", f"Heading\n\n{line}\nText").date == date


def test_a_line_whose_date_may_be_two_is_named(tmp_path: Path) -> None:
    one, skipped = found(tmp_path / "2020-01-01.txt", "Date: 03/04/2024\nText")
    assert isinstance(one, Document) and one.date is None
    assert isinstance(skipped, Skipped) and "'03/04/2024' may mean two days" in skipped.reason
