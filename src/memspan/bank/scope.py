"""`Scope`: which documents a question may see, by metadata and date, as a condition in SQL."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memspan.errors import FilterError
from memspan.types import JSON, is_unicode, normal_date

EFFECTIVE_DATE = "coalesce(s.date, s.added_at)"
"""A document's date, or else the time it was added; `s` is the table of sources."""

_COLUMNS = {"external_id": "s.external_id", "title": "s.title"}
_ORDERINGS = ("<", "<=", ">", ">=")
OPERATORS = ("==", "!=", *_ORDERINGS, "in", "not in", "contains", "exists")
_DAY_LENGTH = len("2026-03-01")
_EXPRESSION = re.compile(r"^\s*(?P<field>[^=!<>]+?)\s*(?P<operator>==?|!=|<=|>=|<|>)\s*(?P<value>.*?)\s*$", re.DOTALL)

Condition = tuple[str, tuple[Any, ...]]
"""SQL over `s` (sources), and its values."""


@dataclass(frozen=True, slots=True)
class Scope:
    """A part of a namespace. Build it with `parse`; the empty one is all of it.

    Attributes:
        conditions: all must hold.
        fields: metadata keys that the conditions name.
    """

    conditions: tuple[Condition, ...] = ()
    fields: tuple[str, ...] = ()

    @classmethod
    def parse(cls, where: Mapping[str, Any] | None = None, as_of: str | None = None) -> Scope:
        """Read a filter.

        Args:
            where: per field a value it must equal, or operators with values, as in
                `{"project": "x", "date": {">=": "2026-01-01"}}`. Fields are `date` (a document's date, or the time
                it was added), `external_id`, `title`, and the keys of the metadata. Operators are `==`, `!=`, `<`,
                `<=`, `>`, `>=` (numbers with numbers, texts with texts), `in` and `not in` (a list), `contains` (an
                item of a list, a piece of a text) and `exists` (true or false). A document without the field never
                matches, but for `exists: false`. A day as a bound of `date` is all of that day.
            as_of: only documents dated this day or moment, or before.

        Raises:
            FilterError: malformed; says where.
        """
        if not isinstance(where, Mapping | None):
            raise FilterError(f'a filter is an object as in {{"project": "x"}}, not {where!r}')
        conditions: list[Condition] = []
        fields: list[str] = []
        for field, wanted in (where or {}).items():
            for operator, value in _operators(field, wanted):
                conditions.append(_condition(field, operator, value))
            if field != "date" and field not in _COLUMNS and not _may_be_missing(wanted):
                fields.append(field)
        if as_of is not None:
            conditions.append(_date_condition("<=", as_of))
        return cls(tuple(conditions), tuple(fields))

    def __bool__(self) -> bool:
        return bool(self.conditions)

    @property
    def sql(self) -> str:
        return " AND ".join(f"({condition})" for condition, _ in self.conditions) or "TRUE"

    @property
    def values(self) -> tuple[Any, ...]:
        return tuple(value for _, values in self.conditions for value in values)


EVERYTHING = Scope()


def parse_expressions(expressions: Sequence[str]) -> dict[str, Any]:
    """The filter that expressions like `project=x`, `date>=2026-01-01`, `year<1900` or one JSON object mean.

    Values that read as JSON are JSON (numbers, true, null, "quoted text"); others are text.

    Raises:
        FilterError: not an expression.
    """
    where: dict[str, Any] = {}
    for expression in expressions:
        if expression.lstrip().startswith("{"):
            parsed = _json(expression)
            if not isinstance(parsed, dict):
                raise FilterError(f"the filter {expression!r} is not JSON")
            pairs = [(field, dict(_operators(field, wanted))) for field, wanted in parsed.items()]
        else:
            match = _EXPRESSION.match(expression)
            if not match:
                raise FilterError(f"the filter {expression!r} is not of the form FIELD=VALUE (or !=, <, <=, >, >=)")
            value = match["value"] if match["field"] == "date" else _json(match["value"], match["value"])
            pairs = [(match["field"], {_long_operator(match["operator"]): value})]
        for field, wanted in pairs:
            before = where.setdefault(field, {})
            if before.keys() & wanted.keys():
                raise FilterError(f"the filter has two conditions {', '.join(wanted)} on {field!r}; join them in one")
            before |= wanted
    return where


def _long_operator(operator: str) -> str:
    return "==" if operator == "=" else operator


def _json(text: str, default: JSON = None) -> JSON:
    try:
        return json.loads(text)
    except ValueError:
        return default


def _operators(field: str, wanted: Any) -> list[tuple[str, Any]]:
    if not isinstance(field, str) or not field or '"' in field or "\0" in field:
        raise FilterError(f"a filter's field must be a name without double quotes, not {field!r}")
    if not isinstance(wanted, Mapping):
        return [("==", wanted)]
    if not wanted:
        raise FilterError(f"the filter on {field!r} says nothing; name an operator: {', '.join(OPERATORS)}")
    for operator in wanted:
        if operator not in OPERATORS:
            raise FilterError(
                f"the filter on {field!r} has the operator {operator!r}; known are {', '.join(OPERATORS)}"
            )
    return list(wanted.items())


def _may_be_missing(wanted: Any) -> bool:
    return isinstance(wanted, Mapping) and wanted.get("exists") is False


def _condition(field: str, operator: str, value: Any) -> Condition:
    if (isinstance(value, int) and not -(2**63) <= value < 2**63) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise FilterError(f"the filter on {field!r} has a number out of range: {value!r}")
    if isinstance(value, str) and not is_unicode(value):
        raise FilterError(f"the filter on {field!r} is not valid Unicode")
    if operator in ("in", "not in"):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise FilterError(f"the filter {field!r} {operator} needs a list of values, not {value!r}")
        parts = [_condition(field, "==", item) for item in value]
        any_of = " OR ".join(f"({sql})" for sql, _ in parts) or "FALSE"
        values = tuple(item for _, found in parts for item in found)
        return (any_of, values) if operator == "in" else _negated(field, any_of, values)
    if operator == "exists":
        if not isinstance(value, bool):
            raise FilterError(f"the filter {field!r} exists needs true or false, not {value!r}")
        presence, values = _presence(field)
        return presence if value else f"NOT ({presence})", values
    if field == "date":
        return _date_condition(operator, value)
    if operator == "!=":
        return _negated(field, *_condition(field, "==", value))
    if field in _COLUMNS:
        return _text_condition(field, _COLUMNS[field], operator, value)
    return _metadata_condition(field, operator, value)


def _negated(field: str, sql: str, values: tuple[Any, ...]) -> Condition:
    presence, more = _presence(field)
    return f"{presence} AND NOT ({sql})", (*more, *values)


def _presence(field: str) -> Condition:
    if field == "date" or field in _COLUMNS:
        return "TRUE", ()
    return "json_type(s.metadata, ?) IS NOT NULL", (_path(field),)


def _path(field: str) -> str:
    return f'$."{field}"'


def _date_condition(operator: str, value: Any) -> Condition:
    try:
        bound = normal_date(value) if isinstance(value, str) else None
    except ValueError as error:
        raise FilterError(f"the filter on 'date': {error}") from error
    if bound is None:
        raise FilterError(f"the filter on 'date' needs a date as in '2026-03-01', not {value!r}")
    if operator == "contains":
        raise FilterError("the filter on 'date' cannot use contains; use >= and <=")
    # Against a day, the day of a moment counts.
    date = f"substr({EFFECTIVE_DATE}, 1, {_DAY_LENGTH})" if len(bound) == _DAY_LENGTH else EFFECTIVE_DATE
    return f"{date} {operator} ?", (bound,)


def _text_condition(field: str, column: str, operator: str, value: Any) -> Condition:
    if not isinstance(value, str):
        raise FilterError(f"the filter on {field!r} needs a text, not {value!r}")
    return (f"instr({column}, ?) > 0" if operator == "contains" else f"{column} {operator} ?"), (value,)


def _metadata_condition(field: str, operator: str, value: Any) -> Condition:
    path = _path(field)
    kind, extract = "json_type(s.metadata, ?)", "json_extract(s.metadata, ?)"
    if operator == "contains":
        is_member = (
            f"EXISTS (SELECT 1 FROM json_each(s.metadata, ?) AS item WHERE {_same('item.type', 'item.atom', value)})"
        )
        member: Condition = (f"{kind} = 'array' AND {is_member}", (path, path, *_atoms(value)))
        if not isinstance(value, str):
            return member
        return f"({member[0]}) OR ({kind} = 'text' AND instr({extract}, ?) > 0)", (*member[1], path, path, value)
    if operator == "==":
        atoms = _atoms(value)
        return _same(kind, extract, value), (path, *((path, *atoms) if atoms else ()))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise FilterError(f"the filter {field!r} {operator} needs a number or a text, not {value!r}")
    return f"{_of_kind(kind, value)} AND {extract} {operator} ?", (path, path, value)


def _same(kind: str, extract: str, value: Any) -> str:
    """SQL that is true where a JSON value equals `value`, in type too: 1 is not true, "1" is not 1."""
    if value is None or isinstance(value, bool):
        return f"{kind} = '{'null' if value is None else str(value).lower()}'"
    if not isinstance(value, str | int | float):
        raise FilterError(f"a filter compares with a text, a number, true, false or null, not {value!r}")
    return f"{_of_kind(kind, value)} AND {extract} = ?"


def _of_kind(kind: str, value: str | int | float) -> str:
    return f"{kind} = 'text'" if isinstance(value, str) else f"{kind} IN ('integer', 'real')"


def _atoms(value: Any) -> tuple[Any, ...]:
    return () if value is None or isinstance(value, bool) else (value,)
