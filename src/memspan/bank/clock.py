"""What time it is, and how long things last. Time is asked for here alone, so that a test can say it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from memspan.dates import date_key, normal_date
from memspan.types import NEVER

END_OF_TIME = "9999-12-31T23:59:59"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def now() -> datetime:
    """Now, in UTC, without its zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def moment() -> str:
    """Now, as the bank stores moments: ISO 8601 to the microsecond."""
    return now().isoformat(timespec="microseconds")


def distinct_moment(last: str) -> str:
    """Now, or, where a clock is so coarse that `last` was no earlier, just after that."""
    present, step = moment(), timedelta(microseconds=1)
    late = datetime.fromisoformat(last) - datetime.fromisoformat(present) if last else -step
    return (
        present
        if not timedelta() <= late < timedelta(seconds=1)
        else (datetime.fromisoformat(last) + step).isoformat(timespec="microseconds")
    )


def moment_after(duration: str | timedelta) -> str:
    """The moment that follows now by a duration, to the second. Errors as in `parse_duration`."""
    try:
        return (now() + parse_duration(duration)).isoformat(timespec="seconds")
    except OverflowError as error:
        raise ValueError(f"the duration {duration!r} ends after the year 9999") from error


def expiry_of(expires: str | None, ttl: str | timedelta | None) -> str | None:
    """When something expires, from one of the two ways to say it; None if neither is given.

    Raises:
        ValueError: both are given; the moment or duration is none; the moment is past.
    """
    if expires is not None and ttl is not None:
        raise ValueError("give an expiry or a time to live, not both")
    if ttl is not None:
        return moment_after(ttl)
    if expires is None or expires == NEVER:
        return expires
    expiry = date_key(normal_date(expires))
    if expiry <= moment():
        raise ValueError(f"the expiry {expires!r} is past; to forget the document now, delete it")
    return expiry


def moment_before(duration: str | timedelta) -> str:
    """The moment that a duration ago was. Errors as in `parse_duration`."""
    try:
        return (now() - parse_duration(duration, or_none=True)).isoformat(timespec="microseconds")
    except OverflowError as error:
        raise ValueError(f"the duration {duration!r} began before the year 1") from error


def parse_duration(duration: str | timedelta, *, or_none: bool = False) -> timedelta:
    """A duration as people write it: 30d, 12h, 1d12h; of weeks (w), days, hours, minutes (m) and seconds.

    Args:
        or_none: 0 is one, too.

    Raises:
        ValueError: it is none, or not longer than 0.
    """
    found = duration if isinstance(duration, timedelta) else None
    if isinstance(duration, str) and re.fullmatch(r"\s*(\d+\s*[smhdw]\s*)+", duration, re.IGNORECASE | re.ASCII):
        pieces = re.findall(r"(\d+)\s*([smhdw])", duration.lower())
        found = timedelta(seconds=sum(min(int(number), 10**15) * _UNITS[unit] for number, unit in pieces))
    if found is None or found < timedelta() or (not found and not or_none):
        raise ValueError(f"a duration is written as 30d, 12h or 1d12h (w, d, h, m, s), not {duration!r}")
    return found
