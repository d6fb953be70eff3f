"""Requests of real clients, changed at random: whatever comes in, the server answers, and never with its own fault.

200 of them; MEMSPAN_FUZZ_REQUESTS says how many.
"""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
from clients import REQUESTS
from serving import add_animals, client, serving

from memspan.model.convert import LoadedModel

COUNT = int(os.environ.get("MEMSPAN_FUZZ_REQUESTS", "200"))
SEEDS: list[tuple[str, str, dict[str, Any]]] = [
    *(
        ("POST", "/v1/chat/completions", {"model": "memspan/notes", "memspan": {"max_documents": 2}, **body})
        for body in REQUESTS.values()
    ),
    ("POST", "/v1/memories", {"id": "x", "text": "y", "title": "z", "metadata": {"n": [1]}, "date": "2024-05-06"}),
    ("POST", "/v1/memories/batch", {"memories": [{"text": "a"}, {"text": "b", "id": "b"}], "existing": "replace"}),
    ("POST", "/v1/memories/search", {"query": "otter", "where": {"n": {">=": 1}}, "limit": 3, "as_of": "2099-01-01"}),
    ("POST", "/v1/imports", {"memories": [{"text": "a", "id": "i"}]}),
    ("PATCH", "/v1/memories/animals%2Fotter", {"title": "otter", "metadata": {"n": 0}}),
]
VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**400, 0.5, -0.0, float("nan"), float("inf"), "", " ", "\0", "\ud800"),
    *("a" * 5000, "é😀", "<script>", "null", "1", "../../x", "default", [], {}, [[]], [None], {"": ""}, {"$ref": "#"}),
    *({"type": "text", "text": "x"}, {"role": "user", "content": "x"}, {"n": {">=": None}}, {"~": {"and": []}}),
]


@pytest.fixture(scope="module")
def fuzzed(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("fuzzed")
    settings: dict[str, Any] = {"max_new_tokens": 3, "max_request_bytes": 2**20}
    with serving(loaded, folder / "notes", **settings) as (_, address), client(address) as http:
        add_animals(http)
        yield http


def test_no_request_meets_a_fault_of_the_server(fuzzed: httpx.Client) -> None:
    chance, statuses = random.Random(21), set[int]()
    for _ in range(COUNT):
        method, path, seed = chance.choice(SEEDS)
        body = copy.deepcopy(seed)
        for _ in range(chance.randint(1, 3)):
            _change(body, chance)
        content = _spoiled(json.dumps(body).encode(), chance)
        response = fuzzed.request(method, path, content=content, headers={"Content-Type": "application/json"})
        statuses.add(response.status_code)
        assert response.status_code < 500, (method, path, content, response.text)
        assert "internal_error" not in response.text, (method, path, content)
        if response.status_code >= 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            assert len(response.text) < 3000 and "pydantic" not in response.text
    assert COUNT < 100 or {200, 201, 400} <= statuses, "both good and bad ones were drawn"
    assert fuzzed.get("/ready").status_code == 200


def _change(value: Any, chance: random.Random) -> None:
    """Change something somewhere in a value."""
    if not (places := list(_places(value))):
        return
    holder, key = chance.choice(places)
    match chance.randrange(5):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[chance.choice(["x", str(key)[:-1], str(key).upper(), "namespace", "\ud800"])] = holder[key]
        case 2 if isinstance(holder, list):
            holder.extend([copy.deepcopy(holder[key])] * chance.choice([1, 3, 40]))
        case 3:
            for _ in range(chance.choice([1, 5, 250])):
                holder[key] = [holder[key]] if chance.random() < 0.5 else {"a": holder[key]}
        case _:
            holder[key] = copy.deepcopy(chance.choice(VALUES))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every holder and key in a value, the outermost first."""
    pending = [value]
    while pending:
        holder = pending.pop()
        for key, inner in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
            yield holder, key
            if isinstance(inner, dict | list):
                pending.append(inner)


def _spoiled(content: bytes, chance: random.Random) -> bytes:
    """Now and then no JSON."""
    if chance.random() < 0.9 or not content:
        return content
    place = chance.randrange(len(content))
    return chance.choice([content[:place], content[:place] + bytes([chance.randrange(256)]) + content[place + 1 :]])
