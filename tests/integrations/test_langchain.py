"""LangChain: its own suites of standard tests, and what those do not ask."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from frameworks import run_docs, run_example
from helpers import tiny_loaded

pytest.importorskip("langchain_core", reason="needs the extra 'langchain'")
pytest.importorskip("langchain_tests", reason="needs langchain-tests")

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.runnables import RunnableLambda
from langchain_tests.integration_tests import ChatModelIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.errors import FilterError, QuestionError
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.integrations.langchain import ChatMemspan, MemspanRetriever
from memspan.types import Document, Turn

CITIES = {"otter": "Rome", "heron": "Oslo", "lynx": "Quito", "newt": "Bern"}
ASKED = "Where does the otter live?"
SHORT = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Memory]:
    """Four animals; a model that never ends an answer by itself."""
    loaded = tiny_loaded()
    loaded.template.stop_ids = frozenset()
    loaded.model.generation_config.eos_token_id = None
    bank = MemoryBank.create(tmp_path_factory.mktemp("langchain") / "animals", manifest_of(loaded))
    with Memory(bank, loaded) as memory:
        memory.add(
            Document(f"animals/{animal}", f"The {animal} lives in {city}.", animal, {"n": n}, f"2025-01-0{n + 1}")
            for n, (animal, city) in enumerate(CITIES.items())
        )
        yield memory


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True, scope="module")
def _memory_of_the_suites(memory: Memory) -> None:
    for suite in (_ChatSettings, TestStandardRetriever):
        suite.memory = memory


class _ChatSettings:
    """What the suites are told of the model. That it calls no tools, and so on, they read off the class."""

    memory: Memory
    chat_model_class = ChatMemspan
    supports_model_override = False
    # No time limit and no retries: nothing is called over a network.
    standard_chat_model_params = {"temperature": 0, "max_tokens": 8, "stop": []}  # noqa: RUF012

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"memory": self.memory}


class TestStandardChatUnit(_ChatSettings, ChatModelUnitTests):
    pass


@pytest.mark.anyio
class TestStandardChat(_ChatSettings, ChatModelIntegrationTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"memory": self.memory, "max_tokens": 8}


@pytest.mark.anyio
class TestStandardRetriever(RetrieversIntegrationTests):
    memory: Memory
    retriever_constructor = MemspanRetriever
    retriever_query_example = "Which animals live in Rome, Oslo, Quito or Bern?"

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"memory": self.memory}


def test_no_folder_of_the_machine_goes_out(memory: Memory) -> None:
    other = memory.in_namespace("paths")
    other.add([Document("zoo", "The zoo.", metadata={"path": "/srv/secret/zoo.txt"})])
    (found,) = MemspanRetriever(memory=other, selector="lexical").invoke("zoo")
    chat = ChatMemspan(memory=other, max_tokens=2, selector="lexical")
    answer = chat.invoke("zoo")
    assert found.metadata["path"] == "zoo.txt" == answer.response_metadata["citations"][0]["metadata"]["path"]
    assert "secret" not in str((found.metadata, answer.response_metadata))
    assert str(memory.bank.folder.parent) not in str(chat._identifying_params)
    assert chat._identifying_params["bank"].startswith(f"{memory.bank.folder.name}-")


def test_an_answer_is_what_the_memory_answers(memory: Memory) -> None:
    expected = memory.ask(ASKED, sampling=SHORT, max_documents=2)
    got = ChatMemspan(memory=memory, max_tokens=8, max_documents=2).invoke(ASKED)
    assert got.content == expected.text
    assert got.usage_metadata == {
        "input_tokens": expected.num_prompt_tokens,
        "output_tokens": 8,
        "total_tokens": expected.num_prompt_tokens + 8,
    }
    assert got.response_metadata["model_name"] == "memspan/animals"
    assert got.response_metadata["finish_reason"] == "length"
    first, *_ = got.response_metadata["citations"]
    assert first["external_id"] == "animals/otter" and first["text"] == "The otter lives in Rome."
    assert first["span"] == {"start": 0, "end": len(first["text"])} and first["metadata"] == {"n": 0}
    assert [item["document_id"] for item in got.response_metadata["citations"]] == [
        item.document_id for item in expected.evidence
    ]


def test_a_conversation_is_read_as_the_memory_reads_it(memory: Memory) -> None:
    history = [Turn("Be brief."), Turn("Where does the heron live?", "In Oslo.")]
    said: list[BaseMessage] = [
        SystemMessage("Be brief."),
        HumanMessage([{"type": "text", "text": "Where does the heron live?"}]),
        AIMessage("In Oslo."),
        HumanMessage(ASKED),
    ]
    expected = memory.ask(ASKED, sampling=SHORT, history=history)
    got = ChatMemspan(memory=memory, max_tokens=8).invoke(said)
    assert got.content == expected.text
    assert got.usage_metadata["input_tokens"] == expected.num_prompt_tokens  # type: ignore[index]
    assert got.usage_metadata["input_tokens"] > memory.ask(ASKED, sampling=SHORT).num_prompt_tokens  # type: ignore[index]


def test_a_stream_is_the_answer_in_pieces(memory: Memory) -> None:
    chat = ChatMemspan(memory=memory, max_tokens=8)
    pieces = list(chat.stream(ASKED))
    whole, sum_of = chat.invoke(ASKED), pieces[0]
    for piece in pieces[1:]:
        sum_of += piece
    assert len([piece for piece in pieces if piece.content]) > 2
    assert sum_of.text.strip() == whole.content
    assert sum_of.usage_metadata == whole.usage_metadata
    assert sum_of.response_metadata == whole.response_metadata


def test_settings_hold_for_the_model_or_for_one_call(memory: Memory) -> None:
    chat = ChatMemspan(memory=memory, max_tokens=8, temperature=5.0, seed=3, where={"n": 1})
    expected = memory.ask(ASKED, sampling=Sampling(8, 5.0, seed=3), where={"n": 1})
    got = chat.invoke(ASKED)
    assert (
        got.content == expected.text != ChatMemspan(memory=memory, max_tokens=8, where={"n": 1}).invoke(ASKED).content
    )
    assert [item["external_id"] for item in got.response_metadata["citations"]] == ["animals/heron"]
    other = chat.bind(where={"n": 2}, max_tokens=3).invoke(ASKED)
    assert other.usage_metadata["output_tokens"] == 3
    assert [item["external_id"] for item in other.response_metadata["citations"]] == ["animals/lynx"]
    stop = chat.invoke(ASKED, temperature=0).content[1:3]
    stopped = chat.invoke(ASKED, temperature=0, stop=[stop])
    assert stop not in stopped.content and stopped.response_metadata["finish_reason"] == "stop_string"
    assert len({chat.invoke(ASKED, seed=None).content for _ in range(3)}) > 1, "another seed every time"


def test_a_least_score_holds_for_the_model_or_for_one_call(memory: Memory) -> None:
    for model, given in ((ChatMemspan(memory=memory, min_score=1), {}), (ChatMemspan(memory=memory), {"min_score": 1})):
        assert model.invoke("the otter", max_tokens=2, **given).response_metadata["citations"] == []
    assert ChatMemspan(memory=memory).invoke("the otter", max_tokens=2).response_metadata["citations"]


def test_questions_in_threads_get_the_answers_they_get_alone(memory: Memory) -> None:
    chat = ChatMemspan(memory=memory, max_tokens=8)
    questions = [f"Where does the {animal} live?" for animal in CITIES] * 2
    alone = [chat.invoke(question).content for question in questions]
    assert [answer.content for answer in chat.batch(questions, {"max_concurrency": 4})] == alone
    assert len(set(alone)) == len(CITIES)


def test_a_stream_that_is_left_frees_the_bank(memory: Memory) -> None:
    async def leave() -> None:
        async for piece in ChatMemspan(memory=memory, max_tokens=200).astream(ASKED):
            assert piece is not None
            break

    asyncio.run(leave())
    memory.bank.compact(secure=True, timeout=5)  # refused while a question reads


CALL = {"name": "weather", "args": {"ort": "Köln"}, "id": "1"}
TOLD = 'Called weather({"ort": "Köln"})'


@pytest.mark.parametrize(
    ("between", "turns"),
    [
        (
            [AIMessage("", tool_calls=[CALL]), ToolMessage("5 degrees", tool_call_id="1")],
            [TOLD, "The tool returned: 5 degrees"],
        ),
        ([AIMessage("Well.", tool_calls=[CALL, CALL])], [f"Well.\n{TOLD}\n{TOLD}"]),
        (
            [
                AIMessage(
                    [
                        {"type": "thinking", "thinking": "hm"},
                        {"type": "tool_use", "name": "weather", "input": {"ort": "Köln"}},
                    ]
                )
            ],
            [TOLD],
        ),
        ([AIMessage([{"type": "tool_use", **CALL}], tool_calls=[CALL])], [TOLD]),
        (
            [
                AIMessage(
                    "",
                    invalid_tool_calls=[
                        {"name": "f", "args": "{", "id": "1", "error": "x", "type": "invalid_tool_call"}
                    ],
                )
            ],
            ["Called f({)"],
        ),
        (
            [AIMessage("So?"), ToolMessage([{"type": "text", "text": "a"}, "b"], tool_call_id="1", name="look")],
            ["So?", "look returned: a\nb"],
        ),
        ([AIMessage("So?"), FunctionMessage("7", name="look")], ["So?", "look returned: 7"]),
        ([AIMessage("", tool_calls=[])], []),
    ],
)
def test_calls_and_results_of_tools_are_read(memory: Memory, between: list[BaseMessage], turns: list[str]) -> None:
    """In the middle of a conversation, and behind its last question."""
    chat = ChatMemspan(memory=memory, max_tokens=8)
    question, options = chat._asked([HumanMessage("Hi"), *between, HumanMessage("So?")], None, {})
    assert question == "So?" and [one.answer for one in options["history"] if one.answer] == turns  # type: ignore[typeddict-item]
    if isinstance(between[-1], ToolMessage | FunctionMessage):
        question, options = chat._asked([HumanMessage("So?"), *between], None, {})
        assert question == "So?" and [one.answer for one in options["history"]] == turns  # type: ignore[typeddict-item]
        assert chat.invoke([HumanMessage("Where does the otter live?"), *between]).response_metadata["citations"]


def test_what_a_memory_model_cannot_do_is_refused(memory: Memory) -> None:
    chat = ChatMemspan(memory=memory, max_tokens=8)
    image = HumanMessage([{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "x"}}])
    for said, named in (
        ([HumanMessage("Hi"), RemoveMessage("1"), HumanMessage("So?")], "remove"),
        ([HumanMessage("Hi"), ToolMessage([{"type": "image", "url": "x"}], tool_call_id="1")], "image"),
        ([image], "image_url"),
        ([HumanMessage("Hi"), AIMessage("Hello")], "last message"),
        ([HumanMessage(" ")], "last message"),
    ):
        with pytest.raises(QuestionError, match=named):
            chat.invoke(said)
    with pytest.raises(QuestionError, match="tools"):
        chat.invoke(ASKED, tools=[])
    with pytest.raises(ValueError, match="top_p"):
        chat.invoke(ASKED, top_p=2.0)
    with pytest.raises(ValueError, match=r"max_token\b"):
        ChatMemspan(memory=memory, max_token=8)  # type: ignore[call-arg]


def test_documents_are_what_the_memory_finds(memory: Memory) -> None:
    retriever = MemspanRetriever(memory=memory, k=2, selector="lexical")
    expected = memory.search(ASKED, limit=2, selector="lexical")
    got = retriever.invoke(ASKED)
    assert [document.id for document in got] == [str(item.document_id) for item in expected]
    first = got[0]
    assert first.page_content == "The otter lives in Rome."
    ours = first.metadata.pop("memspan")
    assert first.metadata == {"source": "animals/otter", "title": "otter", "n": 0}
    assert ours["score"] == expected[0].score and ours["date"] == "2025-01-01"
    assert memory.get(int(first.id or 0)).external_id == ours["external_id"] == "animals/otter"


def test_documents_are_filtered_by_the_retriever_or_by_one_call(memory: Memory) -> None:
    retriever = MemspanRetriever(memory=memory, where={"n": {">=": 2}}, selector="lexical")

    def found(**options: Any) -> set[str]:
        return {document.metadata["title"] for document in retriever.invoke("the live lives in", **options)}

    assert found() == {"lynx", "newt"}
    assert found(as_of="2025-01-03") == {"lynx"}
    assert found(where={"n": 0}) == {"otter"}
    assert found(where={}) == set(CITIES)
    assert {item.metadata["title"] for item in asyncio.run(retriever.ainvoke(ASKED, where={"n": 1}))} == {"heron"}
    with pytest.raises(FilterError):
        found(where={"nowhere": 1})


def test_the_next_question_sees_what_was_added_in_its_own_namespace(memory: Memory) -> None:
    mine = memory.in_namespace("mine")
    mine.add([Document("stoat", "The stoat lives in Turin.", "stoat")])
    retriever = MemspanRetriever(memory=mine)
    assert [item.metadata["source"] for item in retriever.invoke("Where does the otter live?")] == ["stoat"]
    mine.add([Document("ibis", "The ibis lives in Cairo.", metadata={"title": "its own"})])
    found = retriever.invoke("Where does the ibis live?")
    assert {item.metadata["source"]: item.metadata["title"] for item in found} == {"stoat": "stoat", "ibis": "its own"}


def test_both_stand_in_a_chain(memory: Memory) -> None:
    chain = MemspanRetriever(memory=memory, k=1) | RunnableLambda(lambda found: found[0].page_content)
    chain = chain | ChatMemspan(memory=memory, max_tokens=8)
    assert chain.invoke(ASKED).response_metadata["citations"][0]["external_id"] == "animals/otter"


def test_the_docs_run_as_they_are_written(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_docs(
        "integrations.langchain",
        memory,
        Document("warehouse", "The newest warehouse is in the town of Hasselt.", date="2025-04-08"),
        monkeypatch,
    )
    shown = capsys.readouterr().out
    assert "warehouse {'start': 0" in shown and "'input_tokens'" in shown


def test_the_example_runs_on_the_notes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_example("with_langchain.py", monkeypatch)
    shown = capsys.readouterr().out
    assert shown.count("cites people/owen-pritchard.md") == 2, "the second question does not name him"
    assert "[people/owen-pritchard.md] # Owen Pritchard" in shown


def test_a_memory_of_a_snapshot_sees_it_in_every_thread(memory: Memory) -> None:
    bank = MemoryBank.open(memory.bank.folder)
    with Memory(bank, memory.loaded, namespace="snapshots", snapshot=False) as other:
        other.add([Document("a", "The wombat lives in Perth.")])
        with Memory(MemoryBank.open(bank.folder), memory.loaded, namespace="snapshots", snapshot=True) as pinned:
            other.add([Document("b", "The wombat lives in Hobart.")])
            found = MemspanRetriever(memory=pinned).batch(["wombat"] * 8, {"max_concurrency": 4})
    assert [[item.metadata["source"] for item in items] for items in found] == [["a"]] * 8


def test_a_memory_of_ranks_is_refused(memory: Memory) -> None:
    ranked = memory.in_namespace(memory.namespace)
    ranked.ranks = object()  # type: ignore[assignment]
    for asked in (MemspanRetriever(memory=ranked), ChatMemspan(memory=ranked)):
        with pytest.raises(ValueError, match="ranks ask in one order"):
            asked.invoke(ASKED)


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "memspan.integrations.langchain")
    monkeypatch.setitem(sys.modules, "langchain_core.caches", None)
    with pytest.raises(ImportError, match=r"pip install 'memspan\[langchain\]'"):
        importlib.import_module("memspan.integrations.langchain")
