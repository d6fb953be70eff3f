"""Over HTTP: fields removed, former versions, expiry; a server that runs on stops showing what expires."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import httpx2 as httpx
import pytest
from serving import error_of, question

from memspan.bank import clock

PATH = "/v1/memories/x"


@pytest.fixture
def place(request: pytest.FixtureRequest) -> dict[str, str]:
    """A namespace of the test's own."""
    return {"bank": "other", "namespace": request.node.name[:100]}


def _add(http: httpx.Client, place: dict[str, str], text: str = "The mole digs.", **fields: Any) -> dict[str, Any]:
    response = http.post("/v1/memories", json={"id": "x", "text": text, **fields, **place})
    assert response.status_code == 201, response.text
    return response.json()


def _listed(http: httpx.Client, place: dict[str, str], **times: str) -> list[str]:
    return [one["text"] for one in http.get("/v1/memories", params={**place, **times}).json()["data"]]


def _found(http: httpx.Client, place: dict[str, str], **times: str) -> list[str]:
    body = {"query": "mole", "selector": "lexical", **place, **times}
    return [one["text"] for one in http.post("/v1/memories/search", json=body).json()["data"]]


@pytest.mark.parametrize(
    ("metadata", "after"),
    [
        ({"b": 2}, {"a": 1, "n": {"x": 1}, "b": 2}),
        ({"a": None}, {"n": {"x": 1}}),
        ({"n": {"x": None, "y": [None]}}, {"a": 1, "n": {"y": [None]}}),
        ({}, {"a": 1, "n": {"x": 1}}),
        (None, {"a": 1, "n": {"x": 1}}),
    ],
)
def test_metadata_are_merged_and_null_removes(
    http: httpx.Client, place: dict[str, str], metadata: dict | None, after: dict
) -> None:
    _add(http, place, metadata={"a": 1, "n": {"x": 1}}, title="Mole")
    changed = http.patch(PATH, json={"metadata": metadata, **place}).json()
    assert (changed["metadata"], changed["title"]) == (after, "Mole")
    assert _add(http, place, metadata={"only": 1})["metadata"] == {"only": 1}, "adding replaces"


def test_two_changes_at_once_of_two_fields_both_survive(http: httpx.Client, place: dict[str, str]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    _add(http, place)
    with ThreadPoolExecutor(6) as pool:
        bodies = [{"metadata": {f"field{number}": number}, **place} for number in range(12)]
        assert {one.status_code for one in pool.map(lambda body: http.patch(PATH, json=body), bodies)} == {200}
    assert http.get(PATH, params=place).json()["metadata"] == {f"field{number}": number for number in range(12)}


def test_a_former_version_is_got_listed_and_found_at_its_time(http: httpx.Client, place: dict[str, str]) -> None:
    _add(http, place, "The mole lives in Bern.", date="2025-01-01")
    then = clock.moment()
    _add(http, place, "The mole lives in Rome.", date="2026-01-01")
    for read in (_listed, _found):
        assert read(http, place) == ["The mole lives in Rome."]
        assert read(http, place, as_of="2025-06-01") == ["The mole lives in Bern."]
        assert read(http, place, known_at=then) == ["The mole lives in Bern."]
        assert read(http, place, as_of="2024-06-01") == []
    now, old = (http.get(PATH, params={**place, **times}).json() for times in ({}, {"as_of": "2025-06-01"}))
    assert (now["text"], now["superseded_at"]) == ("The mole lives in Rome.", None)
    assert (old["text"], old["superseded_at"]) == ("The mole lives in Bern.", now["recorded_at"])
    assert error_of(http.get(PATH, params={**place, "known_at": "1999-01-01"}), 404)["code"] == "memory_not_found"
    for times in ({"as_of": "then"}, {"known_at": "2026-13-01"}):
        error_of(http.get("/v1/memories", params={**place, **times}), 400)
        error_of(http.post("/v1/memories/search", json={"query": "x", **place, **times}), 400)


def test_the_model_reads_the_version_of_the_time_asked_for(http: httpx.Client, place: dict[str, str]) -> None:
    _add(http, place, "The mole lives in Bern.", date="2025-01-01")
    _add(http, place, "The mole lives in Rome.", date="2026-01-01")
    for selector in ("lexical", "router", "hybrid"):
        for times, town in (({}, "Rome"), ({"as_of": "2025-06-01"}, "Bern")):
            fields = {**place, **times, "selector": selector}
            body = question("Where does the mole live?", memspan=fields, max_tokens=2)
            answer = http.post("/v1/chat/completions", json=body).json()
            assert [one["text"] for one in answer["memspan"]["evidence"]] == [f"The mole lives in {town}."]


def test_what_expires_is_gone_at_the_moment_although_nothing_is_committed(
    http: httpx.Client, place: dict[str, str], later: list[timedelta]
) -> None:
    _add(http, place, "The mole digs.", ttl="2d")
    assert http.post("/v1/memories", json={"id": "y", "text": "The mole sleeps.", **place}).status_code == 201
    for _ in range(2):
        assert _listed(http, place) == ["The mole digs.", "The mole sleeps."]
        assert sorted(_found(http, place)) == ["The mole digs.", "The mole sleeps."]
        later.append(timedelta(days=1))
    later.append(timedelta(days=2, seconds=1))
    assert _listed(http, place) == _found(http, place) == ["The mole sleeps."]
    assert error_of(http.get(PATH, params=place), 404)["code"] == "memory_not_found"
    assert http.patch(PATH, json={"title": "x", **place}).status_code == 404
    assert _add(http, place, "The mole is back.")["expires"] is None


def test_expiry_and_pin_are_set_changed_and_removed(
    http: httpx.Client, place: dict[str, str], later: list[timedelta]
) -> None:
    added = _add(http, place, expires="2999-01-01", pinned=True)
    assert (added["expires"], added["pinned"]) == ("2999-01-01", True)
    assert _add(http, place, "Other.")["expires"] == "2999-01-01", "who does not speak of it keeps it"
    changed = http.patch(PATH, json={"ttl": "12h", "pinned": False, **place}).json()
    left = datetime.fromisoformat(changed["expires"]) - clock.now()
    assert timedelta(hours=11) < left <= timedelta(hours=12)
    assert http.patch(PATH, json={"expires": "never", **place}).json()["expires"] is None
    later.append(timedelta(days=3))
    assert _listed(http, place) == ["Other."]


@pytest.mark.parametrize(
    "fields",
    [
        {"expires": "soon"},
        {"expires": ""},
        {"expires": "2001-01-01"},
        {"ttl": "1y"},
        {"ttl": ""},
        {"ttl": "1d", "expires": "2999-01-01"},
        {"expires": 5},
        {"pinned": "maybe"},
    ],
)
def test_an_expiry_that_is_none_is_refused(http: httpx.Client, place: dict[str, str], fields: dict[str, Any]) -> None:
    error_of(http.post("/v1/memories", json={"id": "x", "text": "The mole digs.", **fields, **place}), 400)
    batch = {"memories": [{"id": "x", "text": "The mole digs.", **fields}], **place}
    error_of(http.post("/v1/memories/batch", json=batch), 400)
    _add(http, place)
    error_of(http.patch(PATH, json={**fields, **place}), 400)
    assert http.get(PATH, params=place).json()["expires"] is None


def test_the_status_counts_versions_and_what_has_expired(
    http: httpx.Client, place: dict[str, str], later: list[timedelta]
) -> None:
    for text in ("one", "two", "three"):
        _add(http, place, text)
    assert http.patch(PATH, json={"ttl": "1d", **place}).status_code == 200
    (bank,) = (
        one
        for one in http.get("/v1/status", params={"namespace": place["namespace"]}).json()["banks"]
        if one["name"] == "other"
    )
    assert (bank["memories"], bank["versions"], bank["expired"]) == (1, 2, 0)
    later.append(timedelta(days=2))
    (bank,) = (
        one
        for one in http.get("/v1/status", params={"namespace": place["namespace"]}).json()["banks"]
        if one["name"] == "other"
    )
    assert (bank["memories"], bank["versions"], bank["expired"]) == (0, 2, 1)
