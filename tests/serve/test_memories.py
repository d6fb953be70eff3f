"""Memories over HTTP: what is added can be got, found, changed and forgotten, page by page and in the background."""

from __future__ import annotations

import json
import threading
from typing import Any
from urllib.parse import quote

import httpx2 as httpx
import pytest
from serving import ANIMALS, error_of, wait_for

from memspan.bank.locks import writer_lock
from memspan.bank.scope import parse_expressions
from memspan.generate.memory import Memory
from memspan.serve.banks import ServedBank
from memspan.serve.run import Server


@pytest.fixture
def place(request: pytest.FixtureRequest) -> dict[str, str]:
    """A namespace of the test's own."""
    return {"bank": "other", "namespace": request.node.name[:100]}


def _bank(server: Server, name: str = "other") -> ServedBank:
    return server.config.app.state.service.bank(name)  # type: ignore[union-attr]


def test_a_memory_is_added_got_changed_and_forgotten(http: httpx.Client, place: dict[str, str]) -> None:
    given = {"id": "a/b c?.md", "text": "The mole digs.", "title": "Mole", "metadata": {"x": [1]}, "date": "2024-05-06"}
    added = http.post("/v1/memories", json={**given, **place})
    assert added.status_code == 201
    assert {name: added.json()[name] for name in given} == given
    path = "/v1/memories/a/b%20c%3F.md"
    assert http.get(path, params=place).json() == added.json()
    changed = http.patch(path, json={"metadata": {"x": 2}, **place}).json()
    assert (changed["text"], changed["metadata"]) == ("The mole digs.", {"x": 2})
    assert http.patch(path, json={"text": "It sleeps.", **place}).json()["text"] == "It sleeps."
    assert http.delete(path, params=place).json() == {"object": "memory.deleted", "id": given["id"], "deleted": True}
    for response in (
        http.get(path, params=place),
        http.delete(path, params=place),
        http.patch(path, json={"text": "x", **place}),
        http.get("/v1/memories/a%00b", params=place),
    ):
        assert error_of(response, 404)["code"] == "memory_not_found"


@pytest.mark.parametrize(
    ("date", "found_by", "not_by"),
    [
        ("2026-03", "date=2026-03-31", "date<2026-03"),
        ("2026", "date>=2026-12", "date>2026-05"),
        ("2026-03-01T00:30:00+09:00", "date=2026-03-01", "date=2026-02-28"),
        ("2026-03-01T00:30:00+09:00", "date<2026-02-28T15:31Z", "date<2026-02-28T15:30Z"),
    ],
)
def test_a_date_keeps_its_precision_and_zone(
    http: httpx.Client, place: dict[str, str], date: str, found_by: str, not_by: str
) -> None:
    place["namespace"] = f"dates-{date[:7]}-{len(found_by)}"
    added = http.post("/v1/memories", json={"id": "x", "text": "The mole digs.", "date": date, **place}).json()
    assert added["date"] == date
    for expression, count in ((found_by, 1), (not_by, 0)):
        where = parse_expressions([expression])
        body = {"query": "mole", "selector": "lexical", "where": where, **place}
        assert len(http.post("/v1/memories/search", json=body).json()["data"]) == count


def test_a_memory_without_an_id_is_remembered_once(http: httpx.Client, place: dict[str, str]) -> None:
    ids = {http.post("/v1/memories", json={"text": "The mole digs.", **place}).json()["id"] for _ in range(2)}
    assert len(ids) == 1
    assert len(http.get("/v1/memories", params=place).json()["data"]) == 1


def test_one_that_is_there_already_may_be_refused(http: httpx.Client, place: dict[str, str]) -> None:
    for text, status in (("one", 201), ("two", 409)):
        body = {"id": "x", "text": text, "existing": "refuse", **place}
        assert http.post("/v1/memories", json=body).status_code == status
    assert http.get("/v1/memories/x", params=place).json()["text"] == "one"


def test_pages_hold_everything_once(http: httpx.Client, place: dict[str, str]) -> None:
    memories = [{"id": f"n{number}", "text": f"number {number}", "metadata": {"n": number}} for number in range(7)]
    report = http.post("/v1/memories/batch", json={"memories": memories, **place}).json()
    assert report["ids"] == [one["id"] for one in memories] and report["added"] == 7
    found, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        params: dict[str, Any] = {**place, "limit": 3, **({"cursor": cursor} if cursor else {})}
        page = http.get("/v1/memories", params=params).json()
        assert page["has_more"] == (page["next_cursor"] is not None)
        found += [one["id"] for one in page["data"]]
        cursor, pages = page["next_cursor"], pages + 1
    assert found == report["ids"] and pages == 3
    where = json.dumps({"n": {">=": 5}})
    page = http.get("/v1/memories", params={**place, "where": where, "text": False}).json()
    assert [(one["id"], one["text"]) for one in page["data"]] == [("n5", None), ("n6", None)]
    for params in ({"where": "{"}, {"where": "[1]"}, {"where": '{"m": 1}'}, {"as_of": "soon"}, {"cursor": "x"}):
        error_of(http.get("/v1/memories", params={**place, **params}), 400)


def test_search_finds_what_is_there_and_nothing_where_nothing_is(http: httpx.Client, place: dict[str, str]) -> None:
    for selector in (None, "lexical", "router", "hybrid"):
        body = {"query": "the lynx", "selector": selector, "limit": 2}
        found = http.post("/v1/memories/search", json=body).json()["data"]
        assert len(found) <= 2
        if selector != "router":
            assert found[0]["id"] == "animals/lynx" and ANIMALS["lynx"] in found[0]["text"]
    assert http.post("/v1/memories/search", json={"query": "the lynx", **place}).json()["data"] == []
    assert http.post("/v1/memories/search", json={"query": "the lynx", "min_score": 1}).json()["data"] == []
    error_of(http.post("/v1/memories/search", json={"query": "the lynx", "min_score": 1.1}), 400)
    error_of(http.post("/v1/memories/search", json={"query": " "}), 400)


def test_an_import_tells_how_far_it_is(http: httpx.Client, place: dict[str, str]) -> None:
    memories = [{"id": f"n{number}", "text": f"number {number}"} for number in range(70)]
    job = http.post("/v1/imports", json={"memories": memories, **place}).json()
    assert job["status"] == "running" and job["total"] == 70
    with http.stream("GET", f"/v1/imports/{job['id']}/events") as response:
        states = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
    assert [state["done"] for state in states] == sorted(state["done"] for state in states)
    assert states[-1]["status"] == "done" and states[-1]["added"] == states[-1]["done"] == 70
    assert http.get(f"/v1/imports/{job['id']}").json() == states[-1]
    assert len(http.get("/v1/memories", params={**place, "limit": 100}).json()["data"]) == 70
    error_of(http.get("/v1/imports/import-0"), 404)


def test_a_single_change_gets_in_between_an_import_and_a_cancelled_one_stops(
    http: httpx.Client, animals: tuple[Server, str], place: dict[str, str]
) -> None:
    bank, block = _bank(animals[0]), threading.Event()
    held = bank.write("held", lambda memory: block.wait(30))
    memories = [{"id": f"n{number}", "text": f"number {number}"} for number in range(200)]
    job = http.post("/v1/imports", json={"memories": memories, **place}).json()
    wait_for(lambda: bank.num_writes == 2)
    single = bank.write(place["namespace"], lambda memory: [memory.bank.catalog.counts(memory.namespace)])
    block.set()
    assert held.result(30)
    (counts,) = single.result(30)
    assert 0 < counts.sources < 200, "the import had not ended"
    stopped = http.delete(f"/v1/imports/{job['id']}").json()
    assert stopped["status"] == "cancelled" and stopped["done"] < 200


def test_writers_in_threads_take_turns_and_readers_do_not_wait(
    http: httpx.Client, animals: tuple[Server, str], place: dict[str, str]
) -> None:
    bank, block = _bank(animals[0]), threading.Event()
    bank.write("held", lambda memory: block.wait(30))
    statuses: list[int] = []

    def add(number: int) -> None:
        body = {"id": f"n{number}", "text": f"number {number}", **place}
        statuses.append(http.post("/v1/memories", json=body).status_code)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    wait_for(lambda: bank.num_writes == 7)
    assert http.get("/v1/memories", params=place).json()["data"] == []
    assert http.post("/v1/memories/search", json={"query": "lynx", **place}).status_code == 200
    block.set()
    for thread in threads:
        thread.join(30)
    assert statuses == [201] * 6
    assert len(http.get("/v1/memories", params=place).json()["data"]) == 6


def test_a_writer_waits_for_another_process_that_writes(
    http: httpx.Client, animals: tuple[Server, str], place: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = _bank(animals[0])
    started = threading.Event()

    def change(memory: Memory) -> int:
        started.set()
        return memory.add([]).added

    with writer_lock(bank.memory("x").bank.folder, patience=30):
        waiting = bank.write(place["namespace"], change)
        assert started.wait(30)
        assert not waiting.done()
    assert waiting.result(30) == 0
    monkeypatch.setattr("memspan.serve.banks._BUSY_SECONDS", 0.0)
    with writer_lock(bank.memory("x").bank.folder, patience=30):
        response = http.post("/v1/memories", json={"text": "x", **place})
        assert error_of(response, 503)["code"] == "bank_busy" and int(response.headers["Retry-After"]) >= 1


def test_too_many_changes_are_refused(
    http: httpx.Client, animals: tuple[Server, str], place: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, block = _bank(animals[0]), threading.Event()
    monkeypatch.setattr(bank, "_max_writes", 1)
    bank.write("held", lambda memory: block.wait(30))
    response = http.post("/v1/memories", json={"text": "x", **place})
    assert error_of(response, 429)["code"] == "queue_full" and int(response.headers["Retry-After"]) >= 1
    block.set()
    wait_for(lambda: bank.num_writes == 0)
    assert http.post("/v1/memories", json={"text": "x", **place}).status_code == 201


@pytest.mark.parametrize(
    "fields",
    [
        {"text": ""},
        {"text": "  "},
        {"text": "a\0b"},
        {"text": "\ud800"},
        {"text": "x", "id": ""},
        {"text": "x", "id": "\0"},
        {"text": "x", "date": "soon"},
        {"text": "x", "metadata": {"a": "\ud800"}},
        {"text": "x", "metadata": 1},
        {"text": "x", "metadata": {"a": json.loads("[" * 101 + "]" * 101)}},
        {"text": "x", "metadata": {"a": json.loads('{"b":' * 900 + "1" + "}" * 900)}},
        {"text": "x", "date": "03/04/2024"},
        {"text": "x", "path": "/etc/passwd"},
        {"text": "x", "bank": ""},
    ],
)
def test_what_cannot_be_remembered_is_refused(http: httpx.Client, fields: dict[str, Any]) -> None:
    for path, body in (
        ("/v1/memories", fields),
        ("/v1/memories/batch", {"memories": [fields]}),
        ("/v1/imports", {"memories": [fields]}),
    ):
        content = json.dumps(body)
        error_of(http.post(path, content=content, headers={"Content-Type": "application/json"}), 400)


@pytest.mark.parametrize(
    ("method", "path", "params", "told"),
    [
        ("GET", "/v1/memories", {"namespce": "me"}, "did you mean 'namespace'?"),
        ("GET", "/v1/memories", {"limit": 1, "zzz": 2}, "this route takes bank"),
        ("GET", "/v1/memories/animals%2Fotter", {"Namespace": "me"}, "did you mean 'namespace'?"),
        ("DELETE", "/v1/memories/animals%2Fotter", {"namespac": "me"}, "did you mean 'namespace'?"),
        ("POST", "/v1/memories", {"namespace": "me"}, "takes none"),
        ("POST", "/v1/memories/search", {"namespace": "me"}, "takes none"),
        ("GET", "/v1/imports", {"namespace": "me"}, "takes none"),
        ("GET", "/v1/status", {"bank": "other"}, "this route takes namespace"),
    ],
)
def test_what_a_route_does_not_read_is_refused(
    http: httpx.Client, method: str, path: str, params: dict[str, Any], told: str
) -> None:
    """Or a misspelt namespace would be the key's own."""
    body = {"text": "x", "query": "x"} if method == "POST" else None
    if body:
        del body["query" if not path.endswith("search") else "text"]
    error = error_of(http.request(method, path, params=params, json=body), 400)
    assert told in error["message"] and error["param"] in params
    assert http.get("/v1/memories/animals%2Fotter").status_code == 200


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_place_in_a_body_that_is_not_read_is_refused(http: httpx.Client, method: str) -> None:
    error_of(http.request(method, "/v1/memories/animals%2Fotter", json={"namespace": "me"}), 400)
    assert http.get("/v1/memories/animals%2Fotter").status_code == 200


@pytest.mark.parametrize("id", ["docs/line\nend.md", "docs/end\n", "a\r\n\tb", "\x1b[31m", "s/" + "l" * 250])
def test_a_memory_of_any_name_is_got_changed_and_forgotten(http: httpx.Client, place: dict[str, str], id: str) -> None:
    assert http.post("/v1/memories", json={"id": id, "text": "The mole digs.", **place}).json()["id"] == id
    path = f"/v1/memories/{quote(id, safe='')}"
    assert http.get(path, params=place).json()["id"] == id
    assert http.patch(path, json={"title": "Mole", **place}).json()["title"] == "Mole"
    assert http.delete(path, params=place).json() == {"object": "memory.deleted", "id": id, "deleted": True}


TALK = [
    {"role": "user", "name": "Ann", "content": "Where does the otter live?", "date": "2026-03-01T10:00:00Z"},
    {"role": "assistant", "content": "In Rome."},
    {"role": "user", "content": [{"type": "tool_result", "content": "5"}, {"type": "text", "text": "Thanks."}]},
]


def test_a_conversation_is_remembered_by_its_exchanges(http: httpx.Client, place: dict[str, str]) -> None:
    sent = {"messages": TALK, "session": "s", "date": "2026-03-02", **place}
    answer = http.post("/v1/memories/conversation", json=sent)
    assert answer.status_code == 201 and answer.json()["added"] == 2
    assert http.post("/v1/memories/conversation", json=sent).json() == {**answer.json(), "added": 0, "unchanged": 2}
    first, second = (http.get(f"/v1/memories/{quote(id, safe='')}", params=place).json() for id in answer.json()["ids"])
    assert first["text"] == "Ann: Where does the otter live?\nassistant: In Rome.\ntool: 5"
    assert (first["date"], second["date"]) == ("2026-03-01T10:00:00", "2026-03-02")
    assert second["text"] == "user: Thanks." and second["metadata"] == {"speaker": "user", "session": "s"}


@pytest.mark.parametrize(
    "sent",
    [
        {"messages": []},
        {"messages": "hi"},
        {"messages": ["hi"]},
        {"messages": [{"content": "hi"}]},
        {"messages": [{"role": "system", "content": "hi"}]},
        {"messages": TALK, "date": "soon"},
        {"messages": TALK, "speaker": "Ann"},
        {"messages": TALK * 400},
    ],
)
def test_what_is_no_conversation_is_a_400(http: httpx.Client, place: dict[str, str], sent: dict[str, Any]) -> None:
    error_of(http.post("/v1/memories/conversation", json={**sent, **place}), 400)


def test_what_changed_since(http: httpx.Client, place: dict[str, str]) -> None:
    assert http.get("/v1/changes", params={"since": "1h", **place}).json()["data"] == []
    memories = [{"id": name, "text": name, "title": name.upper()} for name in ("a/b", "c")]
    http.post("/v1/memories/batch", json={"memories": memories, **place})
    found = http.get("/v1/changes", params={"since": "1h", **place}).json()
    assert [(one["kind"], one["id"], one["title"]) for one in found["data"]] == [
        ("added", "a/b", "A/B"),
        ("added", "c", "C"),
    ]
    page = http.get("/v1/changes", params={"since": "1h", "limit": 1, "offset": 1, **place}).json()
    assert page["data"] == found["data"][1:] and not page["has_more"]
    http.delete("/v1/memories/c", params=place)
    later = http.get("/v1/changes", params={"after_commit": found["commit"], **place}).json()
    assert [(one["kind"], one["id"]) for one in later["data"]] == [("deleted", "c")]


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"since": "1h", "after_commit": 0},
        {"since": "soon"},
        {"after_commit": -1},
        {"after_commit": 10**12},
        {"since": "1h", "limit": 0},
        {"since": "1h", "limit": 1001},
        {"since": "1h", "offset": -1},
        {"sinse": "1h"},
    ],
)
def test_changes_since_no_time_are_a_400(http: httpx.Client, place: dict[str, str], query: dict[str, Any]) -> None:
    error_of(http.get("/v1/changes", params={**query, **place}), 400)
