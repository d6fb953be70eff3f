"""Durations and moments as people write them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from memspan.bank import clock

NOW = datetime(2026, 2, 28, 23, 0, 0, 5)


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now", lambda: NOW)


@pytest.mark.parametrize(
    ("duration", "moment"),
    [
        ("1s", "2026-02-28T23:00:01"),
        ("90m", "2026-03-01T00:30:00"),
        ("1h", "2026-03-01T00:00:00"),
        ("1d", "2026-03-01T23:00:00"),
        ("2W", "2026-03-14T23:00:00"),
        (" 1d 12 h ", "2026-03-02T11:00:00"),
        ("1h1h", "2026-03-01T01:00:00"),
        ("0d1s", "2026-02-28T23:00:01"),
        (timedelta(days=365), "2027-02-28T23:00:00"),
    ],
)
def test_a_duration_ends_at_a_moment(duration: str | timedelta, moment: str) -> None:
    assert clock.moment_after(duration) == moment
    assert clock.expiry_of(None, duration) == moment


@pytest.mark.parametrize(
    "duration",
    [
        "",
        " ",
        "d",
        "1",
        "1x",
        "-1d",
        "1.5d",
        "1d,",
        "d1",
        "1d -1h",
        "P30D",
        "\u0661d",
        "0s",
        timedelta(),
        timedelta(-1),
        1,
        None,
    ],
)
def test_what_is_no_duration_is_refused(duration: Any) -> None:
    with pytest.raises(ValueError, match="a duration is written as 30d"):
        clock.moment_after(duration)


@pytest.mark.parametrize("duration", ["5000000w", "9" * 400 + "s", timedelta.max])
def test_a_duration_that_ends_after_all_time_is_refused(duration: str | timedelta) -> None:
    for moment in (clock.moment_after, clock.moment_before):
        with pytest.raises(ValueError, match="the duration"):
            moment(duration)


def test_a_moment_before_may_be_now() -> None:
    assert clock.moment_before("0d") == "2026-02-28T23:00:00.000005"
    assert clock.moment_before("1d") == "2026-02-27T23:00:00.000005"


@pytest.mark.parametrize(
    ("expires", "expected"),
    [
        (None, None),
        ("never", "never"),
        ("2026-03-01", "2026-03-01"),
        ("2026-03-01T00:00+02:00", None),
        ("2026-02-28", None),
        ("2026-02-28T23:00:00", None),
        ("2026-02-28T23:00:01", "2026-02-28T23:00:01"),
        ("Never", None),
        ("", None),
    ],
)
def test_an_expiry_lies_ahead(expires: str | None, expected: str | None) -> None:
    if expires is None or expected is not None:
        assert clock.expiry_of(expires, None) == expected
    else:
        with pytest.raises(ValueError):
            clock.expiry_of(expires, None)
