"""Serving on Ray Serve: a writer's replica, readers that follow it. `test_ray.py` runs it in a network of its own."""

from __future__ import annotations

import importlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest
import torch
from helpers import ENDOFTEXT, save_backbone

ray = pytest.importorskip("ray", reason="Ray is not installed")
importlib.import_module("ray.serve")

import memspan  # noqa: E402
from memspan.integrations.ray_serve import application  # noqa: E402
from memspan.model.convert import convert  # noqa: E402
from memspan.serve.keys import KeyFile  # noqa: E402
from memspan.serve.settings import ServeSettings  # noqa: E402

ADDRESS = "http://127.0.0.1:8000"
MOST_BYTES = 20_000


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Keys by their scope, and the file that holds them."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    made = {scope: KeyFile(path).add(scope, (scope,), ())[1] for scope in ("read", "write")}
    return {**made, "file": str(path)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that never ends an answer by itself, with room for long ones."""
    folder = tmp_path_factory.mktemp("models")
    backbone = save_backbone(folder / "plain")
    with torch.no_grad():
        backbone.lm_head.weight[ENDOFTEXT:] = 0
    backbone.config.max_position_embeddings = 8192
    backbone.save_pretrained(folder / "plain")
    convert(str(folder / "plain"), folder / "msa", dtype=torch.float32, chunk_size=4, top_k_docs=2)
    return folder / "msa"


@pytest.fixture(scope="module", autouse=True)
def _served(tmp_path_factory: pytest.TempPathFactory, keys: dict[str, str], checkpoint: Path) -> Iterator[None]:
    """Ray and Ray Serve, with a bank that begins empty."""
    from ray import serve

    folder = tmp_path_factory.mktemp("banks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("MEMSPAN_CACHE", str(folder / "cache"))
        patch.setenv("PYTHONPATH", str(Path(memspan.__file__).parents[1]))  # replicas have the same memspan
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            _node_ip_address="127.0.0.1",
            log_to_driver=False,
            logging_level="ERROR",
        )
        served = application(
            f"notes={folder / 'bank'}",
            str(folder / "published"),
            keys=keys["file"],
            readers=(1, 2),
            model=checkpoint,
            dtype="float32",
            settings=ServeSettings(max_batch=1, max_queue=8, max_request_bytes=MOST_BYTES, grace=0.5),
        )
        serve.run(served)
        yield
        serve.shutdown()
        ray.shutdown()


@pytest.fixture
def http(keys: dict[str, str]) -> Iterator[httpx.Client]:
    with _client(keys["write"]) as client:
        yield client


def _client(key: str) -> httpx.Client:
    return httpx.Client(base_url=ADDRESS, headers={"Authorization": f"Bearer {key}"}, timeout=60)


def _wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def _question(text: str = "Where does the otter live?", **fields: Any) -> dict[str, Any]:
    return {"model": "memspan/notes", "messages": [{"role": "user", "content": text}], "max_tokens": 4, **fields}


def _ids(http: httpx.Client) -> list[str]:
    return [one["id"] for one in http.get("/v1/memories").raise_for_status().json()["data"]]


def _replicas(name: str) -> list[int]:
    """The processes of a deployment's replicas."""
    children = psutil.Process().children(recursive=True)
    return [child.pid for child in children if f"ServeReplica:default:{name}" in " ".join(_words(child))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_readers_see_what_the_writer_is_given(http: httpx.Client, keys: dict[str, str]) -> None:
    assert httpx.get(f"{ADDRESS}/health").json() == httpx.get(f"{ADDRESS}/ready").json() == {"status": "ok"}
    assert httpx.get(f"{ADDRESS}/v1/memories").status_code == 401
    added = http.post(
        "/v1/memories",
        json={"id": "otter/1", "text": "The otter lives in Rome."},
        headers={"X-Request-ID": "mine"},
    )
    assert (added.status_code, added.json()["id"]) == (201, "otter/1")
    for response, expected in ((added, {"mine"}), (http.get("/v1/status"), None)):  # Ray Serve's proxy repeats it
        known_as = set(response.headers["X-Request-ID"].split(", "))
        assert len(known_as) == 1 and expected in (None, known_as)
    assert added.headers["X-Content-Type-Options"] == "nosniff"
    _wait_for(lambda: _ids(http) == ["otter/1"])
    found = http.post("/v1/memories/search", json={"query": "otter", "selector": "lexical"}).raise_for_status().json()
    assert [one["id"] for one in found["data"]] == ["otter/1"]
    changed = http.patch("/v1/memories/otter/1", json={"text": "The otter lives in Oslo."})
    assert changed.raise_for_status().json()["text"] == "The otter lives in Oslo."
    _wait_for(lambda: "Oslo" in http.get("/v1/memories/otter/1").text)
    answer = http.post("/v1/chat/completions", json=_question()).raise_for_status().json()
    assert [one["id"] for one in answer["memspan"]["evidence"]] == ["otter/1"]
    with http.stream("POST", "/v1/chat/completions", json=_question(stream=True)) as streamed:
        assert list(streamed.iter_lines())[-2:][0] == "data: [DONE]"
    job = http.post("/v1/imports", json={"memories": [{"id": f"{n}", "text": f"The heron {n}."} for n in range(40)]})
    with http.stream("GET", f"/v1/imports/{job.json()['id']}/events") as events:
        assert any('"status": "done"' in line or '"status":"done"' in line for line in events.iter_lines())
    http.delete("/v1/memories/otter/1").raise_for_status()
    _wait_for(lambda: len(_ids(http)) == 20 and "otter/1" not in _ids(http))


def test_an_answer_that_is_to_be_remembered_is_written_by_the_writer(http: httpx.Client) -> None:
    for stream in (False, True):
        asked = _question(f"What does the newt say, {stream}?", remember=True, stream=stream)
        http.post("/v1/chat/completions", json=asked).raise_for_status()
    _wait_for(
        lambda: http.post("/v1/memories/search", json={"query": "newt say", "selector": "lexical"}).json()["data"]
    )


def test_what_is_refused_is_refused_as_by_one_server(http: httpx.Client, keys: dict[str, str]) -> None:
    with _client(keys["read"]) as reader:
        refused = reader.post("/v1/memories", json={"text": "The otter lives in Rome."})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope")
    for body, status in (
        ({"text": ""}, 400),
        ({"text": "x" * MOST_BYTES}, 413),
        ({"txet": "x"}, 400),
        ([], 400),
    ):
        assert http.post("/v1/memories", json=body).status_code == status
    assert http.post("/v1/memories", content="x", headers={"Content-Type": "text/plain"}).status_code == 415
    assert (
        http.post("/v1/chat/completions", content="{", headers={"Content-Type": "application/json"}).status_code == 400
    )
    assert http.delete("/v1/memories/nothing").status_code == 404
    assert http.post("/v1/nothing", json={}).status_code == 404


def test_a_writer_that_is_killed_is_replaced_and_loses_nothing_that_it_acknowledged(http: httpx.Client) -> None:
    acknowledged: list[str] = []

    def write(n: int) -> bool:
        response = http.post("/v1/memories", json={"id": f"lynx {n}", "text": f"The lynx {n} of Quito."})
        assert response.status_code in (201, 503), response.text
        if response.status_code == 201:
            acknowledged.append(f"lynx {n}")
        return response.status_code == 201

    assert all(write(n) for n in range(3))
    (writer,) = _replicas("writer")
    os.kill(writer, signal.SIGKILL)
    assert http.get("/v1/memories").status_code == 200, "readers go on"
    after = iter(range(3, 10_000))
    _wait_for(lambda: write(next(after)))
    assert _replicas("writer") != [writer]
    _wait_for(lambda: all(http.get(f"/v1/memories/{one}").status_code == 200 for one in acknowledged))


def test_a_reader_that_is_killed_is_replaced(http: httpx.Client) -> None:
    reader, *_ = _replicas("readers")
    os.kill(reader, signal.SIGKILL)

    def answers() -> bool:
        try:
            return http.get("/v1/memories").status_code == 200 and _replicas("readers") != [reader]
        except httpx.HTTPError:
            return False

    _wait_for(answers)


def test_readers_are_added_while_questions_wait(keys: dict[str, str]) -> None:
    _wait_for(lambda: len(_replicas("readers")) == 1)
    enough = threading.Event()

    def ask() -> None:
        with _client(keys["read"]) as http:
            while not enough.is_set():
                http.post("/v1/chat/completions", json=_question(max_tokens=500))

    clients = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        _wait_for(lambda: len(_replicas("readers")) == 2, seconds=240)
    finally:
        enough.set()
        for client in clients:
            client.join(60)
