"""Filters: every operator against a reference in Python, what is malformed, and where a scope is applied."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
from helpers import add_latents, random_latents, tiny_manifest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memspan.bank import clock, edits
from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import Catalog, StoredDocument
from memspan.bank.edits import NewSource
from memspan.bank.folder import WrittenSegments
from memspan.bank.scope import EVERYTHING, OPERATORS, Scope, parse_expressions
from memspan.dates import date_key, normal_date
from memspan.errors import FilterError, MemspanError
from memspan.types import JSON, Document

NAMESPACE = "default"
ADDED = "2026-03-01T10:00:00"
ORDERINGS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
TEXTUAL = ("external_id", "title")


class _Clock(datetime):
    """Stands still: documents without a date are of this moment."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return datetime.fromisoformat(ADDED).replace(tzinfo=tz)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    """A catalog without latents."""
    catalog = Catalog(tmp_path_factory.mktemp("scope") / "catalog.sqlite", create=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "datetime", _Clock)
        yield catalog
    catalog.close()


def _fill(catalog: Catalog, documents: Sequence[Document]) -> None:
    """Make these the only documents of the namespace."""
    names = [stored.document.external_id for stored in catalog.sources(NAMESPACE)]
    edits.delete_sources(catalog, NAMESPACE, names)
    edits.add_sources(catalog, NAMESPACE, [NewSource(document, ()) for document in documents], WrittenSegments((), ()))


def _found(catalog: Catalog, where: Mapping[str, Any] | None = None, as_of: str | None = None) -> list[str]:
    scope = Scope.parse(where, as_of)
    return [stored.document.external_id for stored in catalog.sources(NAMESPACE, scope)]


# --- a reference ----------------------------------------------------------------------------------------------------


MISSING = object()


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "bool"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else "nested"


def _equal(found: Any, wanted: Any) -> bool:
    return _kind(found) == _kind(wanted) != "nested" and found == wanted


def _value(document: Document, field: str) -> Any:
    if field == "date":
        return document.date or ADDED
    return getattr(document, field) if field in TEXTUAL else document.metadata.get(field, MISSING)


def _holds(found: Any, operator_: str, wanted: Any) -> bool:
    if operator_ == "exists":
        return (found is not MISSING) == wanted
    if found is MISSING:
        return False
    if operator_ in ("in", "not in"):
        return any(_equal(found, item) for item in wanted) == (operator_ == "in")
    if operator_ in ("==", "!="):
        return _equal(found, wanted) == (operator_ == "==")
    if operator_ == "contains":
        if isinstance(found, list):
            return any(_equal(item, wanted) for item in found)
        return isinstance(found, str) and isinstance(wanted, str) and wanted in found
    return _kind(found) == _kind(wanted) and ORDERINGS[operator_](found, wanted)


def _date_holds(found: str, operator_: str, wanted: Any) -> bool:
    """Dates are compared to the precision of the coarser one; two moments by when they were."""
    if operator_ == "exists":
        return wanted
    if operator_ in ("in", "not in"):
        return any(_date_holds(found, "==", day) for day in wanted) == (operator_ == "in")
    comparison = {"==": operator.eq, "!=": operator.ne, **ORDERINGS}[operator_]
    wanted = date_key(normal_date(wanted))
    if len(wanted) > 10:
        found = date_key(found)
    return comparison(found[: len(wanted)], wanted[: len(found)])


def _matches(document: Document, where: Mapping[str, Any], as_of: str | None = None) -> bool:
    for field, wanted in where.items():
        for operator_, value in wanted.items() if isinstance(wanted, dict) else [("==", wanted)]:
            holds = _date_holds if field == "date" else _holds
            if not holds(_value(document, field), operator_, value):
                return False
    return as_of is None or _date_holds(_value(document, "date"), "<=", as_of)


# --- random documents and filters -----------------------------------------------------------------------------------


NAMES = ("a", "A", "größe", "10", "x/y", "an id with 'quotes\"", "b")
FIELDS = ("p", "größe", 'quo"ted', "two words", "dot.ted", "[0]", "$", "it's", "sl/ash", "%_", "x" * 300)
PLAIN_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
SCALARS: st.SearchStrategy[JSON] = st.one_of(
    st.sampled_from([None, True, False, 0, 1, 1.0, 1.5, -1, -0.0, "", "1", "1.0", "true", "null", "a", "ab", "größe"]),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    PLAIN_TEXT,
)
VALUES: st.SearchStrategy[JSON] = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=3), st.sampled_from([{}, {"p": 1}, [[1]], [{"p": "a"}]])
)
MOMENTS = ("2026-02-28T23:59:59.999999", "2026-03-01T00:00:00", "2026-03-01T00:30:00+09:00", ADDED)
DATES = st.sampled_from(["2026", "2026-02", "2026-03", "2026-02-28", "2026-03-01", "2026-03-02", *MOMENTS])
DOCUMENTS = st.tuples(
    *(
        st.builds(
            Document,
            st.just(name),
            st.just("text"),
            st.sampled_from(["", "a", "Title", "größe"]),
            st.dictionaries(st.sampled_from(FIELDS[:3]) | st.sampled_from(FIELDS), VALUES, max_size=4),
            st.none() | DATES,
        )
        for name in NAMES
    )
)
ORDERED = SCALARS.filter(lambda value: _kind(value) in ("number", "text"))
METADATA_OPERATORS = st.one_of(
    SCALARS,
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(ORDERINGS, ORDERED),
            **dict.fromkeys(("==", "!=", "contains"), SCALARS),
            **dict.fromkeys(("in", "not in"), st.lists(SCALARS, max_size=3)),
            "exists": st.booleans(),
        },
    ).filter(bool),
)
TEXTS = PLAIN_TEXT | st.sampled_from([*NAMES, "Title", "t"])
TEXT_OPERATORS = st.one_of(
    TEXTS,
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("==", "!=", "contains", *ORDERINGS), TEXTS),
            **dict.fromkeys(("in", "not in"), st.lists(TEXTS, max_size=3)),
        },
    ).filter(bool),
)
DATE_OPERATORS = st.one_of(
    DATES,
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("==", "!=", *ORDERINGS), DATES),
            **dict.fromkeys(("in", "not in"), st.lists(DATES, max_size=3)),
            "exists": st.booleans(),
        },
    ).filter(bool),
)
# One condition at a time is most of it: of several, hardly any document meets all.
FILTERS = st.one_of(
    st.dictionaries(st.sampled_from(FIELDS[:3]), METADATA_OPERATORS, min_size=1, max_size=1),
    st.dictionaries(st.sampled_from(FIELDS), METADATA_OPERATORS, max_size=2),
    st.dictionaries(st.sampled_from(TEXTUAL), TEXT_OPERATORS, max_size=2),
    st.builds(lambda operators: {"date": operators}, DATE_OPERATORS),
    st.builds(
        lambda of_p, of_title, of_date: {"p": of_p, "title": of_title, "date": of_date},
        METADATA_OPERATORS,
        TEXT_OPERATORS,
        DATE_OPERATORS,
    ),
)


@given(DOCUMENTS, st.lists(FILTERS, min_size=20, max_size=20), st.none() | DATES)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_every_filter_finds_what_a_reference_in_python_finds(
    catalog: Catalog, documents: Sequence[Document], filters: list[dict[str, Any]], as_of: str | None
) -> None:
    _fill(catalog, documents)
    for where in filters:
        expected = [document.external_id for document in documents if _matches(document, where, as_of)]
        assert _found(catalog, where, as_of) == expected, where


# Of every kind that JSON knows, one like another in all but the kind.
KINDS: tuple[JSON, ...] = (
    None,
    True,
    False,
    0,
    1,
    1.5,
    "1",
    "true",
    "null",
    "",
    "a",
    [],
    [1, "a"],
    [[1]],
    {},
    {"a": 1},
)


def test_every_operator_on_every_kind_of_value_is_the_references(catalog: Catalog) -> None:
    documents = [Document(str(number), "text", metadata={"p": value}) for number, value in enumerate(KINDS)]
    documents.append(Document("without", "text", metadata={"q": 1}))
    _fill(catalog, documents)
    scalars = [value for value in KINDS if not isinstance(value, list | dict)]
    operands: dict[str, list[Any]] = dict.fromkeys(("==", "!=", "contains"), scalars)
    operands |= {key: [value for value in scalars if _kind(value) in ("number", "text")] for key in ORDERINGS}
    operands |= {key: [[], *([value, 1.0] for value in scalars)] for key in ("in", "not in")}
    operands["exists"] = [True, False]
    assert set(operands) == set(OPERATORS)
    for operator_, values in operands.items():
        found_any = False
        for value in values:
            where = {"p": {operator_: value}}
            expected = [document.external_id for document in documents if _matches(document, where)]
            assert _found(catalog, where) == expected, where
            found_any |= 0 < len(expected) < len(documents)
        assert found_any, "some match and some do not"


@pytest.mark.parametrize(
    "field",
    [*FIELDS, "größe", "日本", "😀", "back\\slash", 'quo"ted', '"', '"]', "new\nline", "tab\t", "\x7f", "\u2028"],
)
def test_any_key_that_metadata_may_have_can_be_filtered_by(catalog: Catalog, field: str) -> None:
    one, other = Document("one", "text", metadata={field: [1, "x"]}), Document("other", "text", metadata={field: "y"})
    documents = [one, other, Document("without", "text", metadata={field + "y": "y", "nested": {field: "y"}})]
    _fill(catalog, documents)
    for where in ({field: "y"}, {field: {"contains": 1}}, {field: {"exists": False}}, {field: {"!=": "z"}}):
        assert _found(catalog, where) == [document.external_id for document in documents if _matches(document, where)]


# --- dates ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def dated(catalog: Catalog) -> Catalog:
    """Documents around the first of March, named by their dates."""
    days = ("2026-02-28", "2026-03-01", "2026-03-02")
    moments = ("2026-02-28T23:59:59", "2026-03-01T00:00:00", "2026-03-01T23:59:59.5", "2026-03-02T00:00:00")
    _fill(catalog, [Document(f"of {date}", "text", date=date) for date in (*days, *moments)])
    return catalog


@pytest.mark.parametrize(
    ("operator_", "of_the_day", "of_other_days"),
    [
        ("==", True, ()),
        ("!=", False, ("02-28", "03-02")),
        ("<=", True, ("02-28",)),
        ("<", False, ("02-28",)),
        (">=", True, ("03-02",)),
        (">", False, ("03-02",)),
    ],
)
def test_a_day_as_a_bound_is_all_of_that_day(
    dated: Catalog, operator_: str, of_the_day: bool, of_other_days: tuple[str, ...]
) -> None:
    days = {*of_other_days, *(["03-01"] if of_the_day else [])}
    found = _found(dated, {"date": {operator_: "2026-03-01"}})
    assert found == [name for name in _found(dated) if name[len("of 2026-") :][:5] in days]


def test_a_moment_as_a_bound_is_that_moment_in_its_time_zone(dated: Catalog) -> None:
    until = _found(dated, {"date": {"<=": "2026-03-01T00:00:00"}})
    assert until == ["of 2026-02-28", "of 2026-03-01", "of 2026-02-28T23:59:59", "of 2026-03-01T00:00:00"]
    for same in ("2026-03-01T02:00+02:00", "2026-02-28T19:00:00-05:00", "2026-03-01T00:00Z"):
        assert _found(dated, {"date": {"<=": same}}) == until
    assert _found(dated, {"date": {"<": "2026-03-01T00:00:00"}}) == ["of 2026-02-28", "of 2026-02-28T23:59:59"]


ZONED = ("2026", "2026-02", "2026-03", "2026-03-01", "2026-02-28T20:00:00", "2026-03-01T00:30:00+09:00")


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ({"date": "2026-03-01"}, (0, 2, 3, 5)),
        ({"date": "2026-02-28"}, (0, 1, 4)),
        ({"date": "2026-03"}, (0, 2, 3, 5)),
        ({"date": "2026"}, range(6)),
        ({"date": {">=": "2026-03"}}, (0, 2, 3, 5)),
        ({"date": {">": "2026-02"}}, (2, 3, 5)),
        ({"date": {"<": "2026-03"}}, (1, 4)),
        ({"date": {"<=": "2026-02-10"}}, (0, 1)),
        ({"date": {">=": "2026-03-31"}}, (0, 2)),
        ({"date": {">": "2026"}}, ()),
        ({"date": {"!=": "2026-03"}}, (1, 4)),
        # The ninth hour before UTC: 28 February, 15:30, is before 20:00.
        ({"date": {"<": "2026-02-28T16:00"}}, (5,)),
        ({"date": "2026-02-28T15:30Z"}, (0, 1, 5)),
        ({"date": "2026-02-28T10:30-05:00"}, (0, 1, 5)),
        ({"date": {">": "2026-02-28T15:30:00.000001"}}, (2, 3, 4)),
        ({"date": {"in": ["2026-02-28T15:30Z", "2025-01-01"]}}, (0, 1, 5)),
        ({"date": {"in": ["2025", "2026-03-01", "2025-01-01T00:00"]}}, (0, 2, 3, 5)),
        ({"date": {"not in": ["2026-03-01", "2026-02-28T20:00"]}}, ()),
        ({"date": {"in": []}}, ()),
    ],
)
def test_dates_of_every_precision_and_zone(catalog: Catalog, where: dict[str, Any], found: Sequence[int]) -> None:
    _fill(catalog, [Document(date, "text", date=date) for date in ZONED])
    assert _found(catalog, where) == [ZONED[place] for place in found]
    documents = [Document(date, "text", date=date) for date in ZONED]
    assert [document.external_id for document in documents if _matches(document, where)] == _found(catalog, where)


def test_a_fraction_of_a_second_stays_in_every_zone(catalog: Catalog) -> None:
    dates = ("2026-03-01T00:00:00.999999+00:30", "2026-02-28T23:30:00.999998", "2026-02-28T23:30:01")
    _fill(catalog, [Document(date, "text", date=date) for date in dates])
    assert _found(catalog, {"date": {">=": dates[0]}}) == [dates[0], dates[2]]
    assert _found(catalog, as_of=dates[0]) == [*dates[:2]]


@pytest.mark.parametrize("as_of", ["2026-02-28", "2026-03-01", "2026-03-01T00:00:00", "2026-03-02T01:00+01:00"])
def test_as_of_is_an_upper_bound_of_the_date_beside_the_filter(dated: Catalog, as_of: str) -> None:
    assert _found(dated, as_of=as_of) == _found(dated, {"date": {"<=": as_of}})
    where = {"external_id": {"contains": "T"}}
    both = [name for name in _found(dated, {"date": {"<=": as_of}}) if "T" in name]
    assert _found(dated, where, as_of) == both
    assert 0 < len(both) < len(_found(dated, where)) or as_of.startswith("2026-03-02")


def test_a_document_without_a_date_is_of_the_time_it_was_added(catalog: Catalog) -> None:
    _fill(catalog, [Document("undated", "text"), Document("dated", "text", date="2020-01-01")])
    assert _found(catalog, {"date": "2026-03-01"}) == ["undated"]
    assert _found(catalog, as_of="2026-03-01") == ["undated", "dated"]
    assert _found(catalog, as_of="2026-03-01T09:59:59") == ["dated"]


# --- the empty scope ------------------------------------------------------------------------------------------------


def test_a_scope_without_conditions_is_everything(catalog: Catalog) -> None:
    _fill(catalog, [Document("a", "text"), Document("b", "text")])
    for scope in (Scope.parse(), Scope.parse({}), Scope.parse(None, None)):
        assert scope == EVERYTHING and not scope
    assert _found(catalog) == _found(catalog, {}) == ["a", "b"]
    assert Scope.parse(as_of="2026-01-01") and Scope.parse({"p": 1})


# --- malformed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("project=x", 'a filter is an object as in {"project": "x"}, not'),
        (["project"], "a filter is an object"),
        ({"": 1}, "field must be a name"),
        ({1: 1}, "field must be a name"),
        ({"\ud800": 1}, "field must be a name"),
        ({"p": {}}, "the filter on 'p' says nothing; name an operator: =="),
        ({"p": {"=>": 1}}, "the filter on 'p' has the operator '=>'; known are ==, !=, <"),
        ({"p": {"==": 1, "like": "x"}}, "the filter on 'p' has the operator 'like'"),
        ({"p": [1]}, "compares with a text, a number, true, false or null, not"),
        ({"p": {"==": {"a": 1}}}, "compares with a text"),
        ({"p": {"!=": [1]}}, "compares with a text"),
        ({"p": b"x"}, "compares with a text"),
        ({"p": {"contains": [1]}}, "compares with a text"),
        ({"p": {"in": "abc"}}, "the filter 'p' in needs a list of values, not 'abc'"),
        ({"p": {"not in": 5}}, "the filter 'p' not in needs a list"),
        ({"p": {"in": [[1]]}}, "compares with a text"),
        ({"p": {"exists": 1}}, "the filter 'p' exists needs true or false, not 1"),
        ({"p": {"exists": None}}, "the filter 'p' exists needs true or false"),
        ({"p": {"<": None}}, "the filter 'p' < needs a number or a text, not None"),
        ({"p": {">=": True}}, "the filter 'p' >= needs a number or a text, not True"),
        ({"p": {">": [1]}}, "the filter 'p' > needs a number or a text"),
        ({"p": 2**63}, "the filter on 'p' has a number out of range: 9223372036854775808"),
        ({"p": {"<": -(2**63) - 1}}, "the filter on 'p' has a number out of range"),
        ({"p": {"in": [1, 2**80]}}, "the filter on 'p' has a number out of range"),
        ({"p": {"contains": float("inf")}}, "the filter on 'p' has a number out of range: inf"),
        ({"p": float("nan")}, "the filter on 'p' has a number out of range: nan"),
        ({"p": "\ud800"}, "the filter on 'p' is not valid Unicode"),
        ({"p": {"not in": ["\udfff"]}}, "the filter on 'p' is not valid Unicode"),
        ({"title": 5}, "the filter on 'title' needs a text, not 5"),
        ({"external_id": {"in": ["a", None]}}, "the filter on 'external_id' needs a text, not None"),
        ({"title": {"contains": True}}, "the filter on 'title' needs a text"),
        ({"date": "yesterday"}, "the filter on 'date': 'yesterday' is not a date; write it as 2026-03-01 or"),
        ({"date": {">=": "2026-02-30"}}, "the filter on 'date': '2026-02-30' is not a date"),
        ({"date": {"in": ["2026-03-01", ""]}}, "the filter on 'date': '' is not a date"),
        ({"date": 2026}, "the filter on 'date' needs a date as in '2026-03-01', not 2026"),
        ({"date": None}, "the filter on 'date' needs a date"),
        ({"date": {"contains": "2026-03-01"}}, "the filter on 'date' cannot use contains; use >= and <="),
        ({"p": 1, "date": {"<": "2026-W09"}}, "the filter on 'date'"),
        ({"p": {"in": b"ab"}}, "the filter 'p' in needs a list of values"),
        ({"p": {"not in": bytearray(b"ab")}}, "the filter 'p' not in needs a list of values"),
    ],
)
def test_a_malformed_filter_is_refused_and_its_field_named(where: Any, message: str) -> None:
    with pytest.raises(FilterError) as refused:
        Scope.parse(where)
    assert message in str(refused.value)


@pytest.mark.parametrize("as_of", ["", "now", "2026-13-01", "2026-03-01T25:00", 2026, "0001-01-01T00:00+14:00"])
def test_a_malformed_as_of_is_refused(as_of: Any) -> None:
    with pytest.raises(FilterError, match=r"as_of: .*date"):
        Scope.parse(as_of=as_of)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*OPERATORS, "like"]) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """A catalog of one document."""
    catalog = Catalog(tmp_path_factory.mktemp("single") / "catalog.sqlite", create=True)
    _fill(catalog, [Document("a", "text", metadata={"p": [1, "x"], "q": {"p": None}})])
    return catalog


@given(st.dictionaries(st.sampled_from(["p", "date", "title"]) | PLAIN_TEXT, JUNK, min_size=1, max_size=2), JUNK)
@example({"p": {"in": list(range(900))}}, None)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_whatever_is_given_as_a_filter_is_refused_by_name_or_answered(
    single: Catalog, where: dict[str, Any], as_of: Any
) -> None:
    try:
        scope = Scope.parse(where, as_of)
    except FilterError:
        return
    assert len(list(single.sources(NAMESPACE, scope))) <= 1
    hash(scope)


@pytest.mark.parametrize("field", ["external_id", "p", "date"])
def test_a_list_of_thousands_of_values_is_a_filter_too(catalog: Catalog, field: str) -> None:
    _fill(catalog, [Document(name, "text", metadata={"p": name}, date="2020-01-01") for name in ("a", "b")])
    values = ["2020-01-01"] * 5000 if field == "date" else [*map(str, range(5000)), "b"]
    assert _found(catalog, {field: {"in": values}}) == (["a", "b"] if field == "date" else ["b"])
    assert _found(catalog, {field: {"not in": values}}) == ([] if field == "date" else ["a"])


# --- expressions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expressions", "where"),
    [
        ([], {}),
        (["project=x"], {"project": {"==": "x"}}),
        (["project==x"], {"project": {"==": "x"}}),
        ([" two words = a value "], {"two words": {"==": "a value"}}),
        (["year<1900", "year>=1800"], {"year": {"<": 1900, ">=": 1800}}),
        (["p!=null", "q=true"], {"p": {"!=": None}, "q": {"==": True}}),
        (["r=1.5", 's="1"', "t="], {"r": {"==": 1.5}, "s": {"==": "1"}, "t": {"==": ""}}),
        (["date>=2026-01-01", "date<2027-01-01"], {"date": {">=": "2026-01-01", "<": "2027-01-01"}}),
        (["date=20260301"], {"date": {"==": "20260301"}}),
        (["url=http://x?a=b"], {"url": {"==": "http://x?a=b"}}),
        (['{"p": {"in": [1, 2]}, "q": "x"}', "p>0"], {"p": {"in": [1, 2], ">": 0}, "q": {"==": "x"}}),
        (['{"p=q": 1}'], {"p=q": {"==": 1}}),
        (["p=" + "[" * 100_000], {"p": {"==": "[" * 100_000}}),  # no JSON that can be read: a text
    ],
)
def test_expressions_are_read_as_filters(expressions: list[str], where: dict[str, Any]) -> None:
    assert parse_expressions(expressions) == where
    Scope.parse(where)


@given(
    st.sampled_from(["p", "two words", "größe", "a.b"]),
    st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
    SCALARS,
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_value_written_as_json_is_read_back(field: str, operator_: str, value: JSON) -> None:
    for written in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        for expression in (f"{field}{operator_}{written}", f"  {field} {operator_}  {written} "):
            found = parse_expressions([expression])
            assert found == {field: {operator_: value}}
            assert type(found[field][operator_]) is type(value)
    assert parse_expressions([json.dumps({field: {operator_: value}})]) == {field: {operator_: value}}


@pytest.mark.parametrize(
    ("expressions", "message"),
    [
        (["project"], "the filter 'project' is not of the form FIELD=VALUE (or !=, <, <=, >, >=)"),
        (["=x"], "is not of the form"),
        ([""], "is not of the form"),
        (['{"p": 1'], "is not JSON"),
        (['{"p": {}}'], "the filter on 'p' says nothing"),
        (['{"p": {"like": 1}}'], "has the operator 'like'"),
        (["p=1", "p=2"], "the filter has two conditions == on 'p'; join them in one"),
        (["p>1", '{"p": {">": 3, "<": 5}}'], "the filter has two conditions"),
    ],
)
def test_what_is_no_expression_is_refused(expressions: list[str], message: str) -> None:
    with pytest.raises(FilterError) as refused:
        Scope.parse(parse_expressions(expressions))
    assert message in str(refused.value)


@given(st.lists(st.text(max_size=12) | st.from_regex(r"[pq ]{1,2}[=<>!]{1,2}.{0,4}", fullmatch=True), max_size=3))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_texts_are_read_as_expressions_or_refused_by_name(expressions: list[str]) -> None:
    try:
        where = parse_expressions(expressions)
        Scope.parse(where)
    except MemspanError as error:
        assert isinstance(error, FilterError)


# --- where a scope is applied ---------------------------------------------------------------------------------------


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    """Four documents of a project, two of another (one of three parts), one of none; and one that is deleted."""
    manifest = tiny_manifest()
    bank = MemoryBank.create(tmp_path / "bank", manifest)
    projects = {"a": "x", "b": "x", "c": "y", "d": "x", "e": None, "f": "x", "gone": "x"}
    for number, (name, project) in enumerate(projects.items()):
        metadata: dict[str, JSON] = {"project": project} if project else {}
        document = Document(name, "word and word and word", metadata=metadata, date=f"2026-03-0{number + 1}")
        with bank.writer() as writer:  # each in a segment of its own, so that they are more than one
            add_latents(writer, document, *(random_latents(manifest, 1) for _ in range(3 if name == "b" else 1)))
            writer.commit()
    bank.delete(["gone"])
    yield bank
    bank.close()


@pytest.mark.parametrize(
    ("where", "as_of", "names"),
    [
        ({"project": "x"}, None, "abbbdf"),
        ({"project": {"!=": "x"}}, None, "c"),
        ({"project": {"exists": False}}, None, "e"),
        ({"external_id": {"in": ["b", "gone"]}}, None, "bbb"),
        (None, "2026-03-03", "abbbc"),
        ({"project": "x"}, "2026-03-02", "abbb"),
        (None, None, "abbbcdef"),
        ({"project": "y", "date": {">": "2026-03-03"}}, None, ""),
    ],
)
def test_every_way_to_read_a_namespace_is_narrowed_alike(
    bank: MemoryBank, where: dict[str, Any] | None, as_of: str | None, names: str
) -> None:
    scope = Scope.parse(where, as_of)
    stored = bank.catalog.page(NAMESPACE, 0, 100, scope)
    assert "".join(document.external_id for document in stored) == names
    ids = [document.id for document in stored]
    assert bank.catalog.ids_in_scope(NAMESPACE, scope).tolist() == ids
    sources = list(bank.catalog.sources(NAMESPACE, scope))
    assert "".join(source.document.external_id for source in sources) == "".join(dict.fromkeys(names))
    with bank.snapshot() as snapshot:
        of_shards = [number for shard in snapshot.shards for number in shard.ids_N.tolist()]
        selectable = snapshot.selectable_mask(scope).tolist()
        assert [number for number, may in zip(of_shards, selectable, strict=True) if may] == ids
        assert sorted(number for number, _ in snapshot.search("word", 100, scope)) == ids
        assert len(of_shards) > len(ids), "the deleted one is among the shards still"


def test_a_page_of_a_scope_goes_on_where_the_last_one_ended(bank: MemoryBank) -> None:
    scope = Scope.parse({"project": "x"})
    whole = bank.catalog.page(NAMESPACE, 0, 100, scope)
    paged: list[StoredDocument] = []
    for number in range(1, 5):
        page = bank.catalog.page(NAMESPACE, paged[-1].id if paged else 0, 2, scope)
        paged += page
        assert paged == whole[: 2 * number]
    assert paged == whole and not page


def test_a_field_that_no_document_has_is_named_with_those_there_are(bank: MemoryBank) -> None:
    message = "no document has a field 'projekt'; there are, among others: date, external_id, project, title"
    for where in (
        {"projekt": "x"},
        {"projekt": {"!=": "x"}},
        {"projekt": {"exists": True}},
        {"project": "x"} | {"projekt": 1},
    ):
        with bank.snapshot() as snapshot, pytest.raises(FilterError, match=message):
            snapshot.selectable_mask(Scope.parse(where))
    for where in (
        {"project": "z"},
        {"project": "z", "nothing": {"exists": False}},
        {"title": "z"},
        {"date": "2020-01-01"},
    ):
        with bank.snapshot() as snapshot:
            assert not snapshot.selectable_mask(Scope.parse(where)).any()
    with bank.snapshot() as snapshot:
        assert snapshot.selectable_mask(Scope.parse({"projekt": {"exists": False}})).sum() == 8


def test_a_field_of_deleted_documents_only_is_a_missing_one(bank: MemoryBank) -> None:
    bank.delete(["a", "b", "c", "d", "f"])
    with bank.snapshot() as snapshot, pytest.raises(FilterError, match="there are, among others: date, external_id, t"):
        snapshot.selectable_mask(Scope.parse({"project": "x"}))
