"""LlamaIndex: the retriever finds what the memory finds, and its nodes are what LlamaIndex works with."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Iterator

import pytest
from frameworks import run_docs, run_example
from helpers import tiny_loaded

pytest.importorskip("llama_index.core", reason="needs the extra 'llama-index'")

from llama_index.core.llms.mock import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import MetadataMode

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.generate.memory import Memory
from memspan.integrations.llama_index import MemspanRetriever
from memspan.types import Document

ASKED = "Where does the otter live?"


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Memory]:
    loaded = tiny_loaded()
    bank = MemoryBank.create(tmp_path_factory.mktemp("llama") / "animals", manifest_of(loaded))
    with Memory(bank, loaded) as memory:
        memory.add(
            [
                Document("animals/otter", "The otter lives in Rome.", "otter", {"n": 0}, "2025-01-01"),
                Document("animals/heron", "The heron lives in Oslo.", "heron", {"n": 1}, "2025-01-02"),
            ]
        )
        yield memory


def test_nodes_are_what_the_memory_finds(memory: Memory) -> None:
    expected = memory.search(ASKED, limit=2, selector="lexical")
    found = MemspanRetriever(memory, k=2, selector="lexical").retrieve(ASKED)
    assert [(item.node_id, item.score) for item in found] == [(str(one.document_id), one.score) for one in expected]
    first, *_ = found
    assert first.text == "The otter lives in Rome."
    assert first.metadata["source"] == "animals/otter" and first.metadata["n"] == 0
    assert first.metadata["memspan"]["date"] == "2025-01-01"
    for mode in (MetadataMode.LLM, MetadataMode.EMBED):
        shown = first.node.get_content(mode)
        assert "n: 0" in shown and "memspan" not in shown
    assert asyncio.run(MemspanRetriever(memory, k=1, selector="lexical").aretrieve(ASKED)) == found[:1]


def test_no_folder_goes_out_with_metadata(memory: Memory) -> None:
    other = memory.in_namespace("paths")
    other.add(
        [Document("zoo", "The zoo.", metadata={"path": "/srv/secret/zoo.txt", "file_path": "C:\\secret\\zoo.txt"})]
    )
    (found,) = MemspanRetriever(other, selector="lexical").retrieve("zoo")
    assert found.metadata["path"] == found.metadata["file_path"] == "zoo.txt" and "secret" not in str(found.metadata)
    assert other.get("zoo").metadata["path"] == "/srv/secret/zoo.txt", "it is kept as it was given"


def test_filters_hold(memory: Memory) -> None:
    def titles(**options: object) -> list[str]:
        found = MemspanRetriever(memory, selector="lexical", **options).retrieve(ASKED)  # type: ignore[arg-type]
        return [item.metadata["title"] for item in found]

    assert titles() == ["otter", "heron"]
    assert titles(where={"n": 1}) == ["heron"]
    assert titles(as_of="2025-01-01") == ["otter"]
    assert titles(k=0) == []


def test_a_query_engine_answers_from_what_is_found(memory: Memory) -> None:
    engine = RetrieverQueryEngine.from_args(
        MemspanRetriever(memory, k=1), llm=MockLLM(), response_mode=ResponseMode.COMPACT
    )
    response = engine.query(ASKED)
    assert "The otter lives in Rome." in str(response), "the mock repeats its prompt"
    assert [item.metadata["source"] for item in response.source_nodes] == ["animals/otter"]


def test_the_docs_run_as_they_are_written(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_docs(
        "integrations.llama_index",
        memory,
        Document("warranty", "Brindlecomb gives two years of warranty.", date="2022-11-08"),
        monkeypatch,
    )
    assert "warranty" in capsys.readouterr().out


def test_the_example_runs_on_the_notes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_example("with_llama_index.py", monkeypatch)
    shown = capsys.readouterr().out
    assert "now: decisions/2024-11-19-warranty-five-years.md" in shown
    assert "as of June 2024: decisions/2022-11-08-warranty-two-years.md" in shown
    assert "rests on ['decisions/" in shown


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "memspan.integrations.llama_index")
    monkeypatch.setitem(sys.modules, "llama_index.core.retrievers", None)
    with pytest.raises(ImportError, match=r"pip install 'memspan\[llama-index\]'"):
        importlib.import_module("memspan.integrations.llama_index")
