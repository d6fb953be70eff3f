"""A server remembers texts at once, and encodes them between questions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from helpers import tiny_loaded
from serving import add_animals, client, error_of, pending, question, serving, wait_for

from memspan.bank.add import add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.locks import encoder_lock
from memspan.bank.verify import verify
from memspan.model.convert import LoadedModel
from memspan.types import Document

MEMORIES = [
    {"id": name, "text": f"The {name} lives in {city}."} for name, city in (("otter", "Rome"), ("lynx", "Quito"))
]


@pytest.fixture
def loaded() -> LoadedModel:
    return tiny_loaded()


@pytest.fixture
def held(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What is encoded waits until this is set."""
    go, real = threading.Event(), loaded.model.encode

    def encode(documents: Sequence[Sequence[int]]) -> Any:
        assert go.wait(60)
        return real(documents)

    monkeypatch.setattr(loaded.model, "encode", encode)
    yield go
    go.set()


@pytest.fixture
def http(loaded: LoadedModel, tmp_path: Path) -> Iterator[httpx.Client]:
    with serving(loaded, f"notes={tmp_path / 'bank'}") as (_, address), client(address) as found:
        yield found


def _ask(http: httpx.Client, text: str = "Where does the otter live?", **fields: Any) -> dict[str, Any]:
    response = http.post("/v1/chat/completions", json=question(text, memspan=fields))
    assert response.status_code == 200, response.text
    return response.json()["memspan"]


def _add_one(http: httpx.Client) -> None:
    assert http.post("/v1/memories", json=MEMORIES[0]).status_code == 201


def _add_batch(http: httpx.Client) -> None:
    assert http.post("/v1/memories/batch", json={"memories": MEMORIES}).status_code == 201


def _import(http: httpx.Client) -> None:
    job = http.post("/v1/imports", json={"memories": MEMORIES}).json()["id"]
    wait_for(lambda: http.get(f"/v1/imports/{job}").json()["status"] == "done")


@pytest.mark.parametrize("add", [_add_one, _add_batch, _import])
def test_what_is_added_is_found_before_it_is_encoded(
    held: threading.Event, http: httpx.Client, add: Callable[[httpx.Client], None]
) -> None:
    add(http)
    assert pending(http) > 0
    trace = _ask(http)
    assert trace["evidence"][0]["id"] == "otter" and trace["pending"] > 0
    found = http.post("/v1/memories/search", json={"query": "otter"}).json()
    assert found["data"][0]["id"] == "otter" and found["pending"] > 0
    held.set()
    wait_for(lambda: not pending(http))
    assert _ask(http, selector="router")["pending"] == 0
    assert http.post("/v1/memories/search", json={"query": "otter"}).json()["pending"] == 0


def test_what_is_changed_before_its_turn_is_not_waited_for(held: threading.Event, http: httpx.Client) -> None:
    _add_batch(http)
    for stream in (False, True):
        asked = question(memspan={"selector": "router"}, stream=stream)
        assert error_of(http.post("/v1/chat/completions", json=asked), 400)["code"] == "not_encoded"
    held.set()
    wait_for(lambda: not pending(http))
    assert http.patch("/v1/memories/lynx", json={"text": "The lynx moved to Bonn."}).status_code == 200
    assert http.delete("/v1/memories/otter").status_code == 200
    assert http.post("/v1/memories/search", json={"query": "lynx Bonn"}).json()["data"][0]["id"] == "lynx"
    wait_for(lambda: not pending(http))
    found = http.post("/v1/memories/search", json={"query": "x", "selector": "router"}).json()["data"]
    assert {item["id"] for item in found} == {"lynx"}


def test_a_server_encodes_what_an_earlier_one_left(loaded: LoadedModel, tmp_path: Path) -> None:
    bank = MemoryBank.create(tmp_path / "bank", manifest_of(loaded))
    for namespace in ("default", "other"):
        documents = [Document(str(number), f"text {number}") for number in range(5)]
        add_documents(bank, loaded, documents, namespace=namespace, later=True)
    bank.close()
    with serving(loaded, f"notes={tmp_path / 'bank'}") as (_, address), client(address) as http:
        for namespace in ("default", "other"):
            wait_for(lambda namespace=namespace: not pending(http, namespace=namespace))
    with_all = MemoryBank.open(tmp_path / "bank")
    assert verify(with_all) == [] and with_all.catalog.counts().pending == 0
    with_all.close()


def test_a_server_that_stops_leaves_the_rest_for_later(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding, real = threading.Event(), loaded.model.encode

    def encode(documents: Sequence[Sequence[int]]) -> Any:
        encoding.set()
        return real(documents)

    monkeypatch.setattr(loaded.model, "encode", encode)
    monkeypatch.setattr("memspan.serve.banks._BEHIND_TOKENS", 1)
    memories = [{"id": str(number), "text": f"text {number}"} for number in range(300)]
    with serving(loaded, f"notes={tmp_path / 'bank'}") as (_, address), client(address) as http:
        assert http.post("/v1/memories/batch", json={"memories": memories}).status_code == 201
        assert encoding.wait(60)
    bank = MemoryBank.open(tmp_path / "bank")
    assert bank.catalog.counts().sources == 300 and verify(bank) == []
    bank.close()


def test_another_process_that_encodes_is_left_to_it(loaded: LoadedModel, tmp_path: Path) -> None:
    MemoryBank.create(tmp_path / "bank", manifest_of(loaded)).close()
    with encoder_lock(tmp_path / "bank") as is_ours:
        assert is_ours
        with serving(loaded, f"notes={tmp_path / 'bank'}") as (_, address), client(address) as http:
            _add_batch(http)
            assert http.get("/v1/memories/otter").status_code == 200 and pending(http) == 2
            _add_one(http)
            assert _ask(http)["evidence"][0]["id"] == "otter"


@pytest.mark.parametrize("route", ["/v1/memories/batch", "/v1/imports"])
@pytest.mark.parametrize(
    "change", [{"text": "another"}, {"title": "T"}, {"metadata": {"n": 1}}, {"date": "2026-01-01"}]
)
def test_two_that_differ_and_have_one_id_are_refused_by_their_places(
    http: httpx.Client, route: str, change: dict[str, Any]
) -> None:
    fillers = [{"id": f"filler {number}", "text": "text"} for number in range(40)]
    error = error_of(http.post(route, json={"memories": [MEMORIES[0], *fillers, MEMORIES[0] | change]}), 400)
    assert error["code"] == "duplicate" and "memories 0 and 41" in error["message"]
    assert http.get("/v1/memories").json()["data"] == []


def test_the_same_twice_is_one(http: httpx.Client) -> None:
    report = http.post("/v1/memories/batch", json={"memories": [MEMORIES[0], MEMORIES[0]]}).json()
    assert (report["ids"], report["added"]) == (["otter", "otter"], 1)
    add_animals(http)
