"""JSON files: an array of records, one record, lines of them, or an object that wraps them; anything else by name."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import document, documents, found, refused

from memspan.text.readers import AS_FOUND, ReadOptions, Unreadable, json_files
from memspan.text.readers.json_files import read_json
from memspan.types import Document, Skipped

A, B = {"id": "a", "text": "first"}, {"id": "b", "text": "second"}
PLAIN = ReadOptions(format="txt")


def texts(path: Path, data: Any, options: ReadOptions = AS_FOUND) -> list[str]:
    data = data if isinstance(data, str | bytes) else json.dumps(data, ensure_ascii=False)
    return [one.text for one in documents(path, data, options)]


@pytest.mark.parametrize(
    "data",
    [
        [A, B],
        json.dumps([A, B], indent=4),
        " \r\n\t" + json.dumps([A, B]) + "\n\n",
        "\ufeff" + json.dumps([A, B]),
        json.dumps([A, B]).encode("utf-16"),
        f"{json.dumps(A)}\n{json.dumps(B)}\n",
        f"{json.dumps(A)}\r\n\r\n{json.dumps(B)}",
        json.dumps(A) + json.dumps(B),
        json.dumps(A, indent=2) + "\n" + json.dumps(B, indent=2),
        {"data": [A, B]},
        {"documents": [A, B], "count": 2, "next": None},
        {"meta": {"version": 1, "tags": ["x"]}, "items": [A, B]},
        {"response": {"result": {"records": [A, B]}}},
        {"response": {"ok": True, "hits": [A, B]}, "took": 3},
    ],
    ids=lambda data: str(data)[:40],
)
def test_records_in_every_wrapping(tmp_path: Path, data: Any) -> None:
    for name in ("a.json", "A.JSON"):
        assert texts(tmp_path / name, data) == ["first", "second"]


def test_a_record_that_is_the_file_has_the_files_name_as_id(tmp_path: Path) -> None:
    one = document(tmp_path / "a.json", json.dumps({"title": "T", "text": "A", "author": {"name": "N", "tags": [1]}}))
    assert (one.external_id, one.title) == (f"{tmp_path.name}/a.json", "T")
    assert one.metadata == {"path": "a.json", "author": {"name": "N", "tags": [1]}}
    one = document(tmp_path / "a.json", json.dumps({**A, "items": [B, B]}))
    assert (one.external_id, one.text) == ("a", "first"), "a text of its own comes before what is wrapped"


def test_items_without_an_id_are_numbered(tmp_path: Path) -> None:
    found = documents(tmp_path / "a.json", json.dumps([{"text": "one"}, {"text": "two"}]))
    assert [one.external_id for one in found] == [f"{tmp_path.name}/a.json#{number}" for number in (1, 2)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"name": "x", "version": "1"}, "no text under the key text or content or body; its keys are name, version"),
        ({"text": "  "}, "no text under the key"),
        ({"text": 5}, "no text under the key"),
        ({"text": ["a", "b"]}, "no text under the key"),
        ({"a": [A], "b": [B]}, "no text under the key text or content or body; its keys are a, b"),
        ({"a": []}, "no text under the key"),
        ({"a": {"b": {"c": {"d": [A]}}}}, "no text under the key"),
        ({}, "no text under the key text or content or body; its keys are none"),
        ([1, 2, 3], "an array, but not of JSON objects; to read it as a text, name --format txt"),
        (["a", "b"], "an array, but not of JSON objects"),
        ([[A]], "an array, but not of JSON objects"),
        ([], "empty"),
        ("", "empty"),
        (" \n", "empty"),
        ('"text"', "neither JSON objects nor an array of them; to read it as a text, name --format txt"),
        ("5", "neither JSON objects"),
        ("null", "neither JSON objects"),
        ("hello", "neither JSON objects"),
        ("{", "not JSON"),
        ('{"text": "a"', "not JSON"),
        ("{'text': 'a'}", "not JSON"),
        ("[", "not JSON"),
        ("[" * 100_000, "JSON that is nested too deep"),
        ('{"a":' * 100_000, "JSON that is nested too deep"),
        ([{"name": "x"}, {"name": "y"}], "no text under the key text or content or body in any of 2 records; the keys"),
        ("{}\n{}\n{}", "no text under the key text or content or body in any of 3 records"),
    ],
    ids=lambda data: str(data)[:40],
)
def test_other_json_is_refused_by_name_with_the_remedy(tmp_path: Path, data: Any, reason: str) -> None:
    text = data if isinstance(data, str) else json.dumps(data)
    said = refused(tmp_path / "a.json", text)
    assert said.startswith(reason)
    assert "not JSON" in said or "too deep" in said or said == "empty" or "--" in said


@pytest.mark.parametrize("data", ['{"name": "x"}', "[1, 2]", '"text"', "{", "hello"])
def test_any_json_is_a_text_on_request(tmp_path: Path, data: str) -> None:
    assert document(tmp_path / "a.json", data, PLAIN).text == data


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_the_keys_of_text_and_title_may_be_named(tmp_path: Path, name: str) -> None:
    record = {"message": "said", "text": "other", "subject": "T", "title": "no"}
    options = ReadOptions(text_column="message", title_column="subject")
    one = document(tmp_path / name, json.dumps(record), options)
    assert (one.text, one.title) == ("said", "T")
    assert one.metadata == {"path": name, "text": "other", "title": "no"}
    (skipped,) = found(tmp_path / name, json.dumps(record), ReadOptions(text_column="absent"))
    assert isinstance(skipped, Skipped) and "no text under the key absent" in skipped.reason


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("5", "not a JSON object"),
        ("null", "not a JSON object"),
        ('"a"', "not a JSON object"),
        ("[]", "not a JSON object"),
        ('{"text": "a", "score": NaN}', "holds bytes or characters that are no text"),
        (r'{"text": "\ud800"}', "holds bytes or characters that are no text"),
        (r'{"text": "a\u0000b"}', "NUL characters"),
        ("{}", "no text under the key"),
    ],
)
@pytest.mark.parametrize("separator", [",", "\n"])
def test_a_bad_record_is_named_by_its_number_and_the_others_are_read(
    tmp_path: Path, bad: str, reason: str, separator: str
) -> None:
    text = separator.join([json.dumps(A), bad, json.dumps(B)])
    path = tmp_path / "a.json"
    first, skipped, last = found(path, f"[{text}]" if separator == "," else text)
    assert [one.text for one in (first, last) if isinstance(one, Document)] == ["first", "second"]
    assert isinstance(skipped, Skipped) and skipped.source == f"{path}#2"
    assert reason in skipped.reason or skipped.reason == "not a JSON object"


def test_what_stands_before_the_damage_is_read(tmp_path: Path) -> None:
    text = json.dumps([{"text": f"number {number}"} for number in range(1000)])
    *whole, skipped = found(tmp_path / "a.json", text[:-20])
    assert len(whole) == 999 and isinstance(skipped, Skipped)
    for broken in (f"[{json.dumps(A)} {json.dumps(B)}]", f"[{json.dumps(A)}] more", f"[{json.dumps(A)}"):
        one, skipped = found(tmp_path / "a.json", broken)
        assert isinstance(one, Document) and isinstance(skipped, Skipped)


def test_line_separators_in_strings_are_no_lines(tmp_path: Path) -> None:
    text = "a\u2028b\u0085c\x0bd"
    line = json.dumps({"text": text}, ensure_ascii=False)
    for data in (f"{line}\n{line}", f"[{line},{line}]"):
        assert texts(tmp_path / "a.json", data) == [text, text]


def test_an_array_is_read_item_by_item(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def pieces() -> Any:
        nonlocal asked
        yield "["
        while True:
            asked += 1
            yield '{"text": "a"},'

    records = read_json(pieces())
    for _ in range(100):
        next(records)
    assert asked < 250, "no more is read than is asked for"


def test_a_value_beyond_the_limit_is_refused_before_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "LONGEST_TEXT", 1000)
    num_read = 0

    def pieces() -> Any:
        nonlocal num_read
        yield '[{"text": "'
        while True:
            num_read += 1
            yield "a" * 100

    with pytest.raises(Unreadable, match="one value of more than"):
        next(read_json(pieces()))
    assert num_read < 60
    with pytest.raises(Unreadable, match="line 3 is longer than"):
        list(read_json(iter(['{"text": "a"}\n{"text": "b"}\n', *['"a'] * 1000])))


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_pieces_may_end_anywhere(size: int) -> None:
    values = [{"text": 'ä\n"', "n": -1.5e3, "x": [True, None, {"y": 12}]}, {"text": "b"}]
    for text in (json.dumps(values, indent=1), "\n".join(map(json.dumps, values)), "".join(map(json.dumps, values))):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert [getattr(record, "values", None) for record in read_json(iter(pieces))] == values


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(st.dictionaries(st.sampled_from(["text", "a", "b"]), JSON_VALUES), min_size=1, max_size=4),
    st.integers(1, 9),
)
@settings(max_examples=100, derandomize=True, deadline=None)
def test_any_array_of_objects_is_its_records(values: list[dict[str, Any]], size: int) -> None:
    text = json.dumps(values)
    records = read_json(text[at : at + size] for at in range(0, len(text), size))
    assert [getattr(record, "values", "bad") for record in records] == values


def test_compressed_json_lines_are_read_as_before(tmp_path: Path) -> None:
    assert texts(tmp_path / "a.jsonl.gz", gzip.compress(json.dumps(A).encode())) == ["first"]
