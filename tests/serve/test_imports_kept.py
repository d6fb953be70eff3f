"""An import that was accepted is kept: it goes on after a restart, whatever ended the server, and is listed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch
from filelock import FileLock
from helpers import save_backbone
from serving import client, error_of, process, serving, wait_for

from memspan.model.convert import LoadedModel, convert
from memspan.serve.keys import KeyFile
from memspan.serve.run import Server

MEMORIES = [
    {"id": f"n{n}", "text": f"number {n}\nñ 😀", "title": "t", "metadata": {"n": n}, "date": "2024-05-06"}
    | {"expires": "2999-01-01T00:00:00", "pinned": n % 2 == 0}
    for n in range(70)
]


def _bank(server: Server) -> Any:
    return server.config.app.state.service.bank("notes")  # type: ignore[union-attr]


def _stored(http: httpx.Client) -> list[dict[str, Any]]:
    return http.get("/v1/memories", params={"limit": 100}).json()["data"]


def _begun(http: httpx.Client, server: Server) -> tuple[str, threading.Event]:
    """An import whose first slice waits for its turn, and what lets it go on."""
    block = threading.Event()
    _bank(server).write("held", lambda memory: block.wait(30))
    job = http.post("/v1/imports", json={"memories": MEMORIES}).json()
    return job["id"], block


def test_it_goes_on_behind_what_was_told(loaded: LoadedModel, tmp_path: Path) -> None:
    with serving(loaded, tmp_path / "notes") as (server, address), client(address) as http:
        job, block = _begun(http, server)
        spooled = tmp_path / "notes" / "imports" / f"{job}.jsonl"
        assert len(spooled.read_text("utf-8").splitlines()) == 70, "it is on disk before it is accepted"
        server.config.app.state.service.stop()  # type: ignore[union-attr]
        wait_for(lambda: _job(server, job).task.done())
        block.set()
    # As if two slices had been told, and a memory of them been deleted since.
    state = tmp_path / "notes" / "imports" / f"{job}.json"
    told = json.loads(state.read_text("utf-8"))
    assert (told["status"], told["done"], told["total"]) == ("running", 0, 70)
    state.write_text(json.dumps({**told, "done": 64, "added": 64}), encoding="utf-8")
    with serving(loaded, tmp_path / "notes") as (server, address), client(address) as http:
        wait_for(lambda: _job(server, job).status != "running")
        ended = http.get(f"/v1/imports/{job}").json()
        assert (ended["status"], ended["done"], ended["added"]) == ("done", 70, 70)
        found = {one["id"]: one for one in _stored(http)}
        assert sorted(found) == sorted(f"n{n}" for n in range(64, 70))
        for given in MEMORIES[64:]:
            assert {name: found[given["id"]][name] for name in given} == given
        assert not spooled.exists()
    with serving(loaded, tmp_path / "notes") as (_, address), client(address) as http:
        assert http.get(f"/v1/imports/{job}").json() == ended, "how it ended is known after the next restart"


def _job(server: Server, job: str) -> Any:
    return server.config.app.state.service.imports.get(job)  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the process is killed by a signal")
def test_a_killed_server_loses_none_that_it_accepted(tmp_path: Path) -> None:
    save_backbone(tmp_path / "plain")
    convert(str(tmp_path / "plain"), tmp_path / "msa", dtype=torch.float32, chunk_size=4, top_k_docs=2)
    jobs = []
    with process(tmp_path / "msa", tmp_path / "notes") as (server, address), client(address) as http:
        for part in range(3):
            memories = [{"id": f"{part}/{n}", "text": f"part {part} number {n}"} for n in range(150)]
            jobs.append(http.post("/v1/imports", json={"memories": memories}).json()["id"])
        server.kill()
        server.wait(30)
    with process(tmp_path / "msa", tmp_path / "notes") as (_, address), client(address) as http:
        assert {job["id"] for job in http.get("/v1/imports").json()["data"]} == set(jobs)
        wait_for(lambda: all(job["status"] == "done" for job in http.get("/v1/imports").json()["data"]), 120)
        assert all(http.get(f"/v1/memories/{part}%2F{n}").status_code == 200 for part in range(3) for n in (0, 75, 149))


def test_a_cancelled_one_stays_cancelled(loaded: LoadedModel, tmp_path: Path) -> None:
    with serving(loaded, tmp_path / "notes") as (server, address), client(address) as http:
        job, block = _begun(http, server)
        assert http.delete(f"/v1/imports/{job}").json()["status"] == "cancelled"
        block.set()
    with serving(loaded, tmp_path / "notes") as (_, address), client(address) as http:
        assert http.get(f"/v1/imports/{job}").json()["status"] == "cancelled" and _stored(http) == []
        assert http.delete(f"/v1/imports/{job}").json()["status"] == "cancelled"


@pytest.mark.parametrize("damage", ["state", "no memories", "half a memory", "not a state", "another's"])
def test_a_damaged_one_is_named_and_nothing_else_is_lost(
    loaded: LoadedModel, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(loaded, tmp_path / "notes") as (server, address), client(address) as http:
        job, block = _begun(http, server)
        server.config.app.state.service.stop()  # type: ignore[union-attr]
        wait_for(lambda: _job(server, job).task.done())
        block.set()
    state, memories = (tmp_path / "notes" / "imports" / f"{job}.{kind}" for kind in ("json", "jsonl"))
    if damage == "no memories":
        memories.unlink()
    elif damage == "half a memory":
        memories.write_text(memories.read_text("utf-8")[:-20], encoding="utf-8")
    elif damage == "another's":
        state.write_text(state.read_text("utf-8").replace(job, "import-../../x"), encoding="utf-8")
    else:
        state.write_text({"state": '{"id": ', "not a state": "[1]"}[damage], encoding="utf-8")
    with serving(loaded, tmp_path / "notes") as (server, address), client(address) as http:
        if "memor" in damage:
            wait_for(lambda: _job(server, job).status == "failed")
            assert "import them again" in http.get(f"/v1/imports/{job}").json()["error"]
        else:
            error_of(http.get(f"/v1/imports/{job}"), 404)
            assert job in caplog.text and str(tmp_path) not in caplog.text
        assert http.post("/v1/memories", json={"text": "x"}).status_code == 201


def test_one_that_another_server_has_is_left_to_it(loaded: LoadedModel, tmp_path: Path) -> None:
    with serving(loaded, tmp_path / "notes") as (server, address), client(address) as http:
        job, block = _begun(http, server)
        server.config.app.state.service.stop()  # type: ignore[union-attr]
        wait_for(lambda: _job(server, job).task.done())
        block.set()
    with (
        FileLock(tmp_path / "notes" / "imports" / f"{job}.lock"),
        serving(loaded, tmp_path / "notes") as (_, address),
        client(address) as http,
    ):
        error_of(http.get(f"/v1/imports/{job}"), 404)
        assert http.get("/v1/imports").json()["data"] == []
    with serving(loaded, tmp_path / "notes") as (server, address), client(address) as http:
        wait_for(lambda: _job(server, job).status == "done")
        assert len(_stored(http)) == 70


@pytest.fixture
def keyed(loaded: LoadedModel, tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    keys = KeyFile(tmp_path / "keys.json")
    secrets = {name: keys.add(name, ("write",), (name,))[1] for name in ("ann", "bob")}
    secrets["reader"] = keys.add("reader", ("read",), ("ann",))[1]
    with serving(loaded, tmp_path / "notes", keys=keys) as (_, address):
        yield address, secrets


def test_a_writing_key_reads_and_follows_its_own_imports_alone(keyed: tuple[str, dict[str, str]]) -> None:
    address, secrets = keyed
    with client(address, secrets["ann"]) as ann, client(address, secrets["bob"]) as bob:
        job = ann.post("/v1/imports", json={"memories": MEMORIES[:3]}).json()["id"]
        with ann.stream("GET", f"/v1/imports/{job}/events") as response:
            assert [line for line in response.iter_lines() if '"done"' in line]
        assert ann.get(f"/v1/imports/{job}").json()["added"] == 3
        assert [one["id"] for one in ann.get("/v1/imports").json()["data"]] == [job]
        assert len(ann.get("/v1/memories").json()["data"]) == 3
        assert bob.get("/v1/imports").json()["data"] == []
        for method, path in (("GET", ""), ("GET", "/events"), ("DELETE", "")):
            error_of(bob.request(method, f"/v1/imports/{job}{path}"), 404)
        error_of(ann.get("/metrics"), 403)
    with client(address, secrets["reader"]) as reader:
        assert [one["id"] for one in reader.get("/v1/imports").json()["data"]] == [job]
        error_of(reader.delete(f"/v1/imports/{job}"), 403)


def test_the_newest_stands_first_and_old_ones_are_forgotten(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memspan.serve.imports._MOST_KEPT", 2)
    with serving(loaded, tmp_path / "notes") as (server, address), client(address) as http:
        jobs = []
        for n in range(4):
            jobs.append(http.post("/v1/imports", json={"memories": MEMORIES[n : n + 1]}).json()["id"])
            wait_for(lambda: _job(server, jobs[-1]).status == "done")
        assert [one["id"] for one in http.get("/v1/imports").json()["data"]] == jobs[:1:-1]
        assert {path.stem for path in (tmp_path / "notes" / "imports").iterdir()} <= set(jobs[2:])
