"""Dates as people and programs write them. What is not certain is an error: nothing is guessed, or filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from email.utils import parsedate_tz

from memspan.dates import normal_date
from memspan.text.readers.formats import find_key
from memspan.types import JSON

DATE_KEYS = (
    "date",
    "datetime",
    "timestamp",
    "published",
    "published_at",
    "published_time",
    "created",
    "created_at",
    "created_time",
    "updated",
    "updated_at",
    "updated_time",
    "modified",
    "modified_at",
    "modified_time",
)
"""Where a record keeps its date: under the first of these keys that it fills. Case and `_` do not matter."""

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_FULL_MONTHS = "january february march april may june july august september october november december"
_WEEKDAY = r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+)?"
_YEAR_FIRST = re.compile(r"(?P<y>\d{4})[-/.年]\s?(?P<m>\d{1,2})[-/.月]\s?(?P<d>\d{1,2})日?(?P<rest>\D.*)?")
_YEAR_LAST = re.compile(r"(?P<a>\d{1,2})[-/.](?P<b>\d{1,2})[-/.](?P<y>\d{4})(?P<rest>\D.*)?")
_BY_NAME = (
    re.compile(_WEEKDAY + r"(?P<d>\d{1,2})(?:st|nd|rd|th|\.)?[\s-]+(?P<m>[a-z]{3,9})\.?,?[\s-]+(?P<y>\d{4})", re.I),
    re.compile(_WEEKDAY + r"(?P<m>[a-z]{3,9})\.?\s+(?P<d>\d{1,2})(?:st|nd|rd|th)?,?\s+(?P<y>\d{4})", re.I),
    re.compile(r"(?P<m>[a-z]{3,9})\.?,?[\s-]+(?P<y>\d{4})", re.I),
)
_WITH_TIME = re.compile(
    _WEEKDAY + r"[\w,.\s-]*\d{1,2}:\d{2}(?::\d{2})?(?P<before>\s+\d{4})?(?:\s+(?P<zone>[+-]\d{4}|[a-z]+))?"
    r"(?:\s+\d{4})?(?:\s*\([^()]*\))?",
    re.I,
)
_CLOCK = re.compile(r"(?P<time>\d[\d:.,]*)\s*(?P<zone>Z|UTC|GMT|[+-]\d{2}:?\d{2})?", re.I)

_ZONES = ["UT", "UTC", "GMT", "Z", "EST", "EDT", "CST", "CDT", "MST", "MDT", "PST", "PDT"]

_NUMBER = re.compile(r"\d{4,20}(\.\d{1,9})?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SMALLEST_EPOCH = 10**8
"""Seconds, in 1973: fewer are hardly a time. A thousand times as many are milliseconds, and so on up to nanoseconds."""


def read_date(value: JSON) -> str:
    """A date as `memspan.dates.normal_date` has it, from any form that can mean one thing only.

    These are ISO 8601 (also `2024`, `2024-03`, `2024-W09-5`), year first with other separators, day and month in
    figures where one of them is above 12, English names of months, RFC 2822, and epoch seconds, milliseconds,
    microseconds or nanoseconds as a number or as digits.

    Raises:
        ValueError: it is none of these, or may mean two days.
    """
    text = str(value).strip()
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _unreadable(value)
    is_number = _NUMBER.fullmatch(text) and len(text) != len("2024")
    for read in (_of_number,) if is_number else (normal_date, _of_figures, _of_names, _of_mail):
        try:
            return read(text)
        except _Ambiguous:
            raise
        except (ValueError, OverflowError):
            continue
    raise _unreadable(value)


def find_date(values: Mapping[str, JSON]) -> tuple[str | None, str | None, str]:
    """The key of a record's date, the date, and what is wrong with it: that key's value cannot be read.

    The first of `DATE_KEYS` that is filled counts. Flags (`published: true`) fill nothing.
    """
    key = find_key(values, DATE_KEYS, _is_filled)
    if key is None:
        return None, None, ""
    try:
        return key, read_date(values[key]), ""
    except ValueError as error:
        return key, None, f"kept without its date: under {key!r} {error}"


def _is_filled(value: JSON) -> bool:
    return value is not None and not isinstance(value, bool) and value not in ("", [], {}) and bool(str(value).strip())


def _of_number(text: str) -> str:
    """Digits: a day without separators, or the time since 1970 in a unit that its size tells."""
    if len(text) == len("20240301") and "19" <= text[:2] <= "20":
        return date.fromisoformat(text).isoformat()
    whole, _, fraction = text.partition(".")
    for digits in (0, 3, 6, 9):
        if _SMALLEST_EPOCH <= int(whole) // 10**digits < 1000 * _SMALLEST_EPOCH:
            micros = int(whole) * 10**6 // 10**digits + (
                int(fraction.ljust(6, "0")[:6]) if fraction and not digits else 0
            )
            return normal_date((_EPOCH + timedelta(microseconds=micros)).isoformat())
    raise _unreadable(text)


def _of_figures(text: str) -> str:
    """`2024/3/1`, `2024-03-01 10:00 UTC`, `31.12.2024`; not `03/04/2024`."""
    match = _YEAR_FIRST.fullmatch(text)
    if match:
        return _with_time(int(match["y"]), int(match["m"]), int(match["d"]), match["rest"])
    match = _YEAR_LAST.fullmatch(text)
    if not match:
        raise _unreadable(text)
    a, b = int(match["a"]), int(match["b"])
    if a != b and max(a, b) <= 12:
        raise _Ambiguous(f"{text!r} may mean two days; write it as 2026-03-01")
    return _with_time(int(match["y"]), min(a, b), max(a, b), match["rest"])


def _with_time(year: int, month: int, day: int, rest: str | None) -> str:
    text = date(year, month, day).isoformat()
    time = (rest or "").strip(" T,")
    if not time:
        return text
    match = _CLOCK.fullmatch(time)
    if not match:
        raise _unreadable(time)
    zone = (match["zone"] or "").upper().replace("UTC", "Z").replace("GMT", "Z")
    clock = match["time"].strip()
    return normal_date(f"{text}T{clock.zfill(5) if len(clock) < 5 else clock}{zone}")


def _of_names(text: str) -> str:
    """`1 March 2024`, `March 1st, 2024`, `Mar 2024`."""
    for pattern in _BY_NAME:
        match = pattern.fullmatch(text)
        if match:
            name = match["m"].lower()
            if re.search(rf"\b{name}", _FULL_MONTHS):
                day, month = match.groupdict().get("d"), f"{match['y']}-{_MONTHS.index(name[:3]) + 1:02}"
                return normal_date(f"{month}-{int(day):02}" if day else month)
    raise _unreadable(text)


def _of_mail(text: str) -> str:
    """RFC 2822, and what the C function `ctime` writes. Of zones with names, UTC and those of the RFC are known."""
    match = _WITH_TIME.fullmatch(text)
    parsed = parsedate_tz(text) if match else None
    if match is None or parsed is None or not re.search(r"\b\d{4}\b", text):
        raise _unreadable(text)
    zone = (match["zone"] or "").upper()
    if zone.isalpha() and zone not in _ZONES:
        raise _Ambiguous(f"{text!r} is in the zone {zone}, which may be one of several; write it as +01:00")
    return normal_date(datetime(*parsed[:6], tzinfo=timezone(timedelta(seconds=parsed[9] or 0))).isoformat())


class _Ambiguous(ValueError):
    pass


def _unreadable(value: JSON) -> ValueError:
    return ValueError(
        f"{str(value)[:80]!r} is not a date that can be read; write it as 2026-03-01 or 2026-03-01T10:00+02:00"
    )
