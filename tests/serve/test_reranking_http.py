"""Reranking over HTTP and for agents: a request's wish, the server's default, what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from mcp import Client
from serving import add_animals, client, error_of, question, serving

from memspan.generate.rerank import RERANKERS
from memspan.generate.selectors import Needs
from memspan.model.convert import LoadedModel
from memspan.serve.banks import ServedBank
from memspan.serve.engine import Engine
from memspan.serve.mcp import make_mcp
from memspan.serve.settings import ServeSettings
from memspan.types import Document

ASKED = "Where do the otter and the heron live?"


class Backwards:
    """Prefers what was found last."""

    needs = Needs(model=False)

    def score(self, question: str, documents: Any, means: Any) -> list[int]:
        return list(range(len(documents)))


@pytest.fixture(autouse=True, scope="module")
def _backwards() -> Iterator[None]:
    RERANKERS.register("backwards", Backwards())
    yield
    del RERANKERS._registered["backwards"]
    RERANKERS._checked.pop("backwards", None)


def found(http: httpx.Client, **fields: Any) -> list[str]:
    response = http.post("/v1/memories/search", json={"query": ASKED, "selector": "lexical", **fields})
    assert response.status_code == 200, response.text
    return [item["id"] for item in response.json()["data"]]


def chat(http: httpx.Client, **fields: Any) -> Any:
    response = http.post("/v1/chat/completions", json=question(ASKED, memspan={"selector": "lexical", **fields}))
    assert response.status_code == 200, response.text
    return response.json()["memspan"]


def test_a_request_says_who_ranks_anew(http: httpx.Client) -> None:
    plain = found(http)
    assert len(plain) > 1 and found(http, rerank="backwards") == plain[::-1]
    assert found(http, rerank="none") == found(http, rerank=None) == plain
    assert sorted(found(http, rerank="model")) == sorted(plain)
    trace = chat(http, rerank="backwards", max_documents=1)
    assert [item["id"] for item in trace["evidence"]] == plain[-1:] and trace["rounds"][0]["reranker"] == "backwards"
    assert trace["rounds"][0]["timings"]["rerank"] >= 0 and chat(http)["rounds"][0]["reranker"] == "none"
    assert chat(http, rerank="model")["rounds"][0]["reranker"] == "model"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"rerank": "best"}, "reranker must be one of none, model, likelihood, cross, backwards, not 'best'"),
        ({"rerank": "cross"}, "the reranker cross needs a model"),
        ({"rerank": "model", "max_documents": 0, "selector": "router"}, "leave rerank='model' out"),
        ({"reranker": "model"}, "did you mean 'rerank'"),
        ({"rerank": 1}, "rerank"),
        ({"rerank": "cross", "cross_encoder": "/etc"}, "cross_encoder"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(http: httpx.Client, fields: dict[str, Any], told: str) -> None:
    body = question(ASKED, memspan={"selector": "lexical", **fields})
    assert told in error_of(http.post("/v1/chat/completions", json=body), 400)["message"]
    if "max_documents" not in fields:
        body = {"query": ASKED, "selector": "lexical", **fields}
        assert told in error_of(http.post("/v1/memories/search", json=body), 400)["message"]


def test_the_server_has_a_default_that_yields_where_there_is_nothing_to_rank(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    with serving(loaded, tmp_path / "notes", rerank="backwards") as (_, address), client(address) as http:
        add_animals(http)
        plain = found(http, rerank="none")
        assert found(http) == plain[::-1]
        assert chat(http)["rounds"][0]["reranker"] == "backwards"
        assert chat(http, rerank="none")["rounds"][0]["reranker"] == "none"
        assert chat(http, selector="router", max_documents=0)["rounds"][0]["reranker"] == "none"


def test_agents_get_the_servers_default(loaded: LoadedModel, tmp_path: Path) -> None:
    import anyio

    bank = ServedBank("notes", tmp_path / "notes", loaded, 10)
    texts = [Document(name, f"The {name} lives in Rome.") for name in ("otter", "heron", "lynx")]
    bank.write("default", lambda memory: memory.add(texts)).result()
    engine = Engine(loaded, max_batch=2, max_queue=4, timeout=60.0)

    async def use(rerank: str) -> list[str]:
        async with Client(make_mcp(bank, engine, "default", ServeSettings(rerank=rerank))) as agent:
            result = await agent.call_tool("recall", {"query": "Who lives in Rome?"})
            assert not (await agent.call_tool("ask", {"question": "Who lives in Rome?", "max_tokens": 2})).is_error
            given = result.structured_content or json.loads(result.content[0].text)  # type: ignore[union-attr]
            return [item["id"] for item in given["result"]]

    plain, anew = (anyio.run(use, name) for name in ("none", "backwards"))
    engine.close()
    bank.close()
    assert len(plain) == 3 and anew == plain[::-1]
