"""Several processes that answer: the same answers, and every rule of one process holds for all of them together."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import pickle
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest
from serving import add_animals, client, error_of, process, question, serving, wait_for

from memspan import errors
from memspan.cli.choices import AnswererChoice, ModelChoice
from memspan.cli.serve import _prepared
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.serve import engine as engines
from memspan.serve.engine import Failed, QueueFull
from memspan.serve.run import Server, make_server
from memspan.serve.settings import ServeSettings
from memspan.serve.workers import Workers, WorkerSetup, _sendable

CHAT = "/v1/chat/completions"
STARTING = 120.0  # seconds that a process may take to begin on a busy machine


@pytest.fixture(scope="module")
def crew(endless_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str, Workers]]:
    """A server with two workers, each of which answers two questions at a time."""
    folder = tmp_path_factory.mktemp("crew") / "notes"
    load = partial(_prepared, ModelChoice(endless_checkpoint, None, None, None), ())
    setup = WorkerSetup(load, (str(folder),), AnswererChoice(None, None, None).endpoint, max_batch=2)
    limits = {"workers": 2, "max_batch": 2, "max_queue": 2, "max_new_tokens": 90_000}
    with serving(load(), folder, setup=setup, **limits) as (server, address):
        workers = server.config.app.state.service.engine  # type: ignore[union-attr]
        assert isinstance(workers, Workers)
        with client(address) as http:
            add_animals(http)
        yield server, address, workers


@pytest.fixture
def workers(crew: tuple[Server, str, Workers]) -> Iterator[Workers]:
    """The workers, all there and idle."""
    wait_for(lambda: len(crew[2].pids) == 2 and not crew[2].is_asked, STARTING)
    yield crew[2]


@pytest.fixture
def http(crew: tuple[Server, str, Workers], workers: Workers) -> Iterator[httpx.Client]:
    with client(crew[1]) as http:
        yield http


def has_text(line: str) -> bool:
    return '"content": "' in line and '"content": ""' not in line


def children_of(pid: int) -> list[psutil.Process]:
    """The processes that a process has started, without the one of `multiprocessing` itself."""
    children = psutil.Process(pid).children(recursive=True)
    return [one for one in children if "resource_tracker" not in str(one.cmdline())]


@contextlib.contextmanager
def long_answers(address: str, count: int) -> Iterator[list[Iterator[str]]]:
    """Streams of very long answers, each behind its first piece of text."""
    with contextlib.ExitStack() as opened:
        streams = []
        for _ in range(count):
            http = opened.enter_context(client(address))
            body = question(stream=True, max_tokens=90_000)
            lines = opened.enter_context(http.stream("POST", CHAT, json=body)).iter_lines()
            next(line for line in lines if has_text(line))
            streams.append(lines)
        yield streams


def code_of(lines: Iterator[str]) -> str:
    """The error that a stream ends with."""
    *_, error, last = (line for line in lines if line.startswith("data: "))
    assert last == "data: [DONE]"
    return json.loads(error.removeprefix("data: "))["error"]["code"]


@pytest.mark.slow
def test_answers_are_those_of_one_process(crew: tuple[Server, str, Workers], http: httpx.Client) -> None:
    questions = ["Where does the otter live?", "heron", "What of the newt and the lynx?", "Rome", "Who is in Oslo?"] * 2
    service = crew[0].config.app.state.service  # type: ignore[union-attr]
    memory: Memory = service.bank(None).memory("default")

    def ask(text: str) -> httpx.Response:
        with client(crew[1]) as own:
            return own.post(CHAT, json=question(text, max_tokens=12))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for text, response in zip(questions, pool.map(ask, questions), strict=True):
            told, alone = response.json(), memory.ask(text, sampling=Sampling(max_new_tokens=12))
            assert told["choices"][0]["message"]["content"] == alone.text
            assert [item["id"] for item in told["memspan"]["evidence"]] == [one.external_id for one in alone.evidence]
    assert 'memspan_tokens_total{kind="completion"} 120.0' in http.get("/metrics").text


@pytest.mark.slow
def test_a_change_is_seen_at_the_next_question_whoever_answers_it(http: httpx.Client) -> None:
    def evidence() -> list[str]:
        response = http.post(CHAT, json=question("walrus", memspan={"selector": "lexical"}))
        assert response.status_code == 200, response.text
        return [item["id"] for item in response.json()["memspan"]["evidence"]]

    for number in range(4):
        name = f"walrus-{number}"
        assert http.post("/v1/memories", json={"id": name, "text": "A walrus."}).status_code == 201
        assert evidence() == [name]
        assert http.delete(f"/v1/memories/{name}").status_code == 200
        assert evidence() == []
    body = {"memories": [{"id": "walrus", "text": "A walrus."}]}
    job = http.post("/v1/imports", json=body).json()["id"]
    wait_for(lambda: http.get(f"/v1/imports/{job}").json()["status"] == "done")
    assert evidence() == ["walrus"]
    remembered = http.post(CHAT, json=question("Where is the walrus?", remember=True)).json()["memspan"]["remembered"]
    for name in ("walrus", *remembered):
        assert http.delete(f"/v1/memories/{name}").status_code == 200


@pytest.mark.slow
def test_the_least_busy_is_asked_and_numbers_add_up(
    crew: tuple[Server, str, Workers], http: httpx.Client, workers: Workers
) -> None:
    with long_answers(crew[1], 4) as streams:
        assert [len(worker.running) for worker in workers._workers] == [2, 2]
        with contextlib.ExitStack() as opened:
            for _ in range(2):
                own = opened.enter_context(client(crew[1]))
                opened.enter_context(own.stream("POST", CHAT, json=question(stream=True)))
            wait_for(lambda: workers.num_waiting == 2)
            metrics, status = http.get("/metrics").text, http.get("/v1/status").json()
            assert "memspan_running 4.0" in metrics and "memspan_queue_length 2.0" in metrics
            assert (status["running"], status["waiting"], status["ready"]) == (4, 2, True)
            refused = http.post(CHAT, json=question())
            assert error_of(refused, 429)["code"] == "queue_full" and int(refused.headers["Retry-After"]) > 0
        wait_for(lambda: workers.num_waiting == 0)
        assert next(streams[0]) is not None
    wait_for(lambda: not workers.is_asked)
    assert http.post(CHAT, json=question()).status_code == 200, "who went away has made room"


@pytest.mark.slow
@pytest.mark.parametrize("num_killed", [1, 2])
def test_a_worker_that_dies_is_replaced_and_its_questions_say_so(
    crew: tuple[Server, str, Workers], http: httpx.Client, workers: Workers, num_killed: int
) -> None:
    before = workers.pids
    with long_answers(crew[1], 2) as streams:
        assert [len(worker.running) for worker in workers._workers] == [1, 1]
        for pid in before[:num_killed]:
            psutil.Process(pid).kill()
        for lines in streams[:num_killed]:
            assert code_of(lines) == "worker_lost"
        for lines in streams[num_killed:]:
            assert next(lines) is not None, "the other one goes on"
        assert http.post(CHAT, json=question()).status_code == 200, "by the other, or as soon as there is one"
        assert http.post("/v1/memories", json={"id": "after", "text": "x"}).status_code == 201
    wait_for(lambda: len(workers.pids) == 2, STARTING)
    assert len({*workers.pids} - {*before}) == num_killed
    assert http.get("/ready").status_code == 200 and http.delete("/v1/memories/after").status_code == 200


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no signal that asks a process to end")
def test_sigterm_to_all_processes_gives_running_answers_their_grace(endless_checkpoint: Path, tmp_path: Path) -> None:
    """As systemd sends it; and nothing is left, of processes or of readers."""
    options = ("--workers", 2, "--grace", 4, "--max-new-tokens", 100_000)
    with process(endless_checkpoint, tmp_path / "notes", *options) as (server, address), client(address) as http:
        add_animals(http)
        children = children_of(server.pid)
        assert len(children) == 2
        with long_answers(address, 1) as (ending,), client(address) as other:
            body = question(stream=True, max_tokens=20, stream_options={"include_usage": True})
            with other.stream("POST", CHAT, json=body) as short:
                lines = short.iter_lines()
                next(line for line in lines if has_text(line))
                for one in (*children, server):
                    one.send_signal(signal.SIGTERM)
                *_, usage, last = (line.removeprefix("data: ") for line in lines if line.startswith("data: "))
                assert last == "[DONE]" and json.loads(usage)["usage"]["completion_tokens"] == 20
            assert code_of(ending) == "stopping"
        assert server.wait(60) == 0
        assert not [one for one in children if one.is_running()]
    assert not list((tmp_path / "notes" / "readers").iterdir()), "every reader has closed the bank"


@pytest.mark.slow
def test_workers_end_with_a_server_that_is_killed(endless_checkpoint: Path, tmp_path: Path) -> None:
    with process(endless_checkpoint, tmp_path / "notes", "--workers", 2) as (server, _):
        children = psutil.Process(server.pid).children()
        assert len(children) >= 2
        server.kill()
        _, alive = psutil.wait_procs(children, STARTING)
        assert not alive


@pytest.mark.slow
def test_a_worker_that_cannot_begin_is_an_error_that_says_why(
    endless_checkpoint: Path, tmp_path: Path, loaded: Any
) -> None:
    before = {*children_of(os.getpid())}
    missing = partial(_prepared, ModelChoice(tmp_path / "nowhere", None, None, None), ())
    setup = WorkerSetup(missing, (str(tmp_path / "notes"),), AnswererChoice(None, None, None).endpoint, max_batch=1)
    with pytest.raises(errors.MemspanError, match=r"cannot begin: .*nowhere"):
        make_server(loaded, [str(tmp_path / "notes")], ServeSettings(port=0, workers=2), None, None, setup)
    assert {*children_of(os.getpid())} <= before


def _kinds(base: type[Exception]) -> Iterator[type[Exception]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


@pytest.mark.parametrize(
    "error",
    [
        *(kind("why") for kind in _kinds(errors.MemspanError) if kind.__module__ == errors.__name__),
        *(getattr(engines, name)() for name in ("Stopping", "DeadlineExceeded", "WorkerLost")),
        QueueFull(2.5),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_ours_cross_as_they_are(error: Exception) -> None:
    sent = pickle.loads(pickle.dumps(_sendable(Failed(error))))
    assert type(sent.error) is type(error) and str(sent.error) == str(error)
    assert getattr(sent.error, "retry_after", None) == getattr(error, "retry_after", None)


class Local(errors.MemspanError):
    """Of a kind that cannot be sent."""

    def __init__(self, first: str, second: object) -> None:
        super().__init__(f"{first} and {second}")


def test_other_errors_cross_without_their_texts() -> None:
    sent = _sendable(Failed(KeyError("swordfish at /srv/notes")))
    assert isinstance(sent, Failed) and not isinstance(sent.error, errors.MemspanError)
    assert "KeyError" in str(sent.error) and "swordfish" not in str(sent.error) and "/srv" not in str(sent.error)
    sent = _sendable(Failed(Local("a", "b")))
    assert isinstance(sent, Failed) and isinstance(sent.error, errors.MemspanError) and str(sent.error) == "a and b"


@pytest.mark.parametrize("wrong", [0, -1])
def test_there_is_at_least_one(wrong: int) -> None:
    with pytest.raises(ValueError, match="workers must be at least 1"):
        ServeSettings(workers=wrong)
