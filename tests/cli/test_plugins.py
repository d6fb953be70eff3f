"""A package beside memspan adds a selector, a similarity and a file format: one module, one line of its metadata each.
Each then works wherever the project's own do."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import failed, memspan
from helpers import tiny_loaded

from memspan import registry
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.config import MSAConfig
from memspan.errors import MemspanError, PluginError
from memspan.eval.arms import parse_arm
from memspan.generate.memory import Memory
from memspan.generate.rerank import RERANKERS
from memspan.generate.sampling import Sampling
from memspan.generate.selectors import SELECTORS, selector_names
from memspan.model.convert import LoadedModel
from memspan.ops.similarity import SIMILARITIES
from memspan.serve.schemas import AskFields, SearchRequest
from memspan.text.readers import FORMATS, holds_records, read_content
from memspan.types import Document

MODULE = """
from memspan.generate.selectors import SearchResult, Needs
from memspan.routing.ranking import Selected
from memspan.text.readers import Content, OneText


class Shortest:
    needs = Needs(model=False)

    def rank(self, finder, looks, depth):
        stored = sorted(finder.documents(finder.ids()), key=lambda one: len(one.text))
        return [SearchResult([Selected(one.id, 1 / len(one.text), None) for one in stored[:depth]]) for _ in looks]


class Choosy(Shortest):
    needs = Needs(trained_router=True)


class Halved:
    def query(self, x_D):
        return x_D / 2

    def key(self, x_D):
        return x_D


class Longest:
    needs = Needs(model=False)

    def score(self, question, documents, means):
        return [len(item.text) for item in documents]


SHOUTED = OneText(lambda path: Content(path.read_text().upper()))
"""
POINTS = """
[memspan.selectors]
shortest = outside:Shortest
choosy = outside:Choosy
broken = outside:Missing
[memspan.rerankers]
longest = outside:Longest
broken = outside:Missing
unfit = outside:Halved
[memspan.similarities]
halved = outside:Halved
[memspan.formats]
shout = outside:SHOUTED
"""
SHORT = Sampling(max_new_tokens=2)


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "site"
    info = folder / "outside-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "outside.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(folder)
    for kind in (SELECTORS, RERANKERS, SIMILARITIES, FORMATS):
        monkeypatch.setattr(kind, "_checked", {})
    registry._points.cache_clear()
    yield
    monkeypatch.delitem(sys.modules, "outside", raising=False)
    registry._points.cache_clear()


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    yield from _remembering(tiny_loaded(), tmp_path)


def _remembering(loaded: LoadedModel, folder: Path) -> Iterator[Memory]:
    with Memory(MemoryBank.create(folder / "bank", manifest_of(loaded)), loaded) as made:
        made.add([Document("long", "The otter of Rome sleeps."), Document("short", "A newt.")])
        yield made


def test_a_selector_of_another_package_answers_and_searches(memory: Memory) -> None:
    assert [found.external_id for found in memory.search("otter", selector="shortest")] == ["short", "long"]
    answer = memory.ask("otter?", selector="shortest", max_documents=1, sampling=SHORT)
    assert answer.selector == answer.rounds[0].selector == "shortest"
    assert [item.external_id for item in answer.evidence] == ["short"] and answer.routed == ()
    assert memory.ask("otter?", selector="shortest", rounds=2, text_only=True, sampling=SHORT).evidence
    assert [found.external_id for found in memory.search("otter", selector="shortest", as_of="1999-01-01")] == []
    with pytest.raises(MemspanError, match="without documents the selector shortest, which routes nothing, leaves"):
        memory.ask("otter?", selector="shortest", max_documents=0)


def test_what_a_model_cannot_serve_is_an_error_when_it_is_asked(memory: Memory, tmp_path: Path) -> None:
    assert "choosy" not in selector_names(loaded=memory.loaded) and "shortest" in selector_names(loaded=memory.loaded)
    for ask in (memory.ask, memory.search):
        with pytest.raises(MemspanError, match="choosy needs a trained router, and this model's is untrained; load an"):
            ask("otter", selector="choosy")
        with pytest.raises(
            MemspanError, match="the selector 'broken' cannot be imported from outside:Missing of outside"
        ):
            ask("otter", selector="broken")
    for trained in _remembering(tiny_loaded(router_trained=True), tmp_path / "trained"):
        assert trained.search("otter", selector="choosy")


def test_the_commands_know_it(bank: Path, tmp_path: Path) -> None:
    for command in ("ask", "search"):
        shown = " ".join(memspan(command, "--help").out.split())
        assert "shortest" in shown and "broken" not in shown
    found = memspan("search", bank, "otter", "--selector", "shortest", "--json").json
    lengths = [len(item["text"]) for item in found]
    assert lengths == sorted(lengths) and len(found) == 3
    options = ("--selector", "shortest", "--max-new-tokens", 2, "--json")
    assert memspan("ask", bank, "otter?", *options).json["selector"] == "shortest"
    assert "'broken' cannot be imported" in failed("search", bank, "otter", "--selector", "broken")
    data = tmp_path / "asked.jsonl"
    evidence = [{"title": "otter", "text": "The otter of Rome."}]
    line = {"id": "q", "question": "Where?", "answers": ["Rome"], "positives": evidence, "negatives": []}
    data.write_text(json.dumps(line | {"type": "single", "hops": 1}) + "\n")
    out = tmp_path / "run"
    arms = ("--arms", "shortest@1,shortest@1+adaptive", "--max-new-tokens", 2)
    assert memspan("eval", "jsonl", "--data", data, "--out", out, *arms).code == 0
    result = json.loads((out / "result.json").read_text())
    assert [row["arm"] for row in result["rows"]] == ["shortest@1", "shortest@1+adaptive"] and not result["refused"]


def test_an_arm_is_what_its_selector_needs() -> None:
    arm = parse_arm("shortest@3")
    assert (arm.selector, arm.latents, arm.routes, arm.reads_in_rounds) == ("shortest", False, False, False)
    assert parse_arm("shortest+latents").reroute, "what routed no question has nothing else to attend to"


def test_the_server_takes_and_describes_it() -> None:
    assert (
        AskFields(selector="shortest").selector == SearchRequest(query="q", selector="shortest").selector == "shortest"
    )
    for schema, ranking in ((AskFields, False), (SearchRequest, True)):
        names = schema.model_json_schema()["properties"]["selector"]["anyOf"][0]["enum"]
        assert names == selector_names(ranking) and {"router", "lexical", "hybrid", "shortest"} <= {*names}
        assert ("generate" in names) != ranking and "dense" not in names
        for name in ("magic", "dense", "broken"):
            with pytest.raises(ValueError, match=f"selector must be one of router, lexical, hybrid.*, not '{name}'"):
                schema(selector=name, **({"query": "q"} if ranking else {}))


def test_a_reranker_of_another_package_ranks_anew(memory: Memory) -> None:
    lexical = {"selector": "shortest", "rerank": "longest"}
    assert [found.external_id for found in memory.search("otter", **lexical)] == ["long", "short"]
    answer = memory.ask("otter?", max_documents=1, sampling=SHORT, **lexical)
    assert [item.external_id for item in answer.evidence] == ["long"] and answer.rounds[0].reranker == "longest"
    for name, told in {"broken": "cannot be imported from outside:Missing", "unfit": "lacks score, needs"}.items():
        with pytest.raises(PluginError, match=f"the reranker '{name}' {told}"):
            memory.ask("otter?", rerank=name)


def test_commands_and_server_know_a_reranker_of_another_package(bank: Path) -> None:
    for command in ("ask", "search", "serve", "mcp"):
        shown = " ".join(memspan(command, "--help").out.replace("│", " ").split())
        assert "none, model, likelihood, cross, longest" in shown
    options = ("--selector", "lexical", "--json")
    plain, anew = (memspan("search", bank, "otter", *options, *more).json for more in ((), ("--rerank", "longest")))
    assert anew == sorted(plain, key=lambda item: -len(item["text"]))
    asked = memspan("ask", bank, "otter?", "--rerank", "longest", "--max-new-tokens", 2, "--json").json
    assert asked["rounds"][0]["reranker"] == "longest"
    assert parse_arm("bm25@1+longest").rerank == "longest"
    assert AskFields(rerank="longest").rerank == SearchRequest(query="q", rerank="longest").rerank == "longest"
    for schema in (AskFields, SearchRequest):
        assert "longest" in schema.model_json_schema()["properties"]["rerank"]["anyOf"][0]["enum"]
        with pytest.raises(ValueError, match=r"reranker must be one of none, model, .*longest.*, not 'magic'"):
            schema(rerank="magic", **({"query": "q"} if schema is SearchRequest else {}))


def test_a_similarity_of_another_package_routes(tmp_path: Path) -> None:
    loaded = tiny_loaded(similarity="halved")
    dot = tiny_loaded(similarity="dot")
    assert loaded.model.encoder_fingerprint() != dot.model.encoder_fingerprint()
    for memory in _remembering(loaded, tmp_path / "halved"):
        assert memory.ask("otter?", selector="router", sampling=SHORT).rounds[0].routed
    assert "cosine, dot, halved" in " ".join(memspan("convert", "--help").out.split())
    with pytest.raises(ValueError, match="similarity must be one of cosine, dot, halved, not 'euclid'"):
        MSAConfig(backbone_config=loaded.model.config.backbone_config, similarity="euclid")


def test_a_file_format_of_another_package_is_read(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "one.shout").write_text("the otter of oslo")
    (tmp_path / "notes" / "two.quiet").write_text("of no known format")
    assert memspan("add", tmp_path / "bank", tmp_path / "notes").code in (0, 3)
    found = memspan("search", tmp_path / "bank", "otter", "--selector", "lexical", "--json").json
    assert [item["text"] for item in found] == ["THE OTTER OF OSLO"]
    assert "shout" in memspan("add", "--help").out
    with pytest.raises(
        PluginError, match=r"'bare' lacks the class OneText; give it what .*OneText or .*ContainerReader has"
    ):
        FORMATS.register("bare", lambda path: path.read_text())  # type: ignore[arg-type]


def test_a_file_of_records_is_one_text_where_one_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("text,n\notter,1\n")
    assert read_content(tmp_path / "table.csv").text == "text,n\notter,1\n" and holds_records(tmp_path / "table.csv")
