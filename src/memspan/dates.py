"""Dates in one form, and their order."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

_YEAR_OR_MONTH = re.compile(r"\d{4}(-\d{2})?")
_WEEK = re.compile(r"\d{4}-?W\d{2}")


def normal_date(text: str) -> str:
    """An ISO 8601 date of its own precision: a year, a month, a day, or a time.

    `2026`, `2026-03` and `2026-03-01` stay what they are. A time keeps its zone, `2026-03-01T00:30:00+09:00`; in UTC it
    is written without one, and a time without a zone is taken to be UTC. `date_key` puts such dates in order.

    Raises:
        ValueError: it is none of them. A week is one of its days only with the day's number.
    """
    if not isinstance(text, str):
        raise ValueError(f"a date is a text as 2026-03-01 or 2026-03-01T10:00:00+02:00, not {text!r}")
    try:
        if _YEAR_OR_MONTH.fullmatch(text):
            return date.fromisoformat(f"{text}-01-01"[: len("2026-03-01")]).isoformat()[: len(text)]
        if _WEEK.fullmatch(text) or (text.isdigit() and len(text) > len("20260301")):
            raise ValueError("a week, or digits in which any one may stand between day and time")
        if len(text) <= len("2026-W09-7"):
            return date.fromisoformat(text).isoformat()
        moment = datetime.fromisoformat(text)
        in_utc = (moment.astimezone(UTC) if moment.tzinfo else moment).replace(tzinfo=None)
        offset = moment.utcoffset()
        # A zone with seconds, as before 1900, is one that no other program reads.
        has_zone = offset is not None and offset and not offset % timedelta(minutes=1)
        return (moment if has_zone else in_utc).isoformat()
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text!r} is not a date; write it as 2026-03-01 or 2026-03-01T10:00:00+02:00") from error


def date_key(date: str) -> str:
    """A text that sorts as a date of `normal_date` does: a moment in UTC; a year, a month or a day as it is."""
    moment = datetime.fromisoformat(date) if len(date) > len("2026-03-01") else None
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat() if moment and moment.tzinfo else date
