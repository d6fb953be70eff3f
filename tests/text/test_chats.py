"""Exported chats: WhatsApp, Slack, ChatGPT and Claude. They are known by their content."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from memspan.text.corpus import read_paths
from memspan.text.readers import ReadOptions
from memspan.types import Document, Skipped


def documents(path: Path) -> list[Document]:
    found = list(read_paths([path]))
    assert all(isinstance(one, Document) for one in found), found
    return [one for one in found if isinstance(one, Document)]


def written(path: Path, content: str | object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8", newline="")
    return path


# WhatsApp -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "when"),
    [
        ("[31/03/2024, 10:15:32] Ann: Hi", "2024-03-31 10:15"),
        ("\u200e[31/03/2024, 10:15:32] Ann: \u200eHi", "2024-03-31 10:15"),
        ("[3/31/24, 10:15:32\u202fPM] Ann: Hi", "2024-03-31 22:15"),
        ("[3/31/24, 12:15:32 AM] Ann: Hi", "2024-03-31 00:15"),
        ("[31.03.24, 10:15:32] Ann: Hi", "2024-03-31 10:15"),
        ("[2024/3/31 下午10:15:32] Ann: Hi", "2024-03-31 22:15"),
        ("31/03/2024, 10:15 - Ann: Hi", "2024-03-31 10:15"),
        ("31/03/24, 10:15 pm - Ann: Hi", "2024-03-31 22:15"),
        ("3/31/24, 10:15\u202fAM - Ann: Hi", "2024-03-31 10:15"),
        ("31.03.24, 10:15 - Ann: Hi", "2024-03-31 10:15"),
        ("31/03/2024 à 10:15 - Ann: Hi", "2024-03-31 10:15"),
        ("31-03-2024 10:15 - Ann: Hi", "2024-03-31 10:15"),
        ("31/3/24 10:15 p. m. - Ann: Hi", "2024-03-31 22:15"),
        ("2024-03-31, 10:15 - Ann: Hi", "2024-03-31 10:15"),
        ("2024/03/31, 10:15 - Ann: Hi", "2024-03-31 10:15"),
        ("31/03/2024 10.15 - Ann: Hi", "2024-03-31 10:15"),
        ("2024년 3월 31일 오후 10:15, Ann : Hi", "2024-03-31 22:15"),
        ("2024. 3. 31. 오후 10:15, Ann : Hi", "2024-03-31 22:15"),
        ("31/3/2024، 10:15 - Ann: Hi", "2024-03-31 10:15"),
        ("٣١/٣/٢٠٢٤، ٢٢:١٥ - Ann: Hi", "2024-03-31 22:15"),
        ("\u200f٣١\u200f/٣\u200f/٢٠٢٤، ١٠:١٥ م - Ann: Hi", "2024-03-31 22:15"),
        ("\u200f٣١\u200f/٣\u200f/٢٠٢٤، ١٢:١٥ ص - Ann: Hi", "2024-03-31 00:15"),
        ("۲۰۲۴/۳/۳۱, ۱۰:۱۵ - Ann: Hi", "2024-03-31 10:15"),
    ],
)
def test_the_forms_of_many_places(tmp_path: Path, line: str, when: str) -> None:
    (found,) = documents(written(tmp_path / "_chat.txt", f"{line}\r\nand more\r\n{line}\r\n"))
    day, clock = when.split()
    assert found.date == day
    assert found.text == f"[{clock}] Ann: Hi\nand more\n[{clock}] Ann: Hi"
    assert found.metadata["participants"] == ["Ann"]


DAYS = """\
[30/03/2024, 23:59:00] Messages are end-to-end encrypted.
[30/03/2024, 23:59:30] Ann: Good night
[31/03/2024, 07:00:00] Bo Smith: Morning: all
well?

Yes.
[31/03/2024, 07:01:00] +49 170 1234567: <attached: photo.jpg>
"""


def test_a_document_for_each_day_of_who_said_what_and_when(tmp_path: Path) -> None:
    first, second = documents(written(tmp_path / "WhatsApp Chat with Bo.txt", DAYS))
    assert first.external_id == f"{tmp_path.name}/WhatsApp Chat with Bo.txt/2024-03-30"
    assert first.title == "WhatsApp chat with Bo, 2024-03-30"
    assert first.text == "[23:59] Messages are end-to-end encrypted.\n[23:59] Ann: Good night"
    assert (
        second.text == "[07:00] Bo Smith: Morning: all\nwell?\n\nYes.\n[07:01] +49 170 1234567: <attached: photo.jpg>"
    )
    assert second.metadata["participants"] == ["Bo Smith", "+49 170 1234567"]


@pytest.mark.parametrize(
    ("dates", "days", "order"),
    [
        (["01/02/2024", "13/02/2024"], ["2024-02-01", "2024-02-13"], "day month year"),
        (["1/2/24", "1/13/24"], ["2024-01-02", "2024-01-13"], "month day year"),
        (["01/02/2024", "02/02/2024", "01/03/2024"], ["2024-02-01", "2024-02-02", "2024-03-01"], "day month year"),
        (["1/2/24", "1/3/24", "2/1/24"], ["2024-01-02", "2024-01-03", "2024-02-01"], "month day year"),
        (["1/2/24"], ["2024-01-02"], "month day year"),
        (["01/02/2024"], ["2024-02-01"], "day month year"),
        (["1.2.24"], ["2024-02-01"], "day month year"),
    ],
)
def test_day_and_month_are_told_apart_over_the_whole_chat(
    tmp_path: Path, dates: list[str], days: list[str], order: str
) -> None:
    lines = "".join(f"{date}, 10:15 - Ann: Hi\n" for date in dates)
    found = documents(written(tmp_path / "a.txt", lines))
    assert [one.date for one in found] == days
    assert {one.metadata["date_order"] for one in found} == {order}


@pytest.mark.parametrize(
    "text",
    [
        "On 31/03/2024, 10:15 we met.\nThen we left.\n",
        "31/03/2024, 10:15 - Started\n",
        "2024-03-31 10:15:00 - service: started\n2024-03-31 10:15:01 - service: ended\n",
        "Notes\n[31/03/2024, 10:15:32] Ann: Hi\n",
        "10:15 - Ann: Hi\n",
        "31/03/2024, 25:15 - Ann: Hi\n",
        "29/02/2023, 10:15 - Ann: Hi\n01/03/2023, 10:15 - Bob: Hi\n",
        "\u202831/03/2024, 10:15 - Ann: Hi\n",
        "\x0c31/03/2024, 10:15 - Ann: Hi\n31/03/2024, 10:16 - Bob: Hi\n",
        "",
    ],
)
def test_other_texts_with_times_stay_one_document(tmp_path: Path, text: str) -> None:
    found = list(read_paths([written(tmp_path / "a.txt", text)]))
    assert len(found) == 1
    assert found[0] == Skipped(str(tmp_path / "a.txt"), "empty") or isinstance(found[0], Document)
    assert not isinstance(found[0], Document) or found[0].text == text


@pytest.mark.parametrize("line", ["99/99/2024, 10:15 - x: y", "31/03/2024, 25:15 - x: y", "0/1/2024, 10:15 - x: y"])
def test_a_line_whose_date_cannot_be_is_of_the_message_before(tmp_path: Path, line: str) -> None:
    chat = f"31/03/2024, 10:15 - Ann: The log says\r\n{line}\r\n31/03/2024, 10:17 - Bob: ok\r\n"
    (found,) = documents(written(tmp_path / "a.txt", chat))
    assert found.text == f"[10:15] Ann: The log says\n{line}\n[10:17] Bob: ok"


def test_a_chat_is_read_as_the_text_it_is_on_request(tmp_path: Path) -> None:
    path = written(tmp_path / "_chat.txt", DAYS)
    (found,) = read_paths([path], options=ReadOptions(format="txt"))
    assert isinstance(found, Document)
    assert found.text == DAYS


def test_a_chat_in_the_archive_it_was_exported_as(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "WhatsApp Chat - Bo.zip", "w") as archive:
        archive.writestr("_chat.txt", DAYS)
        archive.writestr("photo.jpg", b"\xff\xd8\xff")
    found = list(read_paths([tmp_path / "WhatsApp Chat - Bo.zip"]))
    assert [type(one) for one in found] == [Document, Document, Skipped]


# Slack ----------------------------------------------------------------------------------------------------------------


def said(user: str, text: str, ts: str = "1711875600.000100", **more: Any) -> dict[str, Any]:
    return {"type": "message", "user": user, "text": text, "ts": ts, **more}


USERS = [{"id": "U1", "name": "ann", "profile": {"display_name": "Ann"}}, {"id": "U2", "name": "bo", "profile": {}}]


def test_a_day_of_a_channel_is_a_document(tmp_path: Path) -> None:
    written(tmp_path / "export" / "users.json", USERS)
    messages = [
        said("U1", "Hi <@U2>, see <https://x.org|the page> &amp; <#C1|plans>"),
        said("U2", "Yes", ts="1711875660.000100"),
        said("U3", "Who?", user_profile={"real_name": "Cy"}),
        said("", "done", username="robot", subtype="bot_message"),
        said("U1", "", files=[{"name": "plan.pdf"}]),
    ]
    (found,) = documents(written(tmp_path / "export" / "general" / "2024-03-31.json", messages))
    assert found.external_id == "general/2024-03-31.json"
    assert (found.title, found.date) == ("#general, 2024-03-31", "2024-03-31")
    assert found.text.splitlines() == [
        "[09:00] Ann: Hi @bo, see the page (https://x.org) & #plans",
        "[09:01] bo: Yes",
        "[09:00] Cy: Who?",
        "[09:00] robot: done",
        "[09:00] Ann: (file: plan.pdf)",
    ]


def test_a_slack_export_as_an_archive_knows_its_users(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("general/2024-03-31.json", json.dumps([said("U1", "Hi")]))
        archive.writestr("users.json", json.dumps(USERS))
    found = [one for one in read_paths([tmp_path / "x.zip"]) if isinstance(one, Document)]
    assert [one.text for one in found] == ["[09:00] Ann: Hi"]


@pytest.mark.parametrize("users", ["not json", {"a": 1}, [{"id": 1}], [1]])
def test_users_that_cannot_be_read_leave_their_ids(tmp_path: Path, users: Any) -> None:
    written(tmp_path / "users.json", users)
    (found,) = documents(written(tmp_path / "general" / "2024-03-31.json", [said("U1", "Hi")]))
    assert found.text == "[09:00] U1: Hi"


# Assistants -----------------------------------------------------------------------------------------------------------


def turn(text: Any, role: str = "user", parent: str | None = None, when: Any = 1711875600.5) -> dict[str, Any]:
    content = {"content_type": "text", "parts": [text]} if not isinstance(text, dict) else text
    return {"message": {"author": {"role": role}, "content": content, "create_time": when}, "parent": parent}


def chatgpt(**nodes: dict[str, Any]) -> dict[str, Any]:
    last = list(nodes)[-1]
    return {
        "title": "Otters",
        "create_time": 1711875600.5,
        "mapping": {"root": {"message": None, "parent": None}, **nodes},
        "current_node": last,
        "conversation_id": "c-1",
    }


def test_a_conversation_with_chatgpt_is_a_document(tmp_path: Path) -> None:
    one = chatgpt(a=turn("What is an otter?", parent="root"), b=turn("A mammal.", "assistant", "a"))
    (found,) = documents(written(tmp_path / "conversations.json", [one]))
    assert found.external_id == f"{tmp_path.name}/conversations.json/c-1"
    assert (found.title, found.date) == ("Otters", "2024-03-31T09:00:00")
    assert found.text == "[2024-03-31 09:00] user: What is an otter?\n[2024-03-31 09:00] assistant: A mammal."


def test_the_branch_that_was_shown_last_is_read_and_what_is_no_text_left_out(tmp_path: Path) -> None:
    one = chatgpt(
        s=turn("You are helpful", "system", "root"),
        a=turn("Question", parent="s"),
        old=turn("First try", "assistant", "a"),
        code=turn({"content_type": "code", "text": "print(1)"}, "assistant", "a"),
        picture=turn({"content_type": "multimodal_text", "parts": [{"asset_pointer": "x"}, "Look"]}, parent="code"),
    )
    (found,) = documents(written(tmp_path / "any-name.json", [one]))
    assert [line.partition("] ")[2] for line in found.text.splitlines()] == [
        "user: Question",
        "assistant: print(1)",
        "user: Look",
    ]


@pytest.mark.parametrize(
    "broken",
    [
        {"mapping": {}},
        {"mapping": {"a": turn("x", parent="a")}, "current_node": "a", "title": None},
        {"mapping": {"a": 5}, "current_node": "a"},
        {"mapping": {"a": turn("x", when="never")}},
    ],
)
def test_a_conversation_that_cannot_be_read_costs_itself_alone(tmp_path: Path, broken: dict[str, Any]) -> None:
    good = chatgpt(a=turn("Question", parent="root"))
    found = list(read_paths([written(tmp_path / "c.json", [good, broken])]))
    assert isinstance(found[0], Document)
    assert len(found) == 2


def test_a_conversation_with_claude_is_a_document(tmp_path: Path) -> None:
    messages = [
        {"sender": "human", "text": "What is an otter?", "created_at": "2024-03-31T09:00:00Z"},
        {"sender": "assistant", "text": "A mammal.", "created_at": "2024-03-31T09:00:05Z"},
    ]
    one = {"uuid": "u-1", "name": "Otters", "chat_messages": messages}
    (found,) = documents(written(tmp_path / "conversations.json", [one]))
    assert found.external_id.endswith("conversations.json/u-1")
    assert (found.title, found.date) == ("Otters", "2024-03-31T09:00:00")
    assert "[2024-03-31 09:00] assistant: A mammal." in found.text


def test_claude_may_write_parts_and_times_of_any_form(tmp_path: Path) -> None:
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "A mammal."}]
    messages = [
        {"sender": "human", "text": "Otters?", "created_at": 1711875600, "content": 5},
        {"sender": "assistant", "text": "", "content": parts, "created_at": "soon"},
        {"sender": None, "text": "Hm"},
        {"sender": "human", "text": "", "content": []},
    ]
    found = list(read_paths([written(tmp_path / "c.json", [{"uuid": "u", "chat_messages": messages}])]))
    assert isinstance(found[0], Document)
    assert found[0].text == "[2024-03-31 09:00] human: Otters?\nassistant: A mammal.\nHm"
    assert (found[0].date, found[0].metadata["participants"]) == ("2024-03-31T09:00:00", ["human", "assistant"])


def test_conversations_of_one_id_are_two_documents(tmp_path: Path) -> None:
    twice = [chatgpt(a=turn(said, parent="root")) for said in ("One", "Two")]
    found = documents(written(tmp_path / "c.json", twice))
    assert len({one.external_id for one in found}) == 2 and [one.text[-3:] for one in found] == ["One", "Two"]


@pytest.mark.parametrize(
    "kept",
    [
        {"mapping": {"a": "b"}},
        {"mapping": {"a": {"type": "text"}}},
        {"chat_messages": ["a", "b"]},
        {"chat_messages": []},
        {"chat_messages": [{"from": "x"}]},
        {"type": "message", "ts": "1709280000.0001"},
    ],
)
def test_records_with_the_keys_of_a_chat_stay_records(tmp_path: Path, kept: dict[str, Any]) -> None:
    records = [{"id": "a", "text": "One", **kept}, {"id": "b", "text": "Two"}]
    found = documents(written(tmp_path / "x.json", records))
    assert [(one.external_id, one.text) for one in found] == [("a", "One"), ("b", "Two")]


@pytest.mark.parametrize("lead", ["", "\ufeff", " \r\n"])
def test_a_day_of_a_channel_may_begin_with_a_mark_or_a_message_without_time(tmp_path: Path, lead: str) -> None:
    day = [{"type": "message", "user": "U1", "text": said} for said in ("Hi", "Ho")]
    day[1]["ts"] = "1711875600.000100"
    (found,) = documents(written(tmp_path / "general" / "notes.json", lead + json.dumps(day)))
    assert (found.title, found.date, found.text) == ("#general, 2024-03-31", "2024-03-31", "U1: Hi\n[09:00] U1: Ho")


@pytest.mark.parametrize(
    "content", ['[{"mapping": {', '{"chat_messages": [}', '[{"type": "message", "text": "x"', '[{"mapping": {}}, 5]']
)
def test_a_chat_that_is_cut_off_is_skipped(tmp_path: Path, content: str) -> None:
    assert all(isinstance(one, Skipped) for one in read_paths([written(tmp_path / "a.json", content)]))


def test_other_json_is_read_as_records(tmp_path: Path) -> None:
    records = [{"id": "a", "text": "One", "type": "message"}, {"id": "b", "text": "Two", "ts": 5}]
    assert [one.external_id for one in documents(written(tmp_path / "a.json", records))] == ["a", "b"]
