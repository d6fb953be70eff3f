"""Dates in SQL: compared as they are written, in whatever precision and zone."""

from __future__ import annotations

_DAY_LENGTH = len("2026-03-01")


def compared(date: str, operator: str, bound: str, key: str, *, is_whole_second: bool = False) -> str:
    """SQL that compares a date with a bound to the precision of the coarser one; two moments by when they were.

    Args:
        date: SQL for a date as `memspan.dates.normal_date` writes it.
        bound: SQL for `key`, a date of `memspan.dates.date_key`; it may stand in the result several times.
        is_whole_second: a bound without a fraction of a second is all of that second.
    """
    to_same = f"substr({date}, 1, length({bound})) {operator} substr({bound}, 1, length({date}))"
    if len(key) <= _DAY_LENGTH:
        return to_same
    moment = _in_utc(date)
    if is_whole_second and "." not in key:
        moment = f"substr({moment}, 1, {len(key)})"
    return f"CASE WHEN length({date}) <= {_DAY_LENGTH} THEN {to_same} ELSE {moment} {operator} {bound} END"


def _in_utc(date: str) -> str:
    """SQL for `date_key` of a moment."""
    to_second = f"strftime('%Y-%m-%dT%H:%M:%S', substr({date}, 1, 19) || substr({date}, -6))"
    has_zone = f"{date} GLOB '*[+-][0-9][0-9]:[0-9][0-9]'"
    return f"CASE WHEN {has_zone} THEN {to_second} || substr({date}, 20, length({date}) - 25) ELSE {date} END"
