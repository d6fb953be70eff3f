"""The documents of a memory: added as texts, documents or files, read, listed, deleted; how calls are checked."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import endless_loaded

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.errors import (
    BankClosed,
    CorpusError,
    DuplicateDocument,
    FilterError,
    QuestionError,
    UnknownDocument,
    UnknownName,
)
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.model.convert import LoadedModel
from memspan.types import Document

SHORT = Sampling(max_new_tokens=4)
OTTER, HERON, LYNX = "The otter lives in Rome.", "The heron lives in Oslo.", "The lynx lives in Quito."


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return endless_loaded()


@pytest.fixture
def animals(memory: Memory) -> Memory:
    """Three animals: texts with ids, titles, metadata and dates."""
    memory.add(
        [OTTER, HERON, LYNX],
        ids=["otter", "heron", "lynx"],
        titles=["Otter", "", "Lynx"],
        metadatas=[{"n": 1}, None, {"n": 3}],
        dates=["2025-01-01", None, "2025-01-03"],
    )
    return memory


# --- adding ---------------------------------------------------------------------------------------------------------


def test_texts_get_ids_titles_metadata_and_dates(animals: Memory) -> None:
    assert animals.get("otter") == Document("otter", OTTER, "Otter", {"n": 1}, "2025-01-01")
    assert animals.get("heron") == Document("heron", HERON)


def test_a_text_without_an_id_is_known_by_its_content(memory: Memory) -> None:
    assert memory.add([OTTER, HERON]).added == 2
    again = memory.add([OTTER], metadatas=[{"n": 1}])
    assert (again.added, again.updated, again.documents) == (0, 1, 0), "it is there, and only its metadata are new"
    assert [(x.text, x.metadata) for x in memory] == [(OTTER, {"n": 1}), (HERON, {})]
    assert memory.add(text for text in (OTTER, LYNX)).added == 1


def test_texts_and_documents_may_be_mixed(memory: Memory) -> None:
    assert memory.add([OTTER, Document("heron", HERON)]).added == 2
    assert memory.get("heron").text == HERON


def test_what_becomes_of_an_id_that_is_there_is_said(animals: Memory) -> None:
    assert animals.add(["The otter moved."], ids=["otter"]).updated == 1
    assert animals.get("otter").text == "The otter moved." and len(animals) == 3
    with pytest.raises(DuplicateDocument, match="'otter'"):
        animals.add(["The otter moved again."], ids=["otter"], existing="refuse")


@pytest.mark.parametrize(
    ("documents", "columns", "error", "message"),
    [
        ("one text", {}, TypeError, r"documents is a list, also of one: memory.add\(\[str\]\)"),
        (Document("a", OTTER), {}, TypeError, r"memory.add\(\[Document\]\)"),
        ({"a": OTTER}, {}, TypeError, "documents is a list"),
        (b"bytes", {}, TypeError, r"documents is a list, also of one: memory.add\(\[bytes\]\)"),
        (7, {}, TypeError, "documents is a list"),
        (None, {}, TypeError, "documents is a list"),
        (Path("notes/a.md"), {}, TypeError, r"a file is added by its path: memory.add_files\('notes.a.md'\)"),
        (io.StringIO(OTTER), {}, TypeError, "a file is added by its path"),
        (io.BytesIO(b"otter"), {}, TypeError, "a file is added by its path"),
        ([OTTER, None], {}, TypeError, "a document is a text or a Document, not NoneType"),
        ([OTTER, b"bytes"], {}, TypeError, "not bytes"),
        ([OTTER, " "], {}, ValueError, "has no text"),
        ([OTTER], {"ids": "otter"}, TypeError, "ids is a list with one for each document, not 'otter'"),
        ([OTTER], {"metadatas": {"n": 1}}, TypeError, "metadatas is a list"),
        ([OTTER, HERON], {"ids": ["otter"]}, ValueError, "ids has 1 values for 2 documents"),
        ([OTTER, HERON], {"ids": ["a", "a"]}, ValueError, "ids names 'a' twice"),
        ([OTTER], {"ids": [7]}, TypeError, "external_id of a Document is a text, not int"),
        ([OTTER], {"ids": [""]}, ValueError, "not empty"),
        ([OTTER], {"metadatas": [{"n": {1}}]}, ValueError, "not JSON"),
        ([OTTER], {"dates": ["yesterday"]}, ValueError, "'yesterday' is not a date"),
        ([Document("a", OTTER)], {"ids": ["b"]}, TypeError, "ids are for texts; 'a' is a Document"),
    ],
)
def test_what_can_be_no_documents_is_refused_and_nothing_is_added(
    memory: Memory, documents: Any, columns: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        memory.add(documents, **columns)
    assert not len(memory)


def test_files_are_read_as_the_command_reads_them(memory: Memory, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "otter.txt").write_text(OTTER)
    (notes / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "heron.md").write_text(HERON)
    report = memory.add_files(notes, str(tmp_path / "heron.md"))
    assert report.added == 2 and memory.get("notes/otter.txt").text == OTTER
    (skipped,) = report.skipped
    assert skipped.source.endswith("picture.png") and "unsupported" in skipped.reason
    assert memory.add_files(notes / "otter.txt", notes / "otter.txt").skipped == (), "the same one again"
    with pytest.raises(CorpusError, match="does not exist"):
        memory.add_files(notes, tmp_path / "nothing")
    with (
        (tmp_path / "heron.md").open(encoding="utf-8") as file,
        pytest.raises(TypeError, match=r"add_files\('.*heron.md"),
    ):
        memory.add(file)
    for wrong in ((), ([notes],), ("",), (notes, ""), (None,)):
        with pytest.raises(TypeError, match="each by itself"):
            memory.add_files(*wrong)  # type: ignore[arg-type]


def test_how_files_are_read_may_be_said(memory: Memory, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_bytes("Nr;Titel;Inhalt\n1;Größe;Die Schleiereule ruft.\n".encode("cp1252"))
    assert "--text-column" in memory.add_files(table).skipped[0].reason
    report = memory.add_files(table, text_column="Inhalt", title_column="Titel", encoding="cp1252")
    assert (report.added, report.skipped) == (1, ())
    assert [(one.title, one.text) for one in memory] == [("Größe", "Die Schleiereule ruft.")]
    assert memory.add_files(table, format="txt", encoding="cp1252", existing="refuse").added == 1
    for wrong, error in (({"encoding": "nonsense"}, CorpusError), ({"format": "nonsense"}, UnknownName)):
        with pytest.raises(error):
            memory.add_files(table, **wrong)
    with pytest.raises(TypeError, match="did you mean 'encoding'"):
        memory.add_files(table, encodin="cp1252")
    assert len(memory) == 2


# --- reading --------------------------------------------------------------------------------------------------------


def test_a_memory_is_a_collection_of_its_documents(animals: Memory) -> None:
    other = animals.in_namespace("other")
    assert (len(animals), len(other)) == (3, 0) and other, "an empty memory is one, too"
    assert [document.external_id for document in animals] == ["otter", "heron", "lynx"]
    assert "otter" in animals and "newt" not in animals and "otter" not in other and None not in animals
    for document in animals:  # what is changed meanwhile is not seen
        animals.update(document.external_id, text=document.text + " Still.")
    assert all(document.text.endswith("Still.") for document in animals) and len(animals) == 3


def test_documents_are_listed_in_pages_and_by_a_filter(animals: Memory) -> None:
    def names(**options: Any) -> list[str]:
        return [document.external_id for document in animals.list(**options)]

    assert names() == ["otter", "heron", "lynx"]
    assert names(limit=2) == ["otter", "heron"] and names(limit=2, offset=2) == ["lynx"] and names(limit=0) == []
    assert names(where={"n": {">=": 1}}) == ["otter", "lynx"] and names(as_of="2025-01-02") == ["otter"]
    assert names(where={"n": 1}, offset=1) == []
    with pytest.raises(FilterError, match="'colour'"):
        names(where={"colour": "red"})
    for wrong in ({"limit": -1}, {"offset": -1}):
        with pytest.raises(ValueError, match="must not be negative"):
            names(**wrong)


def test_one_document_or_several_are_got_by_id(animals: Memory) -> None:
    lynx, otter = animals.get(["lynx", "otter"])
    assert (lynx.text, otter.text) == (LYNX, OTTER) and animals.get([]) == []
    assert animals.get(animals.search("lynx")[0].document_id) == lynx
    with pytest.raises(UnknownDocument, match="'newt'"):
        animals.get(["lynx", "newt"])
    with pytest.warns(DeprecationWarning, match="id= is called ids= now"):
        assert animals.get(id="lynx") == lynx  # type: ignore[call-overload]


def test_a_pinned_memory_lists_what_it_sees(animals: Memory, loaded: LoadedModel) -> None:
    with Memory(MemoryBank.open(animals.bank.folder), loaded, snapshot=True) as pinned:
        animals.delete("otter")
        assert len(pinned) == len(list(pinned)) == len(pinned.list()) == 3 and pinned.get("otter").text == OTTER
        pinned.refresh()
        assert len(pinned) == 2 and "otter" not in pinned


# --- deleting -------------------------------------------------------------------------------------------------------


def test_documents_are_deleted_by_id_by_a_list_or_by_a_filter(animals: Memory) -> None:
    assert animals.delete("otter") == 1 and "otter" not in animals
    assert animals.delete(where={"n": 3}) == 1 and [x.external_id for x in animals] == ["heron"]
    assert animals.delete(where={"title": "Newt"}) == 0 and animals.delete([]) == 0
    with pytest.raises(UnknownDocument, match="'newt'"):
        animals.delete(["heron", "newt"])
    assert animals.delete(["heron"]) == 1 and not len(animals)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, TypeError),
        ({"ids": ["otter"], "where": {"n": 1}}, TypeError),
        ({"where": {}}, FilterError),
        ({"where": {"colour": "red"}}, FilterError),
    ],
)
def test_deleting_without_saying_what_is_refused(animals: Memory, arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        animals.delete(**arguments)
    assert len(animals) == 3


# --- how methods are called -----------------------------------------------------------------------------------------

# Every method with the arguments it needs.
CALLS: dict[str, tuple[Any, ...]] = {
    "add": ([OTTER],),
    "add_files": ("notes",),
    "remember": ("Hello.",),
    "get": ("otter",),
    "list": (),
    "update": ("otter",),
    "delete": ("otter",),
    "ask": ("otter?",),
    "ask_batch": (["otter?"],),
    "stream": ("otter?",),
    "events": ("otter?",),
    "steps": ("otter?", None),
    "search": ("otter",),
    "summarize": (),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_option_that_is_none_is_named_with_the_nearest(animals: Memory, name: str) -> None:
    method = getattr(animals, name)
    with pytest.raises(TypeError, match=rf"Memory.{name} has no option 'colour'"):
        method(*CALLS[name], colour="red")
    with pytest.raises(TypeError, match=r"another one is memory.in_namespace\('ann'\)"):
        method(*CALLS[name], namespace="ann")
    assert len(animals) == 3


@pytest.mark.parametrize(
    ("name", "mistyped", "meant"),
    [
        ("ask", "as_off", "as_of"),
        ("ask", "wher", "where"),
        ("ask", "max_docs", "max_documents"),
        ("search", "wher", "where"),
        ("search", "limits", "limit"),
        ("stream", "on_answers", "on_answer"),
        ("stream", "text_onl", "text_only"),
        ("add", "metadata", "metadatas"),
        ("add", "id", "ids"),
        ("add", "commit_second", "commit_seconds"),
        ("delete", "were", "where"),
        ("summarize", "asof", "as_of"),
    ],
)
def test_the_nearest_option_is_named(animals: Memory, name: str, mistyped: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"no option '{mistyped}'; did you mean '{meant}'"):
        getattr(animals, name)(*CALLS[name], **{mistyped: None})


def test_opening_names_the_nearest_option_too(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="did you mean 'adapter'"):
        Memory.open(tmp_path / "bank", adaptor="none")  # type: ignore[call-arg]


@pytest.mark.parametrize("questions", ["ab", [["a"]], [None]])
def test_a_text_where_a_list_of_questions_is_wanted_is_refused(animals: Memory, questions: Any) -> None:
    with pytest.raises(TypeError, match="ask_batch takes a list"):
        animals.ask_batch(questions)


@pytest.mark.parametrize("name", ["ask", "search", "stream", "events"])
def test_a_list_where_one_question_is_wanted_is_refused(animals: Memory, name: str) -> None:
    with pytest.raises(TypeError, match="a question is one text"):
        list(getattr(animals, name)(["otter?"]))


# --- the page of the docs -------------------------------------------------------------------------------------------


def test_the_page_runs_as_it_is_written(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    monkeypatch.setattr(Memory, "open", lambda folder, create, answerer=None: memory)
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL))
    exec(compile(code, "python.md", "exec"), {})


# --- after close ----------------------------------------------------------------------------------------------------

USES = {
    "ask": lambda memory: memory.ask("Where?", sampling=SHORT),
    "stream": lambda memory: list(memory.stream("Where?", sampling=SHORT)),
    "events": lambda memory: list(memory.events("Where?", sampling=SHORT)),
    "search": lambda memory: memory.search("otter"),
    "summarize": lambda memory: memory.summarize(),
    "add": lambda memory: memory.add(["A newt."]),
    "add nothing": lambda memory: memory.add([]),
    "remember": lambda memory: memory.remember("A newt."),
    "update": lambda memory: memory.update("otter", title="x"),
    "delete": lambda memory: memory.delete("otter"),
    "get": lambda memory: memory.get("otter"),
    "list": lambda memory: memory.list(),
    "len": len,
    "in": lambda memory: "otter" in memory,
    "refresh": lambda memory: memory.refresh(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("snapshot", [False, True])
def test_what_is_closed_says_so(tmp_path: Path, loaded: LoadedModel, use: Any, snapshot: bool) -> None:
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(loaded)), loaded) as memory:
        memory.add([OTTER], ids=["otter"])
    opened = Memory(MemoryBank.open(tmp_path / "bank"), loaded, snapshot=snapshot)
    sibling, child = opened.in_namespace("default"), opened.in_namespace("default")
    child.close()
    assert opened.get("otter").text == OTTER and sibling.search("otter"), "only the child was closed"
    opened.close()
    opened.close()
    for closed in (child, opened) if use is USES["refresh"] else (child, opened, sibling):
        with pytest.raises(BankClosed, match="closed; open it again"):
            use(closed)


@pytest.mark.parametrize("wrong", ["3", 2.5, None, True, [1]])
def test_a_number_of_documents_is_a_whole_number(animals: Memory, wrong: Any) -> None:
    calls: dict[str, Any] = {
        "max_documents": lambda: animals.ask("otter", max_documents=wrong),
        "limit": lambda: animals.search("otter", limit=wrong),
        "offset": lambda: animals.list(offset=wrong),
        "max_new_tokens": lambda: Sampling(max_new_tokens=wrong),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"{name} is a whole number, not {re.escape(repr(wrong))}"):
            call()


def test_numbers_of_other_libraries_are_whole_numbers(animals: Memory) -> None:
    one = np.int64(1)
    assert len(animals.search("otter heron lynx", limit=one, selector="lexical")) == 1
    assert len(animals.list(limit=one, offset=one)) == 1
    with pytest.raises(QuestionError, match="limit must not be negative, not -1"):
        animals.search("otter", limit=-1)


def test_settings_of_decoding_are_given_together(animals: Memory) -> None:
    with pytest.raises(TypeError, match=r"'max_new_tokens': it is of sampling=Sampling\(max_new_tokens=5\)"):
        animals.ask("otter", max_new_tokens=5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"'temperature': it is of sampling=Sampling\(temperature=0.7\)"):
        next(animals.stream("otter", temperature=0.7))  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'temperature'; it has"):
        animals.search("otter", temperature=0.7)  # type: ignore[call-arg]
    for wrong in ({"max_new_tokens": 5}, 5, None):
        with pytest.raises(TypeError, match="sampling is a Sampling"):
            animals.ask("otter", sampling=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"stop is a tuple of texts, as \('end',\)"):
        Sampling(stop="end")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["the otter", {"about": "otter"}, 3])
def test_a_summary_has_a_plan(animals: Memory, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"plan is a SummaryPlan, as SummaryPlan\(about='the bees'\)"):
        animals.summarize(wrong)


@pytest.mark.parametrize("wrong", [None, 3, b"ann", ["ann"]])
def test_a_namespace_is_named_by_a_text(memory: Memory, wrong: Any) -> None:
    with pytest.raises(TypeError, match="a namespace is named by a text"):
        memory.in_namespace(wrong)


def test_a_memory_says_what_it_is_of(memory: Memory) -> None:
    name = f"<Memory of {str(memory.bank.folder)!r}, namespace 'default'>"
    assert repr(memory) == name
    assert repr(memory.in_namespace("ann")) == name.replace("default", "ann")
    memory.close()
    assert repr(memory) == name
