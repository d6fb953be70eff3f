"""A server under load: how much 8 clients get answered beside one, and a long run that looks for errors and leaks.

Beside what was reached stands what could be: "at most", if a batch wrote its tokens in no time, but looked up and
prefilled each question as for one client. And how late the first token comes: milliseconds from when the engine has it
until the client reads it.

python benchmarks/serve.py [--json FILE]                   # throughput, a few minutes
python benchmarks/serve.py --soak --seconds 300            # the long run, then throughput: `make soak`
python benchmarks/serve.py --answer-with fake --seconds 300  # the long run alone, with another model that answers

The fake model is a server of the tests. It writes a few words, calls a tool where it is given some, and refuses one
request in 16 for now (429), which the server under test must repeat.

The server is a process of its own, as `memspan serve` starts it; its memory is read from /proc (Linux).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx2 as httpx
import psutil
from plots import add_json, write_json

NOTES = Path(__file__).parents[1] / "examples" / "notes"
TESTS = Path(__file__).parents[1] / "tests"
HANGS_AFTER = 60.0
QUESTIONS = (
    "What is the name of Owen Pritchard's sheepdog?",
    "In which town is the newest warehouse?",
    "Who leads the Piping project?",
    "How many years of warranty does Brindlecomb give?",
    "What kind of battery does the Amber scale have?",
)
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
STORY = "Tell me a long story about a beekeeper and her dog."


@dataclass(frozen=True)
class Kind:
    """What is asked to measure throughput: of notes (short answers) or for a story (as long as it may be)."""

    name: str
    story: bool
    max_tokens: int
    max_documents: int

    def body(self, number: int) -> dict[str, Any]:
        fields = {"max_tokens": self.max_tokens, "memspan": {"max_documents": self.max_documents}}
        return chat(number, STORY if self.story else None, **fields)


KINDS = (
    Kind("short answers from 2 documents", False, 32, 2),
    Kind("answers of 64 tokens from 2 documents", True, 64, 2),
    Kind("answers of 64 tokens from the latents alone", True, 64, 0),
)


@dataclass
class Load:
    """What clients of one server met.

    Attributes:
        seconds: of every answer, by client.
        tokens: written, in answers that were waited for.
        preparing, writing: seconds of these answers, by the server's count.
        errors: statuses and exceptions that should not have been.
    """

    seconds: dict[int, list[float]] = field(default_factory=dict)
    tokens: int = 0
    preparing: float = 0.0
    writing: float = 0.0
    done: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)


def chat(number: int, text: str | None = None, **fields: Any) -> dict[str, Any]:
    """A request; they differ, so that nothing could be kept of one for another."""
    content = f"{text or QUESTIONS[number % len(QUESTIONS)]} ({number})"
    return {"model": "memspan/notes", "messages": [{"role": "user", "content": content}], **fields}


async def ask(http: httpx.AsyncClient, load: Load, client: int, body: dict[str, Any]) -> None:
    started = time.perf_counter()
    response = await http.post("/v1/chat/completions", json=body)
    if response.status_code != 200:
        load.errors.append(f"chat {response.status_code} {response.text[:200]}")
        return
    load.seconds.setdefault(client, []).append(time.perf_counter() - started)
    answer = response.json()
    if "tools" in body and answer["choices"][0]["finish_reason"] != "tool_calls":
        load.errors.append(f"no tool was called: {response.text[:200]}")
    load.tokens += answer["usage"]["completion_tokens"]
    load.preparing += prepared(answer["memspan"]["timings"])
    load.writing += answer["memspan"]["timings"]["decode"]
    load.done["asked"] += 1


def prepared(timings: dict[str, float]) -> float:
    """Seconds of an answer until its first token, without its wait."""
    return sum(timings.get(stage, 0.0) for stage in ("select", "prefill", "routing", "fetch"))


async def first_token(http: httpx.AsyncClient, body: dict[str, Any]) -> float:
    """Seconds from when the server has a first token of one client until its text is here."""
    started, arrived, timings = time.perf_counter(), 0.0, {}
    async with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if not arrived and chunk["choices"][0]["delta"].get("content"):
                arrived = time.perf_counter() - started
            timings = chunk.get("memspan", {}).get("timings") or timings
    return arrived - timings["queue"] - prepared(timings)


async def leave(http: httpx.AsyncClient, load: Load, body: dict[str, Any]) -> None:
    """Go away after the first piece of the answer."""
    async with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        if response.status_code != 200:
            load.errors.append(f"stream {response.status_code}")
            return
        async for _ in response.aiter_lines():
            break
    load.done["left"] += 1


async def change(http: httpx.AsyncClient, load: Load, client: int) -> None:
    """Remember something, find it, forget it."""
    name = f"client-{client}"
    added = await http.post("/v1/memories", json={"id": name, "text": f"Client {client} likes pears.", "title": name})
    found = await http.post("/v1/memories/search", json={"query": f"{name} pears", "limit": 3})
    gone = await http.delete(f"/v1/memories/{name}")
    for what, response, status in (("add", added, 201), ("search", found, 200), ("delete", gone, 200)):
        if response.status_code != status:
            load.errors.append(f"{what} {response.status_code} {response.text[:200]}")
    if found.status_code == 200 and name not in [item["id"] for item in found.json()["data"]]:
        load.errors.append(f"{name} was not found right after it was added")
    load.done["changed"] += 1


async def mixed_client(
    http: httpx.AsyncClient, load: Load, client: int, rounds: Iterator[int], tokens: int, tools: bool = False
) -> None:
    """One client of the long run: it mostly asks, sometimes goes away, sometimes changes something."""
    chance = random.Random(client)
    for number in rounds:
        more: dict[str, Any] = {"tools": [CLOCK]} if tools and not number % 4 else {}
        body = chat(number * 1000 + client, max_tokens=tokens, memspan={"max_documents": 2}, **more)
        draw = chance.random()
        try:
            if draw < 0.1:
                await leave(http, load, body)
            elif draw < 0.2:
                await change(http, load, client)
            else:
                await ask(http, load, client, body)
        except httpx.HTTPError as error:
            load.errors.append(repr(error))


async def run_mixed(
    address: str,
    clients: int,
    tokens: int,
    *,
    seconds: float = 0.0,
    rounds: int = 0,
    tools: bool = False,
    patience: float = 600.0,
) -> Load:
    """Clients at once, for so many seconds, or so many rounds each.

    Args:
        tools: every fourth question has a tool, which must be called.
        patience: seconds without a byte that are an error.
    """
    load, until = Load(), time.monotonic() + seconds

    def numbers() -> Iterator[int]:
        return (
            iter(range(rounds))
            if rounds
            else itertools.takewhile(lambda _: time.monotonic() < until, itertools.count())
        )

    async with connections(address, clients, patience) as http:
        await asyncio.gather(*(mixed_client(http, load, client, numbers(), tokens, tools) for client in range(clients)))
    return load


@contextlib.asynccontextmanager
async def connections(address: str, clients: int, patience: float = 600.0) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=patience, limits=limits) as http:
        yield http


async def throughput(address: str, pid: int, clients: int, requests: int, kind: Kind) -> dict[str, float]:
    """What a server gives to clients that ask one after the other."""
    load, used = Load(), cpu_seconds(pid)

    async def client(http: httpx.AsyncClient, number: int) -> None:
        for turn in range(requests):
            await ask(http, load, number, kind.body(1000 * number + turn))

    started = time.perf_counter()
    async with connections(address, clients) as http:
        await asyncio.gather(*(client(http, number) for number in range(clients)))
    seconds = time.perf_counter() - started
    assert not load.errors, load.errors[:3]
    taken = [one for each in load.seconds.values() for one in each]
    return {
        "answers/s": len(taken) / seconds,
        "tokens/s": load.tokens / seconds,
        "tokens per CPU second": load.tokens / (cpu_seconds(pid) - used),
        "seconds an answer": median(taken),
        "at most": (load.preparing + load.writing) / load.preparing,
    }


@contextlib.contextmanager
def server(model: Path | None, folder: Path, *options: str) -> Iterator[tuple[int, str]]:
    """A server of the example notes: its process id and address."""
    command = [sys.executable, "-c", "from memspan.cli import app; app()"]
    chosen = [] if model is None else ["--model", str(model)]
    subprocess.run(
        [*command, "add", str(folder / "notes"), str(NOTES), *chosen, "--json"], check=True, stdout=subprocess.DEVNULL
    )
    serve = [*command, "serve", str(folder / "notes"), "--port", "0", *chosen, *options]
    process = subprocess.Popen(serve, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "serving on" in line)
        threading.Thread(target=lambda: [print(line, end="") for line in process.stderr or ()], daemon=True).start()
        found = re.search(r"http://\S+", line)
        assert found is not None, line
        yield process.pid, found[0]
    finally:
        process.terminate()
        assert process.wait(120) == 0, "the server did not stop as it should"


def cpu_seconds(pid: int) -> float:
    """Of a process and its workers since they began."""
    server = psutil.Process(pid)
    return sum(sum(one.cpu_times()[:2]) for one in (server, *server.children()))


def resident_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text("utf-8")
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found is not None, "the process is gone"
    return int(found[1]) / 1024


def measure(pid: int, address: str, requests: int, repeats: int) -> dict[str, Any]:
    """What a server gives to one client and to eight: printed, and as figures."""
    asyncio.run(throughput(address, pid, 1, 1, KINDS[0]))  # warm up
    figures: dict[str, Any] = {"first token, ms": asyncio.run(first_tokens(address, 4 * repeats))}
    print(f"the first token comes after {figures['first token, ms']} ms", flush=True)
    for kind in KINDS:
        runs = []
        for _ in range(repeats):  # one and eight by turns: the machine is shared
            runs.append([asyncio.run(throughput(address, pid, clients, requests, kind)) for clients in (1, 8)])
        for place, clients in enumerate((1, 8)):
            shown = (f"{median(run[place][what] for run in runs):.2f} {what}" for what in runs[0][place])
            print(f"{kind.name}, {clients} clients: {', '.join(shown)}", flush=True)
        shown = ("answers/s", "tokens/s", "tokens per CPU second")
        ratios = {what: round(median(run[1][what] / run[0][what] for run in runs), 2) for what in shown}
        ratios["at most"] = round(median(run[0]["at most"] for run in runs), 2)
        print(f"{kind.name}, 8 clients / one: {ratios}", flush=True)
        figures[kind.name] = {
            "one client": [run[0] for run in runs],
            "eight": [run[1] for run in runs],
            "ratios": ratios,
        }
    return figures


async def first_tokens(address: str, count: int) -> dict[str, float]:
    """How late first tokens come, to one client: median and latest."""
    async with connections(address, 1) as http:
        late = [1000 * await first_token(http, KINDS[1].body(5000 + number)) for number in range(count)]
    return {"median": round(median(late), 1), "most": round(max(late), 1)}


@contextlib.contextmanager
def fake_model() -> Iterator[str]:
    """The address of another model that answers; see the top."""
    sys.path.insert(0, str(TESTS))
    import chat_server  # pyright: ignore[reportMissingImports]

    number, once = itertools.count(), threading.Lock()
    pieces = ("The newest ", "warehouse is ", "in Rome ", "[1]. ", "It is large.")

    def play(handler: chat_server.Handler, body: dict[str, Any]) -> None:
        with once:
            place = next(number)
        if place % 16 == 15:
            return handler.refuse(429, {"error": {"message": "not now"}}, Retry_After="0")
        if body.get("tools"):
            call = {"index": 0, "id": f"c{place}", "type": "function"}
            call["function"] = {"name": body["tools"][0]["function"]["name"], "arguments": "{}"}
            return chat_server.calls(call)(handler, body)
        handler.begin()
        for piece in pieces:
            time.sleep(0.02)
            handler.piece(piece)
        handler.piece(None, "stop")
        handler.send({"choices": [], "usage": chat_server.USAGE})
        return handler.send("[DONE]")

    with chat_server.chat_server() as served:
        served.plays = [play]
        yield served.url


def soak(pid: int, address: str, clients: int, seconds: float, tools: bool = False) -> bool:
    """The long run; prints what it met. Returns whether everything was as it should be."""
    start, sizes = resident_mb(pid), []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(min(1.0, seconds / 60)):
            sizes.append(resident_mb(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    patience = HANGS_AFTER if tools else 600.0
    load = asyncio.run(run_mixed(address, clients, 24, seconds=seconds, tools=tools, patience=patience))
    stop.set()
    watcher.join()
    with httpx.Client(base_url=address) as http:
        metrics = http.get("/metrics").text
    # The first third fills buffers and caches.
    settled = sizes[len(sizes) // 3 :]
    fifth = max(1, len(settled) // 5)
    before, after = median(settled[:fifth]), median(settled[-fifth:])
    counts = [len(load.seconds.get(client, ())) for client in range(clients)]
    taken = [one for each in load.seconds.values() for one in each]
    print(f"{clients} clients, {seconds:.0f} s: {dict(load.done)}; {load.tokens} tokens")
    print(f"errors: {len(load.errors)} {load.errors[:5] or ''}")
    print(f"answers of a client: {min(counts)} to {max(counts)}, median {median(counts)}")
    if taken:
        late = quantiles(taken, n=20)[-1] if len(taken) > 1 else taken[0]
        print(f"seconds of an answer: p50 {median(taken):.2f}, p95 {late:.2f}, longest {max(taken):.2f}")
    print(
        f"memory: {start:.0f} MB at the start, {before:.0f} MB after the first third, {after:.0f} MB at the end "
        f"({after / before - 1:+.1%} since), most {max(sizes):.0f} MB"
    )
    idle = all(f"{name} 0.0" in metrics for name in ("memspan_queue_length", "memspan_running"))
    print("nothing is left in the queue" if idle else "something is left in the queue", flush=True)
    return not load.errors and after <= 1.05 * before and idle


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="MSA checkpoint; default: SmolLM2")
    parser.add_argument("--soak", action="store_true")
    parser.add_argument("--answer-with", choices=["fake"], help="the long run alone, with another model that answers")
    parser.add_argument("--clients", type=int, default=32, help="of the long run")
    parser.add_argument("--seconds", type=float, default=300.0, help="of the long run")
    parser.add_argument("--requests", type=int, default=2, help="of each client, for throughput")
    parser.add_argument("--repeats", type=int, default=3, help="of the throughput measurement")
    parser.add_argument("--workers", type=int, default=1, help="processes of the server that answer")
    add_json(parser)
    given = parser.parse_args()
    workers = ("--workers", str(given.workers))
    if given.answer_with:
        with tempfile.TemporaryDirectory() as folder, fake_model() as url:
            other = ("--answer-with", url, "--answer-model", "fake", "--answer-context", "8192")
            with server(given.model, Path(folder), *workers, *other) as (pid, address):
                return int(not soak(pid, address, given.clients, given.seconds, tools=True))
    with tempfile.TemporaryDirectory() as folder, server(given.model, Path(folder), *workers) as (pid, address):
        good = not given.soak or soak(pid, address, given.clients, given.seconds)
        figures = measure(pid, address, given.requests, given.repeats)
    write_json(given.json, {"workers": given.workers, **figures})
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
