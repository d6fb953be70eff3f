"""What time it is: one function, so that a test can say it."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> datetime:
    """Now, in UTC, without its zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def moment() -> str:
    """Now, as the bank stores moments: ISO 8601 to the microsecond."""
    return now().isoformat(timespec="microseconds")
