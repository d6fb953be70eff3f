"""The web page as it is served: files, policy, keys; and the two routes that it has besides those of every client."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2 as httpx
import pytest
from serving import ANIMALS, add_animals, client, error_of, question, serving

import memspan.serve
from memspan.model.convert import LoadedModel
from memspan.serve.keys import KeyFile

STATIC = Path(memspan.serve.__file__).parent / "static"
FILES = sorted(STATIC.iterdir())


def test_every_file_of_the_page_is_served_with_its_kind_and_a_strict_policy(http: httpx.Client) -> None:
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    for path, file in [("/", STATIC / "index.html"), *((f"/static/{file.name}", file) for file in FILES)]:
        response = http.get(path)
        assert response.status_code == 200 and response.content == file.read_bytes()
        assert response.headers["Content-Type"] == f"{kinds[file.suffix]}; charset=utf-8"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        policy = dict(part.strip().split(" ", 1) for part in response.headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["require-trusted-types-for"] == "'script'" and policy["trusted-types"] == "'none'"


@pytest.mark.parametrize("name", ["nowhere.js", "..%2fgate.py", "%2e%2e/gate.py", ""])
def test_nothing_else_is_served_as_a_file(http: httpx.Client, name: str) -> None:
    error_of(http.get(f"/static/{name}"), 404)


def test_the_page_holds_no_code_in_its_markup_and_fetches_nothing_from_elsewhere() -> None:
    markup = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", markup)
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg\b)", text), file.name
        sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser"
        assert not re.findall(sinks, text), file.name
        assert text.count("\n") < 400, file.name


def test_every_module_that_is_imported_is_there() -> None:
    sources = [file.read_text(encoding="utf-8") for file in FILES if file.suffix == ".js"]
    imported = {name for source in sources for name in re.findall(r'from "\./([\w.]+)"', source)}
    assert imported | {"main.js"} == {file.name for file in FILES if file.suffix == ".js"}


def test_the_page_needs_no_key_and_everything_it_shows_does(loaded: LoadedModel, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    keys.add("reader", ("read",), ("a",))
    with serving(loaded, tmp_path / "notes", keys=keys) as (_, address), client(address) as http:
        for path in ("/", "/static/main.js", "/static/style.css"):
            assert http.get(path).status_code == 200
        for path in ("/static/nowhere.js", "/static", "/v1/status", "/v1/documents?ids=1"):
            error_of(http.get(path), 401)
        error_of(http.post("/", json={}), 401)


def test_the_status_tells_sizes_of_a_namespace_and_what_a_key_may_do(loaded: LoadedModel, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    _, admin = keys.add("admin", ("admin",))
    _, reader = keys.add("reader", ("read",), ("a", "b"))
    with serving(loaded, tmp_path / "notes", keys=keys, max_new_tokens=7) as (_, address):
        with client(address, admin) as http:
            for namespace in ("a", "c"):
                add_animals(http, namespace=namespace)
            http.delete("/v1/memories/animals/newt", params={"namespace": "a"})
            status = http.get("/v1/status", params={"namespace": "a"}).json()
            assert status["scopes"] == ["read", "write", "admin"] and status["max_new_tokens"] == 7
            assert {"pdf", "md", "tgz"} <= set(status["formats"]) and "png" in status["image_formats"]
            assert status["answerer"] == ""
            assert status["ready"] and status["running"] == status["waiting"] == 0
            (bank,) = status["banks"]
            assert (bank["name"], bank["memories"], bank["documents"]) == ("notes", len(ANIMALS) - 1, len(ANIMALS) - 1)
            assert bank["namespaces"] == ["a", "c"] and bank["bytes"] > 0 and bank["tokens"] > bank["chunks"] > 0
            assert bank["selectors"] == ["router", "lexical", "hybrid"] and bank["default_selector"] == "lexical"
            assert http.get("/v1/status", params={"namespace": "none"}).json()["banks"][0]["memories"] == 0
        with client(address, reader) as http:
            status = http.get("/v1/status").json()
            assert status["scopes"] == ["read"] and status["namespace"] == "a"
            assert status["banks"][0]["namespaces"] == ["a"]
            error_of(http.get("/v1/status", params={"namespace": "c"}), 403)


def test_documents_of_a_trace_are_named_and_those_of_other_namespaces_are_not(http: httpx.Client) -> None:
    body = {**question(), "memspan": {"selector": "router"}}
    trace = http.post("/v1/chat/completions", json=body).json()["memspan"]
    ids = [number for layer in trace["routed"] for number in layer["document_ids"]]
    found = http.get("/v1/documents", params={"ids": [*dict.fromkeys(ids), 10**30, -1]}).json()["data"]
    assert [one["document_id"] for one in found] == list(dict.fromkeys(ids))
    assert {one["id"] for one in found} <= {f"animals/{animal}" for animal in ANIMALS}
    assert {one["title"] for one in found} <= set(ANIMALS)
    for elsewhere in ({"namespace": "c"}, {"bank": "other"}):
        assert http.get("/v1/documents", params={"ids": ids, **elsewhere}).json()["data"] == []
    for wrong in ({}, {"ids": "x"}, {"ids": list(range(501))}):
        error_of(http.get("/v1/documents", params=wrong), 400)
