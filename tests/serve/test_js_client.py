"""The package memspan-client: packed by npm, called from node; its types are those of the server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from serving import add_animals, client, serving

from memspan.model.convert import LoadedModel
from memspan.serve.keys import KeyFile

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "javascript"
# Slashes, a way up, what an address gives a meaning, spaces, another script, an emoji, a line end.
IDS = ["a/b", "../up", "a?b#c&d=e%2F", "  two  words ", "память/заметка", "🦦", "line\nend", "...", "x" * 1000]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the packed package is installed."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node or npm is not installed")
    folder = tmp_path_factory.mktemp("installed")
    shutil.copytree(HERE.parents[1] / "src" / "memspan" / "serve" / "static", folder / "src/memspan/serve/static")
    copied = shutil.copytree(PACKAGE, folder / "javascript", ignore=shutil.ignore_patterns("node_modules"))
    subprocess.run([npm, "pack", "--offline"], cwd=copied, check=True, capture_output=True)
    (packed,) = copied.glob("*.tgz")
    with tarfile.open(packed) as files:
        files.extractall(folder, filter="data")
    (folder / "node_modules").mkdir()
    (folder / "package").rename(folder / "node_modules" / "memspan-client")
    return folder


def test_the_package_holds_what_it_needs_and_nothing_else(installed: Path) -> None:
    files = {file.name for file in (installed / "node_modules" / "memspan-client").iterdir()}
    assert files == {"package.json", "README.md", "client.js", "sse.js", "index.d.ts", "schema.d.ts"}


def test_node_calls_a_server(installed: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    _, key = keys.add("test", ("read", "write"))
    with serving(loaded, tmp_path / "notes", keys=keys) as (_, address):
        with client(address, key) as http:
            add_animals(http)
        got = _run(installed, address, key, json.dumps(IDS))
    assert got["kept"] == [f"text of {id}" for id in IDS]
    assert got["text"] == got["streamed"] != "" and got["first"] == "chat.completion.chunk"
    assert "animals/otter" in got["found"]
    assert got["imported"] == ["done", 3] and got["health"] == {"status": "ok"}
    failures = got["failures"]
    told = {name: (one["kind"], one.get("status"), one.get("code")) for name, one in failures.items()}
    assert told == {
        "missing": ("ApiError", 404, "memory_not_found"),
        "key": ("ApiError", 401, "invalid_api_key"),
        "field": ("ApiError", 400, "unknown_field"),
        "param": ("TypeError", None, None),
        "dots": ("TypeError", None, None),
        "unstreamed": ("TypeError", None, None),
        "refused": ("ApiError", 401, "invalid_api_key"),
        "nowhere": ("Error", None, None),
        "aborted": ("AbortError", None, 20),
    }
    assert "limit" in failures["field"]["message"] and "reached" in failures["nowhere"]["message"]


def test_a_server_below_a_path_is_called_there(installed: Path) -> None:
    script = """
        import { Client } from "memspan-client";
        const seen = [];
        const fetch = async (url) => (seen.push(url.href), Response.json({}));
        for (const baseUrl of ["http://h/a", "http://h/a/", "http://h/a/?x=1#y", new URL("http://h:1")]) {
          const client = new Client({ baseUrl, fetch });
          await client.call("GET", "/v1/memories", { query: { limit: 0, cursor: null, where: "", ids: [1, 2] } });
        }
        console.log(JSON.stringify(seen));
    """
    (installed / "below.mjs").write_text(script, encoding="utf-8")
    query = "/v1/memories?limit=0&ids=1&ids=2"
    assert _node(installed / "below.mjs") == [f"http://h/a{query}"] * 3 + [f"http://h:1{query}"]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_events_are_read_whole_however_they_arrive(installed: Path, size: int) -> None:
    broke = {"error": {"message": "broke", "code": "x"}}
    events = f'data: {{"a": "é🦦"}}\r\n\r\n: ping\n\ndata: {{"error": null}}\n\ndata: {json.dumps(broke)}\n\n'
    script = """
        import { Client } from "memspan-client";
        const [bytes, size] = [new TextEncoder().encode(EVENTS), SIZE];
        const body = new ReadableStream({
          start(out) {
            for (let i = 0; i < bytes.length; i += size) out.enqueue(bytes.slice(i, i + size));
            out.close();
          },
        });
        const client = new Client({ baseUrl: "http://h", fetch: async () => new Response(body) });
        const seen = [];
        try {
          for await (const event of client.stream("POST", "/v1/chat/completions", { body: {} })) seen.push(event);
        } catch (error) {
          seen.push([error.status, error.code, error.message]);
        }
        console.log(JSON.stringify(seen));
    """
    script = script.replace("EVENTS", json.dumps(events)).replace("SIZE", str(size))
    (installed / "events.mjs").write_text(script, encoding="utf-8")
    assert _node(installed / "events.mjs") == [{"a": "é🦦"}, {"error": None}, [None, "x", "broke"]]


def test_the_types_are_those_of_the_server() -> None:
    """Needs what `npm ci` installs."""
    sys.path.insert(0, str(PACKAGE))
    try:
        import make_types
    finally:
        sys.path.pop(0)
    if shutil.which("node") is None or not make_types.GENERATOR.exists():
        pytest.skip("node or the packages of javascript are not installed")
    message = "the routes have changed; run: make client"
    assert make_types.render() == make_types.TARGET.read_text(encoding="utf-8"), message


def test_typescript_allows_what_the_server_takes_and_nothing_else(installed: Path) -> None:
    """Needs what `npm ci` installs."""
    compiler = PACKAGE / "node_modules" / "typescript" / "bin" / "tsc"
    if not compiler.exists():
        pytest.skip("node or the packages of javascript are not installed")
    script = shutil.copy(HERE / "page_client_types.ts", installed)
    options = ["--noEmit", "--strict", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom", script]
    done = subprocess.run(["node", compiler, *options], cwd=installed, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout


def _run(installed: Path, *arguments: str) -> dict[str, Any]:
    return _node(Path(shutil.copy(HERE / "page_client.mjs", installed)), *arguments)


def _node(script: Path, *arguments: str) -> Any:
    done = subprocess.run(["node", script, *arguments], capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
