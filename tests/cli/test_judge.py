"""`memspan judge` against a server made here: grades, cache, failures, what is sent and what is not kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from command import failed, memspan

from memspan.errors import AnswererError
from memspan.eval.judge import Endpoint, grade_in, prompt_for

ROWS = [("q1", "Oslo", ["Oslo"], False), ("q2", "", ["Rome"], False), ("q3", "I don't know", [], True)]


class Server:
    """Speaks chat completions; `reply(prompt)` is its answer, or a status to fail with."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[str | None] = []
        self.reply: Any = lambda prompt: "It matches.\nScore: 5"
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append({**body, "path": self.path})
                outer.headers.append(self.headers["Authorization"])
                said = outer.reply(body["messages"][0]["content"])
                status = said if isinstance(said, int) else 200
                data = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    async def at_once(seconds: float) -> None:
        pass

    monkeypatch.setattr("memspan.generate.endpoint.asyncio.sleep", at_once)
    served = Server()
    yield served
    served.http.shutdown()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of two arms, as far as the judge reads it."""
    rows = [
        {
            "arm": arm,
            "id": name,
            "type": "unanswerable" if none else "single",
            "question": f"{name}?",
            "answers": answers,
            "text": text,
            "ranked": [],
            "gold_ranks": [],
            "used": [],
            "scores": {},
            "unanswerable": none,
            "abstained": none,
            "finish_reason": "stop",
            "num_prompt_tokens": 1,
            "num_new_tokens": 1,
            "seconds": {},
            "layers": {},
        }
        for arm in ("none", "oracle")
        for name, text, answers, none in ROWS
    ]
    config = {"settings": {"seed": 0}, "arms": ["none", "oracle"]}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({"config": config, "rows": rows}))
    return folder


def judged(run: Path, server: Server, *more: object) -> dict[str, Any]:
    done = memspan("judge", run, "--endpoint", server.url, "--model", "m", *more)
    assert done.code == 0, done.err
    return json.loads((run / "judge.json").read_text("utf-8")) | {"shown": done.out}


def test_grades_are_averaged_and_asked_for_once(run: Path, server: Server) -> None:
    server.reply = lambda prompt: f"Fine.\nScore: {0 if '(nothing was written)' in prompt else 4}"
    found = judged(run, server, "--key", "secret")
    assert found["arms"]["none"]["score"]["mean"] == pytest.approx(8 / 3) and found["arms"]["none"]["unscored"] == 0
    assert found["model"] == "m" and "{references}" in found["prompt"]
    assert "| `none` | 2.67 (" in found["shown"]
    assert len(server.asked) == 3, "two arms that wrote the same are graded together"
    assert {body["path"] for body in server.asked} == {"/v1/chat/completions"}
    assert all(body["model"] == "m" and body["temperature"] == 0 for body in server.asked)
    assert set(server.headers) == {"Bearer secret"}
    assert not any("secret" in path.read_text("utf-8") for path in run.iterdir())
    judged(run, server)
    assert len(server.asked) == 3, "nothing is asked twice"
    done = memspan("judge", run, "--endpoint", server.url, "--model", "other")
    assert done.code == 0 and len(server.asked) == 6, "another judge grades for itself"


def test_a_failed_call_is_unscored_and_asked_again(run: Path, server: Server) -> None:
    calls: list[str] = []

    def flaky(prompt: str) -> Any:
        calls.append(prompt)
        if '"Rome"' in prompt:
            return 500
        return "no number here" if "no answer in the documents" in prompt else "Score: 3"

    server.reply = flaky
    found = judged(run, server)
    assert found["arms"]["none"] == {"score": {"mean": 3, "low": 3, "high": 3, "count": 1}, "unscored": 2}
    assert [row["score"] for row in found["rows"][:3]] == [3, None, None]
    assert sum('"Rome"' in prompt for prompt in calls) == 4, "a server's error is tried again, three times"
    server.reply = lambda prompt: "Score: 1"
    found = judged(run, server)
    assert [row["score"] for row in found["rows"][:3]] == [3, 1, 1] and found["arms"]["none"]["unscored"] == 0


def test_a_judge_that_cannot_be_had_is_an_error(run: Path, server: Server) -> None:
    server.reply = lambda prompt: 401
    done = memspan("judge", run, "--endpoint", server.url, "--model", "m")
    message = " ".join(done.err.split())
    assert done.code == 1 and "no reply gave a grade" in message and "HTTP 401" in message and "--endpoint" in message
    assert len(server.asked) == 3, "a refusal is not tried again"
    assert "no reply gave a grade" in memspan("judge", run, "--endpoint", "http://127.0.0.1:9/v1", "--model", "m").err
    assert "no finished run" in failed("judge", run / "nowhere", "--endpoint", server.url, "--model", "m")


def test_a_reply_that_is_no_completion(server: Server) -> None:
    server.reply = lambda prompt: None
    assert Endpoint(server.url, "m").ask("x") == "", "no content is a reply without a grade"
    assert grade_in("") is None
    assert "secret" not in repr(Endpoint("http://u", "m", "secret")), "the key is not shown"
    with pytest.raises(AnswererError, match="must be a URL"):
        Endpoint("nowhere", "m")


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("Right.\nScore: 4", 4),
        ("Score: 2, no.\n**Score:** 3", 3),
        ("score = 5/5", 5),
        ("SCORE:0", 0),
        ("Score: 7", None),
        ("Score: 3.5", None),
        ("Score: 50", None),
        ("five", None),
    ],
)
def test_the_last_grade_of_a_reply_counts(reply: str, grade: int | None) -> None:
    assert grade_in(reply) == grade


def test_what_the_judge_is_asked() -> None:
    assert 'any one counts: ["a", "b"]' in prompt_for("Q {x}?", ["a", "b"], "t") and "Q {x}?" in prompt_for(
        "Q {x}?", ["a"], ""
    )
    assert 'all of them: ["1", "2"]' in prompt_for("q", ["1", "2"], "t", all_expected=True)
    assert "no answer in the documents" in prompt_for("q", [], "t") and "(nothing was written)" in prompt_for(
        "q", [], " "
    )
