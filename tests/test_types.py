"""Documents: what they refuse, when two hold the same, and their dates in one form."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memspan.dates import date_key, normal_date
from memspan.types import JSON, Document, is_unicode

# --- dates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "normal"),
    [
        ("2026-03-01", "2026-03-01"),
        ("20260301", "2026-03-01"),
        ("2026-W09-7", "2026-03-01"),
        ("0001-01-01", "0001-01-01"),
        ("2026-03-01T10:00", "2026-03-01T10:00:00"),
        ("2026-03-01 10:00:00", "2026-03-01T10:00:00"),
        ("2026-03-01T10:00:00.5", "2026-03-01T10:00:00.500000"),
        ("2026", "2026"),
        ("2026-03", "2026-03"),
        ("2026-03-01T10:00+02:00", "2026-03-01T10:00:00+02:00"),
        ("2026-03-01T00:30+09:00", "2026-03-01T00:30:00+09:00"),
        ("2026-12-31T23:30:00.25-01:00", "2026-12-31T23:30:00.250000-01:00"),
        ("2026-03-01T10:00:00Z", "2026-03-01T10:00:00"),
        ("2026-03-01T10:00:00+00:00", "2026-03-01T10:00:00"),
        ("1890-03-01T10:00:00+00:53:28", "1890-03-01T09:06:32"),
    ],
)
def test_a_date_keeps_its_precision_and_its_zone(given_: str, normal: str) -> None:
    assert normal_date(given_) == normal
    assert normal_date(normal) == normal
    assert Document("a", "text", date=given_) == Document("a", "text", date=normal)


@pytest.mark.parametrize(
    "bad",
    [
        *(
            "",
            " ",
            "yesterday",
            "202",
            "2026-13",
            "202603",
            "2026-W09",
            "2026W09",
            "2026-02-29",
            "2026-3-1",
            "01.03.2026",
            "2026-03-01 ",
            "2026-03-01\n",
        ),
        *("2026-03-01T25:00", "2026-03-01T10:00+25:00", "0001-01-01T00:00+01:00", "9999-12-31T23:59-01:00"),
        "١٢٣٤-٠١-٠١",
    ],
)
def test_what_is_no_date_is_refused_with_how_to_write_one(bad: str) -> None:
    with pytest.raises(ValueError, match="is not a date; write it as 2026-03-01 or 2026-03-01T10:00:00"):
        normal_date(bad)
    with pytest.raises(ValueError, match=r"document 'a': .* is not a date"):
        Document("a", "text", date=bad)


ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=ZONES)


@given(MOMENTS, MOMENTS)
@example(datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 1, 0, 0, 0, 1, tzinfo=UTC))
@settings(max_examples=200, derandomize=True)
def test_the_keys_of_dates_sort_as_the_moments_do(one: datetime, other: datetime) -> None:
    dates = normal_date(one.isoformat()), normal_date(other.isoformat())
    first, second = map(date_key, dates)
    assert (first < second, first == second) == (one < other, one == other)
    # A day sorts before all of its own moments, and behind those of the day before.
    day = first[:10]
    assert day < first and ((second < day) == (second[:10] < day))


@given(st.text(max_size=30) | st.from_regex(r"\d{4}-?\d\d-?\d\d([T ]\d\d:\d\d([+-]\d\d:\d\d|Z)?)?", fullmatch=True))
@settings(max_examples=300, derandomize=True)
def test_any_text_is_a_date_in_normal_form_or_refused(text: str) -> None:
    try:
        normal = normal_date(text)
    except ValueError as error:
        assert "is not a date" in str(error)
        return
    assert normal_date(normal) == normal
    assert normal[:10] == f"{normal}-01-01"[: max(10, len(normal))][:10]
    assert date_key(normal) == date_key(date_key(normal))


# --- documents ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"external_id": ""}, "needs an external_id"),
        ({"text": ""}, "document 'a' has no text"),
        ({"text": " \n\t"}, "document 'a' has no text"),
        ({"text": "a\0b"}, "document 'a' holds NUL characters or lone surrogates"),
        ({"title": "\ud800"}, "document 'a' holds NUL"),
        ({"external_id": "b\0"}, "holds NUL"),
        ({"metadata": {"p": float("nan")}}, "the metadata of document 'a' are not JSON"),
        ({"metadata": {"p": [{"q": float("inf")}]}}, "the metadata of document 'a' are not JSON"),
        ({"metadata": {"p": {1, 2}}}, "the metadata of document 'a' are not JSON"),
        ({"metadata": {"p": ["\0"]}}, "the metadata of document 'a' hold NUL characters"),
        ({"metadata": {"\0": 1}}, "the metadata of document 'a' hold NUL characters"),
        (
            {"metadata": {"p": json.loads("[" * 101 + "]" * 101)}},
            "the metadata of document 'a' are nested more than 100",
        ),
        ({"metadata": {"p": "\ud800"}}, "the metadata of document 'a' hold NUL characters or lone surrogates"),
    ],
)
def test_what_can_be_no_document_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Document(**({"external_id": "a", "text": "text"} | values))


CHANGES: dict[str, Any] = {"text": "other", "title": "other", "metadata": {"p": 2}, "date": "2026-03-02"}


@pytest.mark.parametrize("name", CHANGES)
def test_a_content_hash_covers_every_field_and_a_text_hash_what_is_encoded(name: str) -> None:
    document = Document("a", "text", "title", {"p": 1}, "2026-03-01")
    changed = dataclasses.replace(document, **{name: CHANGES[name]})
    assert changed.content_hash != document.content_hash
    assert (changed.text_hash != document.text_hash) == (name in ("text", "title"))
    renamed = dataclasses.replace(document, external_id="b")
    assert (renamed.content_hash, renamed.text_hash) == (document.content_hash, document.text_hash)


def test_hashes_are_of_what_is_meant_not_of_how_it_is_written() -> None:
    one = Document("a", "text", metadata={"p": 1, "q": 2}, date="2026-03-01T08:00Z")
    other = Document("a", "text", metadata={"q": 2, "p": 1}, date="2026-03-01T08:00:00")
    assert one.content_hash == other.content_hash
    assert Document("a", "b", "c").text_hash != Document("a", "c", "b").text_hash
    assert Document("a", "bc", "a").text_hash != Document("a", "c", "ab").text_hash
    assert Document("a", "text").content_hash != Document("a", "text", date="2026-03-01").content_hash
    values: list[JSON] = [None, True, 1, "1", [1], {"p": 1}, []]
    assert len({Document("a", "text", metadata={"p": value}).content_hash for value in values}) == len(values)


@given(st.text(max_size=5))
def test_unicode_is_what_can_be_written_as_utf8(text: str) -> None:
    assert is_unicode(text) == (not any("\ud800" <= char <= "\udfff" for char in text))
    assert not is_unicode(text + "\ud800")
