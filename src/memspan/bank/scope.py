"""`Scope`: which documents a question may see, by metadata and date, as a condition in SQL."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from memspan.bank.dates import compared
from memspan.dates import date_key, normal_date
from memspan.errors import FilterError
from memspan.types import JSON, is_unicode

EFFECTIVE_DATE = "coalesce(s.date, s.added_at)"
"""A document's date, or else the time it was added; `s` is the table of sources."""

_COLUMNS = {"external_id": "s.external_id", "title": "s.title"}
_ORDERINGS = ("<", "<=", ">", ">=")
OPERATORS = ("==", "!=", *_ORDERINGS, "in", "not in", "contains", "exists")
_MOST_CONDITIONS = 200
_EXPRESSION = re.compile(r"^\s*(?P<field>[^=!<>]+?)\s*(?P<operator>==?|!=|<=|>=|<|>)\s*(?P<value>.*?)\s*$", re.DOTALL)

Condition = tuple[str, tuple[Any, ...]]
"""SQL over `s` (sources), and its values."""


# Which rows of `sources s` are held, by name: what a question sees; what lives, expired or not; what has expired;
# former versions that have documents of their own; all that is kept.
_EXPIRED = "(s.expires IS NOT NULL AND s.pinned = 0 AND s.expires <= moment())"
_HELD = {
    "seen": f"s.deleted_in IS NULL AND NOT {_EXPIRED}",
    "live": "s.deleted_in IS NULL",
    "expired": f"s.deleted_in IS NULL AND {_EXPIRED}",
    "past": "s.superseded_at IS NOT NULL AND s.version_of IS NULL",
    "kept": "(s.deleted_in IS NULL OR s.superseded_at IS NOT NULL)",
}

# Documents that are not encoded yet, as those are that are. They live as long as their source.
_PENDING = (
    "(SELECT p.document_id AS id, p.source_id, p.span_start, p.span_end, 0 AS tokens, 0 AS rows, o.deleted_in "
    "FROM pending p JOIN sources o ON o.id = p.source_id) d"
)

NAMED = (
    "SELECT id FROM sources WHERE deleted_in IS NULL AND namespace_id = {0} AND external_id = ?2 UNION ALL "
    "SELECT id FROM sources WHERE superseded_at IS NOT NULL AND namespace_id = {0} AND external_id = ?2"
)
"""The versions of one name (the second value of a query), by an index each; {0} is its namespace's number."""


@dataclass(frozen=True, slots=True)
class Scope:
    """A part of a namespace, now or at another time. Build it with `parse`; the empty one is all there is now.

    Attributes:
        conditions: all must hold.
        fields: metadata keys that the conditions name.
        as_of: the day or moment that the documents are to be valid at.
        known_at: the day or moment that the bank's knowledge is to be of.
        held: which sources, where neither is given: "seen" (by a question); for looking after a bank "live" (also what
            has expired), "expired", "past" (former versions with a text of their own) or "kept" (all of them).
    """

    conditions: tuple[Condition, ...] = ()
    fields: tuple[str, ...] = ()
    as_of: str | None = None
    known_at: str | None = None
    held: Literal["seen", "live", "expired", "past", "kept"] = "seen"

    @classmethod
    def parse(
        cls, where: Mapping[str, Any] | None = None, as_of: str | None = None, known_at: str | None = None
    ) -> Scope:
        """Read a filter.

        A document that was replaced or relabelled is kept as a former version, which only `as_of` and `known_at` see.
        A version is *valid* from its date on, or, without one, from when it was recorded; it is *recorded* when it is
        added. Of a document's versions that were recorded by `known_at` and are valid at `as_of`, the one that was
        recorded last is seen. Another date for the same text is a correction: the former date holds at no time. A day,
        or a moment without a fraction of a second, is all of that day or second.

        Args:
            where: per field a value it must equal, or operators with values, as in
                `{"project": "x", "date": {">=": "2026-01-01"}}`. Fields are `date` (a document's date, or the time
                it was added), `external_id`, `title`, and the keys of the metadata. Operators are `==`, `!=`, `<`,
                `<=`, `>`, `>=` (numbers with numbers, texts with texts), `in` and `not in` (a list), `contains` (an
                item of a list, a piece of a text) and `exists` (true or false). A document without the field never
                matches, but for `exists: false`. Two dates are compared to the precision of the coarser one: a day
                is all of that day (in the zone that the document's date is written in), a month is each of its days.
                Two moments are compared by when they were, whatever their zones.
            as_of: what was valid at this day or moment, as it is known now (or at `known_at`).
            known_at: what the bank held at this day or moment.

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
        if len(conditions) > _MOST_CONDITIONS:
            raise FilterError(f"a filter has at most {_MOST_CONDITIONS} conditions, not {len(conditions)}; use in")
        return cls(
            tuple(conditions), tuple(fields), _day_or_moment("as_of", as_of), _day_or_moment("known_at", known_at)
        )

    def __bool__(self) -> bool:
        """Whether it may hold less, or something else, than every live document."""
        return bool(self.conditions) or self.is_past

    @property
    def is_past(self) -> bool:
        """Whether former versions may be in it."""
        return self.as_of is not None or self.known_at is not None

    @property
    def parts(self) -> str:
        """The join of documents `d` with sources `s` that gives each document in the labels it is held with."""
        if self.is_past:
            return "documents d JOIN sources s ON (s.id = d.source_id OR s.version_of = d.source_id)"
        return "documents d JOIN sources s ON s.id = d.source_id AND d.deleted_in IS s.deleted_in"

    @property
    def pending_parts(self) -> str:
        """The same of documents that are not encoded yet."""
        return self.parts.replace("documents d", _PENDING, 1)

    @property
    def source_id(self) -> str:
        """The number of the source that has the text."""
        return "coalesce(s.version_of, s.id)" if self.is_past else "s.id"

    @property
    def sql(self) -> str:
        """The condition on `sources s`; it also says which versions are held."""
        held = self._held_then() if self.is_past else _HELD[self.held]
        return " AND ".join([held, *(f"({condition})" for condition, _ in self.conditions)])

    @property
    def values(self) -> tuple[Any, ...]:
        """Those of `sql`."""
        return tuple(value for _, values in self.conditions for value in values)

    def _held_then(self) -> str:
        """Those versions after which no other was recorded that is held, too; and whose date was not corrected."""
        is_later = "(w.deleted_in IS NULL OR w.deleted_in > s.deleted_in)"
        same_name = "w.namespace_id = s.namespace_id AND w.external_id = s.external_id"
        later = f"SELECT 1 FROM sources w WHERE {same_name} AND {self._is_valid('w')} AND {self._is_known('w')}"
        corrected = (
            "SELECT 1 FROM sources w WHERE (w.id = s.version_of OR w.version_of = s.version_of) "
            f"AND {self._is_known('w')} AND w.date IS NOT s.date AND {is_later}"
        )
        return (
            f"NOT {_EXPIRED} AND {self._is_valid('s')} AND {self._is_known('s')} "
            "AND (s.deleted_in IS NULL OR (s.superseded_at IS NOT NULL "
            f"AND NOT EXISTS ({later} AND w.deleted_in IS NULL) "
            f"AND NOT EXISTS ({later} AND w.superseded_at IS NOT NULL AND w.deleted_in > s.deleted_in) "
            f"AND (s.version_of IS NULL OR NOT EXISTS ({corrected}))))"
        )

    def _is_valid(self, table: str) -> str:
        return _until(f"coalesce({table}.date, {table}.recorded_at, {table}.added_at)", self.as_of)

    def _is_known(self, table: str) -> str:
        return _until(f"coalesce({table}.recorded_at, {table}.added_at)", self.known_at)


def _until(date: str, bound: str | None) -> str:
    """SQL: a date is not after a bound (as `normal_date` writes it), to the precision of the coarser one."""
    if bound is None:
        return "TRUE"
    key = date_key(bound)
    return compared(date, "<=", f"'{key}'", key, is_whole_second=True)


EVERYTHING = Scope()
LIVE, EXPIRED, PAST, KEPT = (Scope(held=held) for held in ("live", "expired", "past", "kept"))


def _day_or_moment(name: str, value: Any) -> str | None:
    try:
        return None if value is None else normal_date(value)
    except ValueError as error:
        raise FilterError(f"{name}: {error}") from error


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
            operator = "==" if match["operator"] == "=" else match["operator"]
            pairs = [(match["field"], {operator: value})]
        for field, wanted in pairs:
            before = where.setdefault(field, {})
            if before.keys() & wanted.keys():
                raise FilterError(f"the filter has two conditions {', '.join(wanted)} on {field!r}; join them in one")
            before |= wanted
    return where


def _json(text: str, default: JSON = None) -> JSON:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return default


def _no_constant(name: str) -> JSON:
    raise ValueError(f"{name} is no JSON")


def _operators(field: str, wanted: Any) -> list[tuple[str, Any]]:
    if not isinstance(field, str) or not field or not is_unicode(field):
        raise FilterError(f"a filter's field must be a name, not {field!r}")
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
        if isinstance(value, str | bytes | bytearray) or not isinstance(value, Sequence):
            raise FilterError(f"the filter {field!r} {operator} needs a list of values, not {value!r}")
        any_of = _any_of(field, value)
        return any_of if operator == "in" else _negated(field, *any_of)
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


def _any_of(field: str, values: Sequence[Any]) -> Condition:
    """True where the field equals one of some values. Many of them are one JSON value for SQLite."""
    by_sql: dict[str, list[tuple[Any, ...]]] = {}
    for sql, found in (_condition(field, "==", value) for value in values):
        by_sql.setdefault(sql, []).append(found)
    parts: list[str] = []
    given: list[Any] = []
    for sql, group in by_sql.items():
        if sql.endswith("== ?"):
            parts.append(f"({sql.removesuffix('== ?')} IN (SELECT value FROM json_each(?)))")
            given += (*group[0][:-1], json.dumps([found[-1] for found in group], ensure_ascii=False))
        elif field == "date":  # a date is in its SQL several times
            parts.append(f"EXISTS (SELECT 1 FROM json_each(?) WHERE {sql.replace('?', 'value')})")
            given.append(json.dumps([found[0] for found in group]))
        else:  # true, false and null are in the SQL itself
            parts.append(f"({sql})")
            given += group[0]
    return " OR ".join(parts) or "FALSE", tuple(given)


def _negated(field: str, sql: str, values: tuple[Any, ...]) -> Condition:
    presence, more = _presence(field)
    return f"{presence} AND NOT ({sql})", (*more, *values)


def _presence(field: str) -> Condition:
    if field == "date" or field in _COLUMNS:
        return "TRUE", ()
    access = _Access.of(field)
    return f"{access.kind} IS NOT NULL", (access.key,)


@dataclass(frozen=True, slots=True)
class _Access:
    """SQL for a metadata value's type, the value, and an array's items; each takes `key` as its one value."""

    kind: str
    value: str
    items: str
    key: str

    @classmethod
    def of(cls, field: str) -> _Access:
        if field.isprintable() and not {'"', "\\"} & set(field):
            items = "json_each(s.metadata, ?)"
            return cls("json_type(s.metadata, ?)", "json_extract(s.metadata, ?)", items, f'$."{field}"')
        # A path cannot name such a key: SQLite compares it with the key as it is escaped in the text.
        one = "(SELECT {} FROM json_each(s.metadata) WHERE key = ?)"
        return cls(one.format("type"), one.format("atom"), f"json_each({one.format('value')})", field)


def _date_condition(operator: str, value: Any) -> Condition:
    try:
        bound = date_key(normal_date(value)) if isinstance(value, str) else None
    except ValueError as error:
        raise FilterError(f"the filter on 'date': {error}") from error
    if bound is None:
        raise FilterError(f"the filter on 'date' needs a date as in '2026-03-01', not {value!r}")
    if operator == "contains":
        raise FilterError("the filter on 'date' cannot use contains; use >= and <=")
    sql = compared(EFFECTIVE_DATE, operator, "?", bound)
    return sql, (bound,) * sql.count("?")


def _text_condition(field: str, column: str, operator: str, value: Any) -> Condition:
    if not isinstance(value, str):
        raise FilterError(f"the filter on {field!r} needs a text, not {value!r}")
    return (f"instr({column}, ?) > 0" if operator == "contains" else f"{column} {operator} ?"), (value,)


def _metadata_condition(field: str, operator: str, value: Any) -> Condition:
    access = _Access.of(field)
    key = access.key
    if operator == "contains":
        item = _same("item.type", "item.atom", value)
        is_member = f"EXISTS (SELECT 1 FROM {access.items} AS item WHERE {item})"
        member: Condition = (f"{access.kind} = 'array' AND {is_member}", (key, key, *_atoms(value)))
        if not isinstance(value, str):
            return member
        return (
            f"({member[0]}) OR ({access.kind} = 'text' AND instr({access.value}, ?) > 0)",
            (*member[1], key, key, value),
        )
    if operator == "==":
        atoms = _atoms(value)
        return _same(access.kind, access.value, value), (key, *((key, *atoms) if atoms else ()))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise FilterError(f"the filter {field!r} {operator} needs a number or a text, not {value!r}")
    return f"{_of_kind(access.kind, value)} AND {access.value} {operator} ?", (key, key, value)


def _same(kind: str, value_sql: str, value: Any) -> str:
    """SQL that is true where a JSON value equals `value`, in type too: 1 is not true, "1" is not 1."""
    if value is None or isinstance(value, bool):
        return f"{kind} = '{'null' if value is None else str(value).lower()}'"
    if not isinstance(value, str | int | float):
        raise FilterError(f"a filter compares with a text, a number, true, false or null, not {value!r}")
    return f"{_of_kind(kind, value)} AND {value_sql} == ?"


def _of_kind(kind: str, value: str | int | float) -> str:
    return f"{kind} = 'text'" if isinstance(value, str) else f"{kind} IN ('integer', 'real')"


def _atoms(value: Any) -> tuple[Any, ...]:
    return () if value is None or isinstance(value, bool) else (value,)
