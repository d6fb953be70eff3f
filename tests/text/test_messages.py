"""Messages as chat APIs write them, in lists and in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memspan.text.corpus import read_paths
from memspan.text.messages import exchanges, read_messages, time_of
from memspan.types import Document, Skipped

CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"x": 1}'}}


def said(*messages: Any) -> list[tuple[str, str]]:
    return [(one.who, one.text) for one in read_messages(messages)]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user", "content": "hi"}, [("user", "hi")]),
        ({"role": "user", "name": "Ann", "content": "hi"}, [("Ann", "hi")]),
        ({"role": "user", "name": " ", "content": "hi"}, [("user", "hi")]),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            [("user", "a\nb")],
        ),
        ({"role": "user", "content": [{"type": "input_text", "text": "a"}, "b"]}, [("user", "a\nb")]),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, [("user", "(image)")]),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, [("user", "(audio)")]),
        ({"role": "user", "content": [{}]}, [("user", "(something else than text)")]),
        ({"role": "model", "parts": [{"text": "hi"}]}, [("model", "hi")]),
        ({"role": "system", "content": "be brief"}, []),
        ({"role": "developer", "content": "be brief"}, []),
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, [("assistant", 'Called look({"x": 1})')]),
        ({"role": "assistant", "content": "ok", "tool_calls": [CALL]}, [("assistant", 'ok\nCalled look({"x": 1})')]),
        (
            {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}},
            [("assistant", "Called f({})")],
        ),
        ({"role": "assistant", "content": None, "refusal": "no"}, [("assistant", "no")]),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, [("assistant", "no")]),
        ({"role": "assistant", "content": " "}, []),
        ({"role": "tool", "tool_call_id": "1", "content": "5"}, [("tool", "5")]),
        ({"role": "function", "name": "look", "content": "5"}, [("look", "5")]),
        (
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "so"}]},
            [("assistant", "so")],
        ),
        (
            {"role": "assistant", "content": [{"type": "tool_use", "name": "look", "input": {"ort": "Köln"}}]},
            [("assistant", 'Called look({"ort": "Köln"})')],
        ),
        (
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "content": [{"type": "text", "text": "5"}]},
                    {"type": "text", "text": "so?"},
                ],
            },
            [("tool", "5"), ("user", "so?")],
        ),
        ({"role": "user", "content": [{"type": "tool_result", "content": "5"}]}, [("tool", "5")]),
        ({"role": "user", "content": [{"type": "tool_result"}]}, []),
        (
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
            [("assistant", "a")],
        ),
        ({"type": "function_call", "name": "f", "arguments": "{}"}, [("assistant", "Called f({})")]),
        ({"type": "function_call_output", "call_id": "1", "output": "5"}, [("tool", "5")]),
        ({"type": "reasoning", "summary": []}, []),
        ({"type": "web_search_call", "id": "1"}, [("assistant", "(web_search_call)")]),
    ],
)
def test_every_form_of_a_message_is_read(message: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert said(message) == expected


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("hi", "object"),
        (None, "object"),
        ({"content": "hi"}, "no role"),
        ({"role": "", "content": "hi"}, "no role"),
        ({"role": 1, "content": "hi"}, "no role"),
        ({"role": "user", "content": 5}, "a text or a list"),
        ({"role": "user", "content": [5]}, "a text or an object"),
        ({"role": "user", "content": "hi", "date": "yesterday"}, "not a date"),
        ({"role": "assistant", "content": None, "tool_calls": ["x"]}, "object"),
    ],
)
def test_what_is_no_message_is_named(message: Any, why: str) -> None:
    with pytest.raises(ValueError, match=f"message 1: .*{why}"):
        read_messages([{"role": "user", "content": "x"}, message])


@pytest.mark.parametrize("messages", ["hi", b"hi", {"role": "user", "content": "hi"}])
def test_one_message_is_no_list(messages: Any) -> None:
    with pytest.raises(ValueError, match="a list, also of one"):
        read_messages(messages)


def test_a_nested_message_is_named_or_read() -> None:
    part: Any = "x"
    for _ in range(3000):
        part = {"type": "tool_result", "content": [part]}
    with pytest.raises(ValueError, match="message 0"):
        read_messages([{"role": "user", "content": [part]}])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1711875600, "2024-03-31T09:00:00"),
        (1711875600.5, "2024-03-31T09:00:00"),
        (1711875600123, "2024-03-31T09:00:00"),
        ("1711875600.000200", "2024-03-31T09:00:00"),
        ("2024-03-31T09:00:00Z", "2024-03-31T09:00:00"),
        ("2024-03-31", "2024-03-31"),
        ("yesterday", ""),
        (None, ""),
        (True, ""),
        (float("nan"), ""),
        (10**40, ""),
        ([], ""),
    ],
)
def test_times_of_several_forms(value: Any, expected: str) -> None:
    assert time_of(value) == expected


def test_what_is_asked_stands_with_what_is_answered() -> None:
    roles = ["assistant", "user", "assistant", "tool", "assistant", "user", "human", "assistant"]
    found = exchanges(read_messages([{"role": role, "content": str(place)} for place, role in enumerate(roles)]))
    assert [[one.text for one in exchange] for exchange in found] == [["0"], ["1", "2", "3", "4"], ["5"], ["6", "7"]]


# Files ----------------------------------------------------------------------------------------------------------------

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Bo."},
]
TEXT = "user: Who?\nassistant: Bo."


def documents(path: Path, content: Any) -> dict[str, Document | Skipped]:
    lines = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    path.write_text(lines, encoding="utf-8", newline="")
    found = list(read_paths([path]))
    return {one.external_id if isinstance(one, Document) else f"skipped {n}": one for n, one in enumerate(found)}


def text_of(found: Document | Skipped) -> str:
    return found.text if isinstance(found, Document) else found.reason


def lines(*values: Any, end: str = "\n") -> str:
    return end.join(json.dumps(value) for value in values) + end


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("a.json", TALK, [""]),
        ("a.json", {"messages": TALK}, [""]),
        ("a.json", {"id": "x/y", "title": "T", "messages": TALK}, [""]),
        ("a.json", [{"id": "x", "messages": TALK}, {"id": "y", "messages": TALK}], ["/x", "/y"]),
        ("a.json", [{"id": "x", "messages": TALK}, {"id": "x", "messages": TALK}], ["/x", "/x-2"]),
        ("a.json", [{"messages": TALK}, {"messages": TALK}], ["/1", "/2"]),
        ("a.json", [TALK, TALK], ["/1", "/2"]),
        ("a.jsonl", lines(*TALK), [""]),
        ("a.jsonl", lines(*TALK, end="\r\n\r\n"), [""]),
        ("a.jsonl", "\ufeff" + lines(*TALK), [""]),
        ("a.ndjson", lines({"messages": TALK}, {"messages": TALK}), ["/1", "/2"]),
        ("a.jsonl", lines(TALK, TALK), ["/1", "/2"]),
        ("a.jsonl", lines(*({**one, "session": name} for name in "pq" for one in TALK)), ["/p", "/q"]),
        ("a.jsonl", lines(*({**one, "session": name} for one in TALK for name in "pq")), ["/p", "/q"]),
    ],
)
def test_files_of_messages_are_conversations(tmp_path: Path, name: str, content: Any, names: list[str]) -> None:
    found = documents(tmp_path / name, content)
    assert [id.removeprefix(f"{tmp_path.name}/{name}") for id in found] == names
    assert {text_of(one) for one in found.values()} == {TEXT}
    assert all(one.metadata["participants"] == ["user", "assistant"] for one in found.values())  # type: ignore[union-attr]


def test_title_date_and_metadata_of_a_conversation_are_kept(tmp_path: Path) -> None:
    talk = [{"role": "user", "name": "Ann", "content": "Hi", "timestamp": "2024-03-31T09:00:00Z"}]
    content = {
        "messages": talk,
        "title": "T",
        "created_at": 1711789200,
        "model": "m",
        "said": 1,
        "metadata": {"topic": "x"},
        "usage": {"tokens": 5},
        "score": float("nan"),
    }
    (found,) = documents(tmp_path / "a.json", content).values()
    assert isinstance(found, Document) and (found.title, found.date) == ("T", "2024-03-30T09:00:00")
    assert found.text == "[2024-03-31 09:00] Ann: Hi"
    kept = {key: found.metadata.get(key) for key in ("model", "said", "topic", "usage", "score", "participants")}
    assert kept == {"model": "m", "said": 1, "topic": "x", "usage": None, "score": None, "participants": ["Ann"]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([{"messages": TALK}, {"messages": [TALK[1], {"content": "x"}]}], "message 1: it has no role"),
        ([{"messages": TALK}, {"messages": [TALK[0]]}], "without text"),
        ([{"messages": TALK}, {"messages": TALK[0]}], "no message and no conversation"),
        ([{"messages": TALK}, 5], "no message and no conversation"),
    ],
)
def test_a_conversation_that_cannot_be_read_costs_itself_alone(tmp_path: Path, content: Any, reason: str) -> None:
    good, bad = documents(tmp_path / "a.json", content).values()
    assert text_of(good) == TEXT and isinstance(bad, Skipped) and reason in bad.reason


def test_a_line_that_is_cut_off_costs_itself_alone(tmp_path: Path) -> None:
    found = documents(tmp_path / "a.jsonl", lines({"id": "x", "messages": TALK}) + '{"messages": [{"role"')
    good, bad = found.values()
    assert text_of(good) == TEXT and isinstance(bad, Skipped) and "line 2: malformed JSON" in bad.reason


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", [{"role": "engineer", "content": "builds"}, {"role": "user", "content": "uses"}]),
        ("a.json", [{"role": "user", "text": "uses"}]),
        ("a.json", [{"text": "summed up", "messages": TALK}]),
        ("a.jsonl", lines({"text": "summed up", "messages": TALK})),
        ("a.jsonl", lines({"text": 'he wrote "role": "user" there'})),
    ],
)
def test_other_records_stay_records(tmp_path: Path, name: str, content: Any) -> None:
    texts = [text_of(one) for one in documents(tmp_path / name, content).values()]
    assert texts[0] in ("builds", "uses", "summed up", 'he wrote "role": "user" there')


def test_messages_are_records_on_request(tmp_path: Path) -> None:
    from memspan.text.readers import ReadOptions

    (tmp_path / "a.jsonl").write_text(lines(*TALK), encoding="utf-8")
    found = list(read_paths([tmp_path / "a.jsonl"], options=ReadOptions(format="jsonl")))
    assert [one.text for one in found if isinstance(one, Document)] == ["Be brief.", "Who?", "Bo."]
